"""Trajectories: states observed over time, of a problem or from a user's own file."""

import csv
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sciml.data.generate import GeneratedData, generate, load
from sciml.data.seeding import generator
from sciml.data.split import New, SplitData, check_sizes
from sciml.errors import DataError
from sciml.problems import Problem

SUFFIXES = (".csv", ".npz", ".h5", ".hdf5")


class Observed(NamedTuple):
    """Trajectories of which some values may be missing."""

    ts: Tensor  # (t) where all share their times, else (n, t); increasing, float64; the last one fills up short ones
    ys: Tensor  # (n, t, c, ..), float32; 0 where missing
    mask: Tensor  # as ys, bool: whether there is a value; everywhere at the first time, where solves start from it

    def take(self, chosen: Any) -> "Observed":
        """Some of the trajectories."""
        return Observed(self.ts if self.ts.ndim == 1 else self.ts[chosen], self.ys[chosen], self.mask[chosen])

    def cut(self, steps: int) -> "Observed":
        """Pieces of so many steps, each starting where the one before it ended, with times that count from its start.

        What is left at the end is dropped, and a piece without all values at its first time.
        """
        if not 1 <= steps < self.ys.shape[1]:
            raise ValueError(f"piece: expected a number of steps from 1 to {self.ys.shape[1] - 1}, got {steps}")
        wholes = self.ts.expand(self.ys.shape[:2]), self.ys, self.mask
        ts, ys, mask = (x.unfold(1, steps + 1, steps).movedim(-1, 2).flatten(0, 1) for x in wholes)
        ts = ts - ts[:, :1]
        used = mask[:, 0].flatten(1).all(1) & (ts[:, -1] > 0)
        ts, ys, mask = ts[used], ys[used], mask[used]
        same = len(ts) > 0 and torch.allclose(ts, ts[:1].expand_as(ts), rtol=1e-9, atol=1e-9 * ts[0, -1].item())
        return Observed(ts[0] if same else ts, ys, mask)


class _Rows(Dataset[Observed]):
    """Trajectories by lists of their numbers."""

    def __init__(self, observed: Observed):
        self.observed = observed

    def __len__(self) -> int:
        return len(self.observed.ys)

    def __getitem__(self, index: list[int]) -> Observed:
        return self.observed.take(index)


class ObservedData(SplitData):
    """Trajectories in memory, split by trajectory.

    Args:
        batch_size: trajectories per training step.
        piece: cut those to train on into pieces of so many steps; None leaves them whole.
        workers: processes that fetch batches.

    Attributes:
        names: of the c components.
    """

    names: tuple[str, ...]

    def __init__(self, batch_size: int, piece: int | None = None, workers: int = 0):
        super().__init__(batch_size, workers)
        self.piece = piece
        self._parts: dict[str, Observed] = {}

    @abstractmethod
    def read(self) -> dict[str, Observed]:
        """The parts `"train"`, `"val"` and `"test"`."""

    def setup(self, stage: str) -> None:
        """Read and cut, once."""
        super().setup(stage)
        if self._parts:
            return
        parts = self.read()
        self._parts = parts if self.piece is None else {**parts, "train": parts["train"].cut(self.piece)}

    def part(self, name: str) -> Observed:
        """The trajectories of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]

    def dataset(self, name: str) -> Dataset[Observed]:
        """A part, to be indexed by lists of trajectories."""
        return _Rows(self.part(name))


class TrajectoryData(GeneratedData, ObservedData):
    """Solutions of a problem from random initial conditions, at equally spaced times from 0 to its end.

    They come from `generate`, through the cache.

    Args:
        problem: what to solve.
        points: number of times after the start.
        train: number of trajectories to train on.
        val: number of trajectories to validate on.
        test: number of trajectories to test on.
        batch_size: trajectories per training step.
        piece: cut those to train on into pieces of so many steps, since long trajectories are hard to learn at first.
            Its times count from its start: only for fields that do not depend on time. None leaves them whole.
        data_seed: seed of the initial conditions, apart from the seed of the training.
        workers: processes that fetch batches.
    """

    def __init__(
        self,
        problem: Problem,
        points: int = 50,
        train: int = 100,
        val: int = 20,
        test: int = 20,
        batch_size: int = 20,
        piece: int | None = None,
        data_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, piece, workers)
        check_sizes(train, val, test)
        self.problem, self.points, self.data_seed = problem, points, data_seed
        self.sizes = {"train": train, "val": val, "test": test}
        self.names = problem.channels

    def file(self) -> Path:
        """The data's file, made where it is missing."""
        times = self.problem.times(self.points).tolist()
        return generate(self.problem, sum(self.sizes.values()), times, self.data_seed)

    def read(self) -> dict[str, Observed]:
        """The first trajectories to train on, the next to validate on, the last to test on."""
        ts, fields = load(self.file())
        parts = fields.split(list(self.sizes.values()))
        return {
            name: Observed(ts, ys, torch.ones_like(ys, dtype=torch.bool))
            for name, ys in zip(self.sizes, parts, strict=True)
        }


