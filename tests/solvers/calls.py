"""The arguments of random solves, each a function of its number."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sciml import Discrete, Solver
from sciml.solvers import (
    PID,
    Backsolve,
    Event,
    Final,
    Grid,
    Quadrature,
    SaveAt,
    Semilinear,
    Separable,
    Stats,
    Stepper,
    Steps,
    Taylor,
    Term,
    VelocityVerlet,
    Yoshida4,
)
from sciml.solvers.newton import ImplicitStepper
from sciml.solvers.term import as_term
from tests.solvers.exact import EDGE, PROBLEMS, Problem
from tests.solvers.registry import STEPPERS

# Taylor hands jets to the field, which these fields, asking for tensors, cannot tell from a tree of states.
TENSORS = [case.stepper for case in STEPPERS if not isinstance(case.stepper, Taylor)]
ALL: list[Stepper] = [*TENSORS, VelocityVerlet(), Yoshida4()]
SHAPES = [(), (1,), (3,), (2, 2), (3, 1), (2, 1, 2), (3, 4), (0,), (0, 2), (2, 0)]
DTYPES = [torch.float64, torch.float64, torch.float32, torch.complex128, torch.complex64]
SPANS = [*[1.0] * 4, 0.5, 2.5, 0.0, 1e-3, 1e-9, 1e-15, 1e-300, 5e-324, 100.0, 1e6, 1e30, 1e300]
STARTS = [0.0, 0.0, 0.0, 0.25, -1.0, 3.0, 1e4, 1e8, -1e15]
STORES = [Discrete(), Discrete("all"), Discrete("every"), Discrete("every", 2)]


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a state."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(function, part) for key, part in tree.items()}
    return type(tree)(mapped(function, part) for part in tree)


def fitted(t: Tensor, leaf: Tensor) -> Tensor:
    """Times (b), as functions of trees see them with lanes "each", so that they broadcast; others as they are."""
    return t.reshape(t.shape + (1,) * (leaf.ndim - t.ndim)) if t.ndim else t


class Weighted(nn.Module):
    """A problem's field whose weight is a parameter."""

    def __init__(self, problem: Problem, w: Tensor):
        super().__init__()
        self.function, self.w = problem.field, nn.Parameter(w)

    def forward(self, t: Tensor, y: Any) -> Any:
        return mapped(lambda leaf: self.function(fitted(t, leaf), leaf, self.w), y)


class Driven(Semilinear):
    """y' = -w y + cos t with its linear part apart."""

    def linear(self, args: tuple[Tensor, ...]) -> Tensor:
        return -args[0]

    def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return t.cos() + 0 * y


