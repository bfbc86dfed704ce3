"""The cubic spiral, the first test of neural ODEs."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sciml.problems.problem import Problem
from sciml.solvers.control import PID
from sciml.solvers.explicit import Tsit5
from sciml.solvers.solve import Solver
from sciml.solvers.term import Term
from sciml.typing import Args


@dataclass(frozen=True)
class Spiral(Problem, Term):
    """dx/dt = -damping x^3 - turn y^3, dy/dt = turn x^3 - damping y^3, with states (b, 2).

    Without damping x^4 + y^4 is kept. It turns the faster, the larger the state.

    Args:
        damping: rate of decay.
        turn: rate of rotation.
        t1: final time.

    Reference:
        R. T. Q. Chen et al., Neural ordinary differential equations, NeurIPS 2018, arXiv:1806.07366 (its code; the
        values are those of there, with t1 = 25).
    """

    channels = ("x", "y")

    damping: float = 0.1
    turn: float = 2.0
    t1: float = 25.0

    def term(self) -> Term:
        """The equation itself."""
        return self

    def solver(self) -> Solver:
        """Tsit5, every trajectory with its own steps."""
        return Solver(Tsit5(), PID(rtol=1e-6, atol=1e-8), lanes="each")

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The right-hand side."""
        a, b = (y**3).unbind(-1)
        return torch.stack([-self.damping * a - self.turn * b, self.turn * a - self.damping * b], -1)

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in angle, and in radius between 1 and 2."""
        draws = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        radius, angle = 1 + draws[:, 0], 2 * math.pi * draws[:, 1]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).to(dtype)