class Trajectories(ObservedData):
    """Your own trajectories, from a file.

    ``.csv``: a row for each time; columns, set apart by commas, semicolons or tabs, for the time, the components and,
    where there are several trajectories, a number or name of the trajectory. ``.npz``, ``.h5``: an array of times (t)
    or (n, t), and for each component an array (n, t), or one array (n, t, c) for all. An empty cell or NaN is a missing
    value; a NaN at the end of the times fills up a shorter trajectory. The values at a trajectory's first time are its
    initial state and must be there.

    Trajectories of different times need a solver with ``lanes="each"``.

    Args:
        path: the file.
        t: name of the times.
        y: names of the components; None takes all other columns or arrays.
        id: name of the csv's column that says which trajectory a row belongs to; None takes all for one.
        val: share of the trajectories to validate on.
        test: share of the trajectories to test on.
        batch_size: trajectories per training step.
        piece: cut those to train on into pieces of so many steps, since long trajectories are hard to learn at first.
            Its times count from its start: only for fields that do not depend on time. None leaves them whole.
        split_seed: seed of the split, apart from the seed of the training.
        workers: processes that fetch batches.
    """

    def __init__(
        self,
        path: str,
        t: str = "t",
        y: list[str] | None = None,
        id: str | None = None,
        val: float = 0.1,
        test: float = 0.1,
        batch_size: int = 20,
        piece: int | None = None,
        split_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, piece, workers)
        if not (test > 0 and val > 0 and test + val < 1):
            raise ValueError(f"test, val: expected positive shares with a sum below 1, got {test} and {val}")
        self.path, self.t, self.y, self.id = Path(path), t, y, id
        self.shares, self.split_seed = {"val": val, "test": test}, split_seed

    def read(self) -> dict[str, Observed]:
        """A random split; validation and test get at least one trajectory each."""
        self.names, _, observed = read_trajectories(self.path, self.t, self.y, self.id)
        count = len(observed.ys)
        val, test = (max(1, round(share * count)) for share in self.shares.values())
        if val + test >= count:
            raise DataError(
                f"path: {self.path}: expected at least 3 trajectories, to train, validate and test on, got {count}; a "
                "long one can be cut into pieces, numbered in a column that `id` names"
            )
        order = torch.randperm(count, generator=generator(self.split_seed, "split"))
        parts = order.split([count - val - test, val, test])
        return {name: observed.take(chosen) for name, chosen in zip(("train", "val", "test"), parts, strict=True)}

    def new(self, path: Path) -> New:
        """All trajectories of a file of the same columns or arrays; only their first values have to be there.

        Raises:
            DataError: the file is not as the class describes it, or `y` does not say what to look for in it.
        """
        if self.y is None:
            raise DataError("y: expected names of the components, as another file may have them in another order")
        try:
            _, labels, observed = read_trajectories(path, self.t, self.y, self.id)
        except DataError as error:
            raise DataError(re.sub("^path:", "input:", str(error))) from None
        return New(_Rows(observed), labels)


def read_trajectories(
    path: Path, t: str = "t", y: Sequence[str] | None = None, id: str | None = None
) -> tuple[tuple[str, ...], Sequence[str | int], Observed]:
    """The names of the components, and the trajectories of a file with theirs, as `Trajectories` describes it.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is not as described; the message begins with the argument that is wrong, and names the file
            and column, row or array in it.
    """
    with readable(path, id):
        table = read_csv(path, t, y, id) if path.suffix == ".csv" else tabulated(read_arrays(path), t, y)
        return table.names, table.labels, _observed(table)


