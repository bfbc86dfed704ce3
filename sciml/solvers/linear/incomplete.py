"""Incomplete factors and relaxation: IC(0), MIC(0) and SSOR."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.solvers.linear import kernels, triangular_kernels
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, finite, positive, stored
from sciml.solvers.linear.sparse import SparseOperator
from sciml.solvers.linear.triangular import Lower

SHIFTS = 12  # times that a failing factorisation may raise its shift
FIRST = 1e-3  # the first shift, relative to the diagonal


class Factored(Prepared):
    """M = (L L^T)^-1 with a sparse lower triangular L.

    Args:
        lower: L.
        shift: what was added to the diagonal, relative to it, so that the factor exists.
    """

    def __init__(self, lower: Lower, shift: float = 0.0):
        self.lower, self.shift = lower, shift
        self.nnz, self.dtype = 2 * lower.compressed.nnz, lower.compressed.values.dtype

    def apply(self, r: Tensor) -> Tensor:
        """Two triangular solves."""
        return self.lower.solve_twice(r)

    def inverse(self, x: Tensor) -> Tensor:
        """What it is the solution for: L L^T x for vectors (m, n)."""
        lower = self.lower.compressed
        return lower.product(lower.transpose().product(x))


def lower_of(a: SparseOperator, name: str) -> Lower:
    """A's lower triangle, with a positive diagonal, for the preconditioner of this name.

    Raises:
        ValueError: an entry of the diagonal is not positive.
    """
    try:
        lower = Lower.of(a.compressed)
    except ValueError:  # an entry is not even stored
        positive(a.diagonal(), name)
        raise
    positive(lower.diagonal(), name)
    return lower


@dataclass(frozen=True)
class IncompleteCholesky(Preconditioner):
    """The Cholesky factor restricted to the pattern of A's lower triangle, IC(0), and its modified form MIC(0).

    A factor that meets a pivot that is not positive is begun anew with a larger diagonal.

    Args:
        modified: share of what falls outside the pattern that is added to the diagonal, in [0, 1]; 0 is IC(0), 1 keeps
            row sums exactly; a little less than 1 is safer.
        shift: relative increase of the diagonal to begin with.

    Reference:
        J. A. Meijerink, H. A. van der Vorst, Math. Comp. 31 (1977), doi:10.1090/S0025-5718-1977-0438681-4; modified:
        I. Gustafsson, BIT 18 (1978), doi:10.1007/BF01931691; shifts: T. A. Manteuffel, Math. Comp. 34 (1980).
    """

    modified: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares and shifts that are none."""
        if not 0 <= self.modified <= 1:
            raise ValueError(f"modified: expected a share in [0, 1], got {self.modified}")
        if not self.shift >= 0:
            raise ValueError(f"shift: expected a number from 0 on, got {self.shift}")

    def setup(self, operator: LinearOperator) -> Prepared:
        """The factor.

        Raises:
            ValueError: A's diagonal is not positive, or no shift up to some units helps: A is far from definite.
            ImportError: numba is not installed.
        """
        return self.factor(lower_of(stored(operator, "IncompleteCholesky"), "IncompleteCholesky"))

    def factor(self, lower: Lower) -> Factored:
        """That of A by its lower triangle, whose diagonal is positive.

        Raises:
            ValueError: no shift up to some units helps: A is far from definite.
            ImportError: numba is not installed.
        """
        c, shift = lower.compressed, self.shift
        rows, columns = [x.cpu() for x in (c.crow, c.col)], [x.cpu() for x in c.turned]
        for _ in range(SHIFTS):
            values = c.values.detach().cpu().clone()
            bad = kernels.call(triangular_kernels.factor, *rows, values, *columns, self.modified, shift)
            if bad < 0 and finite(values):
                return Factored(lower.with_values(values.to(c.values.device)), shift)
            shift = 2 * shift if shift else FIRST
        raise ValueError(f"A: no incomplete factor even with {shift / 2:.3g} times the diagonal added; is A definite?")


@dataclass(frozen=True)
class SSOR(Preconditioner):
    """Symmetric successive over-relaxation: M^-1 = (D + w L) D^-1 (D + w L^T) / (w (2 - w)), A = L + D + L^T.

    Args:
        omega: w, in (0, 2); 1 is symmetric Gauss-Seidel.

    Reference:
        Y. Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., 2003, section 4.1.
    """

    omega: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a relaxation that diverges."""
        if not 0 < self.omega < 2:
            raise ValueError(f"omega: expected a number in (0, 2), got {self.omega}")

    def setup(self, operator: LinearOperator) -> Prepared:
        """(D + w L) D^-1/2 / sqrt(w (2 - w)), as a factor."""
        lower = lower_of(stored(operator, "SSOR"), "SSOR")
        c, w, diagonal = lower.compressed, self.omega, lower.diagonal()
        col = c.col.long()
        values = torch.where(c.row == col, c.values.detach(), w * c.values.detach())
        return Factored(lower.with_values(values / (diagonal[col] * (w * (2 - w))).sqrt()))
