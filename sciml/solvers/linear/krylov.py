"""Krylov methods: solutions from products with a matrix alone."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sciml.solvers.linear.derivatives import no_tangents, recording
from sciml.solvers.linear.early import over
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared
from sciml.solvers.linear.solve import Inverse, LinearSolver, attach, scaled


@dataclass(frozen=True)
class GMRES(LinearSolver):
    """Restarted GMRES on every matrix of a batch at once, each with its own stopping.

    The number of products is bounded by restart * cycles; in a compiled program it is just that, and what is done after
    a system's own end changes nothing.

    Args:
        rtol: residual to reach, relative to the right-hand side; at least ten roundings.
        restart: products before the basis is thrown away.
        cycles: how often that may happen.
        preconditioner: M, set up anew for every matrix unless it is prepared; the iteration is on A M, from the right,
            so that residuals stay those of A. Its transpose has to suit A's, as that of a symmetric one does.

    Reference:
        Y. Saad, M. H. Schultz, GMRES, SIAM J. Sci. Stat. Comput. 7 (1986), doi:10.1137/0907058.
    """

    rtol: float = 1e-8
    restart: int = 32
    cycles: int = 4
    preconditioner: Preconditioner | Prepared | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot iterate."""
        for name in ("rtol", "restart", "cycles"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")

    def inverse(self, operator: LinearOperator) -> Inverse:
        """Sets the preconditioner up; the gradient comes from one solve with the transposed matrices."""
        with torch.no_grad():
            m = self.preconditioner
            prepared = m.setup(operator) if isinstance(m, Preconditioner) else m
            iterated = operator if prepared is None else _Product(operator, prepared)

        def solve(b: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), no_tangents():
                small, power = scaled(b)
                x, found = self._solve(iterated, small)
                x = power * (x if prepared is None else prepared.apply(x.to(prepared.dtype)).to(x.dtype))
            if not recording():
                return x, found
            return attach(x, b - operator.matvec(x), lambda x: operator, self), found

        return solve

    def _solve(self, operator: LinearOperator, b: Tensor) -> tuple[Tensor, Tensor]:
        target = max(self.rtol, 10 * torch.finfo(b.dtype).eps) * torch.linalg.vector_norm(b, dim=-1)  # (m)
        x, r = torch.zeros_like(b), b
        for cycle in range(self.cycles):
            size = torch.linalg.vector_norm(r, dim=-1)
            if cycle and over(size <= target):
                break
            x = x + self._cycle(operator, r, size, target)
            r = b - operator.matvec(x)
        size = torch.linalg.vector_norm(r, dim=-1)
        # the residual itself loses digits to cancellation; what is not finite is not for a solver to explain
        return x, (size <= 4 * target) | ~size.isfinite()

    def _cycle(self, operator: LinearOperator, r: Tensor, size: Tensor, target: Tensor) -> Tensor:
        """The correction of one cycle, from the residuals r (m, n) of the given size (m)."""
        basis = [_quotient(r, size)]
        rest, columns, rotations, active = [size], [], [], []
        for j in range(min(self.restart, r.shape[-1])):
            active.append(rest[j].abs() > target)
            w, column = _orthogonal(operator.matvec(basis[j]), basis)
            length = torch.linalg.vector_norm(w, dim=-1)
            basis.append(_quotient(w, length))
            for i, (c, s) in enumerate(rotations):
                column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
            turn = _rotation(column[j], length)
            rotations.append(turn)
            column[j] = turn.c * column[j] + turn.s * length
            columns.append(column)
            rest[j:] = [turn.c * rest[j], -turn.s * rest[j]]
            if over(rest[j + 1].abs() <= target):
                break
        weights: list[Tensor] = []  # from the last one on
        for i in reversed(range(len(columns))):
            total = rest[i]
            for k, weight in enumerate(reversed(weights), i + 1):
                total = total - columns[k][i] * weight
            weights.append(torch.where(active[i], _quotient(total, columns[i][i]), 0))
        return sum((a[:, None] * v for a, v in zip(reversed(weights), basis, strict=False)), torch.zeros_like(r))


class _Product(LinearOperator):
    """A M."""

    def __init__(self, operator: LinearOperator, prepared: Prepared):
        super().__init__(operator.shape, operator.dtype, operator.device)
        self.operator, self.prepared = operator, prepared

    def matvec(self, x: Tensor) -> Tensor:
        return self.operator.matvec(self.prepared.apply(x.to(self.prepared.dtype)).to(x.dtype))

    def transpose(self) -> LinearOperator:
        raise NotImplementedError("the iteration does not ask for the transposed product")


class _Turn(NamedTuple):
    c: Tensor
    s: Tensor


def _rotation(a: Tensor, b: Tensor) -> _Turn:
    """What turns (a, b) to (length, 0)."""
    length = torch.hypot(a, b)
    return _Turn(torch.where(length == 0, 1, _quotient(a, length)), _quotient(b, length))


def _orthogonal(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What is left of w without its parts along the basis, by modified Gram-Schmidt, and those parts."""
    column = []
    for v in basis:
        part = (v * w).sum(-1)
        w = w - part[:, None] * v
        column.append(part)
    return w, column


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """The quotient, 0 where b is; b is (m)."""
    b = b.reshape(b.shape + (1,) * (a.ndim - 1))
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))
