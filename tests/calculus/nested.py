"""Derivatives along directions by nested forward-mode autograd, which jets are compared with."""

import torch
from torch import Tensor


def along(u, x: Tensor, v: Tensor, order: int) -> Tensor:
    """The derivative of an order of u(x + t v) at t = 0."""
    return mixed(u, x, [v] * order)


def mixed(u, x: Tensor, directions: list[Tensor]) -> Tensor:
    """The derivative of u along several directions."""
    for v in directions:
        u = slope(u, v)
    return u(x)


def slope(u, v: Tensor):
    return lambda x: torch.func.jvp(u, (x,), (v.expand_as(x),))[1]


def worst(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry where that is above one."""
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
