"""Steppers with a second state, which one evaluation kicks twice: at the end of a step and at the start of the next."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from sciml.solvers.stepper import Field, Interval, Stepper


class Kicked(Stepper):
    """A reversible stepper of a state y and a second one z, which starts as y.

    With the kicks k0 at z0 and k1 at z1 a step is z1 = 2 y0 - z0 + k0 and y1 = y0 + (k0 + k1) / 2. Its carry is what is
    known at z, and z itself.
    """

    @abstractmethod
    def known(self, field: Field, t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """What is evaluated at z, once for both kicks there; t as made by `Field.clock`."""

    @abstractmethod
    def kick(
        self, field: Field, interval: Interval, dx: Any, t: Tensor, z: Tensor, known: tuple[Tensor, ...]
    ) -> Tensor:
        """The increment over a step that ends or starts at t."""
