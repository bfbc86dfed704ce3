"""Functions that are linear in each of the jets they take: what moves entries, sums, products of matrices.

They act on each coefficient alone; ``torch.vmap`` carries them over the axis of directions, so that axes, shapes and
indices mean what they mean for the value. The most frequent ones have shorter rules.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sciml.calculus.algebra import Algebra, Polynomial, constant, plus
from sciml.calculus.dispatch import NAMES, RULES, Jet, jets_of, like, primal, rule

FIRST = ((0,), (1,))  # indices of first derivatives
MANY = 5  # directions from which on a product for all of them and another one for the value cost as one for both


def multilinear(func: Callable[..., Any], *jets: Jet) -> Any:
    """The jet of func(x, y, ...), which is linear in each argument."""
    algebra = jets_of(*jets)[0].algebra
    results = [func(*(x.primal for x in jets))]
    for k in range(1, len(algebra.indices)):
        alone = mixed = None
        for split in _splits(algebra, k, len(jets)):
            term = _term(func, jets, split)
            if sum(i > 0 for i in split) > 1:
                mixed = plus(mixed, term)
            else:
                alone = plus(alone, term)
        if mixed is not None and k in algebra.collapsed:
            mixed = mixed.sum(0)
        results.append(plus(alone, mixed))
    return _wrap(jets, results)


def _splits(algebra: Algebra, k: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write the index at k as a sum of as many as there are parts."""
    if parts == 1:
        return [(k,)]
    return [(i, *rest) for i, j in algebra.products[k] for rest in _splits(algebra, j, parts - 1)]


def _term(func: Callable[..., Any], jets: Sequence[Jet], split: tuple[int, ...]) -> Any:
    parts = [x.full(i) for x, i in zip(jets, split, strict=True)]
    if any(part is None for part in parts):
        return None
    axes = tuple(0 if x.has_directions(i) else None for x, i in zip(jets, split, strict=True))
    return func(*parts) if all(axis is None for axis in axes) else torch.vmap(func, axes)(*parts)


def _wrap(jets: Sequence[Jet], results: list[Any]) -> Any:
    """Jets of the coefficients, several where the function has several results."""
    if isinstance(results[0], Tensor):
        return like(jets, results)
    parts = [like(jets, [None if c is None else c[i] for c in results]) for i in range(len(results[0]))]
    return tuple(parts)


def jointly(func: Callable[..., Tensor], *values: Any, lifted: Callable[..., Tensor] | None = None) -> Jet:
    """The jet of func(x, y, ...), which is linear in all arguments together; some may be constants.

    ``lifted`` is the function on coefficients that have the axis of directions; None has it made by ``torch.vmap``.
    """
    jets = jets_of(*values)
    results: list[Any] = [func(*(primal(v) for v in values))]
    for k in range(1, len(jets[0].algebra.indices)):
        if all(x.coefficients[k] is None for x in jets):
            results.append(None)
            continue
        parts = [_filled(v, k, jets[0]) for v in values]
        results.append((lifted or torch.vmap(func))(*parts) if jets[0].has_directions(k) else func(*parts))
    return like(jets, results)


def _filled(value: Any, k: int, model: Jet) -> Tensor:
    """The coefficient at k, zeros where there is none."""
    if isinstance(value, Jet) and value.coefficients[k] is not None:
        return value.full(k)
    zeros = torch.zeros_like(primal(value))
    return zeros.expand(model.directions, *zeros.shape) if model.has_directions(k) else zeros


