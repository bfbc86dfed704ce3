"""A preconditioner that counts."""

from torch import Tensor

from sciml.solvers.linear import LinearOperator, Preconditioner, Prepared


class Counting(Preconditioner):
    """Counts set-ups and applications of another one, which nothing takes over from."""

    def __init__(self, inner: Preconditioner):
        self.inner, self.setups, self.applications = inner, 0, 0

    def setup(self, operator: LinearOperator) -> Prepared:
        self.setups += 1
        prepared = self.inner.setup(operator)
        apply = prepared.apply

        def counted(r: Tensor) -> Tensor:
            self.applications += 1
            return apply(r)

        prepared.apply = counted  # pyrefly: ignore[bad-assignment]
        return prepared
