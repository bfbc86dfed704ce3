"""Data sets made by solving a problem, kept in a cache of HDF5 files."""

import fcntl
import hashlib
import inspect
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import h5py
import lightning
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm.auto import tqdm

import sciml
from sciml.data.atomic import replacing
from sciml.data.fields import FieldData
from sciml.data.seeding import generator
from sciml.errors import DataError
from sciml.problems import Problem
from sciml.problems.problem import final_time


class Solved(NamedTuple):
    """Solutions of a problem from random initial conditions."""

    ts: Tensor  # (t), float64
    fields: Tensor  # (n, t, c, *x), float32


def cache_folder() -> Path:
    """`$SCIML_CACHE`, or `~/.cache/sciml`."""
    return Path(os.environ.get("SCIML_CACHE") or Path.home() / ".cache" / "sciml")


def recipe(problem: Problem, count: int, ts: list[float], seed: int) -> dict[str, Any]:
    """Everything that a data set depends on, as plain data.

    The files of your own that define the problem's class and its bases are part of it, so that editing them makes new
    data.
    """
    return {**_described(problem), "count": count, "ts": ts, "seed": seed}


def _described(problem: Any) -> dict[str, Any]:
    """What a problem, or a part of one, is: its class, the files that define it, its settings."""
    kind = type(problem)
    names = [f.name for f in fields(problem)] if is_dataclass(problem) else vars(problem)
    return {
        "problem": f"{kind.__module__}.{kind.__qualname__}",
        "source": [sciml.__version__, *_own_sources(kind)],
        "settings": {name: _plain(name, getattr(problem, name)) for name in names if not name.startswith("_")},
    }


def cache_file(made_by: dict[str, Any]) -> Path:
    """Where the data of a recipe lie."""
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{made_by['problem'].rpartition('.')[2].lower()}-{digest[:16]}.h5"


def generate(problem: Problem, count: int, ts: list[float], seed: int = 0, progress: bool = True) -> Path:
    """Solve a problem from random initial conditions, unless the cache has it.

    Chunks of samples are kept in a hidden folder beside the file until all are there: after an interruption, by a kill
    too, the same call goes on from those that were whole, to the same data bit by bit. While they are joined both take
    room on the disk.

    Args:
        problem: what to solve.
        count: number of samples.
        ts: times to keep.
        seed: the samples are a function of it and of their number.
        progress: show a progress bar.

    Returns:
        The file, with `fields` (n, t, c, *x), `ts` (t), the recipe and a hash of the content as attributes.

    Raises:
        DataError: the cache's folder cannot be written to.
    """
    made_by = recipe(problem, count, ts, seed)
    path = cache_file(made_by)
    if not path.is_file():
        with _locked(path):
            if not path.is_file():  # another process may have made it meanwhile
                _write(path, problem, made_by, progress)
    rmtree(_chunks(path), ignore_errors=True)
    return path


def load(path: Path) -> Solved:
    """The data of a file that `generate` made.

    Raises:
        ValueError: the file's content is not what was written.
    """
    with h5py.File(path) as file:
        if file.attrs.get("content") != _hash(file):
            raise ValueError(f"{path}: its content does not match its hash; delete it and generate the data again")
        return Solved(torch.from_numpy(file["ts"][...]), torch.from_numpy(file["fields"][...]))


def content(path: Path) -> str:
    """The hash of a file's data that `generate` noted."""
    with h5py.File(path) as file:
        return str(file.attrs["content"])


def _write(path: Path, problem: Problem, made_by: dict[str, Any], progress: bool) -> None:
    """Solve chunk by chunk, and join the chunks; in memory is only one.

    HDF5 writes to Python's file: with one of its own, a full disk makes it crash when it closes that.
    """
    count, ts = made_by["count"], torch.tensor(made_by["ts"], dtype=torch.float64)
    u0 = problem.start(count, generator(made_by["seed"], "initial conditions"))
    parts = [slice(start, min(start + problem.chunk, count)) for start in range(0, count, problem.chunk)]
    chunks = {_chunks(path) / f"{part.start}-{part.stop}.f4": part for part in parts}
    _solve_missing(problem, {file: u0[part] for file, part in chunks.items()}, ts, progress)
    with replacing(path) as partial, partial.open("w+b") as whole, h5py.File(whole, "w") as file:
        shape = (count, len(ts), *u0.shape[1:])
        fields = file.create_dataset("fields", shape, dtype="f4")
        file["ts"] = ts.numpy()
        for chunk, part in chunks.items():
            fields[part] = np.fromfile(chunk, np.float32).reshape(-1, *shape[1:])
        file.attrs["recipe"] = json.dumps(made_by)
        file.attrs["content"] = _hash(file)


def _chunks(path: Path) -> Path:
    """The folder of what is solved so far of a file's data, and of no other's."""
    return path.with_name(f".{path.stem}.chunks")


