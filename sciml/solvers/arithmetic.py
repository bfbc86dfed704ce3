"""The arithmetic of a march's books: times, sizes, errors and counts.

One text of the control (`control`, `march.judge`) serves tensors, for loops that are compiled and never wait for the
device, and numbers on the host, for eager loops, where an operation on a tensor costs ten times that on a float.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.typing import Number


class Arithmetic(NamedTuple):
    """What the books need beside operators."""

    where: Callable[[Any, Any, Any], Any]
    isfinite: Callable[[Any], Any]
    any: Callable[[Any], Any]
    number: Callable[[Tensor, Any], Number]  # a tensor (l) as a number of this kind, like another one
    tensor: Callable[[Number, Tensor], Number]  # a number as steps and tapes take it, on the device of a tensor
    following: Callable[[Tensor], Callable[[Number], Number]]  # the first of increasing stops after a theta
    whole: Callable[[Any], Any]  # a float without its fraction, as an integer
    frexp: Callable[[Any], Any]  # the mantissa, in [1/2, 1), and the exponent of a float


def _following(stops: Tensor) -> Callable[[Tensor], Tensor]:
    last, each = stops.shape[-1] - 1, stops.ndim > 1

    def first(theta: Tensor) -> Tensor:
        if last == 0:
            return stops[..., 0].expand(theta.shape)
        i = torch.searchsorted(stops, theta[..., None] if each else theta.reshape(-1), right=True).clamp_max(last)
        return stops.gather(-1, i).squeeze(-1) if each else stops.index_select(0, i).reshape(theta.shape)

    return first


TENSORS = Arithmetic(
    torch.where,
    torch.isfinite,
    torch.any,
    lambda x, like: x.to(like),
    lambda number, like: number,
    _following,
    lambda x: x.to(torch.int64),
    torch.frexp,
)
"""Books of tensors (l)."""


def _following_number(stops: Tensor) -> Callable[[float], float]:
    listed = stops.tolist()
    return lambda theta: listed[min(bisect_right(listed, theta), len(listed) - 1)]


NUMBERS = Arithmetic(
    lambda condition, yes, no: yes if condition else no,
    math.isfinite,
    bool,
    lambda x, like: x.item(),
    lambda number, like: number,
    _following_number,
    int,
    math.frexp,
)
"""Books of Python numbers, for joint lanes."""


def wide(array: np.ndarray) -> np.ndarray:
    """Floats in double precision."""
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else array


def _array(x: Tensor, like: Any) -> np.ndarray:
    return wide(x.numpy(force=True))


def first_after(host: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The first of increasing stops (s) or (b, s) after a theta (b)."""
    last = host.shape[-1] - 1
    if host.ndim == 1:
        return lambda theta: host[np.minimum(np.searchsorted(host, theta, side="right"), last)]
    rows = np.arange(len(host))
    return lambda theta: host[rows, np.minimum((host <= theta[:, None]).sum(1), last)]


ARRAYS = Arithmetic(
    np.where,
    np.isfinite,
    np.ndarray.any,
    _array,
    lambda number, like: torch.from_numpy(number).to(like.device),
    lambda stops: first_after(stops.numpy(force=True)),
    lambda x: x.astype(np.int64),
    np.frexp,
)
"""Books of arrays (b), for lanes that step by themselves."""
