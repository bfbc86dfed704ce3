"""A loader whose order is a function of (seed, epoch) and whose position can be saved."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from sciml.data.seeding import generator


class Loader:
    """Batches of a data set, in an order that is a function of (seed, epoch).

    Lightning recognises the pair `state_dict`, `load_state_dict` and stores the position with a checkpoint; it needs no
    generator's state, and batches that workers have fetched ahead are not counted.

    Args:
        dataset: takes a list of indices and returns their batch, as `torch.utils.data.TensorDataset` does.
        batch_size: samples of a batch; the last one of an epoch may be smaller.
        shuffle: draw a new order in each epoch.
        seed: the seed of these orders.
        workers: processes that fetch batches; 0 fetches in this one, which is fastest for data in memory.
        rank: which part of each epoch this process takes, of `world_size` parts.
        world_size: number of parts. When shuffling, up to `world_size - 1` samples are left out of an epoch to make the
            parts equally long.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.arange(5))
        >>> [len(x) for (x,) in Loader(data, batch_size=2, shuffle=True)]
        [2, 2, 1]
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.batch = 0  # of the batch that comes next
        self._first = 0  # batch that the next iteration starts with

    batch_sampler = None  # Lightning asks what has a sampler for it

    @property
    def sampler(self) -> Self | SequentialSampler:
        """Where Lightning looks for `set_epoch`, and whether this shuffles."""
        return self if self.shuffle else SequentialSampler(self.dataset)  # pyrefly: ignore[bad-argument-type]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless a loaded position is in it."""
        if epoch != self.epoch:
            self.load_state_dict({"epoch": epoch, "batch": 0})

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position, for one iteration."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._first = self.batch

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        return -(-len(self._samples(range(len(self.dataset)))) // self.batch_size)  # pyrefly: ignore[bad-argument-type]

    def __iter__(self) -> Iterator[Any]:
        """The batches of the epoch, all or from a loaded position on.

        A generator, so that it starts with the first batch asked for: Lightning makes the iterator before it sets the
        epoch.
        """
        batches = self._batches()
        self.batch, self._first = self._first, 0
        loader = DataLoader(
            self.dataset,
            batch_size=None,  # one "sample" is the list of a batch's indices: a single look-up per batch
            sampler=batches[self.batch :],
            num_workers=self.workers,
            worker_init_fn=_reset_signals,
            generator=generator(self.seed, "workers", self.epoch),  # else it draws from the global one
        )
        for content in loader:
            self.batch += 1
            if self.batch == len(batches):
                self.epoch, self.batch = self.epoch + 1, 0
            yield content

    def _batches(self) -> list[list[int]]:
        """The indices of each batch of the present epoch."""
        count = len(self.dataset)  # pyrefly: ignore[bad-argument-type]
        order = range(count)
        if self.shuffle:
            order = torch.randperm(count, generator=generator(self.seed, "shuffle", self.epoch)).tolist()
        order = self._samples(order)
        return [list(order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]

    def _samples(self, order: Sequence[int]) -> Sequence[int]:
        """The part of an epoch that this process takes."""
        end = len(order) - len(order) % self.world_size if self.shuffle else len(order)
        return order[self.rank : end : self.world_size]


def _reset_signals(worker: int) -> None:
    """Let the training process decide what an interrupt from the terminal means: it is sent to the workers as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
