"""Fields for states of any shape, elementwise, that are solved exactly, and fields that break.

All are functions of (t, y, w) with a weight w > 0 and t that broadcasts against y.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = Callable[[Tensor, Tensor, Tensor], Tensor]
EDGE = 0.40625  # the time of the discontinuities, a float32 number


class Problem(NamedTuple):
    field: Scalar
    exact: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of (t, t0, y0, w), where it exists
    growth: Callable[[float, float], tuple[float, float]]  # of (w, |y|): errors grow by exp(rate h), forward and back
    rate: Callable[[float, float], float] = lambda w, size: w * (1 + size)  # Lipschitz constant, in t too
    breaks: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None  # of (t, t0, y0, w): no solution up to t
    kinds: str = "rc"  # real and complex states
    smooth: bool = True
    edges: tuple[float, ...] = ()
    one_way: bool = False  # not unique backward in time


def _same(rate: Callable[[float, float], float]) -> Callable[[float, float], tuple[float, float]]:
    return lambda w, size: (rate(w, size), rate(w, size))


def driven(t: Tensor, t0: Tensor, y0: Tensor, w: Tensor) -> Tensor:
    at = lambda t: (w * t.cos() + t.sin()) / (1 + w * w)  # noqa: E731
    return at(t) + (y0 - at(t0)) * (-w * (t - t0)).exp()


def stiff(t: Tensor, t0: Tensor, y0: Tensor, w: Tensor) -> Tensor:
    return t.cos() + (y0 - t0.cos()) * (-200 * w * (t - t0)).exp()


def pole(t: Tensor, t0: Tensor, y0: Tensor, w: Tensor) -> Tensor:
    return w * y0 * (t - t0) > 1


def after_edge(t: Tensor, t0: Tensor, y0: Tensor, w: Tensor) -> Tensor:
    return ((torch.maximum(t, t0) > EDGE) & (t != t0)).expand(y0.shape)


def shrinking(t: Tensor, t0: Tensor, y0: Tensor, w: Tensor) -> Tensor:
    return y0.sign() * (y0.abs() - w * (t - t0)).clamp_min(0)


none = lambda rate: _same(lambda w, size: 0.0)  # noqa: E731
PROBLEMS = {
    "decay": Problem(lambda t, y, w: -w * y, lambda t, t0, y0, w: y0 * (-w * (t - t0)).exp(), lambda w, s: (0.0, w)),
    "growth": Problem(lambda t, y, w: w * y, lambda t, t0, y0, w: y0 * (w * (t - t0)).exp(), lambda w, s: (w, 0.0)),
    "driven": Problem(lambda t, y, w: t.cos() - w * y, driven, lambda w, s: (0.0, w), lambda w, s: 1 + w * (1 + s)),
    "wave": Problem(
        lambda t, y, w: (w * t).cos() + 0 * y,
        lambda t, t0, y0, w: y0 + ((w * t).sin() - (w * t0).sin()) / w,
        lambda w, s: (0.0, 0.0),
    ),
    "rest": Problem(lambda t, y, w: 0 * y, lambda t, t0, y0, w: y0 + 0 * w * (t - t0), lambda w, s: (0.0, 0.0)),
    "steady": Problem(
        lambda t, y, w: w.expand(y.shape).to(y.dtype),  # no function of y
        lambda t, t0, y0, w: y0 + w * (t - t0),
        lambda w, s: (0.0, 0.0),
    ),
    "turning": Problem(
        lambda t, y, w: 1j * w * y,
        lambda t, t0, y0, w: y0 * (1j * w * (t - t0)).exp(),
        lambda w, s: (0.0, 0.0),
        kinds="c",
    ),
    "logistic": Problem(
        lambda t, y, w: w * y * (1 - y),
        lambda t, t0, y0, w: y0 / (y0 + (1 - y0) * (-w * (t - t0)).exp()),
        _same(lambda w, s: w * (1 + 2 * s)),
        lambda w, s: w * (1 + 2 * s) * (1 + s),
        lambda t, t0, y0, w: y0 + (1 - y0) * (-w * (t - t0)).exp() <= 0,
        kinds="r",
    ),
    "stiff": Problem(
        lambda t, y, w: -200 * w * (y - t.cos()) - t.sin(),
        stiff,
        lambda w, s: (0.0, 200 * w),
        lambda w, s: 200 * w,
        kinds="r",
    ),
    "square": Problem(
        lambda t, y, w: w * y * y,
        lambda t, t0, y0, w: y0 / (1 - w * y0 * (t - t0)),
        _same(lambda w, s: 2 * w * s),
        lambda w, s: 2 * w * s * (1 + s),
        pole,
        kinds="r",
    ),
    "edge": Problem(
        lambda t, y, w: w * torch.where(t < EDGE, -1.0, 1.0).to(y) + 0 * y,
        lambda t, t0, y0, w: y0 + w * ((t - EDGE).abs() - (t0 - EDGE).abs()),
        lambda w, s: (0.0, 0.0),
        smooth=False,
        edges=(EDGE,),
    ),
    "sliding": Problem(
        lambda t, y, w: -w * y.sign(),
        shrinking,
        lambda w, s: (0.0, 0.0),
        breaks=lambda t, t0, y0, w: w * (t - t0) > y0.abs(),
        kinds="r",
        smooth=False,
        one_way=True,
    ),
    "nan": Problem(
        lambda t, y, w: y * math.nan,
        lambda t, t0, y0, w: y0 + 0 * w,
        lambda w, s: (0.0, 0.0),
        breaks=lambda t, t0, y0, w: (t != t0).expand(y0.shape),
    ),
    "infinite": Problem(
        lambda t, y, w: y + math.inf,
        lambda t, t0, y0, w: y0 + 0 * w,
        lambda w, s: (0.0, 0.0),
        breaks=lambda t, t0, y0, w: (t != t0).expand(y0.shape),
    ),
    "nan_after": Problem(
        lambda t, y, w: torch.where(t > EDGE, math.nan, -w * y),
        lambda t, t0, y0, w: y0 * (-w * (t - t0)).exp(),
        lambda w, s: (0.0, w),
        breaks=after_edge,
        smooth=False,
    ),
    "nan_above": Problem(
        lambda t, y, w: torch.where(y.abs() > 3, math.nan, -w * y),
        lambda t, t0, y0, w: y0 * (-w * (t - t0)).exp(),
        lambda w, s: (0.0, w),
        breaks=lambda t, t0, y0, w: (y0.abs() * (-w * (t - t0)).exp().clamp_min(1) > 3) & (t != t0),
        smooth=False,
    ),
}
