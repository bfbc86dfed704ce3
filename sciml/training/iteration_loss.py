"""Losses of iterative solvers: how many iterations they take, or what is left after a number of them."""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from sciml.solvers.linear.unrolled import History

Measure = Literal["residual", "error"]


class IterationLoss(nn.Module):
    """The mean over systems of a number that says how near their iterates came.

    Args:
        steps: iterations that it sees.
        measure: what counts: norms of residuals, or of errors, for which exact solutions have to be known.

    Raises:
        ValueError: a number or name that is none.
    """

    def __init__(self, steps: int, measure: Measure = "residual"):
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps: expected a number of iterations that is not negative, got {steps}")
        if measure not in ("residual", "error"):
            raise ValueError(f"measure: expected 'residual' or 'error', got {measure!r}")
        self.steps, self.measure = steps, measure

    def forward(self, history: History) -> Tensor:
        """The mean over the systems."""
        norms = history.residuals if self.measure == "residual" else history.errors
        if norms is None:
            raise ValueError("history: expected one with errors, of a run with errors=True; or measure 'residual'")
        if len(norms) <= self.steps:
            raise ValueError(f"history: expected at least {self.steps} iterations, got {len(norms) - 1}")
        return self.per_system(norms[: self.steps + 1]).mean()

    @abstractmethod
    def per_system(self, norms: Tensor) -> Tensor:
        """The number of each system (s) from relative norms (steps + 1, s)."""


class IterationCount(IterationLoss):
    r"""The number of iterations to a tolerance, made differentiable: \sum_{k=0}^{steps} s(a log(e_k / epsilon)).

    e_k is the norm after k iterations, s the logistic function. With a step function in its place, to which it tends
    as a grows, the sum is the number of iterates above the tolerance, and so that of iterations where norms fall. Where
    they fall by a factor exp(-c) with a c of order 1 it is half an iteration more than the real number of iterations
    after which they meet the tolerance.

    That is the loss of Arisaka and Li, a sum of step functions that is cut off and smoothed, here in the logarithm of
    the norm.

    Args:
        tolerance: epsilon.
        steps: iterations after which to stop counting; who has not arrived counts one more.
        sharpness: a.
        measure: what the tolerance is of.

    Raises:
        ValueError: numbers that are not positive.

    References:
        Arisaka and Li 2023, Principled acceleration of iterative numerical methods using machine learning,
        arXiv:2206.08594, section 3.2.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import History
        >>> norms = torch.exp(-0.5 * torch.arange(50))[:, None]
        >>> round(IterationCount(tolerance=math.exp(-10.1), steps=49)(History(norms, None)).item(), 2)
        20.7
    """

    def __init__(self, tolerance: float, steps: int, sharpness: float = 4.0, measure: Measure = "residual"):
        super().__init__(steps, measure)
        for name, value in {"tolerance": tolerance, "sharpness": sharpness}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        self.tolerance, self.sharpness = tolerance, sharpness

    def per_system(self, norms: Tensor) -> Tensor:
        """The smoothed count of each system (s)."""
        ratio = norms.clamp_min(torch.finfo(norms.dtype).tiny) / self.tolerance
        return torch.sigmoid(self.sharpness * ratio.log()).sum(0)


class AfterIterations(IterationLoss):
    """The square of what is left after a fixed number of iterations: the baseline of meta-learning.

    With 0 iterations and errors it is the regression of solutions. Its mean is that of the systems for which most is
    left: the more iterations, the less the easy ones count.

    Args:
        steps: number of iterations.
        measure: what is left.

    Raises:
        ValueError: a negative number.

    References:
        Arisaka and Li 2023, arXiv:2206.08594, section 2.2, where it is L_m.
    """

    def per_system(self, norms: Tensor) -> Tensor:
        """The square of each system's last norm (s)."""
        return norms[-1].square()
