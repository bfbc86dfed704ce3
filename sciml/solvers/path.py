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

    @property
    def finest(self) -> float:
        """The shortest step that it knows under a controller of step sizes, as a fraction of the span."""
        return 0.0

    def end(self, theta: Number, size: Number, xp: "Arithmetic") -> Number:
        """Where a step from theta (l) of about this size may end, as a controller of step sizes proposes it."""
        return theta + size

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
