"""Whether derivatives are asked for, backward or forward: loops over arrays and iterations to a tolerance keep none."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def recording() -> bool:
    """Whether derivatives are kept here at all. Compiled programs keep no tangents."""
    return torch.is_grad_enabled() or _forward()


def recorded(*tensors: Tensor) -> bool:
    """Whether a derivative of what is made of these is asked for."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    return _forward() and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def transformed() -> bool:
    """Whether a transform of torch.func is at work, whose derivatives tensors inside do not show."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def no_tangents() -> AbstractContextManager[object]:
    """What `torch.no_grad` is for the other way."""
    return nullcontext() if torch.compiler.is_compiling() else forward_ad._set_fwd_grad_enabled(False)


def symmetric(function: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
    """A symmetric linear map that a library applies to rows r (m, n), with its derivatives."""
    return _Symmetric.apply(r, function) if recorded(r) or transformed() else function(r)


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(r: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function = inputs[1]

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return symmetric(ctx.function, grad_inputs[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return symmetric(ctx.function, grad_outputs[0]), None


def _forward() -> bool:
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0
