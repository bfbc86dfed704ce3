"""Steppers of stochastic equations dy = f(t, y) dt + g(t, y) dW."""

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from sciml.solvers.brownian import Brownian
from sciml.solvers.path import Path
from sciml.solvers.stepper import Field, Interval, Step, Stepper, displace
from sciml.solvers.term import Diffusive, Term
from sciml.typing import Calculus, NoiseType, Number


class Stochastic(Stepper):
    """A method for `Diffusive` terms, driven by `Brownian` motion.

    Attributes:
        order: weak order: of the error of expectations.
        strong: strong order, of the mean over paths of the error, where the noise is diagonal, scalar or additive.
        calculus: whose integral it approximates; that of additive noise is the same in both.
    """

    needs: ClassVar[type[Term]] = Diffusive
    order: ClassVar[int] = 1
    strong: ClassVar[float] = 1.0
    calculus: ClassVar[Calculus]
    starts: ClassVar[int] = 0

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """Nothing is carried from step to step."""
        return ()


class Unjudged(Stochastic):
    """A method that does not estimate its error."""

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step over the increment ``dx`` of the path."""
        return Step(self.end(field, interval, y, dx), None, (), ())

    @abstractmethod
    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""


@dataclass(frozen=True)
class EulerMaruyama(Unjudged):
    """The method of Euler and Maruyama for Ito equations: y + f h + g dW.

    Its strong order is 1/2, and 1 for additive noise; its weak order is 1.
    """

    strong: ClassVar[float] = 0.5
    evaluations: ClassVar[int] = 1
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar", "general")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        t = field.clock(interval.t, y)
        slope = field.fitting(field(t, y), y)
        return y + displace(field.diffused(t, y, dw), (1.0,), (slope,), interval.scale)


@dataclass(frozen=True)
class Milstein(Unjudged):
    r"""Milstein's method without derivatives for Ito equations, of strong order 1.

    y + f h + g dW + (g(y + g sqrt h) - g) (dW^2 - h) / (2 sqrt h), for noise that is diagonal, scalar or additive.

    Reference:
        P. Kloeden, E. Platen, Numerical solution of stochastic differential equations (1992), section 11.1.
    """

    evaluations: ClassVar[int] = 1
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        t, h = field.clock(interval.t, y), interval.scale
        h, root = with_root(h, dw)
        support = y + field.diffused(t, y, torch.ones_like(dw) * root)
        excess = (dw * dw - h) / (2 * root)
        excess = torch.where(h > 0, excess, 0.0) if isinstance(h, Tensor) else excess
        rise = field.diffused(t, support, excess) - field.diffused(t, y, excess)
        return y + (interval.scale * field.fitting(field(t, y), y) + field.diffused(t, y, dw) + rise)


def with_root(h: Number, dw: Tensor) -> tuple[Number, Number]:
    """Step sizes shaped for an increment, and their roots, which are 1 for steps of no length."""
    if isinstance(h, float):
        return h, sqrt(h) if h else 1.0
    h = h.reshape(h.shape[:1] + (1,) * (dw.ndim - 1)) if h.numel() > 1 else h.reshape(())
    return h, torch.where(h > 0, h, 1.0).sqrt()


@dataclass(frozen=True)
class EulerHeun(Unjudged):
    """Euler's method in the drift and Heun's in the diffusion, for Stratonovich equations.

    y + f h + (g(y) + g(y + g dW)) dW / 2, of strong order 1; of general noise that does not commute 1/2.
    """

    evaluations: ClassVar[int] = 1
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar", "general")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        t, end = (field.clock(at, y) for at in (interval.t, interval.t + interval.h))
        rise = field.diffused(t, y, dw)
        mean = 0.5 * (rise + field.diffused(end, y + rise, dw))
        return y + (interval.scale * field.fitting(field(t, y), y) + mean)


@dataclass(frozen=True)
class StratonovichHeun(Stochastic):
    """Heun's method for Stratonovich equations: the mean of the increments at both ends of Euler's step.

    Its strong order is 1; of general noise that does not commute 1/2; without noise it is Heun's method, of order 2.
    The error estimate is the difference to Euler's step, which makes it a method for any noise under `PID`.
    """

    adaptive: ClassVar[bool] = True
    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar", "general")

    @property
    def error_order(self) -> float:
        """That of what Euler's step misses of a Stratonovich integral."""
        return 1.0

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step over the increment ``dx`` of the path."""
        t, end = (field.clock(at, y) for at in (interval.t, interval.t + interval.h))
        first = interval.scale * field.fitting(field(t, y), y) + field.diffused(t, y, dx)
        guess = y + first
        error = 0.5 * (interval.scale * field(end, guess) + field.diffused(end, guess, dx) - first)
        return Step(y + (first + error), error, (), ())


def check_noise(term: Any, stepper: Stepper, path: Path | None, y0: Any) -> None:
    """Refuse a stochastic equation that a stepper does not integrate, or a path that does not fit.

    Raises:
        ValueError: naming what is expected and what was found.
    """
    name = type(stepper).__name__
    if not isinstance(term, Diffusive):
        if isinstance(path, Brownian) and not stepper.noise_types:
            raise ValueError(f"path: {name} reads no noise; expected EulerMaruyama with a Diffusive term, for example")
        if isinstance(stepper, Stochastic) and isinstance(term, stepper.needs):
            raise ValueError(f"term: {name} expects a Diffusive term too, got {type(term).__name__}")
        return
    if not isinstance(y0, Tensor):
        raise ValueError(f"y0: expected a tensor with a Diffusive term, got {type(y0).__name__}")
    if not isinstance(stepper, Stochastic):
        raise ValueError(f"term: {name} integrates no noise; expected EulerMaruyama or EulerHeun, for example")
    noise, calculus = term.noise_type, term.calculus
    if noise not in ("diagonal", "additive", "scalar", "general"):
        raise ValueError(f"noise_type: expected 'diagonal', 'additive', 'scalar' or 'general', got {noise!r}")
    if calculus not in ("ito", "stratonovich"):
        raise ValueError(f"calculus: expected 'ito' or 'stratonovich', got {calculus!r}")
    if noise not in stepper.noise_types:
        expected = " or ".join(stepper.noise_types)
        raise ValueError(f"term: {name} expects {expected} noise, found {noise}")
    if calculus != stepper.calculus and noise != "additive":
        instead = "EulerHeun" if calculus == "stratonovich" else "EulerMaruyama"
        raise ValueError(
            f"term: {name} expects an equation of {stepper.calculus} calculus, found {calculus}; "
            f"take {instead}, for example"
        )
    if stepper.halves and calculus == "ito" and stepper.strong < 1 and noise != "additive":
        warnings.warn(
            "Numerical solution is not guaranteed to converge to the correct solution: with noise that depends on the "
            "state, adaptive steps of Euler's method converge to another process; expected a stepper of strong order 1",
            stacklevel=4,
        )
    if path is None:
        raise ValueError(f"path: {name} expects one, as Brownian(seed=0), got None")
    if (
        isinstance(path, Brownian)
        and noise == "scalar"
        and (path.shape is None or prod(path.shape[1:]) != 1 or len(path.shape) != y0.ndim)
    ):
        expected = (*y0.shape[:1], *(1 for _ in y0.shape[1:]))
        raise ValueError(
            f"path: scalar noise is one number for each sample, expected Brownian({expected}), got {path.shape}"
        )
    if isinstance(path, Brownian) and noise == "diagonal" and path.shape not in (None, tuple(y0.shape)):
        raise ValueError(f"path: diagonal noise has the state's shape {tuple(y0.shape)}, got {path.shape}")
