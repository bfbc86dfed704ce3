"""Checkpoints that are whole or not there, and from which a run goes on bit by bit.

A checkpoint is taken between two steps: when the next batch is about to be trained, everything that belongs to the last
one (its metrics row, schedulers, a validation) is done, and nothing of the next one has happened.
"""

import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from sciml.data.atomic import replacing
from sciml.training.metrics import MetricsLogger
from sciml.training.module import TrainingModule, averages
from sciml.training.run_folder import RunFolder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, syncs it and only then takes the old one's place.

    Loading accepts plain data and tensors only.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all."""
        with replacing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; one that holds code is refused, unless `weights_only=False`."""
        return torch.load(path, map_location, weights_only=weights_only is not False)


class Interrupted(SystemExit):
    """The run was asked by a signal to stop and has saved its state; exits with 128 + the signal's number."""


class Checkpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt` and `best.ckpt` in the trainer's `default_root_dir`.

    The last one is written in intervals of steps or time, at the end of training, and when SIGTERM or SIGINT arrives:
    the run then stops with exit code 143 or 130. A second signal stops it at once. The best one is written when a
    validation improves on the metric that the module names in `monitor`.

    Args:
        every_n_steps: optimiser steps from one checkpoint to the next; None for no limit.
        every_seconds: seconds from one checkpoint to the next; None for no limit.

    Attributes:
        config: the resolved configuration as plain data, put into each checkpoint.
        best_model_path: after training what Lightning takes for ``ckpt_path="best"``: the best one, or the last where
            none was better than another.
    """

    config: dict[str, Any] | None = None
    best_model_path: str = ""

    def __init__(self, every_n_steps: int | None = None, every_seconds: float | None = 60.0):
        super().__init__()
        self.every_n_steps, self.every_seconds = every_n_steps, every_seconds
        self.best: float | None = None
        self._improved = False
        self._finished = False
        self._signal: int | None = None
        self._saved_at = (0, 0.0)  # step and time
        # Weights where averages may take their place: those between epochs, and the averages validated last.
        self._trained: dict[str, torch.Tensor] | None = None
        self._validated: dict[str, torch.Tensor] | None = None
        self._writes_best = False

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value of the resumed run."""
        self.best = state_dict["best"]

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Find the run's files; what does not train keeps the metrics that are there."""
        self.run = RunFolder(trainer.default_root_dir)
        if stage != "fit":
            rewind(trainer)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the metrics back to where the checkpoint stands."""
        if trainer.state.fn == TrainerFn.FITTING:
            rewind(trainer, checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] + 1)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen to signals; Lightning puts the old handlers back when it leaves `fit`."""
        self._saved_at = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due, between two steps."""
        # Lightning clears this flag only at the end of the resumed epoch, and leaves out a step of ReduceLROnPlateau.
        trainer.fit_loop._restarting = False
        self._trained = None
        self._save_best(trainer, pl_module)
        if batch_idx % trainer.accumulate_grad_batches != 0:
            return  # gradients are not part of a checkpoint
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None or self._due(trainer), all=False):
            return
        self._save_last(trainer)
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            raise Interrupted(128 + (self._signal or signal.SIGTERM))

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the averages that are validated: the end of the epoch may move them before the best one is saved."""
        if averages(trainer):
            self._validated = _copied(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note whether the monitored metric got better."""
        value = trainer.callback_metrics.get(getattr(pl_module, "monitor", ""))
        if value is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        better = not value.isnan() and (self.best is None or value.item() < self.best)
        if trainer.strategy.reduce_boolean_decision(better):
            self.best, self._improved = value.item(), True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the weights to go on from, where their average takes their place at the end of training."""
        if averages(trainer):
            self._trained = _copied(pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the end of the run."""
        self._save_best(trainer, pl_module)
        self._finished = True
        self._save_last(trainer)
        self.best_model_path = str(self.run.checkpoint)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration, and state the position so that Lightning resumes exactly there."""
        checkpoint["sciml"] = {"config": self.config, "finished": self._finished}
        if self._trained is not None:
            checkpoint["current_model_state"] = self._trained
        if self._writes_best and self._validated is not None:
            checkpoint["state_dict"] = self._validated
        state_position(trainer, checkpoint["loops"]["fit_loop"])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)

    def _due(self, trainer: lightning.Trainer) -> bool:
        steps, seconds = trainer.global_step - self._saved_at[0], time.monotonic() - self._saved_at[1]
        if steps == 0:
            return False
        return (self.every_n_steps is not None and steps >= self.every_n_steps) or (
            self.every_seconds is not None and seconds >= self.every_seconds
        )

    def _save_best(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._improved:
            modes = isinstance(pl_module, TrainingModule)
            switch = pl_module.switch_optimizers if modes else lambda mode: None
            switch("eval")
            self._writes_best = True
            trainer.save_checkpoint(self.run.best)
            switch("train")
            self._improved = self._writes_best = False

    def _save_last(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.run.last)
        self._saved_at = trainer.global_step, time.monotonic()


def _copied(module: lightning.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def rewind(trainer: lightning.Trainer, step: float = math.inf) -> None:
    """Go on with the metrics' rows before this step."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsLogger):
            logger.rewind(step)


def state_position(trainer: lightning.Trainer, loop: dict[str, Any]) -> None:
    """Write the present position into a saved state of Lightning's fit loop, in the one form that it resumes exactly.

    Lightning's own record depends on the hook it is taken in, and restarting from some of them trains a batch twice,
    validates again or leaves an epoch out. The form written here is that of its hook `on_train_batch_end` with the last
    batch's end still to be counted, for any batch of the epoch, the zeroth included. Batches whose gradients were
    accumulated, but not yet used in a step, are still to be trained.
    """
    batches = loop["epoch_loop.batch_progress"]
    batch, total = batches["current"]["processed"], batches["total"]["processed"]
    epoch = loop["epoch_progress"]["current"]["ready"] - 1
    if batch >= trainer.num_training_batches:
        epoch, batch = epoch + 1, 0
    unused = batch % trainer.accumulate_grad_batches
    batch, total = batch - unused, total - unused
    stepped = trainer.global_step if trainer.lightning_module.automatic_optimization else total

    begun = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
    loop["epoch_progress"] = {"total": begun, "current": begun}
    loop["epoch_loop.batch_progress"] = {
        "total": {"ready": total, "started": total, "processed": total, "completed": total - 1},
        "current": {"ready": batch, "started": batch, "processed": batch, "completed": batch - 1},
        "is_last_batch": False,
    }
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = stepped - 1
    if loaders := loop["state_dict"].get("combined_loader"):
        loop["state_dict"]["combined_loader"] = [{"epoch": epoch, "batch": batch} for _ in loaders]
