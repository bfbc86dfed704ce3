"""Trajectories as observations of a latent equation driven by fractional noise."""

from torch import Generator, Tensor, nn

from sciml.models.encoders import BackwardGRU
from sciml.models.latent import LatentModel
from sciml.models.latent_dynamics import LatentDynamics
from sciml.typing import Seed


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
        super().__init__(channels, dynamics.latent, noise)
        self.encoder = BackwardGRU(channels, width)
        self.context, self.start = nn.Linear(width, dynamics.context), nn.Linear(dynamics.context, 2 * dynamics.starts)
        self.dynamics, self.decoder = dynamics, nn.Linear(dynamics.latent, channels)

    def contexts(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What the GRU knows at each observation of that and all later ones: (b, t, context)."""
        return self.context(super().contexts(ts, ys, mask))

    def paths(self, start: Tensor, contexts: Tensor, ts: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """As `LatentModel` says."""
        if ts.ndim != 1:
            raise ValueError(f"ts: expected the same times (t) for all trajectories, got shape {tuple(ts.shape)}")
        return self.dynamics.posterior(start, contexts, ts, seed)

    def prior_paths(self, count: int, ts: Tensor, seed: int, generator: Generator) -> Tensor:
        """As `LatentModel` says."""
        return self.dynamics.sample(count, ts, seed, generator)
