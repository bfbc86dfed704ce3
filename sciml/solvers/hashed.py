"""Random numbers that are functions of what they belong to: a hash of 64-bit counters, and normal numbers of its bits.

The bits are the same on every device, in whatever order and company they are asked for.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# The odd constants of splitmix64 (Steele, Lea, Flood, doi:10.1145/2714064.2660195) as signed numbers.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64
UNSIGNED = [(np.uint64(shift), np.uint64(factor % 2**64)) for shift, factor in ((30, FIRST), (27, SECOND))]


def signed(number: int) -> int:
    """An integer modulo 2^64, as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def mixed(z: Any) -> Any:
    """The hash of int64 numbers, in a tensor or an array: a one-to-one map, every bit of which depends on all."""
    if isinstance(z, np.ndarray):
        return _mixed_array(z)
    for shift, factor in ((30, FIRST), (27, SECOND)):
        z = _folded(z, shift) * factor
    return _folded(z, 31)


def _mixed_array(z: np.ndarray) -> np.ndarray:
    """The same of an array, whose shifts know no sign."""
    (shift, factor), (other, another) = UNSIGNED
    z = z.view(np.uint64)
    first = z >> shift
    first ^= z
    first *= factor
    second = first >> other
    second ^= first
    second *= another
    np.right_shift(second, np.uint64(31), out=first)
    first ^= second
    return first.view(np.int64)


def _folded(z: Tensor, shift: int) -> Tensor:
    """The number z ^ (z >> shift), shifted without the sign."""
    high, mask = z >> shift, (1 << 64 - shift) - 1
    if torch.compiler.is_compiling():  # whose loops refuse operations in place
        return (high & mask) ^ z
    high &= mask
    high ^= z
    return high


def halved_normals(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Normal numbers of variance 1/2 (.., 2 n) from hashes (.., n): the inverse error function of 32 bits each.

    Their tails end at 5.3 standard deviations in float32, where rounding ends them, and at 6.3 in float64, where the
    bits do; their variance is too small by 3e-6 and 2e-8 of it.
    """
    if 0 in bits.shape:  # whose strides no view may take
        return bits.new_empty((*bits.shape[:-1], 2 * bits.shape[-1]), dtype=dtype)
    words = bits.view(torch.int32).to(dtype)
    return words.mul_((1 - 2.0 ** (-23 if dtype == torch.float32 else -32)) / 2**31).erfinv_()
