"""The Ornstein-Uhlenbeck process driven by fractional Brownian motion, of which everything is known."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from sciml.problems.problem import Problem
from sciml.solvers.control import Grid
from sciml.solvers.fractional import Fractional, FractionalHeun
from sciml.solvers.solve import Solver
from sciml.solvers.term import Diffusive, Term
from sciml.typing import Args

FINE = 2000  # intervals within which the motion is taken for straight


@dataclass(frozen=True)
class FractionalOrnsteinUhlenbeck(Problem, Diffusive):
    r"""dy = -rate y dt + strength dB with fractional Brownian motion of kind I, observed with normal noise.

    Starts are normal with mean 1 and deviation .5. Paths are drawn from the exact law at the times observed, of

    .. math:: y(t) = e^{-rt} y(0) + \sigma \Bigl(B(t) - r \int_0^t e^{-r(t-s)} B(s)\,ds\Bigr),

    with B a straight line in each of 2000 intervals, and not by a numerical method for stochastic equations.

    Args:
        hurst: H of B.
        rate: of the return to 0.
        strength: of B.
        error: deviation of the observations' noise.
        t1: final time.
        noise_seed: seed of the paths and of the observations' noise.
    """

    channels = ("y",)
    noise_type = "additive"

    hurst: float = 0.7
    rate: float = 1.0
    strength: float = 0.5
    error: float = 0.1
    t1: float = 4.0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no index."""
        if not 0 < self.hurst < 1:
            raise ValueError(f"hurst: expected a number between 0 and 1, got {self.hurst}")

    @property
    def chunk(self) -> int:
        """All samples at once, since they are told apart by their number."""
        return 2**30

    def term(self) -> Term:
        """The equation, whose first argument are the coefficients of `FractionalNoise`."""
        return Fractional(self, (1,), (1,))

    def solver(self) -> Solver:
        """A method for it."""
        return Solver(FractionalHeun(), Grid(n=FINE))

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The return to 0."""
        return -self.rate * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise."""
        return self.strength * dw

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal states (count, 1)."""
        return (1 + 0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)).to(dtype)

    def evolve(self, u0: Tensor, ts: Tensor, progress: bool = False) -> Tensor:
        """Observations (b, t, 1), with noise, of paths from states u0 (b, 1), at times (t)."""
        root = torch.linalg.cholesky(self.covariance(ts) + 1e-12 * torch.eye(len(ts), dtype=torch.float64))
        generator = Generator().manual_seed(self.noise_seed)
        path, noise = torch.randn(2, len(u0), len(ts), generator=generator, dtype=torch.float64)
        states = u0.double() * (-self.rate * ts.double()).exp() + path @ root.T
        return (states + self.error * noise)[..., None].to(u0)

    def covariance(self, ts: Tensor) -> Tensor:
        """Of y at increasing times (t), given its start: (t, t), float64."""
        ends = torch.cat([torch.zeros(1, dtype=torch.float64), ts.double()]).unique()
        cells = math.ceil(FINE / max(1, len(ends) - 1))
        parts = [torch.linspace(float(a), float(b), cells + 1, dtype=torch.float64)[1:] for a, b in pairwise(ends)]
        fine = torch.cat([ends[:1], *parts])
        power, h = 2 * self.hurst, fine.diff()
        motion = (fine**power + fine[:, None] ** power - (fine - fine[:, None]).abs() ** power) / 2
        motion = motion.diff(dim=0).diff(dim=1)  # of the increments
        gain = -torch.expm1(-self.rate * h) / (self.rate * h) if self.rate else torch.ones_like(h)
        lag = ts.double()[:, None] - fine[1:]
        response = torch.where(lag > -h / 2, self.strength * gain * (-self.rate * lag).exp(), 0.0)
        return response @ motion @ response.T

    def log_evidence(self, ts: Tensor, ys: Tensor) -> Tensor:
        """The log-density (b) of observations (b, t, 1) at times (t)."""
        decay = (-self.rate * ts.double()).exp()
        covariance = self.covariance(ts) + 0.25 * decay * decay[:, None]
        covariance = covariance + self.error**2 * torch.eye(len(ts), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(decay, covariance).log_prob(ys[..., 0].double())
