"""The continuous adjoint: the gradient of the differential equation, integrated back in time.

With outputs y(t_j) whose gradients are g_j, a(t) solves da/dt = -a df/dy backward from t1, where it starts from the
gradient of the final state and gains g_j at every t_j. Then dL/dy0 = a(t0), dL/dt_j = g_j f(t_j, y_j),
dL/dt0 = -a(t0) f(t0, y0), and dL/dp is the integral of a df/dp.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sciml.solvers import backsolve_stochastic, control
from sciml.solvers.adjoint import once
from sciml.solvers.auto import Auto
from sciml.solvers.backsolve_stochastic import REMEDY
from sciml.solvers.control import PID, Controller, Grid
from sciml.solvers.explicit import Tsit5
from sciml.solvers.failure import raise_failures
from sciml.solvers.fold import Final, Quadrature, SaveAt
from sciml.solvers.full import unmixed
from sciml.solvers.march import March
from sciml.solvers.mesh import Mesh, Pass
from sciml.solvers.newton import ImplicitStepper
from sciml.solvers.state import Const
from sciml.solvers.stepper import Stepper
from sciml.solvers.stochastic import Stochastic
from sciml.solvers.tape import Tape
from sciml.solvers.term import Term, expand, real_dtype
from sciml.solvers.undeclared import refuse_read
from sciml.typing import Args

if TYPE_CHECKING:
    from sciml.solvers.march import Segment

FAR = 300.0  # tolerances by which a state that is integrated back may miss the one that it was integrated from


@dataclass(frozen=True)
class Backsolve:
    """The gradient of the continuous solution, by integrating state and adjoint back in time.

    Its memory does not grow with the number of steps, and it is not the gradient of what the solver computed: it
    differs from that, and from the true one, by the errors of both solves. The state is integrated back from one save
    time to the one before, which fails where the equation damps: a warning says so when it does not come back to where
    it was. `Discrete` with ``store="every"`` has neither fault.

    Of a stochastic equation it goes back over the steps of the solve, on the same path, in Stratonovich's calculus (Li
    et al. 2020): under any stepper and controller, joint and per sample, of any noise; an Ito equation is converted,
    which takes second derivatives of the diffusion. Only the ends of the steps are kept, a number each. It converges to
    the gradient with the steps by order 1, and 1/2 where general noise does not commute; it has no derivative in time,
    and steps back by Heun's method, or the midpoint method if that is the solve's or asked for as ``stepper``.

    Integrals over parameters are computed beside the steps, not as part of the state, so that they do not govern the
    step sizes (as Kidger, Chen and Lyons, 2021, arXiv:2009.09457, advise).

    Args:
        stepper: the method of the backward solve; None takes that of the solve. It needs dense output.
        controller: its controller; None takes that of the solve. ``Grid(n=...)`` counts steps of the whole span. Its
            tolerances hold for the state and the adjoint alike. Of stochastic equations None only.

    References:
        R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, Neural ordinary differential equations (2018),
        arXiv:1806.07366, algorithm 1. X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, Scalable gradients for
        stochastic differential equations (2020), arXiv:2001.01328, theorem 3.1 and algorithm 1.
    """

    store: ClassVar[str] = "ends"

    stepper: Stepper | None = None
    controller: Controller | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work together."""
        if self.stepper is not None and self.controller is not None:
            control.check(self.stepper, self.controller)


class _Plan(NamedTuple):
    """What the backward solve needs beside tensors."""

    march: March  # of state and adjoint
    forward: March
    failed: Tensor  # (l)
    steps: float | None  # of a grid over the span; None for an adaptive controller
    args: int  # how many of the leaves are args
    judges: tuple[Controller, ...]  # whose tolerances say whether the state came back


