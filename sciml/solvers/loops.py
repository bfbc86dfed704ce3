"""What is compiled of a march: the loop over its trials, and the one that pulls gradients back.

There are no numerics here: the loops run `March.advance` and `March.segment` and keep rows. Saved states are computed
after the loop, from the rows of the steps that they lie in.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sciml.solvers.adjoint import cotangents
from sciml.solvers.dense import along
from sciml.solvers.fast_math import laid_out
from sciml.solvers.fold import Fold, Writes, within
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.march import March, Segment
from sciml.solvers.mesh import Mesh
from sciml.solvers.state import Const, Row, State
from sciml.solvers.tape import accumulate, greatest
from sciml.solvers.term import Term, expand, real_dtype
from sciml.typing import Args

CHUNK = 4  # trials of a compiled chunk


class Record(Fold):
    """Reads the dense output of a step."""

    reduce: ClassVar[Any] = "record"

    def emit(self, segment: Segment, saves: int | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Its coefficients."""
        return segment.march.stepper.curve(segment)


class Packing:
    """Tensors of like shape and dtype in one: a loop pays for every tensor that it carries.

    Args:
        like: the tensors, or fakes of them, of sizes that are known: a traced size would be fixed by looking at it.
        axis: where the axis of a pack lies.
        turned: whether matrices lie in memory by column.
    """

    def __init__(self, like: Sequence[Tensor], axis: int = 0, turned: bool = False):
        self.axis, self.count = axis, len(like)
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(like):
            groups.setdefault((x.dtype, tuple(x.shape)), []).append(i)
        self.groups = list(groups.values())
        self.turned = [turned and like[group[0]].ndim == 2 for group in self.groups]

    def pack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The packs."""
        return [
            torch.stack([tensors[i].mT if turned else tensors[i] for i in group], self.axis)
            for group, turned in zip(self.groups, self.turned, strict=True)
        ]

    def unpack(self, packs: Sequence[Tensor], axis: int | None = None) -> list[Tensor]:
        """The tensors of packs that have their axis where it was, or elsewhere."""
        found: dict[int, Tensor] = {}
        for group, turned, pack in zip(self.groups, self.turned, packs, strict=True):
            pack = pack.mT if turned else pack
            found.update(zip(group, pack.unbind(self.axis if axis is None else axis), strict=True))
        return [found[i] for i in range(self.count)]


class Turned(Term):
    """A term on states (b, d) of few components that lie in memory by component: kernels run along the batch."""

    def __init__(self, term: Term):
        self.term = term

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The same drift."""
        return self.term.drift(t, y, args).mT.contiguous().mT

    def mass(self, args: Args) -> Tensor | LinearOperator | None:
        """The same mass."""
        return self.term.mass(args)


class Kept(NamedTuple):
    """The accepted steps since ``base`` in order, and in the row after the last one where it ended."""

    theta: Tensor  # (rows + 1, l)
    y: tuple[Tensor, ...]  # (rows + 1, ...), where it is wanted
    emits: tuple[Any, ...]  # (rows + 1, ...) of folds that stack


class Trials(NamedTuple):
    """All trials as they come: where one was rejected the next one starts at the same theta."""

    packing: Packing  # of the state at the start and what a record reads
    theta: Tensor  # (rows + 1, l)
    packs: list[Tensor]  # (rows + 1, k, ...)

    def put(self, i: Tensor, theta: Tensor, y: Tensor, read: Sequence[Tensor]) -> None:
        """Keep trial i."""
        self.theta.index_put_((i,), theta)
        for pack, x in zip(self.packs, self.packing.pack((y, *read)), strict=True):
            pack.index_put_((i,), x)

    def used(self, n: int) -> "Trials":
        """The first n, and the row after them."""
        return Trials(self.packing, self.theta[: n + 1], [pack[: n + 1] for pack in self.packs])

    @property
    def read(self) -> list[Tensor]:
        """The states and what was read (rows + 1, ...), lanes on the second axis."""
        return self.packing.unpack(self.packs, 1)


class Rows(NamedTuple):
    """A place for the steps of a march."""

    packing: Packing  # of the leaves of one accepted step
    states: int  # whether its state is among them
    spec: Any  # how the others make what folds emit; None where there are none
    packs: list[Tensor]  # (rows + 1, l, k, ...), l left out for joint lanes
    trials: Trials | None  # where a fold writes

    def put(self, at: tuple[Tensor, ...], step: Kept) -> None:
        """Keep an accepted step; ``at`` is its row (l) and, for lanes "each", the lane."""
        for pack, x in zip(self.packs, self.packing.pack(tree_leaves(step)), strict=True):
            pack.index_put_(at, x)

    @property
    def kept(self) -> Kept:
        """The accepted steps."""
        theta, *rest = self.packing.unpack(self.packs, self.packing.axis + 1)
        y, emits = rest[: self.states], rest[self.states :]
        return Kept(theta, tuple(y), () if self.spec is None else tree_unflatten(emits, self.spec))


