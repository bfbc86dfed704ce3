"""Successive over-relaxation."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import diags, identity
from scipy.sparse.linalg import eigsh
from torch import Tensor

from sciml.solvers.apart import apart
from sciml.solvers.linear import kernels
from sciml.solvers.linear.arguments import as_guess, as_operator, as_rows
from sciml.solvers.linear.conjugate_gradient import LOOK
from sciml.solvers.linear.preconditioner import positive, stored
from sciml.solvers.linear.solution import LinearSolution, LinearStatus, throw_failed
from sciml.solvers.linear.solve import scaled
from sciml.solvers.linear.sparse import SparseOperator
from sciml.solvers.linear.triangular import Lower
from sciml.solvers.linear.unrolled import young

CHUNK = 256  # sweeps between two looks at where the iteration stands


@apart
def sor(
    A: Any,
    b: Tensor,
    omega: float,
    x0: Tensor | None = None,
    *,
    rtol: float = 1e-8,
    atol: float = 0.0,
    max_iter: int = 10_000,
    throw: bool = True,
) -> LinearSolution:
    r"""Solve A x = b by successive over-relaxation: x + w (D + w L)^-1 (b - A x) in place of x, A = L + D + U.

    It converges for every symmetric positive definite A and w in (0, 2), for others it may. A right-hand side ends
    where :math:`|b - A x|_2 \le \max(rtol |b|_2, atol)`. No gradient flows through the iteration.

    Args:
        A: a `SparseOperator`, or a sparse or dense tensor (n, n), with a positive diagonal.
        b: (n), or several right-hand sides as rows (m, n).
        omega: w, in (0, 2); 1 is the Gauss-Seidel method.
        x0: first guess, of b's shape; None is 0.
        rtol: residual to reach, relative to b.
        atol: residual that is always good enough.
        max_iter: sweeps allowed.
        throw: whether a right-hand side that was not solved is an error; else its status says so.

    Returns:
        Solutions, statuses and residuals; what became infinite has a solution from some sweeps before.

    Raises:
        ValueError: shapes that do not fit, options out of range, a diagonal that is not positive.
        TypeError: dtypes that differ, a matrix whose entries are not known.
        LinearSolveError: some right-hand sides were not solved, and ``throw``.

    Reference:
        D. M. Young, Trans. Amer. Math. Soc. 76 (1954), doi:10.1090/S0002-9947-1954-0059635-7.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import sor
        >>> a = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> sor(a, torch.tensor([1.0, 2.0]), omega=1.0, rtol=1e-6).x
        tensor([0.0909, 0.6364])
    """
    _check(omega, rtol, atol, max_iter)
    operator = sparse(A)
    with torch.no_grad():
        rows = as_rows("b", b, operator).detach()
        x = as_guess(x0, b, operator).detach()
        rows, power = scaled(rows)
        x = x / power
        target = torch.maximum(rtol * torch.linalg.vector_norm(rows, dim=-1), atol / power[:, 0])
        x = torch.where((rows == 0).all(-1, keepdim=True), 0, x).contiguous()
        relax, histories = _Sweeps(operator, rows.contiguous(), omega, target), []
        for begun in range(0, max_iter, CHUNK):
            new = x.clone()
            history = relax(new, min(CHUNK, max_iter - begun))
            x = torch.where(new.isfinite().all(-1, keepdim=True), new, x)
            histories.append(history if not histories else history[:, 1:])
            if not bool((history[:, -1].isfinite() & (history[:, -1] > target)).any()):
                break
    history = torch.cat(histories, 1)
    size = history[:, -1]
    x = power * x
    status = torch.where(size <= target, LinearStatus.CONVERGED.value, LinearStatus.MAX_ITER.value)
    status = torch.where(size.isfinite(), status, LinearStatus.NON_FINITE.value)
    iterations = ((history > target[:, None]) & history.isfinite())[:, :-1].sum(1)
    sizes = (power[:, 0] * size, power * history)
    solution = LinearSolution(x.reshape(b.shape), status, iterations, *sizes, torch.zeros_like(status) > 0)
    if throw:
        throw_failed(solution, max_iter)
    return solution


class _Sweeps:
    """Sweeps on rows (m, n), by the compiled loop where there is one, else by triangular solves."""

    def __init__(self, operator: SparseOperator, b: Tensor, omega: float, target: Tensor):
        self.operator, self.b, self.omega, self.target = operator, b, omega, target
        self.diagonal = operator.diagonal()[0].detach()
        positive(self.diagonal[None], "SOR")
        self.compiled = b.device.type == "cpu" and kernels.available()
        if not self.compiled:
            lower = Lower.of(operator.compressed)
            c = lower.compressed
            values = torch.where(c.row == c.col, c.values, omega * c.values).detach()
            self.lower = lower.with_values(values / omega)

    def __call__(self, x: Tensor, most: int) -> Tensor:
        """At most so many sweeps on x, in its place; norms (m, most + 1) of the residuals, from that before on."""
        if self.compiled:
            c, norms = self.operator.compressed, x.new_empty(len(x), most + 1)
            arguments = (c.crow, c.col, c.values, self.diagonal, self.b, x, self.omega, self.target, norms)
            kernels.call(kernels.sweeps, *arguments)
            return norms
        sizes: list[Tensor] = []
        while len(sizes) <= most:
            r = self.b - self.operator.matvec(x)
            sizes.append(torch.linalg.vector_norm(r, dim=-1))
            running = (sizes[-1] > self.target) & sizes[-1].isfinite()
            if len(sizes) % LOOK == 0 and not bool(running.any()):
                break
            if len(sizes) <= most:
                x += torch.where(running[:, None], self.lower.solve(r), 0)
        return torch.stack(sizes, 1)


def young_omega(A: Any) -> float:
    r"""The w with which successive over-relaxation converges fastest, :math:`2 / (1 + \sqrt{1 - \mu^2})`.

    That is so for consistently ordered positive definite matrices, as those of diffusion on grids. The spectral radius
    :math:`\mu` of Jacobi's iteration takes a Lanczos iteration, which may cost more than the solve.

    Args:
        A: a `SparseOperator`, or a sparse or dense tensor (n, n), symmetric positive definite.

    Returns:
        w, in [1, 2); nearly 2 where Jacobi's iteration diverges.

    Reference:
        D. M. Young, Trans. Amer. Math. Soc. 76 (1954), doi:10.1090/S0002-9947-1954-0059635-7.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import young_omega
        >>> a = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]])
        >>> round(young_omega(a), 6)  # 1 + tan(pi / 8)^2
        1.171573
    """
    operator = sparse(A)
    positive(operator.diagonal(), "Young's formula")
    a = operator.to_scipy().astype(np.float64)
    scale = diags(1 / np.sqrt(a.diagonal()))
    jacobi = identity(a.shape[0]) - scale @ a @ scale
    if a.shape[0] < 10:  # too few for Lanczos
        mu = np.abs(np.linalg.eigvalsh(jacobi.toarray())).max()
    else:
        mu = abs(eigsh(jacobi, 1, v0=np.sin(np.arange(1.0, a.shape[0] + 1)), tol=1e-6)[0][0])
    return float(young(torch.tensor(float(mu), dtype=torch.float64)))


def sparse(A: Any) -> SparseOperator:
    """The matrix in compressed rows."""
    return stored(as_operator(A), "SOR")


def _check(omega: float, rtol: float, atol: float, max_iter: int) -> None:
    if not 0 < omega < 2:
        raise ValueError(f"omega: expected a number in (0, 2), got {omega}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not value >= 0:
            raise ValueError(f"{name}: expected a number from 0 on, got {value}")
    if not max_iter >= 1:
        raise ValueError(f"max_iter: expected a positive number, got {max_iter}")
