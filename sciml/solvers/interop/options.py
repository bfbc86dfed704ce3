"""What the method names and options of torchdiffeq mean in the core."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sciml import solvers
from sciml.solvers import tableau as tab
from sciml.solvers.auto import Auto
from sciml.solvers.control import PID, Decision, Grid
from sciml.solvers.dense import hermite
from sciml.solvers.explicit import RungeKutta
from sciml.solvers.fold import Fold, Reduce, SaveAt, Writes
from sciml.solvers.march import Segment
from sciml.solvers.stepper import Stepper
from sciml.solvers.term import Term, real_dtype
from sciml.typing import Number


@dataclass(frozen=True)
class ThreeEighths(RungeKutta):
    """Kutta's 3/8 rule (1901), order 4: what torchdiffeq calls rk4."""

    order: ClassVar[int] = 4
    tableau: ClassVar[tab.Tableau] = tab.Tableau(
        a=((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8)), c=(1 / 3, 2 / 3, 1.0, 1.0)
    )


# The methods of torchdiffeq 0.2.5 and of its main branch: the stepper, None where torchdiffeq's own has to run, and
# whether it chooses its steps.
METHODS: dict[str, tuple[str | type[Stepper] | None, bool]] = {
    "dopri8": ("Dopri8", True),
    "dopri5": ("Dopri5", True),
    "tsit5": ("Tsit5", True),
    "bosh3": ("Bosh3", True),
    "fehlberg2": ("Fehlberg2", True),
    "adaptive_heun": ("Heun", True),
    "euler": ("Euler", False),
    "midpoint": ("Midpoint", False),
    "heun2": ("Heun", False),
    "heun3": ("Heun3", False),
    "rk4": (ThreeEighths, False),
    "implicit_euler": ("ImplicitEuler", False),
    "implicit_midpoint": ("ImplicitMidpoint", False),
    "trapezoid": ("Trapezoid", False),
    "radauIIA3": ("RadauIIA3", False),
    "radauIIA5": ("RadauIIA5", False),
    "gl4": ("GaussLegendre4", False),
    "gl6": ("GaussLegendre6", False),
    "sdirk2": ("SDIRK2", False),
    "trbdf2": ("TRBDF2", False),
    "explicit_adams": (None, False),
    "implicit_adams": (None, False),
    "fixed_adams": (None, False),
    "scipy_solver": (None, True),
}

FIXED = {"step_size", "grid_constructor", "interp", "perturb", "norm"}
ADAPTIVE = {"first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps", "dtype", "norm"} | {
    "step_t",
    "jump_t",
}
CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
EVENT_STEPS = 20_000  # of a fixed grid that an event is waited for, as in torchdiffeq


