"""The preconditioned conjugate gradient method for several right-hand sides at once."""

from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sciml.solvers.apart import apart
from sciml.solvers.expect import expect
from sciml.solvers.linear.arguments import as_guess, as_operator, as_rows, check_symmetric
from sciml.solvers.linear.derivatives import no_tangents, recording
from sciml.solvers.linear.operator import FEW, LinearOperator, ShiftedOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, prepare
from sciml.solvers.linear.solution import LinearSolution, LinearStatus, Strict, relative, throw_failed
from sciml.solvers.linear.solve import Inverse, LinearSolver, attach, scaled
from sciml.solvers.linear.sparse import SparseOperator

LOOK = 10  # iterations between two looks at the residuals where a look waits for the device
STILL = 100  # iterations that have to halve the residual where another preconditioner may take over
KEEP = 10  # iterations between two copies of the iterate, to return to from what is not finite
REFRESHES = 3  # times that the iteration may begin again where its own residual has drifted from the true one
LONG = 2**15  # unknowns from which a product of two vectors fills no cache


@apart
def pcg(
    A: Any,
    b: Tensor,
    M: Preconditioner | Prepared | None = None,
    x0: Tensor | None = None,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iter: int = 10_000,
    check_every: int | None = None,
    flexible: bool = False,
    throw: bool = True,
) -> LinearSolution:
    r"""Solve A x = b for a symmetric positive definite A by the preconditioned conjugate gradient method.

    A right-hand side ends where :math:`|b - A x|_2 \le \max(rtol |b|_2, atol)`, which is checked on the true residual;
    those that have ended are frozen while others go on. The device is asked how things stand every `check_every`
    iterations only. A preconditioner of lower precision works inside a solve of higher precision; one that knows a
    fallback hands over to it where it breaks down or a hundred iterations do not halve the residual. The solution is
    differentiable, once, in b and in what A is made of, backward and forward, by one more solve.

    Args:
        A: a `LinearOperator`, or a tensor, sparse or dense, or a sparse matrix of scipy (n, n).
        b: (n), or several right-hand sides as rows (m, n).
        M: the preconditioner, or one prepared for A before; None is the identity.
        x0: first guess, of b's shape; None is 0.
        rtol: residual to reach, relative to b; None is 1e-8, in single precision 1e-5.
        atol: residual that is always good enough.
        max_iter: iterations allowed to each right-hand side, and as many again to a fallback.
        check_every: iterations between two looks at the residuals; None is 1 on a CPU, else 10.
        flexible: the Polak-Ribiere form, for preconditioners that are no fixed linear map.
        throw: whether a right-hand side that was not solved is an error; else its status says so.

    Returns:
        Solutions, statuses and residuals.

    Raises:
        ValueError: shapes that do not fit, a matrix that is not symmetric, options out of range.
        TypeError: dtypes that differ.
        LinearSolveError: some right-hand sides were not solved, and ``throw``; in the backward pass, too.

    Reference:
        M. R. Hestenes, E. Stiefel, J. Res. Nat. Bur. Standards 49 (1952), doi:10.6028/jres.049.044; flexible: Y. Notay,
        SIAM J. Sci. Comput. 22 (2000), doi:10.1137/S1064827599362314.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import Jacobi, pcg
        >>> a = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> solution = pcg(a, torch.tensor([1.0, 2.0]), Jacobi(), rtol=1e-6)
        >>> solution.x, solution.iterations
        (tensor([0.0909, 0.6364]), tensor([2]))
    """
    operator = as_operator(A)
    expect("M", M, Preconditioner | Prepared | None, "a Preconditioner or None")
    rows = as_rows("b", b, operator)
    first = as_guess(x0, b, operator)
    solver = (_Strict if throw else CG)(M, rtol, atol, max_iter, check_every, flexible)
    with torch.no_grad(), no_tangents():
        check_symmetric(operator)
        solver = replace(solver, preconditioner=prepare(solver.preconditioner, operator))  # for the gradient too
        solution = solver.solve(operator, rows.detach(), first.detach())
    if throw:
        throw_failed(solution, max_iter)
    x = solution.x
    if recording():
        x = attach(x, rows - operator.matvec(x), lambda x: operator, solver)
    return replace(solution, x=x.reshape(b.shape))


