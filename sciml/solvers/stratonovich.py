"""More steppers of Stratonovich equations: the midpoint rule, Milstein's and the reversible Heun method."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sciml.solvers.diffusion import MatrixDiffusive, along, column
from sciml.solvers.kicked import Kicked
from sciml.solvers.stepper import Field, Interval, Step
from sciml.solvers.stochastic import Stochastic, Unjudged, with_root
from sciml.typing import Calculus, NoiseType, Number

ALL: tuple[NoiseType, ...] = ("diagonal", "additive", "scalar", "general")


@dataclass(frozen=True)
class StratonovichMidpoint(Unjudged):
    """The midpoint rule: the increments of drift and diffusion at y + (f h + g dW) / 2 and the middle of the step.

    Its strong order is 1; of general noise that does not commute 1/2; without noise it is the midpoint method, of
    order 2.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ALL

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        t, middle = (field.clock(at, y) for at in (interval.t, interval.t + 0.5 * interval.h))
        guess = y + 0.5 * (interval.scale * field.fitting(field(t, y), y) + field.diffused(t, y, dw))
        return y + (interval.scale * field(middle, guess) + field.diffused(middle, guess, dw))


@dataclass(frozen=True)
class StratonovichMilstein(Unjudged):
    """Milstein's method without derivatives for Stratonovich equations, of strong order 1.

    y + f h + g dW + (g(y + g sqrt h) - g(y - g sqrt h)) dW^2 / (4 sqrt h), for noise that is diagonal, scalar or
    additive. The difference is central: of a forward one the error g g g'' dW^2 sqrt(h) / 4 has a mean, which adds up
    to order 1/2. (In Ito equations dW^2 - h has none.)

    Reference:
        P. Kloeden, E. Platen, Numerical solution of stochastic differential equations (1992), section 10.3, for the
        method with derivatives.
    """

    evaluations: ClassVar[int] = 1
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        t = field.clock(interval.t, y)
        slope = interval.scale * field.fitting(field(t, y), y)
        if field.term.noise_type == "additive":
            return y + (slope + field.diffused(t, y, dw))
        g, dw = column(field, t, y), along(dw, y)
        _, root = with_root(interval.scale, dw)
        rise = (column(field, t, y + g * root) - column(field, t, y - g * root)) * (dw * dw / (4 * root))
        return y + (slope + g * dw + rise)


@dataclass(frozen=True)
class StratonovichReversibleHeun(Stochastic, Kicked):
    """The reversible Heun method for Stratonovich equations, of one evaluation of drift and diffusion per step.

    A second state z runs beside y: z1 = 2 y0 - z0 + f(z0) h + g(z0) dW, and y moves by the mean of the increments at z0
    and z1; z starts as y. Its strong order is 1/2, of additive noise 1; weak order 1. With ``Discrete("invert")`` its
    gradient is exact and needs no stored state. It is hardly stable: see `ReversibleHeun`.

    Where g is known as a tensor, of diagonal and scalar noise and of a `MatrixDiffusive` term, it is carried along;
    of other terms two products are taken per step.

    Reference:
        P. Kidger, J. Foster, X. Li, T. Lyons, Efficient and accurate gradients for neural SDEs (2021),
        arXiv:2105.13493, algorithm 1.
    """

    strong: ClassVar[float] = 0.5
    evaluations: ClassVar[int] = 1
    starts: ClassVar[int] = 1
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ALL
    reversible: ClassVar[bool] = True
    history: ClassVar[bool] = True
    lean: ClassVar[bool] = False

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The drift at z, the diffusion there where it is known, and z itself."""
        return field.checked(t, y), *_known(field, field.clock(t, y), y), y.clone()

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; what is known at its end belongs to the state, so that it is never left out."""
        *known, z0 = carry
        t0, t1 = (field.clock(at, y) for at in (interval.t, interval.t + interval.h))
        before = self.kick(field, interval, dx, t0, z0, tuple(known))
        z1 = 2 * y - z0 + before
        known = field.once(self.known, t1, z1)
        y1 = y + 0.5 * (before + self.kick(field, interval, dx, t1, z1, known))
        return Step(y1, None, (), (*known, z1))

    def known(self, field: Field, t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """The drift, and the diffusion where it is known."""
        return field(t, z), *_known(field, t, z)

    def kick(
        self, field: Field, interval: Interval, dx: Any, t: Tensor, z: Tensor, known: tuple[Tensor, ...]
    ) -> Tensor:
        """The increment by drift and diffusion at z."""
        drift, *diffusion = known
        return interval.scale * drift + _moved(field, t, z, diffusion, dx)

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of a first step."""
        return self.step(field, interval, y, self.init(field, interval.t, y, interval.h), dw).y


def _known(field: Field, t: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """The diffusion as a tensor, or nothing."""
    if field.term.noise_type in ("diagonal", "scalar"):
        return (column(field, t, z),)
    return (field.term.diffusion(t, z, field.args),) if isinstance(field.term, MatrixDiffusive) else ()


def _moved(field: Field, t: Tensor, z: Tensor, known: Any, dw: Tensor) -> Tensor:
    """What the diffusion makes of an increment."""
    if not known:
        return field.diffused(t, z, dw)
    if field.term.noise_type in ("diagonal", "scalar"):
        return known[0] * along(dw, z)
    return field.fitting(field.term.product(known[0], dw), z)
