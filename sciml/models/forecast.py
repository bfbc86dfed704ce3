"""Stochastic interpolants between a state and a later one: forecasts as draws from the law of what comes."""

import torch
from torch import Tensor, nn

from sciml.models.draws import normals_like
from sciml.models.interpolant import times
from sciml.solvers.brownian import Brownian
from sciml.solvers.control import Grid
from sciml.solvers.explicit import Tsit5
from sciml.solvers.path import Levy
from sciml.solvers.solve import Solver, SolveStats, solve
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic_runge_kutta import ShARK
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Draws, Seed


class ForecastInterpolant(nn.Module):
    r"""Draws from the law of a later state x1 given a state x0, learned from pairs of them by least squares.

    Between a state and the later one stands the interpolant :math:`I(t) = (1 - t) x_0 + t x_1 + \epsilon (1 - t) W(t)`
    with a Brownian motion W, t from 0 to 1. Given x0 its law at every time is that of x(t) in

    .. math:: dx = b(t, x, x_0) dt + \epsilon (1 - t) dW, \quad x(0) = x_0,
        \quad b(t, x, x_0) = E[\dot I(t) | I(t) = x, x_0],
        \quad \dot I(t) = x_1 - x_0 - \epsilon W(t),

    so that x(1) is a draw from the law of x1. The noise is made up and has nothing to do with what makes x1 uncertain.
    b is a conditional mean, which least squares find (`objective`): training solves no equation. t is a time of its
    own, from one state to the other, whatever lies between them.

    Args:
        net: b, maps (b, 2 c + 1, ..) to (b, c, ..): the channels of x, those of x0 and the time, e.g. ``FNO(3, 1, ..)``
            for a field of one channel, ``MLP(2 c + 1, c)`` for vectors.
        noise: epsilon, in units of the states: about their deviation.
        steps: number n of steps of a draw, each of two evaluations, by `ShARK`. They end at 1 - (1 - j / n)^1.5, and so
            grow shorter: where x1 is nearly known, b pulls at x with the rate 1 / (1 - t), and equal steps would leave
            the noise of the last one.
        solver: how to draw instead, by a method for additive noise.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first, and after `objective`.

    Raises:
        ValueError: the noise is not positive, there is no whole number of steps, or the solver takes no such noise.

    Reference:
        Y. Chen, M. Goldstein, M. Hua, M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, Probabilistic forecasting with
        stochastic interpolants and Foellmer processes, ICML 2024, arXiv:2403.13724.

    Example:
        >>> import torch
        >>> from sciml.models import MLP, ForecastInterpolant
        >>> model = ForecastInterpolant(MLP(5, 2))
        >>> states = torch.zeros(10, 2)
        >>> model.objective(states, states + 1).shape, model.forecast(states, members=3).shape
        (torch.Size([]), torch.Size([3, 10, 2]))
    """

    stats: SolveStats | None = None

    def __init__(self, net: nn.Module, noise: float = 1.0, steps: int = 16, solver: Solver | None = None):
        super().__init__()
        if not noise > 0:
            raise ValueError(f"noise: expected a positive number, got {noise}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: expected a whole number from 1 on, got {steps}")
        if solver is not None and "additive" not in (solver.stepper or Tsit5()).noise_types:
            taken = type(solver.stepper or Tsit5()).__name__
            raise ValueError(f"solver: expected a stepper for additive noise, as ShARK, got {taken}")
        self.net, self.noise, self.steps = net, noise, steps
        self.custom = solver is not None
        self.solver = solver or Solver(ShARK(), Grid(ts=_ends(steps)))

    def objective(self, state: Tensor, later: Tensor, draws: Draws = None) -> Tensor:
        """The mean square over samples and entries of what b lacks, at one random time per sample.

        Its least value is not 0 but the variance of the velocities that meet in a point.

        Args:
            state: x0 (b, c, ..).
            later: x1, of x0's shape.
            draws: times, which are spread evenly over a batch, and noise; by numbers of samples, over consecutive ones.
        """
        if later.shape != state.shape:
            raise ValueError(f"later: expected the states' shape {tuple(state.shape)}, got {tuple(later.shape)}")
        self.stats = None  # it solves nothing
        t = times(state, draws)
        motion = self.noise * t.sqrt() * normals_like(state, draws)
        velocity = later - state - motion
        between = torch.lerp(state, later, t) + (1 - t) * motion
        return (self.velocity(t, between, state) - velocity).square().sum() / max(1, state.numel())

    def velocity(self, t: Tensor, x: Tensor, state: Tensor) -> Tensor:
        """The velocity b (b, c, ..) at times, () or (b, 1, ..), and points x (b, c, ..), from states x0 (b, c, ..)."""
        return self.net(torch.cat([x, state, t.expand(x.shape[0], 1, *x.shape[2:])], 1))

    def forecast(self, state: Tensor, members: int = 1, seed: Seed = 0) -> Tensor:
        """Draws later states.

        Args:
            state: x0 (b, c, ..).
            members: number of draws from each.
            seed: of the noise; a draw is a function of it, of its own number, and of a state's place in the batch. Or
                places (b), whole numbers below 2^32, in whatever batches the states come.

        Returns:
            Later states (members, b, c, ..).
        """
        together = 1 if state.device.type == "cpu" else members  # what a core's cache holds is done four times as fast
        if members < 1:
            raise ValueError(f"members: expected at least 1, got {members}")
        seed, places = (0, seed) if isinstance(seed, Tensor) else (seed, torch.arange(len(state)))
        numbers, drawn = (torch.arange(members) << 32)[:, None] + places.cpu(), []
        for part in numbers.split(together):
            start = state.repeat(len(part), *[1] * (state.ndim - 1))
            path = Brownian(start.shape, seed, samples=part.flatten())
            solution = solve(_Bridge(self), start, 0.0, 1.0, self.solver, args=(start,), path=path)
            self.stats = solution.stats
            drawn.append(solution.ys.unflatten(0, part.shape))
        return torch.cat(drawn)

    def forward(self, state: Tensor, normal: Tensor) -> Tensor:
        """Draws one later state of each by n steps as above, from numbers that are given, for `torch.export`.

        Args:
            state: x0 (b, c, ..).
            normal: independent standard normal numbers (b, n, 2, c, ..).

        Returns:
            Later states (b, c, ..).
        """
        y, stepper, ends = state, ShARK(), _ends(normal.shape[1]).to(state.device)
        field = Field(_Bridge(self), (state,), "joint", stepper.constants(ends[0], y))
        for t, h, drawn in zip(ends, ends.diff(), normal.unbind(1), strict=False):
            w, area = drawn.unbind(1)
            size = h.to(y.dtype)
            y = stepper.step(field, Interval(t, h, size), y, (), Levy(size.sqrt() * w, (size / 12).sqrt() * area)).y
        return y


def _ends(steps: int) -> Tensor:
    """The ends of steps that grow shorter, from 0 to 1 (n + 1), float64."""
    return 1 - (1 - torch.arange(steps + 1, dtype=torch.float64) / steps) ** 1.5


class _Bridge(nn.Module, Diffusive):
    """The stochastic equation that leads from a state, its argument, to a later one."""

    noise_type = "additive"

    def __init__(self, model: ForecastInterpolant):
        super().__init__()
        self.model = model

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        return self.model.velocity(t, y, args[0])

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        return self.model.noise * (1 - t) * dw
