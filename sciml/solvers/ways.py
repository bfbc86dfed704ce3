"""Brownian motion of many lanes over nodes of its tree, each lane at a place of its own."""

from collections.abc import Callable

import numpy as np
import torch

from sciml.solvers.dyadic import BITS, Values, halved, scales, whole
from sciml.solvers.hashed import halved_normals
from sciml.solvers.linear.kernels import call
from sciml.solvers.ways_kernels import BETWEEN, draw, plan, walk

MORE = 4  # levels that room is made for before they are met


class Ways:
    """The values over nodes on the way from the root to the node that each lane asked for last, on the host.

    A step that follows another, or starts where a rejected one did, shares most of the way with it: numbers are drawn
    for the nodes below where they part, those of all lanes at once. Whatever is kept, the values over a node are made
    of those over the root by the same operations.

    Args:
        draw: the numbers (n, q) each of nodes (n) of lanes (n).
        lanes: how many there are.
        root: length of the root.
    """

    def __init__(self, draw: Callable[[np.ndarray, np.ndarray], Values], lanes: int, root: float):
        self.every = np.arange(lanes)
        self.start, self.level = np.zeros_like(self.every), np.zeros_like(self.every)  # of the last node, in ticks
        values = whole(draw(self.start, self.every), root)
        self.draw, self.root, self.dtype = draw, root, values[0].dtype
        self.row = np.dtype((np.void, values[0].strides[0]))  # rows as single items are moved ten times as fast
        self.kept = [np.concatenate([x, x]).view(self.row)[:, 0] for x in values]  # by `_place`, the root twice
        self.scales = np.empty((0, len(values)))  # of the numbers of a level's nodes

    def over(self, start: np.ndarray, level: np.ndarray, asked: np.ndarray) -> list[np.ndarray]:
        """The values (l, q) over the nodes of levels (l) that start at ticks (l), 0 for the lanes that do not ask."""
        some = not asked.all()
        if some:
            start, level = np.where(asked, start, self.start), np.where(asked, level, self.level)
        _, parted = np.frexp((start ^ self.start).astype(np.float64))
        known = np.minimum(np.minimum(self.level, BITS + 1 - parted), level)
        self.start, self.level = start, level
        missing = level - known
        rounds = [(missing > turn).nonzero()[0] for turn in range(missing.max())]
        if rounds:
            self._deepen(int(level.max()))
            self._descend(start, known, rounds)
        found = self._at(self._place(self.every, start, level))
        if some:
            for values in found:
                values[~asked] = 0
        return found

    def _descend(self, start: np.ndarray, known: np.ndarray, rounds: list[np.ndarray]) -> None:
        """Halve nodes from known levels on, one of each of the lanes in a round."""
        lanes = np.concatenate(rounds)
        level = known.take(lanes) + np.repeat(np.arange(len(rounds)), [len(each) for each in rounds])
        start = start.take(lanes)
        drawn = self.draw((start >> (BITS - level)) + (1 << level), lanes)
        numbers = [scale[:, None] * z for scale, z in zip(self.scales.take(level, 0).T, drawn, strict=True)]
        above, left = self._place(lanes, start, level), 2 * (level + 1) * len(self.every) + lanes
        right, stop = left + len(self.every), 0
        for each in rounds:
            part = slice(stop, stop := stop + len(each))
            halves = halved(self._at(above[part]), [z[part] for z in numbers])
            for kept, one, other in zip(self.kept, *halves, strict=True):
                kept[left[part]] = one.view(self.row)[:, 0]
                kept[right[part]] = other.view(self.row)[:, 0]

    def _place(self, lanes: np.ndarray, start: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Where the values over nodes are kept: by level, half of the node above, and lane."""
        return (2 * level + ((start >> (BITS - level)) & 1)) * len(self.every) + lanes

    def _at(self, place: np.ndarray) -> list[np.ndarray]:
        """The values (n, q) that are kept at places."""
        return [kept.take(place).view(self.dtype).reshape(len(place), -1) for kept in self.kept]

    def _deepen(self, level: int) -> None:
        """Make room for the levels down to one, and for some more."""
        if level <= len(self.scales):
            return
        lengths, before = [self.root * 2.0**-k for k in range(level + MORE)], self.kept
        self.scales = np.array([scales(length, len(before)) for length in lengths], self.dtype)
        self.kept = [np.empty(2 * (1 + len(lengths)) * len(self.every), kept.dtype) for kept in before]
        for new, old in zip(self.kept, before, strict=True):
            new[: len(old)] = old


class QuickWays:
    """The same by loops that numba compiles, which takes seconds the first time.

    Args:
        draw: as of `Ways`.
        streams: the hashes (l, p) that it draws from.
        root: length of the root.
        ticks: how many the span has.
        width: how many a cell has.
    """

    def __init__(
        self,
        draw: Callable[[np.ndarray, np.ndarray], Values],
        streams: np.ndarray,
        root: float,
        ticks: float,
        width: int,
    ):
        lanes = len(streams)
        self.streams, self.root, self.ticks, self.width = streams, root, ticks, width
        self.start, self.level, self.known = np.zeros((3, lanes), np.int64)
        values = np.stack(whole(draw(self.start, np.arange(lanes)), root), 1)
        self.kept = np.repeat(values[:, None], 2, 1)  # (l, 2 levels, 1 or 2, q), the root twice
        self.scales = np.empty((0, values.shape[1]), values.dtype)
        self.constants = np.array([0.5, 1.5, 0.25], values.dtype)
        self.dtype = torch.from_numpy(self.constants).dtype

    def over(self, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values (1 or 2, l, q) over steps between fractions (2, l) of the span, and the lanes whose are no nodes.

        Their values are to be found elsewhere, those of lanes at rest are 0.
        """
        kinds = np.empty(len(self.start), np.int8)
        at = self.start, self.level, self.known, kinds
        missing, others, deepest = call(plan, ends, self.ticks, self.width, *at)
        self._deepen(deepest)
        bits = np.empty((missing, self.kept.shape[2], self.streams.shape[1]), np.int64)
        numbers = self.kept[0]
        if missing:
            call(draw, bits, self.streams, *at)
            numbers = halved_normals(torch.from_numpy(bits), self.dtype).numpy()
        found = np.empty((self.kept.shape[2], len(kinds), self.kept.shape[3]), self.kept.dtype)
        call(walk, found, self.kept, numbers, self.scales, self.constants, *at)
        return found, (kinds == BETWEEN).nonzero()[0] if others else kinds[:0]

    def _deepen(self, level: int) -> None:
        """Make room for the levels down to one, and for some more."""
        if level <= len(self.scales):
            return
        lanes, before, count, entries = self.kept.shape
        lengths = [self.root * 2.0**-k for k in range(level + MORE)]
        self.scales = np.array([scales(length, count) for length in lengths], self.kept.dtype)
        kept = np.empty((lanes, 2 * (1 + len(lengths)), count, entries), self.kept.dtype)
        kept[:, :before] = self.kept
        self.kept = kept