def _solve_missing(problem: Problem, starts: dict[Path, Tensor], ts: Tensor, progress: bool) -> None:
    """Write the solutions (b, t, c, *x) from starts (b, c, *x) to the files that an earlier attempt did not write."""
    missing = {file: u0 for file, u0 in starts.items() if not file.is_file()}
    whole = progress and len(starts) == 1
    options = {"progress": True} if whole else {}  # the solve's own bar
    bar = tqdm(
        missing.items(),
        f"solving {type(problem).__name__}",
        total=len(starts),
        initial=len(starts) - len(missing),
        unit="chunk",
        disable=None if progress and not whole else True,  # None: on a terminal only
    )
    for file, u0 in bar:
        solved = np.empty((len(u0), len(ts), *u0.shape[1:]), np.float32)
        with torch.no_grad():
            solved[:] = problem.evolve(u0, ts, **options).numpy()
        with replacing(file) as partial:
            partial.write_bytes(solved.data)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for other processes that make the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise DataError(f"cache: cannot write to it, {error}; SCIML_CACHE names another folder") from error
    with lock as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own_sources(kind: type) -> list[str]:
    """A hash of each file outside of sciml and Python itself that defines a class or one of its bases."""
    modules = {base.__module__ for base in kind.__mro__}
    own = sorted(name for name in modules if name.partition(".")[0] not in {"sciml", *sys.stdlib_module_names})
    try:
        return [hashlib.sha256(inspect.getsource(sys.modules[name]).encode()).hexdigest() for name in own]
    except (OSError, TypeError) as error:
        raise ValueError(
            f"problem: expected a class that a file defines, since the cache notices its changes there; "
            f"{kind.__qualname__} is defined in none"
        ) from error


def _plain(key: str, value: Any) -> Any:
    """A setting as plain data; what has settings of its own, with its class."""
    if isinstance(value, Problem) or (is_dataclass(value) and not isinstance(value, type)):
        return _described(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(key, part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(key, part) for name, part in value.items()}
    try:
        json.dumps(value)
    except TypeError as error:
        raise TypeError(
            f"problem: expected settings that are numbers, text, tensors, or lists and dicts of them, to know its data "
            f"by; {key!r} is a {type(value).__name__} (a name that starts with _ is left out)"
        ) from error
    return value


def _hash(file: h5py.File) -> str:
    digest = hashlib.sha256()
    for name in ("ts", "fields"):
        data = file[name]
        for row in data if data.ndim > 1 else [data[...]]:
            digest.update(np.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


class GeneratedData(lightning.LightningDataModule, ABC):
    """Data that come from `generate`; a checkpoint records their hash, and going on with other ones gives a warning."""

    @abstractmethod
    def file(self) -> Path:
        """The data's file, made where it is missing."""

    def prepare_data(self) -> None:
        """Fill the cache."""
        self.file()

    def state_dict(self) -> dict[str, str]:
        """What a checkpoint records: the hash of the data."""
        return {"content": content(self.file())}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Compare the data with those that the checkpoint was trained on."""
        training = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if training and state_dict != self.state_dict():
            rank_zero_warn(f"data: other ones than this run was trained on before; now they are {self.file()}")


class OperatorData(GeneratedData, FieldData):
    """The map from a problem's solution at one time, the start by default, to that at a later one, as pairs of fields.

    The data come from `generate`, through the cache.

    Args:
        problem: what to solve.
        t: the time of the targets; None takes the problem's final time.
        train: number of samples to train on.
        val: number of samples to validate on.
        test: number of samples to test on: the last ones.
        batch_size: samples per training step.
        data_seed: seed of the initial conditions, apart from the seed of the training.
        workers: processes that fetch batches.
        start: the time of the inputs; from 0 on.

    Raises:
        ValueError: the inputs are not earlier than the targets.
    """

    def __init__(
        self,
        problem: Problem,
        t: float | None = None,
        train: int = 500,
        val: int = 100,
        test: int = 100,
        batch_size: int = 20,
        data_seed: int = 0,
        workers: int = 0,
        start: float = 0.0,
    ):
        super().__init__(train, val, test, batch_size, workers)
        self.problem, self.data_seed = problem, data_seed
        self.start, self.t = start, final_time(problem) if t is None else t
        if not 0 <= self.start < self.t:
            raise ValueError(f"start: expected a time from 0 on and before the targets' {self.t}, got {start}")

    def file(self) -> Path:
        """The data's file, made where it is missing."""
        return generate(self.problem, sum(self.sizes.values()), [self.start, self.t], self.data_seed)

    def fields(self) -> tuple[Tensor, Tensor]:
        """Solutions at the two times."""
        fields = load(self.file()).fields
        return fields[:, 0].contiguous(), fields[:, 1].contiguous()
