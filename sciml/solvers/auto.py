"""The automatic choice between an explicit and a stiff method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sciml.errors import SolveError, Status
from sciml.solvers.explicit import Tsit5
from sciml.solvers.state import State
from sciml.solvers.stepper import Field, Interval, Step, Stepper, combine
from sciml.solvers.transforms import holds
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.solve import Solution

NEAR = 0.9  # of the stability interval: a step that may not grow moves around it
PATIENCE, RELIEF = 15, 6  # steps; Hairer's for DOPRI5


class Stiff(Exception):
    """What a step raises instead of being taken: `solve` starts again with the stepper that it holds."""

    def __init__(self, stepper: Stepper):
        super().__init__(f"the field is stiff: {type(stepper).__name__} takes over")
        self.stepper = stepper


@dataclass(frozen=True)
class Auto(Tsit5):
    """Tsit5 for as long as its steps are limited by accuracy; `solve` starts again with a stiff method otherwise.

    The last two stages are slopes at one time, so that |k7 - k6| / |g7 - g6| estimates the largest eigenvalue of the
    Jacobian. Where h times that is near the end of the stability interval in 15 accepted steps, not interrupted by 6
    others in a row, or where the solve fails, the field counts as stiff, for lanes "each" in any of them. Everything
    that `solve` returns, its statistics and gradients too, is that of the method that went through; the steps before
    are lost. A march reads a number on the host in every step, and cannot be compiled. Complex states are never called
    stiff.

    Args:
        stiff: what takes over; None takes `Rodas5P`.

    Reference:
        E. Hairer, G. Wanner, Solving Ordinary Differential Equations II (1996), IV.2.
    """

    order: ClassVar[int] = 5

    stiff: Stepper | None = None

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The field at (t, y); how many steps were stiff, and how many in a row were not since (l, 2)."""
        lanes = () if field.lanes == "joint" else y.shape[:1]
        return *super().init(field, t, y, h), torch.zeros(*lanes, 2, dtype=torch.int64, device=y.device)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step of Tsit5.

        Raises:
            Stiff: too many steps before were limited by stability.
        """
        k, tally = carry
        if not holds(tally[..., 0] < PATIENCE):
            raise Stiff(self.other)
        step = super().step(field, interval, y, (k,), dx, full)
        if not full or y.is_complex():
            return step._replace(carry=(*step.carry, tally))
        with torch.no_grad():
            limited = _reach(step.stages, 0 if field.lanes == "joint" else 1) > NEAR * Tsit5.stability
            count, calm = tally.unbind(-1)
            calm = torch.where(limited, 0, calm + 1)
            count = torch.where(limited, count + 1, torch.where(calm < RELIEF, count, 0))
        return step._replace(carry=(*step.carry, torch.stack([count, calm], -1)))

    def rescued(self, s: State, again: "Callable[[Stepper], Solution]") -> "Solution | None":
        """The solution of the stiff method, where a march failed as that may not, and some lanes more come through.

        One step that was too long can throw a stiff solution so far that no other follows; and of trials that were used
        up some were stiff.
        """
        thrown = (s.status == Status.DT_UNDERFLOW.value) | (s.status == Status.NON_FINITE.value)
        slow = (s.status == Status.MAX_STEPS.value) & (s.carry[-1][..., 0] > 0)
        if s.y.is_complex() or holds(~((thrown & (s.accepted > 0)) | slow)):
            return None
        try:
            found = again(self.other)
        except (SolveError, RuntimeError, TypeError, ValueError):  # of a field that cannot be differentiated, say
            return None
        failed = lambda status: int((status >= Status.MAX_STEPS.value).sum())  # noqa: E731
        return found if failed(found.status) < failed(s.status) else None

    @property
    def other(self) -> Stepper:
        """What takes over."""
        from sciml.solvers.rosenbrock import Rodas5P

        return self.stiff or Rodas5P()


def _reach(ks: tuple[Tensor, ...], lane: int) -> Tensor:
    """H times the estimate of the eigenvalue (l); NaN, which is near nothing, where the last stages agree."""
    size = lambda x: torch.linalg.vector_norm(x.flatten(lane) if x.ndim > lane else x[..., None], dim=-1)  # noqa: E731
    return size(ks[-1] - ks[-2]) / size(combine(Tsit5.apart or (), ks, 1.0))
