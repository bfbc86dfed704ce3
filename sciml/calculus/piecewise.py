"""Series of functions of one variable that have kinks or jumps: those of the piece that the point is in."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _pieces(value: Tensor, slope: Any, order: int) -> list[Any]:
    """A function that is linear about each point."""
    return [value, slope] + [None] * (order - 1)


def staircase(value: Callable[..., Tensor]) -> Callable[..., list[Any]]:
    """A function that is constant about each point."""
    return lambda x, order, **options: _pieces(value(x, **options), None, order)


def _steps(x: Tensor, where: Tensor) -> Tensor:
    return where.to(x.dtype)


def relu(x: Tensor, order: int, inplace: bool = False) -> list[Any]:
    """max(x, 0)."""
    return _pieces(x.relu(), _steps(x, x > 0), order)


def relu6(x: Tensor, order: int, inplace: bool = False) -> list[Any]:
    """Clamped to [0, 6]."""
    return hardtanh(x, order, 0.0, 6.0)


def leaky_relu(x: Tensor, order: int, negative_slope: float = 0.01, inplace: bool = False) -> list[Any]:
    """x, or a x where x < 0."""
    slope = torch.where(x > 0, 1.0, torch.full_like(x, negative_slope))
    return _pieces(functional.leaky_relu(x, negative_slope), slope, order)


def absolute(x: Tensor, order: int) -> list[Any]:
    """|x|."""
    return _pieces(x.abs(), x.sign(), order)


def clamp(x: Tensor, order: int, min: Any = None, max: Any = None) -> list[Any]:
    """Clamped to [min, max], with the slope of x at the bounds, as in torch."""
    inside = torch.ones_like(x, dtype=torch.bool)
    inside = inside if min is None else inside & (x >= min)
    inside = inside if max is None else inside & (x <= max)
    return _pieces(x.clamp(min, max), _steps(x, inside), order)


def hardtanh(x: Tensor, order: int, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> list[Any]:
    """Clamped to [min_val, max_val], with no slope at the bounds, as in torch."""
    return _pieces(x.clamp(min_val, max_val), _steps(x, (x > min_val) & (x < max_val)), order)


def elu(
    x: Tensor, order: int, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0, inplace: bool = False
) -> list[Any]:
    """Scale times x, or alpha (exp(rate x) - 1) where x < 0."""
    below = x.clamp(max=0.0) * rate  # of x > 0 the exponential is not wanted, and may be infinite
    tail = below.exp() * (alpha * scale)
    series = [torch.where(x > 0, x * scale, below.expm1() * (alpha * scale))]
    for m in range(1, order + 1):
        series.append(torch.where(x > 0, scale if m == 1 else 0.0, tail * (rate**m / math.factorial(m))))
    return series


def selu(x: Tensor, order: int, inplace: bool = False) -> list[Any]:
    """Klambauer et al. (2017), arXiv:1706.02515."""
    return elu(x, order, 1.6732632423543772, 1.0507009873554805)


def celu(x: Tensor, order: int, alpha: float = 1.0, inplace: bool = False) -> list[Any]:
    """x, or alpha (exp(x / alpha) - 1) where x < 0."""
    return elu(x, order, alpha, 1.0, 1.0 / alpha)
