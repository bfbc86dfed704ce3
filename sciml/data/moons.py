"""Two interleaved half circles with noise: points of a density in the plane."""

import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor

from sciml.data.seeding import derive_seed
from sciml.data.split import SplitData


class Moons(SplitData):
    """Points (2) of two interleaved half circles of radius 1 with normal noise, as scikit-learn's `make_moons`.

    Every part is drawn by itself, as a function of the seed and its name.

    Args:
        train: points to train on.
        val: points to validate on.
        test: points to test on.
        noise: standard deviation of the noise.
        batch_size: points per training step.
        data_seed: seed of the points, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        ValueError: if there are no points in a part, or if the noise is negative.
    """

    names = ("x", "y")

    def __init__(
        self,
        train: int = 10_000,
        val: int = 2000,
        test: int = 10_000,
        noise: float = 0.1,
        batch_size: int = 256,
        data_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, workers)
        for name, count in (("train", train), ("val", val), ("test", test)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1 point, got {count}")
        if noise < 0:
            raise ValueError(f"noise: expected a deviation of 0 or more, got {noise}")
        self.counts = {"train": train, "val": val, "test": test}
        self.noise, self.data_seed = noise, data_seed
        self._parts: dict[str, tuple[Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Draw the points, once."""
        if self._parts:
            return
        for name, count in self.counts.items():
            seed = derive_seed(self.data_seed, f"moons {name}") % 2**32  # numpy takes no larger ones
            points, _ = make_moons(count, noise=self.noise, random_state=seed)
            self._parts[name] = (torch.from_numpy(np.asarray(points, dtype=np.float32)),)

    def part(self, name: str) -> tuple[Tensor]:
        """Points (n, 2) of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]
