"""Functions that are written in those which have rules."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sciml.calculus.arithmetic import unary
from sciml.calculus.dispatch import Jet, primal, rule
from sciml.calculus.elementwise import ELEMENTWISE


def _count(x: Any, dim: Any) -> int:
    axes = (dim,) if isinstance(dim, int) else dim or range(x.ndim)
    return math.prod([x.shape[d] for d in axes]) if x.ndim else 1


@rule("mean")
def mean(func: Any, x: Jet, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The mean over some axes."""
    return x.sum(dim, keepdim=keepdim, dtype=dtype) / _count(x, dim)


@rule("var")
def variance(
    func: Any, x: Jet, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: int | None = None
) -> Any:
    """The variance over some axes."""
    if isinstance(dim, bool):  # the place of `unbiased` where there is no axis
        dim, unbiased = None, dim
    correction = int(unbiased) if correction is None else correction
    every = dim if isinstance(dim, int) else dim or tuple(range(x.ndim))
    size = _squared(x - x.mean(every, keepdim=True))
    return size.sum(every, keepdim=keepdim) / (_count(x, every) - correction)


def _squared(x: Jet) -> Jet:
    """The square of the modulus."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


@rule("std")
def deviation(func: Any, x: Jet, *args: Any, **kwargs: Any) -> Any:
    """The standard deviation over some axes."""
    return x.var(*args, **kwargs).sqrt()


@rule("prod")
def prod(func: Any, x: Jet, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The product over an axis, halves by halves."""
    y = x if dtype is None else x.to(dtype)
    if dim is None or not x.ndim:
        y, dim, keepdim = y.flatten(), 0, False
    while y.shape[dim] > 1:
        half = y.shape[dim] // 2
        a, b, rest = y.split([half, half, y.shape[dim] - 2 * half], dim)
        y = torch.cat([a * b, rest], dim)
    return y if keepdim else y.squeeze(dim)


@rule("cumprod")
def cumprod(func: Any, x: Jet, dim: int, *, dtype: Any = None) -> Any:
    """Products of the first entries along an axis, each sweep of twice as many."""
    y, far = x if dtype is None else x.to(dtype), 1
    while y.ndim and far < y.shape[dim]:
        rest = y.shape[dim] - far
        y = torch.cat([y.narrow(dim, 0, far), y.narrow(dim, far, rest) * y.narrow(dim, 0, rest)], dim)
        far *= 2
    return y


