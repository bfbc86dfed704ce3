"""Equations on periodic domains that are stirred at random, white in time."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Generator, Tensor

from sciml.problems.constant import constant
from sciml.problems.periodic import PeriodicPDE
from sciml.problems.stochastic import StochasticProblem
from sciml.solvers.brownian import Brownian
from sciml.solvers.control import Grid
from sciml.solvers.exponential_stochastic import StochasticETDRK4
from sciml.solvers.solve import Solver, solve
from sciml.solvers.term import Semilinear, real_dtype
from sciml.typing import Args

TOGETHER = 2**17  # points of all samples solved together


@dataclass(frozen=True)
class RandomlyForced(StochasticProblem, Semilinear):
    """du = (L u + N(u)) dt + strength dB for any `PeriodicPDE`, with a force that is white in time and smooth in space.

    B(t, x) is the sum over the wavenumbers of a band of cos(k x) and sin(k x) with a Brownian motion each, all of the
    same variance, which in every point add up to a motion of variance t. It is solved by `StochasticETDRK4`; a sample's
    path is a function of ``noise_seed`` and its number. Of `NavierStokes`, whose fields are vorticities, the force puts
    in enstrophy at the rate strength^2 / 2 in the mean.

    Args:
        problem: the equation without the force, of one channel; grid, times and initial conditions are its own.
        strength: deviation of what the force adds to u in a point within one unit of time.
        forced: the least and the largest wavenumber |k| of the band, in periods per length.
        noise_seed: seed of the paths.

    Raises:
        ValueError: the problem has several channels; the band is none, or the grid does not resolve it.

    Example:
        >>> import torch
        >>> from sciml.problems import Burgers, RandomlyForced
        >>> problem = RandomlyForced(Burgers(points=64, dt=0.01), strength=0.5)
        >>> problem.evolve(torch.zeros(5, 1, 64), torch.tensor([0.0, 0.5, 1.0])).shape
        torch.Size([5, 3, 1, 64])
    """

    problem: PeriodicPDE
    strength: float = 1.0
    forced: tuple[int, int] = (1, 3)
    noise_seed: int = 0

    def __post_init__(self):
        if not isinstance(self.problem, PeriodicPDE) or len(self.problem.channels) != 1:
            raise ValueError(f"problem: expected a PeriodicPDE of one channel, got {type(self.problem).__name__}")
        band = tuple(self.forced)
        whole = len(band) == 2 and all(isinstance(k, int) for k in band)
        if not (whole and 1 <= band[0] <= band[1] < self.problem.modes):
            raise ValueError(
                f"forced: expected two wavenumbers from 1 to the {self.problem.modes - 1} that {self.problem.points} "
                f"points resolve, the least first, got {band}"
            )
        object.__setattr__(self, "channels", self.problem.channels)

    @property
    def t1(self) -> float:
        """That of the problem."""
        return self.problem.t1

    def solver(self) -> Solver:
        """`StochasticETDRK4` on the problem's grid of times."""
        return Solver(StochasticETDRK4(), Grid(dt=self.problem.dt), max_steps=10**9)

    def linear(self, args: Args) -> Tensor:
        """L."""
        return self.problem.linear(args)

    def remainder(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """N."""
        return self.problem.remainder(t, y, args)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The coefficients of strength dB, from increments dw (.., 1, m) of its m motions."""
        low, high = self.forced
        waves = _waves(self.problem.modes, self.problem.space, low, high, real_dtype(y), y.device)
        rise = (self.strength * dw @ waves.flatten(1)).unflatten(-1, waves.shape[1:])
        return torch.view_as_complex(rise).expand(y.shape)

    def evolve(self, u0: Tensor, ts: Tensor, progress: bool = False) -> Tensor:
        """Fields (b, t, c, *x) at times (t) from 0 to ``t1``, multiples of the step, each sample on its own path."""
        steps, parts = round(self.t1 / self.problem.dt), []
        for numbers in torch.arange(len(u0)).split(max(1, TOGETHER // self.problem.points**self.problem.space)):
            shape = (len(numbers), 1, self.motions)
            path = Brownian(shape, self.noise_seed, samples=numbers, cells=steps, by="step")
            y0 = self.encode(u0[numbers.to(u0.device)])
            ys = solve(self, y0, 0.0, self.t1, self.solver(), save_at=ts, path=path, progress=progress).ys
            parts.append(self.decode(ys.transpose(0, 1)))
        return torch.cat(parts)

    @property
    def motions(self) -> int:
        """m, the number of Brownian motions of a sample."""
        return 2 * len(_band(self.problem.space, *self.forced))

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Those of the problem."""
        return self.problem.initial(count, generator, dtype)

    def coordinates(self) -> tuple[Tensor, ...]:
        """Those of the problem."""
        return self.problem.coordinates()

    def times(self, count: int) -> Tensor:
        """Those of the problem."""
        return self.problem.times(count)

    def encode(self, u: Tensor) -> Tensor:
        """Coefficients of fields on the grid."""
        return self.problem.encode(u)

    def decode(self, y: Tensor) -> Tensor:
        """Fields on the grid."""
        return self.problem.decode(y)


@lru_cache
def _band(space: int, low: int, high: int) -> tuple[tuple[int, ...], ...]:
    """The wavenumbers of a band, one of each pair of opposite ones."""
    axes = [range(-high, high + 1)] * (space - 1) + [range(high + 1)]
    half = (k for k in product(*axes) if k[-1] > 0 or k[0] > 0)
    return tuple(k for k in half if low**2 <= sum(n * n for n in k) <= high**2)


@constant
def _waves(modes: int, space: int, low: int, high: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What increments of the motions are multiplied with, (m, *k, 2), real and imaginary part."""
    band = _band(space, low, high)
    waves = torch.zeros(2, len(band), *[2 * modes - 1] * (space - 1), modes, 2, dtype=torch.float64)
    for place, k in enumerate(band):
        waves[0, place, *k, 0], waves[1, place, *k, 1] = 0.5, -0.5
        if space == 2 and k[1] == 0:  # both k and -k are stored
            waves[0, place, -k[0], 0, 0], waves[1, place, -k[0], 0, 1] = 0.5, 0.5
    return (waves.flatten(0, 1) / math.sqrt(len(band))).to(device, dtype)