@rule(
    *("clone", "contiguous", "to", "float", "double", "type_as", "cpu", "cuda", "real"),
    *("reshape", "reshape_as", "flatten", "unflatten", "ravel", "expand", "expand_as", "broadcast_to"),
    *("permute", "transpose", "swapaxes", "movedim", "t", "tile", "repeat", "narrow", "select"),
    *("chunk", "split", "tensor_split", "unbind", "index_select", "take_along_dim", "gather", "diagonal", "diag_embed"),
    *("flip", "roll", "tril", "triu", "cumsum", "trace", "avg_pool1d", "avg_pool2d", "interpolate"),
    *("view_as_real", "view_as_complex", "repeat_interleave", "unfold"),
    *("fft", "ifft", "rfft", "irfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"),
    *("fftshift", "ifftshift", "imag", "pixel_shuffle"),
)
def of_one(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What is linear in its first argument."""
    if any(isinstance(v, Jet) for v in (*args, *kwargs.values())):
        args = tuple(primal(v) for v in args)
        kwargs = {name: primal(v) for name, v in kwargs.items()}
    return multilinear(lambda v: func(v, *args, **kwargs), x) if isinstance(x, Jet) else func(x, *args, **kwargs)


@rule("conj", "conj_physical", "resolve_conj", "adjoint")
def conjugate(func: Any, x: Jet) -> Any:
    """Complex conjugates, computed at once: torch.vmap does not take the parts of those that are not."""
    turned = torch.conj if func in (torch.conj_physical, torch.Tensor.conj_physical) else func
    return multilinear(lambda v: turned(v).resolve_conj(), x)


@rule("moveaxis")
def moveaxis(func: Any, x: Jet, *args: Any, **kwargs: Any) -> Any:
    """As ``movedim``, which torch.vmap takes."""
    return of_one(torch.movedim, x, *args, **kwargs)


@rule("view_as")
def view_as(func: Any, x: Any, other: Any) -> Any:
    """As ``reshape_as``, since coefficients may be expanded."""
    return of_one(torch.Tensor.reshape_as, x, other)


@rule("squeeze", "unsqueeze")
def one_axis(func: Any, x: Jet, dim: Any = None) -> Any:
    """Axes of size one."""
    if not isinstance(dim, int):
        return of_one(func, x) if dim is None else of_one(func, x, dim)
    axis = dim if dim < 0 else dim - x.ndim - (func in (torch.unsqueeze, torch.Tensor.unsqueeze))
    return like([x], [None if c is None else func(c, axis) for c in map(x.full, range(len(x.coefficients)))])


@rule("view")
def view(func: Any, x: Jet, *shape: Any) -> Any:
    """As ``reshape``, since coefficients may be expanded."""
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        raise TypeError("view: a jet cannot be seen as another dtype")
    return of_one(torch.Tensor.reshape, x, *shape)


@rule("__getitem__")
def getitem(func: Any, x: Any, key: Any) -> Any:
    """Indexing by numbers, slices and tensors."""
    if not isinstance(x, Jet):
        raise TypeError("a jet cannot be an index")
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is Ellipsis or (isinstance(k, int | slice) and not isinstance(k, bool)) for k in keys):
        return multilinear(lambda v: v[key], x)
    parts: list[Any] = [x.primal[key]]
    for k in range(1, len(x.coefficients)):
        c = x.full(k)
        parts.append(None if c is None else c[(slice(None), *keys)] if x.has_directions(k) else c[key])
    return like([x], parts)


@rule("sum")
def total(func: Any, x: Jet, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Jet:
    """Sums over some axes, all by default."""
    axes = (dim,) if isinstance(dim, int) else dim or range(x.ndim)
    axes = [d if d < 0 else d - x.ndim for d in axes] if x.ndim else []
    parts: list[Any] = [x.primal.sum(axes, keepdim=keepdim, dtype=dtype)] if axes else [x.primal]
    for k in range(1, len(x.coefficients)):
        c = x.full(k)
        parts.append(c if c is None or not axes else c.sum(axes, keepdim=keepdim, dtype=dtype))
    return like([x], parts)


@rule("cat", "concat", "concatenate")
def cat(func: Any, tensors: Sequence[Any], dim: int = 0) -> Jet:
    """Joins along an axis."""
    behind = dim + (dim >= 0)  # the axis where directions are the first one
    return jointly(lambda *parts: torch.cat(parts, dim), *tensors, lifted=lambda *parts: torch.cat(parts, behind))


@rule("stack", "hstack", "vstack")
def stack(func: Any, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Jet:
    """Joins along a new axis."""
    return jointly(lambda *parts: func(parts, *args, **kwargs), *tensors)


@rule("complex")
def complex_of(func: Any, real: Any, imag: Any) -> Jet:
    """Real and imaginary parts as one."""
    return jointly(torch.complex, real, imag)


@rule("where")
def where(func: Any, condition: Any, x: Any, y: Any) -> Any:
    """One of x and y; the condition, which may come from the value of a jet, counts as constant."""
    if func is torch.Tensor.where:  # a method of x
        condition, x = x, condition
    condition = primal(condition)
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return torch.where(condition, x, y)
    like_jet = jets_of(x, y)[0].primal
    x, y = (v if isinstance(v, Jet | Tensor) else torch.as_tensor(v, device=like_jet.device) for v in (x, y))
    return jointly(lambda a, b: torch.where(condition, a, b), x, y)


@rule("masked_fill")
def masked_fill(func: Any, x: Any, mask: Any, value: Any) -> Any:
    """A value where a mask is true."""
    return where(torch.where, mask, value, x)


@rule("pad")
def pad(func: Any, x: Jet, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """Padding; a constant goes to the value alone."""
    y = multilinear(lambda v: func(v, pad, mode), x)
    return like([x], [func(x.primal, pad, mode, value), *y.coefficients[1:]])


@rule("matmul", "mm", "bmm", "mv", "dot", "__matmul__")
def matmul(func: Any, x: Any, y: Any) -> Any:
    """Products of matrices."""
    if isinstance(x, Jet) and not isinstance(y, Jet) and y.ndim == 2:
        return affine(x, y)
    if isinstance(x, Jet) and isinstance(y, Jet):
        return multilinear(torch.matmul, x, y)
    return multilinear(lambda v: v @ y, x) if isinstance(x, Jet) else multilinear(lambda v: x @ v, y)


def infix_matmul(func: Any, x: Any, y: Any) -> Any:
    """The rule of the operator @, and of a tensor's method, where the tensor comes first.

    In compiled code torch 2.13 hands over ``jet @ tensor`` as ``tensor @ jet``.
    """
    if torch.compiler.is_compiling():
        raise TypeError("@ between a jet and a tensor cannot be compiled; write torch.matmul")
    return matmul(func, x, y)


RULES["infix_matmul"] = infix_matmul
NAMES[torch.Tensor.matmul] = "infix_matmul"


@rule("__rmatmul__")
def rmatmul(func: Any, x: Any, y: Any) -> Any:
    """Products of matrices from the right."""
    return y @ x


@rule("addmm", "addmv", "baddbmm")
def addmm(func: Any, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """A product of matrices and a shift."""
    return beta * bias + alpha * (x @ y)


@rule("linear")
def linear(func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """An affine map of the last axis."""
    if isinstance(x, Jet) and not isinstance(weight, Jet):
        first = x.algebra.indices == FIRST and x.has_directions(1)
        if first and x.directions >= MANY and weight.ndim == 2 and not isinstance(bias, Jet):
            return AffineJet(x, weight, bias)
        y = affine(x, weight.t() if weight.ndim == 2 else weight[:, None])
        y = y if weight.ndim == 2 else y[..., 0]
    else:
        y = x @ weight.mT
    return y if bias is None else y + bias


class AffineJet(Jet):
    """First derivatives of an affine map, computed when they are asked for: a trace needs but a few of their entries.

    Args:
        x: a jet (..., i) of first order along several directions.
        weight: (o, i).
        bias: (o) or None.
    """

    def __init__(self, x: Jet, weight: Tensor, bias: Tensor | None):
        value = functional.linear(x.primal, weight, bias)
        super().__init__(x.algebra, constant(x.algebra, value), x.directions, x.smoothness)
        self.slope, self.weight, self.known = x.full(1), weight, False

    @property
    def coefficients(self) -> Polynomial:
        """The value (..., o) and, along each direction, the derivative (R, ..., o), or where it is zero None."""
        if not self.known and self.slope is not None:
            self._coefficients[1] = self.slope @ self.weight.t()
        self.known = True
        return self._coefficients

    def trace(self) -> Tensor:
        """The sum over directions r of entry r of the derivative along it, (b) for points (b, o)."""
        if self.slope is None:
            return self.primal.new_zeros(self.shape[:1])
        return torch.bmm(self.slope, self.weight[:, :, None]).sum((0, 2))


def affine(x: Jet, weight: Tensor) -> Jet:
    """All coefficients times a weight (i, o), in one product: its rows are those of all of them."""
    size = weight.shape[0]
    if weight.shape[1] == 1:
        return like([x], [None if c is None else _to_one(_widened(c, size), weight) for c in x.coefficients])
    rows = [None if c is None else _widened(c, size).reshape(-1, size) for c in x.coefficients]
    live = [r for r in rows if r is not None]
    done = iter((torch.cat(live) if len(live) > 1 else live[0]).matmul(weight).split([r.shape[0] for r in live]))
    parts = [None if c is None else next(done).reshape(*c.shape[:-1], weight.shape[1]) for c in x.coefficients]
    return like([x], parts)


def _to_one(c: Tensor, weight: Tensor) -> Tensor:
    """Times a single column (i, 1), which a compiler joins with what comes before if it is written as a sum."""
    as_sum = torch.compiler.is_compiling() and not torch.is_autocast_enabled(c.device.type)  # which lowers products
    return (c * weight[:, 0]).sum(-1, keepdim=True) if as_sum else c.matmul(weight)


def _widened(c: Tensor, size: int) -> Tensor:
    return c if c.shape[-1] == size else c.expand(*c.shape[:-1], size)


@rule("einsum")
def einsum(func: Any, equation: str, *operands: Any) -> Any:
    """Einstein's sums."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return _in_the_jets(lambda *parts: torch.einsum(equation, *parts), operands)


def _in_the_jets(func: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """A multilinear function as one of its jets only."""
    places = [n for n, v in enumerate(operands) if isinstance(v, Jet)]

    def of_jets(*parts: Tensor) -> Any:
        given = list(operands)
        for n, part in zip(places, parts, strict=True):
            given[n] = part
        return func(*given)

    return multilinear(of_jets, *(operands[n] for n in places))


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(func: Any, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Convolutions over a grid."""
    y = _in_the_jets(lambda a, w: func(a, w, None, *args, **kwargs), (x, weight))
    if bias is None:
        return y
    return y + bias.reshape(-1, *[1] * (weight.ndim - 2))


@rule("bilinear")
def bilinear(func: Any, x: Any, y: Any, weight: Any, bias: Any = None) -> Any:
    """Forms x^T A y."""
    z = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return z if bias is None else z + bias
