"""Networks that jets are sent through."""

import torch
from torch import Tensor, nn


class Ball(nn.Module):
    """(1 - |x|^2) times a network of tanh, zero on the unit sphere."""

    def __init__(self, d: int, width: int = 8, activation: nn.Module | None = None):
        super().__init__()
        act = activation or nn.Tanh()
        self.net = nn.Sequential(nn.Linear(d, width), act, nn.Linear(width, width), act, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (1 - (x * x).sum(-1)) * self.net(x).squeeze(-1)


class Features(nn.Module):
    """Random Fourier features, a layer norm, a time that comes apart, sums over slices."""

    def __init__(self, d: int, width: int = 8):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, d))
        self.waves = nn.Linear(d - 1, width)
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        time, place = x[..., -1:], (x * self.scale)[..., :-1]
        phase = self.waves(place)
        y = self.out(self.norm(torch.cat([phase.sin(), phase.cos()], -1)).exp())[..., 0]
        return y * (-time[..., 0]).exp() + (place[..., 1:] ** 3).mean(-1)


class Periodic(nn.Module):
    """A sine and a cosine of each coordinate, side by side."""

    def __init__(self, d: int, width: int = 8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * d, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x.sin(), x.cos()], -1))[..., 0]


def net(kind: type[nn.Module], d: int, *args) -> nn.Module:
    """A network in float64 with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(d, *args).double()


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 2
