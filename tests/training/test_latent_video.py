"""Latent video models through the command line; errors are those of the frames not seen."""

import h5py
import pytest
import torch
from torch import Tensor

import sciml as library
from sciml.data import MovingDigits
from sciml.models import LatentDynamics, LatentVideo
from sciml.training import LatentVideoModule
from tests.training.conftest import TINY
from tests.training.running import train

CONFIG = TINY.with_name("latent_video.yaml")


def test_commands_run_and_name_what_they_found(fit, sciml, tmp_path):
    fit("run", config=CONFIG)
    printed = sciml("test", "run")
    names = ("loss", "kl", "hurst", "mse", "psnr", "forecast_mse", "forecast_best_psnr", "last_frame_mse", "blank_mse")
    assert all(f"test_{name}: " in printed for name in names)
    assert "val_loss: " in sciml("validate", "run")
    for command in ("predict", "plot"):
        sciml(command, "run")
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"videos", "learning_curve"} <= figures
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        targets, again, forecasts = (file[name][...] for name in ("targets", "predictions", "forecasts"))
    assert targets.shape == again.shape == forecasts.shape == (6, 5, 1, 12, 12)
    model = library.load(tmp_path / "run")
    frames = torch.from_numpy(targets)
    assert model.forecast(frames[:, :3], 5).shape == frames.shape
    assert torch.equal(model(frames), model(frames))


class Standing(LatentVideo):
    """A model whose forecast is the last frame seen, and 0 in the second half of the forecasts."""

    def forecast(self, frames: Tensor, total: int, seed: int = 0) -> Tensor:
        last = torch.cat([frames, frames[:, -1:].expand(-1, total - frames.shape[1], -1, -1, -1)], 1)
        return last * (torch.arange(len(last)) < len(last) / 2)[:, None, None, None, None]


def test_errors_are_those_of_the_frames_not_seen(tmp_path):
    torch.manual_seed(0)
    model = Standing(LatentDynamics(2, 4, 4, steps=1), size=12, content=3, features=8, width=2)
    data = MovingDigits(size=12, frames=6, train=8, val=4, test=10, batch_size=4)
    metrics, _ = train(LatentVideoModule(model, observed=4, forecasts=2), data, tmp_path)
    frames, trained = data.part("test")[0], data.part("train")[0]
    future, last = frames[:, 4:], frames[:, 3:4]
    still, nothing = ((x - future).square().mean((1, 2, 3, 4)) for x in (last, torch.zeros_like(last)))
    right = {
        "last_frame_mse": still.mean(),
        "mean_frame_mse": (frames[:, :4].mean(1, keepdim=True) - future).square().mean(),
        "blank_mse": (trained.mean((0, 1)) - future).square().mean(),
        "forecast_mse": (still.mean() + nothing.mean()) / 2,
        "forecast_mean_mse": (last / 2 - future).square().mean(),
        "forecast_best_mse": torch.minimum(still, nothing).mean(),
        "forecast_best_psnr": -10 * torch.minimum(still, nothing).log10().mean(),
    }
    for name, value in right.items():
        assert metrics[f"test_{name}"] == pytest.approx(float(value), rel=1e-5), name


def test_videos_must_be_longer_than_what_is_seen(tmp_path):
    model = LatentVideo(LatentDynamics(2, 4, 4), size=12)
    data = MovingDigits(size=12, frames=4, train=8, val=4, test=4)
    with pytest.raises(ValueError, match="observed: expected fewer than the 4 frames of a video, got 4"):
        train(LatentVideoModule(model, observed=4), data, tmp_path)
