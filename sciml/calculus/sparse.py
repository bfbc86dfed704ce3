"""Jets along coordinate directions: only the coordinates that move are carried.

The value x (..., d) is there in full, the other coefficients at a few entries of the last axis, the *support*.
Functions of one variable, sums over the last axis, slices of it and arithmetic with constants stay there. The first
affine map gathers the columns of its weight that the support names and gives an ordinary jet, so that from there on
nothing depends on d. Any other function makes the jet dense first, which costs (R, ..., d) per coefficient.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from sciml.calculus.algebra import Algebra, Polynomial, constant
from sciml.calculus.arithmetic import (
    ALIASES,
    add_polynomials,
    divide_polynomials,
    multiply_polynomials,
    subtract_polynomials,
)
from sciml.calculus.dispatch import RULES, Jet, Rule, rule
from sciml.calculus.elementwise import ELEMENTWISE, Elementwise

SPARSE: dict[str, Rule] = {}


class SparseJet(Jet):
    """A jet whose coefficients are zero but at some entries of the last axis.

    Args:
        algebra: the multi-indices.
        value: the value (..., d).
        support: the moving coordinates, (R, m) for all points or (R, ..., m) for each of its own. One that occurs again
            has coefficients of zero there.
        local: the coefficients at the support, the value too: (R, ..., m), with any axis but the last 1 where it does
            not matter; collapsed ones are still one per direction.
        smoothness: as of ``Jet``.
    """

    tables: ClassVar[tuple[dict[str, Rule], ...]] = (SPARSE, RULES)

    def __init__(
        self, algebra: Algebra, value: Tensor, support: Tensor, local: Polynomial, smoothness: float = math.inf
    ):
        super().__init__(algebra, constant(algebra, value), support.shape[0], smoothness)
        self.support = support
        self.local = local

    @property
    def coefficients(self) -> Polynomial:
        """The coefficients of the dense jet."""
        return [self.primal, *(None if v is None else self.summed(k, self._spread(v)) for k, v in self.moving())]

    def _spread(self, v: Tensor) -> Tensor:
        index = aligned_support(self.support, self.ndim)
        shape = torch.broadcast_shapes(v.shape, index.shape)
        zeros = torch.zeros(*shape[:-1], self.shape[-1], dtype=v.dtype, device=v.device)
        return zeros.scatter_add(-1, index.expand(shape), v.expand(shape))

    def moving(self) -> list[tuple[int, Any]]:
        """The local coefficients but for the value, with their positions."""
        return list(enumerate(self.local))[1:]

    def summed(self, k: int, c: Tensor) -> Tensor:
        """A coefficient, without its directions where it is collapsed."""
        return c if self.has_directions(k) else c.expand(self.directions, *c.shape[1:]).sum(0)

    def with_local(self, value: Tensor, local: Polynomial, support: Tensor | None = None) -> "SparseJet":
        """Another value and coefficients along the same curves."""
        return SparseJet(self.algebra, value, self.support if support is None else support, local, self.smoothness)

    def dense(self, value: Tensor, parts: Polynomial) -> Jet:
        """An ordinary jet of the coefficients (R, ...)."""
        return Jet(self.algebra, [value, *parts], self.directions, self.smoothness)


def aligned_support(support: Tensor, axes: int) -> Tensor:
    """The support as an index (R, ..., m) with the axes of a value and one more."""
    return support if support.ndim == axes + 1 else support.reshape(len(support), *[1] * (axes - 1), -1)


def take(value: Tensor, support: Tensor, axes: int) -> Tensor:
    """The entries (R, ..., m) of a value (..., d) at a support, for a jet with some number of axes."""
    if support.ndim == 2 and axes != 1:
        taken = value[..., support].movedim(-2, 0)  # (R, ..., m)
        return taken.reshape(len(support), *[1] * (axes - value.ndim), *taken.shape[1:])
    if value.ndim == 1:
        return value[support]
    return value.expand(*support.shape[:-1], value.shape[-1]).gather(-1, support)


def seeded(x: Tensor, coordinates: list[Tensor], algebra: Algebra) -> SparseJet:
    """The jet of x + sum_i t_i e_(coordinates[i]).

    Args:
        x: points (..., d).
        coordinates: one tensor (R) or (R, ...) for each variable, all of one shape.
        algebra: the multi-indices.
    """
    support = torch.stack(coordinates, -1)  # (R, m) or (R, ..., m)
    moves = _first_moves(support, x)
    local = constant(algebra, take(x, support, x.ndim))
    for k, index in enumerate(algebra.indices):
        if sum(index) == 1:
            local[k] = moves[..., index.index(1), :]
    return SparseJet(algebra, x, support, local)


def _first_moves(support: Tensor, x: Tensor) -> Tensor:
    """How the variables (second last axis) move the support (last one), (R, ..., m, m).

    Where two variables move one coordinate, both do so where it occurs first.
    """
    if support.shape[-1] == 1:
        return torch.ones(len(support), *[1] * (x.ndim + 1), dtype=x.dtype, device=x.device)
    same = (support[..., :, None] == support[..., None, :]).to(torch.int8)  # (.., m, m)
    first = same * (same.tril(-1).sum(-1) == 0)[..., None, :]
    return aligned_support(first.flatten(-2), x.ndim).unflatten(-1, first.shape[-2:]).to(x.dtype)


def _unary(function: Elementwise) -> Rule:
    def apply(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(v, Tensor | Jet) for v in (*args, *kwargs.values())):
            return NotImplemented
        y = x.with_local(func(x.primal, *args, **kwargs), function(x.algebra.plain, x.local, *args, **kwargs))
        y.smoothness = min(y.smoothness, function.kept(*args, **kwargs))
        return y

    return apply


for _name, _function in ELEMENTWISE.items():
    rule(_name, *ALIASES.get(_name, ()), table=SPARSE)(_unary(_function))
rule("__pow__", table=SPARSE)(_unary(ELEMENTWISE["pow"]))


@rule("abs", "absolute", "__abs__", table=SPARSE)
def absolute(func: Any, x: SparseJet) -> Any:
    """The modulus of real numbers."""
    return NotImplemented if x.is_complex() else _unary(ELEMENTWISE["abs"])(func, x)


def _binary(combine: Any, reverse: bool = False) -> Rule:
    def apply(func: Any, x: Any, y: Any, *, alpha: float = 1, rounding_mode: Any = None) -> Any:
        if alpha != 1 or rounding_mode is not None:
            return NotImplemented
        x, y = (y, x) if reverse else (x, y)
        model = x if isinstance(x, SparseJet) else y
        a, b = _local(x, model), _local(y, model)
        if a is None or b is None:
            return NotImplemented
        left, right = (v.primal if isinstance(v, Jet) else v for v in (x, y))
        value = combine(model.algebra, constant(model.algebra, left), constant(model.algebra, right))[0]
        z = model.with_local(value, combine(model.algebra.plain, a, b))
        z.smoothness = min(v.smoothness for v in (x, y) if isinstance(v, SparseJet))
        return z

    return apply


def _local(value: Any, model: SparseJet) -> Polynomial | None:
    """An operand at the support of a jet, None where it does not live there."""
    if isinstance(value, SparseJet):
        same = value.support is model.support and value.shape == model.shape and value.algebra == model.algebra
        return value.local if same else None
    if isinstance(value, Jet):
        return None
    if isinstance(value, Tensor) and value.ndim:
        if value.ndim > model.ndim or torch.broadcast_shapes(value.shape, model.shape) != model.shape:
            return None
        if value.shape[-1] != 1:
            value = take(value, model.support, model.ndim)
    return constant(model.algebra, value)


rule("add", "__add__", "__radd__", table=SPARSE)(_binary(add_polynomials))
rule("sub", "subtract", "__sub__", table=SPARSE)(_binary(subtract_polynomials))
rule("rsub", "__rsub__", table=SPARSE)(_binary(subtract_polynomials, reverse=True))
rule("mul", "multiply", "__mul__", "__rmul__", table=SPARSE)(_binary(multiply_polynomials))
rule("div", "divide", "true_divide", "__truediv__", "__div__", table=SPARSE)(_binary(divide_polynomials))
rule("__rtruediv__", "__rdiv__", table=SPARSE)(_binary(divide_polynomials, reverse=True))


@rule("neg", "negative", "__neg__", table=SPARSE)
def neg(func: Any, x: SparseJet) -> SparseJet:
    """The negative -x."""
    return x.with_local(-x.primal, [None if c is None else -c for c in x.local])


@rule("clone", "contiguous", "to", "float", "double", table=SPARSE)
def same_entries(func: Any, x: SparseJet, *args: Any, **kwargs: Any) -> SparseJet:
    """Copies, and other dtypes."""
    local = [None if c is None else func(c, *args, **kwargs) for c in x.local]
    return x.with_local(func(x.primal, *args, **kwargs), local)


@rule("sum", table=SPARSE)
def total(func: Any, x: SparseJet, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sums over the last axis."""
    axes = tuple(range(x.ndim)) if dim is None or dim == () else (dim,) if isinstance(dim, int) else tuple(dim)
    if dtype is not None or [d % x.ndim for d in axes] != [x.ndim - 1]:
        return NotImplemented
    parts = [None if v is None else x.summed(k, v.sum(-1, keepdim=keepdim)) for k, v in x.moving()]
    return x.dense(x.primal.sum(-1, keepdim=keepdim), parts)


