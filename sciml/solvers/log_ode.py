"""The log-ODE method of Stratonovich equations whose noise does not commute."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sciml.solvers.diffusion import MatrixDiffusive
from sciml.solvers.given import Area
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic import Stochastic
from sciml.solvers.term import Term
from sciml.typing import Calculus, NoiseType


@dataclass(frozen=True)
class LogODE(Stochastic):
    """The log-ODE of a step, f h + g dW + sum_kl A_kl (dg_l/dy) g_k, by the midpoint method, for a `MatrixDiffusive` term.

    A is the Levy area of the step, so that the noise need not commute: with an area that is exact the strong order is
    1; with those of Davie and Foster, which a path of torchsde's has, it is 1/2 against the path that they stand for,
    with a smaller error than without.

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
            raise ValueError("path: LogODE reads Levy areas; expected Given(motion) of a motion that knows them")
        t, middle = (field.clock(at, y) for at in (interval.t, interval.t + 0.5 * interval.h))
        guess = y + 0.5 * (interval.scale * field.fitting(field(t, y), y) + field.diffused(t, y, dw.w))
        rise = interval.scale * field(middle, guess) + field.diffused(middle, guess, dw.w)
        if field.term.noise_type == "general":
            rise = rise + field.term.along(middle, guess, lambda g: g @ dw.a, field.args)
        return y + rise
