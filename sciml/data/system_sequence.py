"""Sequences of linear systems, as implicit steps in time make them."""

import torch
from torch.utils.data import Dataset

from sciml.data.loader import Loader
from sciml.data.split import SplitData
from sciml.problems.implicit_steps import Evolution
from sciml.problems.linear_systems import LinearSystem


class SystemSequence(SplitData):
    """The linear systems of implicit steps, one a training step and in their order.

    Later steps of the sequence are to validate on, and yet later ones to test on. Right-hand sides come from solutions
    by a sparse factorisation, so that a system does not depend on who solves the one before.

    Args:
        family: makes the sequence.
        train: systems to train on.
        val: systems to validate on.
        test: systems to test on.
        data_seed: seed of the sequence, apart from the seed of the training.

    Raises:
        ValueError: if there are no systems in a part.

    Example:
        >>> from sciml.problems import Diffusion, Heat
        >>> data = SystemSequence(Heat(Diffusion(cells=8)), train=5, val=1, test=2)
        >>> data.setup("fit")
        >>> [system.b.shape for system in data.part("test")]
        [(64,), (64,)]
    """

    def __init__(self, family: Evolution, train: int = 500, val: int = 20, test: int = 100, data_seed: int = 0):
        super().__init__(batch_size=1)
        self.family, self.data_seed = family, data_seed
        self.counts = {"train": train, "val": val, "test": test}
        for name, count in self.counts.items():
            if count < 1:
                raise ValueError(f"{name}: expected at least 1 system, got {count}")
        self._systems: list[LinearSystem] = []

    def setup(self, stage: str) -> None:
        """Take the steps, once."""
        if not self._systems:
            self._systems = list(self.family.steps(self.data_seed, sum(self.counts.values())))

    def part(self, name: str) -> list[LinearSystem]:
        """The systems of `"train"`, `"val"` or `"test"`."""
        train, val = self.counts["train"], self.counts["train"] + self.counts["val"]
        return self._systems[{"train": slice(train), "val": slice(train, val), "test": slice(val, None)}[name]]

    def dataset(self, name: str) -> Dataset[LinearSystem]:
        """A part, to be indexed by lists of one number."""
        return Systems(self.part(name))

    def train_dataloader(self) -> Loader:
        """The training part in order."""
        return self._loader("train")

    def transfer_batch_to_device(self, batch: LinearSystem, device: torch.device, dataloader_idx: int) -> LinearSystem:
        """Systems stay where they are."""
        return batch


class Systems(Dataset[LinearSystem]):
    """Linear systems."""

    def __init__(self, systems: list[LinearSystem]):
        self.systems = systems

    def __len__(self) -> int:
        """How many there are."""
        return len(self.systems)

    def __getitem__(self, index: list[int]) -> LinearSystem:
        """The system of a batch of one."""
        return self.systems[index[0]]