@rule("__getitem__", table=SPARSE)
def getitem(func: Any, x: Any, key: Any) -> Any:
    """A coordinate, or a range of coordinates, of all points."""
    keys = key if isinstance(key, tuple) else (key,)
    if not isinstance(x, SparseJet) or not _only_last(keys, x.ndim):
        return NotImplemented
    last, value = keys[-1], x.primal[key]
    support = aligned_support(x.support, x.ndim)
    if isinstance(last, int):
        here = support == last % x.shape[-1]
        return x.dense(value, [None if v is None else x.summed(k, (v * here).sum(-1)) for k, v in x.moving()])
    start, stop, _ = last.indices(x.shape[-1])
    inside = (support >= start) & (support < stop)
    moved = (x.support - start).clamp(
        0, stop - start - 1
    )  # those outside have no coefficients, so they may be anywhere
    local = [take(value, moved, x.ndim), *(None if v is None else v * inside for _, v in x.moving())]
    return x.with_local(value, local, moved)


def _only_last(keys: tuple[Any, ...], axes: int) -> bool:
    """Whether an index takes a number or a range of the last axis, and everything of the others."""
    *before, last = keys
    everything = all(k is Ellipsis or (isinstance(k, slice) and k == slice(None)) for k in before)
    reaches = len(keys) == axes if all(k is not Ellipsis for k in before) else before.count(Ellipsis) == 1
    if isinstance(last, slice):
        start, stop = last.start, last.stop
        plain = all(n is None or isinstance(n, int) for n in (start, stop)) and last.step in (None, 1)
        return everything and reaches and plain
    return everything and reaches and isinstance(last, int) and not isinstance(last, bool)


