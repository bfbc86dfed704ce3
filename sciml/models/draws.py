"""Random numbers of a batch by one seed, or of each sample by a seed of its own, whatever the others are."""

import math

import torch
from torch import Generator, Tensor

from sciml.solvers.brownian import Brownian
from sciml.solvers.hashed import GAMMA, SECOND, halved_normals, mixed, signed
from sciml.typing import Draws, Seed


def normals_like(x: Tensor, draws: Seed | Draws) -> Tensor:
    """Normal numbers of the shape (b, ..) of x."""
    if isinstance(draws, Tensor):
        return own_normals(draws, math.prod(x.shape[1:])).reshape(x.shape).to(x)
    if draws is not None and not isinstance(draws, Generator):
        return torch.randn(x.shape, generator=Generator().manual_seed(int(draws))).to(x)
    return torch.randn(x.shape, generator=draws, dtype=x.dtype, device=x.device)


def brownian(seed: Seed, shape: torch.Size | None = None) -> Brownian:
    """Brownian motion of a shape, None that of the state."""
    return Brownian(shape, samples=seed) if isinstance(seed, Tensor) else Brownian(shape, seed)


def own_normals(seeds: Tensor, count: int, purpose: int = 0) -> Tensor:
    """Normal numbers (b, count), each row a function of its seed (b) and the purpose alone.

    They have nothing to do with those of Brownian paths by the same seeds.

    Example:
        >>> import torch
        >>> from sciml.models.draws import own_normals
        >>> torch.equal(own_normals(torch.arange(5), 3)[2:], own_normals(torch.arange(2, 5), 3))
        True
    """
    seeds, pairs = seeds.long(), torch.arange((count + 1) // 2, device=seeds.device)
    key = mixed(torch.tensor([signed(purpose * GAMMA + SECOND)], device=seeds.device))
    bits = mixed(mixed(key + seeds * GAMMA)[:, None] + pairs * GAMMA)
    return math.sqrt(2) * halved_normals(bits, torch.float64)[:, :count]
