"""A rewrite of compiled marches of small systems: every component of a state a tensor of its own.

The arithmetic of an implicit step on a few unknowns mixes components, so that a compiler makes a kernel and a buffer of
nearly every operation. Once vectors and matrices are known by their entries, each one tensor along the batch, all of a
trial is pointwise and becomes one kernel. What moves entries about (views, stacks, selections) is done to their numbers
while compiling and leaves nothing behind; zeros, as in the unit vectors that a Jacobian is made with, are multiplied
out.
"""

import inspect
import operator
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomSchedulerPass
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import _disable_current_modes

SMALL = 10  # entries along an axis that is taken apart: the unknowns, the nodes of a method of eight stages
MOST = 128  # entries of a tensor that is

aten, prims = torch.ops.aten, torch.ops.prims
Node = Any  # an fx.Node, whose arguments are typed too widely to be read


class Constant(NamedTuple):
    """An entry whose value is known."""

    value: float | int | bool
    dtype: torch.dtype


class Entry(NamedTuple):
    """An entry of a tensor of the graph that is not taken apart."""

    whole: Node
    index: tuple[int | None, ...]  # None for its long axis


class Unknown(Exception):
    """An operation that is left as it is."""


class Shape(NamedTuple):
    """That of a tensor to be taken apart."""

    short: list[int]  # with 1 for the long axis
    long: int | None  # the axis of a batch, that of all entries

    @classmethod
    def of(cls, node: Node) -> "Shape":
        """The shape of a node's value, if it is one of few entries."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype.is_complex:
            raise Unknown
        sizes = [_known(n) for n in value.shape]
        long = [i for i, n in enumerate(sizes) if n is None or n > SMALL]
        short = [1 if n is None or n > SMALL else n for n in sizes]
        if len(long) > 1 or not 0 < prod(short) <= MOST:
            raise Unknown
        return cls(short, long[0] if long else None)


# what moves entries, and which of its arguments are axes that may not be the long one
MOVES: dict[Any, tuple[int, ...]] = {
    aten.select.int: (1,),
    aten.slice.Tensor: (1,),
    aten.split.Tensor: (2,),
    aten.split_with_sizes.default: (2,),
    aten.unbind.int: (1,),
    aten.diagonal.default: (2, 3),
    aten.flip.default: (1,),
    aten.unsqueeze.default: (),
    aten.squeeze.default: (),
    aten.squeeze.dim: (),
    aten.squeeze.dims: (),
    aten.permute.default: (),
    aten.transpose.int: (),
    aten.t.default: (),
}
DEFAULTS: dict[Any, tuple[Any, ...]] = {
    aten.slice.Tensor: (0,),
    aten.split.Tensor: (0, 0),
    aten.split_with_sizes.default: (0, 0),
    aten.unbind.int: (0,),
    aten.diagonal.default: (0, 0, 1),
}
SAME = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}
SIZED = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
REDUCTIONS: dict[Any, Any] = {
    aten.sum.default: aten.add.Tensor,
    aten.sum.dim_IntList: aten.add.Tensor,
    aten.amax.default: aten.maximum.default,
    aten.amin.default: aten.minimum.default,
    aten.any.default: aten.logical_or.default,
    aten.any.dim: aten.logical_or.default,
    aten.any.dims: aten.logical_or.default,
    aten.all.default: aten.logical_and.default,
    aten.all.dim: aten.logical_and.default,
    aten.all.dims: aten.logical_and.default,
}


ALONG = {aten.sum.dim_IntList: aten.sum.dim_IntList, aten.amax.default: aten.amax.default}
ALONG |= {aten.amin.default: aten.amin.default}
NEUTRAL = {aten.mul.Tensor: 1, aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.div.Tensor: 1}
COMMUTES = {aten.mul.Tensor, aten.add.Tensor}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}


class Components(CustomGraphPass):
    """Takes the small tensors of a graph apart; the compiler passes the bodies of its loops by themselves."""

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite a graph in place; one with matrix products is left alone, since their factors stay in one piece."""
        if not any(node.target in PRODUCTS for node in graph.nodes):
            _Apart(graph).run()

    def uuid(self) -> str:
        """What compiled code is cached by, beside its graph."""
        return inspect.getsource(sys.modules[__name__])


