"""Trajectories as observations of a latent equation driven by fractional noise."""

from torch import Generator, Tensor, nn

from sciml.models.latent_dynamics import LatentDynamics
from sciml.models.latent_sde import LatentModel


class LatentFSDE(LatentModel):
    """Trajectories as observations, with normal noise, of a path of `LatentDynamics`, whose noise may be fractional.

    All trajectories have the same times, from 0 to at most the horizon of the dynamics; `LatentSDEModule` scales them
    to 0 and 1.

    Args:
        channels: number of components of an observation.
        dynamics: prior and posterior of the latent path; its context has the size of the encoder's.
        width: of the encoder.
        noise: deviation of the observations' noise at the start; it is learnt.

    Example:
        >>> import torch
        >>> from sciml.models import LatentDynamics, LatentFSDE
        >>> model = LatentFSDE(2, LatentDynamics(latent=3, context=8))
        >>> ts, ys = torch.linspace(0, 1, 5), torch.zeros(3, 5, 2)
        >>> model.posterior(ts, ys, torch.ones_like(ys, dtype=torch.bool)).elbo.shape
        torch.Size([3])
    """

    def __init__(self, channels: int, dynamics: LatentDynamics, width: int = 64, noise: float = 0.1):
        if not noise > 0:
            raise ValueError(f"noise: expected a positive deviation, got {noise}")
        super().__init__(channels, dynamics.latent, dynamics.context, width, noise, dynamics.starts)
        self.dynamics, self.decoder = dynamics, nn.Linear(dynamics.latent, channels)

    def paths(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As `LatentModel` says."""
        if ts.ndim != 1:
            raise ValueError(f"ts: expected the same times (t) for all trajectories, got shape {tuple(ts.shape)}")
        return self.dynamics.posterior(start, contexts, ts, seed)

    def prior_paths(self, count: int, ts: Tensor, seed: int, generator: Generator) -> Tensor:
        """As `LatentModel` says."""
        return self.dynamics.sample(count, ts, seed, generator)
