"""What the commands that need Lightning do; `sciml.cli` is the front that starts quickly."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import h5py
import torch
import yaml
from jsonargparse import ArgumentError, Namespace, get_loader, set_loader
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sciml.data.atomic import replacing
from sciml.data.loader import Loader
from sciml.data.seeding import run_seed
from sciml.data.split import New
from sciml.errors import DataError
from sciml.problems import Problem
from sciml.training.callbacks import Beginning, Figures, draw_run, progress
from sciml.training.checkpoint import AtomicCheckpointIO, Checkpoints, Interrupted
from sciml.training.config import UsageError
from sciml.training.load import add_code_path
from sciml.training.metrics import MetricsLogger
from sciml.training.mistakes import explain, is_own, is_trainers, other_weights, slip
from sciml.training.module import TrainingModule
from sciml.training.places import keyed, place
from sciml.training.run_folder import RunFolder
from sciml.training.sizes import SizeError
from sciml.training.solution import solve_problem

YAML = "yaml, None for null"


def with_nulls(value: Any) -> Any:
    """Plain data with None for the text "None": as such jsonargparse hands a null on to a key of a nested class."""
    if isinstance(value, dict):
        return {key: with_nulls(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_nulls(part) for part in value]
    return None if value == "None" else value


set_loader(YAML, lambda text: with_nulls(get_loader("yaml")(text)), (yaml.YAMLError,))


def without_replaced(before: Any, after: Any) -> Any:
    """A parsed configuration without the arguments of the classes that another one has other classes in place of."""
    if isinstance(before, list) and isinstance(after, list):
        return [*map(without_replaced, before, after), *before[len(after) :]]
    if not isinstance(before, Namespace | dict) or not isinstance(after, Namespace | dict):
        return before
    if "class_path" in before and before["class_path"] != after.get("class_path", before["class_path"]):
        return Namespace(class_path=after["class_path"])
    content = before if isinstance(before, dict) else vars(before)
    return type(before)({key: without_replaced(value, after.get(key)) for key, value in content.items()})


def listed(value: Any) -> list[Any]:
    """What a key of the trainer gives, where that may be one, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


class RunCLI(LightningCLI):
    """Builds model, data and trainer from a configuration and overrides; the trainer's files go to the run folder.

    Args:
        config: the configuration's file; None for the help alone.
        overrides: `--key value` for any key of it.
        run: the run folder.
        training: write metrics, checkpoints and figures.
        resumed: the run goes on.
        modelled: the configuration has to have a model.
    """

    beginning: Beginning

    def __init__(
        self,
        config: Path | None,
        overrides: Sequence[str],
        run: RunFolder,
        training: bool = False,
        resumed: bool = False,
        modelled: bool = True,
    ):
        self.run, self.training, self.resumed, self.modelled = run, training, resumed, modelled
        self.file, self.overrides = config, list(overrides)
        self.code_path = code_path(config) if config else None
        add_code_path(self.code_path)
        with usage_errors(self, ValueError), quiet():
            super().__init__(
                run=False,
                args=[*(["--config", str(config)] if config else []), *overrides],
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "dump_header": None,
                    "parser_mode": YAML,
                },
                seed_everything_default=0,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys `model`, `data` and `trainer`."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True, required=self.modelled)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys beside `model`, `data`, `trainer` and `seed_everything`."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        help_text = "Folder of your own modules, taken from where the configuration lies."
        parser.add_argument("--code_path", type=str, default=self.code_path, help=help_text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning that `sys.argv` is not empty.

        jsonargparse hands a class's arguments on to one that an override puts in its place, where it has some of that
        name. These are taken out of the file's part, and the overrides parsed once more.
        """
        self.config = parser.parse_args(args)
        if self.file is None or not self.overrides:
            return
        parser.default_config_files = [str(self.file)]
        before = parser.get_defaults(skip_validation=True)
        parser.default_config_files = []
        kept = without_replaced(before, self.config)
        if kept != before:
            self.config = parser.parse_args(self.overrides, namespace=kept)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer with the run folder's logger, checkpoints, figures and progress bar beside the user's own.

        What does not train does so in one process, on one device, which meets every sample once and in order.
        """
        settings = self.config_init["trainer"]
        loggers, plugins = map(listed, (settings.logger, settings.plugins))
        callbacks = [*listed(settings.callbacks)]
        if settings.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(progress())
        if self.training:
            callbacks.append(Figures())
            self.beginning = Beginning(self.run, self.resolved(), self.resumed)
            callbacks.append(self.beginning)
            self.config_init["checkpoint"].config = self.settings()
            kwargs["logger"] = [MetricsLogger(self.run.metrics), *(x for x in loggers if isinstance(x, Logger))]
        else:
            device = settings.devices[:1] if isinstance(settings.devices, list) else 1
            kwargs |= {"logger": False, "devices": device, "num_nodes": 1, "strategy": "auto"}
        return super().instantiate_trainer(
            default_root_dir=self.run.path,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *plugins],
            **kwargs,
        )

    def resolved(self) -> str:
        """The whole configuration as YAML, with the overrides and all defaults."""
        return self.parser.dump(self.config, skip_unset=False)

    def settings(self) -> dict[str, Any]:
        """The whole configuration as plain data; empty before it was read."""
        return yaml.safe_load(self.resolved()) if hasattr(self, "config") else {}


