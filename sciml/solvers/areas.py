"""Levy areas of pairs of a Brownian motion's entries over a step, drawn given increments and space-time areas.

A_kl is half of W^k integrated against W^l less W^l against W^k, from the step's start.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sciml.solvers.hashed import GAMMA, halved_normals, mixed

THIRD = 3 << 61  # what tells the numbers of pairs from those of single entries


class Area(NamedTuple):
    """What a stepper with ``area`` reads of a step."""

    w: Tensor  # (b, m) the increment
    a: Tensor  # (b, m, m) the Levy area, antisymmetric


def drawn(w: Tensor, h: Tensor, size: Tensor | float, numbers: Tensor) -> Area:
    """The area of steps of a size, given increments and space-time areas (b, m) and normal numbers (b, m (m - 1) / 2).

    It has the mean H_k W_l - W_k H_l and the variance size^2 / 20 + size (H_k^2 + H_l^2) / 5 that the area has given W
    and H, and what is left of its law is taken to be normal.

    Reference:
        J. Foster, T. Lyons, H. Oberhauser, An optimal polynomial approximation of Brownian motion, SIAM J. Numer. Anal.
        58 (2020), doi:10.1137/19M1261912; after A. Davie, KMT theory applied to approximations of SDE (2014).
    """
    m = w.shape[-1]
    first, second = torch.triu_indices(m, m, 1, device=w.device)
    wk, wl, hk, hl = w[..., first], w[..., second], h[..., first], h[..., second]
    deviation = (size / 5 * (size / 4 + hk * hk + hl * hl)).sqrt()
    upper = torch.zeros(*w.shape, m, dtype=w.dtype, device=w.device)
    upper[..., first, second] = hk * wl - wk * hl + deviation * numbers
    return Area(w, upper - upper.mT)


def numbers(streams: Tensor, start: Tensor, end: Tensor, pairs: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers (b, pairs) of a step between ticks (l), from the samples' streams (b, p)."""
    key = mixed(mixed((start + THIRD) * GAMMA) + end)
    places = torch.arange((pairs + 1) // 2, device=streams.device) * GAMMA
    bits = mixed(mixed(key[..., None] + streams[:, :1]) + places)
    return halved_normals(bits, dtype)[:, :pairs] * 2**0.5
