"""The log-ODE method of Stratonovich equations whose noise does not commute."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sciml.solvers.areas import Area
from sciml.solvers.diffusion import MatrixDiffusive
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic import Unjudged
from sciml.solvers.term import Term
from sciml.typing import Calculus, NoiseType


@dataclass(frozen=True)
class LogODE(Unjudged):
    """The log-ODE of a step, f h + g dW + sum_kl A_kl (dg_l/dy) g_k, by the midpoint method.

    It takes a `MatrixDiffusive` term. A is the Levy area of the step, so that the noise need not commute: with the
    exact area the strong order is 1; with those of Davie and Foster, which `Brownian` draws for each step and
    torchsde's motions know, the law is nearer than without, and the order against any one path remains 1/2.

    References:
        J. Foster, T. Lyons, H. Oberhauser, An optimal polynomial approximation of Brownian motion (2020),
        arXiv:1904.06998; A. Davie, KMT theory applied to approximations of SDE (2014).
    """

    needs: ClassVar[type[Term]] = MatrixDiffusive
    area: ClassVar[bool] = True
    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar", "general")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Any) -> Tensor:
        """The state at the end of the step; ``dw`` is an `Area`."""
        if not isinstance(dw, Area):
            raise ValueError(
                "path: LogODE reads Levy areas; expected Brownian() or Given(motion) of a motion with them"
            )
        t, middle = (field.clock(at, y) for at in (interval.t, interval.t + 0.5 * interval.h))
        guess = y + 0.5 * (interval.scale * field.fitting(field(t, y), y) + field.diffused(t, y, dw.w))
        rise = interval.scale * field(middle, guess) + field.diffused(middle, guess, dw.w)
        if field.term.noise_type == "general":
            rise = rise + field.term.along(middle, guess, lambda g: g @ dw.a, field.args)
        return y + rise