@dataclass(frozen=True)
class CG(LinearSolver):
    """Preconditioned conjugate gradients as the linear solver of an implicit method; `pcg` says what its options are.

    For some tens of unknowns `Dense` is far quicker.

    Args:
        preconditioner: set up anew for every matrix, unless it is prepared; None is the identity.
        rtol: residual to reach, relative to the right-hand side; None is 1e-8, in single precision 1e-5. Inside a
            march it is at least ten roundings.
        atol: residual that is always good enough.
        max_iter: iterations allowed to each right-hand side.
        check_every: iterations between two looks at the residuals; None is 1 on a CPU, else 10.
        flexible: for preconditioners that are no fixed linear map.
    """

    preconditioner: Preconditioner | Prepared | None = None
    rtol: float | None = None
    atol: float = 0.0
    max_iter: int = 10_000
    check_every: int | None = None
    flexible: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot iterate."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: expected a number from 0 on, got {value}")
        expect("preconditioner", self.preconditioner, Preconditioner | Prepared | None, "a Preconditioner or None")
        for name in ("max_iter", "check_every"):
            value = getattr(self, name)
            expect(name, value, Integral | None, "a whole number")
            if value is not None and not value >= 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")

    def inverse(self, operator: LinearOperator) -> Inverse:
        """Sets the preconditioner up; the gradient comes from one more solve with the same matrix."""
        with torch.no_grad():
            merged = _merged(operator)
            prepared = prepare(self.preconditioner, merged)
        least = 10 * torch.finfo(operator.dtype).eps  # a marching solver cannot choose its tolerance by the dtype
        again = replace(self, preconditioner=prepared, rtol=max(relative(self.rtol, operator.dtype), least))

        def solve(b: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), no_tangents():
                solution = again.solve(merged, b.detach(), torch.zeros_like(b))
            # what is not finite is not for a solver to explain
            strange = solution.status == LinearStatus.NON_FINITE.value
            found = solution.converged | strange
            x = torch.where(strange[:, None], torch.nan, solution.x)
            return attach(x, b - operator.matvec(x), lambda x: operator, again) if recording() else x, found

        return solve

    def near(self, operator: LinearOperator) -> "CG":
        """With the preconditioner set up for this matrix; for one that differs in an entry it is set up anew.

        Two levels made for one matrix may fail on another, however near it is. What is set up lasts as long as the
        gradients that it serves.
        """
        m = self.preconditioner
        if not isinstance(m, Preconditioner):
            return self
        with torch.no_grad():
            merged = _merged(operator)
            return replace(self, preconditioner=_Made(m, merged, m.setup(merged)))

    def adjoint(self, operator: LinearOperator) -> Inverse:
        """The matrices are symmetric."""
        return self.inverse(operator)

    def solve(self, operator: LinearOperator, b: Tensor, x: Tensor) -> LinearSolution:
        """Solve for the rows of b (m, n) from the guesses x, without gradients."""
        check_symmetric(operator)
        b, power = scaled(b)
        x = torch.where((b == 0).all(-1, keepdim=True), 0, x / power)
        prepared = prepare(self.preconditioner, operator)
        kind = _Alone if len(b) == 1 and b.device.type == "cpu" else _Run
        run = kind(self, operator, prepared, b, x, self.atol / power)
        run.finish()
        fallback = None if prepared is None else prepared.fallback
        left = (run.status() != LinearStatus.CONVERGED.value) & run.size.isfinite()  # what is not is beyond help
        fell_back = left if fallback is not None else torch.zeros_like(left)
        if fallback is not None and bool(left.any()):
            run.begin(fallback.setup(operator), left)
            run.finish()
        flat = (run.status(), run.iterations, power * run.size)
        status, iterations, size = (value.squeeze(-1) for value in flat)
        history = (power * torch.cat(run.history, -1)).mT
        return LinearSolution(power * run.x, status, iterations, size, history, fell_back.squeeze(-1))


