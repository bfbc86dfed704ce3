"""What a compiled march is given, and how the rows that come out of it become a mesh and results."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from itertools import count
from math import prod
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from sciml.solvers.control import PID
from sciml.solvers.event import meet
from sciml.solvers.explicit import RungeKutta
from sciml.solvers.fold import Fold
from sciml.solvers.loops import Found, Kept, Packing, Record, Rows, Trials, Turned, keep, saved, straightened
from sciml.solvers.march import March, Segment
from sciml.solvers.mesh import Mesh, Pass, close
from sciml.solvers.rosenbrock import Rosenbrock
from sciml.solvers.state import Const, Row, State
from sciml.solvers.tape import Best, Tape
from sciml.solvers.term import Term, expand, real_dtype

BYTES = 2**22  # what the rows of a loop may take: larger blocks are fresh pages at every call
ROWS = 4096  # at most
FEW = 8  # components up to which the states of a batch lie by component


class Met(Tape):
    """The tape of a march whose steps are kept elsewhere: it holds the last one that ends at events."""

    segment: Segment

    def __init__(self, folds: Sequence[Fold]):
        super().__init__(folds, keep=False)
        self.before: list[Tensor] = []  # the number of each of its steps (l)

    def add(self, segment: Segment, taken: Tensor | None = None) -> None:
        """Hold a step."""
        self.segment = segment
        self.theta.append(segment.theta0)


class Part(NamedTuple):
    """What was kept until a loop stopped."""

    base: Tensor  # accepted steps before it (l)
    kept: Kept
    written: list[Found]
    lanes: Tensor | None = None  # which of all they are

    def of(self, lanes: Tensor) -> "Part":
        """The same part of a march of some lanes."""
        return self._replace(lanes=lanes if self.lanes is None else lanes[self.lanes])


class Run(NamedTuple):
    """What marching has given so far."""

    totals: tuple[Any, ...]
    parts: list[Part]
    tape: Met
    s: Any = None  # the last state
    n: int = 0  # accepted steps of the lane that took most
    done: bool = False  # whether all lanes are

    def grown(self, totals: tuple[Any, ...], base: Tensor, kept: Kept, written: Any) -> "Run":
        """The same with more rows."""
        return self._replace(totals=totals, parts=[*self.parts, Part(base, kept, written)])

    def completed(self, rest: "Run", lanes: Tensor) -> "Run":
        """The same after some lanes went on alone."""
        put = lambda x, y: x.index_copy(0, lanes, y)  # noqa: E731
        s, totals = tree_map(put, (self.s, self.totals), (rest.s, rest.totals))
        parts = [*self.parts, *(part.of(lanes) for part in rest.parts)]
        return Run(totals, parts, self.tape, s, int(s.accepted.max()), bool((s.status == 1).all()))


class Shape(NamedTuple):
    """What marches of one kind keep, found out without evaluating the field."""

    emits: tuple[Any, ...]  # what a row holds of each fold, as fakes
    packing: Packing  # of state and totals
    rows: int
    row: Packing  # of an accepted step
    spec: Any
    states: int
    sizes: tuple[tuple[tuple[int, ...], torch.dtype], ...]  # of its packs, but for the number of rows
    trial: Packing | None
    size: tuple[int, ...]  # of the pack of a trial
    lanes: tuple[int, ...]

    @classmethod
    def of(cls, march: March, c: Const, y0: Tensor, keep: bool) -> "Shape":
        """That of a march with tensors for tolerances; ``keep`` is whether all states are wanted."""
        lane, turned = int(march.lanes == "each"), isinstance(march.term, Turned)
        emits, packing = _shapes(march, c, y0)
        read = next((e for f, e in zip(march.folds, emits, strict=True) if f.reduce == "record"), None)
        stacked = tuple(e for f, e in zip(march.folds, emits, strict=True) if f.reduce == "stack")
        emitted, spec = tree_flatten(stacked) if stacked else ([], None)
        leaves = [c.t0, *(y0,) * keep, *emitted]
        row, sizes, size = Packing(leaves, lane), [], ()
        for group in row.groups:
            x = leaves[group[0]]
            sizes.append(((*x.shape[:lane], len(group), *x.shape[lane:]), x.dtype))
        trial = None if read is None else Packing((y0, *read), turned=turned)
        if trial is not None:
            size = (trial.count, *(reversed(y0.shape) if turned else y0.shape))
        memory = 8 * c.t0.numel() + y0.element_size() * prod(size or (0,))
        memory += sum(x.element_size() * x.numel() for x in leaves)
        rows = max(8, min(ROWS, BYTES // memory))
        return cls(emits, packing, rows, row, spec, int(keep), tuple(sizes), trial, size, tuple(c.t0.shape))

    def among(self, count: int) -> "Shape":
        """That of marches of some of the lanes."""
        where = -1 if self.trial is not None and any(self.trial.turned) else 1
        size = list(self.size)
        if size:
            size[where] = count
        sizes = tuple(((count, *size[1:]), dtype) for size, dtype in self.sizes)
        return self._replace(sizes=sizes, size=tuple(size), lanes=(count,))

    def places(self, count: int, like: Tensor) -> Rows:
        """Places for some steps of lanes of a state (l, ...)."""
        packs = [like.new_empty(count + 1, *size, dtype=dtype) for size, dtype in self.sizes]
        trials = None
        if self.trial is not None:
            theta = like.new_empty(count + 1, *self.lanes, dtype=torch.float64)
            trials = Trials(self.trial, theta, [like.new_empty(count + 1, *self.size)])
        return Rows(self.row, self.states, self.spec, packs, trials)


class Bound(NamedTuple):
    """A march as it is compiled: tolerances are tensors, folds that write are replaced by a record."""

    outer: March
    const: Const
    march: March
    c: Const
    writing: list[tuple[Tensor, ...]]  # what the folds that write have prepared
    keep: bool
    y0: Tensor
    shape: Shape

    @classmethod
    def of(cls, march: March, c: Const, y0: Tensor, keep: bool, known: dict[Any, Any], fast_math: bool) -> "Bound":
        """A march and its arguments; ``known`` keeps what is found out about shapes."""
        writing, inputs = _parted(march.folds, c.folds)
        rest = [fold for fold in march.folds if fold.reduce != "write"]
        if writing:
            rest.append(Record())
        inner = with_tensor_tolerances(
            march, y0, tuple(rest), Turned(march.term) if _by_component(march, y0, fast_math) else None
        )
        bound = c._replace(folds=tuple(inputs))
        kind = (keep, bool(writing), y0.shape, y0.dtype, y0.device, *map(_kind, rest))
        if kind not in known:
            known[kind] = Shape.of(inner, bound, y0, keep)
        return cls(march, c, inner, bound, writing, keep, y0, known[kind])

    def among(self, s: State, totals: tuple[Any, ...], lanes: Tensor) -> tuple["Bound", State, tuple[Any, ...]]:
        """The march of some of the lanes, and where they stand."""

        def pick(x: Tensor) -> Tensor:
            """Laid out in memory as it was, so that it need not be compiled for."""
            turned = x.ndim == 2 and x.shape[1] > 1 and x.stride(0) == 1
            return x.mT.index_select(1, lanes).mT if turned else x.index_select(0, lanes)

        s, totals = tree_map(pick, (s, totals))
        const = self.outer.const_among(self.const, lanes)
        writing, inputs = _parted(self.outer.folds, const.folds)
        shape = self.shape.among(len(lanes))
        few = self._replace(const=const, c=const._replace(folds=inputs), writing=writing, y0=s.y, shape=shape)
        return few, s, totals

    def totals(self) -> tuple[Any, ...]:
        """Of no steps."""
        return _totals(self.march, self.shape.emits, self.y0)

    def places(self, count: int | None = None) -> Rows:
        """Places for some steps."""
        return self.shape.places(count or self.shape.rows, self.y0)

    def written(
        self, s: State, rows: Rows, n: int, save: Callable[[Sequence[Any], Trials, bool], list[Found]] = saved
    ) -> list[Found]:
        """What the folds that write find in the first n trials.

        Args:
            s: where they end.
            rows: what was kept.
            n: how many there are.
            save: `saved`, or what does the same.
        """
        if rows.trials is None:
            return []
        trials, each = rows.trials.used(n), self.march.lanes == "each"
        trials.theta[n] = s.theta
        found = save(self.writing, trials, each)
        for k, inputs in enumerate(self.writing):
            if not bool(found[k].finite):  # a slope is infinite, as in eager marches
                found[k] = straightened(found[k], inputs, trials, s.y, each)
        return found

    def met(self, s: State, run: Run) -> tuple[State, Run]:
        """The steps of all lanes that wait before an event."""
        before, tape, rows = s.accepted, run.tape, self.places(1)
        s = meet(self.march, self.c, s, tape)
        if bool((s.accepted == before).all()):
            return s, run
        tape.before.append(before)
        theta0 = torch.as_tensor(tape.segment.theta0, dtype=torch.float64, device=before.device).expand(before.shape)
        row = Row(theta0, s.accepted > before, tape.segment.y0, self.march.emit(tape.segment, 1))
        row = moved(row, before.device)  # what an eager step of joint lanes reads of its books lies on the host
        totals = keep(self.march, torch.zeros_like(before.amax()), row, before, before, run.totals, rows)
        return s, run.grown(totals, before, rows.kept, self.written(s, rows, 1))

    def events(self, tape: Met, s: State, n: int) -> Tensor | None:
        """A bit for every event at the end of each of n steps (n, l)."""
        if not self.march.events:
            return None
        bits = torch.zeros(n, *s.accepted.shape, dtype=torch.int64, device=s.accepted.device)
        for before, fired in zip(tape.before, tape.fired.values(), strict=True):
            bits.scatter_add_(0, before.clamp_max(n - 1)[None], fired[None])
        return bits

    def finish(self, run: Run) -> tuple[Mesh, Pass, State]:
        """What an eager march gives."""
        totals, parts, tape, s, n, tape.complete = run
        each = self.march.lanes == "each"

        def rows(pick: Callable[[Kept], Tensor], end: Tensor) -> Tensor:
            """All rows of the march and one more, with ``end`` where a lane took fewer steps."""
            out = _gathered(parts, pick, n + 1)
            if each:
                return torch.where(expand(torch.arange(n + 1, device=out.device)[:, None] < s.accepted, out), out, end)
            out[n] = end
            return out

        mesh = Mesh(rows(lambda kept: kept.theta, s.theta), s.accepted, s.status, self.events(tape, s, n))
        tape.theta = [s.theta] * n
        reduced, stacks, writes = iter(totals), count(), count()
        for i, fold in enumerate(self.outer.folds):
            if fold.reduce == "write":
                j = next(writes)
                tape.values[i] = _merged([(part.written[j], part.lanes) for part in parts])
            elif fold.reduce == "stack":
                j = next(stacks)
                stacked = _gathered(parts, lambda kept, j=j: kept.emits[j], n)
                tape.values[i] = list(stacked.unbind())
            else:
                tape.values[i] = next(reduced)

        def compact(stacked: Tensor, rest: Tensor) -> Tensor:
            real = torch.arange(n, device=stacked.device)[:, None] < s.accepted
            return torch.where(expand(real, stacked), stacked, rest)

        done = close(self.outer, self.const, s, tape, compact if each else None)
        return mesh, done._replace(states=rows(lambda kept: kept.y[0], s.y) if self.keep else None), s


def moved(tree: Any, device: torch.device) -> Any:
    """The same tensors on a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)


