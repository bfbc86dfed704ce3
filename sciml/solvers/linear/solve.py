"""Linear systems of integrators: the slot, and the direct solver for small ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciml.solvers.linear.derivatives import recorded, recording, transformed
from sciml.solvers.linear.operator import LinearOperator

ONCE = "this derivative cannot be differentiated again: it is that of a root found by iteration"
MAPPED = "a root found by iteration goes through neither torch.func.vmap nor jacrev; take linear=Dense()"
UNROLLED = 8  # unknowns up to which a compiled program eliminates without LAPACK

Inverse = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From right-hand sides (m, n) to the solutions (m, n) and which of them were found (m)."""


class LinearSolver(ABC):
    """Solves A x = b for several right-hand sides, differentiably in A and b."""

    @abstractmethod
    def inverse(self, operator: LinearOperator) -> Inverse:
        """What solves with the operator; work that serves every right-hand side is done here, once."""

    def near(self, operator: LinearOperator) -> "LinearSolver":
        """A solver for matrices near this one, with what may be set up once for all of them."""
        return self

    def adjoint(self, operator: LinearOperator) -> Inverse:
        """What solves with the transposed matrices."""
        return self.inverse(operator.transpose())

    def admit(self, known: Tensor) -> None:
        """Say what is to be done where a gradient (m) is not known: nothing, it is NaN."""
        return


@dataclass(frozen=True)
class Dense(LinearSolver):
    """LU factors of the matrices; for few unknowns in a compiled program Gaussian elimination without library calls."""

    def inverse(self, operator: LinearOperator) -> Inverse:
        """Factors of the operator's matrices. A singular one finds no solution."""
        matrix = operator.dense()
        if torch.compiler.is_compiling() and matrix.shape[-1] <= UNROLLED:
            return _elimination(matrix)
        if transformed():  # vmap(jacrev) of a solve by factors is wrong without a word (torch 2.13)
            inverted, info = torch.linalg.inv_ex(matrix)
            return lambda b: ((inverted @ b.unsqueeze(-1)).squeeze(-1), info == 0)
        factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
        regular = info == 0
        return lambda b: (torch.linalg.lu_solve(factors, pivots, b.unsqueeze(-1)).squeeze(-1), regular)


def _elimination(matrix: Tensor) -> Inverse:
    """Gaussian elimination with partial pivoting, every entry a tensor (m) of its own and every exchange a selection.

    The largest pivot bubbles up: row i changes places with row k where it has the larger entry in column k, and what is
    left of it is cleared at once.
    """
    n = matrix.shape[-1]
    rows = [list(row.unbind(-1)) for row in matrix.unbind(-2)]
    exchanges: list[tuple[int, int, Tensor, Tensor]] = []
    for k in range(n):
        for i in range(k + 1, n):
            swap = rows[i][k].abs() > rows[k][k].abs()
            for j in range(k, n):
                rows[k][j], rows[i][j] = _exchanged(swap, rows[k][j], rows[i][j])
            # a column of zeros is left as it is: the matrix is singular, which its last pivot shows
            factor = torch.where(rows[k][k] == 0, rows[i][k], rows[i][k] / rows[k][k])
            exchanges.append((k, i, swap, factor))
            for j in range(k + 1, n):
                rows[i][j] = rows[i][j] - factor * rows[k][j]
    regular = rows[0][0] != 0
    for k in range(1, n):
        regular = regular & (rows[k][k] != 0)

    def solve(b: Tensor) -> tuple[Tensor, Tensor]:
        x = list(b.unbind(-1))
        for k, i, swap, factor in exchanges:
            x[k], x[i] = _exchanged(swap, x[k], x[i])
            x[i] = x[i] - factor * x[k]
        for k in reversed(range(n)):
            for j in range(k + 1, n):
                x[k] = x[k] - rows[k][j] * x[j]
            x[k] = x[k] / rows[k][k]
        return torch.stack(x, -1), regular

    return solve


def _exchanged(swap: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(swap, b, a), torch.where(swap, a, b)


def scaled(b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows b (m, n) over powers of two (m, 1) that bring their largest entries to [1, 2), and these powers.

    The squares in norms of tiny and of huge right-hand sides would else vanish or overflow. A compiled program leaves
    them as they are.
    """
    power = torch.ones_like(b[:, :1])
    if torch.compiler.is_compiling() or not b.shape[-1]:
        return b, power
    largest = b.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(torch.where((largest > 0) & largest.isfinite(), largest, 1)).exponent
    power = torch.ldexp(power, exponent - 1)
    return b / power, power


def attach(x: Tensor, residual: Tensor, operator: Callable[[Tensor], LinearOperator], solver: LinearSolver) -> Tensor:
    """``x`` with the gradient of the root that it is, dx = A^-1 d residual, by the implicit function theorem.

    Args:
        x: solution (m, n), found without a graph; a tangent that it has is kept.
        residual: b - A x, or whatever vanishes there with derivative -A, as a function of what is differentiated.
        operator: A at a solution, asked for only in the backward pass.
        solver: solves with the transposed of A.
    """
    return _Root.apply(x, residual, operator, solver) if recorded(residual) or transformed() else x


class _Root(torch.autograd.Function):
    """The identity in x whose gradient goes to the residual. Once only: the residual was taken at a constant x."""

    @staticmethod
    def forward(x: Tensor, residual: Tensor, operator: Any, solver: LinearSolver) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.operator, ctx.solver = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise RuntimeError(MAPPED)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (root,), (dx, residual, *_) = ctx.saved_tensors, grad_inputs
        tangent = None if dx is None else dx.clone()
        if tangent is None:
            with torch.no_grad():
                found, known = ctx.solver.inverse(ctx.operator(root))(residual)
                ctx.solver.admit(known)
                tangent = torch.where(known[:, None], found, torch.nan)
        return _Once.apply(tangent, root, residual) if torch.is_grad_enabled() else tangent

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        (root,) = ctx.saved_tensors
        if grad_outputs[0] is None:
            return None, None, None, None
        with torch.no_grad():
            found, known = ctx.solver.adjoint(ctx.operator(root))(grad_outputs[0])
            ctx.solver.admit(known)
            grad = torch.where(known[:, None], found, torch.nan)  # rather no gradient than a wrong one
        return None, _Once.apply(grad, root, *grad_outputs) if recording() else grad, None, None


class _Once(torch.autograd.Function):
    """A gradient whose own derivative is refused instead of taken for zero."""

    @staticmethod
    def forward(grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise RuntimeError(MAPPED)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        raise RuntimeError(ONCE)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise RuntimeError(ONCE)
