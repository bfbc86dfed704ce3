"""What is compiled of a march: the loop over its trials, and the one that pulls gradients back.

There are no numerics here: the loops run `March.advance` and `March.segment` and keep rows. Saved states are computed
after the loop, from the rows of the steps that they lie in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sciml.solvers.adjoint import cotangents
from sciml.solvers.fast_math import laid_out
from sciml.solvers.fold import Fold, Writes
from sciml.solvers.march import March, Segment
from sciml.solvers.mesh import Mesh
from sciml.solvers.state import Const, Row, State
from sciml.solvers.stepper import Interval
from sciml.solvers.tape import accumulate, greatest
from sciml.solvers.term import Term
from sciml.typing import Args

CHUNK = 4  # trials of a compiled chunk


class Record(Fold):
    """Keeps of a step what dense output reads."""

    reduce: ClassVar[Any] = "record"

    def emit(self, segment: Segment, saves: int | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The end of the step and its stages."""
        return segment.y1, *segment.stages


class Packing:
    """Tensors of like shape and dtype in one: a loop pays for every tensor that it carries.

    Args:
        like: the tensors, or fakes of them, of sizes that are known: a traced size would be fixed by looking at it.
        axis: where the axis of a pack lies.
        turned: whether matrices lie in memory by column.
    """

    def __init__(self, like: Sequence[Tensor], axis: int = 0, turned: bool = False):
        self.axis, self.count, self.turned = axis, len(like), turned
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(like):
            groups.setdefault((x.dtype, tuple(x.shape)), []).append(i)
        self.groups = list(groups.values())

    def pack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The packs."""
        turn = lambda x: x.mT if self.turned and x.ndim == 2 else x  # noqa: E731
        return [torch.stack([turn(tensors[i]) for i in group], self.axis) for group in self.groups]

    def unpack(self, packs: Sequence[Tensor], axis: int | None = None) -> list[Tensor]:
        """The tensors of packs that have their axis where it was, or elsewhere."""
        found: dict[int, Tensor] = {}
        for group, pack in zip(self.groups, packs, strict=True):
            pack = pack.mT if self.turned and pack.ndim == 3 else pack
            found.update(zip(group, pack.unbind(self.axis if axis is None else axis), strict=True))
        return [found[i] for i in range(self.count)]


class Turned(Term):
    """A term on states (b, d) of few components that lie in memory by component: kernels run along the batch."""

    def __init__(self, term: Term):
        self.term = term

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The same drift."""
        return self.term.drift(t, y, args).mT.contiguous().mT

    def mass(self, args: Args) -> Tensor | None:
        """The same mass."""
        return self.term.mass(args)


class Kept(NamedTuple):
    """The accepted steps since ``base`` in order, and in the row after the last one where it ended."""

    theta: Tensor  # (rows + 1, l)
    y: tuple[Tensor, ...]  # (rows + 1, ...), where it is wanted
    emits: tuple[Any, ...]  # (rows + 1, ...) of folds that stack, and of the record


class Rows(NamedTuple):
    """A place for such steps."""

    packing: Packing  # of the leaves of one step
    states: int  # whether its state is among them
    spec: Any  # how they make a `Kept`
    packs: list[Tensor]  # (rows + 1, l, k, ...), l left out for joint lanes

    def put(self, at: tuple[Tensor, ...], step: Kept) -> None:
        """Keep a step; ``at`` is its row (l) and, for lanes "each", the lane."""
        for pack, x in zip(self.packs, self.packing.pack(tree_leaves(step)), strict=True):
            pack.index_put_(at, x)

    @property
    def kept(self) -> Kept:
        """The steps."""
        return tree_unflatten(self.packing.unpack(self.packs, self.packing.axis + 1), self.spec)


