"""What makes neural ODEs easy to solve: penalties on their solves in training, and random ends of these.

Random numbers are drawn from torch's global generator, as the masks of dropout are: training modules seed it for every
step from (seed, epoch, batch, rank).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciml.solvers.fold import Fold, Quadrature
from sciml.solvers.solve import Solution, Solver
from sciml.solvers.term import as_term
from sciml.typing import Args, Time

NODES = 2  # in a step, of integrals


class Reading(NamedTuple):
    """What a regulariser wants of one solve."""

    folds: dict[str, Fold]
    penalty: Callable[[Solution], Tensor]  # 0-d, before it is weighted


class Regularizer(ABC):
    """What happens to the solves of a `NeuralODE` in train mode; a subclass says it in `reading` and `end`.

    Args:
        weight: of the penalty, which is a part of the loss.
        final_weight: that at the end of training, towards which it goes exponentially; None keeps it.

    Raises:
        ValueError: if a weight is no number >= 0, or not positive where it changes.
    """

    def __init__(self, weight: float, final_weight: float | None = None):
        for name, value in (("weight", weight), ("final_weight", final_weight)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a number, 0 or more, got {value!r}")
        if final_weight is not None and not (weight > 0 and final_weight > 0):
            raise ValueError(f"final_weight: expected positive weights to go between, got {weight} and {final_weight}")
        self.weight, self.final_weight = weight, final_weight

    def weight_at(self, progress: float) -> float:
        """The weight after a share of the training, from 0 to 1."""
        if self.final_weight is None:
            return self.weight
        return self.weight * (self.final_weight / self.weight) ** progress

    def fits(self, solver: Solver) -> None:
        """Refuse a solver that it does not go with.

        Raises:
            ValueError: with the reason.
        """
        return None

    def end(self, t1: float, ts: Tensor | None) -> float:
        """Where a solve to t1 shall end; ``ts`` are its save times."""
        return t1

    @abstractmethod
    def reading(
        self, field: nn.Module, solver: Solver, y0: Tensor, t0: Time, t1: Time, args: Args = ()
    ) -> Reading | None:
        """What to read of a solve of a field (t, y) or (t, y, args) from y0; None where there is no penalty."""


class KineticRegularizer(Regularizer):
    r"""weight int |f|^2 + jacobian |e df/dy|^2 dt / d along a solution, a mean over the batch, with e ~ N(0, I).

    The first term keeps solutions straight and short, the second, an estimate of the Jacobian's squared Frobenius norm
    with one e per sample and solve, keeps them from turning. d is the number of a sample's entries. The integral is
    read of the solve without another state. Compiled marches take it in chunks, not as one loop.

    Args:
        weight: of the penalty.
        final_weight: that at the end of training; None keeps it.
        jacobian: how much the second term weighs against the first.

    Raises:
        ValueError: if a weight is no number >= 0.

    Reference:
        C. Finlay, J.-H. Jacobsen, L. Nurbekyan, A. Oberman, How to train your neural ODE: the world of Jacobian and
        kinetic regularization, ICML 2020, arXiv:2002.02798 (RNODE).
    """

    def __init__(self, weight: float = 0.01, final_weight: float | None = None, jacobian: float = 1.0):
        super().__init__(weight, final_weight)
        if not 0 <= jacobian < float("inf"):
            raise ValueError(f"jacobian: expected a number, 0 or more, got {jacobian!r}")
        self.jacobian = jacobian

    def fits(self, solver: Solver) -> None:
        """Refuse batches that shrink, since the directions are those of all samples."""
        if solver.compact is not None:
            raise ValueError(f"solver: expected compact=None with {type(self).__name__}, got {solver.compact}")

    def reading(self, field: nn.Module, solver: Solver, y0: Tensor, t0: Time, t1: Time, args: Args = ()) -> Reading:
        """The integral, whichever way time runs."""
        fold = Quadrature(KineticEnergy(field, torch.randn_like(y0), self.jacobian), NODES)
        return Reading({"penalty": fold}, lambda solution: solution.folds["penalty"].abs().mean())


class KineticEnergy(nn.Module):
    """(|f|^2 + jacobian |e df/dy|^2) / d (b) at states (b, ..)."""

    def __init__(self, field: nn.Module, direction: Tensor, jacobian: float):
        super().__init__()
        self.field, self.direction, self.jacobian = field, direction, jacobian

    def forward(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """For each sample."""
        value, pull, *_ = torch.func.vjp(lambda y: as_term(self.field).drift(t, y, args), y)
        (row,) = pull(self.direction)
        squares = value.abs().square() + self.jacobian * row.abs().square()
        return squares.reshape(len(y), -1).mean(1)


class STEER(Regularizer):
    """A random end: solves to t1 end at t ~ U(t1 - width, t1 + width) in training, all samples at the same.

    The longer the solution stays good, the less it may move near the end.

    Args:
        width: at most t1. The paper takes half of it and less.

    Raises:
        ValueError: if the width is not positive.

    Reference:
        A. Ghosh, H. Behl, E. Dupont, P. Torr, V. Namboodiri, STEER: simple temporal regularization for neural ODEs,
        NeurIPS 2020, arXiv:2006.10711.
    """

    def __init__(self, width: float = 0.5):
        super().__init__(0.0)
        if not 0 < width < float("inf"):
            raise ValueError(f"width: expected a positive number, got {width!r}")
        self.width = width

    def end(self, t1: float, ts: Tensor | None) -> float:
        """A random time near t1."""
        if ts is not None:
            raise ValueError("ts: STEER moves the end of a solve, so expected one without save times, ts=None")
        if self.width > abs(t1):
            raise ValueError(f"width: expected at most t1={t1}, so that solves go forward, got {self.width}")
        return t1 + self.width * (2 * torch.rand(()).item() - 1)

    def reading(self, field: nn.Module, solver: Solver, y0: Tensor, t0: Time, t1: Time, args: Args = ()) -> None:
        """There is no penalty."""
