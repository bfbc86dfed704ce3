"""Paths: what drives a differential equation, dy = sum_k f_k(t, y) dx_k(t)."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Path(ABC):
    """A driving signal as a pure function of its own tensors and the ends of a step. Time itself needs none.

    Its increment over a step is handed to the stepper; a stepper asks again for the same ends and gets the same value,
    whatever was tried and rejected between.
    """

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the path is a function of; differentiable inputs of a solve."""
        return ()

    @abstractmethod
    def increment(self, tensors: tuple[Tensor, ...], theta0: Tensor, theta1: Tensor, span: Tensor) -> Any:
        """The increment over a step.

        Args:
            tensors: as returned by `tensors`.
            theta0: start of the step as a fraction of the span (l), float64.
            theta1: its end (l).
            span: t1 - t0 (l).
        """
