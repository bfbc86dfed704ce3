"""Roots of functions of one variable, many at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from sciml.solvers.linear.early import over

ROOT = 2.0**-50  # width to which a root in (0, 1] is found


def itp(g: Callable[[Tensor], Tensor], g0: Tensor, g1: Tensor) -> Tensor:
    """Roots in (0, 1] of several functions at once, from their values at the two ends, which differ in sign.

    The method interpolates, truncates and projects: as few evaluations as the secant method on smooth functions, at
    most one more than bisection on any. What it returns lies on the far side of the root, or at it.

    Args:
        g: values (...) at points (...).
        g0: values at 0.
        g1: values at 1.

    Reference:
        Oliveira & Takahashi, An enhancement of the bisection method average performance preserving minmax optimality,
        ACM TOMS 47 (2021), doi:10.1145/3423597.
    """
    sign = -g0.sign()
    a, b = torch.zeros_like(g0), torch.ones_like(g0)
    fa, fb, n = g0 * sign, (g1 * sign).clamp_min(0), 51
    for j in range(n):
        if j % 4 == 0 and over(b - a <= ROOT):
            break
        middle, width = (a + b) / 2, b - a
        slack = (ROOT / 2 * 2.0 ** (n - j) - width / 2).clamp_min(0)
        secant = torch.where(fb > fa, (fb * a - fa * b) / (fb - fa), middle)
        toward = (middle - secant).sign()
        shift = (0.2 * width * width).clamp_min(ROOT / 2)  # to end on the other side of the root in the end, too
        nudged = torch.where(shift <= (middle - secant).abs(), secant + toward * shift, middle)
        x = torch.where((nudged - middle).abs() <= slack, nudged, middle - toward * slack)
        fx = g(x) * sign
        past = (fx >= 0) & (width > ROOT)
        short = (fx < 0) & (width > ROOT)
        a, fa = torch.where(short, x, a), torch.where(short, fx, fa)
        b, fb = torch.where(past, x, b), torch.where(past, fx, fb)
    return b
