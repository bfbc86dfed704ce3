"""Taylor's method: a step along the Taylor polynomial of the solution."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sciml.calculus.taylor import solution_coefficients
from sciml.solvers.stepper import Field, Interval, Step, Stepper
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


@dataclass(frozen=True)
class Taylor(Stepper):
    """Taylor's method of any order from 2 on, with its own polynomial as dense output: adaptive or on a grid.

    The derivatives come from jets, so that the field has to be smooth and written in functions that those go through.
    The last term of the polynomial is the error estimate, that of the method one order lower. A step has as many
    evaluations as the order says, of jets of growing order: on a small network it takes five to ten times as long as
    `Tsit5` or `Dopri8` at the same error. It is there for any order, not for speed.

    Args:
        order: of convergence.

    Reference:
        E. Hairer, S. P. Norsett, G. Wanner, Solving ordinary differential equations I, Springer 1993, section I.8.
    """

    order: int = 5  # pyrefly: ignore[bad-override]
    adaptive: ClassVar[bool] = True
    dense: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no order."""
        if not isinstance(self.order, int) or self.order < 2:
            raise ValueError(f"order: expected a whole number, 2 or more, got {self.order!r}")

    @property
    def evaluations(self) -> int:  # pyrefly: ignore[bad-override]
        """Evaluations of the field per step."""
        return self.order

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The field at (t, y)."""
        return (field.checked(t, y),)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; without ``full`` the field at its end is left out."""
        t, h = interval.t, interval.scale
        coefficients = solution_coefficients(field, field.clock(t, y), y, self.order, *carry)
        terms = [c * h**k for k, c in enumerate(coefficients, 1)]
        y1 = y + _sum(terms)
        if not full:
            return Step(y1, None, tuple(terms), ())
        return Step(y1, terms[-1], tuple(terms), (field(field.clock(t + interval.h, y), y1),))

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The polynomial at fractions s (l, k)."""
        lane = int(segment.march.lanes == "each")
        at = s.reshape(s.shape + (1,) * (segment.y0.ndim - lane))
        return segment.y0.unsqueeze(lane) + _sum([c.unsqueeze(lane) * at**k for k, c in enumerate(segment.stages, 1)])

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """Its coefficients."""
        return segment.stages


def _sum(terms: list[Tensor]) -> Tensor:
    """The sum, small terms first."""
    total = terms[-1]
    for term in reversed(terms[:-1]):
        total = torch.add(total, term)
    return total
