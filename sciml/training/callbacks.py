"""Pictures of a run, and its progress bar."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor

from sciml.data.atomic import replacing
from sciml.training.metrics import MetricsLogger
from sciml.training.module import TrainingModule
from sciml.training.run_folder import RunFolder


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which also shows the rest of the epoch that a run is resumed in."""

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Start the bar."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning does not call this hook then
            self.on_train_epoch_start(trainer, *args)


class Figures(Callback):
    """Draws the run's pictures at the end of training, into `figures` of the trainer's `default_root_dir`."""

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw."""
        draw_run(RunFolder(trainer.default_root_dir), pl_module, getattr(trainer, "datamodule", None))


def draw_run(run: RunFolder, module: lightning.LightningModule, data: Any) -> list[Path]:
    """Draw the learning curves and what the module itself has to show; returns the files."""
    figures = {}
    if rows := MetricsLogger(run.metrics).rows():
        figures["learning_curve"] = draw_metrics(rows)
    if isinstance(module, TrainingModule):
        training = module.training
        figures.update(module.eval().pictures(data))
        module.train(training)
    for name, figure in figures.items():
        with replacing(run.figures / f"{name}.png") as path:
            figure.savefig(path, format="png", dpi=150)
    return [run.figures / f"{name}.png" for name in figures]


def draw_metrics(rows: list[dict[str, str]]) -> Figure:
    """Each metric against the step, on a logarithmic axis where it is positive."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    smallest = 1.0
    for name in rows[0].keys() - {"epoch", "step"}:
        points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row[name]]
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else "")
        smallest = min(smallest, *(value for _, value in points))
    if smallest > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.legend()
    return figure


def draw_fields(inputs: Tensor, target: Tensor, prediction: Tensor) -> Figure:
    """Input, target, prediction and error of one sample; the first channel of fields in one or two dimensions.

    Args:
        inputs: `(c, *x)`.
        target: `(c, *x)`.
        prediction: `(c, *x)`.
    """
    error = prediction - target
    if target.ndim == 2:
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(inputs[0], label="input", color="0.7")
        left.plot(target[0], label="target")
        left.plot(prediction[0], "--", label="prediction")
        left.legend()
        right.plot(error[0], color="C3")
        right.set_title("prediction - target")
        return figure
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    panels = {"input": inputs, "target": target, "prediction": prediction, "prediction - target": error}
    for axes, (title, field) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        limits = {"vmin": target[0].min(), "vmax": target[0].max()} if title in ("target", "prediction") else {}
        image = axes.imshow(field[0].T, origin="lower", **limits)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
