"""Solves within transforms of torch.func.

Tensors there hide their memory, and those of `torch.func.vmap` many values in one. What a march reads of them to decide
on its steps comes from below all transforms, where tensors are plain: of the samples that vmap maps the largest value.
They share their steps, which are then as small as the most demanding of them asks for; what is differentiated and
mapped is the solution on these steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.arithmetic import ARRAYS, NUMBERS, Arithmetic, first_after, wide
from sciml.solvers.linear.derivatives import transformed
from sciml.typing import Lanes

TIMES = "ts, step_ts, jump_ts, save_at"


class _Below(torch.autograd.Function):
    """Hands a tensor over below all transforms. Of mapped samples the largest value counts, where it may."""

    @staticmethod
    def forward(x: Tensor, take: Callable[[Tensor], None], shared: str) -> Tensor:
        take(x)
        return x.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, take: Callable[[Tensor], None], shared: str) -> Any:  # pyrefly: ignore[bad-override]
        if shared:
            raise ValueError(
                f"{shared}: expected the same times for all samples that torch.func.vmap maps; take lanes='each' with "
                "a batch instead"
            )
        return _Below.apply(x.amax(in_dims[0]), take, shared), None


def read(x: Tensor, shared: str = "") -> np.ndarray:
    """The values of a tensor on the host, of mapped samples the largest.

    Args:
        x: the tensor.
        shared: what to call it where it may not be mapped.

    Raises:
        ValueError: it is.
    """
    found: list[np.ndarray] = []
    _Below.apply(x.detach(), lambda values: found.append(values.numpy(force=True)), shared)
    return found[0]


def plain(x: Tensor, shared: str = "") -> Tensor:
    """The values that `read` gives, as a tensor that is not transformed; outside of transforms the tensor itself."""
    return torch.from_numpy(read(x, shared)).to(x.device) if transformed() else x


def holds(condition: Tensor) -> bool:
    """Whether a condition is met everywhere, by all samples that vmap maps."""
    if transformed():
        return not read(~condition).any()
    return bool(condition if condition.ndim == 0 else condition.all())


def books(lanes: Lanes) -> Arithmetic:
    """What an eager march keeps its books in."""
    if not transformed():
        return NUMBERS if lanes == "joint" else ARRAYS
    return WITHIN if lanes == "joint" else ARRAYS_WITHIN


WITHIN = NUMBERS._replace(
    number=lambda x, like: read(x).item(),
    tensor=lambda number, like: torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else None),
    following=lambda stops: NUMBERS.following(plain(stops, TIMES)),
)
"""Books of numbers. A step takes tensors for its ends, so that they are differentiated and mapped as the times are."""

ARRAYS_WITHIN = ARRAYS._replace(
    number=lambda x, like: wide(read(x)),
    following=lambda stops: first_after(read(stops, TIMES)),
)
"""Books of arrays."""