@rule("cat", "concat", "concatenate", table=SPARSE)
def cat(func: Any, tensors: Any, dim: int = 0) -> Any:
    """Joins of the last axis, with constants and with other jets that are known at some entries."""
    model = next(t for t in tensors if isinstance(t, SparseJet))
    dense = any(isinstance(t, Jet) and not isinstance(t, SparseJet) for t in tensors)
    if dense or dim % model.ndim != model.ndim - 1:
        return NotImplemented
    sparse, supports, offset = [], [], 0
    for t in tensors:
        if isinstance(t, SparseJet):
            sparse.append(t)
            supports.append(t.support + offset)
        offset += t.shape[-1]
    if len({s.ndim for s in supports}) > 1 or any(t.algebra != model.algebra for t in sparse):
        return NotImplemented
    value = torch.cat([t.primal if isinstance(t, Jet) else t for t in tensors], -1)
    local = [_joined([t.local[k] for t in sparse], sparse) for k in range(len(model.local))]
    y = model.with_local(value, local, torch.cat(supports, -1))
    y.smoothness = min(t.smoothness for t in sparse)
    return y


def _joined(parts: list[Any], jets: list[SparseJet]) -> Any:
    """Local coefficients side by side, zeros where there are none."""
    if all(v is None for v in parts):
        return None
    filled = [torch.zeros_like(x.local[0]) if v is None else v for v, x in zip(parts, jets, strict=True)]
    batch = torch.broadcast_shapes(*(v.shape[:-1] for v in filled))
    return torch.cat([v.expand(*batch, v.shape[-1]) for v in filled], -1)


