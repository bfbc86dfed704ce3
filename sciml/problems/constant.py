"""Tensors that depend on numbers alone, made once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

Given = ParamSpec("Given")
Made = TypeVar("Made")


def constant(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """The same function, which keeps what it made: tensors that every later call may use.

    Those of inference mode could not be saved for a backward pass; those of an export, or of shapes that are found out
    for a compiled solve, are fakes, and are not kept.
    """

    @lru_cache
    def kept(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    @wraps(make)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        strange = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
        return make(*args, **kwargs) if strange else kept(*args, **kwargs)

    return call
