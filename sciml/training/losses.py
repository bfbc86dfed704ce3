"""Losses between fields."""

import torch
from torch import Tensor, nn


def relative_l2(prediction: Tensor, target: Tensor) -> Tensor:
    """The relative error of each sample, ||prediction - target|| / ||target|| over its channels and points.

    Args:
        prediction: `(b, c, *x)`.
        target: `(b, c, *x)`; the norm of a zero field is raised to the smallest normal number.

    Returns:
        `(b)`.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction: expected the target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}"
        )
    norm = torch.linalg.vector_norm
    scale = norm(target.flatten(1), dim=1).clamp_min(torch.finfo(target.dtype).tiny)
    return norm((prediction - target).flatten(1), dim=1) / scale


class RelativeL2(nn.Module):
    """The mean of `relative_l2` over the samples."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Both `(b, c, *x)`; a number."""
        return relative_l2(prediction, target).mean()
