"""States that are tuples, lists or dicts of tensors, packed into one tensor at the solver's boundary."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.term import Term, as_term
from sciml.typing import Args, Lanes, State


class Layout(NamedTuple):
    """How the tensors of a tree lie in one tensor: (n), or (b, n) with lanes "each"."""

    tree: Any  # the tree with numbers of leaves in the place of tensors
    shapes: tuple[torch.Size, ...]  # without the batch axis of lanes "each"
    lanes: Lanes

    @classmethod
    def of(cls, state: State, lanes: Lanes) -> "Layout":
        """The layout of a state.

        Raises:
            TypeError: a leaf is not a tensor, or the leaves differ in dtype or device.
        """
        leaves: list[Tensor] = []
        tree = _number(state, leaves, "y0")
        if not leaves:
            raise TypeError("y0: expected at least one tensor, got an empty tree")
        if len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
            kinds = ", ".join(f"{leaf.dtype} on {leaf.device}" for leaf in leaves)
            raise TypeError(f"y0: expected tensors of one dtype on one device, got {kinds}")
        each = lanes == "each"
        if each and (leaves[0].ndim == 0 or len({leaf.shape[:1] for leaf in leaves}) > 1):
            raise ValueError(f"y0: lanes='each' expects one batch size, got {[tuple(leaf.shape) for leaf in leaves]}")
        return cls(tree, tuple(leaf.shape[each:] for leaf in leaves), lanes)

    def pack(self, state: State, name: str = "term", what: str = "drift") -> Tensor:
        """All leaves in one tensor; an error says ``what`` the argument ``name`` gave."""
        leaves: list[Tensor] = []
        tree = _number(state, leaves, name)
        if tree != self.tree:
            expected, got = (map_state(form, lambda _: "tensor") for form in (self.tree, tree))
            raise ValueError(f"{name}: expected a {what} in the structure of the state, {expected}, got {got}")
        keep = int(self.lanes == "each")
        shapes = tuple(leaf.shape[keep:] for leaf in leaves)
        if shapes != self.shapes:
            raise ValueError(f"{name}: expected a {what} of the state's shapes {self.shapes}, got {shapes}")
        return torch.cat([leaf.flatten(keep) if leaf.ndim > keep else leaf.unsqueeze(keep) for leaf in leaves], keep)

    def unpack(self, y: Tensor) -> Any:
        """The tree of a packed tensor (..., n)."""
        parts = y.split([prod(shape) for shape in self.shapes], -1)
        leaves = [
            part.unflatten(-1, shape) if shape else part.squeeze(-1)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return map_state(self.tree, leaves.__getitem__)


class PackedTerm(Term):
    """A term on trees as a term on packed states."""

    def __init__(self, term: Any, layout: Layout):
        self.term, self.layout = as_term(term), layout

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The packed drift; the term sees trees, and with lanes "each" times of shape (b)."""
        t = t.reshape(t.shape[:1]) if self.layout.lanes == "each" else t
        return self.layout.pack(self.term.drift(t, self.layout.unpack(y), args))

    def mass(self, args: Args) -> Tensor | LinearOperator | None:
        """The term's own, of the packed unknowns."""
        return self.term.mass(args)


class PackedFunction:
    """A function (t, y, args) of trees as one of packed states."""

    def __init__(self, function: Callable[..., Any], layout: Layout):
        self.function, self.layout = function, layout

    def __call__(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The function's value; with lanes "each" it sees times of shape (b)."""
        t = t.reshape(t.shape[:1]) if self.layout.lanes == "each" else t
        return self.function(t, self.layout.unpack(y), args)


class PackedReset(PackedFunction):
    """A function (t, y, args) -> y of trees as one of packed states."""

    def __call__(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The packed state after the reset."""
        return self.layout.pack(super().__call__(t, y, args), "reset", "state")


class PackedJump(PackedFunction):
    """A jump (t, y, key, args) -> (y, changed) of trees as one of packed states."""

    def __call__(self, t: Tensor, y: Tensor, key: Tensor, args: Args) -> tuple[Tensor, Tensor]:
        """The packed state after the jump, and where it changed."""
        t = t.reshape(t.shape[:1]) if self.layout.lanes == "each" else t
        given = self.function(t, self.layout.unpack(y), key, args)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"jumps: expected a state and where it changed, got {type(given).__name__}")
        return self.layout.pack(given[0], "jumps", "state"), given[1]


def like(tree: Sequence[Any], parts: list[Any]) -> Any:
    """Parts as the list, tuple or named tuple that a tree is."""
    if isinstance(tree, list):
        return parts
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)  # pyrefly: ignore


def map_state(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The tree with a function's value of every leaf in its place."""
    if isinstance(tree, dict):
        return {key: map_state(part, function) for key, part in tree.items()}
    return (
        like(tree, [map_state(part, function) for part in tree]) if isinstance(tree, tuple | list) else function(tree)
    )


def _number(tree: Any, leaves: list[Tensor], name: str) -> Any:
    if isinstance(tree, Tensor) or hasattr(tree, "__torch_function__"):  # as a jet has
        leaves.append(tree)
        return len(leaves) - 1
    if isinstance(tree, dict):
        return {key: _number(tree[key], leaves, name) for key in sorted(tree)}
    if isinstance(tree, tuple | list):
        return like(tree, [_number(part, leaves, name) for part in tree])
    raise TypeError(f"{name}: expected a tensor, or a tuple, list or dict of tensors, got {type(tree).__name__}")
