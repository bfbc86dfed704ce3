"""Events: where a function of the solution changes its sign, and what happens there.

The march halts a lane before a step over which an event function changes its sign. `meet` finds the root on that step's
dense output, takes the step anew so that it ends there, and applies resets. On the frozen mesh the end of the step does
not move; that the event does is seen by a Newton correction of the time, tau = -g / (dg/dt), which vanishes in value
and carries the gradient of the implicit function. A state that is reset is brought from the event to the end of the
step along the field, so that it has the derivative that the theory of hybrid systems calls the saltation matrix.

Steps of equations with noise have no dense output and no slope: there an event is met at the end of its step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sciml.errors import Status
from sciml.solvers.arithmetic import TENSORS, Arithmetic
from sciml.solvers.control import FLOOR
from sciml.solvers.layout import Layout, PackedFunction, PackedReset
from sciml.solvers.once import Once
from sciml.solvers.root import itp
from sciml.solvers.state import Const, State
from sciml.solvers.term import expand, real_dtype, vanishing
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import March, Segment
    from sciml.solvers.mesh import Mesh, Pass
    from sciml.solvers.tape import Tape

WIDTH = 64  # units in the last place of time within which events are at once, and a zero counts as after
FAR = 2.0**-20  # how much of the span an event may be off by before a jump is looked for
NEWTON = 3  # corrections of a root of the dense output on the steps themselves: its error to the power of 2^3

Function = Callable[..., Tensor]  # of (t, y) or (t, y, args)
Reset = Callable[..., Any]  # likewise


@dataclass(frozen=True, eq=False)
class Event:
    """A change of sign of g(t, y(t), args) along the solution.

    It is noticed where g has different signs at the two ends of a step: two roots within one step go unnoticed, and
    `PID`'s ``dtmax`` is the remedy. A zero at the start counts as after it: a ball that starts on the floor, going up,
    meets the floor when it comes back. Nor is a change of sign made by a jump or by another event's reset an event.

    Args:
        function: g, mapping (t, y) or (t, y, args) to a tensor (l) of floating-point numbers: 0-d with joint lanes, (b)
            with lanes "each". The state is as the term sees it; t is 0-d, (b, 1, .., 1) with lanes "each", (b) where
            the state is a tree.
        direction: +1 for roots where g grows in the direction of integration, -1 where it falls, 0 for both.
        terminate: whether the solve (with lanes "each": of that sample) ends there; None: unless there is a ``reset``.
            Events that do not terminate are recorded, too.
        reset: maps (t, y) or (t, y, args) at the event to the state to go on with.

    Gradients of event times and of what follows a reset are those of the implicit function g = 0. They cannot be
    differentiated again, and do not exist where g touches zero without crossing it.

    With noise an event is met at the end of the step over which g changes its sign, as if g were watched at the ends of
    steps only; a path in between may have crossed and come back. With steps of size h a barrier acts as one that is
    farther away by .5826 b sqrt(h), b being the strength of the noise across it (Broadie, Glasserman, Kou, Math.
    Finance 7, 1997, doi:10.1111/1467-9965.00035). Times of such events have no gradient, states have that of the steps.
    """

    function: Function
    direction: int = 0
    terminate: bool | None = None
    reset: Reset | None = None

    def __post_init__(self) -> None:
        """Refuse what is not an event."""
        if not callable(self.function):
            raise TypeError(
                f"function: expected a callable g(t, y) or g(t, y, args), got {type(self.function).__name__}"
            )
        if self.reset is not None and not callable(self.reset):
            raise TypeError(f"reset: expected a callable (t, y, args), got {type(self.reset).__name__}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction: expected -1, 0 or 1, got {self.direction}")
        if self.terminate and self.reset is not None:
            raise ValueError("reset: a terminating event has no state to go on with; expected terminate=False or None")

    @property
    def final(self) -> bool:
        """Whether it ends the solve."""
        return self.reset is None if self.terminate is None else self.terminate

    def crossed(self, old: Number, new: Number) -> Any:
        """Whether the function went through zero in the right direction between two values."""
        up, down = (old < 0) & (new >= 0), (old > 0) & (new <= 0)
        return up if self.direction > 0 else down if self.direction < 0 else up | down

    def packed(self, layout: Layout) -> "Event":
        """The same event of states packed into one tensor."""
        reset = None if self.reset is None else PackedReset(self.reset, layout)
        return Event(PackedFunction(self.function, layout), self.direction, self.terminate, reset)


class Crossings(NamedTuple):
    """Where an event was met: n times, or at most n times by the samples of lanes "each", padded with NaN.

    Attributes:
        ts: times (n) or (b, n).
        ys: states there, before any reset: (n, *y0) or (b, n, *y0[1:]).
        count: how many there are (l).
        ended: whether it ended the solve (l).
    """

    ts: Tensor
    ys: Any
    count: Tensor
    ended: Tensor


def values(march: "March", c: Const, t: Number, y: Tensor) -> list[Tensor]:
    """The event functions at float64 times (l), each (l)."""
    found = [event.function(march.field(c).clock(t, y), y, c.args) for event in march.events]
    for i, g in enumerate(found):
        if not isinstance(g, Tensor) or g.shape != c.t0.shape or not g.is_floating_point():
            got = f"{tuple(g.shape)} of {g.dtype}" if isinstance(g, Tensor) else type(g).__name__
            expected = f"floating-point numbers of shape {tuple(c.t0.shape)} of event {i}"
            why = "an event is where a number changes its sign, e.g. y[0] - 0.5"
            raise ValueError(f"events: expected {expected}, got {got}; {why}")
    return found


def just_after(march: "March", c: Const, t: Number, y: Tensor) -> list[Tensor]:
    """The event functions a few units in the last place of time after t, along the field; each (l)."""
    return _beside(march, c, t, y, (1,))[0]


def _beside(march: "March", c: Const, t: Number, y: Tensor, sides: Sequence[int]) -> list[list[Tensor]]:
    """The event functions just before (-1) or after (1) a time, along the field."""
    width, slope = _width(c, y), march.field(c).checked(t, y)
    return [values(march, c, t + side * width, y + _sized(side * width, y) * slope) for side in sides]


def _width(c: Const, y: Tensor) -> Tensor:
    """The time (l) within which events are at once, with the sign of the integration."""
    return WIDTH * torch.finfo(real_dtype(y)).eps * torch.maximum(c.t0.abs(), c.t1.abs()) * (c.t1 - c.t0).sign()


def look(
    march: "March",
    segment: "Segment",
    after: Tensor,
    old: Sequence[Number],
    trials: Number,
    like: Number,
    xp: Arithmetic,
) -> tuple[tuple[Number, ...], Any, Any]:
    """The event functions (l) after a step and its jumps, whether they forbid to take it, and the status then.

    A step over a root is left to `meet`, which takes it anew; one to where a function is NaN is a failure.
    """
    c, t = segment.const, segment.interval.t + segment.interval.h
    marks = tuple(xp.number(g, like) for g in values(march, c, t, segment.y1))
    crosses = lost = False
    for event, before, mark in zip(march.events, old, marks, strict=True):
        crosses, lost = crosses | event.crossed(before, mark), lost | (mark != mark)
    if march.jumps:
        marks = tuple(xp.number(g, like) for g in values(march, c, t, after))
    halt = xp.where(trials >= march.max_steps, Status.MAX_STEPS.value, Status.CROSSING.value)
    return marks, crosses | lost, xp.where(lost, Status.EVENT_NAN.value, halt)


def meet(march: "March", c: Const, s: State, tape: "Tape") -> State:
    """The state with all lanes that wait before an event taken there.

    Args:
        march: the static part of the solve.
        c: its constants.
        s: a state of tensors; its lanes of status `Status.CROSSING` wait at the start of the step with the event.
        tape: keeps the steps.
    """
    waits = s.status == Status.CROSSING.value
    with torch.no_grad():
        near = (_width(c, s.y) / (2 * (c.t1 - c.t0))).nan_to_num().clamp_min(FLOOR)
        theta, fired = _located(march, c, s, waits, near)
    segment, y, carry, failure = _step(march, c, s, theta, fired)
    failure = torch.zeros_like(s.status) if failure is None else failure
    failure = torch.where(vanishing(y.detach(), march.lanes) == 0, failure, Status.NON_FINITE.value)
    taken = waits & (failure == Status.RUNNING.value)
    if bool(taken.any()):
        tape.add(segment, None if march.lanes == "joint" else taken)
        tape.meet(segment.y1, torch.where(taken, fired, 0))
    with torch.no_grad():
        marks = just_after(march, c, torch.lerp(c.t0, c.t1, theta), y)
        stuck = (theta - tape.last < near) | ((fired == 0) & (theta - s.theta < near))
        status = _standing(march, s, theta, fired, stuck)
        status = torch.where(taken, status, failure)
        tape.last = torch.where(taken & (fired != 0), theta, tape.last)
    pick = lambda new, old: torch.where(expand(taken.to(new.device), new), new, old)  # noqa: E731
    return s._replace(
        theta=pick(theta, s.theta),
        y=pick(y, s.y),
        carry=tuple(pick(new, old) for new, old in zip(carry, s.carry, strict=True)),
        marks=tuple(pick(new.to(old), old) for new, old in zip(marks, s.marks, strict=True)),
        trials=s.trials + waits,
        accepted=s.accepted + taken,
        status=torch.where(waits, status, s.status),
    )


def _standing(march: "March", s: State, theta: Tensor, fired: Tensor, stuck: Tensor) -> Tensor:
    """How lanes stand (l) after events that ``fired`` at theta, and whether time has not gone on since others."""
    final = sum(1 << i for i, event in enumerate(march.events) if event.final)
    status = torch.where(s.trials + 1 >= march.max_steps, Status.MAX_STEPS.value, Status.RUNNING.value)
    status = torch.where(stuck, Status.PILE_UP.value, status)
    status = torch.where(theta >= 1, Status.DONE.value, status)
    return torch.where((fired & final) != 0, Status.EVENT.value, status)


def _step(march: "March", c: Const, s: State, theta1: Tensor, fired: Tensor | None = None) -> Any:
    """The step from where lanes stand to theta1 (l), in plain numbers for joint lanes."""
    theta0, end, key = (x.item() if march.lanes == "joint" else x for x in (s.theta, theta1, s.accepted))
    return march.segment(c, theta0, end, s.y, s.carry, key, True, fired)


def _located(march: "March", c: Const, s: State, waits: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Where (l) the first event of the step is met by the lanes that wait, and a bit for every event met there.

    One as ``near`` to the end of the span (l) as events are that count as at once is met at the end, one that cannot be
    told from the end of the step is met there.

    Of two roots of one function in the step, the first is noticed as soon as another event has made the step shorter.
    With noise all events are met at the end of the step.
    """
    ready = s._replace(status=torch.where(waits, Status.RUNNING.value, s.status))
    end = theta1 = march.propose(ready, march.bounds(c), TENSORS)
    if not march.stepper.dense:
        new = values(march, c, torch.lerp(c.t0, c.t1, end), _step(march, c, s, end)[0].y1)
        return end, _fired(march, s, waits, new)
    for _ in range(len(march.events) + 1):
        root, which = _first(march, _step(march, c, s, theta1)[0], s, theta1, waits)
        theta, y = _corrected(march, c, s, theta1, root, which)
        fired, early = _around(march, c, s, waits, theta, y, which)
        lost = waits & ~early & (fired == 0)  # where a function jumps, Newton's method leads away from it
        if bool(lost.any()):
            theta = torch.where(lost, root, theta)
            y = _step(march, c, s, theta)[0].y1
            fired, early = _around(march, c, s, waits, theta, y, which)
        if not bool(early.any()):
            break
        theta1 = torch.where(early, theta, theta1)
    close = torch.where(end >= 1, near, (near / WIDTH * 4).clamp_min(FLOOR))  # two units in the last place of time
    return torch.where(end - theta < close, end, theta), fired