def keep(march: March, i: Tensor, row: Row, accepted: Tensor, base: Tensor, totals: Any, rows: Rows) -> Any:
    """Keep the row of trial i, which the next one overwrites if it was rejected; the new totals.

    Args:
        march: whose folds to reduce.
        i: its number since the first row, 0-d int64.
        row: what the trial gave.
        accepted: steps before it (l).
        base: steps before the first row (l).
        totals: what folds that reduce to one value have come to.
        rows: where to keep it.
    """
    emits, reduced = [], []
    for fold, value in zip(march.folds, row.emits, strict=True):
        if fold.reduce == "record":
            rows.trials.put(i, row.theta, row.y, value)  # pyrefly: ignore[missing-attribute]
        elif fold.reduce == "stack":
            emits.append(value)
        elif fold.reduce == "max":
            reduced.append(greatest(totals[len(reduced)], value, accepted, row.taken))
        else:
            reduced.append(accumulate(fold.reduce, totals[len(reduced)], value, row.taken))
    lane = () if march.lanes == "joint" else (torch.arange(base.shape[0], device=base.device),)
    rows.put((accepted - base, *lane), Kept(row.theta, (row.y,) * rows.states, tuple(emits)))
    return tuple(reduced)


def loop(
    march: March,
    first: State | None,
    y0: Tensor,
    totals: Any,
    c: Const,
    packing: Packing,
    rows: Rows,
    few: Tensor,
) -> tuple[State, Any, Tensor]:
    """March until no lane runs, or few do, or the rows are full.

    Args:
        march: its folds that write replaced by a record.
        first: the state to go on from; None starts.
        y0: initial state.
        totals: what the folds have reduced so far.
        c: constants.
        packing: of the leaves of state and totals.
        rows: where to keep the steps.
        few: how many running lanes to stop at, 0-d int64.

    Returns:
        the last state, the totals, and how far the march is (`progress`).
    """
    s = march.start(c, y0) if first is None else first
    most, base = rows.packs[0].shape[0] - 1, s.accepted.clone()
    leaves, spec = tree_flatten((s, totals))

    def running(i: Tensor, *packs: Tensor) -> Tensor:
        s, _ = tree_unflatten(packing.unpack(packs), spec)
        return ((s.status == 0).sum() > few) & (i < most)

    def body(i: Tensor, *packs: Tensor) -> tuple[Tensor, ...]:
        s, totals = tree_unflatten(packing.unpack(packs), spec)
        new, row = march.advance(s, c, 1)
        reduced = keep(march, i, row, s.accepted, base, totals, rows)
        return i + 1, *packing.pack(tree_leaves((new, reduced)))

    i = torch.zeros((), dtype=torch.int64, device=base.device)
    i, *packs = while_loop(running, body, (i, *packing.pack(leaves)))
    s, totals = tree_unflatten(packing.unpack(packs), spec)
    return s, totals, progress(s, i)


def progress(s: State, i: Tensor) -> Tensor:
    """What the host waits for (5).

    How many lanes run, whether one waits for an event, whether all are done; trials i, accepted steps of the lane that
    took most.
    """
    flags = [(s.status < 0).any(), (s.status == 1).all()]
    return torch.stack([(s.status == 0).sum(), *(flag.long() for flag in flags), i, s.accepted.max()])


class Place(NamedTuple):
    """Memory for a state and totals that are overwritten.

    It is of packs, since a compiled function forgets what it writes to a 0-d float64 input (torch 2.13).
    """

    packing: Packing
    spec: Any
    packs: list[Tensor]

    @property
    def held(self) -> tuple[State, tuple[Any, ...]]:
        """Views of what is there."""
        return tree_unflatten(self.packing.unpack(self.packs), self.spec)

    def put(self, s: State, totals: Any) -> None:
        """Overwrite it."""
        for pack, new in zip(self.packs, self.packing.pack(tree_leaves((s, totals))), strict=True):
            pack.copy_(new)


def chunk(march: March, i: Tensor, place: Place, base: Tensor, c: Const, rows: Rows) -> Tensor:
    """A few trials whether lanes run or not, in place, so that its kernels can be replayed.

    Args:
        march: its folds that write replaced by a record.
        i: number of the first trial, 0-d int64, which becomes that of the next one.
        place: of state and totals.
        base: steps before the first row (l).
        c: constants.
        rows: where to keep the steps.

    Returns:
        how far the march is (`progress`).
    """
    number, (s, totals) = i, place.held
    for _ in range(CHUNK):
        new, row = march.advance(s, c, 1)
        totals = keep(march, number, row, s.accepted, base, totals, rows)
        number, s = number + 1, new
    place.put(s, totals)
    i.copy_(number)
    return progress(s, number)


class Found(NamedTuple):
    """The states at the save times of a fold that lie in some trials."""

    values: Tensor  # (l, t, ...), l left out for joint lanes; anything where not hit
    hit: Tensor  # (l, t) which of them lie there
    finite: Tensor  # whether all values are, 0-d


def located(key: Tensor, theta: Tensor, each: bool) -> Tensor:
    """The trials (l, t) that save times (l, t) lie in, where theta (n + 1, l) are their ends: -1 before, n after."""
    if each:  # comparing with all runs along the times; a block of rows holds few trials of many lanes
        return (theta[:, :, None] < key).sum(0) - 1
    return torch.searchsorted(theta, key) - 1


