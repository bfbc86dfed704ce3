"""What the chunks of a compiled march work on in place."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from sciml.solvers.bound import Bound
from sciml.solvers.captured import DEVICES, stream
from sciml.solvers.loops import Place, Rows
from sciml.solvers.state import Const, State

KINDS = 8  # of blocks that are kept, the oldest dropped first


class Block(NamedTuple):
    """A march while its rows last."""

    i: Tensor  # number of the next trial, 0-d int64
    place: Place
    base: Tensor  # accepted steps before the first row (l)
    c: Const
    rows: Rows

    @classmethod
    def of(cls, bound: Bound, s: State, totals: tuple[Any, ...]) -> "Block":
        """Memory of its own, but for the constants."""
        leaves, spec = tree_flatten((s, totals))
        place = Place(bound.shape.packing, spec, bound.shape.packing.pack(leaves))
        i = torch.zeros((), dtype=torch.int64, device=s.accepted.device)
        return cls(i, place, s.accepted.clone(), bound.c, bound.places())

    def begin(self, c: Const, s: State, totals: tuple[Any, ...]) -> None:
        """Go on from elsewhere."""
        self.i.zero_()
        self.place.put(s, totals)
        for held, x in zip((self.base, *self.c.leaves()), (s.accepted, *c.leaves()), strict=True):
            held.copy_(x)


class Blocks:
    """Blocks that stay where they are, for graphs that know their inputs by address. The host needs none.

    One that is in use is not here, so a march within a march has its own.
    """

    def __init__(self):
        self.free: dict[Any, list[Block]] = {}

    def stay(self, bound: Bound) -> bool:
        """Whether they do, so that a batch may not shrink."""
        return bound.y0.device.type in DEVICES

    def take(self, bound: Bound, s: State, totals: tuple[Any, ...]) -> Block:
        """A block at this state."""
        if not self.stay(bound):
            return Block.of(bound, s, totals)
        free = self.free.get(_kind(bound))
        if not free:
            return Block.of(bound, s, totals)._replace(c=_own(bound.c))
        block = free.pop()
        block.begin(bound.c, s, totals)
        return block

    def give(self, bound: Bound, block: Block) -> Block:
        """The block as it is, to stay so; its memory is free for others."""
        if not self.stay(bound):
            return block
        kind = _kind(bound)
        if kind not in self.free and len(self.free) == KINDS:
            del self.free[next(iter(self.free))]
        place, base, rows = _own((block.place, block.base, block.rows))
        self.free.setdefault(kind, []).append(block)
        return block._replace(place=place, base=base, rows=rows)


def _kind(bound: Bound) -> Any:
    """What blocks have in common that serve the same marches; programs keep the shapes that they know."""
    mode = torch.is_inference_mode_enabled(), stream(bound.y0.device)
    return id(bound.shape), mode, tree_map(lambda x: (tuple(x.shape), x.dtype), bound.c)


def _own(tree: Any) -> Any:
    """The same tensors with memory of their own."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)
