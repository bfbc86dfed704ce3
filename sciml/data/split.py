"""Samples in memory in three parts: to train, to validate and to test on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning
from torch.utils.data import Dataset, TensorDataset

from sciml.data.loader import Loader
from sciml.data.seeding import run_seed


def check_sizes(train: int, val: int, test: int) -> None:
    """Refuse numbers of samples of which there is nothing to train on."""
    for name, count, least in (("train", train, 1), ("val", val, 0), ("test", test, 0)):
        if count < least:
            raise ValueError(f"{name}: expected at least {least} samples, got {count}")


class New(NamedTuple):
    """Samples to predict for."""

    dataset: Dataset[Any]  # to be indexed by lists of samples
    labels: Sequence[str | int] | None = None  # what their file calls them


class SplitData(lightning.LightningDataModule, ABC):
    """Loaders over the parts that a derived class defines.

    Args:
        batch_size: samples per training step.
        workers: processes that fetch batches; 0 is fastest for data in memory.
    """

    def __init__(self, batch_size: int, workers: int = 0):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if workers < 0:
            raise ValueError(f"workers: expected 0 or more processes, got {workers}")
        self.batch_size, self.workers = batch_size, workers

    def setup(self, stage: str) -> None:
        """Refuse to work where a class of one's own has left out the constructor of its base."""
        if not hasattr(self, "batch_size"):
            raise TypeError(f"data: expected {type(self).__name__}.__init__ to call super().__init__(...); it does not")

    @abstractmethod
    def part(self, name: str) -> Any:
        """The tensors of `"train"`, `"val"` or `"test"`, samples on the first axis."""

    def dataset(self, name: str) -> Dataset[Any]:
        """A part, to be indexed by lists of samples."""
        return TensorDataset(*self.part(name))

    def train_dataloader(self) -> Loader:
        """Shuffled batches of the training part; in order where the trainer is to overfit the first ones."""
        return self._loader("train", shuffle=not getattr(self.trainer, "overfit_batches", 0))

    def val_dataloader(self) -> Loader:
        """The validation part in order."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """The test part in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """The test part in order."""
        return self._loader("test")

    def _loader(self, name: str, shuffle: bool = False) -> Loader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Loader(
            self.dataset(name),
            self.batch_size,
            shuffle=shuffle,
            seed=run_seed(),
            workers=self.workers,
            rank=rank,
            world_size=world_size,
        )
