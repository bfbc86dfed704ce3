"""Opt-in rewrites of a compiled march in float32: cheaper kernels for what small networks are made of.

They change results by a few units in the last place: a rational tanh, a bias that joins the next kernel instead of the
matrix product, products with a tiny inner dimension as sums of broadcast products, small ones in loops of their own
that take tanh of a factor as it comes, step sizes found in float32.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from sciml.solvers import product as products
from sciml.solvers.product import EDGE, P, Q, product, suits

TINY = 4  # inner dimension up to which a matrix product is a sum of broadcast products
NARROW = 4  # columns up to which a library wants the second factor by columns


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent of float32 numbers, of additions, products and one division: see `product`."""
    x = x.clamp(-EDGE, EDGE)
    z = x * x
    w = z * z
    p, q = ((c[4] * w + (c[3] * z + c[2])) * w + (c[1] * z + c[0]) for c in (P, Q))
    return x * p / q


def mm(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product (m, k) (k, n)."""
    inner, columns = b.shape
    if inner <= TINY:
        total = a[:, 0:1] * b[0:1]
        for k in range(1, inner):
            total = total + a[:, k : k + 1] * b[k : k + 1]
        return total
    if columns <= NARROW:
        return torch.mm(b.t().contiguous(), a.t()).t().contiguous()
    return torch.mm(a, b)


def addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """C + a b, whose addition joins the next kernel."""
    return mm(a, b) + c


def tanh_turned(x: Tensor) -> Tensor:
    """`tanh` of matrices that lie by column."""
    return tanh(x.t()).clone(memory_format=torch.contiguous_format).t() if x.ndim == 2 else tanh(x)


def mm_turned(a: Tensor, b: Tensor) -> Tensor:
    """`mm` of matrices that lie by column."""
    return (product(b.t(), a.t(), None, False) if _small(a, b) else mm(b.t(), a.t())).t()


def addmm_turned(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`addmm` of matrices that lie by column."""
    if c.ndim == 1 and _small(a, b):
        return product(b.t(), a.t(), c, False).t()
    return (mm_turned(a, b).t() + (c[:, None] if c.ndim == 1 else c.t())).t()


def mm_of_tanh(a: Tensor, b: Tensor) -> Tensor:
    """`mm_turned` of tanh a and b."""
    return product(b.t(), a.t(), None, True).t()


def addmm_of_tanh(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`addmm_turned` of c, tanh a and b."""
    return product(b.t(), a.t(), c, True).t() if c.ndim == 1 else (mm_of_tanh(a, b).t() + c.t()).t()


def _small(a: Tensor, b: Tensor) -> bool:
    return len(b) > TINY and suits(b.t(), a.t())


def power(x: Tensor, exponent: float) -> Tensor:
    """A power of float64 numbers in float32."""
    return (x.float() ** exponent).double()


aten, prims = torch.ops.aten, torch.ops.prims
BY_ROW: dict[object, Callable[..., Tensor]] = {
    aten.tanh.default: tanh,
    aten.mm.default: mm,
    aten.addmm.default: addmm,
}
BY_COLUMN: dict[object, Callable[..., Tensor]] = {
    aten.tanh.default: tanh_turned,
    aten.mm.default: mm_turned,
    aten.addmm.default: addmm_turned,
}
OF_TANH = {aten.mm.default: mm_of_tanh, aten.addmm.default: addmm_of_tanh}


class Rewrite(CustomGraphPass):
    """Applies the rewrites to a graph and to the bodies of its loops, each of which the compiler passes by itself.

    Args:
        rewrites: `BY_ROW`, or `BY_COLUMN` where features (b, c) are to lie by column, so that a layer multiplies them
            by its weight as that lies in memory, and biases and small factors are scalars along the batch.
    """

    def __init__(self, rewrites: dict[object, Callable[..., Tensor]]):
        self.rewrites = rewrites

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite a graph in place."""
        self._settle(graph)
        for node in list(graph.nodes):
            new = self._of(node)
            if new is not None:
                args = [x for x in node.args if isinstance(x, fx.Node)]
                if joined := self._joined(node):
                    new, args = OF_TANH[node.target], [x.args[0] if x is joined else x for x in args]
                with graph.inserting_before(node):
                    node.replace_all_uses_with(_inlined(graph, new, args))
                graph.erase_node(node)
        for node in graph.find_nodes(op="call_function", target=aten.tanh.default):
            if not node.users:
                graph.erase_node(node)

    def _of(self, node: Any) -> Callable[..., Tensor] | None:
        """What to put in the place of a node."""
        value = node.meta.get("val")
        if node.op != "call_function" or node.kwargs or not isinstance(value, Tensor):
            return None
        if node.target is aten.tanh.default and all(self._joined(user) is node for user in node.users):
            return None
        if node.target is aten.pow.Tensor_Scalar:
            return partial(power, exponent=node.args[1]) if _widened(node.args[0]) else None
        return self.rewrites.get(node.target) if value.dtype == torch.float32 else None

    def _joined(self, node: Any) -> Any:
        """The tanh that a small product computes of its factor by itself; None where there is none."""
        if self.rewrites is not BY_COLUMN or node.target not in OF_TANH or node.kwargs:
            return None
        *_, a, b = node.args
        alone = a.target is aten.tanh.default and len(a.users) == 1 and a is not b
        return a if alone and suits(b.meta["val"].t(), a.meta["val"].t()) else None

    def _settle(self, graph: fx.Graph) -> None:
        """Keep the layout of what comes out: the body of a loop gives back what it was given."""
        (output,) = graph.find_nodes(op="output")
        for node in output.all_input_nodes:
            value = node.meta.get("val")
            if node.op == "call_function" and isinstance(value, Tensor) and value.ndim == 2 and value.is_contiguous():
                with graph.inserting_before(output):
                    own = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
                own.meta["val"] = value
                output.replace_input_with(node, own)

    def uuid(self) -> str:
        """What compiled code is cached by, beside its graph."""
        return (
            inspect.getsource(sys.modules[__name__])
            + inspect.getsource(products)
            + ("columns" if self.rewrites is BY_COLUMN else "rows")
        )


def _widened(node: Any) -> bool:
    """Whether float64 numbers are float32 ones but for bounds, as the scaled errors of a controller are."""
    while node.target is aten.where.self:
        node = node.args[1]
    widened = node.target is prims.convert_element_type.default and node.meta["val"].dtype == torch.float64
    return widened and node.args[0].meta["val"].dtype == torch.float32


def _inlined(graph: fx.Graph, function: Callable[..., Tensor], args: Sequence[fx.Node]) -> fx.Node:
    """The node that a function's value comes out of."""
    values = [arg.meta["val"] for arg in args]
    with detect_fake_mode(values) or nullcontext():
        body = make_fx(function, decomposition_table=select_decomp_table())(*values).graph
    known = dict(zip(body.find_nodes(op="placeholder"), args, strict=True))
    for node in body.nodes:
        if node.op == "output":
            return known[node.args[0]]
        if node.op != "placeholder":
            known[node] = graph.node_copy(node, known.__getitem__)
    raise AssertionError("a graph ends in an output")


def laid_out(owner: nn.Module, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a module, by name; weights of wide linear layers by columns, as products want them."""
    wide = {
        f"{name}.weight"
        for name, part in owner.named_modules()
        if isinstance(part, nn.Linear) and part.out_features > NARROW
    }
    return {name: p.t().contiguous().t() if name in wide else p for name, p in parameters.items()}
