"""Preconditioners: cheap approximations of an inverse."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciml.solvers.linear.operator import DenseOperator, LinearOperator
from sciml.solvers.linear.sparse import SparseOperator


class Prepared(ABC):
    """A preconditioner made for one matrix, a fixed linear map M near its inverse.

    Attributes:
        nnz: entries that one application multiplies by.
        dtype: of the vectors that it takes; a solve of higher precision rounds to it and back.
        fallback: what takes over where a solve with it breaks down or does not end.
    """

    nnz: int = 0
    dtype: torch.dtype
    fallback: "Preconditioner | None" = None

    @abstractmethod
    def apply(self, r: Tensor) -> Tensor:
        """M r for residuals (m, n), in memory of its own."""

    def start(self, operator: LinearOperator, b: Tensor, x: Tensor) -> Tensor:
        """The first guess (m, n) to use in place of x."""
        return x


class Preconditioner(ABC):
    """How an inverse is approximated.

    Attributes:
        fallback: what takes over where a solve with this one breaks down or does not end; None for the classic ones.
    """

    fallback: "Preconditioner | None" = None

    @abstractmethod
    def setup(self, operator: LinearOperator) -> Prepared:
        """All that can be done before the first right-hand side is known."""


def prepare(m: Preconditioner | Prepared | None, operator: LinearOperator) -> Prepared | None:
    """What is prepared already, or is made now and knows what takes over from it."""
    if not isinstance(m, Preconditioner):
        return m
    prepared = m.setup(operator)
    prepared.fallback = m.fallback
    return prepared


class _Jacobi(Prepared):
    def __init__(self, diagonal: Tensor):
        self.inverse, self.nnz, self.dtype = 1 / diagonal, diagonal.shape[-1], diagonal.dtype

    def apply(self, r: Tensor) -> Tensor:
        return self.inverse * r


@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """Division by the diagonal."""

    def setup(self, operator: LinearOperator) -> Prepared:
        """The diagonal's inverse."""
        diagonal = operator.diagonal()
        positive(diagonal, "Jacobi")
        return _Jacobi(diagonal.detach())


@dataclass(frozen=True)
class Single(Preconditioner):
    """Another preconditioner in single precision, inside a solve in double precision.

    It moves half of the memory, which is what products with large matrices wait for, and changes no digit of the
    solution that a residual shows: a preconditioner only has to be near an inverse.

    Args:
        preconditioner: the other one, as ``Aggregation(Chebyshev())``.

    Example:
        >>> import torch
        >>> from sciml.problems import Diffusion
        >>> from sciml.solvers.linear import Aggregation, Chebyshev, Single, SparseOperator, pcg
        >>> system = Diffusion(cells=32).system(seed=0)
        >>> a, b = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b)
        >>> float(pcg(a, b, Single(Aggregation(Chebyshev())), rtol=1e-12).residual) < 1e-12 * float(b.norm())
        True
    """

    preconditioner: Preconditioner

    @property
    def fallback(self) -> Preconditioner | None:  # pyrefly: ignore[bad-override]
        """That of the other one, in double precision."""
        return self.preconditioner.fallback

    def setup(self, operator: LinearOperator) -> Prepared:
        """That of the other one for the rounded matrix.

        Raises:
            TypeError: the entries of the matrix are not known.
            ValueError: some are beyond the range of single precision.
        """
        sparse = stored(operator, "Single")
        rounded = sparse.to(torch.float32)
        infinite = [not bool(torch.isfinite(op.compressed.values).all()) for op in (rounded, sparse)]
        if infinite == [True, False]:
            raise ValueError("A: Single expects entries within the range of float32; scale the system")
        return self.preconditioner.setup(rounded)


def positive(diagonal: Tensor, name: str) -> None:
    """Refuse a matrix whose diagonal says that it is not positive definite.

    Raises:
        ValueError: naming the first entry that is not positive.
    """
    bad = ~(diagonal > 0)
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        value = diagonal[tuple(place)].item()
        raise ValueError(
            f"A: {name} expects a positive diagonal, as positive definite matrices have, got {value} in row {place[-1]}"
        )


def finite(values: Tensor) -> bool:
    """Whether all of them are, in a pass."""
    return not len(values) or bool(torch.stack(values.aminmax()).isfinite().all())


def stored(operator: LinearOperator, name: str) -> SparseOperator:
    """The operator in compressed rows.

    Raises:
        TypeError: its entries are not known.
    """
    if isinstance(operator, SparseOperator):
        return operator
    if isinstance(operator, DenseOperator) and operator.shape[0] == 1:
        return SparseOperator.from_scipy(operator.dense()[0].detach().cpu().numpy(), device=operator.device)
    sparse: Any = getattr(operator, "sparse", None)
    if sparse is None:
        raise TypeError(f"A: {name} expects a SparseOperator or a StencilOperator, got {type(operator).__name__}")
    return sparse()
