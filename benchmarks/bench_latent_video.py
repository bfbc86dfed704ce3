"""Held-out frame error of a latent video model by its noise: fractional, Brownian, or none (a latent ODE).

The configuration is `examples/moving_digits_latent_fsde`, the noise its only difference: the same nets, data, batches
and steps. Fractional noise of kind I has a past, of which the posterior has five numbers for each coordinate beside its
start. What these do by themselves is told by "fractional, kind II", which has none, and by "brownian, 8 coordinates",
which starts from twice as many numbers; "fractional, 8 coordinates" stands beside the latter.

The seed is that of the data, the weights and the batches. Errors are of 400 videos of digits that are not among those
to train on: of the frames that a path of the posterior gives, and of forecasts of frames 9 to 16 from the first 8, by
mean squared error per pixel (times 1000) and as PSNR (dB, mean over videos): the mean over 10 forecasts, that of their
mean, and that of the best of them; beside the last frame seen, the mean of the frames seen, and the mean frame of the
training videos.
"""

from pathlib import Path
from typing import Any

import lightning
import yaml

from sciml.data import MovingDigits
from sciml.training.load import build_module
from sciml.training.trainer_cli import quiet
from trained import fitted

CONFIG = Path(__file__).parents[1] / "examples" / "moving_digits_latent_fsde" / "config.yaml"
CASES: dict[str, dict[str, str | int]] = {
    "fractional": {},
    "fractional, kind II": {"kind": "II"},
    "brownian": {"noise": "brownian"},
    "brownian, 8 coordinates": {"noise": "brownian", "latent": 8},
    "fractional, 8 coordinates": {"latent": 8},
    "none": {"noise": "none"},
}
ERRORS = ("", "forecast_", "forecast_mean_", "forecast_best_")
TRIVIAL = ("last_frame", "mean_frame", "blank")


def cases() -> list[str]:
    return list(CASES)


def run(case: str, seed: int) -> dict[str, float | str]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["model"]["init_args"]["model"]["init_args"]["dynamics"]["init_args"] |= CASES[case]
    with quiet():
        lightning.seed_everything(seed, verbose=False)
        module = build_module(config["model"])
        data = MovingDigits(**config["data"]["init_args"], data_seed=seed)
        trainer, seconds = fitted(module, data, config["trainer"])
        (found,) = trainer.test(module, data, verbose=False)
    row: dict[str, float | str] = {f"{name}mse e-3": 1000 * found[f"test_{name}mse"] for name in ERRORS}
    row |= {f"{name}psnr": found[f"test_{name}psnr"] for name in ERRORS}
    row |= {f"{name} e-3": 1000 * found[f"test_{name}_mse"] for name in TRIVIAL}
    row |= {"elbo per pixel": -found["test_loss"], "kl": found["test_kl"], "hurst": found["test_hurst"]}
    return row | {"CPU s": seconds}
