"""A latent equation driven by fractional noise, Brownian motion or none, and its posterior under a learnt control."""

import math
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from sciml.models.draws import brownian, normals_like
from sciml.models.latent import normal_divergence
from sciml.models.latent_sde import CoordinateDiffusion
from sciml.models.mlp import MLP
from sciml.solvers.control import Grid
from sciml.solvers.controlled import Controlled
from sciml.solvers.fractional import Fractional, FractionalHeun
from sciml.solvers.fractional_noise import FractionalNoise
from sciml.solvers.solve import Solver, solve
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Seed

NARROW = 3.0  # so that a new control makes little of it
NEAREST = 1 / 64  # share of an interval: closer to its end, a control takes all times for the same
REACH = 4.0  # size of a latent state from which on gains may not grow with it
PACE = 5.0  # of the Hurst index under Adam, beside that of weights

Noise = Literal["fractional", "brownian", "none"]


class LatentDynamics(nn.Module):
    r"""dz = f(z) dt + g(z) dB, with normal z(0), as a prior of latent paths; and posteriors of them.

    B is fractional Brownian motion in each coordinate, the Markov approximation Z of it, whose Hurst index is learnt,
    or Brownian motion, or nothing: then paths differ by their start alone. A posterior has a normal start of its own,
    of z and, for kind I, of the numbers by which Z tells the past, and adds a control to the Brownian motion W behind
    B. The control sees z, Z and a context of each observation: between two observations that of the next one, and the
    inverse of the share of the way to it that is left, as which gains grow towards it. It is affine in (z, Z), with
    gains that depend on these and on z: for a linear equation with normal observations the best one's form. Far out
    (z, Z) enter in proportion to 1 / |z|, so that the control grows no faster than z and Z although gains grow too:
    one that grows with the square makes paths explode, and with them a training. It also makes the noise narrower,
    without which steps as coarse as frames lose most of the bound (see `Controlled`).

    Args:
        latent: number of coordinates of z.
        context: size of a context.
        width: of the hidden layers.
        noise: ``"fractional"``, ``"brownian"`` or ``"none"``.
        kind: of fractional noise: ``"I"``, with stationary increments, or ``"II"``.
        hurst: its index at the start of the training.
        terms: number of processes that approximate it.
        diffusion: the largest value of g.
        horizon: the last time; the noise is that of [0, horizon].
        steps: of `FractionalHeun` from one time to the next.

    References:
        R. Daems, M. Opper, G. Crevecoeur, T. Birdal, Variational inference for SDEs driven by fractional noise
        (ICLR 2024), arXiv:2310.12975, sections 4 and 5.

    Example:
        >>> import torch
        >>> from sciml.models import LatentDynamics
        >>> model, ts = LatentDynamics(latent=3, context=8), torch.linspace(0, 1, 5)
        >>> start, contexts = torch.zeros(7, 2, model.starts), torch.zeros(7, 5, 8)
        >>> z, divergence = model.posterior(start, contexts, ts)
        >>> z.shape, divergence.shape, model.sample(7, ts).shape
        (torch.Size([7, 5, 3]), torch.Size([7]), torch.Size([7, 5, 3]))
    """

    def __init__(
        self,
        latent: int = 4,
        context: int = 32,
        width: int = 64,
        noise: Noise = "fractional",
        kind: Literal["I", "II"] = "I",
        hurst: float = 0.5,
        terms: int = 5,
        diffusion: float = 1.0,
        horizon: float = 1.0,
        steps: int = 2,
    ):
        super().__init__()
        if noise not in get_args(Noise):
            raise ValueError(f"noise: expected one of {', '.join(get_args(Noise))}, got {noise!r}")
        if not 0 < hurst < 1:
            raise ValueError(f"hurst: expected a number between 0 and 1, got {hurst}")
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        self.latent, self.context, self.noise, self.steps = latent, context, noise, steps
        self.terms = terms if noise == "fractional" else 1
        self.fractional = FractionalNoise(kind, horizon, terms)
        self.past = latent * terms if (noise, kind) == ("fractional", "I") else 0
        self.raw_hurst = nn.Parameter(torch.tensor(math.log(hurst / (1 - hurst)) / PACE), noise == "fractional")
        self.prior_start = nn.Parameter(torch.zeros(2, latent))  # mean and logarithm of the deviation
        self.drift = MLP(latent, latent, width, activation="silu")
        self.diffusion = CoordinateDiffusion(latent, scale=diffusion)
        self.control = Control(latent, self.terms, context, width) if noise != "none" else None

    @property
    def horizon(self) -> float:
        """The last time."""
        return self.fractional.horizon

    @property
    def hurst(self) -> Tensor:
        """The Hurst index; 1/2 of Brownian motion."""
        return (PACE * self.raw_hurst).sigmoid() if self.noise == "fractional" else torch.full_like(self.raw_hurst, 0.5)

    @property
    def starts(self) -> int:
        """How many numbers a start has: z, and for kind I those of the past."""
        return self.latent + self.past

    def posterior(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: Seed = 0) -> tuple[Tensor, Tensor]:
        """One path for each sample, and its divergence from the prior.

        Args:
            start: mean and logarithm of the deviation of the start (b, 2, starts).
            contexts: of the observations at the first n times (b, n, context); after the last of them the prior rules.
            ts: increasing times (t), t at least n, of which the first is 0 and the last at most the horizon.
            seed: of the path and its start, one for all or for each sample its own (b).

        Returns:
            Paths (b, t, latent) and divergences (b), of the start and of the path, with mean the true one.
        """
        mean, log_std = start.unbind(1)
        z, divergence = self._solved(mean + log_std.exp() * normals_like(mean, seed), ts, seed, contexts)
        return z, divergence + normal_divergence(mean, log_std, *self._prior_start()).sum(-1)

    def sample(self, count: int, ts: Tensor, seed: int = 0, generator: Generator | None = None) -> Tensor:
        """So many paths (count, t, latent) of the prior at times (t), their starts by the generator if there is one."""
        mean, log_std = self._prior_start()
        draw = torch.randn(count, len(mean), generator=generator or Generator().manual_seed(seed)).to(mean)
        return self._solved(mean + log_std.exp() * draw, ts, seed)[0]

    def _prior_start(self) -> Tensor:
        """Mean and logarithm of the deviation (2, starts); the past has standard normal numbers."""
        return torch.cat([self.prior_start, self.prior_start.new_zeros(2, self.past)], 1)

    def _solved(self, start: Tensor, ts: Tensor, seed: Seed, contexts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Paths (b, t, latent) from starts (b, starts), and what they diverge but for these (b)."""
        z0, equation = start[:, : self.latent], Fractional(Equation(self), (self.latent,), (self.latent,))
        coefficients, processes = self._noise(z0, start[:, self.latent :])
        y0, args, term = equation.join(z0, processes), (coefficients,), equation
        if self.control is not None and contexts is not None and contexts.shape[1] > 1:
            term = Controlled(equation, self.control, narrows=True)
            y0, args = term.start(y0), (coefficients, ts[: contexts.shape[1]].detach().to(z0), contexts)
        solver = Solver(FractionalHeun(), Grid(n=self.steps * (len(ts) - 1)))
        path = brownian(seed, z0.shape)
        states = solve(term, y0, ts[0], ts[-1], solver, args=args, path=path, save_at=ts).ys.transpose(0, 1)
        diverged = states.new_zeros(len(z0))
        if isinstance(term, Controlled):
            states, kl = term.split(states)
            diverged = kl[:, -1]
        return equation.split(states)[0], diverged

    def _noise(self, z0: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and rates (2, K), and the processes (b, latent, K) at the start.

        Brownian motion is one process that does not relax, no noise one that has no weight.
        """
        processes = z0.new_zeros(*z0.shape, self.terms)
        if self.noise == "fractional":
            hurst = self.hurst
            if self.past:
                processes = past.unflatten(1, (self.latent, self.terms)) @ self.fractional.root(hurst).to(z0).mT
            return self.fractional.coefficients(hurst, z0), processes
        weight = float(self.noise == "brownian")
        return z0.new_tensor([[weight], [0.0]]), processes


class Equation(nn.Module, Diffusive):
    """dz = f(z) dt + g(z) dB in Stratonovich's sense."""

    noise_type = "diagonal"
    calculus = "stratonovich"

    def __init__(self, model: LatentDynamics):
        super().__init__()
        self.rate, self.diffusion = model.drift, model.diffusion

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The rate f."""
        return self.rate(y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise g dB."""
        return self.diffusion(y) * dw


class Control(nn.Module):
    """u = b - A (z, Z) / (1 + |z / 4|^2)^(1/2), and by how much the noise is narrowed. They start at 0, and near 0.

    A and b are a net's of z, the context and the inverse of the share that is left of an interval.
    ``args`` are the coefficients of the noise, the times (n) of the contexts and these, (b, n, k). The control of an
    interval reads the context of its end. After the last one there is none.
    """

    def __init__(self, latent: int, terms: int, context: int, width: int):
        super().__init__()
        self.latent, self.states = latent, latent * (1 + terms)
        self.net = nn.Sequential(MLP(latent + context + 1, width, width, depth=1, activation="silu"), nn.SiLU())
        self.head = nn.Linear(width, latent * (self.states + 2))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, t: Tensor, y: Tensor, args: Args) -> tuple[Tensor, Tensor]:
        """The control and the narrowing (b, latent) at states (b, n) of z and Z."""
        _, ts, contexts = args
        context, share, ruled = upcoming(t, ts, contexts)
        near = 1 / (1 - share).clamp_min(NEAREST)
        z = y[:, : self.latent]
        y = y / (1 + (z / REACH).square().sum(1, keepdim=True)).sqrt()
        seen = torch.cat([z, context, near.expand(len(y), 1)], 1)
        gains, offset, raw = self.head(self.net(seen)).split([self.latent * self.states, self.latent, self.latent], 1)
        u = offset - (gains.unflatten(1, (self.latent, self.states)) @ y[..., None])[..., 0]
        return ruled * u, ruled * softplus(raw - NARROW)


def upcoming(t: Tensor, ts: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The context (b, k) of the next of times (n), the share of the way to it, and whether there is one (1 or 0)."""
    t = t.reshape(1) + 1e-5 * (ts[-1] - ts[0])  # the time at which a step starts is rounded
    last = len(ts) - 1
    place = torch.searchsorted(ts, t, right=True)
    after, before = place.clamp(1, last), place.sub(1).clamp(0, last - 1)
    low, high = ts[before], ts[after]
    return contexts.index_select(1, after)[:, 0], (t - low) / (high - low), (place <= last).to(contexts)
