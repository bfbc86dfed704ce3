"""Runge-Kutta methods in two registers (2N storage): the state and one sum of slopes, whatever the number of stages.

dy <- A_i dy + h f(t + c_i h, y),  y <- y + B_i dy  (Williamson, 1980, doi:10.1016/0021-9991(80)90033-9).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sciml.solvers.dense import hermite, hermite_curve
from sciml.solvers.stepper import Field, Interval, Step, Stepper
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


class LowStorage(Stepper):
    """A method given by what each stage keeps of the sum of slopes and adds to the state.

    Beside the two registers the slopes at both ends of the step are kept, for dense output and for the next step.
    """

    dense: ClassVar[bool] = True

    keeps: ClassVar[tuple[float, ...]]  # A_i, the first one 0
    adds: ClassVar[tuple[float, ...]]  # B_i
    nodes: ClassVar[tuple[float, ...]]  # c_i, the first one 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read from the coefficients what the solver wants to know."""
        super().__init_subclass__(**kwargs)
        cls.evaluations = len(cls.adds)

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes of the stages after the first one, and of the end of the step (s)."""
        return (torch.tensor([*self.nodes[1:], 1.0], dtype=torch.float64, device=t0.device),)

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The field at (t, y)."""
        return (field.checked(t, y),)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; without ``full`` the field at its end is left out."""
        times, h = field.clocks(interval, field.constants[0], y), interval.scale
        dy = carry[0] * h
        y = y + self.adds[0] * dy
        for keep, add, t in zip(self.keeps[1:], self.adds[1:], times, strict=False):
            dy = keep * dy + h * field(t, y)
            y = y + add * dy
        if not full:
            return Step(y, None, carry, ())
        end = field(times[-1], y)
        return Step(y, None, (carry[0], end), (end,))

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The cubic Hermite interpolant at fractions s (l, k)."""
        start, end = segment.stages
        return hermite(segment, s, start, end, segment.interval.scale)

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the cubic Hermite interpolant."""
        k0, k1 = segment.stages
        return hermite_curve(segment, k0, k1)


@dataclass(frozen=True)
class CarpenterKennedy4(LowStorage):
    """Carpenter and Kennedy's five stages of order 4 (1994, NASA TM 109112, solution 3), without an error estimate."""

    order: ClassVar[int] = 4
    keeps: ClassVar[tuple[float, ...]] = (
        0.0,
        -567301805773 / 1357537059087,
        -2404267990393 / 2016746695238,
        -3550918686646 / 2091501179385,
        -1275806237668 / 842570457699,
    )
    adds: ClassVar[tuple[float, ...]] = (
        1432997174477 / 9575080441755,
        5161836677717 / 13612068292357,
        1720146321549 / 2090206949498,
        3134564353537 / 4481467310338,
        2277821191437 / 14882151754819,
    )
    nodes: ClassVar[tuple[float, ...]] = (
        0.0,
        1432997174477 / 9575080441755,
        2526269341429 / 6820363962896,
        2006345519317 / 3224310063776,
        2802321613138 / 2924317926251,
    )
