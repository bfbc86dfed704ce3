"""Batches of collocation points, which the module that trains on them draws where it is."""

from typing import NamedTuple

import lightning
import torch
from torch.utils.data import Dataset

from sciml.data.loader import Loader
from sciml.data.seeding import derive_seed, run_seed


class Block(NamedTuple):
    """Which points to draw: they are a function of (seed, part, epoch, number, rank) alone."""

    part: str  # "train", "val" or "test"
    number: int  # in the epoch
    interior: int  # points of the domain
    boundary: int  # points of each part of the boundary

    def generator(self, epoch: int, device: torch.device, where: str = "domain", rank: int = 0) -> torch.Generator:
        """A generator on a device; training points are drawn anew in each epoch, others are always the same."""
        place = (epoch, self.number, rank) if self.part == "train" else (0, self.number)
        seed = derive_seed(run_seed(), f"collocation, {self.part}, {where}", *place)
        return torch.Generator(device).manual_seed(seed)


class Blocks(Dataset[Block]):
    """The blocks of one part."""

    def __init__(self, part: str, count: int, interior: int, boundary: int, hold: int = 1, points: int = 0):
        self.part, self.count, self.interior, self.boundary = part, count, interior, boundary
        self.hold, self.points = hold, points  # of all blocks together; 0: each is full

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def __getitem__(self, index: list[int]) -> Block:
        """The block of a batch of one."""
        interior = min(self.interior, self.points - index[0] * self.interior) if self.points else self.interior
        return Block(self.part, index[0] // self.hold, interior, self.boundary)


class Collocation(lightning.LightningDataModule):
    """Random points for physics-informed networks: how many, and how often new ones.

    Each training step draws points of its own, or every ``hold``-th one. Points to validate and to test on are the same
    in every epoch. With several processes each one draws other points.

    Args:
        points: in the domain, for a training step.
        boundary: on each part of the boundary that has a loss, for a training step.
        steps: of an epoch.
        val: points to validate on.
        test: points to test on.
        block: how many of those to evaluate at a time.
        hold: training steps in a row that take the same points; second-order methods want several.

    Raises:
        ValueError: if a number is less than 1.
    """

    def __init__(
        self,
        points: int = 100,
        boundary: int = 100,
        steps: int = 100,
        val: int = 2000,
        test: int = 20_000,
        block: int = 1000,
        hold: int = 1,
    ):
        super().__init__()
        self.points, self.boundary, self.steps, self.hold = points, boundary, steps, hold
        self.val, self.test, self.block = val, test, block
        for name in ("points", "boundary", "steps", "hold", "val", "test", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def blocks(self, part: str) -> Blocks:
        """Those of `"train"`, `"val"` or `"test"`."""
        if part == "train":
            return Blocks(part, self.steps, self.points, self.boundary, self.hold)
        count, size = {"val": self.val, "test": self.test}[part], self.block
        size = min(size, count)
        return Blocks(part, -(-count // size), size, min(self.boundary, size), points=count)

    def train_dataloader(self) -> Loader:
        """One block for each step."""
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        """Blocks to validate on."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Blocks to test on."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """Blocks to test on."""
        return self._loader("test")

    def _loader(self, part: str) -> Loader:
        """All blocks, in every process: training points differ by rank, others are to be the same."""
        return Loader(self.blocks(part), 1, seed=run_seed())
