"""Symplectic methods of separable systems: their energy does not drift, they keep volume and are reversible.

All are compositions of velocity Verlet steps (Yoshida, 1990, doi:10.1016/0375-9601(90)90092-3).
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sciml.solvers.dense import hermite, hermite_curve
from sciml.solvers.stepper import Field, Interval, Step, Stepper
from sciml.solvers.term import Separable
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


class Composition(Stepper):
    """Velocity Verlet steps of sizes w_i h, with weights w_i that read the same from both ends."""

    dense: ClassVar[bool] = True
    reversible: ClassVar[bool] = True
    lean: ClassVar[bool] = False
    needs: ClassVar[type] = Separable

    weights: ClassVar[tuple[float, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read from the weights what the solver wants to know."""
        super().__init_subclass__(**kwargs)
        cls.evaluations = len(cls.weights)

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes of the middle and the end of every part (2 s)."""
        ends = list(accumulate(self.weights))
        nodes = [node for end, w in zip(ends, self.weights, strict=True) for node in (end - w / 2, end)]
        return (torch.tensor([*nodes[:-1], 1.0], dtype=torch.float64, device=t0.device),)

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """Velocity and force at (t, y)."""
        if y.ndim == 0 or y.shape[-1] % 2:
            raise ValueError(f"y0: expected positions and momenta as halves of the last axis, got {tuple(y.shape)}")
        return (field.checked(t, y),)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step: half a kick, a drift and half a kick for every part."""
        term, args, h = field.term, field.args, interval.scale
        times = field.clocks(interval, field.constants[0], y)
        (q, p), force = y.chunk(2, -1), carry[0].chunk(2, -1)[1]
        for w, middle, end in zip(self.weights, times[::2], times[1::2], strict=True):
            p = p + h * (0.5 * w * force)
            q = q + h * (w * term.velocity(middle, p, args))
            force = term.force(end, q, args)
            p = p + h * (0.5 * w * force)
        slope = torch.cat([term.velocity(times[-1], p, args), force], -1)
        return Step(torch.cat([q, p], -1), None, (carry[0], slope), (slope,))

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The cubic Hermite interpolant at fractions s (l, k)."""
        k0, k1 = segment.stages
        return hermite(segment, s, k0, k1, segment.interval.scale)

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the cubic Hermite interpolant."""
        k0, k1 = segment.stages
        return hermite_curve(segment, k0, k1)


@dataclass(frozen=True)
class VelocityVerlet(Composition):
    """Velocity Verlet (Stoermer, leapfrog), order 2: one force per step.

    Reference:
        L. Verlet, Computer "experiments" on classical fluids (1967), doi:10.1103/PhysRev.159.98; W. C. Swope et al.
        (1982), doi:10.1063/1.442716.
    """

    order: ClassVar[int] = 2
    weights: ClassVar[tuple[float, ...]] = (1.0,)


_OUTER = 1 / (2 - 2 ** (1 / 3))


@dataclass(frozen=True)
class Yoshida4(Composition):
    """Yoshida's composition of three Verlet steps, order 4: three forces per step, the one in the middle backward."""

    order: ClassVar[int] = 4
    weights: ClassVar[tuple[float, ...]] = (_OUTER, 1 - 2 * _OUTER, _OUTER)