def saved(writing: Sequence[Sequence[Tensor]], trials: Trials, each: bool) -> list[Found]:
    """The states at save times.

    Args:
        writing: what each fold that writes made in `prepare`.
        trials: the trials, and in the row after them where they end.
        each: whether lanes step by themselves.
    """
    y0, *coefficients = trials.read
    found = []
    for theta, key in writing:
        trial, lane, hit, s = _inside(theta, key, trials, each)
        start = y0[trial, *lane]
        s = expand(s.to(device=start.device, dtype=real_dtype(start)), start)
        values = along(start, [c[trial, *lane] for c in coefficients], s)
        found.append(Found(values, hit, values.isfinite().all()))
    return found


def straightened(found: Found, inputs: Sequence[Tensor], trials: Trials, end: Tensor, each: bool) -> Found:
    """States at save times; those that are not finite on the straight line through the ends of their trial.

    Args:
        found: the states.
        inputs: what the fold made in `prepare`.
        trials: the trials.
        end: the state after them.
        each: whether lanes step by themselves.
    """
    theta, key = inputs
    trial, lane, _, s = _inside(theta, key, trials, each)
    starts = trials.read[0]
    starts[-1] = end
    y0, y1 = starts[trial, *lane], starts[trial + 1, *lane]
    s = expand(s.to(device=y0.device, dtype=real_dtype(y0)), y0)
    return found._replace(values=torch.where(found.values.isfinite(), found.values, (1 - s) * y0 + s * y1))


def _inside(
    theta: Tensor, key: Tensor, trials: Trials, each: bool
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """The trial of each save time, its lane, whether it lies in one, and at which fraction of it."""
    place, n = located(key, trials.theta, each), trials.theta.shape[0] - 1
    trial = place.clamp(0, n - 1)
    lane = (torch.arange(key.shape[0], device=key.device)[:, None],) if each else ()
    s = within(theta, trials.theta[trial, *lane], trials.theta[trial + 1, *lane])
    return trial, lane, (place >= 0) & (place < n), s


class Pull(NamedTuple):
    """What the backward loop is given beside its march."""

    owner: "Owner"
    parameters: tuple[Tensor, ...]
    c: Const
    needs: tuple[bool, ...]  # of the constants' leaves
    relay: bool  # whether to lay the parameters out anew
    mesh: Mesh
    states: Tensor  # (n + 1, ...)
    best: tuple[Tensor | None, ...]
    grad_y: Tensor
    grad_values: tuple[Tensor, ...]


def backward(march: March, pull: Pull, last: Tensor, saves: int) -> tuple[Tensor, ...]:
    """The gradients of y0, of the constants' leaves that need one, and of the parameters.

    Args:
        march: the march.
        pull: the forward pass and what comes back from its results.
        last: number of the last step, 0-d int64.
        saves: a bound on the number of save times in one step.
    """
    leaves, mesh, names = pull.c.leaves(), pull.mesh, pull.owner.names
    full = any(fold.stages for fold in march.folds)
    wanted = tuple(x for x, need in zip(leaves, pull.needs, strict=True) if need)
    parameters = pull.parameters
    if pull.relay:
        parameters = tuple(laid_out(pull.owner, dict(zip(names, parameters, strict=True))).values())

    def body(j: Tensor, grad_y: Tensor, *so_far: Tensor) -> tuple[Tensor, ...]:
        theta0, theta1, y = (
            x.index_select(0, i.reshape(1)).squeeze(0)
            for x, i in ((mesh.theta, j), (mesh.theta, j + 1), (pull.states, j))
        )

        def step(y: Tensor, wanted: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> Any:
            some = iter(wanted)
            c = pull.c.with_leaves([next(some) if need else x for x, need in zip(leaves, pull.needs, strict=True)])
            run = lambda: march.segment(c, theta0, theta1, y, None, j.expand(mesh.count.shape), full)  # noqa: E731
            segment, after, *_ = torch.func.functional_call(pull.owner, dict(zip(names, parameters, strict=True)), run)
            emits = march.emit(segment, saves)
            values = [e.values if isinstance(e, Writes) else e for e in emits]
            return (after, *values), emits

        _, vjp, emits = torch.func.vjp(step, y, wanted, parameters, has_aux=True)  # pyrefly: ignore[bad-unpacking]
        grads = [grad for _, grad in cotangents(march, mesh, emits, pull.grad_values, pull.best, j)]
        grad_y, parts, more = vjp((grad_y, *grads))
        return j - 1, grad_y, *(a + b for a, b in zip(so_far, (*parts, *more), strict=True))

    zeros = [x.new_zeros(x.shape) for x in (*wanted, *parameters)]
    return while_loop(lambda j, *rest: j >= 0, body, (last.clone(), pull.grad_y.clone(), *zeros))[1:]


class Owner(nn.Module):
    """Modules whose parameters a function reads that it is called with."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.names = tuple(name for name, _ in self.named_parameters())

    def forward(self, function: Callable[[], Any]) -> Any:
        """The function's value."""
        return function()
