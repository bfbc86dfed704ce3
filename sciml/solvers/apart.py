"""Solves within functions that `torch.compile` compiles."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """The function, left out of the graphs that `torch.compile` makes of its callers.

    The steps of a solve depend on numbers. Traced, it is a graph for each piece between two of them, half a minute to
    compile, and once more for another batch size.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_dynamo_compiling():
            return function(*args, **kwargs)
        from sciml.solvers.untraced import run  # here, since it imports the compiler

        return run(function, *args, **kwargs)

    return call
