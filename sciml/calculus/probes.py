"""Random directions whose second moments are those of the identity, E v v^T = I."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Law = Literal["rademacher", "gaussian"]


def probes(
    shape: Sequence[int], like: Tensor, law: Law = "rademacher", generator: torch.Generator | None = None
) -> Tensor:
    """Directions for estimates of traces.

    Args:
        shape: theirs, as (b, d) or (k, b, d).
        like: a tensor of the dtype and on the device that they are to have.
        law: ``"rademacher"``, signs, has the lower variance; ``"gaussian"`` has all moments of a normal distribution.
        generator: of the random numbers, on that device.

    Raises:
        ValueError: if there is no such law.

    Example:
        >>> import torch
        >>> from sciml.calculus import probes
        >>> probes((3, 2), torch.zeros(()), generator=torch.Generator().manual_seed(0)).abs()
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """
    if law == "gaussian":
        return torch.randn(tuple(shape), generator=generator, device=like.device, dtype=like.dtype)
    if law != "rademacher":
        raise ValueError(f"law: expected 'rademacher' or 'gaussian', got {law!r}")
    return torch.randint(0, 2, tuple(shape), generator=generator, device=like.device).to(like.dtype) * 2 - 1