def _kind(fold: Fold) -> tuple[Any, ...]:
    """What the shape of a fold's emissions may depend on beside the state."""
    return type(fold), *map(_look, vars(fold).values())


def _look(value: Any, closed: bool = False) -> Any:
    """What shapes may follow from: of functions their code and what they close over, of modules those of weights."""
    if isinstance(value, nn.Module):
        return type(value), *(x.shape for x in (*value.parameters(), *value.buffers()))
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, FunctionType | MethodType):
        function = value if isinstance(value, FunctionType) else value.__func__
        held = () if closed else (cell.cell_contents for cell in function.__closure__ or ())
        return function.__code__, *(_look(x, closed=True) for x in (*held, *(function.__defaults__ or ())))
    return value if isinstance(value, int | str | None) else type(value)


def _by_component(march: March, y: Tensor, fast_math: bool) -> bool:
    """Whether states lie in memory by component: kernels run along the batch then.

    Those of joint lanes do so under fast_math as well, since matrices lie by column there.
    """
    if y.ndim != 2 or (y.shape[1] > FEW and not (fast_math and march.lanes == "joint")):
        return False
    return isinstance(march.stepper, (RungeKutta, Rosenbrock) if march.lanes == "each" else RungeKutta)


def _parted(folds: Sequence[Fold], inputs: Sequence[tuple[Tensor, ...]]) -> tuple[list[Any], tuple[Any, ...]]:
    """What the folds that write have prepared, and what the others have, with a record in the place of the former."""
    writing = [given for fold, given in zip(folds, inputs, strict=True) if fold.reduce == "write"]
    rest = [given for fold, given in zip(folds, inputs, strict=True) if fold.reduce != "write"]
    return writing, (*rest, ()) if writing else tuple(rest)


