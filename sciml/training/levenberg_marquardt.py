"""Least squares by Levenberg and Marquardt's method, for nets of some thousand parameters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Residuals(NamedTuple):
    """What a least-squares step evaluates at the parameters' present values, always at the same points."""

    value: Callable[[], Tensor]  # (n); the loss is its sum of squares
    jacobian: Callable[[], tuple[Tensor, Tensor]]  # (n) and (n, p), parameters flattened in the optimiser's order


class LevenbergMarquardt(torch.optim.Optimizer):
    """Steps d of (J^T J + damping mean(diag J^T J)) d = J^T r, that are taken where they lower the loss.

    A step that does so divides the damping by ``decrease``, one that does not is tried again with ``increase`` times
    of it.

    Args:
        params: parameters of one dtype, float64 if the loss is to get small.
        damping: at the start.
        decrease: what a step that was taken divides the damping by.
        increase: what one that was not multiplies it with.
        trials: dampings to try in a step; where none of them lowers the loss, the parameters stay.
        lr: what steps are multiplied with; schedulers may change it.

    Attributes:
        residuals: what to minimise, set by the module that trains.

    Raises:
        ValueError: if a number is out of its range.

    Reference:
        D. Marquardt, J. SIAM 11 (1963), doi:10.1137/0111030; J. J. More, The Levenberg-Marquardt algorithm:
        implementation and theory, 1978, doi:10.1007/BFb0067700.
    """

    def __init__(
        self,
        params: Iterable[Any],
        damping: float = 1e-2,
        decrease: float = 3.0,
        increase: float = 4.0,
        trials: int = 8,
        lr: float = 1.0,
    ):
        for name, value, least in (("damping", damping, 0.0), ("decrease", decrease, 1.0), ("increase", increase, 1.0)):
            if not value > least:
                raise ValueError(f"{name}: expected more than {least:g}, got {value}")
        if trials < 1:
            raise ValueError(f"trials: expected at least 1, got {trials}")
        if not lr > 0:
            raise ValueError(f"lr: expected a positive number, got {lr}")
        super().__init__(params, {"lr": lr, "damping": damping})
        if len(self.param_groups) != 1:
            raise ValueError(f"params: expected one group of parameters, got {len(self.param_groups)}")
        self.decrease, self.increase, self.trials = decrease, increase, trials
        self.residuals: Residuals | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # pyrefly: ignore[bad-override]
        """Take a step; the damping it ended with is in the parameter group.

        Args:
            closure: called first, once, as by any optimiser: trainers draw the step's points in it.

        Returns:
            The loss before the step.

        Raises:
            ValueError: if there are no residuals.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        if self.residuals is None:
            raise ValueError("residuals: LevenbergMarquardt needs them, not a loss alone; expected a PINNModule")
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.requires_grad]
        r, jacobian = self.residuals.jacobian()
        loss, gradient, normal = r @ r, jacobian.T @ r, jacobian.T @ jacobian
        size = normal.diagonal().mean()
        start = [p.clone() for p in params]
        for _ in range(self.trials):
            damped = normal.clone()
            damped.diagonal().add_(group["damping"] * size)
            factor, info = torch.linalg.cholesky_ex(damped)
            if int(info) == 0:
                d = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
                torch._foreach_copy_(params, start)
                for p, part in zip(params, d.split([p.numel() for p in params]), strict=True):
                    p.sub_(group["lr"] * part.reshape(p.shape))
                trial = self.residuals.value()
                if trial @ trial < loss:
                    group["damping"] = max(group["damping"] / self.decrease, 1e-14)
                    return loss
            group["damping"] = min(group["damping"] * self.increase, 1e8)
        torch._foreach_copy_(params, start)
        return loss
