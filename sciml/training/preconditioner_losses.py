"""Losses of preconditioners."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sciml.solvers.linear import LinearOperator, Prepared
from sciml.solvers.linear.incomplete import Factored

SHARP = 10.0  # how closely the rate that the logarithm takes follows the true one, which may be negative


class PreconditionerLoss(nn.Module, ABC):
    """How bad a preconditioner is for a matrix."""

    @abstractmethod
    def forward(self, operator: LinearOperator, prepared: Prepared, b: Tensor, x: Tensor | None) -> Tensor:
        """A number.

        Args:
            operator: the matrix A (n, n).
            prepared: the preconditioner, differentiable.
            b: right-hand sides (k, n).
            x: their solutions (k, n), where the data have them.
        """


class UnrolledPCG(PreconditionerLoss):
    """The logarithm of the iterations that conjugate gradients take to a residual e times smaller, in their first ones.

    The logarithm weighs a gain by what it saves of the iterations: systems that take many do not rule.

    Args:
        iterations: how many are unrolled.
    """

    def __init__(self, iterations: int = 8):
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {iterations}")
        self.iterations = iterations

    def forward(self, operator: LinearOperator, prepared: Prepared, b: Tensor, x: Tensor | None = None) -> Tensor:
        """A number; solutions have no say."""
        rate = reduction(operator, prepared, b, self.iterations)
        return -torch.log(softplus(SHARP * rate) / SHARP)


class SolutionWeighted(PreconditionerLoss):
    """The mean of |M^-1 x - b|^2 / |b|^2 over solved systems A x = b, for preconditioners M = (L L^T)^-1.

    It weighs the error L L^T - A by where the solutions are.

    Reference:
        Y. Li et al., ICML 2023, arXiv:2305.16368, the loss with inductive bias.
    """

    def forward(self, operator: LinearOperator, prepared: Prepared, b: Tensor, x: Tensor | None) -> Tensor:
        """A number.

        Raises:
            ValueError: no solutions are given.
        """
        if x is None:
            raise ValueError("x: SolutionWeighted expects solutions; set the data's solutions to true")
        return (_square(factored(prepared).inverse(x) - b) / _square(b)).mean()


class Frobenius(PreconditionerLoss):
    """The Frobenius norm of L L^T - A, squared, over the number of unknowns, estimated by the right-hand sides.

    These have to be white noise w: the mean of |(L L^T - A) w|^2 / |w|^2 is without bias.
    """

    def forward(self, operator: LinearOperator, prepared: Prepared, b: Tensor, x: Tensor | None = None) -> Tensor:
        """A number; solutions have no say."""
        return (_square(factored(prepared).inverse(b) - operator.matvec(b)) / _square(b)).mean()


def factored(prepared: Prepared) -> Factored:
    """The preconditioner as a factor.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(prepared, Factored):
        raise TypeError(f"loss: expected a model that makes factors, as LearnedFactor, got {type(prepared).__name__}")
    return prepared


def reduction(operator: LinearOperator, prepared: Prepared, b: Tensor, iterations: int) -> Tensor:
    """The mean of log |b - A x_0| / |b - A x_k| over k right-hand sides (k, n), by iteration; differentiable."""
    x = prepared.start(operator, b, torch.zeros_like(b))
    r = b - operator.matvec(x)
    least = torch.finfo(b.dtype).eps ** 2 * _square(b)
    first = _square(b)
    z = prepared.apply(r)
    p, rz = z, _dot(r, z)
    for k in range(iterations):
        q = operator.matvec(p)
        r = r - rz / (_dot(p, q) + least) * q
        if k + 1 < iterations:
            z = prepared.apply(r)
            last, rz = rz, _dot(r, z)
            p = z + rz / (last + least) * p
    return 0.5 * torch.log(first / (_square(r) + least)).mean() / iterations


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)
