"""Trajectories as observations of a path in a latent space: what latent ODEs and SDEs have in common."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from sciml.models.draws import normals_like
from sciml.models.watched import Watched
from sciml.solvers.solve import SolveStats
from sciml.typing import Seed

LOG_TWO_PI = math.log(2 * math.pi)


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


class LatentModel(Watched, ABC):
    """A path in a latent space, of which there are observations with normal noise.

    A subclass has an `encoder` that reads observations from the last to the first, a `start` that makes of what it
    knows in the end mean and logarithm of the deviation of what a path starts from, and a `decoder` of latent states.

    Args:
        channels: number of components of an observation.
        latent: number of latent coordinates.
        noise: deviation of the observations' noise at the start; it is learnt.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.
        watched, stiffness: as of `Watched`.

    Raises:
        ValueError: if the noise is not positive.
    """

    stats: SolveStats | None = None
    encoder: nn.Module
    start: nn.Module
    decoder: nn.Module

    def __init__(self, channels: int, latent: int, noise: float):
        super().__init__()
        if not noise > 0:
            raise ValueError(f"noise: expected a positive deviation, got {noise}")
        self.channels, self.latent = channels, latent
        self.log_noise = nn.Parameter(torch.full((channels,), noise).log())

    @abstractmethod
    def paths(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """A path (b, t, k) of the posterior for each sample, and its divergence (b) from the prior.

        Args:
            start: mean and logarithm of the deviation of what it starts from (b, 2, starts).
            contexts: what is known at each time (b, t, width).
            ts: times, as of `posterior`.
            seed: of the path and its start, one for all or for each sample its own (b).
        """

    @abstractmethod
    def prior_paths(self, count: int, ts: Tensor, seed: int, generator: Generator) -> Tensor:
        """So many paths (count, t, k) of the prior, whose starts are drawn with the generator."""

    def contexts(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What the encoder knows at each time of the observations there and later on: (b, t, width)."""
        return self.encoder(ts, ys.where(mask, 0), mask)

    def posterior(self, ts: Tensor, ys: Tensor, mask: Tensor, seed: Seed = 0, shown: Tensor | None = None) -> Fit:
        """One path of the posterior for each trajectory.

        Args:
            ts: increasing times (t), or (b, t) with lanes "each".
            ys: observations (b, t, c); what stands where there is none does not matter.
            mask: where there are some, (b, t, c), bool.
            seed: of the path and its start; or whole numbers (b), one for each trajectory, whose draws are then a
                function of it, whatever the batch.
            shown: which of them the encoder may see, (b, t, c), bool; None shows all. The likelihood is that of all.

        Returns:
            The fit, differentiable in all parameters.

        Raises:
            ValueError: if there are not as many components as `channels`.
        """
        if ys.ndim != 3 or ys.shape[2] != self.channels:
            raise ValueError(
                f"channels: expected {ys.shape[-1]} for observations {tuple(ys.shape)}, got {self.channels}"
            )
        ys = ys.where(mask, 0)  # also for the gradient
        contexts = self.contexts(ts, ys, mask if shown is None else mask & shown)
        states, kl = self.paths(self.start(contexts[:, 0]).unflatten(-1, (2, -1)), contexts, ts, seed)
        predictions = self.decoder(states)
        surprise = ((ys - predictions) / self.log_noise.exp()).square() + 2 * self.log_noise + LOG_TWO_PI
        return Fit(predictions, -0.5 * surprise.where(mask, 0).sum((1, 2)), kl)

    def smooth(self, ts: Tensor, ys: Tensor, mask: Tensor, seed: Seed = 0) -> Tensor:
        """Means of the observations (b, t, c) along a path of the posterior."""
        return self.posterior(ts, ys, mask, seed).predictions

    def sample(self, count: int, ts: Tensor, seed: int = 0, noisy: bool = False) -> Tensor:
        """So many trajectories (count, t, c) of the prior at times (t), with the observations' noise or without."""
        generator = Generator().manual_seed(seed)
        means = self.decoder(self.prior_paths(count, ts, seed, generator))
        if not noisy:
            return means
        return means + self.log_noise.exp() * torch.randn(means.shape, generator=generator).to(means)


class StartedModel(LatentModel):
    """A latent model whose paths start from normal latent states, and are told by these.

    Args:
        channels: number of components of an observation.
        latent: number of latent coordinates.
        noise: deviation of the observations' noise at the start; it is learnt.
    """

    def __init__(self, channels: int, latent: int, noise: float):
        super().__init__(channels, latent, noise)
        self.prior_start = nn.Parameter(torch.zeros(2, latent))  # mean and logarithm of the deviation

    @abstractmethod
    def path(self, z0: Tensor, ts: Tensor, contexts: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """A path of the posterior from z0 (b, k), at times: (b, t, k), and its divergence (b) from the prior."""

    @abstractmethod
    def prior_path(self, z0: Tensor, ts: Tensor, seed: Seed) -> Tensor:
        """A path of the prior from z0 (b, k), at times: (b, t, k)."""

    def paths(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """As `LatentModel` says."""
        mean, log_std = start.unbind(1)
        states, divergence = self.path(mean + log_std.exp() * normals_like(mean, seed), ts, contexts, seed)
        return states, normal_divergence(mean, log_std, *self.prior_start).sum(-1) + divergence

    def prior_paths(self, count: int, ts: Tensor, seed: int, generator: Generator) -> Tensor:
        """As `LatentModel` says."""
        mean, log_std = self.prior_start
        z0 = mean + log_std.exp() * torch.randn(count, self.latent, generator=generator).to(mean)
        return self.prior_path(z0, ts, seed)


def normal_divergence(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) | N(other_mean, other_std^2)), entry by entry."""
    ratio = 2 * (log_std - other_log_std)
    return 0.5 * (ratio.exp() + ((mean - other_mean) / other_log_std.exp()).square() - 1 - ratio)
