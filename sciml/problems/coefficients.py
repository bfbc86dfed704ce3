"""Random coefficients of diffusion: positive functions on the unit cube, the same ones on every mesh."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy import ndarray

Places = ndarray | tuple[ndarray, ...]  # points (n, d), or d axes (m) of a grid

SAMPLED = {1: 1024, 2: 128, 3: 32}  # cells per edge of the grid on which a field's range is found, by dimension
CHUNK = 2**14  # points at a time


def generator(purpose: int, *seed: int) -> np.random.Generator:
    """Source of randomness of one purpose, for a seed of numbers that are not negative."""
    if min(seed) < 0:
        raise ValueError(f"seed: expected a number that is not negative, got {min(seed)}")
    return np.random.default_rng([purpose, *seed])


def cosines(x: ndarray, correlation: float) -> ndarray:
    """Functions (n, k) at x (n) in [0, 1] whose sum with normal weights is a random field.

    Its covariance is exp(-(x - y)^2 / 2 l^2) and that of the images of y in the walls. Waves beyond 6 / l are left out,
    which hold less than 1e-8 of the variance.
    """
    k = np.arange(math.ceil(6 / (math.pi * correlation)) + 1)
    variance = math.sqrt(2 * math.pi) * correlation * np.exp(-((math.pi * correlation * k) ** 2) / 2)
    return np.cos(np.pi * np.outer(x, k)) * np.sqrt(variance * np.where(k == 0, 1, 2))


@dataclass(frozen=True)
class GaussianField:
    """A Gaussian random field on the unit cube, reflected at its walls, of variance 1 far from them.

    Args:
        dimension: of the cube.
        correlation: l in the covariance exp(-r^2 / 2 l^2).
        seed: numbers that the field is a function of.
        turn: angle by which it has turned to another field of the same law: cos(turn) g_1 + sin(turn) g_2.
    """

    dimension: int
    correlation: float
    seed: tuple[int, ...]
    turn: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no length."""
        if not 0.005 <= self.correlation <= 10:
            raise ValueError(f"correlation: expected a length from .005 to 10 edges, got {self.correlation}")

    def at(self, places: Places) -> ndarray:
        """Values (n) at points (n, d), or (m, ...) on the grid of d axes (m)."""
        waves = cosines(np.zeros(1), self.correlation).shape[1]
        weights = generator(1, *self.seed).standard_normal((2,) + (waves,) * self.dimension)
        weights = math.cos(self.turn) * weights[0] + math.sin(self.turn) * weights[1]
        if isinstance(places, tuple):
            return reduce(lambda w, x: np.tensordot(w, cosines(x, self.correlation), (0, 1)), places, weights)
        chunks = np.split(places, range(CHUNK, len(places), CHUNK))
        return np.concatenate([self._sum(weights, chunk) for chunk in chunks])

    def _sum(self, weights: ndarray, points: ndarray) -> ndarray:
        first, *others = (cosines(x, self.correlation) for x in points.T)
        values = np.tensordot(first, weights, 1)
        for waves in others:
            values = np.einsum("nk,nk...->n...", waves, values)
        return values

    def sampled(self) -> ndarray:
        """Its values on a grid that depends on the dimension alone."""
        m = SAMPLED[self.dimension]
        return self.at(((np.arange(m) + 0.5) / m,) * self.dimension)


class Coefficient(ABC):
    """A positive function on the unit cube by seed."""

    @abstractmethod
    def values(self, places: Places, dimension: int, seed: int, turn: float = 0.0) -> ndarray:
        """The values at places.

        Args:
            places: points (n, d), or d axes (m) of a grid.
            dimension: d.
            seed: number of the function.
            turn: angle by which it has turned to another one, for coefficients that drift.

        Returns:
            (n), or (m, ...) on a grid; positive, float64.
        """


Range = float | tuple[float, float]


def drawn(purpose: int, seed: int, **ranges: Range) -> list[float]:
    """Each number itself, or one of its range, log-uniform by seed."""
    random = generator(purpose, seed)
    return [
        math.exp(random.uniform(math.log(value[0]), math.log(value[1]))) if isinstance(value, tuple) else value
        for value in ranges.values()
    ]


@dataclass(frozen=True)
class Lognormal(Coefficient):
    """a = contrast^g with a Gaussian field g of mean 0 that is scaled to the range 1, so that max a = contrast min a.

    Mean and range of g are those on a fixed grid of the unit square (128 x 128) or cube (32 x 32 x 32).

    Args:
        contrast: the ratio of the largest value to the least, or the least and the largest such ratio, between which
            every seed draws its own, log-uniform.
        correlation: length l of the field's covariance exp(-r^2 / 2 l^2), in edges of the cube, or a range of it.

    Example:
        >>> a = Lognormal(contrast=100.0).values(np.random.default_rng(0).random((5, 2)), dimension=2, seed=3)
        >>> a.shape, bool((a > 0).all())
        ((5,), True)
    """

    contrast: Range = 1e3
    correlation: Range = 0.08

    def __post_init__(self) -> None:
        """Refuse what is no contrast."""
        _check_contrast(self.contrast)

    def values(self, places: Places, dimension: int, seed: int, turn: float = 0.0) -> ndarray:
        """The values at places."""
        contrast, correlation = drawn(8, seed, contrast=self.contrast, correlation=self.correlation)
        field = GaussianField(dimension, correlation, (0, seed), turn)
        sampled = field.sampled()
        return contrast ** ((field.at(places) - sampled.mean()) / np.ptp(sampled))


@dataclass(frozen=True)
class TwoPhase(Coefficient):
    """a = contrast where a Gaussian field is large, 1 elsewhere.

    Args:
        contrast: the ratio of the two values, or the least and the largest such ratio, between which every seed draws
            its own, log-uniform.
        correlation: length l of the field's covariance exp(-r^2 / 2 l^2), in edges of the cube, or a range of it.
        share: of the cube where a = contrast, on a fixed grid of 128 x 128 or 32 x 32 x 32 cells.

    Example:
        >>> a = TwoPhase(contrast=100.0, share=0.3).values((np.linspace(0, 1, 50),) * 2, dimension=2, seed=0)
        >>> np.unique(a).tolist(), round(float((a > 1).mean()), 1)
        ([1.0, 100.0], 0.3)
    """

    contrast: Range = 1e3
    correlation: Range = 0.06
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no contrast or share."""
        _check_contrast(self.contrast)
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a number between 0 and 1, got {self.share}")

    def values(self, places: Places, dimension: int, seed: int, turn: float = 0.0) -> ndarray:
        """The values at places."""
        contrast, correlation = drawn(8, seed, contrast=self.contrast, correlation=self.correlation)
        field = GaussianField(dimension, correlation, (0, seed), turn)
        bound = np.quantile(field.sampled(), 1 - self.share)
        return np.where(field.at(places) > bound, contrast, 1.0)


def _check_contrast(contrast: Range) -> None:
    values = contrast if isinstance(contrast, tuple) else (contrast,)
    if not all(0 < value < math.inf for value in values) or list(values) != sorted(values):
        raise ValueError(f"contrast: expected a positive number, or a least and a largest one, got {contrast}")
