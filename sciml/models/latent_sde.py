"""Latent stochastic equations: trajectories as observations of a diffusion in a latent space."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sciml.models.mlp import MLP
from sciml.solvers.brownian import Brownian
from sciml.solvers.control import PID
from sciml.solvers.solve import Solver, SolveStats, solve
from sciml.solvers.stochastic_runge_kutta import SRIW1
from sciml.solvers.term import Diffusive
from sciml.typing import Args

LOG_TWO_PI = math.log(2 * math.pi)
LEAST = 1e-3  # diffusion, so that the two drifts can be compared


class CoordinateDiffusion(nn.Module):
    """A net for each coordinate by itself, as diagonal noise has it: g_i(z_i) in (LEAST, scale).

    Args:
        size: number of coordinates.
        width: size of the hidden layer of each.
        scale: the largest value; the nets start at about half of it.
    """

    def __init__(self, size: int, width: int = 16, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.inner, self.bias = nn.Parameter(torch.randn(size, width)), nn.Parameter(torch.randn(size, width))
        self.outer = nn.Parameter(torch.randn(size, width) / width)

    def forward(self, z: Tensor) -> Tensor:
        """Of states (.., size), of their shape."""
        hidden = torch.tanh(torch.addcmul(self.bias, z[..., None], self.inner))
        return LEAST + (self.scale - LEAST) * torch.sigmoid((hidden * self.outer).sum(-1))


class Fit(NamedTuple):
    """What the posterior makes of trajectories (b).

    Attributes:
        predictions: means of the observations along a path of the posterior, (b, t, c).
        log_likelihood: of what was observed, given that path (b).
        kl: divergence of the posterior from the prior: of the start, and of the path (b).
    """

    predictions: Tensor
    log_likelihood: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """A bound (b) below the log-evidence, in nats per trajectory, without bias."""
        return self.log_likelihood - self.kl


class LatentModel(nn.Module, ABC):
    """Trajectories as observations, with normal noise, of paths in a latent space, by a linear map of these.

    A GRU reads the observations from the last to the first and gives a context of each time, which tells of that and
    all later ones. That of the first gives the start of the posterior, all of them lead its paths. Derived classes say
    which paths, and make the decoder.

    Args:
        channels: number of components of an observation.
        latent: number of latent coordinates.
        context: size of the context.
        width: of the hidden layers.
        noise: deviation of the observations' noise at the start; it is learnt.
        starts: how many numbers a path starts from; None takes the latent coordinates.
    """

    decoder: nn.Linear
    stats: SolveStats | None = None

    def __init__(self, channels: int, latent: int, context: int, width: int, noise: float, starts: int | None = None):
        super().__init__()
        self.latent = latent
        self.encoder = nn.GRU(2 * channels + 1, width, batch_first=True)
        self.context, self.start = nn.Linear(width, context), nn.Linear(context, 2 * (starts or latent))
        self.log_noise = nn.Parameter(torch.full((channels,), noise).log())

    @abstractmethod
    def paths(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A path (b, t, latent) of the posterior for each sample, and its divergence (b) from the prior.

        Args:
            start: mean and logarithm of the deviation of the start (b, 2, starts).
            contexts: (b, t, context).
            ts: times, as of `posterior`.
            seed: of the path and its start.
        """

    @abstractmethod
    def prior_paths(self, count: int, ts: Tensor, seed: int, generator: Generator) -> Tensor:
        """So many paths (count, t, latent) of the prior, whose starts are drawn with the generator."""

    def posterior(self, ts: Tensor, ys: Tensor, mask: Tensor, seed: int = 0) -> Fit:
        """One path of the posterior for each trajectory.

        Args:
            ts: increasing times (t), or (b, t) with lanes "each".
            ys: observations (b, t, c); what stands where there is none does not matter.
            mask: where there are some, (b, t, c), bool.
            seed: of the path and its start.

        Returns:
            The fit, differentiable in all parameters.
        """
        ys = ys.where(mask, 0)  # also for the gradient
        contexts = self.contexts(ts, ys, mask)
        z, kl = self.paths(self.start(contexts[:, 0]).unflatten(-1, (2, -1)), contexts, ts, seed)
        predictions = self.decoder(z)
        surprise = ((ys - predictions) / self.log_noise.exp()).square() + 2 * self.log_noise + LOG_TWO_PI
        return Fit(predictions, -0.5 * surprise.where(mask, 0).sum((1, 2)), kl)

    def contexts(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What the GRU knows at each observation of that and all later ones: (b, t, context)."""
        gaps = ts.diff(dim=-1, prepend=ts[..., :1]).to(ys)
        gaps = gaps.expand(ys.shape[:2])[..., None]
        seen = torch.cat([ys.where(mask, 0), mask.to(ys), gaps], -1)
        read, _ = self.encoder(seen.flip(1))
        return self.context(read.flip(1))

    def sample(self, count: int, ts: Tensor, seed: int = 0, noisy: bool = False) -> Tensor:
        """So many trajectories (count, t, c) of the prior at times (t), with the observations' noise or without."""
        generator = Generator().manual_seed(seed)
        means = self.decoder(self.prior_paths(count, ts, seed, generator))
        if not noisy:
            return means
        return means + self.log_noise.exp() * torch.randn(means.shape, generator=generator).to(means)


class LatentSDE(LatentModel):
    r"""Trajectories as observations, with normal noise, of a diffusion in a latent space.

    The prior is dz = f(z) dt + g(z) dW, the posterior of a trajectory dz = h(z, context(t)) dt + g(z) dW, where a GRU
    that reads the observations from the last to the first gives the context of each of their intervals. The posterior's
    divergence from the prior is :math:`\frac12 E \int |(h - f) / g|^2 dt`, and is integrated along with the path.

    Args:
        channels: number of components of an observation.
        latent: number of latent coordinates.
        context: size of the context.
        width: of the hidden layers.
        noise: deviation of the observations' noise at the start; it is learnt.
        diffusion: the largest value of g.
        solver: how to integrate both; None takes SRIW1 with rtol and atol 1e-2.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.

    Reference:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, Scalable gradients for stochastic differential equations,
        AISTATS 2020, arXiv:2001.01328, section 5.

    Example:
        >>> import torch
        >>> from sciml.models import LatentSDE
        >>> model = LatentSDE(channels=2)
        >>> ts, ys = torch.linspace(0, 1, 5), torch.zeros(3, 5, 2)
        >>> model.posterior(ts, ys, torch.ones_like(ys, dtype=torch.bool)).elbo.shape
        torch.Size([3])
        >>> model.sample(7, ts).shape
        torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        channels: int,
        latent: int = 4,
        context: int = 32,
        width: int = 64,
        noise: float = 0.1,
        diffusion: float = 1.0,
        solver: Solver | None = None,
    ):
        if not noise > 0 or not diffusion > LEAST:
            raise ValueError(f"noise, diffusion: expected noise > 0 and diffusion > {LEAST}, got {noise}, {diffusion}")
        super().__init__(channels, latent, context, width, noise)
        self.solver = solver or Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2))
        self.prior_start = nn.Parameter(torch.zeros(2, latent))  # mean and logarithm of the deviation
        self.prior = MLP(latent, latent, width, activation="softplus")
        self.drift = MLP(latent + context, latent, width, activation="softplus")
        self.diffusion = CoordinateDiffusion(latent, scale=diffusion)
        self.decoder = nn.Linear(latent, channels)

    def paths(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As `LatentModel` says."""
        if ts.ndim != 1 and self.solver.lanes != "each":
            raise ValueError(f'ts: expected times (t), got shape {tuple(ts.shape)}; (b, t) needs lanes="each"')
        mean, log_std = start.unbind(1)
        draw = torch.randn(mean.shape, generator=Generator().manual_seed(seed))
        z0 = mean + log_std.exp() * draw.to(mean)
        states = self._solved(Posterior(self), torch.cat([z0, torch.zeros_like(z0[:, :1])], -1), ts, seed, contexts)
        kl = normal_divergence(mean, log_std, *self.prior_start).sum(-1) + states[:, -1, -1]
        return states[..., :-1], kl

    def prior_paths(self, count: int, ts: Tensor, seed: int, generator: Generator) -> Tensor:
        """As `LatentModel` says."""
        mean, log_std = self.prior_start
        z0 = mean + log_std.exp() * torch.randn(count, self.latent, generator=generator).to(mean)
        return self._solved(Prior(self), z0, ts, seed)

    def _solved(self, term: Diffusive, y0: Tensor, ts: Tensor, seed: int, *args: Tensor) -> Tensor:
        """The states (b, t, ..) at times, of which the first is that of y0."""
        early = 1e-6 * (ts[..., -1:] - ts[..., :1])  # the time at which a step starts is rounded
        args = ((ts - early).detach().to(y0), *args) if args else ()
        solution = solve(
            term, y0, ts[..., 0], ts[..., -1], self.solver, args=args, path=Brownian(seed=seed), save_at=ts
        )
        self.stats = solution.stats
        return solution.ys if self.solver.lanes == "each" else solution.ys.transpose(0, 1)


def normal_divergence(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) | N(other_mean, other_std^2)), entry by entry."""
    ratio = 2 * (log_std - other_log_std)
    return 0.5 * (ratio.exp() + ((mean - other_mean) / other_log_std.exp()).square() - 1 - ratio)


class Prior(nn.Module, Diffusive):
    """dz = f(z) dt + g(z) dW."""

    noise_type = "diagonal"

    def __init__(self, model: LatentSDE):
        super().__init__()
        self.rate, self.diffusion = model.prior, model.diffusion

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The rate f."""
        return self.rate(y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise g dW."""
        return self.diffusion(y) * dw


class Posterior(nn.Module, Diffusive):
    """dz = h(z, context) dt + g(z) dW, and the rate of divergence from the prior as the last entry of the state.

    ``args`` are the times (t) or (b, t) of the contexts and these, (b, t, k); each holds until the next.
    """

    noise_type = "diagonal"

    def __init__(self, model: LatentSDE):
        super().__init__()
        self.rate, self.prior, self.diffusion = model.drift, model.prior, model.diffusion

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The rate h, and |(h - f) / g|^2 / 2."""
        ts, contexts = args
        z = y[..., :-1]
        rate, prior = self.rate(torch.cat([z, self.context(t, ts, contexts)], -1)), self.prior(z)
        excess = (rate - prior) / self.diffusion(z)
        return torch.cat([rate, 0.5 * excess.square().sum(-1, keepdim=True)], -1)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise g dW; the divergence has none."""
        return functional.pad(self.diffusion(y[..., :-1]) * dw[..., :-1], (0, 1))

    @staticmethod
    def context(t: Tensor, ts: Tensor, contexts: Tensor) -> Tensor:
        """The context (b, k) at a time, 0-d or (b, 1)."""
        last = ts.shape[-1] - 1
        if ts.ndim == 1 and t.ndim == 0:
            place = torch.searchsorted(ts, t.reshape(1), right=True).sub(1).clamp(0, last)
            return contexts.index_select(1, place).squeeze(1)
        t = t.reshape(-1, 1).expand(len(contexts), 1).contiguous()
        place = torch.searchsorted(ts.expand(len(contexts), -1).contiguous(), t, right=True).sub(1).clamp(0, last)
        return contexts.gather(1, place[..., None].expand(-1, 1, contexts.shape[-1])).squeeze(1)
