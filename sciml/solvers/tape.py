"""What an eager march, or a pass over a mesh, keeps of its steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.fold import Fold, Reduce, Writes
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.stepper import Interval, small
from sciml.solvers.term import expand
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment

TOGETHER = 8  # steps of small states whose dense output is evaluated at once


class Tape:
    """The ends of the steps, the states there where they are to be kept, and the folds' emissions as far as reduced.

    A step of a small state costs less than what is read of it, so that several are read at once: states at save times
    of lanes that step by themselves while no gradient is asked for, scaled errors of joint lanes while one is.
    """

    def __init__(self, folds: Sequence[Fold], keep: bool):
        self.folds, self.keep = tuple(folds), keep
        self.reads = any(fold.stages for fold in folds)  # whether it wants whole steps
        self.theta: list[Number] = []
        self.y: list[Tensor] = []
        self.taken: list[Tensor] = []
        self.values: list[Any] = [[] if fold.reduce in ("stack", "write") else None for fold in self.folds]
        self.waiting: list[tuple[Segment, Tensor]] = []
        self.judged = any(map(_sums_errors, folds))
        self.unread: list[Segment] = []  # steps whose errors are to be read
        self.fired: dict[int, Tensor] = {}  # a bit for every event (l), by the step that ends at it
        self.met: list[Tensor] = []  # the states there
        self.last: Any = -torch.inf  # theta of every lane's last event (l)
        self.complete = False  # whether what is to be written is known to be all there
        self.rows: Tensor | None = None  # the lanes whose steps it is given; None for all
        self.lanes = 0  # how many there are, where it is given those of some

    @contextmanager
    def among(self, rows: Tensor, lanes: int) -> Iterator[None]:
        """Be given the steps of some of the lanes, by their numbers among those so far."""
        self.flush()
        before, self.lanes = self.rows, self.lanes or lanes
        self.rows = rows if before is None else before.index_select(0, rows)
        yield
        self.flush()
        self.rows = before

    def _wide(self, x: Any) -> Any:
        """A tensor (l, ...) of the lanes that it is given as one of all lanes, 0 for the others."""
        if self.rows is None:
            return x
        return x.new_zeros(self.lanes, *x.shape[1:]).index_copy_(0, self.rows.to(x.device), x)

    def add(self, segment: "Segment", taken: Tensor | None = None) -> None:
        """Keep a step; ``taken`` are the lanes that took it (l), None for all."""
        self.theta.append(self._wide(segment.theta0))
        if self.keep:
            self.y.append(self._wide(segment.y0))
        if taken is not None:
            self.taken.append(self._wide(taken))
        alone = torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed()
        wait = taken is not None and not alone
        later = self.reads_errors_later(segment)
        if later:
            self.unread.append(segment)
        for i, fold in enumerate(self.folds):
            waits = (wait and fold.reduce == "write") or (later and _sums_errors(fold))
            if not waits:
                self._reduce(i, fold.emit(segment, None, *segment.const.folds[i]), segment.key, taken)
        if wait and any(fold.reduce == "write" for fold in self.folds):
            self.waiting.append((segment, taken))
            if len(self.waiting) == TOGETHER or not small(segment.y0):
                self.flush()

    def reads_errors_later(self, segment: "Segment") -> bool:
        """Whether sums over scaled errors are taken of all steps at once, in `flush`."""
        if not (self.judged and torch.is_grad_enabled()) or transformed() or not small(segment.y0):
            return False
        march, controller = segment.march, segment.march.controller
        known = controller.adaptive and segment.error is not None
        return known and march.lanes == "joint" and getattr(controller, "norm", None) is None

    def _read_errors(self) -> None:
        segments, first = self.unread, self.unread[0]
        self.unread = []
        error, y0, y1 = (torch.stack(parts) for parts in zip(*((s.error, s.y0, s.y1) for s in segments), strict=True))
        sizes = torch.stack([torch.as_tensor(s.interval.h, dtype=torch.float64, device=y0.device) for s in segments])
        scaled = first.march.controller.scaled(error, y0, y1, "each")
        interval = first.interval._replace(h=sizes)
        all_steps = first._replace(interval=interval, y0=y0, y1=y1, stages=(), error=error, scaled=scaled)
        for i, fold in enumerate(self.folds):
            if _sums_errors(fold):
                total = fold.emit(all_steps, None, *first.const.folds[i]).sum(0)
                self.values[i] = accumulate("sum", self.values[i], total, None)

    def _reduce(self, i: int, value: Any, step: Number, taken: Tensor | None) -> None:
        reduce = self.folds[i].reduce
        if reduce == "write":
            if value is not None:
                self.values[i].append(value if taken is None else value._replace(hit=value.hit & taken[..., None]))
        elif reduce == "stack":
            self.values[i].append(self._wide(value))
        elif reduce == "max":
            self.values[i] = greatest(self.values[i], *map(self._wide, (value, step, taken)))
        else:
            self.values[i] = accumulate(reduce, self.values[i], self._wide(value), self._wide(taken))

    def meet(self, y: Tensor, fired: Tensor) -> None:
        """Keep the events (l) at the end of the last step and the state there."""
        self.fired[len(self.theta) - 1] = fired
        self.met.append(y)

    def flush(self) -> None:
        """Read what waits to be read."""
        if self.unread:
            self._read_errors()
        if not self.waiting:
            return
        segments, taken = zip(*self.waiting, strict=True)
        self.waiting = []
        joined, steps = _joined(segments), len(segments)
        lanes = self.lanes or len(taken[0])
        row = torch.arange(lanes, device=joined.y0.device) if self.rows is None else self.rows
        row = row.repeat(steps)[:, None]
        for i, fold in enumerate(self.folds):
            if fold.reduce != "write":
                continue
            value = fold.emit(joined, None, *(x.repeat(steps, 1) for x in joined.const.folds[i]))
            if value is None:
                continue
            shape = value.values.shape[2:]
            if not self.values[i]:
                self.values[i] = [value.values.new_empty(lanes, fold.places + 1, *shape)]
            hit = value.hit & torch.cat(taken)[:, None]
            place = torch.where(hit, value.place, fold.places) + row * (fold.places + 1)
            out = self.values[i][0].view(-1, *shape)
            out.index_copy_(0, place.reshape(-1), value.values.reshape(-1, *shape))


def _sums_errors(fold: Fold) -> bool:
    return fold.errors and fold.reduce == "sum"


def _joined(segments: "Sequence[Segment]") -> "Segment":
    """Steps of the same lanes as one step of as many times as many lanes, as far as dense output reads it."""
    if len(segments) == 1:
        return segments[0]
    join = lambda parts: torch.cat(tuple(parts))  # noqa: E731
    return segments[0]._replace(
        theta0=join(s.theta0 for s in segments),
        theta1=join(s.theta1 for s in segments),
        key=join(s.key for s in segments),
        interval=Interval(*(join(parts) for parts in zip(*(s.interval for s in segments), strict=True))),
        y0=join(s.y0 for s in segments),
        y1=join(s.y1 for s in segments),
        stages=tuple(join(parts) for parts in zip(*(s.stages for s in segments), strict=True)),
        error=None,
        scaled=None,
    )


class Best(NamedTuple):
    """A running maximum and the step that attained it first."""

    value: Tensor
    step: Tensor  # int64, of the value's shape


def accumulate(reduce: Reduce, so_far: Tensor | None, value: Tensor, taken: Tensor | None) -> Tensor:
    """The sum of emissions, or the last one, with that of a step that the lanes ``taken`` took."""
    if taken is not None:
        taken = expand(taken.to(value.device), value)
        rest = torch.zeros_like(value) if so_far is None or reduce == "sum" else so_far
        value = torch.where(taken, value, rest)
    return value if so_far is None or reduce == "last" else so_far + value


def greatest(so_far: Best | None, value: Tensor, step: Number, taken: Tensor | None) -> Best:
    """The greatest of emissions with that of step number ``step``."""
    step = expand(torch.as_tensor(step, device=value.device), value).expand(value.shape)
    if so_far is None:
        so_far = Best(torch.full_like(value, -torch.inf), step)
    better = value > so_far.value
    if taken is not None:
        better = better & expand(taken.to(value.device), value)
    return Best(torch.where(better, value, so_far.value), torch.where(better, step, so_far.step))


def write(written: Any, rest: Tensor, reached: Tensor, places: int) -> Tensor:
    """All that a tape was given to write in one output (l, places, ...), with l left out for joint lanes.

    Args:
        written: what the tape has kept, or the output but for the places that were not reached.
        rest: the last state, which fills the places that no step reached, since the lane failed before.
        reached: number of places that were reached (l).
        places: number of places.
    """
    if isinstance(written, Tensor):
        missing = torch.arange(places, device=rest.device) >= reached.to(rest.device)[..., None]
        return torch.where(expand(missing, written), rest.unsqueeze(reached.ndim), written)
    if reached.ndim == 0:  # in order, since time has one direction
        done = [w.values for w in written]
        return torch.cat([*done, rest.expand(places - sum(map(len, done)), *rest.shape)])
    out = rest[:, None].expand(len(rest), places + 1, *rest.shape[1:])
    if not written:
        return out[:, :places].clone()
    if isinstance(written[0], Tensor):
        missing = torch.arange(places + 1, device=rest.device) >= reached[:, None]
        return torch.where(expand(missing, out), out, written[0])[:, :places]
    joined = Writes(*(torch.cat(parts, 1) for parts in zip(*written, strict=True)))
    return out.scatter(1, joined.targets(places), joined.values)[:, :places]
