"""Videos as observations of a latent stochastic equation."""

import torch
from torch import Tensor, nn

from sciml.models.latent import LOG_TWO_PI, Fit
from sciml.models.latent_dynamics import LatentDynamics
from sciml.models.mlp import MLP
from sciml.typing import Seed


class LatentVideo(nn.Module):
    r"""Frames as decoded from what stays, a vector w, and what moves, a path z of `LatentDynamics`.

    A convolutional net takes each frame to features. Their median over the first frames gives w, by a perceptron. Two
    convolutions over time, which reach two frames to either side, give the context of each frame, and that of the first
    one the start of z. A convolutional net takes (w, z) at a time to the mean of the frame there; pixels are
    normal around it with a deviation that is learnt. A whole
    video takes from 0 to the horizon.

    Args:
        dynamics: prior and posterior of z.
        size: of a frame, a multiple of 4.
        channels: of a frame.
        content: size of w.
        content_frames: number of frames that w is taken from.
        features: of a frame.
        width: channels of the first layer of the convolutional nets; the second has twice as many.
        noise: deviation of a pixel at the start of the training.

    Raises:
        ValueError: if the size is not a multiple of 4.

    Reference:
        R. Daems, M. Opper, G. Crevecoeur, T. Birdal, Variational inference for SDEs driven by fractional noise
        (ICLR 2024), arXiv:2310.12975, section 5.

    Example:
        >>> import torch
        >>> from sciml.models import LatentDynamics, LatentVideo
        >>> model = LatentVideo(LatentDynamics(latent=3, context=8), size=16)
        >>> frames = torch.rand(2, 6, 1, 16, 16)
        >>> model.posterior(frames).predictions.shape, model.forecast(frames, 10).shape
        (torch.Size([2, 6, 1, 16, 16]), torch.Size([2, 10, 1, 16, 16]))
    """

    def __init__(
        self,
        dynamics: LatentDynamics,
        size: int = 20,
        channels: int = 1,
        content: int = 16,
        content_frames: int = 4,
        features: int = 64,
        width: int = 16,
        noise: float = 0.1,
    ):
        super().__init__()
        if size % 4 or size < 4:
            raise ValueError(f"size: expected a multiple of 4, got {size}")
        if not noise > 0:
            raise ValueError(f"noise: expected a positive deviation, got {noise}")
        self.dynamics, self.content_frames = dynamics, content_frames
        self.size, self.channels = size, channels
        side, context = size // 4, dynamics.context
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * side**2, features),
            nn.SiLU(),
        )
        self.content = MLP(features, content, features, depth=1, activation="silu")
        self.reader = nn.Sequential(
            nn.Conv1d(features, features, 3, padding=1), nn.SiLU(), nn.Conv1d(features, context, 3, padding=1)
        )
        self.start = MLP(context, 2 * dynamics.starts, features, depth=1, activation="silu")
        self.decoder = nn.Sequential(
            nn.Linear(content + dynamics.latent, 2 * features),
            nn.SiLU(),
            nn.Linear(2 * features, 2 * width * side**2),
            nn.SiLU(),
            nn.Unflatten(1, (2 * width, side, side)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )
        self.log_noise = nn.Parameter(torch.tensor(noise).log())

    def posterior(self, frames: Tensor, seed: Seed = 0) -> Fit:
        """Means of the frames (b, t, c, h, w) along one path for each video, and the parts of the bound.

        The seed is one for all or for each video its own (b).
        """
        predictions, divergence = self._decoded(frames, frames.shape[1], seed)
        surprise = ((frames - predictions) / self.log_noise.exp()).square() + 2 * self.log_noise + LOG_TWO_PI
        return Fit(predictions, -0.5 * surprise.flatten(1).sum(1), divergence)

    def forecast(self, frames: Tensor, total: int, seed: Seed = 0) -> Tensor:
        """Means of so many frames (b, total, c, h, w): those given (b, n, c, h, w), and what may follow by the prior.

        Of a video of `total` frames only the first n are seen. The seed is one for all or for each its own (b).
        """
        if not 1 < frames.shape[1] <= total:
            raise ValueError(f"total: expected at least the {frames.shape[1]} frames given (two or more), got {total}")
        return self._decoded(frames, total, seed)[0]

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (b, t, c, h, w) as `posterior` makes them anew."""
        return self.posterior(frames).predictions

    def _decoded(self, frames: Tensor, total: int, seed: Seed) -> tuple[Tensor, Tensor]:
        *_, c, height, width = frames.shape
        if (height, width) != (self.size, self.size):
            raise ValueError(f"size: expected {height} for frames of {height} x {width} pixels, got {self.size}")
        if c != self.channels:
            raise ValueError(f"channels: expected {c} for frames {tuple(frames.shape)}, got {self.channels}")
        ts = torch.linspace(0, self.dynamics.horizon, total, dtype=torch.float64, device=frames.device)
        seen = self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        contexts = self.reader(seen.mT).mT
        start = self.start(contexts[:, 0]).unflatten(1, (2, -1))
        z, divergence = self.dynamics.posterior(start, contexts, ts, seed)
        content = self.content(seen[:, : self.content_frames].median(1).values)[:, None]
        codes = torch.cat([content.expand(-1, total, -1), z], -1)
        return self.decoder(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]), divergence
