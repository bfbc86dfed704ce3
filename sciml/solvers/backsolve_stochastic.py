"""The continuous adjoint of stochastic equations, integrated back in time over the steps and the path of the solve.

Of dy = f dt + sum_k g_k o dW^k in Stratonovich's calculus, whose chain rule is the ordinary one, the adjoint a solves
da = -(a df/dy) dt - sum_k (a dg_k/dy) o dW^k backward from the gradient of the final state, and gains those of the
states at save times. Then dL/dy0 = a(t0), and dL/dp is the integral of (a df/dp) dt + sum_k (a dg_k/dp) o dW^k.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sciml.solvers.adjoint import once
from sciml.solvers.control import PID
from sciml.solvers.conversion import Converted
from sciml.solvers.fold import SaveAt
from sciml.solvers.full import unmixed
from sciml.solvers.march import March
from sciml.solvers.mesh import Mesh, Pass
from sciml.solvers.state import Const
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic import StratonovichHeun
from sciml.solvers.stratonovich import StratonovichMidpoint
from sciml.solvers.term import expand
from sciml.solvers.undeclared import refuse_read

if TYPE_CHECKING:
    from sciml.solvers.backsolve import Backsolve

REMEDY = 'use Discrete("every"), for example'
RETURNS = PID(rtol=1e-3, atol=1e-3)  # whose errors say how far a state is off that does not come back


class _Plan(NamedTuple):
    """What the backward solve needs beside tensors."""

    march: March
    mesh: Mesh
    const: Const
    scheme: Callable[..., tuple[Tensor, Tensor, list[Tensor]]]
    places: tuple[Tensor, ...]  # of each fold that saves, the nodes of the mesh (l, t)
    warn: Callable[[Tensor], None]


def attach(
    adjoint: "Backsolve",
    march: March,
    mesh: Mesh,
    c: Const,
    y0: Tensor,
    done: Pass,
    parameters: Sequence[nn.Parameter],
    warn: Callable[[Tensor], None],
) -> Pass:
    """Attach the gradient to the results ``done`` of a march without one; arguments as in `backsolve.attach`.

    Args:
        adjoint: how to integrate back.
        march: the static part of the solve.
        mesh: its steps.
        c: the differentiable constants.
        y0: initial state.
        done: the results.
        parameters: those of every module of the solve.
        warn: is told how many tolerances (l) the state misses the one that it was integrated from.

    Raises:
        ValueError: the solve has what has no continuous adjoint here.
    """
    scheme = _scheme(adjoint, march, c)
    saves = [i for i, fold in enumerate(march.folds) if isinstance(fold, SaveAt)]
    places = tuple(_places(mesh, c.folds[i][0]) for i in saves)
    plan = _Plan(march, mesh, c, scheme, places, warn)
    states = [done.values[i] for i in saves]
    y, *values = _Back.apply(plan, y0, done.y, *states, *c.args, *parameters)
    saved = dict(zip(saves, values, strict=True))
    known = enumerate(zip(march.folds, done.values, strict=True))
    return done._replace(y=y, values=tuple(saved.get(i, y) if fold.differentiable else v for i, (fold, v) in known))


def _scheme(adjoint: "Backsolve", march: March, c: Const) -> Callable[..., Any]:
    """The scheme of a backward step; what is not one is refused."""
    if any(times.requires_grad for times in (c.t0, c.t1, c.stops, *(x for fold in c.folds for x in fold))):
        raise ValueError(f"t0, t1, save_at: Backsolve of a stochastic equation has no derivative in time; {REMEDY}")
    if any(x.requires_grad for x in c.path):
        raise ValueError(f"path: Backsolve of a stochastic equation takes noise, which needs no gradient; {REMEDY}")
    if c.edges:
        raise ValueError(f"jump_ts: Backsolve of a stochastic equation cannot go back over them; {REMEDY}")
    if adjoint.controller is not None:
        raise ValueError(
            "Backsolve: of a stochastic equation it goes back over the steps of the solve, expected controller=None, "
            f"got {type(adjoint.controller).__name__}"
        )
    if adjoint.stepper is None:
        return _midpoint if isinstance(march.stepper, StratonovichMidpoint) else _heun
    for kind, scheme in ((StratonovichHeun, _heun), (StratonovichMidpoint, _midpoint)):
        if type(adjoint.stepper) is kind:
            return scheme
    name = type(adjoint.stepper).__name__
    raise ValueError(f"Backsolve: {name} cannot go back; expected StratonovichHeun() or StratonovichMidpoint()")


def _places(mesh: Mesh, theta: Tensor) -> Tensor:
    """The nodes of a mesh at which save times (l, t) are."""
    nodes, theta = mesh.theta.movedim(0, -1).contiguous(), theta.expand(*mesh.count.shape, -1).contiguous()
    after = torch.searchsorted(nodes, theta).clamp(1, nodes.shape[-1] - 1)
    near = theta - nodes.gather(-1, after - 1) < nodes.gather(-1, after) - theta
    return after - near.long()


class _Pull:
    """Increments of the state, and the products of an adjoint with their derivatives."""

    def __init__(self, field: Field, wanted: Sequence[Tensor]):
        self.field, self.wanted, self.known = field, list(wanted), {id(x) for x in wanted}

    def __call__(
        self, t: Any, scale: Any, y: Tensor, dw: Tensor, a: Tensor, full: bool = True
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The increment over a step, and its products by state and, if ``full``, by all that wants a gradient."""
        field, wanted = self.field, self.wanted if full else []
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            t = field.clock(t, y)
            rise = scale * field.fitting(field(t, y), y) + field.diffused(t, y, dw)
        inputs = [y, *wanted]
        refuse_read(field.term, [rise], self.known | {id(y)})
        found = torch.autograd.grad(rise, inputs, a, allow_unused=True) if rise.requires_grad else [None] * len(inputs)
        first, *rest = (torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))
        return rise.detach(), first, rest