def _gathered(parts: Sequence[Part], pick: Callable[[Kept], Tensor], n: int) -> Tensor:
    """Rows (n, ...) of what is picked of parts that start at a row of each lane (l)."""
    first = pick(parts[0].kept)
    if len(parts) == 1 and first.shape[0] >= n:
        return first[:n]
    out = first.new_empty(n + 1, *first.shape[1:])  # the last row takes what is not wanted
    for part in parts:
        rows, base = pick(part.kept), part.base
        index = base + torch.arange(rows.shape[0], device=base.device).reshape(-1, *(1,) * base.ndim)
        if part.lanes is None:
            out.scatter_(0, expand(index.clamp_max(n), rows).expand(rows.shape), rows)
        else:
            out[index.clamp_max(n), part.lanes] = rows
    return out[:n]


def _merged(written: Sequence[tuple[Found, Tensor | None]]) -> Tensor:
    """One output of several, each of which holds some places, of some lanes."""
    out = written[0][0].values.contiguous()
    for found, lanes in written[1:]:
        before = out if lanes is None else out[lanes]
        new = torch.where(expand(found.hit, found.values), found.values, before)
        out = new if lanes is None else out.index_copy(0, lanes, new)
    return out


@lru_cache(maxsize=64)
def _tolerances(rtol: float, atol: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(rtol, dtype=dtype, device=device), torch.tensor(atol, dtype=dtype, device=device)


def with_tensor_tolerances(march: March, y: Tensor, folds: tuple[Fold, ...], term: Term | None = None) -> March:
    """The same march with tolerances as tensors, which may change without compiling anew, other folds, another term."""
    controller, kind = march.controller, (real_dtype(y), y.device)
    if isinstance(controller, PID):
        rtol, atol = controller.rtol, controller.atol
        if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
            rtol, atol = (torch.as_tensor(x, dtype=kind[0], device=kind[1]) for x in (rtol, atol))
        else:
            rtol, atol = _tolerances(rtol, atol, *kind)
        controller = copy(controller)
        vars(controller).update(rtol=rtol, atol=atol)
    return March(
        term or march.term,
        march.stepper,
        controller,
        march.lanes,
        march.max_steps,
        march.path,
        march.jumps,
        march.events,
        folds,
    )


def _totals(march: March, emits: Sequence[Any], y: Tensor) -> tuple[Any, ...]:
    """What folds that reduce to one value have come to before any step, for emissions shaped like these."""
    made: list[Any] = []
    for fold, like in zip(march.folds, emits, strict=True):
        if fold.reduce in ("sum", "last"):
            made.append(y.new_zeros(like.shape, dtype=like.dtype))
        elif fold.reduce == "max":
            value = y.new_full(like.shape, -torch.inf, dtype=like.dtype)
            made.append(Best(value, torch.zeros_like(value, dtype=torch.int64)))
    return tuple(made)


def _shapes(march: March, c: Const, y0: Tensor) -> tuple[tuple[Any, ...], Packing]:
    """What a row holds of every fold, as fakes, and how a state is packed: found without evaluating the field."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = lambda tree: tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, tree)  # noqa: E731
    with mode, torch.no_grad():
        y, c = fake(y0.detach()), fake(c)
        s, emits = march.start(c, y), ()
        if march.folds:
            segment, *_ = march.segment(c, s.theta, s.theta, y, s.carry, s.accepted)
            emits = march.emit(segment, 1)
        leaves = tree_leaves((s, _totals(march, emits, y)))
        return emits, Packing(leaves, turned=isinstance(march.term, Turned))