class Oscillator(Separable):
    """q' = w p, p' = -w q."""

    def velocity(self, t: Tensor, p: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * p

    def force(self, t: Tensor, q: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -args[0] * q


def orbit(t: Tensor, t0: Tensor, y0: Tensor, w: Tensor) -> Tensor:
    (q, p), c, s = y0.chunk(2, -1), (w * (t - t0)).cos(), (w * (t - t0)).sin()
    return torch.cat([q * c + p * s, p * c - q * s], -1)


OSCILLATOR = Problem(lambda t, y, w: y, orbit, lambda w, s: (0.0, 0.0))


REFUSED = [
    r"t[01]: expected a time (of at most|at least)",
    r"y0: \w+ expects a real state",
    r"adjoint: a step of \w+ needs its history",
    r"\w+: Backsolve",
    r"Backsolve: ",
    r'\w+: Discrete\("invert"\) cannot undo them',
    r"max_steps: expected at least the grid's",
    r"save_at: \w+ has no dense output, so its save times cannot carry gradients",
]


@dataclass
class Call:
    """The arguments of one solve, and what is known of them."""

    number: int
    name: str  # of the problem
    problem: Problem
    w: Tensor  # its weight
    term: Any
    y0: Any
    t0: Any
    t1: Any
    stepper: Any
    control: Any  # the controller's class
    options: dict[str, Any]  # its arguments
    adjoint: Any
    lanes: Any
    max_steps: Any
    mode: str  # "graph", "no_grad" or "inference"
    more: dict[str, Any] = field(default_factory=dict)  # the other arguments of `solve`
    event: str = ""
    te: float = 0.0  # its time
    jump: str = ""
    parts: int = 8
    again: str = ""  # how the solution is used once more
    mistake: str = ""

    def solver(self) -> Any:
        """The solver; its classes refuse mistakes, too."""
        if "solver" in self.more:
            return self.more["solver"]
        controller = self.control if self.control is None else self.control(**self.options)
        return Solver(self.stepper, controller, self.adjoint, self.max_steps, self.lanes)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `solve` beside the solver."""
        return {key: x for key, x in self.more.items() if key != "solver"}

    def refusable(self, message: str) -> bool:
        """Whether a call that is no mistake may be refused so: what does not go together, as documented."""
        return any(re.match(pattern, message) for pattern in REFUSED)

    @property
    def joint(self) -> bool:
        return self.lanes == "joint"

    def wanted(self) -> list[Tensor]:
        """The inputs that gradients are asked of."""
        inputs = [*leaves(self.y0), self.w, self.t0, self.t1]
        return [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]


def draw(number: int) -> Call:
    """The call of a number."""
    pick = random.Random(number)
    chance = lambda p: pick.random() < p  # noqa: E731
    stepper, lanes = pick.choice(ALL), pick.choice(["joint", "each"])
    dtype = pick.choice(DTYPES)
    if isinstance(stepper, ImplicitStepper) and chance(0.9):
        dtype = pick.choice([torch.float64, torch.float32])
    kind = "c" if dtype.is_complex else "r"
    needs = stepper.needs
    if needs is Semilinear:
        name, problem = "driven", PROBLEMS["driven"]
    elif needs is Separable:
        name, problem = "oscillator", OSCILLATOR
    else:
        name = pick.choice([name for name, problem in PROBLEMS.items() if kind in problem.kinds])
        problem = PROBLEMS[name]
    shapes = [shape for shape in SHAPES if shape or lanes == "joint"]
    if needs is Separable:
        shapes = [shape for shape in shapes if shape and shape[-1] % 2 == 0]
    real = torch.float32 if dtype in (torch.float32, torch.complex64) else torch.float64
    large = 8.0 if chance(0.15) else 1.5  # how large a state is

    def state(shape: tuple[int, ...]) -> Tensor:
        part = lambda: pick.choice([-1, 1]) * pick.randrange(16, 65) / 64 * large  # noqa: E731
        count = torch.Size(shape).numel()
        values = [complex(part(), part()) if dtype.is_complex else part() for _ in range(count)]
        if values and chance(0.1):
            values[0] = 0.0
        return torch.tensor(values, dtype=dtype).reshape(shape)

    y0: Any = state(pick.choice(shapes))
    if needs is Term and chance(0.15):
        batch = (y0.shape[0],) if lanes == "each" else ()
        other = state((*batch, *pick.choice([(), (2,), (1, 2)])))
        y0 = pick.choice([(y0, other), {"a": y0, "b": other}, [y0, (other,)]])
    first = leaves(y0)[0]
    sign = pick.choice([1, 1, -1])
    if problem.one_way:
        sign = 1
    t0: Any = pick.choice(STARTS)
    span = pick.choice(SPANS)
    t1: Any = t0 + sign * span
    if lanes == "each" and chance(0.4):
        sizes = [pick.randrange(0 if chance(0.2) else 1, 5) / 4 for _ in range(len(first))]
        t1 = t0 + sign * span * torch.tensor(sizes, dtype=torch.float64)
        t0 = torch.full_like(t1, t0) if chance(0.5) else t0
    elif chance(0.3):
        t0, t1 = torch.tensor(t0, dtype=torch.float64), torch.tensor(t1, dtype=torch.float64)
    w = torch.tensor(pick.randrange(20, 97) / 64, dtype=real)
    weighs = pick.choice(["constant", "args", "parameter"]) if needs is Term else "args"
    function = problem.field
    term: Any = lambda t, y: mapped(lambda leaf: function(fitted(t, leaf), leaf, w), y)  # noqa: E731
    more: dict[str, Any] = {}
    mode = pick.choice(["graph", "graph", "no_grad", "inference"])
    if weighs == "args":
        more["args"] = (w,)
        term = lambda t, y, args: mapped(lambda leaf: function(fitted(t, leaf), leaf, args[0]), y)  # noqa: E731
        if needs is Semilinear:
            term = Driven()
        elif needs is Separable:
            term = Oscillator()
        w.requires_grad_(mode == "graph" and chance(0.7))
    elif weighs == "parameter":
        term = Weighted(problem, w)
        w = term.w
    if mode == "graph":
        for x in (*leaves(y0), t0, t1):
            if isinstance(x, Tensor) and chance(0.7):
                x.requires_grad_()
    call = Call(number, name, problem, w, term, y0, t0, t1, stepper, None, {}, None, lanes, 0, mode, more)
    _controlled(call, pick)
    _read(call, pick)
    _interrupted(call, pick)
    call.more["throw"] = chance(0.5)
    call.again = pick.choice(["", "", "", "mesh", "dense", "resume"])
    return call


def _controlled(call: Call, pick: random.Random) -> None:
    """Choose the controller, the adjoint and the largest number of steps."""
    stepper = call.stepper
    call.max_steps = pick.choice([1, 5, 40, 150, 150, 150])
    if stepper.adaptive and pick.random() < 0.75:
        call.control = PID
        least = 2 if type(stepper).__name__ != "Fehlberg2" else 3  # whose estimate passes unstable steps at 1e-2
        rtol = 10.0 ** -pick.randrange(least, 5 if stepper.order < 4 else 9)
        call.options = {"rtol": rtol, "atol": rtol * pick.choice([1, 1, 0.01, 0])}
        extra = {
            "dt0": pick.choice([1e-3, 0.1, 10.0, 1e-20]),
            "dtmax": pick.choice([0.1, 0.5, 1e3]),
            "pcoeff": 0.3,
            "dcoeff": 0.1,
            "step_ts": [EDGE, 0.5, 2.0],
            "jump_ts": [EDGE, -0.5],
            "factormax": 3.0,
        }
        for key in pick.sample(sorted(extra), pick.choice([0, 0, 0, 1, 2])):
            call.options[key] = extra[key]
    else:
        call.control, n = Grid, pick.choice([1, 4, 16, 16, 30])
        call.parts = n
        call.options = {"n": n}
        kind = pick.random()
        t0, t1 = (torch.as_tensor(t, dtype=torch.float64).detach() for t in (call.t0, call.t1))
        if not stepper.uniform and kind < 0.15 and t1.ndim == t0.ndim == 0 and t0 != t1:
            fractions = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** pick.choice([1, 1.5])
            ts = torch.lerp(t0, t1, fractions)
            call.options = {"ts": ts} if bool((ts.diff().sign() == (t1 - t0).sign()).all()) else call.options
            if "ts" in call.options and call.mode == "graph" and pick.random() < 0.5:
                call.options["ts"].requires_grad_()
        elif kind > 0.85 and t1.ndim == 0 and t0 != t1:
            dt = float((t1 - t0).abs() / n)
            call.options = {"dt": dt} if dt > 0 else call.options
    kinds: list[Any] = [None, *STORES, *STORES, Backsolve()]
    if stepper.history or stepper.reversible:
        kinds = [None, Discrete(), *[Discrete("invert")] * call.stepper.reversible]
    call.adjoint = pick.choice(kinds)


def _read(call: Call, pick: random.Random) -> None:
    """Choose save times and folds."""
    count = pick.choice([None, None, 0, 1, 3, 6])
    uniform = call.stepper.uniform
    parts = call.options.get("n", 8) if not uniform else call.parts
    t0, t1 = (torch.as_tensor(t, dtype=torch.float64).detach() for t in (call.t0, call.t1))
    if count is not None:
        fractions = torch.tensor([pick.randrange(parts + 1) / parts for _ in range(count)], dtype=torch.float64)
        ends = t0.reshape(-1, 1), t1.reshape(-1, 1)
        ts = torch.where(fractions == 1, ends[1], ends[0] + (ends[1] - ends[0]) * fractions)
        ts = ts.squeeze(0) if t0.ndim == t1.ndim == 0 else ts
        if call.mode == "graph" and not uniform and pick.random() < 0.3:
            ts.requires_grad_()
        call.more["save_at"] = ts.tolist() if ts.ndim == 1 and pick.random() < 0.3 and not ts.requires_grad else ts
    folds: dict[str, Any] = {"final": Final(), "steps": Steps(), "stats": Stats()}
    if call.stepper.dense:
        folds["rise"] = Quadrature(_rate(call))
        folds["again"] = SaveAt(torch.stack([t1, t0], -1) if t1.ndim == t0.ndim else torch.stack([t1, t1], -1))
    chosen = pick.sample(sorted(folds), pick.choice([0, 0, 1, 2, len(folds)]))
    if chosen:
        call.more["folds"] = {name: folds[name] for name in chosen}


def _rate(call: Call) -> Callable[..., Tensor]:
    """The field as an integrand, of one tensor for trees."""
    lane = int(call.lanes == "each")

    def rate(t: Tensor, y: Any, args: tuple[Tensor, ...]) -> Tensor:
        dy = as_term(call.term).drift(t, y, args)
        return torch.cat(
            [leaf.flatten(lane) if leaf.ndim > lane else leaf.unsqueeze(lane) for leaf in leaves(dy)], lane
        )

    return rate


def _interrupted(call: Call, pick: random.Random) -> None:
    """Choose events and jumps."""
    t0, t1 = (torch.as_tensor(t, dtype=torch.float64).detach() for t in (call.t0, call.t1))
    if (
        call.stepper.dense
        and not call.stepper.uniform
        and sum(leaf.numel() for leaf in leaves(call.y0))
        and pick.random() < 0.3
    ):
        call.event = pick.choice(["end", "end", "record", "reset", "level", "nan", "never", "twins", "chatter", "ties"])
        far = float(t1.flatten()[0]) if t1.numel() else float(t0.flatten()[0]) if t0.numel() else 0.0
        near = float(t0.flatten()[0]) if t0.numel() else 0.0
        call.te = near + (far - near) * pick.choice([0.0, 0.25, 0.4375, 0.75, 1.0, 1.5, -0.5])
        call.more["events"] = _events(call, pick.choice([0, 0, 1, -1]))
    if pick.random() < 0.15:
        call.jump = pick.choice(["identity", "touch", "nan"])
        call.more["jumps"] = [_JUMPS[call.jump]]


def _lanewise(call: Call, t: Tensor) -> Tensor:
    """The time (l)."""
    return t if call.joint else t.reshape(-1)


def _level(call: Call, y: Any) -> Tensor:
    """One component (l)."""
    first = next(leaf for leaf in leaves(y) if leaf.numel())
    first = torch.view_as_real(first) if first.is_complex() else first
    return first.reshape(-1)[0] if call.joint else first.flatten(1)[:, 0] if first.ndim > 1 else first


def _events(call: Call, direction: int) -> Any:
    te = call.te
    clock = lambda shift: lambda t, y, args: _lanewise(call, t) - (te + shift)  # noqa: E731
    same = lambda t, y, args: y  # noqa: E731
    gap = 1e-13 * (1 + abs(te))
    return {
        "end": lambda: Event(clock(0.0), direction),
        "record": lambda: {"at": Event(clock(0.0), direction, terminate=False)},
        "reset": lambda: [Event(clock(0.0), direction, reset=same)],
        "level": lambda: Event(lambda t, y, args: _level(call, y) - 0.5, direction, terminate=False),
        "nan": lambda: [lambda t, y, args: torch.where(_lanewise(call, t) > te, torch.nan, 1.0)],
        "never": lambda: lambda t, y, args: _lanewise(call, t).abs() + 1,
        "twins": lambda: [Event(clock(0.0), terminate=False), Event(clock(gap), reset=same)],
        "chatter": lambda: Event(lambda t, y, args: (1e3 * _lanewise(call, t)).sin(), reset=same),
        "ties": lambda: [Event(clock(0.0)), Event(clock(0.0), terminate=False), Event(clock(0.0), reset=same)],
    }[call.event]()


_JUMPS: dict[str, Any] = {
    "identity": lambda t, y, key, args: (y, torch.zeros(key.shape, dtype=torch.bool)),
    "touch": lambda t, y, key, args: (y, torch.ones(key.shape, dtype=torch.bool)),
    "nan": lambda t, y, key, args: (mapped(lambda x: x * torch.nan, y), torch.ones(key.shape, dtype=torch.bool)),
}
