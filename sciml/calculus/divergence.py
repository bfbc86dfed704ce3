"""The divergence of a vector field: exactly from its whole Jacobian in one pass, or by Hutchinson's estimate.

Both are forward derivatives, v -> J v, of the field at its points, so that the field's value comes with them and
backpropagation through them is plain reverse mode.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciml.calculus.dispatch import Jet
from sciml.calculus.jet import along_coordinates, jet
from sciml.calculus.structural import AffineJet

Field = Callable[[Tensor], Tensor]
FEW = 4  # coordinates up to which one-hot directions are as cheap as coordinates


def divergence(f: Field, x: Tensor) -> Tensor:
    """The divergence of a vector field, sum_i df_i / dx_i.

    Args:
        f: maps points (b, d) to vectors (b, d), each from its own point, in PyTorch's functions.
        x: points (b, d).

    Returns:
        The divergence (b), differentiable to x and to the parameters of f.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if shapes do not fit, or if f has jumps.

    Example:
        >>> import torch
        >>> from sciml.calculus import divergence
        >>> divergence(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
        tensor([6.])
    """
    return value_and_divergence(f, x)[1]


def hutchinson(f: Field, x: Tensor, v: Tensor) -> Tensor:
    """An estimate of the divergence, v . J v, unbiased where the entries of v are uncorrelated with variance 1.

    Args:
        f: as of `divergence`.
        x: points (b, d).
        v: directions (b, d), or several for each point, (k, b, d), as `probes` draws them.

    Returns:
        The estimate (b), the mean over several directions, differentiable as `divergence` is.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if shapes do not fit, or if f has jumps.

    Reference:
        M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix, Commun. Stat. Simul. Comput. 18
        (1989), doi:10.1080/03610918908812806.

    Example:
        >>> import torch
        >>> from sciml.calculus import hutchinson
        >>> hutchinson(lambda x: x**2, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]]))
        tensor([6.])
    """
    _check(x)
    return _estimate(f, x, v)[1]


def value_and_divergence(f: Field, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The value of a vector field (b, d) and its divergence (b), from one pass.

    Args:
        f: as of `divergence`.
        x: points (b, d).
        v: directions for `hutchinson`; None takes the exact divergence.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if shapes do not fit, or if f has jumps.
    """
    _check(x)
    return _exact(f, x) if v is None else _estimate(f, x, v)


def _check(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor of points (b, d), got {type(x).__name__}")
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x: expected real points (b, d), got {x.dtype} of shape {tuple(x.shape)}")


def _exact(f: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    d = x.shape[1]
    if d <= FEW:
        out = _checked(jet(f, x, torch.eye(d, dtype=x.dtype, device=x.device), 1), x)
    else:
        out = _checked(along_coordinates(f, x, torch.arange(d, device=x.device), 1), x)
    if isinstance(out, Tensor):
        return out, out.new_zeros(x.shape[0])
    if isinstance(out, AffineJet):
        return out.primal, out.trace()
    return out.primal, out.derivative(1).diagonal(0, 0, 2).sum(-1)  # (d, b, d), entry i of the derivative along i


def _estimate(f: Field, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(v, Tensor):
        raise TypeError(f"v: expected a tensor of directions, got {type(v).__name__}")
    if v.shape[-2:] != x.shape or v.ndim not in (2, 3) or not (v.ndim == 2 or len(v)):
        b, d = x.shape
        raise ValueError(f"v: expected directions ({b}, {d}) or (k, {b}, {d}), got {tuple(v.shape)}")
    if v.dtype != x.dtype:
        raise TypeError(f"v: expected the dtype of x, {x.dtype}, got {v.dtype}")
    v = v[None] if v.ndim == 2 else v  # (k, b, d)
    out = _checked(jet(f, x, v, 1), x)
    if isinstance(out, Tensor):
        return out, out.new_zeros(x.shape[0])
    return out.primal, (v * out.derivative(1)).sum(-1).mean(0)


def _checked(out: Any, x: Tensor) -> Jet | Tensor:
    """What a field returned: a jet, or a tensor where it does not depend on x."""
    if not isinstance(out, Jet | Tensor):
        raise TypeError(f"f: expected a function to one tensor, got one to {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(f"f: expected vectors of the points' shape {tuple(x.shape)}, got {tuple(out.shape)}")
    if isinstance(out, Jet) and out.smoothness < 0:
        raise ValueError("f: it jumps, and has no divergence there; expected a continuous field")
    return out
