"""Adjoints: how the gradient of a solve on its frozen mesh is computed.

They agree to round-off, since all of them differentiate the same discrete solution; they differ in memory and time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sciml.solvers.fold import Writes
from sciml.solvers.full import unmixed
from sciml.solvers.kicked import Kicked
from sciml.solvers.march import March, Segment
from sciml.solvers.mesh import Mesh, Pass
from sciml.solvers.state import Const
from sciml.solvers.stepper import Interval, Stepper
from sciml.solvers.term import declared_parameters, expand
from sciml.solvers.undeclared import graph_leaves, refuse_read
from sciml.solvers.undo import kicked_back, pulled, undoing, undone
from sciml.typing import Number


@dataclass(frozen=True)
class Discrete:
    """The gradient of the discrete solution.

    Args:
        store: what the forward pass keeps. ``"graph"``: everything, as plain backpropagation does; the only one whose
            gradient can be differentiated again. ``"all"``: the accepted states; one step at a time is recomputed.
            ``"every"``: every ``every``-th state; the states between are recomputed from it. ``"invert"``: none but the
            last, from where steps of a reversible stepper are undone one by one (a second pass forward finds it where
            lanes step by themselves). Its gradient differs from that of the others by round-off, which grows where the
            reversed equation is unstable.
        every: distance of the states kept by ``"every"``; None takes the root of the number of steps.
    """

    store: Literal["graph", "all", "every", "invert"] = "graph"
    every: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a way to store."""
        if self.store not in ("graph", "all", "every", "invert"):
            raise ValueError(f"store: expected 'graph', 'all', 'every' or 'invert', got {self.store!r}")
        if self.every is not None and (self.store != "every" or self.every < 1):
            raise ValueError(
                f"every: expected a positive distance with store='every', got {self.every} with {self.store!r}"
            )


def refuse_store(store: str, stepper: Stepper) -> None:
    """Refuse a way to store that a stepper does not bear.

    Raises:
        ValueError: "invert" of steps that cannot be undone, "all" or "every" of steps that need their history.
    """
    name = type(stepper).__name__
    if store == "invert" and not stepper.reversible:
        raise ValueError(f"adjoint: {name} cannot be inverted; expected ReversibleHeun or Yoshida4, for example")
    if store in ("all", "every") and stepper.history:
        others = "'graph' or 'invert'" if stepper.reversible else "'graph'"
        raise ValueError(f"adjoint: a step of {name} needs its history; expected store={others}, got {store!r}")


class Plan(NamedTuple):
    """What the backward pass of a replay needs beside its tensors."""

    march: March
    mesh: Mesh
    const: Const
    every: int  # 0: none
    pull: Callable[..., list[Any]] | None  # a compiled backward pass
    last: tuple[Tensor, ...] = ()  # state and history at the end, where they are known


def replay(
    adjoint: Discrete,
    march: March,
    mesh: Mesh,
    c: Const,
    y0: Tensor,
    done: Pass,
    parameters: Sequence[nn.Parameter],
    pull: Callable[..., list[Any]] | None = None,
    last: tuple[Tensor, ...] = (),
) -> Pass:
    """Attach the gradient to the results ``done`` of a march without one.

    Args:
        adjoint: what to keep.
        march: the static part of the solve.
        mesh: its steps; theta carries a gradient where the grid's own times do.
        c: the differentiable constants.
        y0: initial state.
        done: the results; its states are needed with ``store="all"``.
        parameters: those of every module of the solve.
        pull: a compiled backward pass over states of ``store="all"``, for steps without events.
        last: state and history at the end, from where ``store="invert"`` goes back; without them they are found anew.
    """
    if adjoint.store == "invert":
        for what, given in (("events", march.events), ("jumps", march.jumps), ("jump_ts", c.edges)):
            if given:
                raise ValueError(f'{what}: Discrete("invert") cannot undo them; use Discrete("graph")')
        every, states = 0, y0.detach()
    elif adjoint.store == "all":
        every, states = 1, done.states
    else:
        every = adjoint.every or max(1, ceil(sqrt(len(mesh.theta) - 1)))
        states = _checkpoints(march, mesh, c, y0.detach(), every)
    plan = Plan(march, mesh, c, every, pull if every == 1 else None, last if every == 0 else ())
    y, met, *values = _Replay.apply(plan, done, states, y0, mesh.theta, *c.leaves(), *parameters)
    return done._replace(y=y, values=tuple(values), met=met)


