"""An exponential method for semilinear equations with additive noise."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from sciml.solvers.exponential import ETDRK4
from sciml.solvers.path import Levy
from sciml.solvers.stepper import Field, Interval, Step
from sciml.solvers.stochastic import Stochastic
from sciml.typing import Calculus, NoiseType

SERIES = (-1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)  # of tanh(z) / z in z^2, the highest power first
NEAR = 0.05  # |z| below which it is right to round-off, and its derivative too, where the quotient's would cancel


@dataclass(frozen=True)
class StochasticETDRK4(ETDRK4, Stochastic):
    r"""`ETDRK4` between two kicks of noise, for dy = (L y + N(t, y)) dt + g(t) dW with a constant diagonal L.

    A kick at the start of a step and one at its end, independent of one another, have each of the variance of g dW a
    share of :math:`\tanh(z) / (2 z)`, z = h L. What a step carries from one end to the other adds up to the variance of
    :math:`\int_0^h e^{L s} g dW_s`. So without N the law of every entry is exact at any step size, however stiff, if L
    is real; so is their joint one, if a motion drives only entries of one L, as in Fourier space. Otherwise covariances
    between entries of unlike L have errors of order 2. With N the splitting is symmetric (Strang's): weak order 2,
    strong order 1. A step takes the four evaluations of `ETDRK4` and two of the noise.

    The term is `Semilinear` and `Diffusive`; W is real, so that a complex state needs the shape of W,
    ``path=Brownian(shape, seed)``, and a `diffuse` that takes it.

    References:
        S. M. Cox, P. C. Matthews, J. Comput. Phys. 176 (2002), for `ETDRK4`. G. Strang, On the construction and
        comparison of difference schemes, SIAM J. Numer. Anal. 5 (1968), doi:10.1137/0705041. The two kicks are made of
        the increment and the space-time Levy area of the step, w / 2 + sqrt(3) h and w / 2 - sqrt(3) h.
    """

    order: ClassVar[int] = 2
    strong: ClassVar[float] = 1.0
    levy: ClassVar[bool] = True
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("additive",)

    def coefficients(self, z: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Those of `ETDRK4`, and the root of tanh(z) / z of the real part."""
        real = z.real if z.is_complex() else z
        near = real.abs() < NEAR
        far, square = torch.where(near, 1.0, real), torch.where(near, real, 0.0) ** 2
        series = torch.zeros_like(square)
        for term in SERIES:
            series = series * square + term
        share = torch.where(near, series, far.tanh() / far).sqrt()
        return *super().coefficients(z, h), share.to(z.dtype)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step of four evaluations over the increment and the area of the path."""
        *carried, share = carry
        start, end = (field.clock(interval.t + c * interval.h, y) for c in (0.0, 1.0))
        mean, turn = 0.5 * dx.w, sqrt(3) * dx.h
        kicked = y + share * field.diffused(start, y, mean + turn)
        moved = super().step(field, interval, kicked, tuple(carried), dx, full).y
        return Step(moved + share * field.diffused(end, moved, mean - turn), None, (), carry)
