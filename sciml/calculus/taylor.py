"""Taylor coefficients of the solution of an ordinary differential equation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciml.calculus.algebra import univariate
from sciml.calculus.dispatch import Jet


def solution_coefficients(
    f: Callable[[Any, Any], Any], t: Tensor, y: Tensor, order: int, first: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The coefficients c_k of the solution y(t + s) = y + c_1 s + c_2 s^2 + .. of dy/dt = f(t, y).

    The polynomial known so far goes through f as a jet, whose coefficient of order k is (k + 1) c_(k + 1). That takes
    ``order`` evaluations of f, of jets of the orders 0, 1, .., order - 1.

    Args:
        f: maps (t, y) to dy/dt in PyTorch's functions, smooth along the solution.
        t: the time, 0-d or as f takes it.
        y: the state, of any shape.
        order: how many coefficients.
        first: f(t, y) where that is known.

    Returns:
        c_1, .., c_order, each of y's shape, differentiable to all that f is.

    Raises:
        ValueError: if the order is below 1, or f is not smooth enough.

    Reference:
        A. Griewank, A. Walther, Evaluating derivatives, 2nd ed., SIAM 2008, ch. 13, doi:10.1137/1.9780898717761.

        J. Kelly, J. Bettencourt, M. J. Johnson, D. Duvenaud, Learning differential equations that are easy to solve,
        NeurIPS 2020, arXiv:2007.04504.

    Example:
        The exponential function.

        >>> import torch
        >>> from sciml.calculus import solution_coefficients
        >>> solution_coefficients(lambda t, y: y, torch.tensor(0.0), torch.ones(1), 3)
        (tensor([1.]), tensor([0.5000]), tensor([0.1667]))
    """
    if order < 1:
        raise ValueError(f"order: expected at least 1, got {order}")
    found = [f(t, y) if first is None else first]
    for k in range(1, order):
        algebra = univariate(k)
        clock = Jet(algebra, [t, torch.ones_like(t)[None], *[None] * (k - 1)], 1)
        slope = f(clock, Jet(algebra, [y, *(c[None] for c in found)], 1))
        if not isinstance(slope, Jet):  # a constant
            return (*found, *[torch.zeros_like(y)] * (order - k))
        if k > slope.smoothness + 1:
            raise ValueError(f"f: order {order} needs {order - 1} derivatives, but f has {max(slope.smoothness, 0):g}")
        found.append(slope.coefficient(k)[0] / (k + 1))
    return tuple(found)