def print_help(overrides: Sequence[str]) -> NoReturn:
    """Print what is asked for by `--help`, all keys of a configuration, or `--KEY.help CLASS`, and exit."""
    RunCLI(None, overrides, RunFolder("."))
    raise SystemExit


def fit(config: Path, run: RunFolder, overrides: Sequence[str]) -> None:
    """Train from the start."""
    train(RunCLI(config, overrides, run, training=True))


def resume(run: RunFolder, overrides: Sequence[str]) -> None:
    """Go on from the last checkpoint, or from the start where there is none yet."""
    checkpoint = run.last if run.last.is_file() else None
    if checkpoint and not overrides and load_checkpoint(checkpoint)["sciml"]["finished"]:
        print(f"{run.path} is finished; to go on, give more of what ended it, as by --trainer.max_epochs")
        return
    train(RunCLI(run.configs[-1], overrides, run, training=True, resumed=True), checkpoint)


class OtherWeights(UsageError):
    """The checkpoint is not of the model, or of the optimiser, of the configuration."""


@rank_zero_only
def end(cli: RunCLI) -> None:
    """Say what came out, and where it is."""
    best = cli.config_init["checkpoint"].best
    if best is not None:
        print(f"best {cli.model.monitor}: {best:.6g}")
    print(f"run folder: {cli.run.path}")


def train(cli: RunCLI, checkpoint: Path | None = None) -> None:
    """Fit, from a checkpoint if one is given."""
    try:
        with usage_errors(cli), cli.beginning.undone(), quiet():
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as stop:
        raise early(signal.SIGTERM) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise early(signal.SIGINT) from stop
        raise
    end(cli)


def early(number: signal.Signals) -> Interrupted:
    """The end of a run by a signal before its first step, when there is nothing to save yet."""
    print("sciml: stopped before the first step, nothing is saved; the same command starts anew", file=sys.stderr)
    return Interrupted(128 + number)


def validate(run: RunFolder, overrides: Sequence[str]) -> None:
    """Print the metrics on the validation part."""
    evaluate(run, overrides, "validate")


def test(run: RunFolder, overrides: Sequence[str]) -> None:
    """Print the metrics on the test part."""
    metrics = evaluate(run, overrides, "test")
    if "test_relative_l2" in metrics:
        print(f"test relative L2: {metrics['test_relative_l2']:.6g}")


def evaluate(run: RunFolder, overrides: Sequence[str], stage: str) -> dict[str, float]:
    """Run one of the trainer's evaluation loops with the run's weights, and print what it logged."""
    cli = RunCLI(run.configs[-1], overrides, run)
    with usage_errors(cli), quiet():
        results = getattr(cli.trainer, stage)(
            cli.model, datamodule=cli.datamodule, ckpt_path=run.checkpoint, weights_only=True, verbose=False
        )
    metrics = {name: value for result in results for name, value in result.items()}
    for name, value in metrics.items():
        print(f"{name}: {value:.6g}")
    return metrics


def predict(run: RunFolder, file: Path | None, overrides: Sequence[str]) -> None:
    """Write predictions for the test part to `predictions.h5`, or for all of a file to one named after it."""
    cli = RunCLI(run.configs[-1], overrides, run)
    data, labels, output = cli.datamodule, None, run.predictions
    with usage_errors(cli), quiet():
        if file is not None:
            new = new_samples(cli, file)
            data, labels = Loader(new.dataset, cli.datamodule.batch_size), new.labels
            output = output.with_stem(f"{output.stem}_{file.stem}")
        batches = cli.trainer.predict(cli.model, data, ckpt_path=run.checkpoint, weights_only=True) or []
    if not batches:
        raise UsageError("data: expected samples to test on, got none")
    if not isinstance(batches[0], dict):
        raise UsageError(f"predict: expected {type(cli.model).__name__}.predict_step to return tensors by name")
    with replacing(output) as path, h5py.File(path, "w") as results:
        if labels is not None:
            results["id"] = list(labels)
        for name in batches[0]:
            values = torch.cat([batch[name] for batch in batches])
            if values.dtype == torch.bfloat16:  # which numpy does not know
                values = values.float()
            results[name] = values.numpy()
    print(output)


def new_samples(cli: RunCLI, file: Path) -> New:
    """All of a file, as the configuration's data module reads it."""
    if not hasattr(cli.datamodule, "new"):
        kind = type(cli.datamodule).__name__
        raise UsageError(
            f"predict: data of {kind} read no --input, as those of Trajectories and FieldData do; `sciml.load` gives "
            "the trained map in Python"
        )
    return cli.datamodule.new(file)


def plot(run: RunFolder, overrides: Sequence[str]) -> None:
    """Draw the figures anew."""
    cli = restored(run, overrides)
    for path in draw_run(run, cli.model, cli.datamodule):
        print(path)


