"""Factored sparse approximate inverses: preconditioners that are products with sparse matrices alone."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.linear import kernels
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, positive, stored
from sciml.solvers.linear.sparse import Compressed, SparseOperator
from sciml.solvers.linear.triangular import Lower

LEAST = 1 / 32  # of couplings, relative to the diagonal, that may join their ends' neighbours
WINDOW = 256  # rows
BLOCK = 2**22  # entries of small dense matrices that are solved at once


class Inverse(Prepared):
    """M = G^T G with a sparse G.

    Args:
        g: G (n, n), whose values are not to be changed in place.
    """

    def __init__(self, g: Compressed):
        self.g = g
        self.nnz, self.dtype = 2 * g.nnz, g.values.dtype

    def apply(self, r: Tensor) -> Tensor:
        """Two products with sparse matrices."""
        kernels.check_length(r, self.g.size[0])
        if not kernels.suited(r, self.g.values):
            turned = self.g.transpose() if self.g.values.requires_grad else self.turned
            return turned.product(self.g.product(r))
        g, z = self.by_length, torch.zeros_like(r)
        kernels.call(kernels.normal_product, g.crow, g.col, g.values, r.contiguous(), z, reorder=True)
        return z

    @cached_property
    def turned(self) -> Compressed:
        """G^T, whose values need no gradient."""
        with torch.inference_mode(False):
            return self.g.transpose()

    @cached_property
    def by_length(self) -> Compressed:
        """G with rows of one length together, which G^T G does not see, and loops over them do."""
        return Compressed.from_scipy(self.g.to_scipy()[_by_length(np.diff(self.g.crow.numpy()))])


def _by_length(lengths: np.ndarray) -> np.ndarray:
    """The order of rows (n) by length, within windows of neighbours: these read the same places of vectors."""
    kind = np.min_scalar_type(lengths.max(initial=0))
    rows = np.full((-(-len(lengths) // WINDOW), WINDOW), np.iinfo(kind).max, kind)
    rows.flat[: len(lengths)] = lengths
    order = np.argsort(rows, kind="stable") + WINDOW * np.arange(len(rows))[:, None]
    return order[order < len(lengths)]


@dataclass(frozen=True)
class FSAI(Preconditioner):
    """The triangular G on a pattern that brings G L nearest to the identity, A = L L^T, without knowing L.

    Row i of G solves one small dense system, the block of A that belongs to the row's pattern; G A G^T has a diagonal
    of ones.

    Args:
        strong: by default the pattern is that of A's lower triangle. Else it has as many entries, of the strongest of
            A's couplings and of pairs with a common neighbour, in the order of the colours of their graph. As the
            smoother of two levels it then mostly saves a tenth of the iterations, more for anisotropic matrices.

    Reference:
        L. Yu. Kolotilina, A. Yu. Yeremin, SIAM J. Matrix Anal. Appl. 14 (1993), doi:10.1137/0614004; patterns of
        powers: E. Chow, SIAM J. Sci. Comput. 21 (2000), doi:10.1137/S106482759833913X.
    """

    strong: bool = False

    def setup(self, operator: LinearOperator) -> Prepared:
        """G, row by row.

        Raises:
            ValueError: A is not positive definite.
        """
        a = stored(operator, "FSAI")
        positive(a.diagonal(), "FSAI")
        return Inverse(approximate_inverse(a.compressed, self.strong))


def approximate_inverse(a: Compressed, strong: bool = False) -> Compressed:
    """G of `FSAI` for A.

    Raises:
        ValueError: a block of A is not positive definite.
    """
    pattern = strongest(a) if strong else Lower.of(a).compressed
    if a.values.device.type == "cpu" and kernels.available():
        values = torch.empty_like(pattern.values)
        bad = kernels.call(kernels.approximate_inverse, pattern.crow, pattern.col, values, a.crow, a.col, a.values)
    else:
        values, bad = _by_sizes(a, pattern)
    if bad >= 0:
        raise ValueError(f"A: FSAI expects a positive definite matrix; the block of row {bad} is not")
    return pattern.with_values(values)


def strongest(a: Compressed) -> Compressed:
    """The strong pattern of `FSAI`, with zeros."""
    n, device = a.size[0], a.values.device
    crow, col, values = a.crow.cpu(), a.col.cpu(), a.values.detach().cpu()
    scale = SparseOperator(Compressed(crow, col, values, n)).diagonal()[0].rsqrt()
    joined = int(((crow[1:] - crow[:-1]).long() ** 2).sum()) // 2  # pairs with a common neighbour, one of them or not
    room = joined + a.nnz
    begin, other, strength = np.empty(n + 1, np.uint32), np.empty(room, np.uint32), np.empty(room, values.numpy().dtype)
    end = kernels.loop(kernels.bonds, crow, col, values, scale, LEAST, begin, other, strength)
    count, least, ties = (a.nnz - n) // 2, -1.0, 0
    if end > count:
        keys = strength[:end].view(f"u{strength.itemsize}")
        shift = 8 * strength.itemsize - 16
        least, larger = kernels.loop(kernels.largest, strength[:end], keys, shift, count) if count else (np.inf, 0)
        ties = count - larger
    found, places = torch.empty_like(crow), col.new_empty(count + n)
    used = int(kernels.loop(kernels.coloured, begin, other, strength, least, ties, found, places))
    return Compressed(found.to(device), places[:used].to(device), torch.zeros_like(a.values[:1]).repeat(used), n)


def _by_sizes(a: Compressed, pattern: Compressed) -> tuple[Tensor, int]:
    """The values of G, all rows of one length at once; and a row whose block is not definite, or -1."""
    n = a.size[1]
    key = a.row * n + a.col.long()
    values = torch.zeros_like(pattern.values)
    begin, sizes = pattern.crow[:-1].long(), (pattern.crow[1:] - pattern.crow[:-1]).long()
    last = torch.sort(2 * pattern.row + (pattern.row == pattern.col), stable=True).indices  # the diagonal of each row
    for size in sizes.unique().tolist():
        for rows in torch.nonzero(sizes == size).squeeze(-1).split(max(1, BLOCK // size**2)):
            at = last[begin[rows, None] + torch.arange(size, device=rows.device)]
            col = pattern.col[at].long()
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
