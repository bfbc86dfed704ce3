"""Step doubling, which makes any stepper of stochastic equations adaptive."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.areas import Area
from sciml.solvers.arithmetic import NUMBERS, TENSORS
from sciml.solvers.path import Levy, Path
from sciml.solvers.stepper import Field, Interval, Step, Stepper
from sciml.solvers.stochastic import Stochastic
from sciml.solvers.stratonovich import StratonovichMidpoint
from sciml.solvers.term import expand, real_dtype
from sciml.typing import Number

TAKEN = ("needs", "order", "strong", "calculus", "noise_types", "levy", "area", "starts", "history", "reversible")


class Halves(NamedTuple):
    """What a path tells of both parts of a step."""

    share: Number  # (l) of the step that the first takes
    first: Any
    second: Any

    def __neg__(self) -> "Halves":
        """The same backward, of paths that are increments alone."""
        return Halves(1 - self.share, -self.second, -self.first)


@dataclass(frozen=True)
class Doubled(Stochastic):
    """A stepper that takes every step once whole and once in halves, and judges it by the difference.

    The solution is that of the halves. The whole step takes the sum of what the path tells of the halves, by Chen's
    relation where Levy areas are read, so that the path is not asked more often than in steps of that size. Steps from
    and to save times may be cut elsewhere than in the middle, at nodes of the path's tree.

    It serves where the stepper's own error converges path by path whatever steps are chosen: for methods of strong
    order 1 and more, and for `EulerHeun`, `StratonovichHeun` and `StratonovichMidpoint` of any noise. Where the strong
    order is 1/2 only because errors of mean zero cancel, as those of `EulerMaruyama` with noise that depends on the
    state, steps that are chosen by what the path does next let them add up: the limit is another process (Gaines and
    Lyons, 1997), as a warning says.

    Args:
        stepper: the method; None takes `StratonovichMidpoint`.

    References:
        P. M. Burrage, K. Burrage, A variable stepsize implementation for stochastic differential equations, SIAM J.
        Sci. Comput. 24 (2002), doi:10.1137/S1064827500376922; J. Gaines, T. Lyons, Variable step size control in the
        numerical solution of stochastic differential equations, SIAM J. Appl. Math. 57 (1997),
        doi:10.1137/S0036139995286515.

    Example:
        >>> import torch
        >>> from sciml import Solver, solve
        >>> from sciml.solvers import PID, Brownian, Diffusive, Doubled, Milstein
        >>> class Growth(Diffusive):
        ...     noise_type = "diagonal"
        ...     def drift(self, t, y, args):
        ...         return 0.1 * y
        ...     def diffuse(self, t, y, dw, args):
        ...         return 0.5 * y * dw
        >>> solver = Solver(Doubled(Milstein()), PID(rtol=1e-2, atol=1e-2))
        >>> solve(Growth(), torch.ones(7, 2), 0.0, 1.0, solver, path=Brownian(seed=0)).ys.shape
        torch.Size([7, 2])
    """

    adaptive: ClassVar[bool] = True
    halves: ClassVar[bool] = True

    stepper: Stochastic | None = None

    def __post_init__(self) -> None:
        """Take over what the stepper is."""
        inner = StratonovichMidpoint() if self.stepper is None else self.stepper
        if not isinstance(inner, Stochastic) or isinstance(inner, Doubled):
            name = inner.__name__ if isinstance(inner, type) else type(inner).__name__
            raise TypeError(f"stepper: expected a stepper of stochastic equations, as Milstein(), got {name}")
        if inner.uniform:
            raise ValueError(
                f"stepper: {type(inner).__name__} takes steps of one size only, which a controller does not"
            )
        for name in TAKEN:
            object.__setattr__(self, name, getattr(inner, name))
        object.__setattr__(self, "stepper", inner)
        object.__setattr__(self, "evaluations", 3 * inner.evaluations)

    @property
    def inner(self) -> Stepper:
        """The stepper."""
        return self.stepper or StratonovichMidpoint()

    @property
    def error_order(self) -> float:
        """That of a step's error in mean square, half an order above the strong one."""
        return self.strong + 0.5

    @property
    def spared(self) -> int:
        """Those of the whole step, and what the stepper leaves out."""
        return self.inner.evaluations + self.inner.spared

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The stepper's."""
        return self.inner.constants(t0, y)

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The stepper's."""
        return self.inner.init(field, t, y, h)

    def read(self, path: Path, tensors: tuple[Tensor, ...], theta0: Number, theta1: Number, span: Tensor) -> Halves:
        """Of both parts of the step."""
        if isinstance(theta0, Tensor):
            theta0, theta1 = theta0.detach(), torch.as_tensor(theta1).detach()
        middle = path.middle(theta0, theta1, TENSORS if isinstance(theta0, Tensor) else NUMBERS)
        some = theta1 > theta0
        if isinstance(theta0, Tensor):
            share = torch.where(some, (middle - theta0) / torch.where(some, theta1 - theta0, 1.0), 1.0)
        else:
            share = (middle - theta0) / (theta1 - theta0) if some else 1.0
        first = path.increment(tensors, theta0, middle, span)
        return Halves(share, first, path.increment(tensors, middle, theta1, span))

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """Two steps over the halves, and where the error is read the whole one."""
        share, first, second = dx
        h, scale = share * interval.h, _shaped(share, y) * interval.scale
        left = Interval(interval.t, h, scale)
        right = Interval(interval.t + h, interval.h - h, interval.scale - scale)
        plain = Field(*field)  # a pass that undoes steps notes the evaluation at the end of the second half only
        half = self.inner.step(plain, left, y, carry, first)
        last = self.inner.step(field, right, half.y, half.carry, second, full)
        error = None
        if full:
            error = last.y - self.inner.step(plain, interval, y, carry, joined(share, first, second), full).y
        return Step(last.y, error, (), last.carry)


def _shaped(share: Number, like: Tensor) -> Number:
    """A share (l) as a factor of a tensor."""
    return expand(share.to(like.device, real_dtype(like)), like) if isinstance(share, Tensor) else share


def joined(share: Number, first: Any, second: Any) -> Any:
    """What a path tells of a step, from what it tells of two parts of it, of which the first takes a share (l)."""
    if isinstance(first, Tensor):
        return first + second
    (v, b), (w, c) = first, second
    if isinstance(first, Levy):
        p = _shaped(share, v)
        return Levy(v + w, p * b + (1 - p) * c + 0.5 * ((1 - p) * v - p * w))
    cross = v[..., :, None] * w[..., None, :]
    return Area(v + w, b + c + 0.5 * (cross - cross.mT))
