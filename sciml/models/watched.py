"""How stiff an equation is, as the solves of a model tell in passing."""

from torch import Tensor, nn

from sciml.solvers.auto import Auto
from sciml.solvers.control import PID
from sciml.solvers.explicit import Tsit5
from sciml.solvers.fold import Fold
from sciml.solvers.heuristics import Stiffness
from sciml.solvers.solve import Solution, Solver


class Watched(nn.Module):
    """A model whose solves tell how stiff its equation is, while they are watched.

    Attributes:
        watched: whether they are; training modules do so in validation and test.
        stiffness: of the last solve the sum of `Stiffness` over the steps, a mean over the lanes: about how many steps
            stability would ask for. None where it was not watched or would take evaluations.
    """

    watched: bool = False
    stiffness: Tensor | None = None

    def readings(self, solver: Solver) -> dict[str, Fold]:
        """What the next solve has to read for it."""
        return {"stiffness": Stiffness()} if self.watched and tells_stiffness(solver) else {}

    def note(self, solution: Solution) -> None:
        """Keep what a solve has read."""
        found = solution.folds.get("stiffness")
        self.stiffness = None if found is None else found.mean()


def tells_stiffness(solver: Solver) -> bool:
    """Whether its steps tell `Stiffness` without another evaluation, and go on to do so (`Auto` may change over)."""
    stepper, controller = solver.stepper or Tsit5(), solver.controller or PID()
    whole = controller.adaptive or solver.lanes == "each" or not stepper.spared
    return whole and not isinstance(stepper, Auto) and Stiffness().refusal(stepper, controller) is None
