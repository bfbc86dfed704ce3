"""What ensembles of forecasts are judged by."""

import torch
from torch import Tensor


def crps(members: Tensor, target: Tensor) -> Tensor:
    """The continuous ranked probability score, in the units of the values; lower is better.

    Of a distribution F and a value y it is the integral of (F(x) - [x >= y])^2, of a single member |x - y|. It is the
    estimate that has the right mean for any number of members, the mean of |x_i - y| less half of the mean distance
    between two members, so that ensembles of different sizes compare.

    Args:
        members: (m, ..).
        target: (..).

    Returns:
        (..).

    Raises:
        ValueError: the shapes are not such.

    Reference:
        C. A. T. Ferro, Fair scores for ensemble forecasts, Q. J. R. Meteorol. Soc. 140 (2014), doi:10.1002/qj.2270.
    """
    if members.ndim != target.ndim + 1 or not members.is_floating_point():
        given = f"{tuple(members.shape)} of {members.dtype}"
        raise ValueError(f"members: expected (m, ..) for a target {tuple(target.shape)}, of real numbers, got {given}")
    count = len(members)
    off = (members - target).abs().mean(0)
    if count == 1:
        return off
    ranks = torch.arange(1 - count, count, 2, dtype=members.dtype, device=members.device)  # of sorted members
    apart = torch.tensordot(ranks, members.sort(0).values, 1)  # the sum over pairs of |x_i - x_j|
    return off - apart / (count * (count - 1))


def spread(members: Tensor) -> Tensor:
    """What the squared error of the mean of ``members`` (m, ..) is on average if the target is one more of them, (..).

    Their variance times (m + 1) / m.

    Raises:
        ValueError: there are less than two.
    """
    if len(members) < 2:
        raise ValueError(f"members: expected at least 2, got {len(members)}")
    return members.var(0) * (1 + 1 / len(members))