class Passes(CustomGraphPass):
    """Several passes, one after the other."""

    def __init__(self, passes: Sequence[CustomGraphPass]):
        self.passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite a graph in place."""
        for each in self.passes:
            each(graph)

    def uuid(self) -> list[Any]:
        """What compiled code is cached by, beside its graph."""
        return [each.uuid() for each in self.passes]


class Forget(CustomSchedulerPass):
    """Makes a loop's body forget the buffers that fusion has made superfluous, as a graph outside of loops does.

    The compiler notes them with the body, but allocates by the notes of the graph around it (torch 2.13).
    """

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """The nodes as they are; the notes of both become one."""
        parent = getattr(V.graph, "parent", None)
        if parent is not None:
            V.graph.removed_buffers = parent.removed_buffers
        return nodes

    def uuid(self) -> str:
        """What compiled code is cached by, beside its graph."""
        return inspect.getsource(sys.modules[__name__])


class _Apart:
    """A graph on the way from tensors to entries.

    A tensor that is known by its entries has their numbers in ``numbers``, an integer tensor of its short shape: what
    moves entries is done to that.
    """

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.entries: list[Node | Constant | Entry] = []
        self.index: dict[Any, int] = {}  # number of an entry that has been had before
        self.numbers: dict[Node, Any] = {}
        self.kept: set[Node] = set()  # nodes that compute what they did before
        self.wholes: dict[Node, Node] = {}
        self.nodes: dict[int, Node] = {}  # entries that have been asked for
        self.sizes: dict[str, Any] = {}  # a node, or a node and an axis, by a size that is not known
        values = [node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
        self.mode = detect_fake_mode(values) or nullcontext()
        self.device = values[0].device if values else torch.device("cpu")

    def run(self) -> None:
        """Rewrite it."""
        old = list(self.graph.nodes)
        self.mutated = {x for node in old if _mutates(node) for x in node.all_input_nodes}
        for node in old:
            with self.graph.inserting_before(node), _disable_current_modes():
                try:
                    self.numbers[node] = self.apart(node)
                except Unknown:
                    node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), self.whole)
                    self.kept.add(node)
                    self._sized(node)
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node in self.numbers or node.meta.pop("entry", False)):
                self.graph.erase_node(node)

    def _sized(self, node: Node) -> None:
        """Note where sizes are to be had that are not known."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            self.sizes[str(value)] = node
        elif isinstance(value, Tensor):
            for i, n in enumerate(value.shape):
                if _known(n) is None:
                    self.sizes.setdefault(str(n), (node, i))

    def apart(self, node: Node) -> Any:
        """The numbers of the entries of a node's value."""
        target = node.target
        if node.op != "call_function":
            raise Unknown
        if target is operator.getitem:
            return self._item(node)
        if target in MOVES or target in SAME or target in SIZED or target is aten.cat.default:
            found = self._moved(node)
            if all(x in self.kept for x in node.all_input_nodes):
                self.kept.add(node)
            return found
        if target in REDUCTIONS or target is aten.mean.dim:
            return self._reduced(node)
        if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
            raise Unknown
        if not any(isinstance(x.meta.get("val"), Tensor) for x in node.all_input_nodes):
            return self._made(node)
        if torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags:
            return self._pointwise(node)
        raise Unknown

    def of(self, node: Node) -> Any:
        """The numbers of a node's entries; those of a tensor that is not taken apart are read from it."""
        if node not in self.numbers:
            if node in self.mutated:
                raise Unknown
            short, long = Shape.of(node)
            ranges = [[None] if i == long else range(n) for i, n in enumerate(short)]
            numbers = [self.number(Entry(node, index)) for index in product(*ranges)]
            self.numbers[node] = torch.tensor(numbers).reshape(short)
        return self.numbers[node]

    def number(self, entry: Any, key: Any = None) -> int:
        """An entry's number."""
        key = entry if key is None else key
        if key not in self.index:
            self.index[key] = len(self.entries)
            self.entries.append(entry)
        return self.index[key]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new node."""
        node = self.graph.call_function(target, args, kwargs)
        with self.mode:
            node.meta["val"] = target(*fx.map_arg(args, _value), **fx.map_arg(kwargs, _value))
        node.meta["entry"] = True
        return node

    def node(self, number: int) -> Node:
        """An entry as a node."""
        if number not in self.nodes:
            self.nodes[number] = self._read(self.entries[number])
        return self.nodes[number]

    def _read(self, entry: Node | Constant | Entry) -> Node:
        if isinstance(entry, Constant):
            return self.call(aten.full.default, [], entry.value, dtype=entry.dtype, device=self.device)
        if isinstance(entry, fx.Node):
            return entry
        node, axis = entry.whole, 0
        for i in entry.index:
            if i is None:
                axis = 1
            else:
                node = self.call(aten.select.int, node, axis, i)
        return node

    def whole(self, node: Node) -> Node:
        """A node for a tensor that may have been taken apart."""
        if node in self.kept or node not in self.numbers or not isinstance(self.numbers[node], Tensor):
            return node
        if node not in self.wholes:
            self.wholes[node] = self._stacked(node)
        return self.wholes[node]

    def _stacked(self, node: Node) -> Node:
        """A tensor of its entries, the long axis inmost in memory."""
        value, (short, long) = node.meta["val"], Shape.of(node)
        parts = [self.node(number) for number in self.numbers[node].flatten().tolist()]
        if long is None:
            rows = [self.call(aten.view.default, part, [1]) for part in parts]
            return self.call(aten.view.default, self.call(aten.cat.default, rows), short)
        size: Any = _known(value.shape[long])
        if size is None:
            of = self.sizes[str(value.shape[long])]
            size = of if isinstance(of, fx.Node) else self.call(aten.sym_size.int, *of)
        rows = [
            self.call(aten.unsqueeze.default, x if x.meta["val"].ndim else self.call(aten.expand.default, x, [size]), 0)
            for x in parts
        ]
        rest = [n for i, n in enumerate(short) if i != long]
        stack = self.call(aten.view.default, self.call(aten.cat.default, rows), [*rest, -1])
        order = [*range(long), len(rest), *range(long, len(rest))]
        turned = self.call(aten.permute.default, stack, order)
        if long < len(rest) and value.is_contiguous():
            return self.call(aten.clone.default, turned, memory_format=torch.contiguous_format)
        return turned

    def _item(self, node: Node) -> Tensor:
        source, i = node.args
        found = self.numbers.get(source)
        if not isinstance(found, tuple | list):
            raise Unknown
        if source in self.kept:
            self.kept.add(node)
        return found[i]

    def _moved(self, node: Node) -> Any:
        """What moves entries, done to their numbers."""
        target, (source, *args) = node.target, node.args
        whole = isinstance(node.meta.get("val"), Tensor)
        short, long = Shape.of(node) if whole else Shape([], None)
        if target in SAME:
            return self.of(source)
        if target is aten.cat.default:
            axis = args[0] % len(short) if args else 0
            if axis == long:
                raise Unknown
            return _checked(torch.cat([self.of(x) for x in source], axis), short)
        numbers, before = self.of(source), Shape.of(source)
        if target in SIZED:
            return self._resized(node, numbers, before)
        if len(node.all_input_nodes) > 1:  # an index or a size that is not known
            raise Unknown
        given = [*args, *DEFAULTS.get(target, ())[len(args) :]]
        for place in MOVES[target]:
            axis = given[place - 1]
            if before.long in [a % numbers.ndim for a in (axis if isinstance(axis, list | tuple) else [axis])]:
                raise Unknown
        found = target(numbers, *args, **node.kwargs)
        return _checked(found, short) if whole else tuple(found)

    def _resized(self, node: Node, numbers: Tensor, before: Shape) -> Tensor:
        """Views of another shape: no entry moves across the long axis."""
        short, long = Shape.of(node)
        if node.target is aten.expand.default:
            return numbers.expand(short)
        if (long is None) != (before.long is None):
            raise Unknown
        if long is not None and prod(short[:long]) != prod(before.short[: before.long]):
            raise Unknown
        return numbers.reshape(short)

    def _made(self, node: Node) -> Tensor:
        """Constants."""
        (short, long), value, target = Shape.of(node), node.meta["val"], node.target
        if target is aten.full.default and not isinstance(node.args[1], fx.Node):
            return torch.full(short, self.constant(node.args[1], value.dtype))
        if target not in (aten.eye.default, aten.scalar_tensor.default, prims.iota.default) or long is not None:
            raise Unknown
        if None in [_known(_value(x)) for x in node.all_input_nodes]:
            raise Unknown
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: _known(_value(x)))
        made = target(*args, **{**kwargs, "device": torch.device("cpu")}).flatten().tolist()
        return torch.tensor([self.constant(x, value.dtype) for x in made]).reshape(short)

    def constant(self, x: Any, dtype: torch.dtype) -> int:
        """The number of a known value."""
        x = bool(x) if dtype is torch.bool else float(x) if dtype.is_floating_point else int(x)
        return self.number(Constant(x, dtype), (repr(x), dtype))

    def _pointwise(self, node: Node) -> Tensor:
        """An operation, entry by entry."""
        short, long = Shape.of(node)
        tensors = [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), Tensor)]
        grids = [self._aligned(x, short, long) for x in tensors]
        dtype = node.meta["val"].dtype
        found = [
            self._computed(node, dtype, tensors, numbers)
            for numbers in zip(*(grid.flatten().tolist() for grid in grids), strict=True)
        ]
        return torch.tensor(found).reshape(short)

    def _aligned(self, x: Node, short: list[int], long: int | None) -> Tensor:
        numbers, before = self.of(x), Shape.of(x)
        if before.long is not None and before.long + len(short) - numbers.ndim != long:
            raise Unknown
        return numbers.expand(short)

    def _computed(self, node: Node, dtype: torch.dtype, tensors: Sequence[Node], numbers: tuple[int, ...]) -> int:
        """The number of what an operation makes of these entries."""
        given = dict(zip(tensors, numbers, strict=True))
        template = fx.map_arg((node.args, node.kwargs), lambda x: ("entry", given[x]) if x in given else x)
        key = (node.target, dtype, repr(template))
        if key in self.index:
            return self.index[key]
        spot = self._simplified(node, dtype, given)
        if spot is None:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: self.node(given[x]) if x in given else x)
            made = self.call(node.target, *args, **kwargs)
            if made.meta["val"].dtype != dtype:  # promotion that depends on the number of axes
                raise Unknown
            return self.number(made, key)
        self.index[key] = spot
        return spot

    def dtype(self, number: int) -> torch.dtype:
        """That of an entry."""
        entry = self.entries[number]
        if isinstance(entry, Constant):
            return entry.dtype
        return (entry.whole if isinstance(entry, Entry) else entry).meta["val"].dtype

    def _simplified(self, node: Node, dtype: torch.dtype, given: dict[Node, int]) -> int | None:
        """The number of an entry that an operation need not be computed for: a known one, or one of its arguments."""
        known = {x: e for x, number in given.items() if isinstance(e := self.entries[number], Constant)}
        if not known or len(given) < len(node.all_input_nodes):
            return None
        target, args = node.target, node.args
        if len(known) == len(given):
            values = {x: torch.tensor(e.value, dtype=e.dtype) for x, e in known.items()}
            made, kwargs = fx.map_arg((args, node.kwargs), values.__getitem__)
            return self.constant(target(*made, **kwargs).item(), dtype)
        if target is aten.where.self and args[0] in known:
            chosen = args[1] if known[args[0]].value else args[2]
            return given[chosen] if self.dtype(given[chosen]) == dtype else None
        if node.kwargs or len(given) != 2 or any(self.dtype(number) != dtype for number in given.values()):
            return None
        (a, b), value = args, {x: e.value for x, e in known.items()}
        if (target is aten.mul.Tensor and 0 in value.values()) or (target is aten.div.Tensor and value.get(a) == 0):
            return self.constant(0, dtype)
        neutral = NEUTRAL.get(target)
        if neutral is None:
            return None
        if value.get(b) == neutral:
            return given[a]
        return given[b] if value.get(a) == neutral and target in COMMUTES else None

    def _reduced(self, node: Node) -> Tensor:
        """A reduction, of short axes one entry after the other and then along the long one."""
        source, target = node.args[0], node.target
        mean, value = target is aten.mean.dim, node.meta["val"]
        if node.kwargs or value.dtype != source.meta["val"].dtype:
            raise Unknown
        (short, _), numbers, before = Shape.of(node), self.of(source), Shape.of(source)
        axes = node.args[1] if len(node.args) > 1 else None
        axes = [axes] if isinstance(axes, int) else axes or range(numbers.ndim)  # none given are all
        dims = sorted({axis % numbers.ndim for axis in axes})
        along, combine = before.long in dims, aten.add.Tensor if mean else REDUCTIONS[target]
        if along and (mean or target not in ALONG):
            raise Unknown
        kept = [i for i in range(numbers.ndim) if i not in dims]
        count = prod(before.short[i] for i in dims)
        found = []
        for group in numbers.permute((*kept, *dims)).reshape(-1, count).tolist():
            total = self.node(group[0])
            for other in group[1:]:
                total = self.call(combine, total, self.node(other))
            if mean and count > 1:
                total = self.call(aten.div.Tensor, total, count)
            if along and total.meta["val"].ndim:
                total = self.call(ALONG[target], total, [0])
            found.append(self.number(total))
        return torch.tensor(found).reshape(short)


def _value(node: Node) -> Any:
    return node.meta["val"]


def _known(size: Any) -> int | None:
    """A size, None where it is a symbol that has not come to one value."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _checked(numbers: Tensor, short: list[int]) -> Tensor:
    """Numbers whose shape is the one expected."""
    if list(numbers.shape) != short:
        raise Unknown
    return numbers
