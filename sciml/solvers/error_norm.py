"""The size of a step's error in units of the tolerance, with a gradient of few passes over memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml.solvers.linear.derivatives import transformed

Tolerance = float | Tensor


def larger(y0: Tensor, y1: Tensor) -> Tensor:
    """The larger absolute value; with a gradient one that is cheaper to differentiate than `torch.maximum`."""
    if torch.is_grad_enabled() and (y0.requires_grad or y1.requires_grad):
        return torch.where(y1.detach().abs() > y0.detach().abs(), y1, y0).abs()
    return torch.maximum(y0.abs(), y1.abs())


def quotients(error: Tensor, y0: Tensor, y1: Tensor, rtol: Tolerance, atol: Tolerance) -> Tensor:
    """The error over atol + rtol max(|y0|, |y1|), not finite where y1 is not."""
    unit = larger(y0, y1) * rtol + atol
    # y1 - y1 is NaN where y1 is infinite, which would hide in the unit
    return (error + (y1 - y1)) / unit if error.is_complex() else torch.addcdiv(y1 - y1, error, unit)


def norm(x: Tensor, each: bool) -> Tensor:
    """That of Euclid (l), for each sample or of all, with derivative 0 where it vanishes."""
    if each and x.ndim == 1:
        return x.abs()
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)) if each else None)


def error_norm(error: Tensor, y0: Tensor, y1: Tensor, rtol: Tolerance, atol: Tolerance, each: bool) -> Tensor:
    """The norm (l) of `quotients`."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (error, y0, y1)):
        traced = torch.compiler.is_compiling() or transformed() or forward_ad._current_level >= 0
        numbers = isinstance(rtol, float) and isinstance(atol, float)
        if numbers and not traced and not error.is_complex():
            return _ErrorNorm.apply(error, y0, y1, rtol, atol, each)
    return norm(quotients(error, y0, y1, rtol, atol), each)


class _ErrorNorm(torch.autograd.Function):
    """The same; what autograd makes of it writes more tensors, which shows for large states."""

    @staticmethod
    def forward(
        ctx: Any, error: Tensor, y0: Tensor, y1: Tensor, rtol: Tolerance, atol: Tolerance, each: bool
    ) -> Tensor:
        unit = torch.maximum(y0.abs(), y1.abs()).mul_(rtol).add_(atol)
        ratio = torch.addcdiv(y1 - y1, error, unit)
        value = norm(ratio, each)
        ctx.save_for_backward(error, y0, y1, unit, ratio, value)
        ctx.settings = rtol, atol, each
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        error, y0, y1, unit, ratio, value = ctx.saved_tensors
        rtol, atol, each = ctx.settings
        if torch.is_grad_enabled():  # to be differentiated again
            value = norm(quotients(error, y0, y1, rtol, atol), each)
            wanted = [x for x, needed in zip((error, y0, y1), ctx.needs_input_grad, strict=False) if needed]
            grads = iter(torch.autograd.grad(value, wanted, grad_outputs, create_graph=True))
            return *(next(grads) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None
        lanes = value.shape + (1,) * (ratio.ndim - value.ndim)
        length, weight = (x.reshape(lanes) for x in (torch.where(value == 0, 1, value), grad_outputs[0]))
        d_error = (ratio / length * weight).div_(unit)
        # of max(|y0|, |y1|) = (|y1 + y0| + |y1 - y0|) / 2: choosing one of two at random places takes ten passes
        half = (d_error * ratio).mul_(-rtol / 2)
        common, apart = half * (y1 + y0).sign_(), half * (y1 - y0).sign_()
        return d_error, common - apart, common.add_(apart), None, None, None
