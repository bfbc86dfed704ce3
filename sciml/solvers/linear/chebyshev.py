"""Chebyshev polynomials of a matrix: smoothers that are products with it alone, and cost nothing to set up."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, positive
from sciml.solvers.linear.sparse import SparseOperator

PRODUCTS = 20  # of the power method, where a matrix's entries are not known
MARGIN = 1.1  # by which its estimate is raised


class _Polynomial(Prepared):
    """p(D^-1 A) D^-1, by the three-term recurrence."""

    def __init__(self, operator: LinearOperator, inverse: Tensor, largest: Tensor, degree: int, ratio: float):
        self.operator, self.inverse, self.dtype = operator, inverse, operator.dtype
        middle, half = (1 + 1 / ratio) / 2 * largest, (1 - 1 / ratio) / 2 * largest
        sigma = middle / half
        rho, self.first, self.steps = 1 / sigma, inverse / middle, []
        for _ in range(degree - 1):
            last, rho = rho, 1 / (2 * sigma - rho)
            self.steps.append((rho * last, inverse * (2 * rho / half)))
        entries = operator.compressed.nnz if isinstance(operator, SparseOperator) else 0
        self.nnz = (degree - 1) * entries + degree * inverse.shape[-1]

    def apply(self, r: Tensor) -> Tensor:
        """One product fewer than the degree."""
        z = step = self.first * r
        for keep, add in self.steps:
            left = r - self.operator.matvec(z)
            step = torch.addcmul(keep * step, add, left)
            z = z + step
        return z


@dataclass(frozen=True)
class Chebyshev(Preconditioner):
    """The polynomial of D^-1 A that is nearest to its inverse on the upper part of the spectrum, [l / ratio, l].

    As a smoother of `Aggregation` it does better than `FSAI` for the same work, and needs no entries of A but the
    diagonal. The largest eigenvalue l is bounded by the sums of rows where A is stored, else estimated by the power
    method.

    Args:
        degree: number of terms; 1 is Jacobi.
        ratio: of the largest eigenvalue to the least that is aimed at; alone, without a coarse space, take more.

    Reference:
        M. Adams, M. Brezina, J. Hu, R. Tuminaro, J. Comput. Phys. 188 (2003), doi:10.1016/S0021-9991(03)00194-3.
    """

    degree: int = 2
    ratio: float = 12.0

    def __post_init__(self) -> None:
        """Refuse what is no polynomial or no interval."""
        if self.degree < 1:
            raise ValueError(f"degree: expected a positive number, got {self.degree}")
        if not self.ratio > 1:
            raise ValueError(f"ratio: expected a number above 1, got {self.ratio}")

    def setup(self, operator: LinearOperator) -> Prepared:
        """The largest eigenvalue, and the coefficients."""
        diagonal = operator.diagonal().detach()
        positive(diagonal, "Chebyshev")
        inverse = 1 / diagonal
        return _Polynomial(operator, inverse, largest(operator, inverse), self.degree, self.ratio)


def largest(operator: LinearOperator, inverse: Tensor) -> Tensor:
    """A bound (1 or m, 1) of the eigenvalues of D^-1 A, or an estimate."""
    if isinstance(operator, SparseOperator):
        c = operator.compressed
        rows = c.with_values(c.values.detach().abs()).product(torch.ones_like(inverse))
        return (rows * inverse).amax(-1, keepdim=True)
    m, n, _ = operator.shape
    x = (12.9898 * torch.arange(1, n + 1, device=operator.device)).sin().to(operator.dtype).expand(m, n)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    for _ in range(PRODUCTS):
        x = inverse * operator.matvec(x / size)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return MARGIN * size.detach()
