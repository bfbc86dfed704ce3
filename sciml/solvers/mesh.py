"""The mesh that a march decided on, and the solution as a pure function of it.

Everything differentiable is computed here: t_j = t0 + (t1 - t0) theta_j with theta frozen, so that the gradient is that
of the discrete solution on these steps, whatever way it is computed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.errors import Status
from sciml.solvers.event import by_occurrence
from sciml.solvers.march import March
from sciml.solvers.state import Const, State
from sciml.solvers.tape import Tape, write
from sciml.solvers.term import expand


class Mesh(NamedTuple):
    """The accepted steps of every lane.

    Attributes:
        theta: ends of the steps as fractions of the span, (n + 1) or (n + 1, b), float64; a lane of fewer steps repeats
            its last value.
        count: number of accepted steps (l).
        status: how each lane ended (l).
        events: a bit for every event that was met at the end of each step, (n) or (n, b), int64; None without events.
    """

    theta: Tensor
    count: Tensor
    status: Tensor
    events: Tensor | None = None

    @property
    def failed(self) -> Tensor:
        """Which lanes failed (l)."""
        return self.status >= Status.MAX_STEPS

    def fired(self) -> dict[int, Tensor]:
        """The events (l) of those steps that end at one in some lane."""
        if self.events is None or not len(self.events):
            return {}
        hit = (self.events.reshape(len(self.events), -1) != 0).any(1).nonzero()
        return {j: self.events[j] for j in hit.reshape(-1).tolist()}


class Pass(NamedTuple):
    """What one run over the steps gives."""

    y: Tensor  # the last state
    values: tuple[Tensor, ...]  # the folds' reduced emissions
    best: tuple[Tensor | None, ...]  # the step that attained a "max"
    states: Tensor | None  # (n + 1, ...) the state at every node of the mesh, where it was asked for
    met: Tensor | None = None  # (m, l, ...) the states at events, by occurrence; None where none was met


def freeze(march: March, c: Const, s: State, tape: Tape) -> tuple[Mesh, Pass]:
    """The mesh and the results of a finished march, its rejected trials dropped."""
    if not tape.taken:  # nothing rejected was kept
        theta = s.theta[None] if s.theta.ndim else s.theta.new_tensor([*tape.theta, s.theta.item()])
        return Mesh(theta, s.accepted, s.status, _events(march, s, tape)), close(march, c, s, tape)
    lane, trial = torch.stack(tape.taken, 1).nonzero().unbind(1)  # a lane's accepted trials after one another
    first = s.accepted.cumsum(0) - s.accepted
    step = torch.arange(len(lane), device=lane.device) - first.index_select(0, lane)
    steps = int(s.accepted.max())

    def compact(stacked: Tensor, rest: Tensor) -> Tensor:
        return rest.expand(steps, *rest.shape).index_put((step, lane), stacked[trial, lane])

    events = _events(march, s, tape)
    events = events if events is None else compact(events, torch.zeros_like(s.accepted))
    tape.theta = list(compact(torch.stack(tape.theta), s.theta))
    tape.y = list(compact(torch.stack(tape.y), s.y)) if tape.keep else []
    return Mesh(torch.stack([*tape.theta, s.theta]), s.accepted, s.status, events), close(march, c, s, tape, compact)


def _events(march: March, s: State, tape: Tape) -> Tensor | None:
    """The events at the end of every step of a tape."""
    if not march.events:
        return None
    none = torch.zeros_like(s.accepted)
    return torch.stack([tape.fired.get(j, none) for j in range(len(tape.theta))] or [none])[: len(tape.theta)]


def over(march: March, mesh: Mesh, c: Const, y: Tensor, keep: bool = False) -> Pass:
    """Take the steps of a mesh, recording a graph where gradients are on.

    Lanes that failed must have been put to rest before (`resting`).
    """
    joint, steps = march.lanes == "joint", len(mesh.theta) - 1
    reads = any(fold.stages for fold in march.folds)
    tape, carry, held = Tape(march.folds, keep), None, not joint and bool(mesh.failed.any())
    fired = mesh.fired()
    for j in range(steps):
        full = reads or j < steps - 1
        theta0, theta1 = march.ends(mesh.theta, j)
        key = j if joint else torch.full_like(mesh.count, j)
        segment, after, carry, _ = march.segment(c, theta0, theta1, y, carry, key, full, fired.get(j))
        if held:  # a step of length zero is the identity only where the field is finite
            stays = expand(mesh.failed & (j >= mesh.count), y)
            segment, after = segment._replace(y1=torch.where(stays, y, segment.y1)), torch.where(stays, y, after)
        tape.add(segment, None if joint else j < mesh.count)
        if j in fired:
            tape.meet(segment.y1, fired[j])
        y = after
    end = State(mesh.theta[-1], mesh.theta[-1], y, (), (), (), mesh.count, mesh.count, mesh.status)
    return close(march, c, end, tape)


def close(
    march: March, c: Const, s: State, tape: Tape, compact: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Pass:
    """The results of a tape: stack what is to be stacked, write what is to be written.

    Where no step was taken, or to pad a stack, a step of length zero is emitted.
    """
    tape.flush()
    states = torch.stack([*tape.y, s.y]) if tape.keep else None
    met = by_occurrence(torch.stack([*tape.fired.values()]), torch.stack(tape.met)) if tape.met else None
    if not march.folds:
        return Pass(s.y, (), (), states, met)
    lanes = s.theta.numel() if s.theta.ndim else None
    idle = lanes is not None and bool((s.accepted == 0).any())

    @cache
    def rest() -> tuple[Any, ...]:
        with torch.no_grad():  # what a step of no length makes of the field has no part in its ends
            segment, *_ = march.segment(c, s.theta, s.theta, s.y, None, s.accepted)
        error = None if segment.error is None else torch.zeros_like(segment.error)  # also where the field is not finite
        return march.emit(segment._replace(y0=s.y, y1=s.y, error=error), saves=1)

    values, best = [], []
    for i, (fold, value) in enumerate(zip(march.folds, tape.values, strict=True)):
        step = None
        if fold.reduce == "write" and not tape.complete:
            reached = (c.folds[i][1] <= s.theta[..., None]).sum(-1)
            value = write(value, s.y, reached, fold.places)
        elif fold.reduce == "stack":
            value = torch.stack(value) if value else rest()[i][None][:0]
            if compact is not None and len(value):
                value = compact(value, rest()[i] if bool((s.accepted < len(tape.theta)).any()) else value[0])
        elif value is None:
            value = torch.zeros_like(rest()[i]) if fold.reduce == "sum" else rest()[i]
        elif fold.reduce == "max":
            value, step = value
        if idle and fold.reduce in ("last", "max"):
            value = torch.where(expand(s.accepted > 0, value), value, rest()[i])
        values.append(value)
        best.append(step)
    return Pass(s.y, tuple(values), tuple(best), states, met)


def resting(mesh: Mesh, c: Const, y0: Tensor) -> tuple[Mesh, Const, Tensor]:
    """The same with failed lanes put to rest where a lane that came through starts.

    A field that is infinite in a failed lane would spoil every parameter's gradient: 0 * inf is NaN, and no mask on the
    output helps. What failed lanes give is to be taken from the march (`select`).
    """
    failed = mesh.failed
    if failed.ndim == 0 or not bool(failed.any()) or bool(failed.all()):
        return mesh, c, y0
    donor = (~failed).to(torch.uint8).argmax()[None]
    t0, t1 = (torch.where(failed, t.detach().index_select(0, donor), t) for t in (c.t0, c.t1))
    y0 = torch.where(expand(failed, y0), y0.detach().index_select(0, donor), y0)
    at_rest = mesh._replace(theta=torch.where(failed, 0, mesh.theta), count=torch.where(failed, 0, mesh.count))
    if mesh.events is not None:
        at_rest = at_rest._replace(events=torch.where(failed, 0, mesh.events))
    return at_rest, c._replace(t0=t0, t1=t1), y0


def select(march: March, failed: Tensor, done: Pass, graph: Pass) -> Pass:
    """The results of a pass with those of failed lanes from the march, which carry no gradient."""
    if failed.ndim == 0 or not bool(failed.any()):
        return graph
    pick = lambda a, b: torch.where(expand(failed, b), a, b)  # noqa: E731
    values = [
        pick(a.movedim(1, 0), b.movedim(1, 0)).movedim(0, 1) if fold.reduce == "stack" else pick(a, b)
        for fold, a, b in zip(march.folds, done.values, graph.values, strict=True)
    ]
    met = done.met
    if met is not None and graph.met is not None:
        rows = torch.cat([graph.met, met[len(graph.met) :]])
        met = torch.where(expand(failed, rows[0]), met, rows)
    return graph._replace(y=pick(done.y, graph.y), values=tuple(values), met=met)