@contextmanager
def readable(path: Path, id: str | None) -> Iterator[None]:
    """Reads a file of trajectories, or tells what is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not as described.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"path: expected a file that ends in {', '.join(SUFFIXES)}, got {str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}")
    if path.suffix != ".csv" and id is not None:
        raise DataError(f"id: expected None, as the arrays of {path} have trajectories on their first axis, got {id!r}")
    try:
        yield
    except Mistake as mistake:
        raise DataError(f"{mistake.argument}: {path}: {mistake}") from None
    except (OSError, ValueError) as error:  # numpy's and h5py's word on bytes that are something else
        raise DataError(f"path: {path}: expected a {path.suffix} file, got one that cannot be read: {error}") from error


class Mistake(Exception):
    """What is wrong in a file, or in the argument that asks it for something."""

    def __init__(self, message: str, argument: str = "path"):
        super().__init__(message)
        self.argument = argument


class Table(NamedTuple):
    """The content of a file, NaN where something is missing."""

    names: tuple[str, ...]  # of the components
    labels: Sequence[str | int]  # of the trajectories
    ts: np.ndarray  # (n, t)
    ys: np.ndarray  # (n, t, c)


def counts(table: Table) -> list[int]:
    """How many times each trajectory has; refused where they are not as described, or a value is infinite."""
    found = []
    for label, times, values in zip(table.labels, table.ts, table.ys, strict=True):
        count = int(np.count_nonzero(~np.isnan(times)))
        if count < 2 or np.isnan(times[:count]).any():
            raise Mistake(f"trajectory {label}: expected at least two times, with NaN only behind them")
        if (back := np.flatnonzero(np.diff(times[:count]) <= 0)).size:
            hint = "; the column that tells trajectories apart is named by `id`" if len(table.labels) == 1 else ""
            raise Mistake(
                f"trajectory {label}: expected increasing times, got {times[back[0]]:g} and then "
                f"{times[back[0] + 1]:g}{hint}"
            )
        if np.isinf(values).any() or np.isinf(times).any():
            raise Mistake(f"trajectory {label}: expected finite values, got an infinite one")
        found.append(count)
    return found


def _observed(table: Table) -> Observed:
    """The checked content, with masks."""
    names, labels, ts, ys = table
    mask = ~np.isnan(ys)
    for n, (label, times, count) in enumerate(zip(labels, ts, counts(table), strict=True)):
        if not mask[n, 0].all():
            missing = ", ".join(name for name, there in zip(names, mask[n, 0], strict=True) if not there)
            raise Mistake(f"trajectory {label}: expected all values at its first time, {missing} is missing")
        mask[n, count:] = False
        times[count:] = times[count - 1]
    shared = (ts == ts[0]).all()
    times = torch.from_numpy(ts[0] if shared else ts)
    return Observed(times, torch.from_numpy(np.where(mask, ys, 0)).float(), torch.from_numpy(mask))


def read_csv(path: Path, t: str, y: Sequence[str] | None, id: str | None) -> Table:
    """The content of a table."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        mark = _separator(file.readline())
        file.seek(0)
        table = csv.reader(file, delimiter=mark)
        header = [name.strip() for name in next(table, [])]
        rows = [(table.line_num, row) for row in table if any(cell.strip() for cell in row)]
    names = [name for name in header if name not in (t, id)] if y is None else list(y)
    wanted = [("t", t), *(("y", name) for name in names), *([] if id is None else [("id", id)])]
    if absent := [(argument, name) for argument, name in wanted if name not in header]:
        argument, name = absent[0]
        there = f"it has {', '.join(header)}" if header else "the file is empty"
        raise Mistake(f"no column {name!r}; {there}", argument if header else "path")
    if not names or not rows:
        raise Mistake("expected at least one component and one row")
    groups: dict[str | int, list[list[float]]] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise Mistake(f"row {line}: expected {len(header)} cells, got {len(row)}")
        cells = dict(zip(header, row, strict=True))
        values = [_number(cells[name], name, line) for name in (t, *names)]
        if np.isnan(values[0]):
            raise Mistake(f"row {line}, column {t!r}: expected a time, got {cells[t]!r}")
        groups.setdefault(0 if id is None else cells[id].strip(), []).append(values)
    padded = np.full((len(groups), max(map(len, groups.values())), 1 + len(names)), np.nan)
    for n, group in enumerate(groups.values()):
        padded[n, : len(group)] = group
    return Table(tuple(names), list(groups), padded[..., 0], padded[..., 1:])


def _separator(header: str) -> str:
    """The mark that makes the most columns of a header."""
    return max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _number(cell: str, column: str, line: int) -> float:
    try:
        return float(cell) if cell.strip() else np.nan
    except ValueError:
        raise Mistake(f"row {line}, column {column!r}: expected a number, got {cell!r}") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    with h5py.File(path) as file:
        return {name: value[...] for name, value in file.items() if isinstance(value, h5py.Dataset)}


def tabulated(arrays: dict[str, np.ndarray], t: str, y: Sequence[str] | None) -> Table:
    """The content of arrays."""
    names = [name for name in arrays if name != t] if y is None else list(y)
    if absent := [pair for pair in [("t", t), *(("y", name) for name in names)] if pair[1] not in arrays]:
        argument, name = absent[0]
        raise Mistake(f"no array {name!r}; it has {', '.join(arrays)}", argument)
    if not names:
        raise Mistake(f"expected an array beside {t!r}")
    parts = []
    for name in names:
        part = _numbers(arrays[name], name)
        if part.ndim != 2 and (part.ndim != 3 or len(names) > 1):
            raise Mistake(f"array {name!r}: expected shape (n, t), or (n, t, c) as the only one, got {part.shape}")
        parts.append(part if part.ndim == 3 else part[..., None])
        if part.shape[:2] != parts[0].shape[:2]:
            raise Mistake(f"array {name!r}: expected {parts[0].shape[:2]} as {names[0]!r} has, got {part.shape[:2]}")
    ys = np.concatenate(parts, -1)
    ts = _numbers(arrays[t], t)
    if ts.shape not in (ys.shape[:2], ys.shape[1:2]):
        raise Mistake(f"array {t!r}: expected shape {ys.shape[1:2]} or {ys.shape[:2]}, got {ts.shape}")
    if len(names) == 1 and ys.shape[-1] > 1:
        names = [f"{names[0]}{i}" for i in range(ys.shape[-1])]
    return Table(tuple(names), range(len(ys)), np.broadcast_to(ts, ys.shape[:2]).copy(), ys)


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise Mistake(f"array {name!r}: expected real numbers, got {array.dtype}")
    return array.astype(float)
