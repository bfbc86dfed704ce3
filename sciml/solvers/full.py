"""Solves within `torch.autocast`."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

P = ParamSpec("P")
R = TypeVar("R")


def full(function: Callable[P, R]) -> Callable[P, R]:
    """The function of (term, y0, ..) and ``args`` in full precision, as those of torch that autocast knows as such.

    Rounding to half precision is noise to an error estimate, which steps would have to be tiny for. States and args in
    half precision become single ones.
    """

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        y0 = given[1] if len(given) > 1 else named.get("y0")
        tensors = [y0] if isinstance(y0, Tensor) else [x for x in tree_leaves(y0) if isinstance(x, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        if not torch.is_autocast_enabled(device):
            return function(*given, **named)
        with torch.autocast(device, enabled=False):
            return function(*tree_map(_single, given), **tree_map(_single, named))

    return call


def _single(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x
