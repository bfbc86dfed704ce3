"""Stochastic Runge-Kutta methods of strong order 3/2, which estimate their errors by methods of order 1 within them.

They read the space-time Levy area H of the path: int_0^h W ds = h (w / 2 + H).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciml.solvers.path import Levy
from sciml.solvers.stepper import Field, Interval, Step
from sciml.solvers.stochastic import Stochastic, with_root
from sciml.typing import Calculus, NoiseType


class Embedded(Stochastic):
    """A method of strong order 3/2, whose error estimate is the difference to a method of order 1."""

    adaptive: ClassVar[bool] = True
    levy: ClassVar[bool] = True
    order: ClassVar[int] = 2
    strong: ClassVar[float] = 1.5

    @property
    def error_order(self) -> float:
        """That of a step of the method of strong order 1."""
        return 1.5


@dataclass(frozen=True)
class SRIW1(Embedded):
    """Roessler's method for Ito equations of diagonal or scalar noise: strong order 3/2, weak order 2.

    Two evaluations of the drift and four of the diffusion; those of the drift are counted. Additive noise goes with it
    where it is one of these too, and is declared as such.

    References:
        A. Roessler, Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations,
        SIAM J. Numer. Anal. 48 (2010), table 6.3, doi:10.1137/09076636X. C. Rackauckas, Q. Nie, Adaptive methods for
        stochastic differential equations via natural embeddings and rejection sampling with memory, DCDS-B 22 (2017),
        doi:10.3934/dcdsb.2017133.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "scalar")

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        w, mean = dx.w, 0.5 * dx.w + dx.h  # I_1 and I_10 / h
        h, (start, quarter, most, end) = interval.scale, _times(field, interval, y)
        step, root = with_root(h, w)
        safe = step if isinstance(step, float) else torch.where(step > 0, step, 1.0)
        double = (w * w - step) / (2 * root)  # I_11 / sqrt h
        triple = w * (w * w - 3 * step) / (6 * safe)  # I_111 / h
        ones = torch.ones_like(w)
        f0 = field.fitting(field(start, y), y)
        g0 = field.diffused(start, y, ones)
        f1 = field(most, y + (0.75 * h) * f0 + 1.5 * g0 * mean)
        slope = (0.25 * h) * f0
        g1 = field.diffused(quarter, y + slope + (0.5 * root) * g0, ones)
        g2 = field.diffused(end, y + h * f0 - root * g0, ones)
        g3 = field.diffused(quarter, y + slope + root * (3 * g1 - 5 * g0 + 0.5 * g2), ones)
        drift = (2 / 3 * h) * (f1 - f0)
        inner = (4 * g1 + 2 * g2) / 3
        noise = mean * (2 * g0 - inner) + triple * ((5 * g1 - 2 * g2) / 3 - 2 * g0 + g3)
        first = h * f0 + w * (inner - g0) + double * ((4 * g1 - g2) / 3 - g0)
        error = drift + noise
        return Step(y + (first + error), error, (), ())


@dataclass(frozen=True)
class SRA1(Embedded):
    """Roessler's method for additive noise: strong order 3/2, weak order 2; the diffusion may depend on time.

    Reference:
        A. Roessler, SIAM J. Numer. Anal. 48 (2010), table 6.2, doi:10.1137/09076636X.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("additive",)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        mean, h, (start, _, most, end) = 0.5 * dx.w + dx.h, interval.scale, _times(field, interval, y)
        f0 = field.fitting(field(start, y), y)
        rise = field.diffused(end, y, mean)
        f1 = field(most, y + (0.75 * h) * f0 + 1.5 * rise)
        last = field.diffused(end, y, dx.w)
        error = (2 / 3 * h) * (f1 - f0) + (field.diffused(start, y, mean) - rise)
        return Step(y + (h * f0 + last + error), error, (), ())


@dataclass(frozen=True)
class ShARK(Embedded):
    """The shifted additive-noise Runge-Kutta method: strong order 3/2 with the smallest leading error of its kind.

    Where the diffusion depends on time, what it changes over a step is taken to be linear.

    Reference:
        J. Foster, G. dos Reis, C. Strange, High order splitting methods for SDEs satisfying a commutativity condition,
        SIAM J. Numer. Anal. 62 (2024), eq. 6.1, doi:10.1137/23M155147X.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("additive",)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        h, t = interval.scale, interval.t
        start, late, end = (field.clock(at, y) for at in (t, t + 5 / 6 * interval.h, t + interval.h))
        shifted = y + field.diffused(start, y, dx.h)
        rise = field.diffused(start, y, dx.w)
        f0 = field.fitting(field(start, shifted), y)
        f1 = field(late, shifted + (5 / 6) * (h * f0 + rise))
        rest = 0.5 * dx.w - dx.h  # of g(t) the part that its change over the step is weighted with
        change = field.diffused(end, y, rest) - field.diffused(start, y, rest)
        error = (0.6 * h) * (f1 - f0)
        return Step(y + (h * f0 + rise + change + error), error, (), ())


def _times(field: Field, interval: Interval, y: Tensor) -> list[Tensor]:
    """The start of a step, a quarter, three quarters, and its end."""
    t, h = interval.t, interval.h
    return [field.clock(at, y) for at in (t, t + 0.25 * h, t + 0.75 * h, t + h)]
