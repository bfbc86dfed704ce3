"""Numbers that may be differentiated once only."""

from typing import Any

import torch
from torch import Tensor


class Once(torch.autograd.Function):
    """A number with the right gradient, whose own derivative is refused since it would be wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # noqa: D102
        return _Refused.apply(grad_outputs[0], *ctx.saved_tensors)


class _Refused(torch.autograd.Function):
    """A gradient that depends on x in a way that is not known."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise RuntimeError("gradients through events cannot be differentiated again")
