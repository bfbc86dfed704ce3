"""Stationary iterations as differentiable functions of their first guess and their relaxation."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.linear.blocks import BlockSystems
from sciml.solvers.linear.sparse import Compressed
from sciml.solvers.linear.triangular import Lower

CHUNK = 32  # vectors whose norms are taken at a time


class History(NamedTuple):
    """How near the iterates of some systems came, the first guess included.

    Attributes:
        residuals: norms relative to the right-hand side's (steps + 1, s).
        errors: norms relative to the exact solution's (steps + 1, s); None where nobody asked.
    """

    residuals: Tensor
    errors: Tensor | None

    def iterations(self, tolerance: float) -> Tensor:
        """How many until each residual is at most this (s) int64; one more than were made where that never was."""
        reached = self.residuals <= tolerance
        return torch.where(reached.any(0), reached.int().argmax(0), len(reached))


class Unrolled(ABC):
    """x <- x + W(omega)^-1 (b - A x), a fixed number of times, with gradients to x and omega.

    W is D / omega on the diagonal, and below it what a derived class says.
    """

    @abstractmethod
    def lower(self, systems: BlockSystems) -> Lower | None:
        """The part of A that W is on and below the diagonal; None for the diagonal alone."""

    def run(
        self, systems: BlockSystems, steps: int, omega: Tensor, x0: Tensor | None = None, errors: bool = False
    ) -> History:
        """Iterate.

        Args:
            systems: what is to be solved.
            steps: number of iterations.
            omega: relaxation of each system (s).
            x0: first guesses (n); those of the systems without them.
            errors: measure errors too.

        Raises:
            ValueError: shapes or a number of steps that do not fit; errors of unknown solutions.
        """
        if steps < 0:
            raise ValueError(f"steps: expected a number of iterations that is not negative, got {steps}")
        if omega.shape != (len(systems),):
            raise ValueError(f"omega: expected one for each of {len(systems)} systems, got {tuple(omega.shape)}")
        x = systems.x0 if x0 is None else x0
        if x.shape != systems.b.shape:
            raise ValueError(f"x0: expected the shape {tuple(systems.b.shape)} of b, got {tuple(x.shape)}")
        solution = systems.solution if errors else None
        if errors and solution is None:
            raise ValueError("errors: expected systems with exact solutions; measure residuals alone")
        weight = systems.diagonal / omega[systems.owner]
        split = _Split(systems.matrix, systems.b, self.lower(systems), weight.detach())
        residuals, differences = _Norms(systems, systems.b), _Norms(systems, solution)
        for k in range(steps + 1):
            if solution is not None:
                differences.add(x - solution)
            x, r = _Step.apply(x, weight, split) if k < steps else (x, systems.residual(x))
            residuals.add(r)
        return History(residuals.stack(), differences.stack() if errors else None)


class UnrolledJacobi(Unrolled):
    """Damped Jacobi: W = D / omega; it converges where omega is below 2 over the largest eigenvalue of D^-1 A."""

    def lower(self, systems: BlockSystems) -> None:
        """The diagonal alone."""
        return None


class UnrolledSOR(Unrolled):
    """Successive over-relaxation: W = D / omega + L with L below the diagonal.

    For a symmetric positive definite A it converges for all omega between 0 and 2 (Ostrowski 1954).

    Example:
        >>> import scipy.sparse as sp
        >>> import torch
        >>> from sciml.solvers.linear import BlockSystems, UnrolledSOR
        >>> a = sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(9, 9), format="csr")
        >>> systems = BlockSystems.of(a, torch.ones(9).double())
        >>> history = UnrolledSOR().run(systems, 30, torch.tensor([1.53]).double())
        >>> history.residuals.shape, bool(history.residuals[-1, 0] < 1e-6)
        (torch.Size([31, 1]), True)
    """

    def lower(self, systems: BlockSystems) -> Lower:
        """The lower triangle."""
        return Lower.of(systems.matrix)


class _Norms:
    """Norms of vectors over those of another one, a few vectors at a time."""

    def __init__(self, systems: BlockSystems, to: Tensor | None):
        self.systems, self.to = systems, to
        self.waiting: list[Tensor] = []
        self.found: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """One more vector (n)."""
        self.waiting.append(x)
        if len(self.waiting) == CHUNK:
            self.reduce()

    def reduce(self) -> None:
        """Take the norms of those that wait."""
        if self.to is not None and self.waiting:
            self.found.append(self.systems.relative(torch.stack(self.waiting), self.to))
            self.waiting = []

    def stack(self) -> Tensor:
        """All norms (vectors, s)."""
        self.reduce()
        return torch.cat(self.found)


class _Split:
    """A = W - (W - A) with W^-1, neither of which gradients reach but for the diagonal of W."""

    def __init__(self, matrix: Compressed, b: Tensor, lower: Lower | None, weight: Tensor):
        self.matrix, self.b, self.weight = matrix, b, weight
        self.turned = matrix.transpose()
        if lower is not None:
            last = lower.compressed.crow[1:].long() - 1
            lower = lower.with_values(lower.compressed.values.index_put((last,), weight))
        self.lower = lower

    def solve(self, r: Tensor, transposed: bool = False) -> Tensor:
        """W^-1 r or W^-T r (n)."""
        return r / self.weight if self.lower is None else self.lower.solve(r[None], transposed)[0]


class _Step(torch.autograd.Function):
    """From x to x + W^-1 r and r = b - A x, differentiable in x and in the diagonal of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, split: _Split) -> tuple[Tensor, Tensor]:
        r = split.b - split.matrix.product(x[None])[0]
        d = split.solve(r)
        ctx.split = split
        ctx.save_for_backward(d)
        return x + d, r

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        to_x, to_r = grad_outputs
        back = ctx.split.solve(to_x, transposed=True)
        (d,) = ctx.saved_tensors
        return to_x - ctx.split.turned.product((back + to_r)[None])[0], -back * d, None


