"""Preconditioners that a network makes from a matrix."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sciml.solvers.linear import LinearOperator, Preconditioner, Prepared, SparseOperator
from sciml.solvers.linear.preconditioner import stored


class LearnedPreconditioner(nn.Module, Preconditioner):
    """A network from a matrix to a preconditioner for it.

    A derived class says what the network sees of a matrix (`look`), makes of it a preconditioner through which
    gradients flow to the weights (`forward`, for small systems), and one to solve with (`prepare`, for large ones).
    """

    def aggregate(self, operator: SparseOperator) -> Tensor | None:
        """Aggregates of the unknowns where none are given (n); None for what uses none."""
        return None

    @property
    def fallback(self) -> Preconditioner:  # pyrefly: ignore[bad-override]
        """What takes over where a solve breaks down or does not end."""
        return next(iter(self.classic().values()))

    @abstractmethod
    def look(self, operator: SparseOperator, aggregates: Tensor | None) -> Any:
        """What does not depend on the weights, to be kept where a matrix is met again."""

    @abstractmethod
    def forward(self, seen: Any) -> Prepared:
        """The preconditioner, differentiable in the weights."""

    @abstractmethod
    def prepare(self, seen: Any) -> Prepared:
        """The same preconditioner, fast and without gradients."""

    @abstractmethod
    def classic(self, aggregates: Tensor | None = None) -> dict[str, Preconditioner]:
        """What it has to be better than, by name; the first is what takes over where a solve with it fails."""

    def setup(self, operator: LinearOperator) -> Prepared:
        """The preconditioner of a matrix.

        Raises:
            TypeError: its entries are not known.
            ValueError: it is not positive definite.
        """
        return self.on(None).setup(operator)

    def on(self, aggregates: Tensor | None) -> "Preconditioner":
        """The preconditioner with given aggregates (n)."""
        return _On(self, aggregates)


class _On(Preconditioner):
    def __init__(self, model: LearnedPreconditioner, aggregates: Tensor | None):
        self.model, self.aggregates = model, aggregates
        self.fallback = next(iter(model.classic(aggregates).values()))

    def setup(self, operator: LinearOperator) -> Prepared:
        a = stored(operator, type(self.model).__name__)
        given = self.model.aggregate(a) if self.aggregates is None else self.aggregates
        with torch.no_grad():
            prepared = self.model.prepare(self.model.look(a, given))
        prepared.fallback = self.fallback
        return prepared
