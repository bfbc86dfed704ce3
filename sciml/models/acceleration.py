"""Networks that start a stationary iteration for linear systems: with a relaxation, or with a first guess."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciml.models.mlp import MLP
from sciml.solvers.linear.blocks import BlockSystems
from sciml.solvers.linear.unrolled import jacobi_radii, young


class Start(NamedTuple):
    """What an iteration starts with.

    Attributes:
        omega: relaxation of each system (s).
        x0: first guesses, one after the other (n).
    """

    omega: Tensor
    x0: Tensor


class MetaSolver(nn.Module, ABC):
    """Chooses from a system what an iteration for it starts with.

    A net sees -log(1 - rho_j) of estimates rho_j of the spectral radius of the Jacobi iteration, after j = 1, 2, 4, ...
    Lanczos steps, each of which takes one product with A. They do not depend on the units of A and b.

    Args:
        lanczos: Lanczos steps at most.

    Raises:
        ValueError: no step.
    """

    def __init__(self, lanczos: int):
        super().__init__()
        if lanczos < 1:
            raise ValueError(f"lanczos: expected at least 1 step, got {lanczos}")
        self.kept = [2**i - 1 for i in range(lanczos.bit_length())]

    @abstractmethod
    def forward(self, systems: BlockSystems) -> Start:
        """Relaxations and first guesses."""

    def radii(self, systems: BlockSystems) -> Tensor:
        """The estimates (features, s)."""
        return jacobi_radii(systems, self.kept[-1] + 1)[self.kept]

    def seen(self, radii: Tensor) -> Tensor:
        """What the net sees of them (s, features), in the dtype of its weights."""
        return -torch.log1p(-radii.mT.clamp_max(1 - 1e-12)).to(next(self.parameters()).dtype)


class RelaxationFactor(MetaSolver):
    """A relaxation omega for each system, from the given first guess.

    Args:
        lanczos: Lanczos steps at most.
        low: least omega.
        high: largest omega; successive over-relaxation converges below 2.
        width: hidden units of the net.
        depth: hidden layers.

    Raises:
        ValueError: numbers out of their range.

    Example:
        >>> import torch
        >>> from sciml.models import RelaxationFactor
        >>> from sciml.problems import Diffusion
        >>> from sciml.solvers.linear import BlockSystems
        >>> problems = [Diffusion(cells=m).system(seed=0) for m in (4, 8)]
        >>> systems = BlockSystems.join([BlockSystems.of(p.matrix, p.b) for p in problems])
        >>> start = RelaxationFactor()(systems)
        >>> start.omega.shape, start.x0.shape
        (torch.Size([2]), torch.Size([80]))
    """

    def __init__(self, lanczos: int = 2, low: float = 0.0, high: float = 2.0, width: int = 32, depth: int = 2):
        super().__init__(lanczos)
        if not 0 <= low < high:
            raise ValueError(f"low, high: expected 0 <= low < high, got {low} and {high}")
        self.low, self.high = low, high
        self.net = MLP(len(self.kept), 1, width=width, depth=depth)

    def forward(self, systems: BlockSystems) -> Start:
        """Relaxations by the net."""
        share = self.net(self.seen(self.radii(systems))).squeeze(1).to(systems.b.dtype).sigmoid()
        return Start(self.low + (self.high - self.low) * share, systems.x0)


class LearnedExtrapolation(MetaSolver):
    """A first guess for the next step in time, from the solutions u_1, u_2, ... of the steps before.

    x0 = u_1 + c_0 u_1 + c_1 (u_1 - u_2) + ... + c_q D^-1 b, with q + 1 numbers c for each system by a net that sees the
    ratios of time steps too. It starts near u_1. The relaxation is Young's from the last Lanczos step.

    Args:
        history: previous solutions q that it takes.
        lanczos: Lanczos steps at most.
        width: hidden units of the net.
        depth: hidden layers.

    Raises:
        ValueError: numbers out of their range.
    """

    def __init__(self, history: int = 3, lanczos: int = 8, width: int = 32, depth: int = 2):
        super().__init__(lanczos)
        if history < 1:
            raise ValueError(f"history: expected at least 1 previous solution, got {history}")
        self.history = history
        self.net = MLP(len(self.kept) + history - 1, history + 1, width=width, depth=depth)
        with torch.no_grad():
            for weight in self.net.layers[-1].parameters():
                weight.mul_(0.1)

    def forward(self, systems: BlockSystems) -> Start:
        """First guesses by the net.

        Raises:
            ValueError: too few previous solutions, or no time steps.
        """
        u, dt = systems.previous, systems.dt
        if u is None or dt is None or len(u) < self.history:
            count = 0 if u is None else len(u)
            raise ValueError(
                f"systems: expected at least {self.history} previous solutions with time steps, got {count}; take a "
                "smaller history, or a sequence of steps"
            )
        u, radii = u[: self.history], self.radii(systems)
        seen, ratios = self.seen(radii), (dt[:, :1] / dt[:, 1 : self.history]).log()
        c = self.net(torch.cat([seen, ratios.to(seen.dtype)], 1)).to(u.dtype)
        along = torch.cat([u[:1], u[:-1] - u[1:], (systems.b / systems.diagonal)[None]])
        return Start(young(radii[-1]), u[0] + (c[systems.owner].mT * along).sum(0))
