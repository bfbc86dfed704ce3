"""Explicit Runge-Kutta methods: a tableau and an order each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sciml.solvers import tableau as tab
from sciml.solvers.dense import hermite, hermite_curve, polynomial, polynomial_curve, rows
from sciml.solvers.stepper import Field, Interval, Step, Stepper, combine, displace, small
from sciml.solvers.term import real_dtype
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


FEW = 5  # stages up to which sums by columns do not pay


class RungeKutta(Stepper):
    """An explicit Runge-Kutta method given by its tableau.

    The field at the end of a step is the carry: it serves the error estimate, dense output and the next step's first
    stage, so that every method costs as many evaluations per step as its tableau has rows.

    Attributes:
        apart: weights of the slopes in the difference of the last two stages' states, where both are at the step's end.
    """

    tableau: ClassVar[tab.Tableau]
    apart: ClassVar[tab.Row | None]
    nodes: ClassVar[np.ndarray]
    columns: ClassVar[np.ndarray]
    rungs: ClassVar[tuple[tuple[float, ...], ...] | None]  # the dense output's coefficients (p, stages)
    dense: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read from the tableau what the solver wants to know."""
        super().__init_subclass__(**kwargs)
        cls.evaluations = len(cls.tableau.a)
        cls.adaptive = cls.tableau.error is not None
        cls.nodes = np.array(cls.tableau.c)
        cls.columns = tab.columns(cls.tableau)
        cls.stability, cls.apart = tab.stability_interval(cls.tableau), tab.apart(cls.tableau)
        cls.rungs = None if cls.tableau.dense is None else rows(np.array(cls.tableau.dense).T)

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes (s), the tableau by columns where a step is to use it, the dense output's coefficients."""
        if self.evaluations > FEW and small(y):
            columns = torch.as_tensor(self.columns, dtype=real_dtype(y), device=y.device)
            columns = columns.reshape(columns.shape + (1,) * y.ndim)
        else:
            columns = y.new_empty(0)
        dense = () if self.rungs is None else (torch.tensor(self.rungs, dtype=torch.float64, device=y.device),)
        return torch.as_tensor(self.nodes, device=t0.device), columns, *dense

    def probe(self, segment: "Segment") -> tuple[Tensor, Tensor] | None:
        """The last two stages."""
        if self.apart is None:
            return None
        ks = segment.stages
        return combine(self.apart, ks, segment.interval.scale), ks[-1] - ks[-2]

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The field at (t, y)."""
        return (field.checked(t, y),)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; without ``full`` the field at its end is left out."""
        nodes, columns, *_ = field.constants
        times = field.clocks(interval, nodes, y)
        if columns.numel() and not torch.compiler.is_compiling():
            return self._by_columns(field, times, interval.scale, y, carry[0], columns, full)
        a, _, weights, _ = self.tableau
        ks, h = [carry[0]], interval.scale
        for row, t in zip(a[:-1], times, strict=False):
            ks.append(field(t, displace(y, row, ks, h)))
        y1 = y + combine(a[-1], ks, h)
        if not full:
            return Step(y1, None, tuple(ks), ())
        ks.append(field(times[-1], y1))
        error = None if weights is None else combine(weights, ks, h)
        return Step(y1, error, tuple(ks), (ks[-1],))

    def _by_columns(
        self, field: Field, times: Sequence[Tensor], h: Number, y: Tensor, k: Tensor, columns: Tensor, full: bool
    ) -> Step:
        """The same step in a third of the kernels: every slope is added at once to all that it goes into."""
        *parts, starts = columns.unbind()
        ks, sums = [k], starts * y
        for i, t in enumerate(times[:-1]):
            sums = _grown(sums, parts[i], ks[i], h)
            ks.append(field(t, sums[i]))
        sums = _grown(sums, parts[-2], ks[-1], h)
        y1 = y + sums[-2]
        if not full:
            return Step(y1, None, tuple(ks), ())
        ks.append(field(times[-1], y1))
        error = _grown(sums[-1], parts[-1][-1], ks[-1], h) if self.adaptive else None
        return Step(y1, error, tuple(ks), (ks[-1],))

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The state at fractions s (l, k): the tableau's dense output, or the cubic Hermite interpolant."""
        ks, h = segment.stages, segment.interval.scale
        if self.tableau.dense is None:
            return hermite(segment, s, ks[0], ks[-1], h)
        return polynomial(segment, s, ks, segment.const.stepper[-1], h)

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the same polynomial."""
        ks, h = segment.stages, segment.interval.scale
        if self.rungs is None:
            return hermite_curve(segment, ks[0], ks[-1])
        return polynomial_curve(ks, self.rungs, h)


def _grown(sums: Tensor, column: Tensor, k: Tensor, h: Number) -> Tensor:
    """The sums with h k added to each, weighted by the column."""
    if isinstance(h, float):
        return torch.addcmul(sums, column, k, value=h)
    return torch.addcmul(sums, column, h * k)


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method, order 1."""

    order: ClassVar[int] = 1
    tableau: ClassVar[tab.Tableau] = tab.EULER


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (explicit trapezoid), order 2, with Euler's as the embedded one: adaptive or on a grid."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Tableau] = tab.HEUN


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint method, order 2, with Euler's as the embedded one."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Tableau] = tab.MIDPOINT


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's method of order 2 with the least bound on its error (1962), with Euler's as the embedded one."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Tableau] = tab.RALSTON


@dataclass(frozen=True)
class Fehlberg2(RungeKutta):
    """Fehlberg's pair of orders 1 and 2 (1969), which goes on with that of order 2.

    Its estimate, h (k_1 - k_3) / 512, is small: with an rtol of 1e-2 steps pass on which it is not even stable, and it
    does not see what a field does between the ends of a step. `PID`'s ``dtmax`` is the remedy.
    """

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Tableau] = tab.FEHLBERG2


@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's method of order 3 (1900), without an error estimate."""

    order: ClassVar[int] = 3
    tableau: ClassVar[tab.Tableau] = tab.HEUN3


@dataclass(frozen=True)
class Bosh3(RungeKutta):
    """Bogacki and Shampine's 3(2) pair (1989)."""

    order: ClassVar[int] = 3
    tableau: ClassVar[tab.Tableau] = tab.BOSH3


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of Runge and Kutta, order 4, without an error estimate."""

    order: ClassVar[int] = 4
    tableau: ClassVar[tab.Tableau] = tab.RK4


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """Dormand and Prince's 5(4) pair (1980)."""

    order: ClassVar[int] = 5
    tableau: ClassVar[tab.Tableau] = tab.DOPRI5


@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """Tsitouras' 5(4) pair (2011); the default."""

    order: ClassVar[int] = 5
    tableau: ClassVar[tab.Tableau] = tab.TSIT5


@dataclass(frozen=True)
class Dopri8(RungeKutta):
    """Prince and Dormand's 8(7) pair (1981); its dense output is of order 5."""

    order: ClassVar[int] = 8
    tableau: ClassVar[tab.Tableau] = tab.DOPRI8