def _heun(pull: _Pull, interval: Interval, y: Tensor, a: Tensor, dw: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """State, adjoint, and the gain of the integrals, by Heun's method."""
    rise, by, parts = pull(interval.t, interval.scale, y, dw, a)
    again, late, more = pull(interval.t + interval.h, interval.scale, y + rise, dw, a - by)
    return y + 0.5 * (rise + again), a - 0.5 * (by + late), [-0.5 * (p + q) for p, q in zip(parts, more, strict=True)]


def _midpoint(pull: _Pull, interval: Interval, y: Tensor, a: Tensor, dw: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The same by the midpoint method."""
    rise, by, _ = pull(interval.t, 0.5 * interval.scale, y, 0.5 * dw, a, full=False)
    rise, by, parts = pull(interval.t + 0.5 * interval.h, interval.scale, y + rise, dw, a - by)
    return y + rise, a - by, [-p for p in parts]


class _Back(torch.autograd.Function):
    """Step back from node to node; at save times the state is that of the solve again."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, y0: Tensor, y1: Tensor, *rest: Tensor) -> Any:
        ctx.plan = plan
        ctx.save_for_backward(y0, y1, *rest)
        ctx.set_materialize_grads(True)
        return y1.clone(), *(x.clone() for x in rest[: len(plan.places)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        with torch.no_grad(), unmixed(ctx.saved_tensors[0]):
            grads = _Back.integrate(ctx, *grad_outputs)
        return once(grads, grad_outputs, ctx.saved_tensors)

    @staticmethod
    def integrate(ctx: Any, grad_y: Tensor, *grad_values: Tensor) -> tuple[Any, ...]:
        """The gradients of all inputs of `forward`."""
        plan, (y0, y, *rest) = ctx.plan, ctx.saved_tensors
        march, mesh, c, count = plan.march, plan.mesh, plan.const, len(plan.places)
        values, rest, needs = rest[:count], rest[count:], ctx.needs_input_grad[3 + count :]
        args = tuple(x.detach().requires_grad_(need) for x, need in zip(rest[: len(c.args)], needs, strict=False))
        leaves = [*args, *rest[len(args) :]]
        wanted = [x for x, need in zip(leaves, needs, strict=True) if need]
        stops = _Stops(plan, y0, values, grad_values)
        if mesh.failed.ndim:
            off = expand(mesh.failed.to(y.device), y)
            y, grad_y = torch.where(off, y0, y), torch.where(off, 0, grad_y)
        a, sums, worst = grad_y, [torch.zeros_like(x) for x in wanted], torch.zeros_like(c.t0)
        pull: _Pull | None = None
        for j in reversed(range(len(mesh.theta) - 1)):
            y, a, worst = stops.at(j + 1, y, a, worst)
            theta0, theta1 = march.ends(mesh.theta, j)
            dw = march.path.increment(c.path, theta0, theta1, c.t1 - c.t0)  # pyrefly: ignore[missing-attribute]
            dw = -(dw if isinstance(dw, Tensor) else dw.w)
            if pull is None:
                term = march.term
                if term.calculus != "stratonovich":
                    term = Converted(term, "stratonovich", dw.shape[-1])
                pull = _Pull(Field(term, args, march.lanes, c.stepper), wanted)
            interval = Interval.of(c.t0, c.t1, theta0, theta1, y).reversed()
            y, a, parts = plan.scheme(pull, interval, y, a, dw)
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
        worst = torch.maximum(worst, _missed(march, y, y0))
        _, a, _ = stops.at(0, y, a, worst)
        plan.warn(worst)
        parts = iter(sums)
        return None, a, None, *(None for _ in values), *(next(parts) if need else None for need in needs)


class _Stops:
    """What happens at save times."""

    def __init__(self, plan: _Plan, y0: Tensor, values: Sequence[Tensor], grads: Sequence[Tensor]):
        self.plan, self.lane = plan, int(plan.march.lanes == "each")
        failed = plan.mesh.failed
        if failed.ndim:  # they rest at their start
            grads = [torch.where(expand(failed.to(x.device), x), 0, x) for x in grads]
            values = [torch.where(expand(failed.to(x.device), x), y0[:, None], x) for x in values]
        self.saves = list(zip(plan.places, values, grads, strict=True))
        self.there = {int(j) for place in plan.places for j in place.reshape(-1).unique()}

    def at(self, j: int, y: Tensor, a: Tensor, worst: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State and adjoint at node j: what was saved there, and with the gradients of what was saved."""
        if j not in self.there:
            return y, a, worst
        known = y
        for place, value, grad in self.saves:
            hit = (place == j).to(y.device)  # (l, t)
            if self.lane:
                chosen = expand(hit, value)
                any_hit, first = expand(hit.any(1), y), hit.long().argmax(1)
                known = torch.where(any_hit, value[torch.arange(len(y), device=y.device), first], known)
                a = a + torch.where(chosen, grad, 0).sum(1)
            elif bool(hit.any()):
                known, a = value[int(hit.long().argmax())], a + grad[hit].sum(0)
        return known, a, torch.maximum(worst, _missed(self.plan.march, y, known))


def _missed(march: March, back: Tensor, before: Tensor) -> Tensor:
    """How many tolerances (l) a state that was integrated back is off; infinite where it is not finite."""
    found = RETURNS.scaled(back - before, before, before, march.lanes).to(torch.float64)
    return found.nan_to_num(nan=torch.inf)