def _in_rows(columns: Tensor) -> Tensor:
    """A copy with rows that are contiguous, which pays where as many of them are taken as there are."""
    columns = columns.contiguous()
    if torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        return columns.as_strided(columns.shape, columns.stride())  # a compiler would take entries without a copy
    return columns


class FirstLayer(torch.autograd.Function):
    """The affine map of points, and the columns of its weight at some coordinates.

    Its own backward pass adds what comes from the columns into the gradient of the map, so that there is one buffer as
    large as the weight, in the weight's own layout, where autograd would fill three. A compiler of code with
    ``torch.func.grad`` loses a part of the gradient of such functions without a word (torch 2.13), so that there it is
    to see the plain `forward`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        """The map (..., h) of x (..., d) and the columns (n, h) at an index (n)."""
        columns = _in_rows(weight.t()) if index.numel() >= x.shape[-1] else weight.t()
        return functional.linear(x, weight, bias), columns.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the gradients need."""
        x, weight, bias, index = inputs
        ctx.save_for_backward(x, weight, index)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Any, columns: Any) -> tuple[Any, ...]:  # pyrefly: ignore[bad-override]
        """Gradients of x, the weight and the bias."""
        x, weight, index = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad = grad.to(weight.dtype)  # a map in autocast has another one
        rows = grad.reshape(-1, grad.shape[-1])
        with _unmixed(grad):
            to_x = grad @ weight.conj() if needs[0] else None
            to_weight = _to_weight(x, weight, index, rows, columns) if needs[1] else None
        return to_x, to_weight, rows.sum(0) if ctx.has_bias and needs[2] else None, None


def _unmixed(x: Tensor) -> AbstractContextManager[object]:
    """No autocast; compilers trace the backward pass in that of the forward one, and do not see it."""
    mixed = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if mixed else nullcontext()


def _to_weight(x: Tensor, weight: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The gradient of the weight, in its layout, from those of the map and of columns of the weight."""
    points = x.to(weight.dtype).reshape(-1, x.shape[-1]).conj()
    if weight.stride(0) == 1:
        return (points.t() @ rows).index_add_(0, index, columns).t()
    if index.numel() >= x.shape[-1]:  # as in `_in_rows`
        return (points.t() @ rows).index_add_(0, index, columns).t().contiguous()
    return (rows.t() @ points).index_add_(1, index, columns.t())


def _first_layer(x: SparseJet, weight: Tensor, bias: Tensor | None) -> Jet:
    """The affine map x W^T + b; of the other coefficients with the columns of W at the support only."""
    if torch.compiler.is_compiling():
        plain = torch._C._are_functorch_transforms_active()
    else:
        plain = forward_ad._current_level >= 0  # `FirstLayer` has no forward derivative, which no compiler takes
    both = FirstLayer.forward if plain else FirstLayer.apply
    value, columns = both(x.primal, weight, bias, x.support.reshape(-1))
    columns = columns.reshape(*x.support.shape, len(weight))  # (R, m, h) or (R, ..., m, h)
    shared = columns.ndim == 3
    parts = []
    for k, v in x.moving():
        if v is None:
            parts.append(None)
        elif shared:
            c = v.reshape(v.shape[0], -1, v.shape[-1])  # (R, b|1, m)
            c = c * columns if c.shape[-1] == 1 else c @ columns  # (R, b|1, h)
            parts.append(x.summed(k, c.reshape(*v.shape[:-1], len(weight))))
        elif v.shape[-1] == 1:
            parts.append(x.summed(k, v * columns[..., 0, :]))
        else:
            parts.append(x.summed(k, (v.unsqueeze(-1) * columns).sum(-2)))
    return x.dense(value, parts)


@rule("linear", table=SPARSE)
def linear(func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """The first affine map."""
    constants = isinstance(x, SparseJet) and not isinstance(weight, Jet) and not isinstance(bias, Jet)
    return _first_layer(x, weight, bias) if constants and weight.ndim == 2 else NotImplemented


@rule("matmul", "mm", "__matmul__", table=SPARSE)
def matmul(func: Any, x: Any, y: Any) -> Any:
    """The first affine map, as a product."""
    constants = isinstance(x, SparseJet) and not isinstance(y, Jet)
    return _first_layer(x, y.t(), None) if constants and y.ndim == 2 else NotImplemented
