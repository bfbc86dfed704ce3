"""What the commands that need Lightning do; `sciml.cli` is the front that starts quickly."""

import logging

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import torch
import yaml
from jsonargparse import ArgumentError
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from sciml.data.atomic import replacing
from sciml.data.seeding import run_seed
from sciml.problems import Problem
from sciml.training.callbacks import Figures, ProgressBar, draw_run
from sciml.training.checkpoint import AtomicCheckpointIO, Checkpoints
from sciml.training.config import UsageError
from sciml.training.load import add_code_path
from sciml.training.metrics import MetricsLogger
from sciml.training.mistakes import explain
from sciml.training.module import TrainingModule
from sciml.training.run_folder import RunFolder
from sciml.training.solution import solve_problem


class RunCLI(LightningCLI):
    """Builds model, data and trainer from a configuration and overrides; the trainer's files go to the run folder.

    Args:
        config: the configuration's file.
        overrides: `--key value` for any key of it.
        run: the run folder.
        training: write metrics, checkpoints and figures.
    """

    def __init__(self, config: Path, overrides: Sequence[str], run: RunFolder, training: bool = False):
        self.run, self.training = run, training
        self.code_path = code_path(config)
        add_code_path(self.code_path)
        with usage_errors(self), quiet():
            super().__init__(
                run=False,
                args=["--config", str(config), *overrides],
                parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "dump_header": None},
                seed_everything_default=0,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys beside `model`, `data`, `trainer` and `seed_everything`."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument("--code_path", type=str, default=self.code_path, help="Folder of your own modules.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning that `sys.argv` is not empty."""
        self.config = parser.parse_args(args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer with the run folder's logger, checkpoints, figures and progress bar beside the user's own."""
        settings = self.config_init.trainer
        loggers = settings.logger if isinstance(settings.logger, list) else [settings.logger]
        callbacks = list(settings.callbacks or [])
        if settings.enable_progress_bar is not False and not any(isinstance(c, LightningProgressBar) for c in callbacks):
            callbacks.append(ProgressBar())
        if self.training:
            callbacks.append(Figures())
            self.config_init.checkpoint.config = yaml.safe_load(self.resolved())
        return super().instantiate_trainer(
            default_root_dir=self.run.path,
            callbacks=callbacks,
            logger=[MetricsLogger(self.run.metrics), *(x for x in loggers if isinstance(x, Logger))]
            if self.training
            else False,
            plugins=[AtomicCheckpointIO(), *(settings.plugins or [])],
        )

    def resolved(self) -> str:
        """The whole configuration as YAML, with the overrides and all defaults."""
        return self.parser.dump(self.config, skip_unset=False)


def fit(config: Path, run: RunFolder, overrides: Sequence[str]) -> None:
    """Train from the start."""
    cli = RunCLI(config, overrides, run, training=True)
    run.metrics.unlink(missing_ok=True)
    run.write_config(cli.resolved())
    train(cli)


def resume(run: RunFolder, overrides: Sequence[str]) -> None:
    """Go on from the last checkpoint, or from the start where there is none yet."""
    finished = run.last.is_file() and load_checkpoint(run.last)["sciml"]["finished"]
    if finished and not overrides:
        print(f"{run.path} is finished; give a larger --trainer.max_epochs to go on")
        return
    cli = RunCLI(run.configs[-1], overrides, run, training=True)
    if not run.last.is_file():
        run.metrics.unlink(missing_ok=True)
    run.write_config(cli.resolved(), resumed=True)
    train(cli, run.last if run.last.is_file() else None)


def train(cli: RunCLI, checkpoint: Path | None = None) -> None:
    """Fit, from a checkpoint if one is given."""
    print(f"run folder: {cli.run.path}")
    with quiet():
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)


def evaluate(run: RunFolder, stage: str, overrides: Sequence[str]) -> None:
    """Print the metrics on the validation or the test part."""
    cli = RunCLI(run.configs[-1], overrides, run)
    with quiet():
        (metrics,) = getattr(cli.trainer, stage)(
            cli.model, datamodule=cli.datamodule, ckpt_path=run.checkpoint, weights_only=True, verbose=False
        )
    for name, value in metrics.items():
        print(f"{name}: {value:.6g}")
    if "test_relative_l2" in metrics:
        print(f"test relative L2: {metrics['test_relative_l2']:.6g}")


