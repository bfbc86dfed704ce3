"""Brownian motion over nodes of its tree that all samples ask for together."""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt

import torch
from torch import Tensor

from sciml.solvers.dyadic import Values, halved, scaled, scales, whole


class Nodes:
    """The values over nodes, of which on every level those are kept that were drawn together last.

    A node is drawn with all of its block whose nodes above are kept, or drawn on the way to them. Whatever is kept, the
    values over a node are made of those over the root by the same operations.

    Args:
        draw: the numbers (n, *shape) each of nodes (n).
        cells: how many nodes there are on the last level.
        root: length of the root.
        block: how many nodes of a level are drawn at once, a power of two from 2 on.
    """

    def __init__(self, draw: Callable[[Sequence[int]], Sequence[Tensor]], cells: int, root: float, block: int):
        self.draw, self.cells, self.root, self.block = draw, cells, root, block
        self.kept: dict[int, tuple[int, Values]] = {}  # of each level the first node and the values of all (n, *shape)
        self.rows: dict[int, dict[int, Values]] = {}  # the same by nodes, of levels that were asked for

    def over(self, level: int, index: int) -> Values:
        """The values over a node, (*shape) each."""
        if level not in self.rows or index not in self.rows[level]:
            if not self._has(level, index):
                self._draw(level, index)
            first, values = self.kept[level]
            self.rows[level] = dict(enumerate(zip(*(x.unbind() for x in values), strict=True), first))
        return self.rows[level][index]

    def _has(self, level: int, index: int) -> bool:
        return index in self._there(level)

    def _there(self, level: int) -> range:
        """The nodes of a level that are kept."""
        if level not in self.kept:
            return range(0)
        first, values = self.kept[level]
        return range(first, first + len(values[0]))

    def _draw(self, level: int, index: int) -> None:
        """Halve the nodes on the way to one from the last that is kept, and others whose halves are of its block."""
        known = level
        while known and not self._has(known, index >> (level - known)):
            known -= 1
        levels = range(known, level)
        spans = list(self._spans(level, index, known))
        nodes = [(1 << k) + node for k, span in zip(levels, spans, strict=True) for node in span]
        root = [] if self._has(0, 0) else [0]
        first, *drawn = zip(*(z.split([len(root), *map(len, spans)]) for z in self.draw(root + nodes)), strict=True)
        if root:
            self._keep(0, 0, whole(first, self.root))
        for k, span, numbers in zip(levels, spans, drawn, strict=True):
            start, values = self.kept[k]
            above = [x[span.start - start : span.stop - start] for x in values]
            self._keep(k + 1, 2 * span.start, _halves(above, numbers, self.root * 2.0**-k))

    def _keep(self, level: int, first: int, values: Values) -> None:
        self.kept[level] = first, values
        self.rows.pop(level, None)

    def _spans(self, level: int, index: int, known: int) -> Iterator[range]:
        """The nodes to be halved, of each level from a known one down to that above a node."""
        there = self._there(known) or range(1)
        for k in range(known, level):
            wide = max(1, self.block >> (level - k))
            start = (index >> (level - k)) // wide * wide
            there = range(max(there.start, start), min(there.stop, start + wide, self._count(k)))
            yield there
            there = range(2 * there.start, 2 * there.stop)

    def _count(self, level: int) -> int:
        """How many nodes of a level have cells."""
        depth = (self.cells - 1).bit_length()
        return -(-self.cells >> (depth - level))


def _halves(values: Sequence[Tensor], numbers: Sequence[Tensor], length: float) -> Values:
    """The values (2 n, *shape) over the halves of nodes of a length, from those over the nodes and their numbers."""
    if len(values) > 1:
        halves = halved(values, scaled(numbers, length))
        return [torch.stack(x, 1).flatten(0, 1) for x in zip(*halves, strict=True)]
    (w,), (number,), (scale,) = values, numbers, scales(length, 1)
    both = w.new_empty(len(w), 2, *w.shape[1:])
    left, right = both.unbind(1)
    torch.mul(number, scale, out=left).add_(w, alpha=0.5)  # as `halved` does, but in place
    torch.sub(w, left, out=right)
    return [both.flatten(0, 1)]


class Steps(Nodes):
    """Cells that have numbers of their own."""

    def _draw(self, level: int, index: int) -> None:
        first = index // self.block * self.block
        scales = sqrt(2 / self.cells), sqrt(1 / (6 * self.cells))
        drawn = self.draw(range(first, min(first + self.block, self.cells)))
        self._keep(level, first, [z * scale for z, scale in zip(drawn, scales, strict=False)])