def export(run: RunFolder, output: Path, overrides: Sequence[str]) -> None:
    """Write the model with its normaliser as a program that torch loads without sciml, and print how it is called.

    All sizes but those of channels are free where the model does not fix them.
    """
    cli = restored(run, overrides)
    with usage_errors(cli, ValueError, NotImplementedError):
        predictor = cli.model.predictor().eval()
        inputs = cli.model.example_inputs(cli.datamodule)
        free = tuple({axis: torch.export.Dim.AUTO for axis in range(x.ndim) if axis != 1} for x in inputs)
        program = torch.export.export(predictor, inputs, dynamic_shapes=free)
    with replacing(output) as path:
        torch.export.save(program, path)
    print(output)
    print(f"torch.export.load({str(output)!r}).module()({', '.join(map(str, program.graph_signature.user_inputs))})")
    for line in called_with(program):
        print(f"  {line}")


def called_with(program: torch.export.ExportedProgram) -> Iterator[str]:
    """Name, precision and sizes of each input of a program; sizes that are free are letters."""
    letters: dict[str, str] = {}
    names = iter("nmklpqrs")
    for node in program.graph.nodes:
        if node.name in program.graph_signature.user_inputs:
            x = node.meta["val"]
            free = [str(size) for size in x.shape if not isinstance(size, int)]
            letters |= {size: next(names) for size in dict.fromkeys(free) if size not in letters}
            sizes = ", ".join(letters.get(str(size), str(size)) for size in x.shape)
            yield f"{node.name}: {x.dtype} ({sizes})"


def solve(config: Path, run: RunFolder, overrides: Sequence[str]) -> None:
    """Integrate the problem that the data come from, and write its solution."""
    cli = RunCLI(config, overrides, run, modelled=False)
    problem = problem_of(cli)
    with usage_errors(cli):
        found = solve_problem(problem, run, run_seed())
    run.write_config(cli.resolved())
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    print(f"solution: {run.path}")


def generate(config: Path, overrides: Sequence[str]) -> None:
    """Fill the cache with the configuration's data."""
    cli = RunCLI(config, overrides, RunFolder("."), modelled=False)
    if not hasattr(cli.datamodule, "file"):
        raise UsageError(f"data: {type(cli.datamodule).__name__} generates nothing")
    with usage_errors(cli):
        print(cli.datamodule.file())


def problem_of(cli: RunCLI) -> Problem:
    """The problem of a configuration's data."""
    problem = getattr(cli.datamodule, "problem", None)
    if problem is None:
        raise UsageError(
            f"data: {type(cli.datamodule).__name__} has no problem to solve, as those of OperatorData and "
            "TrajectoryData; a model is trained by `sciml fit`"
        )
    return problem


def restored(run: RunFolder, overrides: Sequence[str]) -> RunCLI:
    """The parts of a run with its weights, and the data ready, outside of a trainer's loop."""
    cli = RunCLI(run.configs[-1], overrides, run)
    with usage_errors(cli):
        cli.model.load_state_dict(load_checkpoint(run.checkpoint)["state_dict"])
    if not isinstance(cli.model, TrainingModule):
        raise UsageError(f"model: expected a TrainingModule, got {type(cli.model).__name__}")
    if cli.datamodule is not None:
        with usage_errors(cli):
            cli.datamodule.prepare_data()
            cli.datamodule.setup("test")
    return cli


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of plain data and tensors."""
    return torch.load(path, map_location="cpu", weights_only=True)


def code_path(config: Path) -> str:
    """The folder of the user's own modules: the configuration's own, unless it says so; a run's config does."""
    try:
        content = yaml.safe_load(config.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{config}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{config}: expected keys and values, as `sciml show` prints")
    return content.get("code_path") or str(config.resolve().parent)


@contextmanager
def usage_errors(cli: RunCLI, *more: type[Exception]) -> Iterator[None]:
    """Turn mistakes in a configuration into one line; further exceptions may be named as such mistakes."""
    try:
        yield
    except ArgumentError as error:
        if (found := slip(error, cli.code_path)) is not None:
            raise found from None
        raise UsageError(explain(str(error), cli.parser)) from error
    except SizeError as error:
        owner = error.owner
        key = place(cli.settings(), type(owner), error.key, getattr(owner, error.key, None))
        raise UsageError(f"{key}: {error.message}" if key else str(error)) from error
    except (MisconfigurationException, FileNotFoundError, DataError, *more) as error:
        if (found := slip(error, cli.code_path)) is not None and found is not error:
            raise found from None
        raise UsageError(explain(keyed(error, cli.settings()), cli.parser)) from error
    except (RuntimeError, ValueError, TypeError) as error:
        if (told := other_weights(error)) is not None:
            raise OtherWeights(told) from error
        if not is_own(error, cli.code_path) and not is_trainers(error):
            raise
        raise UsageError(" ".join(keyed(error, cli.settings()).split())) from error


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
        # Its averages are not for sharded modules, and take no part in tests.
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
