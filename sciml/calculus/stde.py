"""The stochastic Taylor derivative estimator: sums of derivatives over coordinates from a few of their terms.

Sparse samples draw the coordinates of single terms, dense ones directions whose moments pick the terms (Shi, Hu, Lin
and Kawaguchi, NeurIPS 2024, arXiv 2412.00088, sections 4.2 and 4.3). Both are unbiased. A residual that is squared in a
loss needs two independent draws, whose product is unbiased; estimates that are multiplied within an expression are
given samples of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.calculus.derivative import VALUE, Derivative
from sciml.calculus.evaluate import checked, moved
from sciml.calculus.expression import Expression
from sciml.calculus.jet import jet
from sciml.calculus.probes import Law, probes

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimator(ABC):
    """How sums over coordinates are sampled.

    Args:
        samples: terms or directions per point, R.
        shared: whether all points take the same ones: cheaper in the first layer, but the gradient of a loss over
            100 points is some five times noisier.
    """

    samples: int = 16
    shared: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no number of samples."""
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"samples: expected a whole number, 1 or more, got {self.samples!r}")

    def draw(self, expression: Expression, x: Tensor, generator: torch.Generator | None = None) -> "Draw":
        """Samples for every sum over coordinates in an expression.

        Args:
            expression: what is to be estimated.
            x: points (b, d); where no operator has vectors that depend on them, only their shape, dtype and device are
                read.
            generator: of the random numbers.

        Raises:
            ValueError: if the expression is not a polynomial in what is estimated, or if it holds what this cannot
                estimate.
        """
        whole, _ = expression.grouped(0)
        wanted = dict.fromkeys((w.derivative, w.group) for w in whole.unknowns() if w.derivative.orders)
        return Draw(self, {each: self.sample(each[0], each[0].chart(x)[1], generator) for each in wanted})

    @abstractmethod
    def sample(self, derivative: Derivative, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples for one sum: (R, ...) shared by all points or (R, b, ...)."""

    @abstractmethod
    def estimate(
        self, u: Function, x: Tensor, derivative: Derivative, sample: Tensor, apart: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The value of u and the estimate of a sum of its derivatives; apart, the estimate (R, ...) of each sample."""

    def left_out(self, derivative: Derivative, x: Tensor) -> float:
        """The share of a sum's terms that is not among the samples: what is there has no variance."""
        return 1.0


class Draw(NamedTuple):
    """Samples for the sums of an expression. To be drawn anew at each step, outside of compiled code."""

    estimator: Estimator
    samples: dict[tuple[Derivative, int], Tensor]  # by derivative and group
    apart: bool = False  # whether the estimates of the samples are kept apart

    def random(self, x: Tensor) -> bool:
        """Whether it leaves out terms of any sum at points (b, d)."""
        return any(self._left_out(derivative, x) for derivative, _ in self.samples)

    def _left_out(self, derivative: Derivative, x: Tensor) -> float:
        return self.estimator.left_out(derivative, derivative.chart(x)[1])

    def estimate(self, u: Function, x: Tensor, derivative: Derivative, group: int) -> dict[Any, Tensor]:
        """The value of u by `VALUE`, and an estimate by (derivative, group), where kept apart (R, ...).

        Raises:
            ValueError: if there are no samples for it.
        """
        if (derivative, group) not in self.samples:
            raise ValueError(f"draw: it has no samples for {derivative!r}, group {group}; draw for this expression")
        place, y = derivative.chart(x)
        sample = self.samples[derivative, group]
        value, found = self.estimator.estimate(lambda y: u(place(y)), y, derivative, sample, self.apart)
        return {VALUE: value, (derivative, group): found}

    def shifted(self, found: dict[Any, Tensor], x: Tensor) -> dict[Any, Tensor]:
        """Rows (1 + n, ...) of sums whose squared differences from the first row add up to the estimates' variance.

        The first has the means; each of the others moves one sum by what one of its samples contributes.

        Args:
            found: estimates (R, ...) of each sample, by (derivative, group).
            x: points (b, d).

        Raises:
            ValueError: if a sum has only one of several samples.
        """
        means, moves = {}, {}
        for key, each in found.items():
            count, left_out = len(each), self._left_out(key[0], x)
            if left_out and count < 2:
                raise ValueError(f"samples: expected 2 or more for a standard error, got {count}")
            means[key] = each.mean(0, keepdim=True)
            moves[key] = (each - means[key]) * (left_out / (count * (count - 1))) ** 0.5 if left_out else each[:0]
        return {
            key: torch.cat([mean, *(mean + move * (other == key) for other, move in moves.items())])
            for key, mean in means.items()
        }


@dataclass(frozen=True)
class Sparse(Estimator):
    """Terms drawn uniformly without replacement: any order, any mixed derivative (section 4.2).

    Where there are no more terms than samples, all of them are taken, and nothing is random.
    """

    def sample(self, derivative: Derivative, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Numbers of terms (R) or (R, b)."""
        count = _count(derivative, x)
        if count > 2**53:
            raise ValueError(f"{derivative!r}: its {count:.1e} terms cannot be numbered; expected at most 2^53")
        shape = () if self.shared else x.shape[:1]
        return subset(count, min(self.samples, count), shape, x.device, generator)

    def left_out(self, derivative: Derivative, x: Tensor) -> float:
        """See `Estimator.left_out`."""
        return max(0.0, 1 - self.samples / _count(derivative, x))

    def estimate(
        self, u: Function, x: Tensor, derivative: Derivative, sample: Tensor, apart: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `Estimator.estimate`."""
        start, width, columns = derivative.over[0], _width(derivative, x), []
        for _ in derivative.orders:
            columns.append(start + sample % width)
            sample = sample // width
        out = moved(u, x, derivative.coordinates, derivative.orders, columns, collapsed=not apart)
        weight = _count(derivative, x) / (1 if apart else len(sample))
        return out.primal, weight * out.derivative(derivative.index)


@dataclass(frozen=True)
class Dense(Estimator):
    """Random directions v: the Laplacian as E D^2 u[v, v], the biharmonic as E D^4 u[v, v, v, v] / 3 (section 4.3).

    A `Trace` with sigma is estimated along sigma v.

    Args:
        samples: as of `Estimator`.
        shared: as of `Estimator`.
        law: ``"rademacher"`` has the lower variance, but second derivatives only; the biharmonic takes ``"gaussian"``.
    """

    law: Law = "rademacher"

    def sample(self, derivative: Derivative, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Directions (R, d) or (R, b, d), zero along coordinates that are not summed over."""
        if derivative.orders not in ((2,), (2, 2)) or derivative.fixed:
            raise ValueError(f"{derivative!r}: dense samples estimate Laplacians and biharmonics; expected Sparse(..)")
        if derivative.orders == (2, 2) and self.law != "gaussian":
            raise ValueError(f"law: expected 'gaussian' for a biharmonic, got {self.law!r}")
        shape = (self.samples, *(() if self.shared else x.shape[:1]), x.shape[1])
        v = probes(shape, x, self.law, generator)
        start, width = derivative.over[0], _width(derivative, x)
        v[..., :start] = 0
        v[..., start + width :] = 0
        return v

    def estimate(
        self, u: Function, x: Tensor, derivative: Derivative, sample: Tensor, apart: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `Estimator.estimate`."""
        order = sum(derivative.orders)
        out = checked(jet(u, x, sample, order, collapsed=not apart), order)
        return out.primal, out.derivative(order) / ((1 if apart else len(sample)) * (3 if order == 4 else 1))


def _width(derivative: Derivative, x: Tensor) -> int:
    """How many coordinates are summed over."""
    start, stop = derivative.over
    return (x.shape[1] if stop is None else stop) - start


def _count(derivative: Derivative, x: Tensor) -> int:
    """How many terms the sum has."""
    return _width(derivative, x) ** len(derivative.orders)


def subset(
    n: int, k: int, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform subsets of k of the numbers below n, each without repetition: (k, *shape).

    Floyd's algorithm (Bentley and Floyd 1987, A sample of brilliance, doi:10.1145/30401.315746): the j-th pick is
    uniform below n - k + j + 1, and that number itself where the pick was there before. No step depends on n.
    """
    tops = torch.arange(n - k + 1, n + 1, device=device).reshape(k, *(1,) * len(shape))
    uniform = torch.rand(k, *shape, generator=generator, device=device, dtype=torch.float64)
    picks = (uniform * tops).long().clamp_max(tops - 1)
    for j in range(1, k):
        there = (picks[:j] == picks[j]).any(0)
        picks[j] = torch.where(there, tops[j] - 1, picks[j])
    return picks
