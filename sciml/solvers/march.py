"""The march: the one time loop. It decides which steps are taken; `mesh` differentiates along them.

`advance` is a pure function (state, const) -> (state, row) that tries one step of every lane under a mask; loops over
it, eager or compiled, keep the rows. A lane at rest takes a step of length zero.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.errors import Status
from sciml.solvers.arithmetic import TENSORS, Arithmetic
from sciml.solvers.control import FLOOR, Controller
from sciml.solvers.dense import inside
from sciml.solvers.event import Event, Turn, just_after, look, meet
from sciml.solvers.fold import Fold
from sciml.solvers.jump import Jump, beside, jumped
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.path import Path
from sciml.solvers.state import Const, Row, State, lanes_of, rows_of, with_lanes, with_numbers, with_tensors
from sciml.solvers.stepper import Field, Interval, Stepper
from sciml.solvers.tape import Tape
from sciml.solvers.term import Term, expand, vanishing
from sciml.solvers.transforms import books
from sciml.typing import Lanes, Number

# torch.compile takes a comparison of a tensor with a member of an IntEnum for a comparison of objects: plain integers.
RUNNING, DONE = Status.RUNNING.value, Status.DONE.value
MAX_STEPS, DT_UNDERFLOW, NON_FINITE = Status.MAX_STEPS.value, Status.DT_UNDERFLOW.value, Status.NON_FINITE.value

STRETCH = 1.1  # how much further a step may go to leave no stub before a stop; about 1 / safety
SLACK = 1 + 2.0**-30  # likewise past the largest step, which round-off shall not leave a stub of
FEW = 64  # lanes that are cheaper than it is to leave some of them out


class Segment(NamedTuple):
    """One step as folds read it."""

    march: "March"
    const: Const
    theta0: Number  # (l) float64
    theta1: Number  # (l)
    key: Number  # (l) number of the step in its lane
    interval: Interval
    y0: Tensor
    y1: Tensor  # at the end of the step, before any jump
    stages: tuple[Tensor, ...]
    error: Tensor | None
    turns: tuple[Turn, ...] = ()  # what events at its end do
    scaled: Tensor | None = None  # the error in units of the tolerance (l), where it is known

    def dense(self, s: Tensor) -> Tensor:
        """The state at fractions s (l, k) of the step: (l, k, ...), l left out for joint lanes."""
        return inside(self, s)

    def scaled_error(self) -> Tensor:
        """The error estimate in units of the tolerance (l)."""
        if self.scaled is not None:
            return self.scaled
        if self.error is None:
            raise ValueError(f"{type(self.march.stepper).__name__} gives no error estimate")
        return self.march.controller.scaled(self.error, self.y0, self.y1, self.march.lanes)


@dataclass(frozen=True, eq=False)
class March:
    """The static part of a solve: everything that is not a tensor of `Const` or `State`."""

    term: Term
    stepper: Stepper
    controller: Controller
    lanes: Lanes = "joint"
    max_steps: int = 10_000
    path: Path | None = None  # None: time itself
    jumps: tuple[Jump, ...] = ()
    events: tuple[Event, ...] = ()
    folds: tuple[Fold, ...] = ()
    compact: Sequence[int] | None = None  # the args that have a row for each sample
    patience: int = 1  # joint steps of a grid between looks at whether the state is finite
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # what it was compiled to

    def field(self, c: Const) -> Field:
        """The term bound to its arguments."""
        return Field(self.term, c.args, self.lanes, c.stepper)

    def start(self, c: Const, y: Tensor, xp: Arithmetic = TENSORS) -> State:
        """The state before the first trial."""
        field, zero = self.field(c), torch.zeros_like(c.t0)
        h = None if self.controller.adaptive else ((c.t1 - c.t0) * c.stops[..., 0]).expand(c.t0.shape)
        carry = self.stepper.init(field, c.t0, y, h)
        with torch.no_grad():
            marks = just_after(self, c, c.t0, y) if self.events else ()
            marks = tuple(xp.number(mark, zero) for mark in marks)
            t0, t1, theta = (xp.number(x, zero) for x in (c.t0, c.t1, zero))
            k = carry[0] if carry and not self.stepper.noise_types else None
            dtheta = self.controller.start(field, t0, t1 - t0, y, k, self.stepper.order, xp)
            none = torch.zeros_like(c.t0, dtype=torch.int64)
            none = xp.number(none, none)
        return State(theta, dtheta, y, carry, self.controller.memory(theta), marks, none, none + 0, none + RUNNING)

    def segment(
        self,
        c: Const,
        theta0: Number,
        theta1: Number,
        y: Tensor,
        carry: tuple[Tensor, ...] | None,
        key: Number,
        full: bool = True,
        fired: Tensor | None = None,
    ) -> tuple[Segment, Tensor, tuple[Tensor, ...], Tensor | None]:
        """The one step: a pure function of the ends of the step and the differentiable inputs.

        Returns:
            the segment, the state after any jump and the resets of the events that ``fired`` (a bit for each) at its
            end, the new carry, and the stepper's status (l) or None.
        """
        field, dx = self.field(c), None
        interval = Interval.of(c.t0, c.t1, theta0, theta1, y)
        interval, edge = beside(interval, c, theta0, theta1, y) if c.edges else (interval, False)
        if carry is None or edge is True:
            carry = self.stepper.init(field, interval.t, y, interval.h)
        elif isinstance(edge, Tensor):
            carry = tuple(_where(edge, self.stepper.init(field, interval.t, y, interval.h), carry))
        if self.path is not None:
            dx = self.stepper.read(self.path, c.path, theta0, theta1, c.t1 - c.t0)
        step = self.stepper.step(field, interval, y, carry, dx, full)
        segment = Segment(self, c, theta0, theta1, key, interval, y, step.y, step.stages, step.error)
        after, carry = step.y, step.carry
        if self.jumps or fired is not None:
            segment, after, carry = jumped(segment, fired, carry)
        return segment, after, carry, step.status

    def bounds(self, c: Const, xp: Arithmetic = TENSORS) -> tuple[Callable[[Number], Number], Number | None]:
        """The next stop after a theta, and the largest dtheta or None."""
        limit = self.controller.limit(c.t1 - c.t0)
        return xp.following(c.stops), None if limit is None else -xp.number(-limit, c.t0)  # the least of all

    def propose(self, s: State, bounds: tuple[Callable[[Number], Number], Number | None], xp: Arithmetic) -> Number:
        """Where the next trial ends: at s.theta + s.dtheta, or at a stop before that or just after."""
        following, limit = bounds
        size, most = s.dtheta, STRETCH * s.dtheta
        if limit is not None:
            size, most = xp.where(size < limit, size, limit), xp.where(most < limit, most, SLACK * limit)
        stop = following(s.theta)
        path = self.path if self.controller.adaptive else None
        end, most = (s.theta + size, most) if path is None else (path.end(s.theta, size, xp), 0.0)
        wanted = xp.where((s.theta + most >= stop) | (end >= stop), stop, end)
        return xp.where(s.status == RUNNING, wanted, s.theta)

    def judge(
        self, s: State, segment: Segment, theta1: Number, after: Tensor, error: Number, failure: Any, xp: Arithmetic
    ) -> State:
        """The books after a trial that ended at theta1: everything of the new state but y and the carry."""
        verdict = self.controller.decide(error, s.dtheta, theta1 - s.theta, s.memory, self.stepper.error_order, xp)
        running, least = s.status == RUNNING, max(FLOOR, self.path.finest if self.path else 0.0)
        accept, trials, marks = verdict.accept & running, s.trials + running, s.marks
        cause = xp.where(xp.isfinite(error), DT_UNDERFLOW, NON_FINITE)
        if failure is not None:
            cause = xp.where(failure == RUNNING, cause, failure)
        status = xp.where(running & (trials >= self.max_steps), MAX_STEPS, s.status)
        status = xp.where(running & (verdict.dtheta < xp.where(verdict.accept, FLOOR, least)), cause, status)
        status = xp.where(accept & (theta1 >= 1), DONE, status)
        if self.events:
            marks, halts, why = look(self, segment, after, s.marks, trials, error, xp)
            status = xp.where(accept & halts, why, status)
            running, accept = (xp.where(accept & halts, False, x) for x in (running, accept))
            marks = tuple(xp.where(accept, new, old) for new, old in zip(marks, s.marks, strict=True))
        return s._replace(
            theta=xp.where(accept, theta1, s.theta),
            dtheta=xp.where(running, verdict.dtheta, s.dtheta),
            memory=tuple(xp.where(accept, new, old) for new, old in zip(verdict.memory, s.memory, strict=True)),
            marks=marks,
            trials=trials,
            accepted=s.accepted + accept,
            status=status,
        )

    def error(self, segment: Segment, after: Tensor, failure: Any, like: Number, xp: Arithmetic = TENSORS) -> Number:
        """Scaled error (l); not finite where y1 or the state after jumps is not, or where a step could not be taken."""
        adaptive, lanes = self.controller.adaptive, self.lanes
        error = xp.number(segment.scaled_error() if adaptive else vanishing(segment.y1, lanes), like)
        if self.jumps:
            error = error + xp.number(vanishing(after, lanes), like)
        return error if failure is None else xp.where(failure == RUNNING, error, torch.inf)

    def emit(self, segment: Segment, saves: int | None = None) -> tuple[Any, ...]:
        """What each fold reads of a step."""
        return tuple(
            fold.emit(segment, saves, *inputs) for fold, inputs in zip(self.folds, segment.const.folds, strict=True)
        )

    def advance(self, s: State, c: Const, saves: int | None = None) -> tuple[State, Row]:
        """One masked trial of every lane.

        Args:
            s: state.
            c: constants.
            saves: a bound on the number of save times in one step; None reads it on the host.
        """
        theta1 = self.propose(s, self.bounds(c), TENSORS)
        segment, after, carry, failure = self.segment(c, s.theta, theta1, s.y, s.carry, s.accepted)
        new = self.judge(s, segment, theta1, after, self.error(segment, after, failure, s.theta), failure, TENSORS)
        taken = new.accepted > s.accepted
        y, *carry = _where(taken, (after, *carry), (s.y, *s.carry))
        return new._replace(y=y, carry=tuple(carry)), Row(s.theta, taken, s.y, self.emit(segment, saves))

    def run(self, s: State, c: Const, tape: Tape, tick: Callable[[State], None]) -> State:
        """Advance from books of `host` numbers until no lane is running; ``tick`` is called after every trial."""
        return with_tensors(self._run(s, c, tape, tick), c.t0)

    def _run(self, s: State, c: Const, tape: Tape, tick: Callable[[State], None]) -> State:
        """The same with books of numbers.

        It reads the verdict, so that it masks only where lanes disagree, and records a graph where gradients are on
        (joint lanes). With ``patience`` a state that is not finite is noticed some steps late: the place of the failure
        is then not known.
        """
        xp, joint = self.host, self.lanes == "joint"
        blind = joint and not (self.controller.adaptive or self.events or self.jumps) and self.patience > 1
        quiet = torch.no_grad() if torch.is_grad_enabled() else nullcontext()
        reads = not joint or self.controller.adaptive or tape.reads
        judged = self.controller.adaptive and any(fold.errors for fold in self.folds)
        bounds = self.bounds(c, xp)
        while xp.any(s.status <= RUNNING):
            if self.events and not xp.any(s.status == RUNNING):  # all lanes at once
                s = with_numbers(meet(self, c, with_tensors(s, c.t0), tape), xp.number)
                continue
            if self.compact is not None and np.count_nonzero(s.status == RUNNING) <= self.sparse(s.status):
                return self._among(s, c, tape, tick)
            theta1 = self.propose(s, bounds, xp)
            start, end, key = xp.tensor(s.theta, c.t0), xp.tensor(theta1, c.t0), xp.tensor(s.accepted, c.t0)
            full = reads or theta1 < 1
            try:
                segment, after, carry, failure = self.segment(c, start, end, s.y, s.carry, key, full)
            except Exception:
                if blind and not bool(s.y.isfinite().all()):
                    return s._replace(status=NON_FINITE)
                raise
            look = not blind or failure is not None or theta1 >= 1 or (key + 1) % self.patience == 0
            if judged and not tape.reads_errors_later(segment):
                segment = segment._replace(scaled=segment.scaled_error())
            with quiet:
                failure = None if failure is None else xp.number(failure, s.status)
                error = self.error(segment, after, failure, s.theta, xp) if look else 0.0
                new = self.judge(s, segment, theta1, after, error, failure, xp)
            taken = new.accepted > s.accepted
            if xp.any(taken):
                mask = None if joint else xp.tensor(taken, c.t0)
                try:
                    tape.add(segment, mask)
                except Exception:
                    if blind and not bool(after.isfinite().all()):
                        return s._replace(status=NON_FINITE)
                    raise
                if mask is not None:
                    after, *carry = _where(mask, (after, *carry), (s.y, *s.carry))
                new = new._replace(y=after, carry=tuple(carry))
            s = new
            tick(s)
        return s

    def sparse(self, lanes: Any) -> int:
        """How many running ones of these lanes it pays to go on with alone; 0 where none are left out."""
        return 0 if self.compact is None or len(lanes) <= FEW else len(lanes) // 2

    def _among(self, s: State, c: Const, tape: Tape, tick: Callable[[State], None]) -> State:
        """The last state from a march of the lanes that are running, the others left out of the batch."""
        running = (s.status == RUNNING).nonzero()[0]
        rows = torch.from_numpy(running).to(s.y.device)
        with tape.among(rows, len(s.status)):
            few = self._run(lanes_of(s, running, rows), self.const_among(c, rows.to(c.t0.device)), tape, tick)
        return with_lanes(s, few, running, rows)

    def const_among(self, c: Const, rows: Tensor) -> Const:
        """The constants of some of the lanes."""
        pick = lambda x: x.index_select(0, rows)  # noqa: E731
        each = lambda x: pick(x) if x.ndim > 1 else x  # noqa: E731
        path = () if self.path is None else self.path.among(c.path, rows)
        return c._replace(
            t0=pick(c.t0),
            t1=pick(c.t1),
            stops=each(c.stops),
            args=rows_of(c.args, rows, self.compact or ()),
            path=path,
            folds=tuple(fold.among(rows, *inputs) for fold, inputs in zip(self.folds, c.folds, strict=True)),
            edges=tuple(map(each, c.edges)),
        )

    @property
    def host(self) -> Arithmetic:
        """What an eager march keeps its books in."""
        return books(self.lanes)

    def ends(self, theta: Tensor, j: int) -> Sequence[Number]:
        """The two ends of step j of a mesh, as numbers where joint lanes allow it."""
        pair = theta[j : j + 2]
        return pair.unbind() if self.lanes == "each" or theta.requires_grad or transformed() else pair.tolist()


def _where(taken: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """The new states (l, ...) of the lanes that took the step, the old ones of the others."""
    return [torch.where(expand(taken, a), a, b) for a, b in zip(new, old, strict=True)]
