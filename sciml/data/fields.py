"""Pairs of fields for learning an operator: one field in, one out."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from sciml.data.split import SplitData, check_sizes


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
        if hasattr(self, "inputs"):
            return
        inputs, targets = self.fields()
        _check("inputs", inputs)
        _check("targets", targets)
        if not len(inputs) == len(targets) >= sum(self.sizes.values()):
            raise ValueError(
                f"train + val + test: expected at most the {min(len(inputs), len(targets))} samples there are, "
                f"got {' + '.join(map(str, self.sizes.values()))}"
            )
        self.inputs, self.targets = inputs, targets

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
