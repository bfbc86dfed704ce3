"""Factored sparse approximate inverses: preconditioners that are products with sparse matrices alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.solvers.linear import kernels
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, positive, stored
from sciml.solvers.linear.sparse import Compressed
from sciml.solvers.linear.triangular import Lower

BLOCK = 2**22  # entries of small dense matrices that are solved at once


class Inverse(Prepared):
    """M = G^T G with a sparse G.

    Args:
        g: G (n, n).
    """

    def __init__(self, g: Compressed):
        self.g, self.turned = g, g.transpose()
        self.nnz, self.dtype = 2 * g.nnz, g.values.dtype

    def apply(self, r: Tensor) -> Tensor:
        """Two products with sparse matrices."""
        return self.turned.product(self.g.product(r))


@dataclass(frozen=True)
class FSAI(Preconditioner):
    """The lower triangular G on A's pattern that brings G L nearest to the identity, A = L L^T, without knowing L.

    Row i of G solves one small dense system, the block of A that belongs to the row's pattern; G A G^T has a diagonal
    of ones.

    Reference:
        L. Yu. Kolotilina, A. Yu. Yeremin, SIAM J. Matrix Anal. Appl. 14 (1993), doi:10.1137/0614004.
    """

    def setup(self, operator: LinearOperator) -> Prepared:
        """G, row by row.

        Raises:
            ValueError: A is not positive definite.
        """
        a = stored(operator, "FSAI")
        positive(a.diagonal(), "FSAI")
        return Inverse(approximate_inverse(a.compressed))


def approximate_inverse(a: Compressed) -> Compressed:
    """G of `FSAI` for A.

    Raises:
        ValueError: a block of A is not positive definite.
    """
    lower = Lower.of(a).compressed
    if a.values.device.type == "cpu" and kernels.available():
        values = torch.empty_like(lower.values)
        bad = kernels.call(kernels.approximate_inverse, lower.crow, lower.col, values, a.crow, a.col, a.values)
    else:
        values, bad = _by_sizes(a, lower)
    if bad >= 0:
        raise ValueError(f"A: FSAI expects a positive definite matrix; the block of row {bad} is not")
    return lower.with_values(values)


def _by_sizes(a: Compressed, lower: Compressed) -> tuple[Tensor, int]:
    """The values of G, all rows of one length at once; and a row whose block is not definite, or -1."""
    n = a.size[1]
    key = a.row * n + a.col.long()
    values = torch.zeros_like(lower.values)
    begin, sizes = lower.crow[:-1].long(), (lower.crow[1:] - lower.crow[:-1]).long()
    for size in sizes.unique().tolist():
        for rows in torch.nonzero(sizes == size).squeeze(-1).split(max(1, BLOCK // size**2)):
            at = begin[rows, None] + torch.arange(size, device=rows.device)
            col = lower.col[at].long()
            wanted = col[:, :, None] * n + col[:, None, :]
            found = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
            block = torch.where(key[found] == wanted, a.values.detach()[found], 0)
            factor, info = torch.linalg.cholesky_ex(block)
            if bool((info != 0).any()):
                return values, int(rows[info.nonzero()[0]])
            unit = torch.zeros(len(rows), size, 1, dtype=values.dtype, device=values.device)
            unit[:, -1] = 1
            values[at] = torch.linalg.solve_triangular(factor.mT, unit, upper=True).squeeze(-1)
    return values, -1
