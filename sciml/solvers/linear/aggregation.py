"""Two levels: a smoother, and a coarse space of piecewise constant vectors that is solved directly."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from sciml.solvers.linear import kernels
from sciml.solvers.linear.approximate_inverse import FSAI
from sciml.solvers.linear.derivatives import symmetric
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, positive, stored
from sciml.solvers.linear.sparse import Compressed, SparseOperator

ROWS = 128  # that are looked at for how fast neighbourhoods grow
GROWTH = 3.0  # at most 2.7 in the plane, at least 3.1 on grids of 6^3 unknowns


class Coarse:
    """The coarse space: the range of Z (n, c), with the factors of Z^T A Z.

    Args:
        a: the matrix.
        z: Z.
    """

    def __init__(self, a: Compressed, z: Compressed):
        dtype, device = a.values.dtype, a.values.device
        fine = z.to_scipy().astype(np.float64)
        turned = fine.T.tocsr()
        half = turned @ a.to_scipy().astype(np.float64)  # Z^T A (c, n)
        options = {"SymmetricMode": True}
        galerkin = (half @ fine).tocsc()
        try:
            self.factors = splu(galerkin, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
        except RuntimeError as error:
            raise ValueError("A: expected a positive definite matrix, its coarse form is singular") from error
        self.z = z
        self.turned = Compressed.from_scipy(turned, dtype, device)
        self.half = Compressed.from_scipy(half, dtype, device)
        self.nnz = self.z.nnz + self.turned.nnz + self.half.nnz

    def restrict(self, r: Tensor) -> Tensor:
        """Z^T r (m, c)."""
        return self.turned.product(r)

    def solve(self, r: Tensor) -> Tensor:
        """Z (Z^T A Z)^-1 r (m, n) for coarse vectors r (m, c)."""
        return self.z.product(symmetric(self._solve, r))

    def correct(self, z: Tensor, r: Tensor) -> Tensor:
        """Z + Q (r - A z), perhaps in the memory of z."""
        if not kernels.suited(r, z, self.z.values):
            return z + self.solve(self.restrict(r) - self.half.product(z))
        turned, half = ((c.crow, c.col, c.values) for c in (self.turned, self.half))
        z = z.clone() if z.untyped_storage().data_ptr() == r.untyped_storage().data_ptr() else z.contiguous()
        coarse = r.new_empty(len(r), self.z.size[1])
        kernels.call(kernels.coarse_residual, *turned, *half, r.contiguous(), z, coarse, reorder=True)
        kernels.call(kernels.spread, *turned, self._solve(coarse), z)
        return z

    def _solve(self, r: Tensor) -> Tensor:
        found = self.factors.solve(r.detach().cpu().double().numpy().T)
        return torch.from_numpy(np.ascontiguousarray(found.T)).to(r)


class DenseCoarse:
    """The coarse space with dense matrices, differentiable in the entries of A and Z; for small systems.

    Args:
        a: the matrix.
        z: Z (n, c).
    """

    def __init__(self, a: Compressed, z: Compressed):
        self.z = z.dense()
        self.az = a.product(self.z.mT).mT
        self.factor = torch.linalg.cholesky(self.z.mT @ self.az)
        self.nnz = self.z.numel()

    def restrict(self, r: Tensor) -> Tensor:
        """Z^T r (m, c)."""
        return r @ self.z

    def solve(self, r: Tensor) -> Tensor:
        """Z (Z^T A Z)^-1 r (m, n) for coarse vectors r (m, c)."""
        return torch.cholesky_solve(r.mT, self.factor).mT @ self.z.mT

    def correct(self, z: Tensor, r: Tensor) -> Tensor:
        """Z + Q (r - A z)."""
        return z + self.solve(self.restrict(r) - z @ self.az)


class TwoLevel(Prepared):
    """M r = z + Q (r - A z) with z = S r, the smoother's, and Q = Z (Z^T A Z)^-1 Z^T: the A-DEF2 form.

    It is symmetric only for residuals that Q has nothing to say about, which the first guess sees to and which the
    iteration keeps.

    Reference:
        J. M. Tang, R. Nabben, C. Vuik, Y. A. Erlangga, J. Sci. Comput. 39 (2009), doi:10.1007/s10915-009-9272-6.
    """

    def __init__(self, smoother: Prepared, coarse: Coarse | DenseCoarse):
        self.smoother, self.coarse = smoother, coarse
        self.dtype = smoother.dtype
        self.nnz = smoother.nnz + coarse.nnz

    def apply(self, r: Tensor) -> Tensor:
        """One sweep of the smoother, one coarse solve."""
        return self.coarse.correct(self.smoother.apply(r), r)

    def start(self, operator: LinearOperator, b: Tensor, x: Tensor) -> Tensor:
        """The guess x + Q (b - A x)."""
        r = (b - operator.matvec(x)).to(self.dtype)
        return x + self.coarse.solve(self.coarse.restrict(r)).to(x.dtype)


@dataclass(frozen=True)
class Aggregation(Preconditioner):
    """A smoother and a coarse space of vectors that are constant on aggregates of neighbouring unknowns.

    Args:
        smoother: None is `FSAI`.
        aggregates: (n) the coarse unknown of each row; None finds them by pairwise matching along strong couplings.
        doublings: how often pairs are paired again; aggregates have about 2^doublings unknowns. None is 4 in the plane
            and 6 in space, about 4 unknowns across: of smaller ones in space the coarse factors take most of the time.
        damping: of one Jacobi sweep that smooths the coarse vectors, which still sum to 1; 0 leaves them constant.
            Couplings count by their size in it, since sums of both signs may nearly cancel.

    Reference:
        two-level form as in `TwoLevel`; pairwise aggregation: Y. Notay, SIAM J. Sci. Comput. 34 (2012),
        doi:10.1137/100818509; smoothing: P. Vanek, J. Mandel, M. Brezina, Computing 56 (1996), doi:10.1007/BF02238511.
    """

    smoother: Preconditioner | None = None
    aggregates: Tensor | None = None
    doublings: int | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no pairs."""
        if self.doublings is not None and self.doublings < 1:
            raise ValueError(f"doublings: expected at least 1, or None, got {self.doublings}")

    def setup(self, operator: LinearOperator) -> TwoLevel:
        """The smoother, and the factors of the coarse matrix.

        Raises:
            ImportError: no aggregates are given and pyamg is not installed.
            TypeError: the smoother is in another precision.
        """
        a = stored(operator, "Aggregation")
        positive(a.diagonal(), "Aggregation")
        aggregates = pairwise(a, self.doublings) if self.aggregates is None else self.aggregates
        z = soft(a.compressed, aggregates, self.damping)
        smoother = (self.smoother or FSAI()).setup(a)
        if smoother.dtype != a.dtype:
            raise TypeError(
                f"smoother: expected one in the matrix's {a.dtype}, got {smoother.dtype}; Single(Aggregation(..)) has "
                "both levels in single precision"
            )
        return TwoLevel(smoother, Coarse(a.compressed, z))