@torch.no_grad()
def _checkpoints(march: March, mesh: Mesh, c: Const, y: Tensor, every: int) -> Tensor:
    """The state at every so many-th node (n / every, ...)."""
    states = _states(march, mesh, c, y, 0, len(mesh.theta) - 1)
    return torch.stack([state for j, state in enumerate(states) if j % every == 0])


def _states(march: March, mesh: Mesh, c: Const, y: Tensor, start: int, end: int) -> Iterator[Tensor]:
    """The states at the nodes start .. end - 1."""
    carry, fired = None, mesh.fired()
    for j in range(start, end):
        yield y
        if j + 1 < end:
            theta0, theta1 = march.ends(mesh.theta, j)
            key = torch.full_like(mesh.count, j)
            _, y, carry, _ = march.segment(c, theta0, theta1, y, carry, key, True, fired.get(j))


class _Replay(torch.autograd.Function):
    """Recompute one step at a time, from the last to the first; all differentiable tensors are inputs."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, done: Pass, states: Tensor, y0: Tensor, theta: Tensor, *rest: Tensor) -> Any:
        ctx.plan, ctx.best = plan, done.best
        ctx.save_for_backward(states, y0, theta, *rest)
        ctx.set_materialize_grads(True)
        return done.y.clone(), done.met, *done.values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        with torch.no_grad(), unmixed(ctx.saved_tensors[0]):
            grads = _Replay.recompute(ctx, *grad_outputs)
        return once(grads, grad_outputs, ctx.saved_tensors)

    @staticmethod
    def recompute(ctx: Any, grad_y: Any, grad_met: Any, *grad_values: Tensor) -> tuple[Any, ...]:
        """The gradients of all inputs of `forward`."""
        march, mesh, like, every, pull, last = ctx.plan
        states, _, theta, *rest = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]  # theta, the constants, the parameters
        count = len(like.leaves())
        mapped = torch._C._functorch.is_legacy_batchedtensor(grad_y)  # as of is_grads_batched
        if pull is not None and not (needs[0] or mapped or mesh.fired()):
            c, parameters = like.with_leaves([x.detach() for x in rest[:count]]), rest[count:]
            grad_y, *grads = pull(march, mesh, c, states, parameters, needs[1:], ctx.best, grad_y, grad_values)
            return None, None, None, grad_y, None, *grads
        total: list[Any] = [None] * (1 + len(rest))
        reads = any(fold.stages for fold in march.folds)
        c = like.with_leaves([x.detach() for x in rest[:count]])
        frozen, fired = mesh._replace(theta=theta.detach()), mesh.fired()
        leaves = [x.detach().requires_grad_(need) for x, need in zip(rest[:count], needs[1:], strict=False)]
        inner, others = like.with_leaves(leaves), (*needs[:4], *needs[4 + len(like.args) : 1 + count])  # than args
        linear = all(fold.linear(march.stepper) for fold in march.folds)
        if every == 0 and isinstance(march.stepper, Kicked) and len(theta) > 1 and linear and not any(others):
            wanted = [x for x, need in zip([*leaves, *rest[count:]], needs[1:], strict=True) if need]
            folded = partial(_folded, march, frozen, c, states, grad_values, ctx.best)
            grad_y, found = kicked_back(march, march.stepper, frozen, inner, states, last, wanted, grad_y, folded)
            return None, None, None, grad_y, None, *(found.pop(0) if need else None for need in needs[1:])
        history, grad_carry = march.stepper.history, ()
        inputs = {id(x) for x in (*leaves, *rest[count:])}
        march = undoing(march, rest[count:], like) if every == 0 else march
        for j, y, carry in (
            undone(march, frozen, c, states, last) if every == 0 else _backwards(march, frozen, c, states, every)
        ):
            with torch.enable_grad():
                y, *carry = (x.detach().requires_grad_() for x in (y, *carry))
                ends = theta[j : j + 2].detach().requires_grad_() if needs[0] else frozen.theta[j : j + 2]
                key = torch.full_like(mesh.count, j)
                theta0, theta1 = march.ends(ends, 0)
                full = reads or history
                segment, after, left, _ = march.segment(
                    inner, theta0, theta1, y, tuple(carry) or None, key, full, fired.get(j)
                )
                emits = march.emit(segment)
            roots = [after, *(x.values if isinstance(x, Writes) else x for x in emits if x is not None)]
            refuse_read(march.term, roots, inputs | {id(x) for x in (y, *carry, ends)})
            pairs = [(after, grad_y), *cotangents(march, mesh, emits, grad_values, ctx.best, j)]
            if mesh.events is not None and j in fired:
                pairs.append((segment.y1, _occurred(mesh.events, grad_met, j)))
            pairs += zip(left, grad_carry, strict=False)
            pairs = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
            wanted = [x for x, need in zip([ends, *leaves, *rest[count:]], needs, strict=True) if need]
            grad_y, *grads = torch.autograd.grad(
                [out for out, _ in pairs], [y, *carry, *wanted], [grad for _, grad in pairs], allow_unused=True
            )
            grad_carry, parts = grads[: len(carry)], iter(grads[len(carry) :])
            _accumulate(total, [next(parts) if need else None for need in needs], j)
        if needs[0]:
            total[0] = _spread(total[0], theta)
        return None, None, None, grad_y, *total


def _folded(
    march: March,
    mesh: Mesh,
    c: Const,
    y0: Tensor,
    grads: Sequence[Tensor],
    best: Sequence[Tensor | None],
    j: int,
    y: Tensor,
) -> Sequence[Tensor | None]:
    """What linear folds add to the gradients of a step's ends, given its number and the state at its end.

    For the state at its start, on which that does not depend, stands the one at t0.
    """
    if not march.folds:
        return None, None
    before, after = (x.detach().requires_grad_() for x in (y0, y))
    theta0, theta1 = march.ends(mesh.theta, j)
    interval, key = Interval.of(c.t0, c.t1, theta0, theta1, y), torch.full_like(mesh.count, j)
    with torch.enable_grad():
        emits = march.emit(Segment(march, c, theta0, theta1, key, interval, before, after, (), None))
    pairs = list(cotangents(march, mesh, emits, grads, best, j))
    return pulled([value for value, _ in pairs], [grad for _, grad in pairs], [before, after])


def still(march: March, c: Const, y0: Tensor, done: Pass) -> Pass:
    """The results of a solve in which nothing moved, with the gradient 0 for what they do not depend on."""
    read = declared_parameters(march.term, march.path, *march.folds, *march.jumps, *march.events)
    if not declared_parameters(march.term):
        read += _leaves_read(march, c, y0)  # a plain function does not say what it reads
    inputs = [x for x in (y0, *c.leaves(), *read) if x.requires_grad]
    if not inputs:
        return done
    y, *values = _Still.apply(1 + len(done.values), done.y, *done.values, *inputs)
    return done._replace(y=y, values=tuple(values))


def _leaves_read(march: March, c: Const, y0: Tensor) -> list[Tensor]:
    """The tensors that one evaluation of the drift reads and that need a gradient, but for the inputs of the solve."""
    with torch.enable_grad():
        frozen = c.with_leaves([x.detach() for x in c.leaves()])
        return list(graph_leaves([march.field(frozen).checked(frozen.t0, y0.detach())]))


class _Still(torch.autograd.Function):
    """The first tensors as they are, as functions of the others that do not depend on them."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.like = [(x.shape, x.dtype, x.device) for x in tensors[count:]]
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return None, *grad_outputs, *zeros


