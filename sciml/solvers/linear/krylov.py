"""Krylov methods: solutions from products with a matrix alone."""

from dataclasses import dataclass, replace
from math import ceil, inf
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.apart import apart
from sciml.solvers.expect import expect
from sciml.solvers.linear import solution
from sciml.solvers.linear.arguments import as_guess, as_operator, as_rows
from sciml.solvers.linear.derivatives import no_tangents, recording
from sciml.solvers.linear.early import over, some
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, prepare
from sciml.solvers.linear.solution import LinearSolution, LinearStatus, Strict, relative, throw_failed
from sciml.solvers.linear.solve import Inverse, LinearSolver, attach, scaled

STILL = 1e-6  # share of a residual that a cycle has to take away
CAUSES = {
    **solution.CAUSES,
    LinearStatus.MAX_ITER: "max_iter={max_iter} products were used up; raise max_iter or restart, loosen rtol or take "
    "a better preconditioner",
    LinearStatus.BREAKDOWN: "a whole cycle brought nothing: raise restart, which bounds it; or A is singular, or rtol "
    "lies below what its condition allows in this dtype",
}


@apart
def gmres(
    A: Any,
    b: Tensor,
    M: Preconditioner | Prepared | None = None,
    x0: Tensor | None = None,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    restart: int = 32,
    max_iter: int = 10_000,
    throw: bool = True,
) -> LinearSolution:
    r"""Solve A x = b for any square A by restarted GMRES, preconditioned from the right.

    A right-hand side ends where :math:`|b - A x|_2 \le \max(rtol |b|_2, atol)`, which is checked on the true residual;
    those that have ended are frozen while others go on. The solution is differentiable, once, in b and in what A is
    made of, backward (by one more solve, with the transposed matrix) and forward.

    Args:
        A: a `LinearOperator`, or a tensor, sparse or dense, or a sparse matrix of scipy (n, n).
        b: (n), or several right-hand sides as rows (m, n).
        M: the preconditioner, or one prepared before; None is the identity. For gradients its transpose has to suit
            A's, as that of a symmetric one does.
        x0: first guess, of b's shape; None is 0.
        rtol: residual to reach, relative to b; None is 1e-8, in single precision 1e-5.
        atol: residual that is always good enough.
        restart: products before the basis, so many vectors for each right-hand side, is thrown away.
        max_iter: products allowed, and as many again to a fallback.
        throw: whether a right-hand side that was not solved is an error; else its status says so, `BREAKDOWN` where a
            whole cycle brought nothing.

    Returns:
        Solutions, statuses and residuals.

    Raises:
        ValueError: shapes that do not fit, options out of range.
        TypeError: dtypes that differ.
        LinearSolveError: some right-hand sides were not solved, and ``throw``; in the backward pass, too.

    Reference:
        as of `GMRES`, which solves the systems of implicit steps.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import gmres
        >>> a = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])
        >>> gmres(a, torch.tensor([4.0, 1.0])).x.round(decimals=4)
        tensor([1., 2.])
    """
    operator = as_operator(A)
    expect("M", M, Preconditioner | Prepared | None, "a Preconditioner or None")
    rows, first = as_rows("b", b, operator), as_guess(x0, b, operator)
    rtol = relative(rtol, operator.dtype)
    options = {"rtol": (rtol, 0), "atol": (atol, 0), "restart": (restart, 1), "max_iter": (max_iter, 1)}
    for name, (value, least) in options.items():
        expect(name, value, Integral if least else Real, "a whole number" if least else "a number")
        if not value >= least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    with torch.no_grad(), no_tangents():
        prepared = prepare(M, operator)
        small, power = scaled(rows.detach())
        first = torch.where((small == 0).all(-1, keepdim=True), 0, first.detach() / power)
        target = torch.maximum(rtol * torch.linalg.vector_norm(small, dim=-1), atol / power[:, 0])
        found = _finished(operator, prepared, small, first, target, restart, max_iter)
        sizes = {"residual": power[:, 0] * found.residual, "history": power[:, 0] * found.history}
        found = replace(found, x=power * found.x, **sizes)
    if throw:
        throw_failed(found, max_iter, CAUSES)
    x = found.x
    if recording():
        kind = _StrictGMRES if throw else GMRES
        again = kind(max(rtol, torch.finfo(x.dtype).eps), restart, ceil(max_iter / restart), prepared)
        x = attach(x, rows - operator.matvec(x), lambda x: operator, again)
    return replace(found, x=x.reshape(b.shape))


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
            again = self.near(operator)

        def solve(b: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), no_tangents():
                small, power = scaled(b)
                x, found = again._solve(operator, small)
                x = power * x
            if not recording():
                return x, found
            return attach(x, b - operator.matvec(x), lambda x: operator, again), found

        return solve

    def near(self, operator: LinearOperator) -> "GMRES":
        """With the preconditioner set up for this matrix."""
        if not isinstance(self.preconditioner, Preconditioner):
            return self
        return replace(self, preconditioner=prepare(self.preconditioner, operator))

    def _solve(self, operator: LinearOperator, b: Tensor) -> tuple[Tensor, Tensor]:
        prepared: Any = self.preconditioner
        target = max(self.rtol, 10 * torch.finfo(b.dtype).eps) * torch.linalg.vector_norm(b, dim=-1)  # (m)
        x, size = self._cycles(operator, prepared, b, target)
        found = size <= 4 * target  # the residual itself loses digits to cancellation
        fallback = None if prepared is None else prepared.fallback
        if fallback is not None and some(~found & b.isfinite().all(-1)):
            other, size = self._cycles(operator, fallback.setup(operator), b, target)
            x, found = torch.where(found[:, None], x, other), found | (size <= 4 * target)
        return x, found | ~size.isfinite()  # what is not finite is not for a solver to explain

    def _cycles(
        self, operator: LinearOperator, prepared: Prepared | None, b: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Solutions (m, n) and the norms of their residuals (m)."""
        x, r = torch.zeros_like(b), b
        for cycle in range(self.cycles):
            size = torch.linalg.vector_norm(r, dim=-1)
            if cycle and over(size <= target):
                break
            x = x + _cycle(operator, prepared, r, size, target, self.restart).change
            r = b - operator.matvec(x)
        return x, torch.linalg.vector_norm(r, dim=-1)


class _StrictGMRES(Strict, GMRES):
    """Refuses gradients that were not found."""


def _finished(
    operator: LinearOperator, prepared: Prepared | None, b: Tensor, x: Tensor, target: Tensor, restart: int, most: int
) -> LinearSolution:
    """What `_restarted` finds, and where that is no solution what the preconditioner's fallback finds from there."""
    first = _restarted(operator, prepared, b, x, target, restart, most)
    if prepared is None or prepared.fallback is None:
        return first
    left = ~first.converged & torch.linalg.vector_norm(b - operator.matvec(first.x), dim=-1).isfinite()
    if not bool(left.any()):
        return first
    goal = torch.where(left, target, inf)  # the others rest
    second = _restarted(operator, prepared.fallback.setup(operator), b, first.x, goal, restart, most)
    return LinearSolution(
        second.x,
        torch.where(left, second.status, first.status),
        first.iterations + second.iterations,
        torch.where(left, second.residual, first.residual),
        torch.cat([first.history, torch.where(left, second.history, first.history[-1])]),
        left,
    )


def _restarted(
    operator: LinearOperator, prepared: Prepared | None, b: Tensor, x: Tensor, target: Tensor, restart: int, most: int
) -> LinearSolution:
    """Cycles until the true residuals are at their targets (m), stand still, or ``most`` products were taken."""
    r = b - operator.matvec(x)
    size = torch.linalg.vector_norm(r, dim=-1)
    running, stuck, history, iterations = size > target, size > inf, [size], torch.zeros_like(size, dtype=torch.int64)
    while most > 0 and bool(running.any()):
        found = _cycle(operator, prepared, r, size, torch.where(running, target, inf), min(restart, most))
        new = x + found.change
        r = b - operator.matvec(new)
        before, size = size, torch.where(running, torch.linalg.vector_norm(r, dim=-1), size)
        x = torch.where((running & size.isfinite())[:, None], new, x)
        for active, own in zip(found.active, found.sizes, strict=True):
            iterations += active
            history.append(torch.where(active, own, history[-1]))
        running = running & (size > target)
        whole = most >= restart or most >= x.shape[-1]
        stuck |= running & (size >= (1 - STILL) * before) & whole
        running, most = running & ~stuck, most - len(found.sizes)
    status = torch.where(size <= target, LinearStatus.CONVERGED.value, LinearStatus.MAX_ITER.value)
    status = torch.where(stuck, LinearStatus.BREAKDOWN.value, status)
    status = torch.where(size.isfinite(), status, LinearStatus.NON_FINITE.value)
    return LinearSolution(x, status, iterations, size, torch.stack(history), torch.zeros_like(stuck))


def _applied(prepared: Prepared | None, x: Tensor) -> Tensor:
    """M x in the precision of x."""
    return x if prepared is None else prepared.apply(x.to(prepared.dtype)).to(x.dtype)


class _Cycle(NamedTuple):
    change: Tensor  # of the solutions (m, n)
    active: list[Tensor]  # which of them (m) each product served
    sizes: list[Tensor]  # of the residuals (m) after it


def _cycle(
    operator: LinearOperator, prepared: Prepared | None, r: Tensor, size: Tensor, target: Tensor, most: int
) -> _Cycle:
    """One cycle on A M from the residuals r (m, n) of the given size (m)."""
    basis = [_quotient(r, size)]
    rest, columns, rotations, active, sizes = [size], [], [], [], []
    for j in range(min(most, r.shape[-1])):
        active.append(rest[j].abs() > target)
        w, column = _orthogonal(operator.matvec(_applied(prepared, basis[j])), basis)
        length = torch.linalg.vector_norm(w, dim=-1)
        basis.append(_quotient(w, length))
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        turn = _rotation(column[j], length)
        rotations.append(turn)
        column[j] = turn.c * column[j] + turn.s * length
        columns.append(column)
        rest[j:] = [turn.c * rest[j], -turn.s * rest[j]]
        sizes.append(rest[j + 1].abs())
        if over(sizes[-1] <= target):
            break
    weights: list[Tensor] = []  # from the last one on
    for i in reversed(range(len(columns))):
        total = rest[i]
        for k, weight in enumerate(reversed(weights), i + 1):
            total = total - columns[k][i] * weight
        weights.append(torch.where(active[i], _quotient(total, columns[i][i]), 0))
    change = sum((a[:, None] * v for a, v in zip(reversed(weights), basis, strict=False)), torch.zeros_like(r))
    return _Cycle(_applied(prepared, change), active, sizes)


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
