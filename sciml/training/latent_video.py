"""Learning a latent model of videos, by the evidence lower bound."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.split import SplitData
from sciml.models.latent_video import LatentVideo
from sciml.training.module import TrainingModule
from sciml.typing import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LatentVideoModule(TrainingModule):
    """Trains a latent model of videos.

    The loss is the negative evidence lower bound in nats per pixel, with the divergence weighted in training by a
    factor that rises to 1. Logs `train_loss`, `val_loss`, `test_loss`, the bound's parts `.._log_likelihood` and
    `.._kl` in nats per video, `.._hurst`, and the error of the frames that a path of the posterior gives: `.._mse`,
    squared, and `.._psnr` in decibels, the mean over videos.

    The test also forecasts: the model sees the first frames of each video, and from there on goes by the prior. Over
    the other frames it logs `test_forecast_mse`, the mean over several forecasts, `test_forecast_mean_mse` of their
    mean frame, `test_forecast_best_mse` of the best one of each video, the same as `.._psnr` in decibels (the mean over
    videos), and what is had for nothing: `test_last_frame_mse`, the last frame seen again and again,
    `test_mean_frame_mse`, the mean of the frames seen, and `test_blank_mse`, the mean of all frames to train on.

    Args:
        model: what is trained.
        observed: number of frames that a forecast sees.
        forecasts: number of forecasts of each video.
        warm_up: number of epochs in which the divergence's weight rises from 0 to 1.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        model: LatentVideo,
        observed: int = 8,
        forecasts: int = 10,
        warm_up: int = 0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        for name, count, least in (("observed", observed, 2), ("forecasts", forecasts, 1), ("warm_up", warm_up, 0)):
            if count < least:
                raise ValueError(f"{name}: expected at least {least}, got {count}")
        self.model, self.observed, self.forecasts, self.warm_up = model, observed, forecasts, warm_up

    def setup(self, stage: str) -> None:
        """See to it that there is something to forecast."""
        super().setup(stage)
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if isinstance(data, SplitData):
            total = data.part("train")[0].shape[1]
            if self.observed >= total:
                raise ValueError(f"observed: expected fewer than the {total} frames of a video, got {self.observed}")

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (b, t, c, h, w) as a path of the posterior gives them."""
        return self.model(frames)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of videos, on new paths."""
        weight = min(1.0, (self.current_epoch + 1) / self.warm_up) if self.warm_up else 1.0
        return self._step("train", batch[0], self.noise_seed(batch_idx), weight)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss, on paths that are each video's own."""
        (frames,) = batch
        self._step("val", frames, self.sample_seeds(batch_idx, len(frames)))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss, and the errors of forecasts."""
        (frames,) = batch
        seeds = self.sample_seeds(batch_idx, len(frames))
        self._step("test", frames, seeds)
        seen, future = frames.split([self.observed, frames.shape[1] - self.observed], 1)
        drawn = self._forecasts(frames, seeds)[:, :, self.observed :]
        errors = squares(drawn, future)  # (forecasts, b)
        mean = squares(drawn.mean(0), future)
        metrics = {"forecast_mse": errors.mean(), "forecast_mean_mse": mean.mean()}
        metrics |= {"forecast_best_mse": errors.amin(0).mean(), "forecast_psnr": decibels(errors).mean()}
        metrics |= {"forecast_mean_psnr": decibels(mean).mean()}
        metrics |= {"forecast_best_psnr": decibels(errors.amin(0)).mean()}
        metrics |= {"last_frame_mse": squares(seen[:, -1:].expand_as(future), future).mean()}
        metrics |= {"mean_frame_mse": squares(seen.mean(1, keepdim=True).expand_as(future), future).mean()}
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if isinstance(data, SplitData):
            blank = data.part("train")[0].mean((0, 1)).to(frames)
            metrics["blank_mse"] = squares(blank.expand_as(future), future).mean()
        self.log_dict(
            {f"test_{name}": value for name, value in metrics.items()}, batch_size=len(frames), sync_dist=True
        )

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Videos (b, t, c, h, w), as a path of the posterior gives them, and one forecast of each."""
        (frames,) = batch
        seeds = self.sample_seeds(batch_idx, len(frames))
        forecast = self.model.forecast(frames[:, : self.observed], frames.shape[1], seeds)
        return {
            "targets": frames,
            "predictions": self.model.posterior(frames, seeds).predictions,
            "forecasts": forecast,
        }

    def predictor(self) -> nn.Module:
        """From frames to frames, with `forecast`."""
        return self.model

    def pictures(self, data: SplitData) -> Iterator[tuple[str, "Figure"]]:
        """Test videos, made anew, and two forecasts of each."""
        from sciml.training.drawing import draw_videos

        frames = data.part("test")[0][:3].to(self.device)
        with torch.no_grad():
            rows = {"truth": frames, "posterior": self(frames)}
            for seed in (1, 2):
                rows[f"forecast {seed}"] = self.model.forecast(frames[:, : self.observed], frames.shape[1], seed)
        yield "videos", draw_videos({name: row[:, :, 0].cpu() for name, row in rows.items()}, self.observed)

    def _forecasts(self, frames: Tensor, seeds: Tensor) -> Tensor:
        """Several forecasts (n, b, t, c, h, w) of each video; the frames seen are encoded for all of them at once."""
        seen = frames[:, : self.observed].repeat(self.forecasts, 1, 1, 1, 1)
        own = self.forecasts * seeds + torch.arange(self.forecasts)[:, None]
        drawn = self.model.forecast(seen, frames.shape[1], own.flatten())
        return drawn.unflatten(0, (self.forecasts, len(frames)))

    def _step(self, stage: Literal["train", "val", "test"], frames: Tensor, seed: Seed, weight: float = 1.0) -> Tensor:
        fit, pixels = self.model.posterior(frames, seed), frames[0].numel()
        loss = (weight * fit.kl - fit.log_likelihood).mean() / pixels
        metrics = {
            f"{stage}_loss": -fit.elbo.mean() / pixels,
            f"{stage}_log_likelihood": fit.log_likelihood.mean(),
            f"{stage}_kl": fit.kl.mean(),
            f"{stage}_mse": squares(fit.predictions, frames).mean(),
            f"{stage}_psnr": decibels(squares(fit.predictions, frames)).mean(),
            f"{stage}_hurst": self.model.dynamics.hurst,
        }
        metrics = {name: value.detach() for name, value in metrics.items()}
        self.log_dict(metrics, prog_bar=stage != "train", batch_size=len(frames), sync_dist=stage != "train")
        return loss


def squares(frames: Tensor, others: Tensor) -> Tensor:
    """Mean squared errors (..) of videos (.., t, c, h, w)."""
    return (frames - others).square().flatten(-4).mean(-1)


def decibels(mse: Tensor) -> Tensor:
    """The ratio of the peak, 1, to mean squared errors, as PSNR."""
    return -10 * mse.log10()
