"""Solves within `torch.autocast`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

P = ParamSpec("P")
R = TypeVar("R")


def full(function: Callable[P, R]) -> Callable[P, R]:
    """The function of (term, y0, ..), ``args`` and ``resume`` in full precision, as some of torch are to autocast.

    Rounding to half precision is noise to an error estimate, which steps would have to be tiny for. States and args in
    half precision become single ones.
    """

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        y0 = given[1] if len(given) > 1 else named.get("y0")
        y0 = getattr(named.get("resume"), "_y", None) if y0 is None else y0
        first = y0 if isinstance(y0, Tensor) else next((x for x in tree_leaves(y0) if isinstance(x, Tensor)), None)
        if first is None or not torch.is_autocast_enabled(first.device.type):
            return function(*given, **named)
        with unmixed(first):
            return function(*tree_map(_single, given), **tree_map(_single, named))

    return call


def unmixed(x: Tensor) -> AbstractContextManager[object]:
    """Full precision on the device of a tensor, for the backward pass of a solve too."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _single(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x
