"""The product of each block of the last axis with one small vector, for jets along coordinates too."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sciml.calculus.sparse import SparseJet, take


def block_product(x: Any, weight: Tensor) -> Any:
    """y_p = sum_j weight_j x_{p B + j}, a convolution with kernel and stride B.

    A jet along coordinates stays one along coordinates, those of the blocks.

    Args:
        x: a tensor or a jet (..., d); a last block that is not full is filled with zeros.
        weight: (B).

    Returns:
        (..., ceil(d / B)).
    """
    if isinstance(x, SparseJet):
        return _sparse(x, weight)
    blocks = len(weight)
    if x.shape[-1] % blocks:
        x = functional.pad(x, (0, -x.shape[-1] % blocks))
    return torch.matmul(x.unflatten(-1, (-1, blocks)), weight)


def _sparse(x: SparseJet, weight: Tensor) -> SparseJet:
    value = block_product(x.primal, weight)
    support, factor = x.support // len(weight), weight[x.support % len(weight)]
    if factor.ndim < x.ndim + 1:
        factor = factor.reshape(len(factor), *[1] * (x.ndim - 1), -1)
    local: list[Any] = [take(value, support, x.ndim)]
    for _, c in x.moving():
        local.append(None if c is None else _merged(c * factor, support, x.ndim))
    return x.with_local(value, local, support)


def _merged(c: Tensor, support: Tensor, axes: int) -> Tensor:
    """Coefficients (R, ..., m) of entries that fall into one block, all at its first occurrence in the support."""
    if support.shape[-1] == 1:
        return c
    same = support[..., :, None] == support[..., None, :]  # (.., m, m)
    first = same & ~same.tril(-1).any(-1)[..., :, None]
    if support.ndim < axes + 1:
        first = first.reshape(len(first), *[1] * (axes - 1), *first.shape[-2:])
    return (first.to(c.dtype) @ c[..., None])[..., 0]
