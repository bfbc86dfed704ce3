"""Paths: what drives a differential equation, dy = sum_k f_k(t, y) dx_k(t)."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from sciml.typing import Lanes, Number

if TYPE_CHECKING:
    from sciml.solvers.arithmetic import Arithmetic
    from sciml.solvers.control import Controller
    from sciml.solvers.stepper import Stepper


class Levy(NamedTuple):
    """What a path tells steppers of high order of a step of size h.

    Attributes:
        w: the increment, of variance h.
        h: the space-time Levy area H, of variance h / 12: the mean over the step of the path above its chord.
    """

    w: Tensor
    h: Tensor


class Path(ABC):
    """A driving signal as a pure function of its own tensors and the ends of a step. Time itself needs none.

    Its increment over a step is handed to the stepper; a stepper asks again for the same ends and gets the same value,
    whatever was tried and rejected between.
    """

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the path is a function of; differentiable inputs of a solve."""
        return ()

    def within(
        self, stepper: "Stepper", controller: "Controller", t0: Tensor, t1: Tensor, y0: Tensor, lanes: Lanes
    ) -> "Path":
        """The same path, told what it wants to know of the solve that it drives.

        Raises:
            ValueError: it does not fit.
        """
        return self

    def among(self, tensors: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors for some of the samples, by their numbers; a path that knows them has a method of its own."""
        raise TypeError(f"{type(self).__name__} knows all samples together only")

    def hosted(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As many tensors for compiled marches, where the path answers better than what can be compiled."""
        return tensors

    @property
    def finest(self) -> float:
        """The shortest step that it knows under a controller of step sizes, as a fraction of the span."""
        return 0.0

    def end(self, theta: Number, size: Number, xp: "Arithmetic") -> Number:
        """Where a step from theta (l) of about this size may end, as a controller of step sizes proposes it."""
        return theta + size

    def middle(self, theta0: Number, theta1: Number, xp: "Arithmetic") -> Number:
        """The place within a step (l) at which a stepper that halves it reads the path too."""
        return 0.5 * (theta0 + theta1)

    def admit(self, theta: Tensor) -> None:  # noqa: B027 - most paths can drive any steps
        """Refuse steps that it cannot drive.

        Args:
            theta: their ends (n + 1) or, of each lane, (n + 1, b), from 0 on; lanes of fewer steps repeat the last.

        Raises:
            ValueError: there are some.
        """

    def repeats(self, other: "Path | None") -> bool:
        """Whether it is made of the same random numbers as the path of an earlier span."""
        return False

    @abstractmethod
    def increment(self, tensors: tuple[Tensor, ...], theta0: Number, theta1: Number, span: Tensor) -> Any:
        """The increment over a step.

        Args:
            tensors: as returned by `tensors`.
            theta0: start of the step as a fraction of the span (l), float64; a plain number where joint lanes are
                marched on the host.
            theta1: its end, likewise.
            span: t1 - t0 (l).
        """


class DyadicPath(Path):
    """A path that adaptive steps read at nodes of a binary tree over the span.

    The end of a trial that is rejected is then the end of a later step, whatever is tried between, and so is its
    middle, or the middle of one: no part of the path that a decision was made of is passed over, which would change
    what the solution converges to.

    Attributes:
        cells: number of leaves of the tree, a power of two under controllers of step sizes.
        parts: how many the stepper cuts a step into, 1 or 2.

    Reference:
        J. Foster, A. Jelincic, On the convergence of adaptive approximations for stochastic differential equations
        (2023), arXiv:2311.14201.
    """

    cells: int | None = None
    parts: int = 1

    @property
    def finest(self) -> float:
        """A cell for each part."""
        return self.parts / (self.cells or 1)

    def end(self, theta: Number, size: Number, xp: "Arithmetic") -> Number:
        """The end of the longest node of at most this size, and at least `finest`, that starts at theta.

        From places that are no end of a cell, where a stop was, steps go to the next end of a node.
        """
        cells, least = self.cells or 1, self.finest
        size = xp.where(size < 1, size, 1.0)
        size = xp.where(size > least, size, least)
        mantissa, _ = xp.frexp(size)
        size = size / (2 * mantissa)  # a power of two, as all that follow
        place = theta * cells
        cell = xp.whole(place)
        longest = (cell & -cell) / cells
        size = xp.where((cell == place) & (cell > 0) & (longest < size), longest, size)
        return (xp.whole(theta / size) + 1) * size

    def middle(self, theta0: Number, theta1: Number, xp: "Arithmetic") -> Number:
        """Of the ends of nodes in the middle half of a step that of the longest node; theta1 where there is none.

        Of a node that is its middle. Steps from or to a stop have no node's end in the middle; this one is never passed
        over by the steps that follow where this one is rejected.
        """
        length = theta1 - theta0
        some = length > 0
        half = xp.where(some, 0.5 * length, 1.0)
        low, high = theta0 + 0.5 * half, theta1 - 0.5 * half
        mantissa, _ = xp.frexp(half)
        size = half / (2 * mantissa)  # one or two multiples of it lie there
        last = xp.whole(high / size)
        before = (last - 1) * size
        place = xp.where((last % 2 == 1) & (before >= low), before, last * size)
        return xp.where(some & (size * (self.cells or 1) >= 1), place, theta1)