def jacobi_radii(systems: BlockSystems, steps: int) -> Tensor:
    """Spectral radii of the Jacobi iterations I - D^-1 A from below, after 1, 2, ... Lanczos steps from D^(1/2) 1.

    Each step takes a product with the matrix and no orthogonalisation but to the last two vectors.

    Args:
        systems: with symmetric matrices and positive diagonals.
        steps: how many; estimates stay where a system's steps have come to an end.

    Returns:
        (steps, s), rising along the first axis.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    root, owner = systems.diagonal.sqrt(), systems.owner
    v = root / systems.norms(root)[owner]
    before, beta = torch.zeros_like(v), v.new_zeros(len(systems))
    tridiagonal = v.new_zeros(len(systems), steps, steps)
    for j in range(steps):
        w = v - systems.matrix.product((v / root)[None])[0] / root - beta[owner] * before
        alpha = systems.sums(w * v)
        tridiagonal[:, j, j] = alpha
        w = w - alpha[owner] * v
        beta = systems.norms(w)
        beta = torch.where(beta > 1e-10, beta, torch.zeros_like(beta))  # an invariant subspace: nothing is left
        if j + 1 < steps:
            tridiagonal[:, j, j + 1] = tridiagonal[:, j + 1, j] = beta
        before, v = v, torch.where(beta > 0, 1 / beta, beta)[owner] * w
    return torch.stack([torch.linalg.eigvalsh(tridiagonal[:, :j, :j]).abs().amax(1) for j in range(1, steps + 1)])


def young(radius: Tensor) -> Tensor:
    """Young's omega = 2 / (1 + sqrt(1 - rho^2)) for SOR, with rho the spectral radius of the Jacobi iteration.

    It is the best one for long iterations with consistently ordered symmetric positive definite matrices, such as those
    of five-point stencils (Young 1954, Trans. Amer. Math. Soc. 76, 92-111).
    """
    return 2 / (1 + (1 - radius.clamp_max(1 - torch.finfo(radius.dtype).eps) ** 2).sqrt())
