"""Steps of reversible steppers, undone one by one, with the evaluations that undoing took at hand for the gradient."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from sciml.solvers.kicked import Kicked
from sciml.solvers.march import March
from sciml.solvers.mesh import Mesh
from sciml.solvers.state import Const
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.undeclared import refuse_read


class _Memory:
    """The evaluations at the start of the step that was undone last and of the one before, with their graphs.

    Undoing a step evaluates the field where it starts, which is where the step before it ends, whose gradient needs
    that evaluation.
    """

    def __init__(self, parameters: Sequence[Tensor], timed: bool):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.timed = timed  # whether the times carry gradients
        self.newer: tuple[list[Tensor], tuple[Tensor, ...]] | None = None
        self.older: tuple[list[Tensor], tuple[Tensor, ...]] | None = None

    def turn(self) -> None:
        """A step is undone."""
        self.older, self.newer = self.newer, None


class _Noting(Field):
    """A field that notes what it evaluates without gradients and recalls it with gradients."""

    memory: _Memory

    def once(self, function: Callable[[Field, Tensor, Tensor], tuple[Tensor, ...]], t: Tensor, y: Tensor) -> Any:
        """What is evaluated once a step."""
        memory = self.memory
        if torch.is_grad_enabled():
            if memory.older is None:
                return function(self, t, y)
            return _Recalled.apply(memory.older, t, y, *self.args, *memory.parameters)
        with torch.enable_grad():
            t, y = t.detach().requires_grad_(memory.timed), y.detach().requires_grad_()
            args = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in self.args)
            outputs = function(self._replace(args=args), t, y)
        memory.newer = [t, y, *args, *memory.parameters], outputs
        return tuple(x.detach() for x in outputs)


class _Recalled(torch.autograd.Function):
    """The outputs of a graph as functions of what stands for its inputs."""

    @staticmethod
    def forward(ctx: Any, noted: tuple[list[Tensor], tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.noted = noted
        return tuple(x.detach() for x in noted[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        inputs, outputs = ctx.noted
        pairs = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if x.requires_grad]
        needs = [need and x.requires_grad for x, need in zip(inputs, ctx.needs_input_grad[1:], strict=True)]
        wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
        if not pairs or not wanted:
            return (None,) * (1 + len(inputs))
        found = iter(torch.autograd.grad([x for x, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True))
        return None, *(next(found) if need else None for need in needs)


@dataclass(frozen=True, eq=False)
class _Undoing(March):
    """A march whose fields share a memory."""

    memory: _Memory = field(default_factory=lambda: _Memory((), False))

    def field(self, c: Const) -> Field:
        """The term bound to its arguments."""
        noting = _Noting(self.term, c.args, self.lanes, c.stepper)
        noting.memory = self.memory
        return noting


def undoing(march: March, parameters: Sequence[Tensor], c: Const) -> March:
    """The same march for `undone` and for the graphs of the steps that it yields."""
    timed = c.t0.requires_grad or c.t1.requires_grad or c.stops.requires_grad
    shared = {each.name: getattr(march, each.name) for each in fields(march) if each.init}
    return _Undoing(**shared, memory=_Memory(parameters, timed))


def undone(
    march: March, mesh: Mesh, c: Const, y0: Tensor, last: tuple[Tensor, ...]
) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
    """Step numbers from the last to the first, with state and history that each starts from, found by undoing it.

    Args:
        march: as made by `undoing`.
        mesh: the steps.
        c: constants.
        y0: the state at the start, which is known.
        last: state and history at the end; without them a pass forward finds them.
    """
    stepper, steps = march.stepper, len(mesh.theta) - 1
    y, *carry = last or _ended(march, mesh, c, y0)
    memory = march.memory if isinstance(march, _Undoing) else _Memory((), False)
    memory.turn()
    memory.turn()
    for j in reversed(range(steps)):
        memory.turn()
        if j == 0:
            yield j, y0, ()
            return
        with torch.no_grad():
            theta0, theta1 = march.ends(mesh.theta, j)
            interval = Interval.of(c.t0, c.t1, theta0, theta1, y).reversed()
            span = c.t1 - c.t0
            dx = None if march.path is None else -stepper.read(march.path, c.path, theta0, theta1, span)
            before = stepper.step(march.field(c), interval, y, tuple(carry), dx)
        y, carry = before.y, before.carry
        yield j, y, carry if stepper.history else ()


def kicked_back(
    march: March,
    stepper: Kicked,
    mesh: Mesh,
    c: Const,
    y0: Tensor,
    last: tuple[Tensor, ...],
    wanted: Sequence[Tensor],
    grad: Tensor,
    folded: Callable[[int, Tensor], Sequence[Tensor | None]],
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of the state at the start and of other tensors over the steps of a `Kicked` stepper.

    From y0 + k0 / 2 and z1 a step is undone without an evaluation, and what is evaluated at z, once, serves both kicks
    there: a node takes one evaluation and one pass back through it.

    Args:
        march: the march.
        stepper: its stepper.
        mesh: the steps, one at least.
        c: constants; times carry no gradient.
        y0: the state at the start.
        last: state and carry at the end; without them a pass forward finds them.
        wanted: leaves that need a gradient.
        grad: of the state at the end.
        folded: what folds add to the gradients of the states at the start and the end of a step, given its number and
            the state at its end.
    """
    field, span, later = march.field(c), c.t1 - c.t0, None
    inputs = {id(x) for x in wanted}
    total: list[Tensor | None] = [None for _ in wanted]
    half, *_, z = last or _ended(march, mesh, c, y0)  # half: y and half of the kick at the start of the later step
    grad_half, grad_z, more = grad, torch.zeros_like(grad), None  # of that, of z at the later node, and by folds
    for j in reversed(range(len(mesh.theta))):
        earlier, t, place = None, c.t0, y0
        if j > 0:
            theta0, theta1 = march.ends(mesh.theta, j - 1)
            interval = Interval.of(c.t0, c.t1, theta0, theta1, y0)
            dx = None if march.path is None else stepper.read(march.path, c.path, theta0, theta1, span)
            earlier, t = (interval, dx), interval.t + interval.h
            place = z if later is None else 2 * half - z
        with torch.enable_grad():
            z, t = place.detach().requires_grad_(), field.clock(t, y0)
            known = stepper.known(field, t, z)
            start, end = (
                None if step is None else stepper.kick(field, *step, t, z, known) for step in (later, earlier)
            )
        refuse_read(march.term, [x for x in (start, end) if x is not None], inputs | {id(z)})
        y = half if start is None else half - 0.5 * start.detach()
        grad_y = _added(grad_half + 2 * grad_z, more)
        if end is not None:
            more, here = folded(j - 1, y)
            grad_y, half = _added(grad_y, here), y - 0.5 * end.detach()
        slope, *parts = pulled([start, end], [0.5 * grad_half + grad_z, 0.5 * grad_y], [z, *wanted])
        total = [part if so_far is None else _added(so_far, part) for so_far, part in zip(total, parts, strict=True)]
        grad_half, grad_z, later = grad_y, _added(-grad_z, slope), earlier
    return grad_half + grad_z, total


def _added(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x + y


def pulled(
    outputs: Sequence[Tensor | None], grads: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The gradients of inputs from those of outputs, which may be missing or depend on none."""
    pairs = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if x is not None and x.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    return torch.autograd.grad([x for x, _ in pairs], inputs, [grad for _, grad in pairs], allow_unused=True)


def _ended(march: March, mesh: Mesh, c: Const, y: Tensor) -> tuple[Tensor, ...]:
    """State and carry at the end of the steps."""
    carry = None
    with torch.no_grad():
        for j in range(len(mesh.theta) - 1):
            theta0, theta1 = march.ends(mesh.theta, j)
            _, y, carry, _ = march.segment(c, theta0, theta1, y, carry, torch.full_like(mesh.count, j))
    return y, *(carry or ())
