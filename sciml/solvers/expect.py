"""Refuse arguments of wrong types, by name."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def expect(name: str, given: Any, kind: Any, what: str) -> None:
    """Refuse an argument of another type.

    Raises:
        TypeError: naming the argument, what is expected, and what was given.
    """
    if not isinstance(given, kind) or isinstance(given, type):
        shown = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise TypeError(f"{name}: expected {what}, got {shown}")


def expect_number(name: str, given: Any) -> None:
    """Refuse what is neither a real number nor a tensor of such."""
    expect(name, given, Real | Tensor, "a number")
    if isinstance(given, Tensor) and given.is_complex():
        raise TypeError(f"{name}: expected a real number, got a tensor of {given.dtype}")


def expect_times(name: str, given: Any) -> Tensor:
    """Real times as a tensor, float64 where they are not a tensor yet."""
    try:
        ts = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as found:
        shown = f"{type(given).__name__} ({found})"
        raise TypeError(f"{name}: expected a tensor or a sequence of times, got {shown}") from None
    if ts.is_complex() or ts.dtype is torch.bool:
        raise TypeError(f"{name}: expected real times, got a tensor of {ts.dtype}")
    return ts


def broadcasts(shape: Sequence[int], onto: Sequence[int]) -> bool:
    """Whether a tensor of one shape broadcasts against one of another and leaves that as it is."""
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(size in (1, other) for size, other in pairs)