def constant(a: Compressed, aggregates: Tensor) -> Compressed:
    """Z (n, c) of aggregates (n).

    Raises:
        ValueError: they are not n numbers from 0 on without gaps.
    """
    n = a.size[0]
    if aggregates.shape != (n,):
        raise ValueError(f"aggregates: expected the shape {(n,)}, got {tuple(aggregates.shape)}")
    counts = torch.bincount(aggregates)
    if not bool((counts > 0).all()):
        raise ValueError("aggregates: expected every number from 0 to the largest, some are missing")
    crow = torch.arange(n + 1, dtype=torch.int32, device=aggregates.device)
    return Compressed(crow, aggregates.int(), torch.ones_like(a.values[:1]).expand(n).contiguous(), len(counts))


def soft(a: Compressed, aggregates: Tensor, damping: float) -> Compressed:
    """Z (n, c) of aggregates (n) after a damped Jacobi sweep; without damping they stay as they are.

    Raises:
        ValueError: they are not n numbers from 0 on without gaps.
    """
    z = constant(a, aggregates)
    if not damping:
        return z
    if a.values.device.type != "cpu" or not kernels.available():
        return smoothed(a, z, damping)
    most = a.nnz + a.size[0]  # a row's couplings and its own aggregate
    crow, col, values = torch.empty_like(a.crow), a.col.new_empty(most), a.values.new_empty(most)
    numbers = (a.crow, a.col, a.values, z.col, float(damping), crow, col, values)
    end = kernels.call(kernels.soft_aggregates, *numbers)
    return Compressed(crow, col[:end], values[:end], z.size[1])


def smoothed(a: Compressed, z: Compressed, damping: float) -> Compressed:
    """Z after a damped Jacobi sweep with the graph of A, whose couplings count by their size: rows are averages."""
    matrix = a.to_scipy()
    couplings = abs(matrix - sparse.diags(matrix.diagonal()))
    sizes = np.asarray(couplings.sum(1)).ravel()
    shares = sparse.diags(damping / np.where(sizes == 0, 1, sizes)) @ couplings
    fine = z.to_scipy()
    kept = sparse.diags(np.where(sizes == 0, 1.0, 1 - damping)) @ fine
    return Compressed.from_scipy(kept + shares @ fine, a.values.dtype, a.values.device)


def pairwise(operator: SparseOperator, doublings: int | None = None) -> Tensor:
    """Aggregates (n) int64 of about 2^doublings unknowns, by pyamg; `Aggregation` says what None is.

    Couplings count by their size, whatever their sign: in M + dt K of finite elements with a small dt few are negative.

    Raises:
        ImportError: pyamg is not installed.
    """
    try:
        from pyamg.aggregation.aggregate import pairwise_aggregation
    except ImportError as error:
        raise ImportError("aggregates: to find them takes pyamg: pip install 'sciml-torch[amg]'") from error
    matrix = operator.to_scipy()
    matchings = doublings or (6 if spatial(matrix) else 4)
    membership = pairwise_aggregation(matrix, matchings=matchings, norm="abs")[0].tocsr()
    found = torch.full((membership.shape[0],), membership.shape[1], dtype=torch.int64)  # what is left alone
    at = torch.from_numpy(np.diff(membership.indptr)) > 0
    found[at] = torch.from_numpy(membership.indices).long()
    found = torch.unique(found, return_inverse=True)[1]
    return found.to(operator.device)


def spatial(matrix: sparse.csr_matrix) -> bool:
    """Whether neighbours of neighbours are as many as in space, or more: of some rows, not those at the boundary.

    In the plane they are 2.6 times the neighbours, on square grids and on meshes of triangles, in space 3.6 times on
    grids and more on tetrahedra.
    """
    ones = sparse.csr_matrix((np.ones(matrix.nnz, np.float32), matrix.indices, matrix.indptr), matrix.shape)
    near: Any = ones[np.linspace(0, matrix.shape[0] - 1, min(matrix.shape[0], ROWS)).astype(int)]
    count, further = near.getnnz(1), (near @ ones).getnnz(1)
    return float(np.median((further / count)[count >= np.median(count)])) > GROWTH
