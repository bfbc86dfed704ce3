"""Continuous normalising flows: probability densities that a vector field carries from a normal one."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sciml.calculus import probes, value_and_divergence
from sciml.calculus.probes import Law
from sciml.models.draws import normals_like
from sciml.models.unrolled import unrolled
from sciml.solvers.solve import Solver, SolveStats, solve
from sciml.typing import Draws

Divergence = Literal["exact", "hutchinson"]


class Augmented(nn.Module):
    """A vector field and its divergence: what moves points and what grows volumes, d/dt [x, l] = [f, div f].

    Args:
        field: maps (t, x) to dx/dt, with points x (b, d).
    """

    def __init__(self, field: nn.Module):
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        """The slope (b, d + 1) of states (b, d + 1), the divergence estimated along the directions in ``args``."""
        value, divergence = value_and_divergence(lambda x: self.field(t, x), y[:, :-1], *args)
        return torch.cat([value, divergence[:, None]], 1)


class CNF(nn.Module):
    """The density of x(t1) where dx/dt = field(t, x) and x(0) is normal, N(0, I).

        log p(x(t1)) = log N(x(0); 0, I) - int_0^t1 div field(t, x(t)) dt

    (Chen et al. 2018; with Hutchinson's estimate Grathwohl et al. 2019). Called, it gives log p. `torch.export` takes
    it with fixed steps, ``Solver(..., Grid(n=...))``, and the exact divergence.

    Args:
        field: maps (t, x) to dx/dt, each point (b, d) for itself, e.g. `TimeDependent`; smooth, as tanh, gelu, silu.
        dim: d.
        solver: how to integrate; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        divergence: ``"exact"``, at the cost of d directions, or ``"hutchinson"``, an unbiased estimate of log p whose
            noise is drawn once per solve.
        law: of that noise; signs have the lower variance.
        samples: of that noise per point, of which the mean is taken.
        t1: the time of the data.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.

    Reference:
        R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, Neural ordinary differential equations, NeurIPS 2018,
        arXiv:1806.07366.

        W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, FFJORD, ICLR 2019, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> from sciml.models import CNF, MLP, TimeDependent
        >>> flow = CNF(TimeDependent(MLP(3, 2, activation="tanh")), dim=2)
        >>> points = flow.sample(5, torch.Generator().manual_seed(0))
        >>> points.shape, flow(points).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    stats: SolveStats | None = None

    def __init__(
        self,
        field: nn.Module,
        dim: int,
        solver: Solver | None = None,
        divergence: Divergence = "exact",
        law: Law = "rademacher",
        samples: int = 1,
        t1: float = 1.0,
    ):
        super().__init__()
        for name, count in (("dim", dim), ("samples", samples)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a whole number, 1 or more, got {count!r}")
        _check_divergence(divergence)
        if solver is not None and solver.compact is not None:
            raise ValueError("solver: expected compact=None for a flow, whose directions belong to the whole batch")
        self.term, self.dim, self.solver = Augmented(field), dim, solver or Solver()
        self.divergence: Divergence = divergence
        self.law: Law = law
        self.samples, self.t1 = samples, t1

    @property
    def field(self) -> nn.Module:
        """The vector field."""
        return self.term.field

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of the density (b) at points (b, d), with the exact divergence."""
        return self.log_prob(x, divergence="exact")

    def log_prob(
        self, x: Tensor, generator: torch.Generator | None = None, divergence: Divergence | None = None
    ) -> Tensor:
        """The logarithm of the density.

        Args:
            x: points (b, d).
            generator: of the noise of Hutchinson's estimate, on the points' device.
            divergence: None takes that of the flow.

        Returns:
            log p (b) in nats.

        Raises:
            ValueError: if the points do not fit, or if noise is wanted without a generator.
        """
        z, change = self.pull(x, generator, divergence)
        return normal_log_prob(z) + change

    def pull(
        self, x: Tensor, generator: torch.Generator | None = None, divergence: Divergence | None = None
    ) -> tuple[Tensor, Tensor]:
        """From data to the normal distribution; arguments as of `log_prob`.

        Returns:
            x(0), (b, d), and the logarithm (b) of how much smaller volumes are at x(t1) than there.
        """
        self._check(x)
        args = self._noise(x, generator, self.divergence if divergence is None else divergence)
        end = self._solve(self.term, torch.cat([x, x.new_zeros(x.shape[0], 1)], 1), self.t1, 0.0, args)
        return end[:, :-1], end[:, -1]

    def push(self, z: Tensor) -> Tensor:
        """From points x(0) of the normal distribution to x(t1), both (b, d)."""
        self._check(z, "z")
        return self._solve(self.field, z, 0.0, self.t1)

    def sample(self, count: int, draws: Draws = None) -> Tensor:
        """Draws points.

        Args:
            count: how many.
            draws: of the random numbers.

        Returns:
            Points (count, d) in the dtype of the weights.
        """
        return self.push(self._normals(count, draws))

    def _normals(self, count: int, draws: Draws) -> Tensor:
        return normals_like(next(self.parameters()).new_empty(count, self.dim), draws)

    def _solve(self, term: nn.Module, y0: Tensor, t0: float, t1: float, args: tuple[Tensor, ...] = ()) -> Tensor:
        if torch.compiler.is_exporting():
            lanes = y0.shape[: self.solver.lanes == "each"]
            start, end = (torch.full(lanes, t, dtype=torch.float64, device=y0.device) for t in (t0, t1))
            return unrolled(term, y0, start, end, self.solver)
        solution = solve(term, y0, t0, t1, self.solver, args=args)
        self.stats = solution.stats
        return solution.ys

    def _noise(self, x: Tensor, generator: torch.Generator | None, divergence: Divergence) -> tuple[Tensor, ...]:
        _check_divergence(divergence)
        if divergence == "exact":
            return ()
        if generator is None:
            raise ValueError("generator: Hutchinson's estimate expects one; or give divergence='exact'")
        return (probes((self.samples, *x.shape), x, self.law, generator),)

    def _check(self, x: Tensor, name: str = "x") -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{name}: expected points (b, {self.dim}), got {tuple(x.shape)}")


def normal_log_prob(z: Tensor) -> Tensor:
    """The logarithm of the density of N(0, I), (b) at points (b, d)."""
    return -(z.square().sum(1) + z.shape[1] * math.log(2 * math.pi)) / 2


def _check_divergence(given: str) -> None:
    if given not in ("exact", "hutchinson"):
        raise ValueError(f"divergence: expected 'exact' or 'hutchinson', got {given!r}")
