"""What a forecast of videos by their last frame misses, tested in one or more processes."""

import lightning
import torch
from torch import Tensor

from sciml.data.split import SplitData
from sciml.models import LatentDynamics, LatentVideo
from sciml.training import LatentVideoModule


class Videos(SplitData):
    """Noise; five videos, so that of two processes one has a part more, each brighter than the one before."""

    def part(self, name: str) -> tuple[Tensor]:
        noise = torch.rand(5, 5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        return (noise * torch.arange(1, 6)[:, None, None, None, None] / 5,)


class Standing(LatentVideo):
    """A model whose forecasts are the last frame seen, once as it is and once as half of it."""

    def forecast(self, frames: Tensor, total: int, seed: int = 0) -> Tensor:
        last = torch.cat([frames, frames[:, -1:].expand(-1, total - frames.shape[1], -1, -1, -1)], 1)
        return last * torch.ones(2, len(last) // 2).div(torch.tensor([[1.0], [2.0]])).view(-1, 1, 1, 1, 1)


def judged(processes: int) -> dict[str, float]:
    """Metrics of the test."""
    torch.manual_seed(0)
    model = Standing(LatentDynamics(latent=2, context=4, width=4, steps=1), size=12, content=3, features=8, width=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"strategy": "ddp"} if processes > 1 else {}
    trainer = lightning.Trainer(accelerator="cpu", devices=processes, enable_checkpointing=False, **options, **quiet)
    module = LatentVideoModule(model, observed=3, forecasts=2)
    (metrics,) = trainer.test(module, Videos(batch_size=4 // processes), verbose=False)
    return metrics
