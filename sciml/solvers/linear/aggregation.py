"""Two levels: a smoother, and a coarse space of piecewise constant vectors that is solved directly."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from sciml.solvers.linear.approximate_inverse import FSAI
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, stored
from sciml.solvers.linear.sparse import Compressed, SparseOperator


class Coarse:
    """The coarse space: Z (n, c) with one entry in each row, Z^T A Z and its factors.

    Args:
        a: the matrix.
        aggregates: (n) int64, the coarse unknown of each row, from 0 on without gaps.
    """

    def __init__(self, a: Compressed, aggregates: Tensor):
        if aggregates.shape != (a.size[0],):
            raise ValueError(f"aggregates: expected the shape {(a.size[0],)}, got {tuple(aggregates.shape)}")
        self.aggregates = aggregates.long()
        z = self.aggregates.cpu().numpy()
        count = int(z.max()) + 1
        n = len(z)
        turned = sparse.csr_matrix((np.ones(n), (z, np.arange(n))), shape=(count, n))
        if (np.diff(turned.indptr) == 0).any():
            raise ValueError("aggregates: expected every number from 0 to the largest, some are missing")
        half = (turned @ a.to_scipy().astype(np.float64)).tocsr()  # Z^T A (c, n)
        self.galerkin = (half @ turned.T).tocsc()
        options = {"SymmetricMode": True}
        self.factors = splu(self.galerkin, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
        dtype, device = a.values.dtype, a.values.device
        self.restriction = Compressed.from_scipy(turned, dtype, device)
        self.half = Compressed.from_scipy(half, dtype, device)

    def restrict(self, r: Tensor) -> Tensor:
        """Z^T r (m, c)."""
        return self.restriction.product(r)

    def solve(self, r: Tensor) -> Tensor:
        """Z (Z^T A Z)^-1 r (m, n) for coarse vectors r (m, c)."""
        found = self.factors.solve(r.detach().cpu().double().numpy().T)
        return torch.from_numpy(found.T).to(r)[:, self.aggregates]


class TwoLevel(Prepared):
    """M r = z + Q (r - A z) with z = S r, the smoother's, and Q = Z (Z^T A Z)^-1 Z^T: the A-DEF2 form.

    It is symmetric only for residuals that Q has nothing to say about, which the first guess sees to and which the
    iteration keeps.

    Reference:
        J. M. Tang, R. Nabben, C. Vuik, Y. A. Erlangga, J. Sci. Comput. 39 (2009), doi:10.1007/s10915-009-9272-6.
    """

    def __init__(self, smoother: Prepared, coarse: Coarse):
        self.smoother, self.coarse = smoother, coarse
        self.dtype = smoother.dtype
        self.nnz = smoother.nnz + coarse.restriction.nnz + coarse.half.nnz + len(coarse.aggregates)

    def apply(self, r: Tensor) -> Tensor:
        """One sweep of the smoother, one coarse solve."""
        z = self.smoother.apply(r)
        return z + self.coarse.solve(self.coarse.restrict(r) - self.coarse.half.product(z))

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
        doublings: how often pairs are paired again; aggregates have about 2^doublings unknowns.

    Reference:
        two-level form as in `TwoLevel`; pairwise aggregation: Y. Notay, SIAM J. Sci. Comput. 34 (2012),
        doi:10.1137/100818509.
    """

    smoother: Preconditioner | None = None
    aggregates: Tensor | None = None
    doublings: int = 4

    def setup(self, operator: LinearOperator) -> TwoLevel:
        """The smoother, and the factors of the coarse matrix.

        Raises:
            ImportError: no aggregates are given and pyamg is not installed.
        """
        a = stored(operator, "Aggregation")
        aggregates = pairwise(a, self.doublings) if self.aggregates is None else self.aggregates
        return TwoLevel((self.smoother or FSAI()).setup(a), Coarse(a.compressed, aggregates))


def pairwise(operator: SparseOperator, doublings: int) -> Tensor:
    """Aggregates (n) int64 of about 2^doublings unknowns, by pyamg.

    Raises:
        ImportError: pyamg is not installed.
    """
    try:
        from pyamg.aggregation.aggregate import pairwise_aggregation
    except ImportError as error:
        raise ImportError("aggregates: to find them takes pyamg: pip install 'sciml-torch[amg]'") from error
    membership = pairwise_aggregation(operator.to_scipy(), matchings=doublings)[0].tocsr()
    found = torch.full((membership.shape[0],), membership.shape[1], dtype=torch.int64)  # what is left alone
    at = torch.from_numpy(np.diff(membership.indptr)) > 0
    found[at] = torch.from_numpy(membership.indices).long()
    found = torch.unique(found, return_inverse=True)[1]
    return found.to(operator.device)
