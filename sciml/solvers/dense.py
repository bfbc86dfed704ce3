"""Dense output: the state at fractions s (l, k) of a step, as (l, k, ...) with l left out for joint lanes.

Every dense output is a polynomial in s; `curve` functions give its coefficients c_1, c_2, .. in y0 + c_1 s + c_2 s^2 ..
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.stepper import combine
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


def inside(segment: "Segment", s: Tensor) -> Tensor:
    """The states at fractions s (l, k) of a step: by the stepper's own formula, where traced by its polynomial."""
    if not torch.compiler.is_compiling():
        return segment.march.stepper.interpolate(segment, s)
    return traced(segment, s)


def traced(segment: "Segment", s: Tensor) -> Tensor:
    """The same by the polynomial."""
    stepper, lane = segment.march.stepper, int(segment.march.lanes == "each")
    y0, *coefficients = (x.unsqueeze(lane) for x in (segment.y0, *stepper.curve(segment)))
    return along(y0, coefficients, s.reshape(s.shape + (1,) * (segment.y0.ndim - lane)))


def along(y0: Tensor, coefficients: Sequence[Tensor], s: Tensor) -> Tensor:
    """The state y0 + c_1 s + c_2 s^2 + .. where s broadcasts against y0 and the coefficients."""
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = torch.addcmul(c, s, total)
    return torch.addcmul(y0, s, total)


def hermite_curve(segment: "Segment", k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """That of the cubic through both ends with the slopes k0 and k1."""
    h = segment.interval.scale
    rise, f0, f1 = segment.y1 - segment.y0, h * k0, h * k1
    return f0, 3 * rise - (2 * f0 + f1), f0 + f1 - 2 * rise


def rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """A matrix as numbers, which a compiler takes for constants."""
    return tuple(map(tuple, matrix.tolist()))


def polynomial_curve(ks: Sequence[Tensor], rungs: Sequence[Sequence[float]], h: Number = 1.0) -> tuple[Tensor, ...]:
    """That of y0 + h sum_i w_i(s) k_i with polynomials w_i.

    Args:
        ks: what is weighted.
        rungs: coefficients (p, stages) of s, s^2, .. in the weights.
        h: size of the step.
    """
    dtype, wide = ks[0].dtype, torch.promote_types(ks[0].dtype, torch.float64)  # small differences of large terms
    ks = [k.to(wide) for k in ks]
    return tuple(h * combine(row, ks, 1.0).to(dtype) for row in rungs)


def hermite(segment: "Segment", s: Tensor, k0: Tensor, k1: Tensor, h: Number = 1.0) -> Tensor:
    """The cubic through both ends with the slopes h k0 and h k1."""
    y0, lane = segment.y0, int(segment.march.lanes == "each")
    scale = h if isinstance(h, float) or not lane else h.unsqueeze(lane)
    at = s.reshape(s.shape + (1,) * (y0.ndim - lane))
    rise, f0, f1 = (x.unsqueeze(lane) for x in (segment.y1 - y0, k0, k1))
    curve = (1 - 2 * at) * rise + scale * ((at - 1) * f0 + at * f1)
    return y0.unsqueeze(lane) + at * (rise + (at - 1) * curve)


def straight(segment: "Segment", s: Tensor) -> Tensor:
    """The straight line between both ends."""
    lane = int(segment.march.lanes == "each")
    at = s.reshape(s.shape + (1,) * (segment.y0.ndim - lane))
    y0, y1 = (y.unsqueeze(lane) for y in (segment.y0, segment.y1))
    return (1 - at) * y0 + at * y1


def polynomial(segment: "Segment", s: Tensor, ks: Sequence[Tensor], rungs: Tensor, h: Number = 1.0) -> Tensor:
    """y0 + h sum_i w_i(s) k_i with polynomials w_i.

    Args:
        segment: the step.
        s: fractions (l, k).
        ks: what is weighted.
        rungs: coefficients (p, stages) of s, s^2, .. in the weights, float64.
        h: size of the step.
    """
    y0, lane = segment.y0, int(segment.march.lanes == "each")
    scale = h if isinstance(h, float) or not lane else h.unsqueeze(lane)
    powers = [s.to(torch.float64)]
    while len(powers) < rungs.shape[0]:
        powers.append(powers[-1] * powers[0])
    weights = (torch.stack(powers, -1) @ rungs).to(y0.dtype)  # (l, k, stages), small differences of large terms
    stages = torch.stack(tuple(ks), lane)  # (l, stages, ...)
    rise = weights @ stages.reshape(*stages.shape[: lane + 1], prod(y0.shape[lane:]))  # (l, k, -1)
    return y0.unsqueeze(lane) + scale * rise.reshape(*s.shape, *y0.shape[lane:])
