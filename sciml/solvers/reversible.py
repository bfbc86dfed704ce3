"""Reversible methods of general terms: the step over the reversed interval undoes the step, to round-off."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sciml.solvers.dense import hermite, hermite_curve
from sciml.solvers.kicked import Kicked
from sciml.solvers.stepper import Field, Interval, Step
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


@dataclass(frozen=True)
class ReversibleHeun(Kicked):
    """The reversible Heun method, order 2, of one evaluation per step, with Euler's method as the embedded one.

    A second state z runs beside y: z1 = 2 y0 - z0 + h f(z0), y1 = y0 + h (f(z0) + f(z1)) / 2, where z starts as y.
    With ``Discrete("invert")`` its gradient is exact and needs no stored state. It is hardly stable: eigenvalues of the
    Jacobian should be imaginary and at most 1 / h, damped modes let y and z drift apart.

    Reference:
        P. Kidger, J. Foster, X. Li, T. Lyons, Efficient and accurate gradients for neural SDEs (2021),
        arXiv:2105.13493, algorithm 1.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 1
    adaptive: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    reversible: ClassVar[bool] = True
    history: ClassVar[bool] = True
    lean: ClassVar[bool] = False

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The node of the end of the step (1)."""
        return (torch.ones(1, dtype=torch.float64, device=t0.device),)

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The field at z, and z itself."""
        return field.checked(t, y), y.clone()

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; the field at its end belongs to the state, so that it is never left out."""
        (k0, z0), h = carry, interval.scale
        (t1,) = field.clocks(interval, field.constants[0], y)
        z1 = 2 * y - z0 + h * k0
        (k1,) = field.once(self.known, t1, z1)
        return Step(y + h * (0.5 * (k0 + k1)), h * (0.5 * (k1 - k0)), (k0, k1), (k1, z1))

    def known(self, field: Field, t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """The slope."""
        return (field(t, z),)

    def kick(
        self, field: Field, interval: Interval, dx: Any, t: Tensor, z: Tensor, known: tuple[Tensor, ...]
    ) -> Tensor:
        """The increment of the slope at z."""
        return interval.scale * known[0]

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The cubic Hermite interpolant at fractions s (l, k), with slopes at z."""
        k0, k1 = segment.stages
        return hermite(segment, s, k0, k1, segment.interval.scale)

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the cubic Hermite interpolant."""
        k0, k1 = segment.stages
        return hermite_curve(segment, k0, k1)