def once(grads: Sequence[Any], grad_outputs: Sequence[Any], saved: Sequence[Tensor]) -> tuple[Any, ...]:
    """The gradients of an adjoint, such that they cannot be differentiated again."""
    if not torch.is_grad_enabled():
        return tuple(grads)
    inputs = [x for x in (*grad_outputs, *saved) if x is not None and x.requires_grad]
    return tuple(None if grad is None else _Once.apply(grad, *inputs) for grad in grads)


class _Once(torch.autograd.Function):
    """A gradient whose own derivative is refused instead of taken for zero."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise RuntimeError('this gradient cannot be differentiated again: only Discrete(store="graph") allows that')


def _accumulate(total: list[Any], parts: list[Tensor | None], j: int) -> None:
    """Add one step's gradients; those of its two ends are kept apart until the end."""
    for i, part in enumerate(parts):
        if part is None:
            continue
        if i == 0:
            total[0] = [*(total[0] or []), (j, part)]
        else:
            total[i] = part if total[i] is None else total[i] + part


def _spread(parts: list[tuple[int, Tensor]] | None, theta: Tensor) -> Tensor:
    """The gradient of all nodes from those of every step's two ends."""
    grad = torch.zeros_like(theta)
    for j, part in parts or []:
        grad[j : j + 2] += part
    return grad


