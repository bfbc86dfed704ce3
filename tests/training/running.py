"""Runs of a training module without the command line, and what they logged."""

from pathlib import Path
from typing import Any

import lightning

from sciml.training import MetricsLogger
from sciml.training.trainer_cli import quiet


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """A trainer that leaves nothing but the metrics of every step."""
    return lightning.Trainer(
        accelerator="cpu",
        logger=MetricsLogger(folder / "metrics.csv"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def train(module: Any, data: Any, folder: Path, epochs: int = 1) -> tuple[Any, list[dict[str, str]]]:
    """Fit and test; the test's metrics, and the rows of all."""
    with quiet():
        run = trainer(folder, max_epochs=epochs)
        run.fit(module, data)
        (metrics,) = run.test(module, data, verbose=False)
    return metrics, MetricsLogger(folder / "metrics.csv").rows()


def logged(path: Path | str) -> list[dict[str, str]]:
    """The rows of a metrics.csv without the seconds, which are never the same twice."""
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in MetricsLogger(Path(path)).rows()]
