"""A penalty on high derivatives of a solution, which are what makes it costly to integrate."""

from functools import partial
from math import factorial

from torch import Tensor, nn

from sciml.calculus.taylor import solution_coefficients
from sciml.models.regularizers import NODES, Reading, Regularizer
from sciml.solvers.fold import Quadrature
from sciml.solvers.solve import Solver
from sciml.solvers.term import as_term
from sciml.typing import Args, Time


class TaylorRegularizer(Regularizer):
    """lambda int |d^K y / dt^K|^2 dt along a solution, a mean over the batch, as a part of a training loss.

    A solver of order K may take fewer steps where this is small. The derivatives come from jets, so that the field has
    to be smooth, as tanh, gelu, silu, and cost more than the solve itself: a training step takes about twice as long,
    or more. States of several axes are taken as one vector. Compiled marches take it in chunks, not as one loop.

    Args:
        order: K.
        weight: lambda.
        final_weight: that at the end of training; None keeps it.

    Raises:
        ValueError: if the order is none, or the weight is no number >= 0.

    Reference:
        J. Kelly, J. Bettencourt, M. J. Johnson, D. Duvenaud, Learning differential equations that are easy to solve,
        NeurIPS 2020, arXiv:2007.04504.
    """

    def __init__(self, order: int = 3, weight: float = 0.01, final_weight: float | None = None):
        super().__init__(weight, final_weight)
        if not isinstance(order, int) or isinstance(order, bool) or order < 1:
            raise ValueError(f"order: expected a whole number, 1 or more, got {order!r}")
        self.order = order

    def reading(self, field: nn.Module, solver: Solver, y0: Tensor, t0: Time, t1: Time, args: Args = ()) -> Reading:
        """The integral, whichever way time runs."""
        fold = Quadrature(SquaredDerivative(field, self.order), NODES)
        return Reading({"penalty": fold}, lambda solution: solution.folds["penalty"].abs().mean())


class SquaredDerivative(nn.Module):
    """|d^K y / dt^K|^2 (b) of the solution through states (b, ..)."""

    def __init__(self, field: nn.Module, order: int):
        super().__init__()
        self.field, self.order = field, order

    def forward(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The square of the norm, for each sample."""
        last = solution_coefficients(partial(as_term(self.field).drift, args=args), t, y, self.order)[-1]
        return (factorial(self.order) * last).abs().square().reshape(len(y), -1).sum(1)
