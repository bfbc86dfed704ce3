"""What `solve` and its parts expect of their arguments."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from sciml import solvers
from sciml.solvers.control import Controller, nearest
from sciml.solvers.event import Event
from sciml.solvers.expect import expect, expect_times
from sciml.solvers.fold import Fold
from sciml.solvers.jump import Jump
from sciml.solvers.path import Path
from sciml.solvers.stepper import Stepper
from sciml.solvers.term import FunctionTerm, Term, called, real_dtype, takes_args
from sciml.solvers.transforms import holds
from sciml.typing import Args, Lanes, Time

SHORTEST = torch.finfo(torch.float64).tiny  # of spans; one over a shorter one overflows
LARGEST = 1e-8  # of a dtype's largest number: how large times may be, since coefficients multiply them


def stepper_named(name: str) -> Stepper:
    """The stepper of a name in lower case, with its defaults."""
    public = {each.lower(): getattr(solvers, each) for each in dir(solvers)}
    steppers = {each: kind for each, kind in public.items() if isinstance(kind, type) and hasattr(kind, "order")}
    if name not in steppers:
        similar = get_close_matches(name.lower(), steppers, 1, 0.0)[0]
        raise ValueError(f"solver: expected one of {', '.join(sorted(steppers))}, got {name!r}; maybe {similar!r}?")
    return steppers[name]()


def check_state(y0: Tensor, lanes: Lanes) -> None:
    """Refuse a state that cannot be integrated."""
    if y0.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise TypeError(f"y0: expected a real or complex tensor of single or double precision, got {y0.dtype}")
    if lanes == "each" and y0.ndim == 0:
        raise ValueError("y0: lanes='each' expects a batch on the first axis, got a 0-d tensor")


def check_args(args: Any, term: Term, events: Iterable[Event] = (), others: Any = None) -> None:
    """Refuse what is not a tuple of tensors, and what neither a plain function, nor an event, nor ``others`` read."""
    if not isinstance(args, tuple) or not all(isinstance(arg, Tensor) for arg in args):
        kinds = [type(arg).__name__ for arg in args] if isinstance(args, tuple | list) else type(args).__name__
        raise TypeError(f"args: expected a tuple of tensors, got {kinds}; what is not a tensor belongs into the term")
    plain = isinstance(term, FunctionTerm) and term.takes is False
    if args and plain and not others and not any(map(_reads, events)):
        raise ValueError(f"args: expected none with a term f(t, y), got {len(args)}; a term f(t, y, args) gets them")


def named_events(events: Any) -> dict[Any, Event]:
    """The events by name, or by number where they have none.

    Raises:
        TypeError: something is neither an `Event` nor a callable of two or three positional arguments.
    """
    if isinstance(events, Event) or callable(events):
        events = (events,)
    if isinstance(events, str) or not isinstance(events, Iterable):
        raise TypeError(f"events: expected an Event, or several in a sequence or by name, got {type(events).__name__}")
    pairs = events.items() if isinstance(events, Mapping) else enumerate(events)
    return {name: _with_args(event if isinstance(event, Event) else Event(event)) for name, event in pairs}


@dataclass(frozen=True)
class _Given:
    """A callable of (t, y) as one of (t, y, args); ``takes`` is what `takes_args` says of it."""

    function: Callable[..., Any]
    takes: bool | None

    def __call__(self, t: Tensor, y: Any, args: Args) -> Any:
        return called(self.function, self.takes, t, y, args)


def _with_args(event: Event) -> Event:
    """The event with callables of (t, y, args)."""
    changes: dict[str, Any] = {}
    for name, letter in (("function", "g"), ("reset", "reset")):
        function = getattr(event, name)
        takes = function is None or takes_args(function, name, letter)
        if not takes:
            changes[name] = _Given(function, takes)
    return replace(event, **changes) if changes else event


def _reads(event: Event) -> bool:
    """Whether one of its callables may be given args."""
    functions = (event.function, event.reset)
    return any(f is not None and not (isinstance(f, _Given) and f.takes is False) for f in functions)


def check_folds(folds: Any) -> dict[str, Fold]:
    """The folds by name; None is none."""
    if folds is None:
        return {}
    expect("folds", folds, Mapping, "a mapping from names to folds, as {'steps': Steps()}")
    for name, fold in folds.items():
        expect(f"folds[{name!r}]", fold, Fold, "a Fold")
    return dict(folds)


def check_jumps(jumps: Any) -> tuple[Jump, ...]:
    """The jumps."""
    what = "a sequence of callables (t, y, key, args) -> (y, changed)"
    if callable(jumps) or isinstance(jumps, str) or not isinstance(jumps, Iterable):
        raise TypeError(f"jumps: expected {what}, got {type(jumps).__name__}")
    several = tuple(jumps)
    for i, jump in enumerate(several):
        if not callable(jump):
            raise TypeError(f"jumps[{i}]: expected a callable (t, y, key, args), got {type(jump).__name__}")
    return several


def span(t0: Time, t1: Time, y0: Tensor, lanes: Lanes) -> tuple[Tensor, Tensor]:
    """Start and end (l), float64; for joint lanes on the CPU, where the march reads them without waiting."""
    shape = () if lanes == "joint" else y0.shape[:1]
    device = torch.device("cpu") if lanes == "joint" else y0.device
    largest = LARGEST * torch.finfo(real_dtype(y0)).max
    ends = []
    for name, given in (("t0", t0), ("t1", t1)):
        number = isinstance(given, float | int)
        t = torch.scalar_tensor(given, dtype=torch.float64) if number else expect_times(name, given)
        t = t.to(device=device, dtype=torch.float64)
        if t.shape not in ((), shape):
            raise ValueError(
                f"{name}: expected a number or a tensor of shape {tuple(shape)}, got shape {tuple(t.shape)}"
            )
        if not (math.isfinite(given) if number else holds(t.isfinite())):
            raise ValueError(f"{name}: expected a finite time, got {given}")
        if not (abs(given) <= largest if number else holds(t.detach().abs() <= largest)):
            raise ValueError(f"{name}: expected a time of at most {largest:g} with a state of {y0.dtype}, got {given}")
        ends.append(t.expand(shape))
    length = (ends[1] - ends[0]).detach().abs()
    if not holds((length == 0) | (length >= SHORTEST)):
        raise ValueError(f"t1: expected a time at least {SHORTEST:g} from t0, or t0 itself, got t0={t0} and t1={t1}")
    return ends[0], ends[1]


ROUNDING = 1e-6  # of the span, by which a save time in float32 may miss its ends


def _shaped(save_at: Any, lanes: Lanes, t0: Tensor) -> Tensor:
    """Save times (t) or (b, t), on the control device."""
    ts = expect_times("save_at", save_at)
    batch = tuple(t0.shape)
    if ts.ndim == 0 or ts.ndim > 1 + t0.ndim or (ts.ndim == 2 and ts.shape[:1] != batch):
        each = f" or ({batch[0]}, t)" if lanes == "each" else ""
        raise ValueError(f"save_at: expected times of shape (t){each}, got shape {tuple(ts.shape)}")
    return ts.to(t0.device)


def stops_at(save_at: Any, lanes: Lanes, grid: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    """The stops (s) or (l, s) of a controller with save times among them."""
    ts, length = _shaped(save_at, lanes, t0).detach(), (t1 - t0).detach()[..., None]
    theta = (ts.to(torch.float64) - t0.detach()[..., None]) / torch.where(length == 0, 1, length)
    theta = theta.clamp(0, 1)  # those outside of the span are refused where they are prepared
    return torch.cat([theta, grid.expand(*theta.shape[:-1], -1)], -1).sort(-1).values


def save_times(save_at: Any, lanes: Lanes, stepper: Stepper, grid: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    """The save times, on the control device; those of a stepper without dense output must lie on its grid."""
    ts = _shaped(save_at, lanes, t0)
    if stepper.dense:
        return ts
    name = type(stepper).__name__
    if ts.requires_grad:
        raise ValueError(f"save_at: {name} has no dense output, so its save times cannot carry gradients")
    length = (t1 - t0)[..., None]
    theta = (ts.to(torch.float64) - t0[..., None]) / length
    outside = (theta < -ROUNDING) | (theta > 1 + ROUNDING)
    if bool(outside.any()):
        worst = ts.expand(theta.shape)[outside][0].item()
        raise ValueError(f"save_at: expected times between t0 and t1, got {worst:g} outside the span")
    theta = theta.clamp(0, 1)
    moving = stepper.adaptive and (t0.requires_grad or t1.requires_grad)  # a grid's own times move with them
    if moving and bool(((theta > 0) & (theta < 1)).any()):
        raise ValueError(
            f"save_at: {name} has no dense output, so its save times move with t0 and t1; expected t0 and t1 without "
            "gradients, or no time between them"
        )
    near, left, right = nearest(torch.cat([torch.zeros_like(grid[..., :1]), grid], -1), theta)
    rounding = 2.0**-50 * torch.maximum(t0.abs(), t1.abs())[..., None] / length.abs()
    off = (theta - near).abs() > 1e-6 * (right - left) + rounding
    if bool(off.any()):
        below, above = ((t0[..., None] + length * node)[off][0].item() for node in (left, right))
        raise ValueError(
            f"save_at: {name} has no dense output, so expected times at which its steps end, as {below:g} and "
            f"{above:g}, got {ts.expand(theta.shape)[off][0].item():g}"
        )
    return t0[..., None] + length * near


def check_compact(
    compact: Any,
    args: tuple[Tensor, ...],
    y0: Tensor,
    controller: Controller,
    events: Any,
    jumps: Any,
    path: Path | None,
    folds: Sequence[Fold],
) -> None:
    """Refuse what a batch that shrinks has no part of."""
    if not isinstance(compact, tuple | list):
        raise TypeError(
            f"compact: expected the numbers of args that have a row for each sample, as (), got {compact!r}"
        )
    for i in compact:
        if not isinstance(i, int) or not 0 <= i < len(args):
            raise ValueError(f"compact: expected numbers of args, of which there are {len(args)}, got {i!r}")
        if args[i].shape[:1] != y0.shape[:1]:
            raise ValueError(
                f"compact: expected args[{i}] to have a row for each of {len(y0)} samples, got {tuple(args[i].shape)}"
            )
    for name, given in (("events", events), ("jumps", jumps)):
        if given:
            raise ValueError(f"{name}: expected none with compact")
    for name in ("rtol", "atol"):
        if getattr(getattr(controller, name, 0.0), "ndim", 0):
            raise ValueError(f"{name}: expected a number with compact, got a tensor")
    if path is not None and type(path).among is Path.among:
        raise ValueError(f"path: {type(path).__name__} knows all samples together only, expected compact=None")
    for fold in folds:
        if type(fold).prepare is not Fold.prepare and type(fold).among is Fold.among:
            raise ValueError(f"folds: {type(fold).__name__} has no method `among` for compact, expected compact=None")
