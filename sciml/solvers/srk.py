"""Roessler's stochastic Runge-Kutta methods of strong order 3/2, as torchsde's ``srk`` puts them together."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sciml.solvers.diffusion import along, column
from sciml.solvers.path import Levy
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic import Unjudged, with_root
from sciml.solvers.stochastic_runge_kutta import SRA1
from sciml.typing import Calculus, NoiseType


@dataclass(frozen=True)
class SRK(Unjudged):
    """Runge-Kutta methods of strong order 3/2 for Ito equations: SRI2W1, and SRA1 for additive noise.

    They read the space-time Levy area beside the increment. SRI2W1 evaluates the drift three times and the diffusion
    four times per step, SRA1 both twice; without noise their orders are 3 and 2.

    Reference:
        A. Roessler, Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations
        (2010), doi:10.1137/09076636X.
    """

    strong: ClassVar[float] = 1.5
    levy: ClassVar[bool] = True
    evaluations: ClassVar[int] = 3
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar")

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Those of SRA1."""
        return SRA1().constants(t0, y)

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Any) -> Tensor:
        """The state at the end of the step; ``dw`` is a `Levy`."""
        if field.term.noise_type == "additive":
            return SRA1().step(field, interval, y, (), dw).y
        return _diagonal(field, interval, y, dw)


def _diagonal(field: Field, interval: Interval, y: Tensor, dw: Levy) -> Tensor:
    """SRI2W1."""
    h, w = interval.scale, along(dw.w, y)
    mean = 0.5 * w + along(dw.h, y)
    size, root = with_root(h, w)
    twice, thrice = (w * w - size) / (2 * root), (w * w * w - 3 * size * w) / (6 * root * root)
    t, early, middle, end = (field.clock(interval.t + c * interval.h, y) for c in (0.0, 0.25, 0.5, 1.0))
    f0, g0 = h * field.fitting(field(t, y), y), column(field, t, y)
    g1 = column(field, early, y + 0.25 * f0 - 0.5 * root * g0)
    g2 = column(field, end, y + f0 + root * g0)
    f1 = h * field(end, y + f0)
    f2 = h * field(middle, y + 0.25 * (f0 + f1) + (g0 + 0.5 * g1) * mean)
    g3 = column(field, early, y + 0.25 * f2 + root * (2 * g0 - g1 + 0.5 * g2))
    noise = g0 * (twice - w + 2 * (mean - thrice)) + g1 * ((4 * (w - twice - mean) + 5 * thrice) / 3)
    noise = noise + g2 * ((2 * (w - mean - thrice) + twice) / 3) + g3 * thrice
    return y + ((f0 + f1 + 4 * f2) / 6 + noise)
