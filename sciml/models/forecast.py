"""Stochastic interpolants between a state and a later one: forecasts as draws from the law of what comes."""

from math import sqrt

import torch
from torch import Tensor, nn

from sciml.solvers.brownian import Brownian
from sciml.solvers.control import Grid
from sciml.solvers.path import Levy
from sciml.solvers.solve import Solver, SolveStats, solve
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic_runge_kutta import ShARK
from sciml.solvers.term import Diffusive
from sciml.typing import Args


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
        solver: how to draw; None takes 16 steps of `ShARK`, two evaluations each, which are worth a hundred of
            `EulerMaruyama`.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first, and after `objective`.

    Raises:
        ValueError: the noise is not positive.

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

    def __init__(self, net: nn.Module, noise: float = 1.0, solver: Solver | None = None):
        super().__init__()
        if not noise > 0:
            raise ValueError(f"noise: expected a positive number, got {noise}")
        self.net, self.noise = net, noise
        self.solver = solver or Solver(ShARK(), Grid(n=16))

    def objective(self, state: Tensor, later: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean square over samples and entries of what b lacks, at one random time per sample.

        Its least value is not 0 but the variance of the velocities that meet in a point.

        Args:
            state: x0 (b, c, ..).
            later: x1, of x0's shape.
            generator: of times, which are spread evenly over a batch, and noise, on the states' device.
        """
        if later.shape != state.shape:
            raise ValueError(f"later: expected the states' shape {tuple(state.shape)}, got {tuple(later.shape)}")
        self.stats = None  # it solves nothing
        options = {"generator": generator, "dtype": state.dtype, "device": state.device}
        places = torch.randperm(len(state), generator=generator, device=state.device)
        t = (places + torch.rand(len(state), **options)) / max(1, len(state))
        t = t.reshape(-1, *[1] * (state.ndim - 1))
        motion = self.noise * t.sqrt() * torch.randn(state.shape, **options)
        velocity = later - state - motion
        between = torch.lerp(state, later, t) + (1 - t) * motion
        return (self.velocity(t, between, state) - velocity).square().sum() / max(1, state.numel())

    def velocity(self, t: Tensor, x: Tensor, state: Tensor) -> Tensor:
        """The velocity b (b, c, ..) at times, () or (b, 1, ..), and points x (b, c, ..), from states x0 (b, c, ..)."""
        return self.net(torch.cat([x, state, t.expand(len(x), 1, *x.shape[2:])], 1))

    def forecast(self, state: Tensor, members: int = 1, seed: int = 0) -> Tensor:
        """Draws later states.

        Args:
            state: x0 (b, c, ..).
            members: number of draws from each.
            seed: of the noise; draws are a function of it and of a state's place in the batch.

        Returns:
            Later states (members, b, c, ..).
        """
        start = state.repeat(members, *[1] * (state.ndim - 1))
        solution = solve(_Bridge(self), start, 0.0, 1.0, self.solver, args=(start,), path=Brownian(seed=seed))
        self.stats = solution.stats
        return solution.ys.unflatten(0, (members, len(state)))

    def forward(self, state: Tensor, normal: Tensor) -> Tensor:
        """Draws one later state of each by n equal steps of `ShARK`, from numbers that are given, for `torch.export`.

        Args:
            state: x0 (b, c, ..).
            normal: independent standard normal numbers (b, n, 2, c, ..).

        Returns:
            Later states (b, c, ..).
        """
        n, y, stepper = normal.shape[1], state, ShARK()
        t, h = (torch.tensor(x, dtype=torch.float64, device=y.device) for x in (0.0, 1 / n))
        field = Field(_Bridge(self), (state,), "joint", stepper.constants(t, y))
        for j, (w, area) in enumerate(drawn.unbind(1) for drawn in normal.unbind(1)):
            interval = Interval(j * h, h, h.to(y.dtype))
            y = stepper.step(field, interval, y, (), Levy(w / sqrt(n), area / sqrt(12 * n))).y
        return y


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
