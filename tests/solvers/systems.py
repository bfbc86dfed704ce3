"""Problems that the tests of the solvers share; all of them with a known solution."""

import torch
from torch import Tensor, nn

from sciml.solvers import Diffusive, Semilinear, Separable

DTYPE = torch.float64


def coupled(t: Tensor, y: Tensor) -> Tensor:
    """Nonlinear, non-autonomous, coupled: u = 1/(1 + t^2), v = exp(sin t) from (1, 1) at t = 0; y is (..., 2)."""
    u, v = y.unbind(-1)
    t = t.squeeze(-1) if t.ndim else t
    return torch.stack([-2 * t * u**2, v * t.cos() * u * (1 + t**2)], -1)


def coupled_exact(t: Tensor) -> Tensor:
    """At times of any shape (..., 2)."""
    return torch.stack([1 / (1 + t**2), t.sin().exp()], -1)


class Forced(Semilinear):
    """y' = L y + N(t, y) with |L| up to 200, N made so that y = a cos(t + (0, 1, 2)); y is (..., 3).

    The amplitudes a = (1 + |L|)^-2 fall as the modes of a smooth field do; without that, order reduction is what shows.
    """

    shift = torch.tensor([0.0, 1.0, 2.0], dtype=DTYPE)
    diagonal = torch.tensor([-200.0, -10.0, 0.0], dtype=DTYPE)
    amplitude = (1 + diagonal.abs()) ** -2

    def exact(self, t: Tensor) -> Tensor:
        return self.amplitude * (t + self.shift).cos()

    def linear(self, args: tuple[Tensor, ...]) -> Tensor:
        return self.diagonal

    def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        known, slope = self.exact(t), -self.amplitude * (t + self.shift).sin()
        return slope - self.diagonal * known + y.roll(1, -1) ** 2 - known.roll(1, -1) ** 2


class Linked(Semilinear):
    """A mild semilinear term of args = (linear part (c), coupling (c)), for steppers of every kind; y is (..., c)."""

    def linear(self, args: tuple[Tensor, ...]) -> Tensor:
        return args[0]

    def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * (y.roll(1, -1) + t).sin()


class Oscillators(Separable):
    """The same of a separable term, for symplectic steppers: args = (rates (c), forces (c)); y is (..., 2 c)."""

    def velocity(self, t: Tensor, p: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -args[0] * p

    def force(self, t: Tensor, q: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * (q.roll(1, -1) + t).sin()


class Net(nn.Module):
    """A small vector field with weights; y is (..., 2)."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(2, 4, generator=generator, dtype=DTYPE))
        self.outer = nn.Parameter(0.5 * torch.randn(4, 2, generator=generator, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (y @ self.inner + t).tanh() @ self.outer


class Growth(Diffusive):
    """dy = .1 y dt + s y dW with args = (s,)."""

    noise_type = "diagonal"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0.1 * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * y * dw
