"""A preconditioner that is any function of residuals."""

from collections.abc import Callable

from torch import Tensor

from sciml.solvers.linear import LinearOperator, Preconditioner, Prepared


class Bad(Preconditioner):
    """What a network might learn on a bad day, and what takes over."""

    def __init__(self, function: Callable[[Tensor], Tensor], fallback: Preconditioner | None = None):
        self.function, self.fallback = function, fallback

    def setup(self, operator: LinearOperator) -> Prepared:
        return _Prepared(self.function, operator)


class _Prepared(Prepared):
    def __init__(self, function: Callable[[Tensor], Tensor], operator: LinearOperator):
        self.function, self.dtype = function, operator.dtype

    def apply(self, r: Tensor) -> Tensor:
        return self.function(r)
