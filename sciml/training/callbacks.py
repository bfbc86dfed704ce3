"""Pictures of a run, and how it says where it is."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from matplotlib.figure import Figure

from sciml.data.atomic import replacing
from sciml.training.drawing import draw_metrics
from sciml.training.metrics import MetricsLogger
from sciml.training.module import TrainingModule
from sciml.training.run_folder import RunFolder


class Beginning(Callback):
    """Makes a run's folder, writes down what is about to run, and says where, once data and model are ready.

    Args:
        run: the folder.
        text: the configuration.
        resumed: the run goes on.
    """

    def __init__(self, run: RunFolder, text: str, resumed: bool = False):
        self.run, self.text, self.resumed = run, text, resumed
        self._written: Path | None = None
        self._before: str | None = None  # what was there
        self._made: list[Path] = []  # folders, the innermost first
        self._trained = False

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write, and say where."""
        if trainer.is_global_zero:
            self._made = [path for path in (self.run.path, *self.run.path.parents) if not path.exists()]
            if self.run.configs and not self.resumed:
                self._before = self.run.configs[0].read_text()
            self._written = self.run.write_config(self.text, self.resumed)
            print(f"run folder: {self.run.path}", flush=True)

    def on_train_batch_end(self, *args: Any, **options: Any) -> None:
        """Note that there is something to keep."""
        self._trained = True

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Where an error comes before the end of the first step, leave all as it was found."""
        try:
            yield
        except SIGTERMException:  # nobody's mistake: the run can be resumed
            raise
        except Exception:
            if self._written is not None and not self._trained:
                self._written.unlink()
                if self._before is not None:
                    self.run.write_config(self._before)
                with suppress(OSError):  # one that holds anything stays
                    for path in self._made:
                        path.rmdir()
            raise


def progress() -> ProgressBar:
    """A bar on a terminal, lines in a file."""
    return Bar() if sys.stdout.isatty() else Lines()


class Bar(TQDMProgressBar):
    """Lightning's bar, which also shows the rest of the epoch that a run is resumed in."""

    def on_train_start(self, *args: Any) -> None:
        """Start the bar."""
        super().on_train_start(*args)
        if self.trainer.fit_loop.restarted_mid_epoch:  # Lightning does not call this hook then
            self.on_train_epoch_start(*args)


class Lines(ProgressBar):
    """A line at the end of an epoch, but not before some seconds have gone by since the last one.

    Args:
        every_seconds: how many.
    """

    def __init__(self, every_seconds: float = 10.0):
        super().__init__()
        self.every_seconds = every_seconds
        self._printed_at = float("-inf")
        self._enabled = True

    def disable(self) -> None:
        """Print nothing, as in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the newest metrics."""
        now = time.monotonic()
        if not self._enabled or now - self._printed_at < self.every_seconds:
            return
        self._printed_at = now
        values = ", ".join(f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items())
        print(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {values}", flush=True)


class Figures(Callback):
    """Draws the run's pictures at the end of training, into `figures` of the trainer's `default_root_dir`.

    What cannot be drawn is a warning, as the training is done.
    """

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw; in single precision what was trained in a lower one, as data outside of the trainer's loops are."""
        low = next((p.dtype for p in pl_module.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)
        if low is not None:
            pl_module.float()
        try:
            draw_run(RunFolder(trainer.default_root_dir), pl_module, getattr(trainer, "datamodule", None))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            rank_zero_warn(f"figures: not all could be drawn; `sciml plot` shows where it came to {told}")
        finally:
            if low is not None:
                pl_module.to(low)


def draw_run(run: RunFolder, module: lightning.LightningModule, data: Any) -> list[Path]:
    """Draw the learning curves, and what the module has to show of test data if there are any; returns the files."""
    paths = []
    for name, figure in _figures(run, module, data):
        paths.append(run.figures / f"{name}.png")
        with replacing(paths[-1]) as path:
            figure.savefig(path, format="png", dpi=150)
    return paths


def _figures(run: RunFolder, module: lightning.LightningModule, data: Any) -> Iterator[tuple[str, Figure]]:
    if rows := MetricsLogger(run.metrics).rows():
        yield "learning_curve", draw_metrics(rows, getattr(module, "monitor", ""))
    empty = data is None or getattr(data, "sizes", {}).get("test") == 0
    if isinstance(module, TrainingModule) and not empty:
        training = module.training
        try:
            yield from module.eval().pictures(data)
        finally:
            module.train(training)