def predict(run: RunFolder, overrides: Sequence[str]) -> None:
    """Write what the model predicts for the test part to `predictions.h5`."""
    cli = RunCLI(run.configs[-1], overrides, run)
    with quiet():
        batches = cli.trainer.predict(cli.model, cli.datamodule, ckpt_path=run.checkpoint, weights_only=True)
    with replacing(run.predictions) as path, h5py.File(path, "w") as file:
        for name in batches[0]:
            file[name] = torch.cat([batch[name] for batch in batches]).numpy()
    print(run.predictions)


def plot(run: RunFolder, overrides: Sequence[str]) -> None:
    """Draw the figures anew."""
    cli = restored(run, overrides)
    for path in draw_run(run, cli.model, cli.datamodule):
        print(path)


def export(run: RunFolder, output: Path, overrides: Sequence[str]) -> None:
    """Write the model with its normaliser as a program that torch loads without sciml."""
    cli = restored(run, overrides)
    predictor = cli.model.predictor().eval()
    inputs = cli.model.example_inputs(cli.datamodule)
    batch = torch.export.Dim.AUTO
    program = torch.export.export(predictor, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    with replacing(output) as path:
        torch.export.save(program, path)
    print(output)


def solve(config: Path, run: RunFolder, overrides: Sequence[str]) -> None:
    """Integrate the problem that the data come from, and write its solution."""
    cli = RunCLI(config, overrides, run)
    run.write_config(cli.resolved())
    for name, value in solve_problem(problem_of(cli), run, run_seed()).items():
        print(f"{name}: {value:.3g}")
    print(f"solution: {run.path}")


def generate(config: Path, overrides: Sequence[str]) -> None:
    """Fill the cache with the configuration's data."""
    cli = RunCLI(config, overrides, RunFolder("."))
    if not hasattr(cli.datamodule, "file"):
        raise UsageError(f"data: {type(cli.datamodule).__name__} generates nothing")
    print(cli.datamodule.file())


def problem_of(cli: RunCLI) -> Problem:
    """The problem of a configuration's data."""
    problem = getattr(cli.datamodule, "problem", None)
    if problem is None:
        raise UsageError(f"data: {type(cli.datamodule).__name__} has no problem to solve")
    return problem


def restored(run: RunFolder, overrides: Sequence[str]) -> RunCLI:
    """The parts of a run with its weights, and the data ready, outside of a trainer's loop."""
    cli = RunCLI(run.configs[-1], overrides, run)
    cli.model.load_state_dict(load_checkpoint(run.checkpoint)["state_dict"])
    if not isinstance(cli.model, TrainingModule):
        raise UsageError(f"model: expected a TrainingModule, got {type(cli.model).__name__}")
    if cli.datamodule is not None:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("test")
    return cli


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of plain data and tensors."""
    return torch.load(path, map_location="cpu", weights_only=True)


def code_path(config: Path) -> str:
    """The folder of the user's own modules: the configuration's own, unless it says so; a run's config does."""
    content = yaml.safe_load(config.read_text())
    if not isinstance(content, dict):
        raise UsageError(f"{config}: expected keys and values, as `sciml show` prints")
    return content.get("code_path") or str(config.resolve().parent)


@contextmanager
def usage_errors(cli: RunCLI) -> Iterator[None]:
    """Turn mistakes in a configuration into one line."""
    try:
        yield
    except ArgumentError as error:
        raise UsageError(explain(str(error), cli.parser)) from error
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal what Lightning says that is of no use here."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)  # below: which devices there are, and advertisements
    with warnings.catch_warnings():
        # Lightning calls functions of jsonargparse and torch that are about to be renamed.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"lightning\.|jsonargparse\.")
        # Steps are counted across epochs, so that short epochs are logged as well.
        warnings.filterwarnings("ignore", r"The number of training batches \(\d+\) is smaller than the logging")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