class _Augmented(Term):
    """State and adjoint together, (l, 2, ...)."""

    def __init__(self, term: Term, lane: int, transformed: bool, parameters: Sequence[Tensor]):
        self.term, self.lane, self.known = term, lane, {id(p) for p in parameters}
        self.transformed = transformed  # whether a stepper differentiates it, which only `torch.func` can do twice

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The field, and -a df/dy."""
        state, adjoint = y.unbind(self.lane)
        t = t.squeeze(1) if self.lane else t  # as many axes as the state has
        if self.transformed:
            dy, pull, *_ = torch.func.vjp(lambda state: self.term.drift(t, state, args), state)
            return torch.stack([dy, -pull(adjoint)[0]], self.lane)
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            dy = self.term.drift(t.detach(), state, args)
        refuse_read(self.term, [dy], self.known | {id(x) for x in (state, *args)})
        pulled = torch.autograd.grad(dy, state, adjoint, allow_unused=True)[0] if dy.requires_grad else None
        return torch.stack([dy.detach(), torch.zeros_like(state) if pulled is None else -pulled], self.lane)


def attach(
    adjoint: Backsolve, march: March, mesh: Mesh, c: Const, y0: Tensor, done: Pass, parameters: Sequence[nn.Parameter]
) -> Pass:
    """Attach the gradient to the results ``done`` of a march without one.

    Args:
        adjoint: how to integrate back.
        march: the static part of the solve.
        mesh: which lanes failed.
        c: the differentiable constants.
        y0: initial state.
        done: the results.
        parameters: those of every module of the solve.

    Raises:
        ValueError: the solve has what has no continuous adjoint here.
    """
    refuse(march, c)
    if isinstance(march.stepper, Stochastic):
        return backsolve_stochastic.attach(adjoint, march, mesh, c, y0, done, parameters, _warn)
    plan = _plan(adjoint, march, mesh, c, y0, parameters)
    lane, lanes = int(march.lanes == "each"), c.t0.shape
    saves = [i for i, fold in enumerate(march.folds) if isinstance(fold, SaveAt)]
    thetas = [c.folds[i][0].expand(*lanes, -1) for i in saves]
    widths = [theta.shape[-1] for theta in thetas]
    theta, order = torch.cat([c.t0.new_empty(*lanes, 0), *thetas], -1).sort(dim=-1, stable=True)
    order = order.to(y0.device)
    states = [done.values[i] for i in saves]
    empty = y0.new_empty(*y0.shape[:lane], 0, *y0.shape[lane:])
    values = _picked(torch.cat([empty, *states], lane), order, lane)
    y, values = _Back.apply(plan, y0, c.t0, c.t1, theta, done.y, values, *c.args, *parameters)
    parts = iter(_picked(values, order.argsort(-1), lane).split(widths, lane) if saves else ())
    values = (next(parts) if i in saves else y for i in range(len(march.folds)))
    known = zip(march.folds, done.values, values, strict=True)
    return done._replace(y=y, values=tuple(new if fold.differentiable else old for fold, old, new in known))


def _picked(x: Tensor, order: Tensor, lane: int) -> Tensor:
    """Rows (l, t, ...) in another order (l, t)."""
    if lane == 0:
        return x.index_select(0, order)
    return x.gather(1, expand(order, x).expand(*order.shape, *x.shape[2:]))


def refuse(march: March, c: Const) -> None:
    """Refuse a solve that has no continuous adjoint.

    Raises:
        ValueError: naming what it has.
    """
    for fold in march.folds:
        if fold.differentiable and not isinstance(fold, SaveAt | Final):
            raise ValueError(f"folds: Backsolve differentiates save times only, got {type(fold).__name__}; {REMEDY}")
    path = None if isinstance(march.stepper, Stochastic) else march.path
    for what, given in (("events", march.events), ("jumps", march.jumps), ("path", path)):
        if given:
            raise ValueError(f"{what}: Backsolve knows smooth solutions of time, and noise, only; {REMEDY}")
    jumps = getattr(march.controller, "jump_ts", None)
    if isinstance(jumps, Tensor) and jumps.requires_grad:
        raise ValueError(f"jump_ts: Backsolve has no gradient for them; {REMEDY}")
    if march.term.mass(c.args) is not None:
        raise ValueError(f"term: Backsolve takes no mass; {REMEDY}")


def _plan(adjoint: Backsolve, march: March, mesh: Mesh, c: Const, y0: Tensor, parameters: Sequence[Tensor]) -> _Plan:
    """The backward march; refused where there is none."""
    stepper, controller = adjoint.stepper or march.stepper, adjoint.controller or march.controller
    if isinstance(stepper, Auto):  # a backward pass cannot start again
        stepper = Tsit5()
    name = type(stepper).__name__
    if stepper.needs is not Term:
        raise ValueError(f"Backsolve: {name} cannot integrate the adjoint; expected stepper=Tsit5(), for example")
    if not stepper.dense:
        raise ValueError(f"Backsolve: {name} has no dense output; expected stepper=Tsit5(), for example")
    control.check(stepper, controller)
    steps = None
    if isinstance(controller, Grid):
        if controller.ts is not None:
            raise ValueError("Backsolve: expected controller=PID(...), Grid(n=...) or Grid(dt=...), got a grid of ts")
        steps = float(controller.thetas(c.t0, c.t1).shape[-1])
    judges = tuple(each for each in (march.controller, controller) if each.adaptive) or (PID(),)
    lane = int(march.lanes == "each")
    term = _Augmented(march.term, lane, isinstance(stepper, ImplicitStepper), parameters)
    controller = _augmented(controller, lane, y0.ndim)
    back = March(term, stepper.within(controller), controller, march.lanes, march.max_steps)
    return _Plan(back, march, mesh.failed, steps, len(c.args), judges)


def _augmented(controller: Controller, lane: int, ndim: int) -> Controller:
    """The same controller over states (l, 2, ...): tolerances of one serve both, and the larger norm counts."""
    if not isinstance(controller, PID):
        return controller
    wide = lambda tol: tol.unsqueeze(lane) if isinstance(tol, Tensor) and tol.ndim == ndim and ndim else tol  # noqa: E731
    norm = controller.norm
    both = None if norm is None else lambda x: torch.maximum(*map(norm, x.unbind(lane)))
    return replace(controller, rtol=wide(controller.rtol), atol=wide(controller.atol), norm=both)


class _Integrals(Tape):
    """Of the steps of a backward solve, the integral of a df/dp for every p that wants it."""

    def __init__(self, plan: _Plan, wanted: Sequence[Tensor]):
        super().__init__((), keep=False)
        self.reads = True  # the dense output of every step
        self.plan, self.wanted = plan, wanted
        self.sums: list[Tensor | None] = [None] * len(wanted)
        points, weights = np.polynomial.legendre.leggauss(Quadrature.nodes)  # exact to the order of dense output
        self.s, self.weights = ((points + 1) / 2).tolist(), (weights / 2).tolist()

    def add(self, segment: "Segment", taken: Tensor | None = None) -> None:
        """Add one step, of the lanes that took it."""
        if not self.wanted:
            return
        march, (t, h, _), lanes = segment.march, segment.interval, segment.const.t0.shape
        lane, y0 = int(march.lanes == "each"), segment.y0
        s = torch.tensor(self.s, dtype=real_dtype(y0), device=y0.device).expand(*lanes, -1)
        size = torch.as_tensor(h, dtype=torch.float64)
        size = size if taken is None else torch.where(taken, size, 0)
        forward = self.plan.forward.field(segment.const)
        for z, place, weight in zip(segment.dense(s).unbind(lane), self.s, self.weights, strict=True):
            y, a = z.unbind(lane)
            scale = expand((-weight * size).to(y0.device, real_dtype(y0)), y)
            with torch.enable_grad():
                dy = forward(forward.clock(t + place * h, y), y)
            if not dy.requires_grad:
                return
            if isinstance(march.stepper, ImplicitStepper):  # else the drift has looked
                refuse_read(self.plan.forward.term, [dy], {id(x) for x in self.wanted})
            parts = torch.autograd.grad(dy, self.wanted, scale * a, allow_unused=True)
            self.sums = [b if a is None else a if b is None else a + b for a, b in zip(self.sums, parts, strict=True)]


class _Back(torch.autograd.Function):
    """Integrate back over the intervals between save times, the last one first."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        y0: Tensor,
        t0: Tensor,
        t1: Tensor,
        theta: Tensor,
        y1: Tensor,
        values: Tensor,
        *rest: Tensor,
    ) -> Any:
        ctx.plan = plan
        ctx.save_for_backward(y0, t0, t1, theta, y1, values, *rest)
        ctx.set_materialize_grads(True)
        return y1.clone(), values.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        with torch.no_grad(), unmixed(ctx.saved_tensors[0]):
            grads = _Back.integrate(ctx, *grad_outputs)
        return once(grads, grad_outputs, ctx.saved_tensors)

    @staticmethod
    def integrate(ctx: Any, grad_y: Tensor, grad_values: Tensor) -> tuple[Any, ...]:
        """The gradients of all inputs of `forward`."""
        plan, (y0, t0, t1, theta, y1, values, *rest) = ctx.plan, ctx.saved_tensors
        lane, failed = int(plan.march.lanes == "each"), plan.failed
        needs = ctx.needs_input_grad[7:]
        args = tuple(x.detach().requires_grad_(need) for x, need in zip(rest[: plan.args], needs, strict=False))
        leaves = [*args, *rest[plan.args :]]
        integrals = _Integrals(plan, [x for x, need in zip(leaves, needs, strict=True) if need])
        field = plan.forward.field(Const(t0, t1, t1, args, stepper=plan.forward.stepper.constants(t0, y0)))
        rests = lambda x, other: torch.where(expand(failed.to(x.device), x), other, x) if lane else x  # noqa: E731

        def rate(t: Tensor, y: Tensor, grad: Tensor) -> Tensor:
            product = (grad.conj() * field(field.clock(t, y), y)).real
            return product.sum(tuple(range(lane, y.ndim))).to(t)

        span = t1 - t0
        nodes = [(t0, y0, torch.zeros_like(y0))]
        for place, y, grad in zip(theta.unbind(-1), values.unbind(lane), grad_values.unbind(lane), strict=True):
            nodes.append((rests(t0 + span * place, t0), rests(y, y0), rests(grad, torch.zeros_like(grad))))
        nodes.append((rests(t1, t0), rests(y1, y0), rests(grad_y, torch.zeros_like(grad_y))))
        rates = [rate(*node) for node in nodes[1:]]  # of the outputs, per unit of their times
        a, worst = torch.zeros_like(y0), torch.zeros_like(t0)
        for (start, before, _), (end, y, grad) in zip(nodes[-2::-1], nodes[:0:-1], strict=True):
            a = a + grad
            if not torch.equal(start, end):
                back, a = _interval(plan, start, end, span, y, a, args, integrals)
                missed = _missed(plan, back, before)
                worst = torch.where(missed <= worst, worst, missed)
        _warn(worst)
        total = sum((r * place for r, place in zip(rates, [*theta.unbind(-1), 1.0], strict=True)), torch.zeros_like(t0))
        first = sum(rates, torch.zeros_like(t0)) - total - rate(t0, y0, a)
        places = torch.stack([span * r for r in rates[:-1]], -1) if theta.shape[-1] else torch.zeros_like(theta)
        sums = iter(integrals.sums)
        return None, a, first, total, places, None, None, *(next(sums) if need else None for need in needs)


