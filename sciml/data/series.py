"""Series of observations at irregular times, some of them missing, and the class that each belongs to."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciml.data.seeding import generator
from sciml.data.split import SplitData, check_sizes
from sciml.data.trajectories import Mistake, Table, counts, read_arrays, read_csv, readable, tabulated
from sciml.errors import DataError


class LabelledSeries(SplitData):
    """Series in memory (n, t, 1 + c), times before values, NaN where missing, and their classes (n).

    Attributes:
        names: of the c components.
    """

    names: tuple[str, ...]

    def __init__(self, batch_size: int, workers: int = 0):
        super().__init__(batch_size, workers)
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The parts `"train"`, `"val"` and `"test"`."""

    def setup(self, stage: str) -> None:
        """Read, once."""
        super().setup(stage)
        self._parts = self._parts or self.read()

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Series and classes of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]


class Spirals(LabelledSeries):
    """Noisy spirals in the plane, clockwise (class 0) or not (1), seen at random times, each value by chance.

    From a random angle on they turn by half to one and a half circles while their radius falls from 1 to 1/e. What is
    seen is the place with normal noise, at times that are uniform in [0, 1]. Every part is drawn by itself, as a
    function of the seed and its name.

    Args:
        train: series to train on.
        val: series to validate on.
        test: series to test on.
        points: times of each.
        missing: share of the values that are not seen.
        noise: standard deviation of the noise.
        batch_size: series per training step.
        data_seed: seed of the series, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        ValueError: if there is nothing to train on, or a number is out of range.
    """

    names = ("x", "y")

    def __init__(
        self,
        train: int = 1000,
        val: int = 500,
        test: int = 2000,
        points: int = 25,
        missing: float = 0.5,
        noise: float = 0.3,
        batch_size: int = 100,
        data_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, workers)
        check_sizes(train, val, test)
        if points < 2:
            raise ValueError(f"points: expected at least 2 times, got {points}")
        if not (0 <= missing < 1 and noise >= 0):
            raise ValueError(f"missing, noise: expected a share below 1 and a deviation, got {missing} and {noise}")
        self.sizes = {"train": train, "val": val, "test": test}
        self.points, self.missing, self.noise, self.data_seed = points, missing, noise, data_seed

    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        """All of them are drawn."""
        return {name: self._drawn(name, count) for name, count in self.sizes.items()}

    def _drawn(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        draw, shape = generator(self.data_seed, f"spirals {name}"), (count, self.points)
        ts = torch.rand(shape, generator=draw).sort(1).values
        labels = torch.randint(2, (count,), generator=draw)
        start, circles = torch.rand(2, count, 1, generator=draw)
        turned = 2 * torch.pi * (start + (2 * labels[:, None] - 1) * (0.5 + circles) * ts)
        places = torch.exp(-ts)[..., None] * torch.stack([turned.cos(), turned.sin()], -1)
        seen = torch.rand(places.shape, generator=draw) >= self.missing
        noisy = places + self.noise * torch.randn(places.shape, generator=draw)
        return torch.cat([ts[..., None], noisy.where(seen, torch.nan)], -1), labels


class Series(LabelledSeries):
    """Your own series and their classes, from a file.

    ``.csv``: a row for each time; columns, set apart by commas, semicolons or tabs, for a number or name of the series,
    the time, the components, and the class, the same in all rows of a series. ``.npz``, ``.h5``: an array of times (t)
    or (n, t), for each component an array (n, t), or one array (n, t, c) for all, and an array of classes (n). An empty
    cell or NaN is a missing value; a NaN at the end of the times fills up a shorter series. Classes are whole numbers
    from 0 on. Every part has about the same share of each.

    Args:
        path: the file.
        t: name of the times.
        y: names of the components; None takes all other columns or arrays.
        label: name of the classes.
        id: name of the csv's column that says which series a row belongs to.
        val: share of the series to validate on.
        test: share of the series to test on.
        batch_size: series per training step.
        split_seed: seed of the split, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        ValueError: if the shares leave nothing to train on.
    """

    def __init__(
        self,
        path: str,
        t: str = "t",
        y: list[str] | None = None,
        label: str = "label",
        id: str | None = None,
        val: float = 0.1,
        test: float = 0.2,
        batch_size: int = 100,
        split_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, workers)
        if not (test > 0 and val > 0 and test + val < 1):
            raise ValueError(f"test, val: expected positive shares with a sum below 1, got {test} and {val}")
        self.path, self.t, self.y, self.label, self.id = Path(path), t, y, label, id
        self.val, self.test, self.split_seed = val, test, split_seed

    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A random split of each class; validation and test get at least one series each."""
        self.names, series, labels = read_series(self.path, self.t, self.y, self.label, self.id)
        rank = torch.empty(len(labels))  # of a series within its class, from 0 to 1
        for each in labels.unique():
            (places,) = torch.where(labels == each)
            order = torch.randperm(len(places), generator=generator(self.split_seed, "split", int(each)))
            rank[places[order]] = (torch.arange(len(places)) + 0.5) / len(places)
        count = len(labels)
        val, test = (max(1, round(share * count)) for share in (self.val, self.test))
        if val + test >= count:
            raise DataError(
                f"path: {self.path}: expected at least 3 series, to train, validate and test on, got {count}"
            )
        parts = rank.argsort(stable=True).split([test, val, count - test - val])
        return {name: (series[part], labels[part]) for name, part in zip(("test", "val", "train"), parts, strict=True)}


def read_series(
    path: Path, t: str = "t", y: Sequence[str] | None = None, label: str = "label", id: str | None = None
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """The names of the components, series (n, t, 1 + c) and classes (n) of a file as `Series` describes it.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is not as described; the message begins with the argument that is wrong.
    """
    with readable(path, id):
        table, labels = (_from_csv if path.suffix == ".csv" else _from_arrays)(path, t, y, label, id)
        counts(table)
        classes = np.nan_to_num(labels, nan=-1)
        if not ((classes >= 0) & (classes == np.round(classes))).all():
            raise Mistake("expected whole numbers from 0 on", "label")
        series = np.concatenate([table.ts[..., None], table.ys], -1)
        return table.names, torch.from_numpy(series).float(), torch.from_numpy(classes).long()


def _from_csv(path: Path, t: str, y: Sequence[str] | None, label: str, id: str | None) -> tuple[Table, np.ndarray]:
    if id is None:
        raise Mistake("expected the name of a column that tells series apart, got None", "id")
    table = read_csv(path, t, None if y is None else [*y, label], id)
    if label not in table.names:
        raise Mistake(f"no column {label!r}; it has {', '.join(table.names)}", "label")
    place = table.names.index(label)
    labels = table.ys[:, 0, place]
    for name, times, found in zip(table.labels, table.ts, table.ys[..., place], strict=True):
        if not (found[~np.isnan(times)] == found[0]).all():
            raise Mistake(f"series {name}: expected one class in all of its rows", "label")
    names = tuple(name for name in table.names if name != label)
    if not names:
        raise Mistake("expected at least one component beside time and class")
    return table._replace(names=names, ys=np.delete(table.ys, place, -1)), labels


def _from_arrays(path: Path, t: str, y: Sequence[str] | None, label: str, id: str | None) -> tuple[Table, np.ndarray]:
    arrays = read_arrays(path)
    if label not in arrays:
        raise Mistake(f"no array {label!r}; it has {', '.join(arrays)}", "label")
    labels = arrays.pop(label)
    table = tabulated(arrays, t, y)
    if labels.shape != (len(table.ys),) or labels.dtype.kind not in "biuf":
        raise Mistake(f"expected numbers ({len(table.ys)}), got {labels.dtype} {labels.shape}", "label")
    return table, labels.astype(float)
