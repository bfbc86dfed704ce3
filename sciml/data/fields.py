"""Pairs of fields for learning an operator: one field in, one out."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sciml.data.split import New, SplitData, check_sizes
from sciml.errors import DataError


class FieldData(SplitData):
    """Pairs of fields in memory, the first ones for training, the next for validation, the last for the test.

    A derived class says in `fields` where they come from, and may fill a cache in `prepare_data`, which runs in one
    process only. The split is by position, so that it is the same for every seed; where samples are made
    on demand, another `train` moves the others.

    Args:
        train: number of samples to train on.
        val: number of samples to validate on.
        test: number of samples to test on: the last ones.
        batch_size: samples per training step.
        workers: processes that fetch batches; 0 is fastest for data in memory.

    Attributes:
        inputs: `(n, c, *x)`, after `setup`.
        targets: `(n, c, *x)`, after `setup`.
    """

    inputs: Tensor
    targets: Tensor

    def __init__(self, train: int, val: int, test: int, batch_size: int = 32, workers: int = 0):
        super().__init__(batch_size, workers)
        check_sizes(train, val, test)
        self.sizes = {"train": train, "val": val, "test": test}

    @abstractmethod
    def fields(self) -> tuple[Tensor, Tensor]:
        """All inputs `(n, c, *x)` and targets `(n, c, *x)`."""

    def setup(self, stage: str) -> None:
        """Load the fields, once."""
        super().setup(stage)
        if hasattr(self, "inputs"):
            return
        inputs, targets = self.fields()
        _check_pairs(inputs, targets)
        if sum(self.sizes.values()) > len(inputs):
            raise ValueError(
                f"train + val + test: expected at most the {len(inputs)} samples there are, "
                f"got {' + '.join(map(str, self.sizes.values()))}"
            )
        self.inputs, self.targets = inputs, targets

    def new(self, path: Path) -> New:
        """All fields of a file: an array (n, c, *x) of inputs in `.npy`; in `.npz` and `.h5` one named `inputs`.

        One named `targets` is taken along where there is one. A derived class may read files of its own here.

        Raises:
            DataError: the file has no such fields.
        """
        arrays = _read(path)
        if "inputs" not in arrays:
            raise DataError(f"input: {path}: expected an array 'inputs', got {', '.join(arrays) or 'none'}")
        fields = {name: arrays[name] for name in ("inputs", "targets") if name in arrays}
        for name, array in fields.items():
            if array.dtype.kind not in "biuf":
                raise DataError(f"input: {path}: {name}: expected real numbers, got {array.dtype}")
        tensors = {name: torch.from_numpy(array).float() for name, array in fields.items()}
        try:
            _check_pairs(**tensors)
        except ValueError as error:
            raise DataError(f"input: {path}: {error}") from None
        return New(TensorDataset(*tensors.values()))

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """The inputs and targets of `"train"`, `"val"` or `"test"`."""
        train, val, test = self.sizes.values()
        count = len(self.inputs)
        chosen = {"train": slice(train), "val": slice(train, train + val), "test": slice(count - test, count)}[name]
        return self.inputs[chosen], self.targets[chosen]


class TensorFields(FieldData):
    """Fields that are there as tensors.

    Args:
        inputs: `(n, c, *x)`.
        targets: `(n, c, *x)`.
        train: number of samples to train on.
        val: number of samples to validate on.
        test: number of samples to test on: the last ones.
        batch_size: samples per training step.
        workers: processes that fetch batches.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, train: int, val: int, test: int, batch_size: int = 32, workers: int = 0
    ):
        super().__init__(train, val, test, batch_size, workers)
        self._fields = inputs, targets

    def fields(self) -> tuple[Tensor, Tensor]:
        """The tensors given."""
        return self._fields


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; that of an `.npy` is named `inputs`."""
    try:
        if path.suffix == ".npy":
            return {"inputs": np.load(path)}
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        if path.suffix in (".h5", ".hdf5"):
            with h5py.File(path) as file:
                return {name: value[...] for name, value in file.items() if isinstance(value, h5py.Dataset)}
    except (OSError, ValueError) as error:  # numpy's and h5py's word on bytes that are something else
        raise DataError(f"input: {path}: it cannot be read: {error}") from error
    raise DataError(f"input: expected a file that ends in .npy, .npz, .h5, .hdf5, got {str(path)!r}")


def _check_pairs(inputs: Tensor, targets: Tensor | None = None) -> None:
    """Refuse what is no fields, or no pairs of them."""
    _check("inputs", inputs)
    if targets is None:
        return
    _check("targets", targets)
    if len(targets) != len(inputs):
        raise ValueError(f"targets: expected as many samples as inputs, {len(inputs)}, got {len(targets)}")


def _check(name: str, fields: Any) -> None:
    """Refuse what is no finite fields."""
    if not isinstance(fields, Tensor):
        raise TypeError(
            f"{name}: expected a tensor (n, c, *x), got {type(fields).__name__}; torch.from_numpy makes one"
        )
    if fields.ndim < 2:
        raise ValueError(f"{name}: expected (n, c, *x), got {tuple(fields.shape)}; unsqueeze(1) adds a single channel")
    if not bool(fields.isfinite().all()):
        first = int((~fields.isfinite()).nonzero()[0, 0])
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinite ones in sample {first}")