def _around(
    march: "March", c: Const, s: State, waits: Tensor, theta: Tensor, y: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """A bit for every event met by theta (l), and whether another one than ``which`` (l) was met before."""
    before, after = _beside(march, c, torch.lerp(c.t0, c.t1, theta), y, (-1, 1))
    early = torch.zeros_like(waits)
    for i, (event, old) in enumerate(zip(march.events, s.marks, strict=True)):
        early |= event.crossed(old, before[i].to(old)) & waits & (which != i)
    return _fired(march, s, waits, after), early


def _fired(march: "March", s: State, waits: Tensor, marks: Sequence[Tensor]) -> Tensor:
    """A bit for every event (l) of the lanes that wait, where the functions have come to ``marks`` (l)."""
    fired = torch.zeros_like(s.accepted)
    for i, (event, old, new) in enumerate(zip(march.events, s.marks, marks, strict=True)):
        fired += (event.crossed(old, new.to(old)) & waits) << i
    return fired


def _first(march: "March", whole: "Segment", s: State, theta1: Tensor, waits: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first event of a step is met, as theta (l), and its number (l), by the dense output."""
    c, (t, h, _), y = whole.const, whole.interval, whole.y1
    lane = int(march.lanes == "each")
    old = torch.stack(s.marks, -1)  # (l, m)
    new = torch.stack(values(march, c, t + h, y), -1).to(old)
    pairs = zip(march.events, old.unbind(-1), new.unbind(-1), strict=True)
    hits = torch.stack([event.crossed(a, b) & waits for event, a, b in pairs], -1)
    stretch = h if isinstance(h, float) else h[..., None]
    begin = t if isinstance(t, float) else t[..., None]

    def g(x: Tensor) -> Tensor:
        states = whole.dense(x.to(device=y.device, dtype=real_dtype(y))).unbind(lane)
        times = (begin + stretch * x).unbind(-1)
        clock = march.field(c).clock
        triples = zip(march.events, times, states, strict=True)
        return torch.stack([event.function(clock(at, z), z, c.args) for event, at, z in triples], -1).to(old)

    roots, which = torch.where(hits, itp(g, old, new), 2.0).min(-1)
    return torch.where(roots <= 1, torch.lerp(s.theta, theta1, roots), s.theta), which


def _corrected(
    march: "March", c: Const, s: State, theta1: Tensor, theta: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """The root (l) on the steps themselves, by Newton's method from that of the dense output, and the state there."""
    best, y, least = theta, s.y, torch.full_like(theta, torch.inf)
    for _ in range(NEWTON):
        segment, *_ = _step(march, c, s, theta)
        t = torch.lerp(c.t0, c.t1, theta)
        slope = _slope(march, c, t, segment.y1)
        pairs = [_rate(march, c, event, t, segment.y1, slope) for event in march.events]
        g, rate = (torch.stack(x, -1).gather(-1, which[..., None]).squeeze(-1) for x in zip(*pairs, strict=True))
        better = g.abs() < least
        best, least = torch.where(better, theta, best), torch.where(better, g.abs(), least)
        y = torch.where(expand(better.to(y.device), y), segment.y1, y)
        moved = theta - g / (rate * (c.t1 - c.t0))
        theta = torch.where(moved.isfinite(), moved, theta).clamp(s.theta, theta1)
    return best, y


def _rate(march: "March", c: Const, event: Event, t: Tensor, y: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """An event function (l) and its derivative along the field (l), float64 and without gradient."""
    with torch.inference_mode(False), torch.enable_grad():
        clock = march.field(c).clock(t.detach(), y).clone().requires_grad_()
        y, slope = y.detach().clone().requires_grad_(), slope.detach()
        g = event.function(clock, y, tuple(arg.detach() for arg in c.args))
        if not g.requires_grad:
            return g.to(c.t0), torch.zeros_like(c.t0)
        dt, dy = torch.autograd.grad(g.sum(), (clock, y), allow_unused=True)
    rate = torch.zeros_like(c.t0)
    if dt is not None:
        rate = rate + dt.reshape(rate.shape).to(rate)
    if dy is not None:
        along = (dy.conj() * slope).real if dy.is_complex() else dy * slope
        rate = rate + along.reshape(*rate.shape, -1).sum(-1).to(rate)
    return g.detach().to(c.t0), rate


class Turn(NamedTuple):
    """What an event does at the end of a step."""

    hit: Tensor  # (l) whether it fired
    delay: Tensor  # (l) how long after the end of the step it is met, to first order; 0 in value, or nearly
    before: Tensor  # the state at the end of the step
    after: Tensor | None  # the state there with which the solution goes on; None where it ends


def _slope(march: "March", c: Const, t: Tensor, y: Tensor) -> Tensor:
    """The field at float64 times (l); 0 with noise, where no delays are made up for."""
    field = march.field(c)
    return field(field.clock(t, y), y) if march.stepper.dense else torch.zeros_like(y)


def _delays(
    march: "March", c: Const, t: Tensor, y: Tensor, fired: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The field, which lanes each event fired in (l), and how long after t (l), 0 where not; differentiable."""
    slope, found = _slope(march, c, t, y), []
    for i, event in enumerate(march.events):
        hit = (fired >> i) & 1 != 0
        delay = torch.zeros_like(c.t0)
        if march.stepper.dense and bool(hit.any()):
            _, rate = _rate(march, c, event, t, y, slope)
            g = event.function(march.field(c).clock(t, y), y, c.args).to(c.t0)
            smooth = hit & (rate != 0) & rate.isfinite() & ~_leaps(march, c, event, t, y, slope, g.detach() / rate)
            delay = Once.apply(-g / torch.where(smooth, rate, torch.inf))
        found.append((hit, delay))
    return slope, found


@torch.no_grad()
def _leaps(march: "March", c: Const, event: Event, t: Tensor, y: Tensor, slope: Tensor, late: Tensor) -> Tensor:
    """Where (l) a function jumps instead of being zero: it is far from zero at t, and changes by as much beside it."""
    far = late.abs() > FAR * (c.t1 - c.t0).abs()
    if not bool(far.any()):
        return far
    width = _width(c, y)
    before, at, after = (
        event.function(march.field(c).clock(t + side * width, y), y + _sized(side * width, y) * slope, c.args)
        for side in (-1, 0, 1)
    )
    return far & ((after - before).abs() >= at.abs() / 2)


def turns(march: "March", c: Const, t: Number, y: Tensor, fired: Tensor) -> tuple[Turn, ...]:
    """What the events that ``fired`` do to the state y at the end t of a step, one after the other.

    Args:
        march: the static part of the solve.
        c: its constants.
        t: float64 times (l).
        y: state at the end of the step.
        fired: a bit for every event (l).
    """
    field, t = march.field(c), torch.as_tensor(t, dtype=c.t0.dtype, device=c.t0.device)
    chosen = sum(1 << i for i, event in enumerate(march.events) if event.final or event.reset is not None)
    if not bool((fired & chosen).any()):
        return ()
    done = []
    slope, delays = _delays(march, c, t, y, fired)
    for event, (hit, delay) in zip(march.events, delays, strict=True):
        if not bool(hit.any()) or not (event.final or event.reset is not None):
            continue
        after = None
        if event.reset is not None:
            slope = _slope(march, c, t, y) if slope is None else slope
            there = y + drifted(delay, slope)
            after = event.reset(field.clock(t + delay, y), there, c.args)
            if not isinstance(after, Tensor) or after.shape != y.shape or after.dtype != y.dtype:
                got = f"{tuple(after.shape)} of {after.dtype}" if isinstance(after, Tensor) else type(after).__name__
                raise ValueError(f"reset: expected a state of shape {tuple(y.shape)} of {y.dtype}, got {got}")
            after = after - drifted(delay, _slope(march, c, t, after))
            after, slope = torch.where(expand(hit.to(y.device), y), after, y), None
        done.append(Turn(hit, delay, y, after))
        y = y if after is None else after
    return tuple(done)


def drifted(delay: Tensor, slope: Tensor) -> Tensor:
    """How far the state comes in a delay (l); nowhere where the field is not finite."""
    return _sized(delay, slope) * torch.where(slope.isfinite(), slope, 0)


def _sized(t: Tensor, y: Tensor) -> Tensor:
    """Times (l) as factors of a state."""
    return expand(t.to(device=y.device, dtype=real_dtype(y)), y)


def by_occurrence(fired: Tensor, rows: Tensor) -> Tensor:
    """The rows (n, l, ...) of the steps at whose ends events fired (n, l), those of every lane first: (m, l, ...)."""
    hits = fired != 0
    count = int(hits.sum(0).max()) if len(hits) else 0
    order = torch.argsort((~hits).to(torch.uint8), dim=0, stable=True)[:count].to(rows.device)
    return rows.gather(0, expand(order, rows).expand(count, *rows.shape[1:]))


def evaluations(march: "March", mesh: "Mesh", chosen: bool) -> Tensor:
    """How many evaluations of the field the events took beside the trials (l), on a mesh that was ``chosen`` or not."""
    count, stepper = torch.zeros_like(mesh.count), march.stepper
    if mesh.events is None:
        return count
    if not march.stepper.dense:
        return count + chosen + chosen * (1 + stepper.evaluations) * (mesh.events != 0).sum(0)
    each = 1 + (NEWTON + 2 + (1 + NEWTON) * stepper.evaluations if chosen else 0)  # one for its time
    resets = [((mesh.events >> i) & 1).sum(0) for i, event in enumerate(march.events) if event.reset]
    bits = lambda kind: sum(1 << i for i, event in enumerate(march.events) if kind(event))  # noqa: E731
    again = (mesh.events & bits(lambda event: event.reset)) != 0
    starts = 0 if march.jumps else stepper.starts  # jumps do so after every step
    ends = ((mesh.events & bits(lambda event: event.final)) != 0) & ~again
    count = count + chosen + each * (mesh.events != 0).sum(0) + 2 * sum(resets)
    return count + starts * again.sum(0) + ends.sum(0)


class Outcome(NamedTuple):
    """What the events of a solve came to."""

    crossings: tuple[Crossings, ...]
    t: Tensor  # the end of every lane (l)
    y: Tensor  # the state there


def outcome(march: "March", c: Const, mesh: "Mesh", done: "Pass") -> Outcome:
    """Times and states of the events, as differentiable functions of the frozen mesh.

    Args:
        march: the static part of the solve.
        c: its constants.
        mesh: its steps.
        done: the results of a pass over them.
    """
    end, y, met = torch.lerp(c.t0, c.t1, mesh.theta[-1]), done.y, done.met
    if mesh.events is None:
        return Outcome((), end, y)
    met = y.new_empty(0, *y.shape) if met is None else met
    fired = by_occurrence(mesh.events, mesh.events)  # (m, l)
    theta = by_occurrence(mesh.events, mesh.theta[1:])
    last, ts, ys = (mesh.events != 0).sum(0) - 1, [], []
    for k, (bits, z) in enumerate(zip(fired.unbind(), met.unbind(), strict=True)):
        t = torch.lerp(c.t0, c.t1, theta[k])
        slope, found = _delays(march, c, t, z, bits)
        ts.append(torch.stack([t + delay for _, delay in found]))  # (events, l)
        ys.append(torch.stack([z + drifted(delay, slope) for _, delay in found]))
        ends = (last == k) & (mesh.status == Status.EVENT.value)
        for event, (hit, delay) in zip(march.events, found, strict=True):
            if event.final:  # the first of those that end the lane at once says when
                delay = torch.where(hit & ends, delay, 0)
                end, y, ends = end + delay, y + drifted(delay, slope), ends & ~hit
    crossings = []
    for i, event in enumerate(march.events):
        hits = (fired >> i) & 1 != 0  # (m, l)
        times, states = (torch.stack([x[i] for x in xs]) if xs else None for xs in (ts, ys))
        if times is None or states is None:
            times, states = theta, met
        times, states = by_occurrence(hits, times), by_occurrence(hits, states)
        count = hits.sum(0)
        real = torch.arange(len(times), device=count.device).reshape(-1, *(1,) * count.ndim) < count
        times = torch.where(real, times, torch.nan)
        states = torch.where(expand(real.to(states.device), states), states, torch.nan)
        if march.lanes == "each":
            times, states = times.mT, states.movedim(0, 1)
        ended = (mesh.status == Status.EVENT.value) & event.final
        if len(fired):
            ended = ended & hits.gather(0, last.clamp_min(0)[None])[0]
        crossings.append(Crossings(times, states, count, ended))
    return Outcome(tuple(crossings), end, y)