def _backwards(
    march: March, mesh: Mesh, c: Const, states: Tensor, every: int
) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
    """Step numbers from the last to the first, with the state each starts from, and no carry."""
    steps = len(mesh.theta) - 1
    for start in reversed(range(0, steps, every)):
        end = min(start + every, steps)
        with torch.no_grad():
            chunk = list(_states(march, mesh, c, states[start // every], start, end))
        for j in reversed(range(start, end)):
            yield j, chunk.pop(), ()


def cotangents(
    march: March, mesh: Mesh, emits: Sequence[Any], grads: Sequence[Tensor], best: Sequence[Tensor | None], j: Number
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each fold's emission in step j with the share of the result's gradient that belongs to it."""
    for fold, value, grad, step in zip(march.folds, emits, grads, best, strict=True):
        if value is None:
            continue
        if isinstance(value, Writes):
            yield value.values, _read(value, grad)
            continue
        real = expand((j < mesh.count).to(value.device), value)
        if fold.reduce == "stack":
            grad = grad[j] if isinstance(j, int) else grad.index_select(0, j.reshape(1)).squeeze(0)
        elif fold.reduce == "max":
            real = real & (step == j)
        elif fold.reduce == "last":
            real = expand(mesh.count.eq(j + 1).to(value.device), value)
        yield value, torch.where(real, grad, 0) if fold.reduce != "stack" else grad


def _occurred(events: Tensor, grad: Tensor, j: int) -> Tensor:
    """The gradient of the state at the end of step j among those at events (m, l, ...)."""
    met = events[: j + 1] != 0
    place = (met.sum(0) - 1).clamp_min(0).to(grad.device)
    rows = grad.gather(0, expand(place, grad[0]).expand(grad[0].shape)[None])[0]
    return torch.where(expand(met[j].to(grad.device), rows), rows, 0)


def _read(written: Writes, grad: Tensor) -> Tensor:
    """The transpose of writing: the gradient (l, t, ...) at the places of a step, (l, k, ...)."""
    _, place, hit = written
    if place.ndim == 1:
        picked = grad.index_select(0, place.to(grad.device))
    else:
        picked = grad.gather(1, expand(place, grad).expand(*place.shape, *grad.shape[2:]))
    return torch.where(expand(hit.to(grad.device), picked), picked, 0)