@rule("norm", "vector_norm")
def norm(func: Any, x: Jet, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Euclid's norm, and the sum of moduli; others are left to the fallback."""
    p = kwargs.pop("ord", p)
    of_matrix = func is torch.linalg.norm and p in (1, 2) and x.ndim > 1 and not isinstance(dim, int)
    if p not in (1, 2, "fro", None) or of_matrix or any(v is not None for v in kwargs.values()):
        return NotImplemented
    if p == 1:
        return x.abs().sum(dim, keepdim=keepdim)
    return _squared(x).sum(dim, keepdim=keepdim).sqrt()


@rule("cdist")
def cdist(func: Any, x1: Any, x2: Any, p: float = 2.0, compute_mode: str = "") -> Any:
    """Distances between each of some points and each of others."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


@rule("normalize")
def normalize(func: Any, x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """Divided by Euclid's norm."""
    if p != 2:
        return NotImplemented
    size = x.norm(dim=dim, keepdim=True)
    y = x / size.clamp(min=eps)
    y.smoothness = size.smoothness  # the kink of `clamp` is as far in as that of the norm
    return y


@rule("softmax")
def softmax(func: Any, x: Any, dim: int, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    """Weights exp(x) / sum exp(x)."""
    x = _cast(x, _stacklevel, dtype)
    e = (x - x.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


@rule("logsumexp")
def logsumexp(func: Any, x: Any, dim: Any, keepdim: bool = False) -> Any:
    """The logarithm of sum exp(x)."""
    top = x.detach().amax(dim, keepdim=True)
    y = (x - top).exp().sum(dim, keepdim=True).log() + top
    return y if keepdim else y.squeeze(dim)


@rule("log_softmax")
def log_softmax(func: Any, x: Jet, dim: int, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    """Logarithms of exp(x) / sum exp(x)."""
    x = _cast(x, _stacklevel, dtype)
    return x - x.logsumexp(dim, keepdim=True)


def _cast(x: Any, third: Any, dtype: Any) -> Any:
    """In another dtype, which is the third argument of torch's function and the fourth of that of torch.nn."""
    dtype = third if isinstance(third, torch.dtype) else dtype
    return x if dtype is None else x.to(dtype)


@rule("scaled_dot_product_attention")
def attention(
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Values weighed by softmax(q k^T / sqrt(e))."""
    if dropout_p or enable_gqa:
        return NotImplemented
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        hides = not isinstance(attn_mask, Jet) and attn_mask.dtype is torch.bool
        scores = torch.where(attn_mask, scores, -torch.inf) if hides else scores + attn_mask
    return functional.softmax(scores, -1) @ value


@rule("layer_norm")
def layer_norm(
    func: Any, x: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Normalised over the last axes."""
    y = _standardised(x, tuple(range(-len(normalized_shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _standardised(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


@rule("rms_norm")
def rms_norm(func: Any, x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    """Divided by the root mean square over the last axes."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


@rule("group_norm")
def group_norm(func: Any, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Normalised over groups of channels."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    y = functional.layer_norm(groups, groups.shape[-1:], eps=eps).reshape(*x.shape)
    channels = (-1, *[1] * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(channels)
    return y if bias is None else y + bias.reshape(channels)


@rule("batch_norm")
def batch_norm(
    func: Any,
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """With running statistics, an affine map of each channel; with those of a batch a function of all of its points."""
    channels = (-1, *[1] * (x.ndim - 2))
    if training:
        if running_mean is not None:  # for what is added to them
            functional.batch_norm(x.detach(), running_mean, running_var, training=True, momentum=momentum)
        y = _standardised(x, (0, *range(2, x.ndim)), eps)
    else:
        y = (x - running_mean.reshape(channels)) * (running_var + eps).rsqrt().reshape(channels)
    y = y if weight is None else y * weight.reshape(channels)
    return y if bias is None else y + bias.reshape(channels)


@rule("instance_norm")
def instance_norm(
    func: Any,
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Normalised over the grid of each channel."""
    if not use_input_stats:
        return batch_norm(func, x, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:  # for what is added to them
        functional.instance_norm(x.detach(), running_mean, running_var, momentum=momentum)
    return functional.group_norm(x, x.shape[1], weight, bias, eps)


@rule("dropout")
def dropout(func: Any, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """One mask for all coefficients."""
    return x * functional.dropout(torch.ones_like(primal(x)), p) if training and p else x


@rule("maximum", "fmax", "minimum", "fmin")
def extremum(func: Any, x: Any, y: Any) -> Any:
    """The larger or smaller of two, which has a kink where they meet."""
    above = primal(x) > primal(y)
    z: Any = torch.where(above if func in (torch.maximum, torch.fmax) else ~above, x, y)
    return Jet(z.algebra, z.coefficients, z.directions, min(z.smoothness, 0))


@rule("clamp", "clip")
def clamp(func: Any, x: Any, min: Any = None, max: Any = None) -> Any:
    """Between bounds; those of each entry, which may be jets, as the larger and the smaller of two."""
    if not any(isinstance(v, Jet) or (isinstance(v, Tensor) and v.ndim) for v in (min, max)):
        return unary(ELEMENTWISE["clamp"], x, min, max)
    x = x if min is None else torch.maximum(x, _entries(min, x))
    return x if max is None else torch.minimum(x, _entries(max, x))


def _entries(bound: Any, x: Any) -> Any:
    return bound if isinstance(bound, Jet | Tensor) else primal(x).new_tensor(bound)


@rule("clamp_min", "clamp_max")
def clamp_one(func: Any, x: Any, bound: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """At least, or at most, a bound."""
    below = func in (torch.clamp_min, torch.Tensor.clamp_min)
    bound = next(v for v in (bound, min, max) if v is not None)
    return clamp(func, x, bound) if below else clamp(func, x, None, bound)


@rule("lerp")
def lerp(func: Any, x: Any, y: Any, weight: Any) -> Any:
    """The mean x + w (y - x)."""
    return x + weight * (y - x)


@rule("addcmul")
def addcmul(func: Any, x: Any, y: Any, z: Any, *, value: float = 1) -> Any:
    """The sum x + v y z."""
    return x + y * z * value
