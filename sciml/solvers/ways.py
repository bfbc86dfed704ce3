"""Brownian motion of many lanes over nodes of its tree, each lane at a place of its own."""

from collections.abc import Callable

import numpy as np

from sciml.solvers.dyadic import BITS, Values, halved, scales, whole

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
        every = np.arange(lanes)
        values = whole(draw(np.zeros_like(every), every), root)
        self.draw, self.root, self.like = draw, root, values[0]
        self.start, self.level = np.zeros_like(every), np.zeros_like(every)  # of the last node, in ticks
        self.kept = [_rows(np.concatenate([value, value])) for value in values]  # by `_place`, the root twice
        self.scales = np.empty((0, len(values)))  # of the numbers of a level's nodes

    def over(self, lanes: np.ndarray, start: np.ndarray, level: np.ndarray) -> list[np.ndarray]:
        """The values (n, q) over the nodes of levels (n) that start at ticks (n), one for each of some lanes (n)."""
        _, parted = np.frexp((start ^ self.start.take(lanes)).astype(np.float64))
        known = np.minimum(np.minimum(self.level.take(lanes), BITS + 1 - parted), level)
        self.start[lanes], self.level[lanes] = start, level
        missing = level - known
        rounds = [(missing > turn).nonzero()[0] for turn in range(missing.max())]
        if rounds:
            self._deepen(int(level.max()))
            self._descend(lanes, start, known, rounds)
        return self._at(self._place(lanes, start, level))

    def _descend(self, lanes: np.ndarray, start: np.ndarray, known: np.ndarray, rounds: list[np.ndarray]) -> None:
        """Halve nodes from known levels on, one of each of the rows in a round."""
        rows, level = np.concatenate(rounds), np.concatenate([known.take(rows) + k for k, rows in enumerate(rounds)])
        lanes, start = lanes.take(rows), start.take(rows)
        drawn = self.draw((start >> (BITS - level)) + (1 << level), lanes)
        numbers = [scale[:, None] * z for scale, z in zip(self.scales.take(level, 0).T, drawn, strict=True)]
        above, below = self._place(lanes, start, level), 2 * (level + 1) * len(self.start) + lanes
        stop = 0
        for rows in rounds:
            part = slice(stop, stop := stop + len(rows))
            halves = halved(self._at(above[part]), [z[part] for z in numbers])
            for kept, left, right in zip(self.kept, *halves, strict=True):
                kept[below[part]] = _rows(left)
                kept[below[part] + len(self.start)] = _rows(right)

    def _place(self, lanes: np.ndarray, start: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Where the values over nodes are kept: by level, half of the node above, and lane."""
        return (2 * level + ((start >> (BITS - level)) & 1)) * len(self.start) + lanes

    def _at(self, place: np.ndarray) -> list[np.ndarray]:
        """The values (n, q) that are kept at places."""
        return [kept.take(place).view(self.like.dtype).reshape(len(place), -1) for kept in self.kept]

    def _deepen(self, level: int) -> None:
        """Make room for the levels down to one, and for some more."""
        if level <= len(self.scales):
            return
        lengths, before = [self.root * 2.0**-k for k in range(level + MORE)], self.kept
        self.scales = np.array([scales(length, len(before)) for length in lengths], self.like.dtype)
        self.kept = [np.empty(2 * (1 + len(lengths)) * len(self.start), kept.dtype) for kept in before]
        for new, old in zip(self.kept, before, strict=True):
            new[: len(old)] = old


def _rows(x: np.ndarray) -> np.ndarray:
    """The rows of a matrix as single items, which are moved ten times as fast."""
    return x.view(np.dtype((np.void, x.shape[1] * x.itemsize))).reshape(-1)
