"""Folds: read the accepted steps of a solve and reduce them, differentiably under every discrete adjoint.

`Fold.emit` is a pure function of one step, and the ways to reduce are fixed, so that an adjoint which recomputes one
step at a time knows what each step contributed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.dense import straight
from sciml.solvers.expect import expect
from sciml.solvers.layout import Layout, PackedFunction
from sciml.solvers.stepper import Stepper
from sciml.solvers.term import expand, real_dtype
from sciml.solvers.transforms import holds, plain
from sciml.typing import Args

if TYPE_CHECKING:
    from sciml.solvers.control import Controller
    from sciml.solvers.march import Segment
    from sciml.solvers.mesh import Mesh

SHORT = 2.0**-60  # shorter than any step

Reduce = Literal["sum", "max", "last", "stack", "write"]


class Writes(NamedTuple):
    """Values of a step that belong at given places of an output."""

    values: Tensor  # (l, k, ...), l left out for joint lanes
    place: Tensor  # (l, k) int64
    hit: Tensor  # (l, k) bool: whether the place lies in this step

    def targets(self, places: int) -> Tensor:
        """Where the values go in an output (b, places + 1, ...), whose last place takes what is not hit."""
        index = torch.where(self.hit, self.place, places)
        return expand(index, self.values).expand(self.values.shape)


class Fold(ABC):
    """Reads every accepted step.

    Attributes:
        reduce: how the steps' emissions are combined: their sum, their elementwise maximum, the last one, all of them
            stacked (padded with steps of length zero), or written to given places.
        stages: whether `emit` reads more of a step than its two ends.
        dense: whether it cannot do without the states within a step.
        differentiable: whether a gradient flows through what it reads.
        errors: whether all that `emit` reads of a step is its scaled error and its size h, elementwise, so that it may
            be given those of many steps as one, (n).
    """

    reduce: ClassVar[Reduce]
    stages: ClassVar[bool] = True
    dense: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    errors: ClassVar[bool] = False

    @property
    def places(self) -> int:
        """How many places of the output there are to write to."""
        raise TypeError(f"{type(self).__name__} writes to no places")

    def refusal(self, stepper: Stepper, controller: "Controller") -> str | None:
        """Why it cannot read steps of this method under this controller; None where it can."""
        if self.dense and not stepper.dense:
            kinds = f"{type(self).__name__} reads the states within steps, but {type(stepper).__name__}"
            return f"{kinds} has no dense output"
        return None

    def linear(self, stepper: Stepper) -> bool:
        """Whether what it reads of a step is a linear function of the states at its ends, and of no other tensors."""
        return False

    def prepare(self, t0: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, ...]:
        """Tensors that `emit` reads beside the step, as functions of the times (l); gradients flow through them."""
        return ()

    def among(self, rows: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `prepare` returned as it is for some of the samples, by their numbers; a fold with more has its own."""
        return inputs

    @abstractmethod
    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Any:
        """What is read of one step: a tensor (l, ...), or `Writes` where ``reduce`` is "write".

        Args:
            segment: the step.
            saves: a bound on the number of places in the step; None reads it on the host. Only for "write".
            inputs: what `prepare` returned.
        """

    def finish(self, value: Any, mesh: "Mesh", t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Any:
        """The fold's result from the reduced emissions, in ordinary autograd; ``unpack`` makes trees of states."""
        return value

    def packed(self, layout: Layout) -> "Fold":
        """The same fold for states packed into one tensor."""
        return self

    def ended(self, value: Any, y: Tensor, theta: Tensor, lanes: Tensor, *inputs: Tensor) -> Any:
        """The reduced emissions where ``lanes`` (l) ended at an event, at the state y; ``theta`` (l) are the ends."""
        return value


def within(theta: Tensor, theta0: Tensor, theta1: Tensor) -> Tensor:
    """Where theta lies between theta0 and theta1, as a fraction."""
    return (theta - theta0) / (theta1 - theta0).clamp_min(SHORT)


@dataclass(frozen=True, eq=False)
class SaveAt(Fold):
    """The state at given times, from the steppers' dense output; on a straight line where a slope is not finite.

    Args:
        ts: times (t), or (b, t) where every sample has its own; any order, repetitions allowed; may carry gradients.
    """

    reduce: ClassVar[Reduce] = "write"

    ts: Tensor

    @property
    def places(self) -> int:
        """How many times there are."""
        return self.ts.shape[-1]

    def linear(self, stepper: Stepper) -> bool:
        """Where the ends are all that is known of a step."""
        return not stepper.dense

    def prepare(self, t0: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, ...]:
        """The times as sorted fractions of the span, (t) or (b, t), and such that the first step finds those at t0."""
        ts = self.ts.to(t0)
        span = t1 - t0
        theta = torch.where(span[..., None] != 0, (ts - t0[..., None]) / torch.where(span == 0, 1, span)[..., None], 0)
        slack = 4 * max(torch.finfo(real_dtype(y0)).eps, _eps(self.ts))
        known = plain(theta.detach(), "save_at, t0, t1")
        outside = (known < -slack) | (known > 1 + slack) | known.isnan()
        outside = outside | ((span == 0)[..., None] & ~torch.isclose(ts, t0[..., None], rtol=slack, atol=0.0))
        if bool(outside.any()):
            worst = ts.expand(theta.shape)[outside][0].item()
            raise ValueError(f"save_at: expected times between t0 and t1, got {worst:g} outside the span")
        inside = theta + (theta.clamp(0, 1) - theta).detach()  # round-off at the ends is no reason to lose a gradient
        inside = inside.sort(-1).values
        return inside, plain(inside.detach(), "save_at").clamp_min(SHORT)

    def among(self, rows: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Their times."""
        return tuple(x.index_select(0, rows) for x in inputs)

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Writes | None:
        """The states at the save times in (theta0, theta1]; None where it is known that there are none."""
        theta, key = inputs
        reads = saves is None
        theta0, theta1 = (torch.as_tensor(t, dtype=theta.dtype) for t in (segment.theta0, segment.theta1))
        first, end = torch.searchsorted(key, torch.stack([theta0, theta1], -1).detach(), right=True).unbind(-1)
        if not theta.shape[-1]:
            saves = 0
        elif saves is None:
            saves = int((end - first).amax())
            if saves == 0:
                return None
        place = first[..., None] + torch.arange(saves, device=theta.device)
        hit = place < end[..., None]
        place = place.clamp_max(theta.shape[-1] - 1)
        s = torch.where(hit, within(theta.gather(-1, place), theta0[..., None], theta1[..., None]), 0)
        s = s.to(device=segment.y0.device, dtype=real_dtype(segment.y0))
        values = segment.dense(s)
        if reads and holds(values.detach().sum().isfinite()):
            return Writes(values, place, hit)
        return Writes(torch.where(values.isfinite(), values, straight(segment, s)), place, hit)

    @cached_property
    def _rising(self) -> bool:
        """Whether the times are known to be in order; on a GPU it is not worth the wait."""
        return not self.ts.is_cuda and bool((self.ts.diff(dim=-1) >= 0).all())

    def ended(self, value: Any, y: Tensor, theta: Tensor, lanes: Tensor, *inputs: Tensor) -> Any:
        """The last state also at the times after it."""
        past = (inputs[1] > theta.detach()[..., None]) & lanes[..., None]
        return torch.where(expand(past.to(y.device), value), y.unsqueeze(lanes.ndim), value)

    def finish(self, value: Tensor, mesh: "Mesh", t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Any:
        """The states in the order of ``ts``: (t, ...) or (b, t, ...)."""
        if self._rising and bool((t0 <= t1).all()):
            return unpack(value)
        ts = self.ts.detach().to(t0) * (t1 - t0).detach().sign()[..., None]
        rank = ts.argsort(-1).argsort(-1).to(value.device)
        if rank.ndim == 1:
            return unpack(value.index_select(mesh.count.ndim, rank))
        return unpack(value.gather(1, expand(rank, value).expand(*rank.shape, *value.shape[2:])))


def _eps(ts: Tensor) -> float:
    return torch.finfo(ts.dtype).eps if ts.is_floating_point() else 0.0


@dataclass(frozen=True)
class Final(Fold):
    """The state at the end of the last accepted step, (l, ...)."""

    reduce: ClassVar[Reduce] = "last"
    stages: ClassVar[bool] = False

    def linear(self, stepper: Stepper) -> bool:
        """The end of a step is all it reads."""
        return True

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """The end of the step."""
        return segment.y1

    def ended(self, value: Any, y: Tensor, theta: Tensor, lanes: Tensor, *inputs: Tensor) -> Any:
        """The state at the event."""
        return torch.where(expand(lanes.to(y.device), y), y, value)

    def finish(self, value: Tensor, mesh: "Mesh", t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Any:
        """The state."""
        return unpack(value)


class Accepted(NamedTuple):
    """Every accepted step: joint lanes (n, ...), lanes "each" (b, n, ...), padded with the last one."""

    ts: Tensor
    ys: Any


@dataclass(frozen=True)
class Steps(Fold):
    """Time and state at the end of every accepted step."""

    reduce: ClassVar[Reduce] = "stack"
    stages: ClassVar[bool] = False

    def linear(self, stepper: Stepper) -> bool:
        """The end of a step is all it reads."""
        return True

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """The end of the step."""
        return segment.y1

    def finish(self, value: Tensor, mesh: "Mesh", t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Accepted:
        """Times from the mesh, states as emitted."""
        ts = t0 + (t1 - t0) * mesh.theta[1:]
        return Accepted(ts, unpack(value)) if ts.ndim == 1 else Accepted(ts.mT, unpack(value.movedim(0, 1)))


@dataclass(frozen=True)
class Starts(Fold):
    """Time and state at the start of every accepted step, without a gradient, so that every adjoint bears it."""

    reduce: ClassVar[Reduce] = "stack"
    stages: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """The start of the step."""
        return segment.y0.detach()

    def finish(self, value: Tensor, mesh: "Mesh", t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Accepted:
        """Times from the mesh, states as emitted."""
        ts, value = (t0 + (t1 - t0) * mesh.theta[:-1]).detach(), value.detach()
        return Accepted(ts, unpack(value)) if ts.ndim == 1 else Accepted(ts.mT, unpack(value.movedim(0, 1)))


class Sizes(NamedTuple):
    """Per accepted step, (n) or (b, n); padded with zeros."""

    h: Tensor
    error: Tensor


@dataclass(frozen=True)
class Stats(Fold):
    """Size h and scaled error of every accepted step; the error is 0 where nothing estimates it."""

    reduce: ClassVar[Reduce] = "stack"
    errors: ClassVar[bool] = True

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """(l, 2)."""
        h = torch.as_tensor(segment.interval.h, dtype=torch.float64)
        known = segment.error is not None and segment.march.controller.adaptive
        error = segment.scaled_error().to(h) if known else torch.zeros_like(h)
        return torch.stack([h, error], -1)

    def finish(self, value: Tensor, mesh: "Mesh", t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Sizes:
        """Sizes and errors apart."""
        h, error = value.unbind(-1)
        return Sizes(h, error) if h.ndim == 1 else Sizes(h.mT, error.mT)


@dataclass(frozen=True, eq=False)
class Quadrature(Fold):
    """The integral of g(t, y(t), args) over time along the solution, by Gauss-Legendre nodes on the dense output.

    Args:
        integrand: g, mapping (t, y, args) to a tensor; with lanes "each" its first axis is the batch and t is
            (b, 1, .., 1).
        nodes: nodes per step; the rule is exact for polynomials of degree 2 nodes - 1, so three do not spoil a
            fourth-order dense output.
    """

    reduce: ClassVar[Reduce] = "sum"
    dense: ClassVar[bool] = True

    integrand: Callable[[Tensor, Tensor, Args], Tensor]
    nodes: int = 3
    rule: tuple[tuple[float, ...], tuple[float, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Nodes and weights on [0, 1]."""
        if not callable(self.integrand):
            raise TypeError(f"integrand: expected a callable (t, y, args), got {type(self.integrand).__name__}")
        expect("nodes", self.nodes, Integral, "a whole number")
        if self.nodes < 1:
            raise ValueError(f"nodes: expected at least one, got {self.nodes}")
        points, weights = np.polynomial.legendre.leggauss(self.nodes)
        object.__setattr__(self, "rule", (tuple(((points + 1) / 2).tolist()), tuple((weights / 2).tolist())))

    def packed(self, layout: Layout) -> "Fold":
        """The same integral with an integrand of packed states."""
        return Quadrature(PackedFunction(self.integrand, layout), self.nodes)

    def prepare(self, t0: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, ...]:
        """The nodes (k) as fractions of a step."""
        return (torch.tensor(self.rule[0], dtype=real_dtype(y0), device=y0.device),)

    def among(self, rows: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """They are those of all."""
        return inputs

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """The integral over the step."""
        s, weights = self.rule
        y0, (t, h, _) = segment.y0, segment.interval
        bound = segment.march.field(segment.const)
        lanes = () if segment.march.lanes == "joint" else y0.shape[:1]
        states = segment.dense(inputs[0].expand(*lanes, self.nodes)).unbind(len(lanes))
        total: Any = 0
        for c, w, y in zip(s, weights, states, strict=True):
            value = self.integrand(bound.clock(t + h * c, y), y, segment.const.args)
            if not isinstance(value, Tensor) or value.shape[: len(lanes)] != lanes:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"integrand: expected a tensor of shape ({''.join(f'{n}, ' for n in lanes)}...), got {got}"
                )
            total = total + w * value
        total = total * (h if isinstance(h, float) else expand(h.to(total.device, real_dtype(total)), total))
        return total + self._moved(segment) if segment.turns else total

    def _moved(self, segment: "Segment") -> Any:
        """What the integral gains when the events at the end of the step come later: 0 but for its derivative."""
        c, t, total = segment.const, segment.interval.t + segment.interval.h, 0
        field = segment.march.field(c)
        g = lambda y: self.integrand(field.clock(t, y), y, c.args)  # noqa: E731
        for turn in segment.turns:
            gain = g(turn.before) if turn.after is None else g(turn.before) - g(turn.after)
            total = total + expand(turn.delay.to(gain.device, real_dtype(gain)), gain) * gain
        return total
