"""What an iterative solve found, and what is said of right-hand sides that it did not solve."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from sciml.errors import LinearSolveError
from sciml.solvers.linear.solve import LinearSolver

SHOWN = 5  # right-hand sides that a message names


class LinearStatus(IntEnum):
    """How a right-hand side of an iterative solve stands."""

    CONVERGED = 0
    MAX_ITER = 1
    BREAKDOWN = 2
    NON_FINITE = 3


CAUSES = {
    LinearStatus.MAX_ITER: "max_iter={max_iter} iterations were used up; raise max_iter, loosen rtol or take a better "
    "preconditioner",
    LinearStatus.BREAKDOWN: "the iteration broke down: A or the preconditioner is not positive definite, A is singular "
    "with a right-hand side outside its range, or rtol lies below what its condition allows in this dtype",
    LinearStatus.NON_FINITE: "A, the right-hand side or the preconditioner has NaN or infinite values",
}


@dataclass(frozen=True)
class LinearSolution:
    """What an iterative solve found.

    Attributes:
        x: solutions, of the shape of b. Where the status is no success, the last iterate that was looked at.
        status: `LinearStatus` of each right-hand side (m).
        iterations: of each (m); those of the fallback count.
        residual: true residual norms |b - A x| (m).
        history: norms of the iteration's own residuals (k + 1, m), from the first guess on; constant after a
            right-hand side's own end.
        fell_back: whether the preconditioner's fallback had to finish (m).
    """

    x: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    history: Tensor
    fell_back: Tensor

    @property
    def converged(self) -> Tensor:
        """Which right-hand sides were solved (m)."""
        return self.status == LinearStatus.CONVERGED.value


def throw_failed(solution: LinearSolution, max_iter: int, causes: Mapping[LinearStatus, str] = CAUSES) -> None:
    """Raise for the right-hand sides that were not solved.

    Raises:
        LinearSolveError: naming some of them, and the causes.
    """
    failed = solution.status.nonzero().squeeze(-1)
    if not len(failed):
        return
    rows, status = failed.tolist(), [LinearStatus(s) for s in solution.status[failed].tolist()]
    sizes = solution.residual[failed].tolist()
    what = "; ".join(
        f"right-hand side {row}: {kind.name.lower()} at |b - A x| = {size:.3g}"
        for row, kind, size in zip(rows[:SHOWN], status, sizes, strict=False)
    )
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    why = "; ".join(f"{kind.name.lower()}: {causes[kind].format(max_iter=max_iter)}" for kind in sorted(set(status)))
    raise LinearSolveError(f"{len(rows)} of {len(solution.status)} not solved: {what}{more}. {why}", status, rows)


def relative(rtol: float | None, dtype: torch.dtype) -> float:
    """The relative tolerance for a dtype."""
    return (1e-8 if dtype == torch.float64 else 1e-5) if rtol is None else rtol


class Strict(LinearSolver):
    """A solver that refuses gradients that were not found."""

    def admit(self, known: Tensor) -> None:
        """Raise where one is not known.

        Raises:
            LinearSolveError: naming the right-hand sides.
        """
        if not bool(known.all()):
            rows = (~known).nonzero().squeeze(-1).tolist()
            status = [LinearStatus.BREAKDOWN] * len(rows)
            message = "the system of the gradient was not solved for right-hand sides {}; a preconditioner or a larger "
            raise LinearSolveError(message.format(rows) + "rtol may help; throw=False leaves NaN there", status, rows)
