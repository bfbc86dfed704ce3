"""Brownian motion over nodes of its tree that all samples ask for together."""

from collections.abc import Callable, Iterable, Sequence
from math import sqrt

import torch
from torch import Tensor

from sciml.solvers.dyadic import Values, halved, scaled, whole

NOTHING: tuple[int, Sequence[Values]] = 0, ()


class Nodes:
    """The values over nodes, of which on every level those are kept that were drawn together last.

    Those are both halves of the node above where that is kept; else all nodes of a block, whose numbers are drawn at
    once. Whatever is kept, the values over a node are made of those over the root by the same operations.

    Args:
        draw: the numbers (n, *shape) each of nodes (n).
        cells: how many nodes there are on the last level.
        root: length of the root.
        together: levels from a block's node down to its nodes; 0 for paths of steps that are not known beforehand.
    """

    def __init__(self, draw: Callable[[Sequence[int]], Sequence[Tensor]], cells: int, root: float, together: int):
        self.draw, self.cells, self.root, self.together = draw, cells, root, together
        self.kept: dict[int, tuple[int, Sequence[Values]]] = {}  # of each level the first node and the values of all

    def over(self, level: int, index: int) -> Values:
        """The values over a node, (*shape) each."""
        first, values = self.kept.get(level, NOTHING)
        if not first <= index < first + len(values):
            self._draw(level, index, 0 if self._has(level - 1, index >> 1) else min(self.together, level))
            first, values = self.kept[level]
        return values[index - first]

    def _has(self, level: int, index: int) -> bool:
        first, values = self.kept.get(level, NOTHING)
        return first <= index < first + len(values)

    def _draw(self, level: int, index: int, below: int) -> None:
        """Keep the values over a node: with those of all nodes that some levels above are one with it."""
        top, node = level - below, index >> below
        known = top
        while known >= 0 and not self._has(known, node >> (top - known)):
            known -= 1
        way = [(1 << k) + (node >> (top - k)) for k in range(max(known, 0), top)]
        way = [0, *way] if known < 0 else way
        counts = [self._count(top + k, node << k, 1 << k) for k in range(below)]
        within = [(1 << top + k) + (node << k) + i for k, count in enumerate(counts) for i in range(count)]
        drawn = self.draw(way + within)
        self._descend(known, top, node, rows([z[: len(way)] for z in drawn]))
        if below:
            values = self._cut(top, node, zip(*(z[len(way) :].split(counts) for z in drawn), strict=True))
            first = node << below
            self.kept[level] = first, rows([x[: self._count(level, first, 1 << below)] for x in values])

    def _count(self, level: int, first: int, most: int) -> int:
        """How many of some nodes of a level from a first one on have cells."""
        depth = (self.cells - 1).bit_length()
        return min(most, -(-self.cells >> (depth - level)) - first)

    def _descend(self, known: int, top: int, node: int, numbers: list[Values]) -> None:
        """Halve the nodes on the way to one, from a known level on."""
        if known < 0:
            known, self.kept[0] = 0, (0, [whole(numbers.pop(0), self.root)])
        for level, drawn in enumerate(numbers, known):
            index = node >> (top - level)
            halves = halved(self.over(level, index), scaled(drawn, self.root * 2.0**-level))
            self.kept[level + 1] = 2 * index, halves

    def _cut(self, top: int, node: int, numbers: Iterable[Values]) -> Sequence[Tensor]:
        """The values over the nodes of a block, (n, *shape) each, made of those over its node."""
        values: Sequence[Tensor] = [x[None] for x in self.over(top, node)]
        for level, drawn in enumerate(numbers, top):
            halves = halved([x[: len(drawn[0])] for x in values], scaled(drawn, self.root * 2.0**-level))
            values = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(*halves, strict=True)]
        return values


class Steps(Nodes):
    """Cells that have numbers of their own."""

    def _draw(self, level: int, index: int, below: int) -> None:
        first = index >> below << below
        scales = sqrt(2 / self.cells), sqrt(1 / (6 * self.cells))
        drawn = self.draw(range(first, first + self._count(level, first, 1 << below)))
        self.kept[level] = first, rows([z * scale for z, scale in zip(drawn, scales, strict=False)])


def rows(values: Sequence[Tensor]) -> list[Values]:
    """The values over every node, from those over all of them (n, *shape)."""
    return list(zip(*(x.unbind() for x in values), strict=True))
