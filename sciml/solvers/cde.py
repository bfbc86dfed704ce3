"""Controlled differential equations: driven by a curve, as by data."""

from collections.abc import Callable

from torch import Tensor

from sciml.solvers.spline import Spline
from sciml.solvers.term import Term, called, takes_args
from sciml.typing import Args


class CDE(Term):
    r"""dy = f(t, y) dX(t) along a `Spline` X of c channels, which a solve is given as its ``args``.

    That is :math:`dy/dt = f(t, y)\,dX/dt` with a matrix f (h, c) for each state (h), for all steppers and adjoints, and
    gradients flow to the data. At knots the slope of a linear spline jumps, and the second derivative of a cubic one:
    ``jump_ts=spline.ts`` of `PID` or `Grid` keeps steps from looking over them. On a grid without it linear splines
    make every method one of order 1. Under ``Solver(compact=...)`` a spline's coefficients, number 1 of ``args``, have
    a row for each sample, and so have knots (b, n), number 0.

    Args:
        field: f, a callable (t, y) or (t, y, args), e.g. a module; maps states (b, ..) to (b, .., c). Its ``args`` are
            those behind the spline's two.

    References:
        P. Kidger, J. Morrill, J. Foster, T. Lyons, Neural controlled differential equations for irregular time series,
        NeurIPS 2020, arXiv:2005.08926.

    Example:
        >>> import torch
        >>> from sciml import PID, Solver, solve
        >>> from sciml.solvers import CDE, Spline
        >>> ts, values = torch.linspace(0, 1, 5), torch.rand(7, 5, 3)
        >>> x = Spline.linear(ts, values)
        >>> mix = torch.rand(2, 3)
        >>> solver = Solver(controller=PID(jump_ts=ts))
        >>> y = solve(CDE(lambda t, y: torch.tanh(y)[..., None] * mix), torch.ones(7, 2), 0.0, 1.0, solver, args=x).ys
        >>> y.shape
        torch.Size([7, 2])
    """

    def __init__(self, field: Callable[..., Tensor]):
        if not callable(field):
            raise TypeError(f"field: expected a callable (t, y) or (t, y, args), got {type(field).__name__}")
        self.field, self.takes = field, takes_args(field, "field", "f")

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The product f dX/dt, of y's shape.

        Raises:
            ValueError: ``args`` are no spline, or the field's shape does not fit the state and the spline.
        """
        slope = driving(args, y).derivative(t)  # (b, c)
        matrix = called(self.field, self.takes, t, y, args[2:])
        expected = (*y.shape, slope.shape[-1])
        if matrix.shape != expected:
            raise ValueError(f"field: expected values of the shape (b, .., c) {expected}, got {tuple(matrix.shape)}")
        slope = slope.reshape(slope.shape[0], *(1,) * (y.ndim - 2), -1, 1)
        return (matrix @ slope).squeeze(-1)


def driving(args: Args, y: Tensor) -> Spline:
    """The spline that ``args`` begin with.

    Raises:
        ValueError: there is none, or one for other samples than those of the state.
    """
    if len(args) < 2 or args[1].ndim != 4:
        raise ValueError("args: expected a Spline, as args=spline or args=(*spline, ...), since the term is a CDE")
    if y.ndim < 2 or args[1].shape[0] != y.shape[0]:
        raise ValueError(f"y0: expected states (b, ..) of the spline's {len(args[1])} samples, got {tuple(y.shape)}")
    return Spline(*args[:2])
