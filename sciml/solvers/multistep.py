"""Adams methods: the slopes of the last steps make the next one, on uniform grids.

All coefficients come from the polynomial through p slopes at nodes that are one step apart.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.dense import hermite, hermite_curve
from sciml.solvers.in_place import kept, refuse_reuse
from sciml.solvers.stepper import Field, Interval, Step, Stepper, combine
from sciml.solvers.term import expand, real_dtype
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment

Rows = tuple[tuple[float, ...], ...]


def _weights(nodes: range, functionals: np.ndarray) -> Rows:
    """Weights of the slopes at the nodes (p) that give, of the polynomial through them, each of the functionals.

    Args:
        nodes: where the slopes are, in steps.
        functionals: their values at s^0 .. s^(p - 1), (m, p).
    """
    powers = np.vander(np.array(nodes, dtype=float), increasing=True)  # (p, p)
    return tuple(map(tuple, np.linalg.solve(powers.T, functionals.T).T.tolist()))


def _integrals(ends: range, p: int) -> np.ndarray:
    """The integrals from 0 to each end of s^0 .. s^(p - 1)."""
    power = np.arange(1, p + 1)
    return np.array(ends, dtype=float)[:, None] ** power / power


class Adams(Stepper):
    """What Adams methods share: the carry is the slopes at the last p nodes, the newest first.

    The slopes before the start are those of a polynomial through the slopes at the next p nodes from the start on,
    which are found by p sweeps of Picard's iteration, each of which wins an order. So the start costs p (p - 1)
    evaluations and is of the order of the rest, and a solve of fewer than p - 1 steps looks past its end.
    """

    dense: ClassVar[bool] = True
    uniform: ClassVar[bool] = True
    history: ClassVar[bool] = True
    lean: ClassVar[bool] = False

    corrects: ClassVar[bool] = False
    sweeps: ClassVar[Rows]
    before: ClassVar[Rows]
    predictor: ClassVar[tuple[float, ...]]
    corrector: ClassVar[tuple[float, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Coefficients, by the order."""
        super().__init_subclass__(**kwargs)
        p = cls.order
        past, ahead = range(0, -p, -1), range(p)
        cls.evaluations, cls.starts = 1 + cls.corrects, 1 + p * (p - 1)
        cls.sweeps = _weights(ahead, _integrals(ahead[1:], p))
        cls.before = _weights(ahead, np.vander(np.array(past, dtype=float), increasing=True))
        (cls.predictor,) = _weights(past, _integrals(range(1, 2), p))
        (cls.corrector,) = _weights(range(1, 1 - p, -1), _integrals(range(1, 2), p))

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes ahead, in steps (p - 1)."""
        return (torch.arange(1, self.order, dtype=torch.float64, device=t0.device),)

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The slopes at t, t - h, .. as those ahead continue."""
        k0 = field.checked(t, y)
        first, h = kept(k0), torch.as_tensor(h, dtype=torch.float64)
        scale = expand(h.to(device=y.device, dtype=real_dtype(y)), y)
        times = field.clocks(Interval(t, h, scale), field.constants[0], y)
        ks = [k0] * self.order
        for _ in range(self.order):
            ks = [k0, *(field(s, y + combine(row, ks, scale)) for s, row in zip(times, self.sweeps, strict=True))]
        refuse_reuse(first)  # which combinations of slopes would hide from the march
        return tuple(combine(row, ks, 1.0) for row in self.before)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; the field at its end belongs to the history, so that it is never left out."""
        (t1,) = field.clocks(interval, field.constants[0][:1], y)
        y1 = y + combine(self.predictor, carry, interval.scale)
        if self.corrects:
            y1 = y + combine(self.corrector, (field(t1, y1), *carry[:-1]), interval.scale)
        k1 = field(t1, y1)
        return Step(y1, None, (carry[0], k1), (k1, *carry[:-1]))

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The cubic Hermite interpolant at fractions s (l, k)."""
        k0, k1 = segment.stages
        return hermite(segment, s, k0, k1, segment.interval.scale)

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the cubic Hermite interpolant."""
        k0, k1 = segment.stages
        return hermite_curve(segment, k0, k1)


@dataclass(frozen=True)
class AdamsBashforth4(Adams):
    """The explicit Adams-Bashforth method of order 4: one evaluation per step.

    Reference:
        E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I (1993), III.1.
    """

    order: ClassVar[int] = 4


@dataclass(frozen=True)
class AdamsBashforthMoulton4(Adams):
    """Adams-Bashforth predicts, Adams-Moulton corrects once, both of order 4: two evaluations per step (PECE).

    It bears larger steps than `AdamsBashforth4`, of hL up to some 1.3 in place of .3 along the negative axis.
    """

    order: ClassVar[int] = 4
    corrects: ClassVar[bool] = True


@dataclass(frozen=True)
class AdamsBashforthMoulton6(Adams):
    """The same of order 6; it bears smaller steps."""

    order: ClassVar[int] = 6
    corrects: ClassVar[bool] = True
