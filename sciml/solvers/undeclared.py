"""Tensors that need a gradient and that a field reads without saying so, whose gradient an adjoint would leave out."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciml.solvers.event import values
from sciml.solvers.march import March
from sciml.solvers.state import Const
from sciml.solvers.term import FunctionTerm, Term

with torch.inference_mode(False):
    LEAF: type = type(torch.autograd.graph.get_gradient_edge(torch.zeros(0, requires_grad=True)).node)


def refuse_undeclared(march: March, c: Const, y0: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a field that reads a tensor which needs a gradient and is not an input of the solve.

    Raises:
        ValueError: naming the tensor.
    """
    _refuse(march.term, undeclared(march, c, c.t0, y0, parameters))


def refuse_read(term: Term, roots: Sequence[Tensor], known: Collection[int]) -> None:
    """Refuse what reads such a tensor later than at the start, as in another branch.

    Args:
        term: the term.
        roots: what a backward pass has computed anew.
        known: the ids of all that it may have read.

    Raises:
        ValueError: naming the tensor.
    """
    _refuse(term, next((leaf for leaf in graph_leaves(roots) if id(leaf) not in known), None))


def _refuse(term: Term, leaf: Tensor | None) -> None:
    if leaf is not None:
        raise ValueError(
            f"term: it reads {_name(term, leaf)}, which needs a gradient but is not declared; hand over the module "
            "that has it, with forward(t, y) (of a net of y sciml.models.Autonomous makes one), pass it in args, "
            'or use Discrete(store="graph")'
        )


def undeclared(march: March, c: Const, t: Tensor, y: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """A tensor that needs a gradient and is read at (t, y) without being an input of the solve, or None.

    One evaluation's graph is walked (one step's, where folds read more than states).
    """
    known = {id(p) for p in parameters}
    with torch.enable_grad():
        try:
            y = y.detach().requires_grad_()
            roots = _read(march, c, t, y)
        except RuntimeError:  # of a field that leaves torch, or writes to y, which the march tells where it matters
            y = y.detach()
            roots = _read(march, c, t, y)
    return next((leaf for leaf in graph_leaves(roots) if id(leaf) not in known | {id(y)}), None)


def _read(march: March, c: Const, t: Tensor, y: Tensor) -> list[Tensor]:
    frozen, t = c.with_leaves([x.detach() for x in c.leaves()]), t.detach()
    roots = [march.field(frozen).checked(t, y)]
    if march.path is not None or march.events or march.jumps or any(fold.reduce != "write" for fold in march.folds):
        zero = torch.zeros_like(c.t0)
        fired = zero.long() + (1 << len(march.events)) - 1 if march.events else None
        roots += values(march, frozen, t, y)
        segment, after, *_ = march.segment(frozen, zero, zero, y, None, zero.long(), True, fired)
        roots.append(after)
        roots += [e for e in march.emit(segment, 1) if isinstance(e, Tensor)]
    return roots


def graph_leaves(roots: Sequence[Tensor]) -> Iterator[Tensor]:
    """The leaves that tensors were computed from and that need a gradient."""
    return (node.variable for node in graph_nodes(roots) if type(node) is LEAF)


def graph_nodes(roots: Sequence[Tensor]) -> Iterator[Any]:
    """The nodes of the graph that tensors were computed by."""
    nodes: list[Any] = list(dict.fromkeys(root.grad_fn for root in roots if root.grad_fn is not None))
    met = {None, *nodes}
    for node in nodes:  # and for what joins them meanwhile
        yield node
        for parent, _ in node.next_functions:
            if parent not in met:
                met.add(parent)
                nodes.append(parent)


def _name(term: Term, leaf: Tensor) -> str:
    shape = f"a tensor of shape {tuple(leaf.shape)}"
    function = term.function if isinstance(term, FunctionTerm) else term.drift
    function = function.forward if isinstance(function, nn.Module) else function
    try:
        scope = inspect.getclosurevars(function)
    except TypeError:
        return shape
    names = {**scope.globals, **scope.nonlocals}
    exact = [name for name, value in names.items() if value is leaf]
    owners = [n for n, v in names.items() if isinstance(v, nn.Module) and any(p is leaf for p in v.parameters())]
    derived = [n for n, v in names.items() if isinstance(v, Tensor) and v.requires_grad]
    found = exact or owners or derived
    return f"{found[0]!r} ({shape})" if found else shape
