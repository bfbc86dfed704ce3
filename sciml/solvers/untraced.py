"""A call that the compiler does not look into."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(reason="a solve chooses its steps by numbers; its own compile= compiles it")
def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns, run as it is."""
    return function(*args, **kwargs)
