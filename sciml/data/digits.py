"""The handwritten digits that come with scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from sciml.data.split import SplitData


class Digits(SplitData):
    """1797 images (1, 8, 8) of handwritten digits, scaled to [0, 1], and their labels (Alpaydin and Kaynak 1998).

    Every part has the same share of each digit.

    Args:
        test: share of the images to test on.
        val: share of the images to validate on.
        batch_size: samples per training step.
        split_seed: seed of the split, apart from the seed of the training.
        workers: processes that fetch batches.

    Reference:
        E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI repository, doi:10.24432/C50P49.
    """

    classes = tuple("0123456789")

    def __init__(
        self, test: float = 0.2, val: float = 0.1, batch_size: int = 64, split_seed: int = 0, workers: int = 0
    ):
        super().__init__(batch_size, workers)
        if not (test > 0 and val > 0 and test + val < 1):
            raise ValueError(f"test, val: expected positive shares with a sum below 1, got {test} and {val}")
        self.test, self.val, self.split_seed = test, val, split_seed
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Load and split, once."""
        if self._parts:
            return
        pixels, labels = map(np.asarray, load_digits(return_X_y=True))  # (n, 64) from 0 to 16
        images = pixels.astype("float32").reshape(-1, 1, 8, 8) / 16
        share = self.val / (1 - self.test)
        rest, tests, rest_labels, test_labels = train_test_split(
            images, labels, test_size=self.test, stratify=labels, random_state=self.split_seed
        )
        train, val, train_labels, val_labels = train_test_split(
            rest, rest_labels, test_size=share, stratify=rest_labels, random_state=self.split_seed
        )
        pairs = {"train": (train, train_labels), "val": (val, val_labels), "test": (tests, test_labels)}
        self._parts = {name: (torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in pairs.items()}

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Images (n, 1, 8, 8) and labels (n) of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]