def _interval(
    plan: _Plan, start: Tensor, end: Tensor, span: Tensor, y: Tensor, a: Tensor, args: Args, integrals: _Integrals
) -> tuple[Tensor, Tensor]:
    """State and adjoint at the start of an interval, from those at its end."""
    march, lane = plan.march, int(plan.march.lanes == "each")
    if plan.steps is not None and isinstance(march.controller, Grid):
        share = ((end - start) / torch.where(span == 0, 1, span)).abs().max()
        n = max(1, ceil(plan.steps * float(share) - 1e-6))
        march = replace(march, controller=replace(march.controller, n=n, dt=None))
    z, controller = torch.stack([y, a], lane), march.controller
    constants = march.stepper.constants(end, z)
    c = Const(end, start, controller.thetas(end, start), args, stepper=constants, edges=controller.edges(end, start))
    with np.errstate(all="ignore"):
        last = march.run(march.start(c, z, march.host), c, integrals, lambda s: None)
    raise_failures(march, c, last)
    back, a = last.y.unbind(lane)
    return back, a


def _missed(plan: _Plan, back: Tensor, before: Tensor) -> Tensor:
    """How many tolerances (l) a state that was integrated back is off, of the looser solve or of `PID()` for grids."""
    found = [judge.scaled(back - before, before, before, plan.forward.lanes) for judge in plan.judges]
    return torch.stack(found).amin(0).to(torch.float64)


def _warn(worst: Tensor) -> None:
    """Say where the state did not come back."""
    far = ~(worst <= FAR)
    if bool(far.any()):
        lanes = "" if worst.ndim == 0 else f" in {int(far.sum())} of {len(worst)} samples"
        warnings.warn(
            f"Backsolve: integrated back in time, the state misses the one it came from by {float(worst.max()):.3g} "
            f"tolerances{lanes}, so that the gradient cannot be trusted; "
            'use Discrete("every"), more save times or smaller tolerances',
            RuntimeWarning,
            stacklevel=2,
        )
