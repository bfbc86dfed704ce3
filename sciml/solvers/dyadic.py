"""Brownian motion by halving: how the values over an interval and normal numbers make those over its halves.

The values over an interval of length l are the increment W and, of paths with areas, the space-time Levy area H, the
mean of the path above its chord: independent, of variances l and l / 12. Given both, a path follows a parabola, and the
numbers z, n of an interval of length l move its halves by

    W: w / 2 +- (3/2 h + sqrt(l) / 4 z),   H: h / 4 - sqrt(l) / 8 z +- sqrt(l / 48) n.

Without areas they are w / 2 +- sqrt(l) / 2 z. Numbers here have variance 1/2, which the weights make up for.

References:
    J. Foster, T. Lyons, H. Oberhauser, An optimal polynomial approximation of Brownian motion, SIAM J. Numer. Anal. 58
    (2020), doi:10.1137/19M1261912. A. Jelincic, J. Foster, P. Kidger, Single-seed generation of Brownian paths and
    integrals for adaptive and high order SDE solvers (2024), arXiv:2405.06464.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

BITS = 48  # of a time: the root of the tree has 2^BITS ticks, as fine as the smallest step of a march
SECOND = 1 << 62  # what tells the second number of a node from its first

Values = Sequence[Any]  # (w,) or (w, h), tensors or rows of weights


def whole(numbers: Values, length: float) -> Values:
    """The values over the root, made of its own numbers."""
    scales = (sqrt(2 * length), sqrt(length / 6))
    return tuple(scale * number for scale, number in zip(scales, numbers, strict=False))


def scales(length: float, count: int) -> tuple[float, ...]:
    """Those of the numbers of a node of a length where it is halved."""
    return (sqrt(length / 2),) if count == 1 else (sqrt(length / 8), sqrt(length / 24))


def scaled(numbers: Values, length: float) -> Values:
    """The numbers of a node of a length as `halved` takes them."""
    return [scale * number for scale, number in zip(scales(length, len(numbers)), numbers, strict=True)]


def halved(values: Values, numbers: Values) -> tuple[Values, Values]:
    """The values over both halves of a node, made of those over it and its numbers, scaled."""
    if len(values) == 1:
        (w,), (rise,) = values, numbers
        left = 0.5 * w + rise
        return (left,), (w - left,)
    (w, h), (bend, odd) = values, numbers
    left = 0.5 * w + (1.5 * h + bend)
    mean = 0.25 * h - 0.5 * bend
    return (left, mean + odd), (w - left, mean - odd)


def descend(start: Tensor, end: Tensor, shifts: Tensor, lengths: Tensor, areas: bool) -> list[tuple[Tensor, Tensor]]:
    """The nodes whose numbers make the values between ticks (l), from the root and the cells that hold either end.

    Two groups, of those that hold the end and of those that hold the start only: keys (rows, l) and the weights of
    their numbers in the increment, and in the area, (rows, l, 1 or 2). Weights are differences that are taken before
    any rounding, so that short steps lose nothing; of areas they lose the digits that 2^-52 of the span leaves of
    (end - start)^1.5.
    """
    before, after = _holding(start, shifts, 0), _holding(end, shifts, 1)
    first, last = (_reached(tick, shifts, lengths, k, areas) for k, tick in enumerate((start, end)))
    share = (end - start)[..., None, None] * (lengths[0] * 2.0**-BITS)
    known, others = _differences(first, last, (before == after)[..., None, None], share)
    nodes = torch.cat([torch.zeros_like(start)[..., None], after], -1)
    weights = torch.cat([_from_root(start, end, lengths[0], areas), known], -3)
    return [
        (_numbered(nodes, 1 + areas).movedim(-1, 0), weights.flatten(-3, -2).movedim(-2, 0))
        for nodes, weights in ((nodes, weights), (before, others))
    ]


def _differences(before: Tensor, after: Tensor, same: Tensor, share: Tensor) -> list[Tensor]:
    """The weights of the nodes that hold the end, and of the others that hold the start, from what both reached."""
    none = torch.zeros_like(before)
    groups = []
    for first, last in ((torch.where(same, before, none), after), (torch.where(same, none, before), none)):
        rise = last[..., 0] - first[..., 0]  # (l, levels, count)
        values = [rise]
        if before.shape[-1] == 2:
            mean = (last[..., 1] - first[..., 1]) / torch.where(share > 0, share, 1.0)
            values.append(torch.where(share > 0, mean - 0.5 * (first[..., 0] + last[..., 0]), 0.0))
        groups.append(torch.stack(values, -1))
    return groups


def _numbered(nodes: Tensor, count: int) -> Tensor:
    """The keys (l, count n) of the numbers of nodes (l, n)."""
    return nodes if count == 1 else torch.stack([nodes, nodes + SECOND], -1).flatten(-2)


def _holding(tick: Tensor, shifts: Tensor, ends: int) -> Tensor:
    """The nodes (l, levels), from root to cells, in which ticks (l) lie, or that they end."""
    return ((tick[..., None] - ends) >> shifts) + (1 << (BITS - shifts))


def _reached(tick: Tensor, shifts: Tensor, lengths: Tensor, ends: int, areas: bool) -> Tensor:
    """What numbers of variance 1/2 of those nodes do to W, and to its integral, from their start to a tick.

    (l, levels, count, 1 or 2), the integral in units of the span.
    """
    width = torch.ones_like(shifts) << shifts
    x = (((tick[..., None] - ends) & (width - 1)) + ends).to(torch.float64) / width  # a width is a power of two
    v, root = torch.minimum(x, 1 - x), lengths.sqrt()
    if areas:
        side = torch.where(x < 0.5, 1.0, -1.0)
        rise = [(12 * v - 4) * v / sqrt(8), side * v * (1 - 2 * v) * (12 / sqrt(24))]
        mean = [side * (4 * v - 2) * v * v / sqrt(8), (6 - 8 * v) * v * v / sqrt(24)]
        pairs = [torch.stack(rise, -1) * root[..., None], torch.stack(mean, -1) * (root * lengths)[..., None]]
        reached = torch.stack(pairs, -1)
    else:
        reached = (v * (root * 2.0**0.5))[..., None, None]
    last = _within_cells(x[..., -1], lengths[-1], areas)
    return torch.cat([reached[..., :-1, :, :], last[..., None, :, :]], -3)


def _within_cells(x: Tensor, length: Tensor, areas: bool) -> Tensor:
    """The same of the numbers of cells at fractions x (l) of them, given the values over the cells: (l, count, 1 or 2).

    Of the bridge between the ends, or of what its parabola leaves of that, and of the integral.
    """
    p, scale = x * (1 - x), (2 * length).sqrt()
    if not areas:
        return (p.sqrt() * scale)[..., None, None]
    left = (p * (1 - 3 * p)).sqrt()
    slope = torch.where(left > 0, p * p * (0.5 - x) / torch.where(left > 0, left, 1.0), 0.0)
    first = torch.stack([left * scale, slope * scale * length], -1)
    odd = p * (p / (12 - 36 * p)).sqrt()
    return torch.stack([first, torch.stack([torch.zeros_like(odd), odd * scale * length], -1)], -2)


def _from_root(start: Tensor, end: Tensor, length: Tensor, areas: bool) -> Tensor:
    """The weights of the root's numbers in the values between ticks (l): (l, 1, count, 1 or 2)."""
    share, scale = (end - start).to(torch.float64) * 2.0**-BITS, (2 * length).sqrt()
    if not areas:
        return (share * scale)[..., None, None, None]
    a, b = (tick.to(torch.float64) * 2.0**-BITS for tick in (start, end))
    bend = scale / sqrt(12)
    first = torch.stack([share * scale, torch.zeros_like(share)], -1)
    second = torch.stack([6 * share * (1 - a - b) * bend, share * share * bend], -1)
    return torch.stack([first, second], -2)[..., None, :, :]