def keep(march: March, row: Row, accepted: Tensor, base: Tensor, totals: Any, rows: Rows) -> Any:
    """Keep the row of a trial, which the next one overwrites if it was rejected; the new totals.

    Args:
        march: whose folds to reduce.
        row: what the trial gave.
        accepted: steps before it (l).
        base: steps before the first row (l).
        totals: what folds that reduce to one value have come to.
        rows: where to keep it.
    """
    emits, reduced = [], []
    for fold, value in zip(march.folds, row.emits, strict=True):
        if fold.reduce in ("stack", "record"):
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
    owner: "Owner | None",
    first: State | None,
    y0: Tensor,
    totals: Any,
    c: Const,
    packing: Packing,
    rows: Rows,
) -> tuple[State, Any, Tensor]:
    """March until no lane runs or the rows are full.

    Args:
        march: its folds that write replaced by a record.
        owner: of the march's parameters, where they are to be laid out anew.
        first: the state to go on from; None starts.
        y0: initial state.
        totals: what the folds have reduced so far.
        c: constants.
        packing: of the leaves of state and totals.
        rows: where to keep the steps.

    Returns:
        the last state, the totals, and how far the march is (`progress`).
    """
    if owner is not None:
        rest = partial(loop, march, None, first, y0, totals, c, packing, rows)
        return torch.func.functional_call(owner, laid_out(owner, dict(owner.named_parameters())), rest)
    s = march.start(c, y0) if first is None else first
    most, base = rows.packs[0].shape[0] - 1, s.accepted.clone()
    leaves, spec = tree_flatten((s, totals))

    def running(i: Tensor, *packs: Tensor) -> Tensor:
        s, _ = tree_unflatten(packing.unpack(packs), spec)
        return (s.status == 0).any() & (i < most)

    def body(i: Tensor, *packs: Tensor) -> tuple[Tensor, ...]:
        s, totals = tree_unflatten(packing.unpack(packs), spec)
        new, row = march.advance(s, c, 1)
        reduced = keep(march, row, s.accepted, base, totals, rows)
        return i + 1, *packing.pack(tree_leaves((new, reduced)))

    i = torch.zeros((), dtype=torch.int64, device=base.device)
    _, *packs = while_loop(running, body, (i, *packing.pack(leaves)))
    s, totals = tree_unflatten(packing.unpack(packs), spec)
    return s, totals, progress(s, base)


def progress(s: State, base: Tensor) -> Tensor:
    """What the host waits for (4): whether a lane runs, or waits for an event; most steps since base, and in all."""
    new = (s.accepted - base).max()
    return torch.stack([(s.status == 0).any().long(), (s.status < 0).any().long(), new, s.accepted.max()])


def chunk(march: March, s: State, totals: Any, base: Tensor, c: Const, rows: Rows) -> tuple[State, Any, Tensor]:
    """A few trials, whether lanes run or not."""
    for _ in range(CHUNK):
        new, row = march.advance(s, c, 1)
        s, totals = new, keep(march, row, s.accepted, base, totals, rows)
    return s, totals, progress(s, base)


def saved(
    march: March, writing: Sequence[tuple[Fold, Sequence[Tensor]]], s: State, kept: Kept, c: Const, base: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """What each of the folds that write finds in the rows: values (l, places, ...), and which places it is (l, places).

    Args:
        march: their march, with a record.
        writing: the folds and their inputs.
        s: where the rows end.
        kept: the rows.
        c: constants.
        base: steps before the first row (l).
    """
    each, n = march.lanes == "each", s.accepted - base
    index = torch.arange(kept.theta.shape[0], device=base.device)
    index = index[:, None] if each else index
    thetas = torch.where(index < n, kept.theta, torch.where(index == n, s.theta, torch.inf))
    return [_saved(march, fold, inputs, s, kept, c, thetas) for fold, inputs in writing]


def _saved(
    march: March, fold: Fold, inputs: Sequence[Tensor], s: State, kept: Kept, c: Const, thetas: Tensor
) -> tuple[Tensor, Tensor]:
    key, each = inputs[1], march.lanes == "each"
    rows, lanes = thetas.shape[0], thetas.shape[1] if each else 1
    last = (torch.searchsorted(thetas.mT.contiguous() if each else thetas, key) - 1).clamp_max(rows - 2)
    hit = (last >= 0) & (key <= s.theta[..., None])
    last = torch.where(hit, last, 0)
    flat = (last * lanes + torch.arange(lanes, device=last.device)[:, None]).reshape(-1) if each else last
    pick = lambda x: x.reshape(-1, *x.shape[1 + each :]).index_select(0, flat)  # noqa: E731
    spread = lambda x: x[..., None].expand(key.shape).reshape(-1)  # noqa: E731
    theta0, theta1 = pick(thetas), thetas.reshape(-1).index_select(0, flat + lanes)
    start, (y1, *stages) = pick(kept.y[0]), [pick(x) for x in kept.emits[-1]]
    interval = Interval.of(spread(c.t0), spread(c.t1), theta0, theta1, start)
    each_place = replace(march, lanes="each")  # every place as a lane of its own
    segment = Segment(each_place, c, theta0, theta1, flat, interval, start, y1, tuple(stages), None)
    values = fold.emit(segment, 1, *(x.reshape(-1, 1) for x in inputs)).values
    return values.reshape(*key.shape, *values.shape[2:]), hit


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
