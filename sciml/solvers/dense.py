"""Dense output: the state at fractions s (l, k) of a step, as (l, k, ...) with l left out for joint lanes."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


def hermite(segment: "Segment", s: Tensor, k0: Tensor, k1: Tensor, h: Number = 1.0) -> Tensor:
    """The cubic through both ends with the slopes h k0 and h k1."""
    y0, lane = segment.y0, int(segment.march.lanes == "each")
    scale = h if isinstance(h, float) or not lane else h.unsqueeze(lane)
    at = s.reshape(s.shape + (1,) * (y0.ndim - lane))
    rise, f0, f1 = (x.unsqueeze(lane) for x in (segment.y1 - y0, k0, k1))
    curve = (1 - 2 * at) * rise + scale * ((at - 1) * f0 + at * f1)
    return y0.unsqueeze(lane) + at * (rise + (at - 1) * curve)


def straight(segment: "Segment", s: Tensor) -> Tensor:
    """The straight line between both ends."""
    lane = int(segment.march.lanes == "each")
    at = s.reshape(s.shape + (1,) * (segment.y0.ndim - lane))
    y0, y1 = (y.unsqueeze(lane) for y in (segment.y0, segment.y1))
    return (1 - at) * y0 + at * y1


def polynomial(segment: "Segment", s: Tensor, ks: Sequence[Tensor], rungs: Tensor, h: Number = 1.0) -> Tensor:
    """y0 + h sum_i w_i(s) k_i with polynomials w_i.

    Args:
        segment: the step.
        s: fractions (l, k).
        ks: what is weighted.
        rungs: coefficients (p, stages) of s, s^2, .. in the weights, float64.
        h: size of the step.
    """
    y0, lane = segment.y0, int(segment.march.lanes == "each")
    scale = h if isinstance(h, float) or not lane else h.unsqueeze(lane)
    powers = [s.to(torch.float64)]
    while len(powers) < rungs.shape[0]:
        powers.append(powers[-1] * powers[0])
    if torch.compiler.is_compiling():
        return _fused(y0, ks, powers, rungs, scale, lane)
    weights = (torch.stack(powers, -1) @ rungs).to(y0.dtype)  # (l, k, stages), small differences of large terms
    stages = torch.stack(tuple(ks), lane)  # (l, stages, ...)
    rise = weights @ stages.reshape(*stages.shape[: lane + 1], prod(y0.shape[lane:]))  # (l, k, -1)
    return y0.unsqueeze(lane) + scale * rise.reshape(*s.shape, *y0.shape[lane:])


def _fused(
    y0: Tensor, ks: Sequence[Tensor], powers: Sequence[Tensor], rungs: Tensor, scale: Number, lane: int
) -> Tensor:
    """The same without matrix products, which a compiler makes one kernel of."""
    rise: Any = 0
    for i, k in enumerate(ks):
        weight = powers[0] * rungs[0, i]
        for p, power in enumerate(powers[1:], 1):
            weight = torch.addcmul(weight, power, rungs[p, i])
        weight = weight.to(y0.dtype)
        rise = rise + weight.reshape(*weight.shape, *(1,) * (y0.ndim - lane)) * k.unsqueeze(lane)
    return y0.unsqueeze(lane) + scale * rise