class _Made(Preconditioner):
    """One that is set up for a matrix already."""

    def __init__(self, preconditioner: Preconditioner, operator: LinearOperator, prepared: Prepared):
        self.preconditioner, self.operator, self.prepared = preconditioner, operator, prepared
        self.fallback = preconditioner.fallback

    def setup(self, operator: LinearOperator) -> Prepared:
        """What is known, where the matrix is the same."""
        return self.prepared if _same(operator, self.operator) else self.preconditioner.setup(operator)


class _Strict(Strict, CG):
    """Refuses gradients that were not found."""


class _Run:
    """The iteration on rows (m, n); what belongs to a row is (m, 1)."""

    def __init__(
        self, options: CG, operator: LinearOperator, prepared: Prepared | None, b: Tensor, x: Tensor, atol: Tensor
    ):
        self.options, self.operator, self.b, self.x = options, operator, b, x
        self.every = options.check_every or (1 if b.device.type == "cpu" else LOOK)
        self.target = torch.maximum(relative(options.rtol, b.dtype) * _norm(b), atol)
        self.iterations = torch.zeros_like(self.target, dtype=torch.int64)
        self.worst = torch.full_like(self.target, torch.inf)  # least of the products that must be positive
        self.history: list[Tensor] = []
        self.begin(prepared, torch.ones_like(self.target, dtype=torch.bool))

    def begin(self, prepared: Prepared | None, rows: Tensor) -> None:
        """Take the preconditioner for the given rows, from where they stand; the others rest."""
        self.prepared = prepared
        self.doubted = prepared is not None and prepared.fallback is not None
        if prepared is not None:
            start = prepared.start(self.operator, self.b, self.x)
            self.x = torch.where(rows & start.isfinite().all(-1, keepdim=True), start, self.x)
        self.r = self.b - self.operator.matvec(self.x)
        self.size = _norm(self.r)
        self.history.append(self.size)
        self.running = rows & (self.size > self.target)
        self.worst = torch.where(rows, torch.inf, self.worst)

    def finish(self) -> None:
        """Iterate to the end, and on where the true residual is larger than the iteration's own."""
        budget, last = self.options.max_iter, torch.full_like(self.size, torch.inf)
        for _ in range(1 + REFRESHES):
            budget -= self._iterate(budget)
            ended = self.size <= self.target
            self.r = self.b - self.operator.matvec(self.x)
            self.size = _norm(self.r)
            drifted = ended & (self.size > self.target)
            self.running, last = drifted & (2 * self.size < last), self.size
            self.worst = torch.where(drifted & ~self.running, 0, self.worst)
            if budget <= 0 or not bool(self.running.any()):
                break

    def status(self) -> Tensor:
        """How every row stands (m, 1)."""
        status = torch.where(self.worst > 0, LinearStatus.MAX_ITER.value, LinearStatus.BREAKDOWN.value)
        status = torch.where(self.size <= self.target, LinearStatus.CONVERGED.value, status)
        strange = self.worst.isnan() | ~self.size.isfinite()
        return torch.where(strange, LinearStatus.NON_FINITE.value, status)

    def _iterate(self, budget: int) -> int:
        """At most so many iterations from x and its residual; how many there were."""
        x, r, running, size = self.x.clone(), self.r, self.running, self.size
        if budget <= 0 or not bool(running.any()):
            return 0
        kept, z = self.x, self._precondition(r)
        p, rz = z.clone(), _dot(r, z)
        for k in range(1, budget + 1):
            q = self.operator.matvec(p)
            pq = _dot(p, q)
            least = torch.addcmul(torch.minimum(pq, rz), pq, rz, value=0)  # NaN where one is infinite
            self.worst = torch.where(running, torch.minimum(self.worst, least), self.worst)
            running = running & (least > 0)
            alpha = torch.where(running, rz / pq, 0)
            x.addcmul_(p, alpha)
            before = r.clone() if self.options.flexible else None
            r.addcmul_(q, alpha, value=-1)
            self.iterations += running
            size = torch.linalg.vector_norm(r, dim=-1, keepdim=True)
            self.history.append(size)
            running = running & (size > self.target)
            if k % KEEP == 0:
                kept = torch.where(size.isfinite(), x, kept)
            if self.doubted and k % STILL == 0:
                running = running & _halved(torch.stack(self.history))
            if k % self.every == 0 and not bool(running.any()):
                break
            z = self._precondition(r)
            last, new = rz, _dot(r, z)
            beta = new if before is None else new - _dot(before, z)
            beta = torch.where(running, beta / last, 0)
            p = torch.addcmul(z, p, beta, out=p)
            rz = torch.where(running, new, last)
        self.x, self.r, self.size = torch.where(size.isfinite(), x, kept), r, size
        return k

    def _precondition(self, r: Tensor) -> Tensor:
        if self.prepared is None:
            return r
        return self.prepared.apply(r.to(self.prepared.dtype)).to(r.dtype)


