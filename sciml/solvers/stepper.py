"""What a stepper is: one step of a method, as a pure function."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.path import Path
from sciml.solvers.term import Term, expand, real_dtype
from sciml.typing import Args, Lanes, NoiseType, Number

if TYPE_CHECKING:
    from sciml.solvers.control import Controller
    from sciml.solvers.march import Segment


SMALL = 4096  # elements


def small(y: Tensor) -> bool:
    """Whether a kernel on the state costs its launch, not its work; False for a program that is traced for any size."""
    return not torch.compiler.is_compiling() and y.numel() <= SMALL


class Interval(NamedTuple):
    """Where a step goes: from t to t + h."""

    t: Number  # (l) float64
    h: Number  # (l) float64
    scale: Number  # h as stages are multiplied with it: in the state's dtype, broadcastable

    @classmethod
    def of(cls, t0: Tensor, t1: Tensor, theta0: Number, theta1: Number, y: Tensor) -> "Interval":
        """The part [theta0, theta1] of the span from t0 to t1.

        Where the thetas are plain numbers and the times need no gradient, all is plain numbers: with them
        `torch.add(y, k, alpha=h * a)` is one kernel without a temporary.
        """
        if isinstance(theta0, float) and not (t0.requires_grad or t1.requires_grad):
            start, end = t0.item(), t1.item()
            h = (end - start) * (theta1 - theta0)
            return cls(start + (end - start) * theta0, h, h)
        span = t1 - t0
        h = span * (theta1 - theta0)
        return cls(t0 + span * theta0, h, expand(h.to(device=y.device, dtype=real_dtype(y)), y))

    def reversed(self) -> "Interval":
        """The same interval from its end to its start."""
        return Interval(self.t + self.h, -self.h, -self.scale)


class Field(NamedTuple):
    """A term bound to its arguments, as a stepper sees it."""

    term: Any
    args: Args
    lanes: Lanes
    constants: tuple[Tensor, ...]  # the stepper's

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift; t as made by `clock` or `clocks`."""
        return self.term.drift(t, y, self.args)

    def checked(self, t: Number, y: Tensor) -> Tensor:
        """The drift at float64 times t (l), refused where it does not fit the state."""
        dy = self(self.clock(t, y), y)
        return self.fitting(dy, y)

    def once(self, function: "Callable[[Field, Tensor, Tensor], tuple[Tensor, ...]]", t: Tensor, y: Tensor) -> Any:
        """``function(field, t, y)``, tensors that a step evaluates once, which a backward pass may know already."""
        return function(self, t, y)

    def remainder(self, t: Tensor, y: Tensor) -> Tensor:
        """N(t, y) of a semilinear term; refused where it does not fit the state."""
        return self.fitting(self.term.remainder(t, y, self.args), y)

    def fitting(self, dy: Tensor, y: Tensor) -> Tensor:
        """A slope as it is; refused where it would change the state's shape, dtype or device."""
        return self._fitting(dy, y, "drift")

    def diffused(self, t: Tensor, y: Tensor, dw: Tensor) -> Tensor:
        """What the diffusion makes of an increment; refused where it does not fit the state."""
        return self._fitting(self.term.diffuse(t, y, dw, self.args), y, "diffusion")

    def _fitting(self, dy: Tensor, y: Tensor, kind: str) -> Tensor:
        for what in ("shape", "dtype", "device"):
            found, expected = getattr(dy, what, None), getattr(y, what)
            if found != expected:
                got = _plain(found) if isinstance(dy, Tensor) else type(dy).__name__
                raise ValueError(f"term: expected a {kind} of the state's {what} {_plain(expected)}, got {got}")
        return dy

    def clock(self, t: Number, y: Tensor) -> Tensor:
        """Float64 times (l), rounded once to the state's dtype and shaped as the term sees them."""
        if isinstance(t, float):
            return torch.full((), t, dtype=real_dtype(y), device=y.device)  # in half of the time of torch.tensor
        t = torch.as_tensor(t).to(device=y.device, dtype=real_dtype(y))
        return t if self.lanes == "joint" else expand(t, y)

    def clocks(self, interval: Interval, nodes: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The times t + c h of all nodes c (s), float64, at once, each as from `clock`."""
        t, h, _ = interval
        if isinstance(h, float):
            times = torch.from_numpy(t + h * nodes.cpu().numpy())
            return times.to(device=y.device, dtype=real_dtype(y)).unbind()
        nodes = nodes.reshape(-1, *(1,) * h.ndim)
        times = (t + nodes * h).to(device=y.device, dtype=real_dtype(y))  # (s, l)
        return (times if self.lanes == "joint" else times.reshape(*times.shape, *(1,) * (y.ndim - 1))).unbind()


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value


class Step(NamedTuple):
    """The outcome of one step."""

    y: Tensor
    error: Tensor | None  # estimate of the local error, of y's shape
    stages: tuple[Tensor, ...]  # what dense output and heuristics are derived from
    carry: tuple[Tensor, ...]  # handed to the next step
    status: Tensor | None = None  # (l) of Status.RUNNING or the cause why the step could not be taken


class Stepper(ABC):
    """One step of a numerical method; a frozen dataclass without state of its own.

    What survives a step goes through the carry: tensors that `init` can recompute to round-off from (t, y), or, with
    ``history``, makes only to begin with.

    Attributes:
        order: order of convergence of the state.
        evaluations: evaluations of the field per step.
        adaptive: whether a step estimates its error.
        dense: whether `interpolate` gives the state within a step.
        uniform: whether all steps of a solve must have the same size.
        needs: the class of terms that the method integrates.
        masses: whether it integrates terms with a mass.
        reversible: whether the step over the reversed interval, from (y1, carry), gives (y0, carry) to round-off.
        history: whether the carry is more than a cache, so that a step cannot be taken again from (t, y) alone.
        noise_types: those of the stochastic equations that it integrates; none for a method of ordinary ones.
        levy: whether it reads space-time Levy areas of the path, as `Levy`.
        area: whether it reads Levy areas of pairs of the path's entries, as `sciml.solvers.areas.Area`.
        halves: whether it reads the path within a step too, so that it takes adaptive steps only.
        stability: how far it is stable along the negative real axis, where its steps can be probed for stiffness.
    """

    order: ClassVar[int]
    evaluations: ClassVar[int]
    adaptive: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    uniform: ClassVar[bool] = False
    needs: ClassVar[type[Term]] = Term
    masses: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    history: ClassVar[bool] = False
    noise_types: ClassVar[tuple[NoiseType, ...]] = ()
    levy: ClassVar[bool] = False
    area: ClassVar[bool] = False
    halves: ClassVar[bool] = False
    stability: ClassVar[float] = 0.0
    starts: ClassVar[int] = 1  # evaluations of `init`
    lean: ClassVar[bool] = True  # whether a step without ``full`` leaves as many out, see `spared`

    @property
    def error_order(self) -> float:
        """The power of the step size by which the error estimate shrinks."""
        return self.order

    @property
    def spared(self) -> int:
        """Evaluations that a step without ``full`` leaves out."""
        return self.starts * self.lean

    def within(self, controller: "Controller") -> "Stepper":
        """The same method, told what it wants to know of the controller that it runs under."""
        return self

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Its coefficients as tensors, made once per solve: times like t0 (l), the rest like y.

        Nothing in a step may make a tensor out of numbers: on a GPU that waits for a copy, in a compiled loop it is
        refused.
        """
        return ()

    def read(self, path: Path, tensors: tuple[Tensor, ...], theta0: Number, theta1: Number, span: Tensor) -> Any:
        """What it reads of a path over a step; arguments as those of `Path.increment`."""
        return path.increment(tensors, theta0, theta1, span)

    @abstractmethod
    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The carry at (t, y).

        Args:
            field: the bound term.
            t: time (l), float64.
            y: state.
            h: size of the coming step (l), float64; None where a controller has still to choose it.
        """

    @abstractmethod
    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step over the interval.

        Args:
            field: the bound term.
            interval: start and size.
            y: state at the start.
            carry: as left by `init` or by the last accepted step.
            dx: the increment of the path over the interval; None where the path is time itself.
            full: False where nobody reads the error, the last stage or the carry.
        """

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The state at fractions s (l, k) of the step, as (l, k, ...) with l left out for joint lanes.

        It may read the step's interval, ends and stages and the stepper's constants: nothing else, since several steps
        may come as one with the lanes of all.

        A method without dense output knows the two ends only: its save times are stops.
        """
        lane = int(segment.march.lanes == "each")
        y0, y1 = segment.y0.unsqueeze(lane), segment.y1.unsqueeze(lane)
        return torch.where(s.reshape(s.shape + (1,) * (segment.y0.ndim - lane)) < 0.5, y0, y1)

    def probe(self, segment: "Segment") -> tuple[Tensor, Tensor] | None:
        """The difference of two states at one time within a step, and that of the slopes there; None without such.

        Their quotient estimates an eigenvalue of the Jacobian.
        """
        return None

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """The same as a polynomial in s: the coefficients of s, s^2, .., shaped as the state."""
        return (segment.y1 - segment.y0,)


def combine(row: Sequence[float], ks: Sequence[Tensor], h: Number) -> Tensor:
    """The increment h sum_i row_i k_i; zero weights cost nothing."""
    scale = h if isinstance(h, float) else 1.0
    total = None
    for a, k in zip(row, ks, strict=False):
        if a:
            total = k * (a * scale) if total is None else torch.add(total, k, alpha=a * scale)
    if total is None:
        raise ValueError("row: expected a nonzero weight, got none")
    return total if isinstance(h, float) else h * total


def displace(y: Tensor, row: Sequence[float], ks: Sequence[Tensor], h: Number) -> Tensor:
    """The stage state y + h sum_i row_i k_i, in the fewest kernels.

    With a float h every addition rounds at the size of y, which a stage can bear; for the solution itself add
    `combine`.
    """
    if not isinstance(h, float):
        return torch.addcmul(y, h, combine(row, ks, 1.0))
    for a, k in zip(row, ks, strict=False):
        if a:
            y = torch.add(y, k, alpha=a * h)
    return y
