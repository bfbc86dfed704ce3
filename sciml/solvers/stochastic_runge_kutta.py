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
from sciml.typing import Calculus, NoiseType, Number


class Embedded(Stochastic):
    """A method of strong order 3/2, whose error estimate is the difference to a method of order 1."""

    adaptive: ClassVar[bool] = True
    levy: ClassVar[bool] = True
    order: ClassVar[int] = 2
    strong: ClassVar[float] = 1.5
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.25, 0.75, 1.0)  # where a step evaluates drift or diffusion

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes (s)."""
        return (torch.tensor(self.nodes, dtype=torch.float64, device=t0.device),)

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
        w, h = dx.w, interval.scale
        start, quarter, most, end = field.clocks(interval, field.constants[0], y)
        mean, double, triple = _integrals(dx, h)
        _, root = with_root(h, w)
        ones = torch.ones_like(w)
        f0 = field.fitting(field(start, y), y)
        g0 = field.diffused(start, y, ones)
        drift, noise = h * f0, root * g0
        f1 = field(most, torch.add(y, drift, alpha=0.75).addcmul(g0, mean, value=1.5))
        early = torch.add(y, drift, alpha=0.25)
        d1 = field.diffused(quarter, torch.add(early, noise, alpha=0.5), ones) - g0
        d2 = field.diffused(end, y + drift - noise, ones) - g0
        rise = 3 * root * torch.add(d1, d2, alpha=1 / 6)
        d3 = field.diffused(quarter, torch.add(early, noise, alpha=-1.5) + rise, ones) - g0
        error = (2 / 3 * h) * (f1 - f0)
        error = error.addcmul(d1, torch.add(triple, mean, alpha=-0.8), value=5 / 3)
        error = error.addcmul(d2, triple + mean, value=-2 / 3).addcmul(d3, triple)
        first = drift.addcmul(g0, w).addcmul(d1, w + double, value=4 / 3)
        first = first.addcmul(d2, torch.add(w, double, alpha=-0.5), value=2 / 3)
        return Step(y + (first + error), error, (), ())


def _integrals(dx: Levy, h: Number) -> tuple[Tensor, Tensor, Tensor]:
    """I_10 / h, I_11 / sqrt h and I_111 / h over a step, 0 over one of no length."""
    w, square = dx.w, dx.w * dx.w
    h, root = with_root(h, w)
    mean = torch.add(dx.h, w, alpha=0.5)
    if isinstance(h, float):
        return mean, (square - h) * (0.5 / root), torch.add(square, -3 * h) * w * (1 / (6 * h) if h else 0.0)
    safe = torch.where(h > 0, h, 1.0)
    return mean, (square - h) / (2 * root), torch.add(square, h, alpha=-3) * (w / (6 * safe))


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
        mean, h = 0.5 * dx.w + dx.h, interval.scale
        start, _, most, end = field.clocks(interval, field.constants[0], y)
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
    nodes: ClassVar[tuple[float, ...]] = (0.0, 5 / 6, 1.0)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        h = interval.scale
        start, late, end = field.clocks(interval, field.constants[0], y)
        shifted = y + field.diffused(start, y, dx.h)
        rise = field.diffused(start, y, dx.w)
        f0 = field.fitting(field(start, shifted), y)
        f1 = field(late, shifted + (5 / 6) * (h * f0 + rise))
        rest = 0.5 * dx.w - dx.h  # of g(t) the part that its change over the step is weighted with
        change = field.diffused(end, y, rest) - field.diffused(start, y, rest)
        error = (0.6 * h) * (f1 - f0)
        return Step(y + (h * f0 + rise + change + error), error, (), ())