class _Alone(_Run):
    """The iteration on one row on a host: numbers take a fraction of the time of tensors of one entry."""

    def _iterate(self, budget: int) -> int:
        if budget <= 0 or not self.running.item():
            return 0
        x, r, target = self.x[0].clone(), self.r[0], self.target.item()
        kept, z = self.x[0], self._precondition(self.r)[0]
        p, rz, worst = z.clone(), torch.dot(r, z).item(), self.worst.item()
        sizes, most = list[float](), torch.finfo(x.dtype).max
        while len(sizes) < budget:
            q = self.operator.matvec(p[None])[0]
            pq = torch.dot(p, q).item()
            least = min(pq, rz) if isfinite(pq) and isfinite(rz) else nan
            worst = min(worst, least) if least == least else nan
            alpha = rz / pq if least > 0 else 0.0
            alpha = alpha if alpha <= most else inf  # as in tensors
            x.add_(p, alpha=alpha)
            before = r.clone() if self.options.flexible else None
            r.add_(q, alpha=-alpha)
            sizes.append(torch.linalg.vector_norm(r).item())
            if not (least > 0 and sizes[-1] > target):
                break
            if len(sizes) % KEEP == 0 and isfinite(sizes[-1]):
                kept = x.clone()
            if self.doubted and len(sizes) % STILL == 0 and not _halved(torch.tensor([self.size.item(), *sizes])):
                break
            z = self._precondition(self.r)[0]
            last, rz = rz, torch.dot(r, z).item()
            beta = (rz if before is None else rz - torch.dot(before, z).item()) / last
            torch.add(z, p, alpha=beta, out=p)
        self.iterations += len(sizes) - (not least > 0)  # a step that was not taken
        self.worst.fill_(worst)
        self.history.append(self.size.new_tensor([sizes]))
        self.x, self.size = (x if isfinite(sizes[-1]) else kept)[None], self.history[-1][:, -1:]
        return len(sizes)


def _merged(operator: LinearOperator) -> LinearOperator:
    """One sparse matrix in place of the sum of two, made once."""
    if not isinstance(operator, ShiftedOperator):
        return operator
    one = isinstance(operator.shift, float) or operator.shift.numel() == 1
    stored = isinstance(operator.jacobian, SparseOperator) and isinstance(operator.mass, SparseOperator | None)
    if not (one and stored):
        return operator
    if "_merged" not in operator.__dict__:
        operator.__dict__["_merged"] = operator.sparse()
    return operator.__dict__["_merged"]


def _same(a: LinearOperator, b: LinearOperator) -> bool:
    """Whether two matrices are known to be equal."""
    if a is b or not (isinstance(a, SparseOperator) and isinstance(b, SparseOperator)):
        return a is b
    c, d = a.compressed, b.compressed
    pairs = ((c.values.detach(), d.values.detach()), (c.col, d.col), (c.crow, d.crow))
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def _halved(sizes: Tensor) -> Tensor:
    """Whether the last iterations brought the least of the residuals (k, ...) down to half."""
    return sizes[-STILL:].amin(0) < sizes[:-STILL].amin(0) / 2


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The products of rows (m, 1)."""
    if a.device.type == "cpu" and len(a) == 1:
        return torch.mm(a, b.mT)
    if 0 < len(a) <= FEW and a.shape[1] > LONG:  # a pass over memory less than vecdot
        return torch.stack([torch.dot(x, y) for x, y in zip(a, b, strict=True)])[:, None]
    return torch.linalg.vecdot(a, b)[:, None]


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)
