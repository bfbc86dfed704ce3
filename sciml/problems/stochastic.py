"""Stochastic equations as problems: data whose law is known, and the Lorenz attractor with noise."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from sciml.problems.problem import Problem
from sciml.solvers.brownian import Brownian
from sciml.solvers.control import Grid
from sciml.solvers.solve import Solver, solve
from sciml.solvers.stochastic_runge_kutta import SRA1, SRIW1
from sciml.solvers.term import Diffusive, Term
from sciml.typing import Args


class StochasticProblem(Problem, Diffusive):
    """An Ito equation of additive or diagonal noise, solved on equal steps from saved time to saved time.

    A dataclass with a field ``noise_seed``, of which its paths are a function, and ``t1``.
    """

    noise_type = "additive"
    steps: ClassVar[int] = 20  # between two saved times

    if TYPE_CHECKING:

        @property
        def noise_seed(self) -> int:
            """Seed of the paths; a dataclass field of the problems."""
            ...

    @property
    def chunk(self) -> int:
        """All samples at once, since they are told apart by their number."""
        return 2**30

    def term(self) -> Term:
        """The equation itself."""
        return self

    def solver(self) -> Solver:
        """A method of strong order 3/2."""
        return Solver(SRA1() if self.noise_type == "additive" else SRIW1(), Grid(n=self.steps))

    def evolve(self, u0: Tensor, ts: Tensor, progress: bool = False) -> Tensor:
        """Paths (b, t, c) from states u0 (b, c) at t = 0, at equally spaced times (t) of which the first is 0."""
        last, count = float(ts[-1]), len(ts) - 1
        equal = torch.linspace(0, last, count + 1, dtype=torch.float64)
        if not torch.allclose(ts.to(equal), equal, rtol=0, atol=1e-6 * last):
            raise ValueError(f"ts: expected equally spaced times from 0, got {ts[:4].tolist()} ..")
        if count == 0:
            return u0[:, None]
        steps = count * self.steps
        solver = replace(self.solver(), controller=Grid(n=steps), max_steps=steps)
        path = Brownian(u0.shape, self.noise_seed)
        saved = solve(self, u0, 0.0, last, solver, save_at=equal, path=path, progress=progress).ys
        return saved.transpose(0, 1)


@dataclass(frozen=True)
class OrnsteinUhlenbeck(StochasticProblem):
    """dy = rate (level - y) dt + strength dW, from normal states of mean 1 and deviation .5.

    Args:
        rate: of the return to the level.
        level: the mean in the long run.
        strength: of the noise.
        t1: final time.
        noise_seed: seed of the paths.
    """

    channels = ("y",)

    rate: float = 1.0
    level: float = 0.0
    strength: float = 0.5
    t1: float = 4.0
    noise_seed: int = 0

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The return to the level."""
        return self.rate * (self.level - y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise."""
        return self.strength * dw

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal states (count, 1)."""
        return (1 + 0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)).to(dtype)

    def moments(self, ts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the state at times (t), exactly."""
        decay = (-self.rate * ts).exp()
        variance = 0.25 * decay**2 + self.strength**2 * (1 - decay**2) / (2 * self.rate)
        return self.level + (1 - self.level) * decay, variance.sqrt()


@dataclass(frozen=True)
class StochasticLorenz(StochasticProblem):
    """The Lorenz equations with additive noise, from standard normal states.

    dx = 10 (y - x) dt + s dW, dy = (x (28 - z) - y) dt + s dW, dz = (x y - 8/3 z) dt + s dW.

    Args:
        strength: s.
        t1: final time.
        noise_seed: seed of the paths.

    Reference:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, Scalable gradients for stochastic differential equations,
        AISTATS 2020, arXiv:2001.01328, section 7.2.
    """

    channels = ("x", "y", "z")

    strength: float = 0.15
    t1: float = 1.0
    noise_seed: int = 0

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The Lorenz equations."""
        a, b, c = y.unbind(-1)
        return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise."""
        return self.strength * dw

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal states (count, 3)."""
        return torch.randn(count, 3, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class StochasticSpiral(StochasticProblem):
    """The cubic spiral with multiplicative noise: dy_i = f_i(y) dt + strength y_i dW_i, from (2, 0).

    f(x, y) = (-damping x^3 + turn y^3, -turn x^3 - damping y^3).

    Args:
        damping: rate of decay.
        turn: rate of rotation.
        strength: of the noise.
        t1: final time.
        noise_seed: seed of the paths.

    Reference:
        A. Pal, Y. Ma, V. Shah, C. Rackauckas, Opening the blackbox: accelerating neural differential equations by
        regularizing internal solver heuristics, ICML 2021, arXiv:2105.03918, section 4.2 (the values are those of
        there).
    """

    channels = ("x", "y")
    noise_type = "diagonal"

    damping: float = 0.1
    turn: float = 2.0
    strength: float = 0.2
    t1: float = 1.0
    noise_seed: int = 0

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The spiral."""
        a, b = (y**3).unbind(-1)
        return torch.stack([self.turn * b - self.damping * a, -self.turn * a - self.damping * b], -1)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise."""
        return self.strength * y * dw

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The state (2, 0), so many times."""
        return torch.tensor([2.0, 0.0], dtype=dtype).expand(count, 2).clone()