class Method(NamedTuple):
    """A method by name."""

    name: str
    stepper: type[Stepper] | None  # None: torchdiffeq's own
    adaptive: bool

    @classmethod
    def of(cls, name: str | None) -> "Method":
        """One of torchdiffeq's, or a stepper of the core by its name in lower case.

        Raises:
            ValueError: there is no such method.
        """
        name = "dopri5" if name is None else name
        if name in METHODS:
            stepper, adaptive = METHODS[name]
            return cls(name, getattr(solvers, stepper) if isinstance(stepper, str) else stepper, adaptive)
        kinds = [getattr(solvers, public) for public in dir(solvers)]
        own = {
            kind.__name__.lower(): kind
            for kind in kinds
            if isinstance(kind, type)
            and issubclass(kind, Stepper)
            and kind not in (Stepper, Auto)  # `Auto` takes steps that are lost, of which callbacks would tell
            and kind.needs is Term
            and not kind.uniform
        }
        if name not in own:
            known = ", ".join([*METHODS, *sorted(own.keys() - METHODS.keys())])
            raise ValueError(f"method: expected one of {known}, got {name!r}")
        return cls(name, own[name], own[name].adaptive)

    def new(self) -> Stepper:
        """The stepper.

        Raises:
            ValueError: the core has none.
        """
        if self.stepper is None:
            raise ValueError(f"method: expected one that the core has, got {self.name!r}")
        return self.stepper()

    def checked(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """The options that it takes; it warns of others, as torchdiffeq does."""
        options = dict(options or {})
        unused = options.keys() - (ADAPTIVE if self.adaptive else FIXED)
        if unused:
            given = {name: options[name] for name in sorted(unused)}
            warnings.warn(f"{self.name}: Unexpected arguments {given}", stacklevel=4)
        return {name: value for name, value in options.items() if name not in unused}

    def warn_of(self, callbacks: set[str]) -> None:
        """Warn of callbacks that it never calls."""
        never = callbacks - (set(CALLBACKS) if self.adaptive else {"callback_step"})
        if never:
            warnings.warn(f"Solver '{self.name}' does not support callbacks {never}", stacklevel=4)


def require(condition: bool, message: str) -> None:
    """What torchdiffeq asserts.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


@dataclass(frozen=True)
class Floored(PID):
    """A PID controller that accepts any finite step of at most ``least``, as a fraction of the span."""

    least: float = 0.0

    def start(self, field: Any, t0: Number, span: Number, y: Tensor, k: Tensor | None, order: int, xp: Any) -> Number:
        """At least ``least``."""
        first = super().start(field, t0, span, y, k, order, xp)
        return xp.where(first < self.least, self.least, first)

    def decide(
        self, error: Number, dtheta: Number, used: Number, memory: tuple[Number, ...], order: float, xp: Any
    ) -> Decision:
        """The verdict of PID but for small steps."""
        verdict, finite = super().decide(error, dtheta, used, memory, order, xp), xp.isfinite(error)
        size = xp.where(finite & (verdict.dtheta < self.least), self.least, verdict.dtheta)
        small = finite & (used <= self.least * (1 + 1e-9))  # but for the round-off of theta + dtheta
        return Decision(verdict.accept | small, size, verdict.memory)


@dataclass(frozen=True)
class Sided(Grid):
    """A grid whose nodes are discontinuities of the field."""

    def edges(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, ...]:
        """All nodes."""
        inner = self.thetas(t0, t1).detach()
        return (torch.cat([torch.zeros_like(inner[..., :1]), inner], -1),)


def adaptive(
    options: Mapping[str, Any], rtol: Any, atol: Any, t0: float, span: float, norm: Callable[[Tensor], Any]
) -> PID:
    """The controller that torchdiffeq's options describe.

    Args:
        options: checked ones.
        rtol: number or tensor.
        atol: likewise.
        t0: start of the integration.
        span: its length, negative backward in time.
        norm: of a flat state.

    Raises:
        AssertionError: no step could be taken with them.
        ValueError: a time is given twice.
    """
    number = lambda name, default: float(options.get(name, default))  # noqa: E731
    first, least, most = options.get("first_step"), number("min_step", 0.0), number("max_step", math.inf)
    if not isinstance(options.get("dtype", torch.float64), torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype, got {options['dtype']!r}")
    stops = {name: options.get(name) for name in ("step_t", "jump_t")}
    ts = {name: None if t is None else torch.as_tensor(t).detach().double().reshape(-1) for name, t in stops.items()}
    given = [t[(t - t0) * span >= 0] for t in ts.values() if t is not None]
    if given and len(torch.cat(given).unique()) < sum(map(len, given)):
        raise ValueError("step_t, jump_t: expected no time twice")
    try:
        return Floored(
            rtol,
            atol,
            dt0=None if first is None else max(float(first), least),
            dtmax=None if most == math.inf else most,
            safety=number("safety", 0.9),
            factormin=min(max(number("dfactor", 0.2), 1e-6), 0.999),
            factormax=max(number("ifactor", 10.0), 1 + 1e-6),
            norm=lambda quotients: torch.as_tensor(norm(quotients)).abs(),
            step_ts=ts["step_t"],
            jump_ts=ts["jump_t"],
            least=least / abs(span),
        )
    except ValueError as error:
        raise AssertionError(str(error)) from None


def grid(options: Mapping[str, Any], func: Any, y0: Tensor, t: Tensor) -> Tensor:
    """The nodes of a fixed grid from t[0] to t[-1], those that would not go forward left out.

    Raises:
        ValueError: both ``step_size`` and ``grid_constructor`` are given.
        AssertionError: the grid has other ends.
    """
    size, constructor = options.get("step_size"), options.get("grid_constructor")
    if size is not None and constructor is not None:
        raise ValueError("step_size, grid_constructor: expected one of them at most, got both")
    if constructor is not None:
        nodes = constructor(func, y0, t)
        require(bool(nodes[0] == t[0]) and bool(nodes[-1] == t[-1]), "grid_constructor: expected a grid on all of t")
    elif size is None:
        return t
    else:
        span = (t[-1] - t[0]).detach()
        n = math.ceil((span.abs() / size + 1).item())
        nodes = torch.arange(0, n, dtype=t.dtype, device=t.device) * (size * span.sign()) + t[0]
        nodes = torch.cat([nodes[:-1], t[-1:]])
    forward = (nodes.detach() - t[0].detach()) * (t[-1] - t[0]).detach().sign()
    last = torch.cat([forward[:1] - 1, forward[:-1].cummax(0).values])
    inside = (forward > last) & (forward < forward[-1])
    inside[0] = True
    return torch.cat([nodes[inside], t[-1:]])


@dataclass(frozen=True, eq=False)
class Between(Fold):
    """The state at given times on a grid, by a straight line or a cubic between its nodes, whatever the stepper."""

    reduce: ClassVar[Reduce] = "write"
    stages: ClassVar[bool] = False

    ts: Tensor
    cubic: bool
    marks: list[float] = field(default_factory=list, init=False)  # the times as fractions of the span, on the host

    @property
    def places(self) -> int:
        """How many times there are."""
        return self.ts.shape[-1]

    def linear(self, stepper: Stepper) -> bool:
        """On straight lines."""
        return not self.cubic

    def prepare(self, t0: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, ...]:
        """As `SaveAt`."""
        theta, key = SaveAt(self.ts).prepare(t0, t1, y0)
        self.marks[:] = key.tolist()
        return theta, key

    def emit(self, segment: Segment, saves: int | None, *inputs: Tensor) -> Writes | None:
        """The states at the save times in the step."""
        ends = segment.theta0, segment.theta1
        if isinstance(ends[0], float) and bisect_right(self.marks, ends[0]) == bisect_right(self.marks, ends[1]):
            return None
        return SaveAt(self.ts).emit((_Cubic if self.cubic else _Straight)(*segment), saves, *inputs)

    def finish(self, value: Tensor, mesh: Any, t0: Tensor, t1: Tensor, unpack: Callable[[Tensor], Any]) -> Any:
        """As `SaveAt`."""
        return SaveAt(self.ts).finish(value, mesh, t0, t1, unpack)


class _Straight(Segment):
    """A step that a straight line is drawn through."""

    def dense(self, s: Tensor) -> Tensor:
        """At its ends exactly the states there."""
        weight = s.reshape(-1, *(1,) * self.y0.ndim).to(self.y0.dtype)
        return torch.lerp(self.y0[None], self.y1[None], weight)


class _Cubic(Segment):
    """A step between whose ends and slopes there the cubic Hermite polynomial is drawn."""

    def dense(self, s: Tensor) -> Tensor:
        """With an evaluation of the field at either end, since not every stepper has them."""
        bound, (t, h, scale) = self.march.field(self.const), self.interval
        before, after = (bound(bound.clock(at, y), y) for at, y in ((t, self.y0), (t + h, self.y1)))
        return hermite(self, s, before, after, scale)


def tolerance(name: str, tol: Any, y0: Tensor, shapes: list[torch.Size] | None) -> float | Tensor:
    """A tolerance of a flat state: a number, a tensor, or one of either for every part of a tuple.

    Raises:
        AssertionError: it needs a gradient, or there are not as many as parts.
    """
    require(not (isinstance(tol, Tensor) and tol.requires_grad), f"{name}: expected a tensor without gradient")
    like = {"dtype": real_dtype(y0), "device": y0.device}
    several = isinstance(tol, tuple | list) or (isinstance(tol, Tensor) and tol.ndim > 0)
    if not several:
        return float(tol)
    if shapes is None:
        return torch.as_tensor(tol, **like)
    require(len(tol) == len(shapes), f"{name}: expected {len(shapes)} tolerances, one for each part of y0")
    parts = [torch.as_tensor(part, **like) for part in tol]
    return torch.cat([part.expand(shape.numel()) for part, shape in zip(parts, shapes, strict=True)])
