"""Semilinear PDEs on a periodic interval or square, by Fourier series."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sciml.problems.constant import constant
from sciml.problems.problem import Problem
from sciml.problems.random_field import gaussian_coefficients
from sciml.solvers.control import Grid
from sciml.solvers.exponential import ETDRK4
from sciml.solvers.solve import Solver
from sciml.solvers.term import Semilinear, Term
from sciml.typing import Args


@constant
def wavenumbers(modes: int, length: float, space: int, device: torch.device) -> Tensor:
    """The wavenumbers of truncated coefficients, float64: (m + 1) of an interval, (2, 2 m + 1, m + 1) of a square.

    They are those of a real transform: not negative along the last axis, along the one before it in the order
    0, .., m, -m, .., -1.
    """
    half = torch.arange(modes, dtype=torch.float64, device=device)
    if space == 2:
        half = torch.stack(torch.meshgrid(torch.cat([half, half[1:].flip(0).neg()]), half, indexing="ij"))
    return 2 * math.pi / length * half


@dataclass(frozen=True)
class PeriodicPDE(Problem, Semilinear):
    """u_t = L u + N(u) on a periodic interval, or on a square (``space = 2``): write `symbol` and `nonlinear`.

    The state is the Fourier coefficients of the wavenumbers that a product of two fields does not alias on the grid
    (Orszag's 2/3 rule), up to m = (points - 1) // 3 along each axis: (.., c, m + 1), or (.., c, 2 m + 1, m + 1) in the
    order of `wavenumbers`. ETDRK4 integrates L exactly.

    Args:
        points: points of the grid along each axis.
        length: period along each axis.
        t1: final time.
        dt: step size in time; divides ``t1`` and all save times.

    Attributes:
        space: dimensions of space, 1 or 2.

    Example:
        >>> import torch
        >>> class Heat(PeriodicPDE):
        ...     def symbol(self, k):
        ...         return -0.1 * k**2
        >>> heat = Heat(points=32)
        >>> u0 = torch.sin(2 * torch.pi * heat.coordinates()[0])[None, None]
        >>> heat.evolve(u0, torch.tensor([1.0])).shape
        torch.Size([1, 1, 1, 32])
    """

    space: ClassVar[int] = 1

    points: int = 256
    length: float = 1.0
    t1: float = 1.0
    dt: float = 2e-3

    def symbol(self, k: Tensor) -> Tensor:
        """L as a function of the wavenumber k, real or complex; d/dx is i k. On a square k is (kx, ky)."""
        raise NotImplementedError(f"{type(self).__name__} must define symbol(k)")

    def nonlinear(self, y: Tensor) -> Tensor:
        """N of the coefficients y; `decode` gives the field, `encode` its coefficients, `wave` k. Zero by default."""
        return torch.zeros_like(y)

    @property
    def modes(self) -> int:
        """How many wavenumbers along an axis are kept, the mean and of +k and -k one among them."""
        return (self.points - 1) // 3 + 1

    def wave(self, like: Tensor) -> Tensor:
        """The wavenumbers of the coefficients, (m + 1) or (2, 2 m + 1, m + 1), float64."""
        return wavenumbers(self.modes, self.length, self.space, like.device)

    def term(self) -> Term:
        """The equation itself."""
        return self

    def solver(self) -> Solver:
        """ETDRK4 on a uniform grid."""
        return Solver(ETDRK4(), Grid(dt=self.dt), max_steps=10**9)

    def linear(self, args: Args) -> Tensor:
        """The symbol on the wavenumbers kept."""
        return self.symbol(wavenumbers(self.modes, self.length, self.space, torch.device("cpu")))

    def remainder(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """N."""
        return self.nonlinear(y)

    def times(self, count: int) -> Tensor:
        """Multiples of ``dt``."""
        steps = round(self.t1 / self.dt)
        chosen = torch.linspace(0, steps, min(count, steps) + 1, dtype=torch.float64).round()
        return chosen * (self.t1 / steps)

    def coordinates(self) -> tuple[Tensor, ...]:
        """The grid x_j = j length / points along each axis."""
        return (torch.arange(self.points, dtype=torch.float64) * (self.length / self.points),) * self.space

    def encode(self, u: Tensor) -> Tensor:
        """Coefficients of fields on the grid."""
        y = torch.fft.rfft(u, norm="forward")[..., : self.modes]
        if self.space == 2:
            y = torch.fft.fft(y, dim=-2, norm="forward")
            y = torch.cat([y[..., : self.modes, :], y[..., self.points - self.modes + 1 :, :]], -2)
        return y

    def decode(self, y: Tensor) -> Tensor:
        """Fields on the grid."""
        if self.space == 2:
            between = y.new_zeros(*y.shape[:-2], self.points - 2 * self.modes + 1, self.modes)
            y = torch.cat([y[..., : self.modes, :], between, y[..., self.modes :, :]], -2)
            y = torch.fft.ifft(y, dim=-2, norm="forward")
        return torch.fft.irfft(y, n=self.points, norm="forward")

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gaussian random fields N(0, 625 (-d^2/dx^2 + 25)^-2) of zero mean (Li et al. 2021, arXiv 2010.08895)."""
        y = gaussian_coefficients(count, self.modes, self.length, generator)
        return torch.fft.irfft(y, n=self.points, norm="forward").to(dtype)
