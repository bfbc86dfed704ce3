"""The entry: `solve` integrates a term, `Solver` says how, `Solution` is what comes back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml.errors import Status
from sciml.solvers import arguments, control, event
from sciml.solvers.adjoint import Discrete, refuse_store, replay, still
from sciml.solvers.apart import apart
from sciml.solvers.arithmetic import TENSORS, Arithmetic
from sciml.solvers.auto import Auto, Stiff
from sciml.solvers.backsolve import Backsolve, attach
from sciml.solvers.consistent import check_consistent
from sciml.solvers.control import PID, Controller
from sciml.solvers.event import Crossings, Event, outcome
from sciml.solvers.expect import expect
from sciml.solvers.explicit import Tsit5
from sciml.solvers.failure import eager, raise_failures, refuse_transforms, tangent
from sciml.solvers.fold import Fold, SaveAt
from sciml.solvers.frame import Frame
from sciml.solvers.full import full
from sciml.solvers.in_place import Watch
from sciml.solvers.jump import Jump, pinned
from sciml.solvers.layout import Layout, PackedJump, PackedTerm, map_state
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.march import March
from sciml.solvers.mesh import Mesh, Pass, close, freeze, over, resting, select
from sciml.solvers.path import Path
from sciml.solvers.progress import progress_bar
from sciml.solvers.recall import recalled
from sciml.solvers.state import Const, State
from sciml.solvers.stats import SolveStats, stats_of
from sciml.solvers.stepper import Stepper
from sciml.solvers.stochastic import check_noise
from sciml.solvers.tape import Tape
from sciml.solvers.term import as_term, declared_parameters, expand, refuse_changing
from sciml.solvers.undeclared import refuse_undeclared, undeclared
from sciml.typing import Lanes, Time
from sciml.typing import State as Tree

PATIENCE = 64  # steps of a grid between looks at whether the state is finite


@dataclass(frozen=True)
class Solver:
    """How to integrate.

    Args:
        stepper: the method; None takes `Tsit5`.
        controller: chooses the steps; None takes `PID` (rtol 1e-4, atol 1e-6), a `Grid` must be given for a stepper
            without error estimate.
        adjoint: how gradients are computed; None takes ``Discrete("graph")``, plain backpropagation;
            `Backsolve` integrates the adjoint equation.
        max_steps: how many steps may be tried, rejected ones included.
        lanes: ``"joint"``: the state is one system with one sequence of steps; ``"each"``: its first axis is a batch
            and every sample has its own.
        compile: ``"loop"``: the whole march as one compiled loop; ``"chunks"``: a few compiled steps at a time, on a
            GPU as CUDA graphs; None: eagerly. The first call takes seconds to compile. A field that cannot be traced
            falls back, with a warning; forward-mode differentiation and transforms of torch.func go eagerly. The
            adjoint of compiled marches is ``Discrete("all")`` by default, with a compiled backward loop. Within a
            function that `torch.compile` compiles a solve is a break of the graph, and compiled by this alone.
        fast_math: in compiled marches in float32, cheaper kernels that are a few units in the last place less exact.
        compact: in marches of lanes "each", leave samples that have arrived out of the batch, whenever half of them
            have: the numbers of those ``args`` that have a row for each sample, () for none; None leaves all in, and so
            do chunks on a GPU. The term then sees some of the samples and their rows of these args. It may keep no
            tensor of the whole batch, and a sample must not depend on others.
    """

    stepper: Stepper | None = None
    controller: Controller | None = None
    adjoint: Discrete | Backsolve | None = None
    max_steps: int = 10_000
    lanes: Lanes = "joint"
    compile: Literal["loop", "chunks"] | None = None
    fast_math: bool = False
    compact: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work together."""
        for name, kind in (("stepper", Stepper), ("controller", Controller), ("adjoint", Discrete | Backsolve)):
            if getattr(self, name) is not None:
                expect(name, getattr(self, name), kind, f"a {getattr(kind, '__name__', kind)} or None")
        expect("max_steps", self.max_steps, Integral, "a whole number")
        if self.lanes not in ("joint", "each"):
            raise ValueError(f"lanes: expected 'joint' or 'each', got {self.lanes!r}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {self.max_steps}")
        if self.compile not in (None, "loop", "chunks"):
            raise ValueError(f"compile: expected None, 'loop' or 'chunks', got {self.compile!r}")
        if self.fast_math and self.compile is None:
            raise ValueError("fast_math: expected compile='loop' or 'chunks' with it, got None")
        if self.compact is not None and self.lanes != "each":
            raise ValueError(f"compact: expected lanes='each' with it, got {self.lanes!r}")
        control.check(self.stepper or Tsit5(), self.controller or PID())
        refuse_store(self.gradient.store, self.stepper or Tsit5())

    @property
    def gradient(self) -> Discrete | Backsolve:
        """The adjoint, or the default one."""
        replays = self.compile and forward_ad._current_level < 0 and not (self.stepper or Tsit5()).history
        return self.adjoint or Discrete("all" if replays else "graph")


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` returns.

    Attributes:
        ys: states at the save times, (t, *y0) or with lanes "each" (b, t, *y0[1:]); without ``save_at`` the final
            state in y0's shape. Those of save times after a terminating event hold the state at the event.
        ts: the save times, without ``save_at`` the final time.
        status: `sciml.errors.Status` of every lane (l).
        mesh: the steps taken; ``solve(..., mesh=solution.mesh)`` takes them again.
        folds: result of every fold by name.
        events: `Crossings` of every event by name, or by number where events have none.
    """

    ys: Any
    ts: Tensor
    status: Tensor
    mesh: Mesh = field(repr=False)
    folds: dict[str, Any]
    events: dict[Any, Crossings]
    _y: Any = field(repr=False)  # the final state
    _t: Tensor = field(repr=False)  # the time that it belongs to (l)
    _end: State = field(repr=False)  # the march's last state
    _task: "_Task" = field(repr=False)
    _frozen: bool = field(repr=False)  # whether its mesh was given
    _again: Callable[..., "Solution"] = field(repr=False)

    @cached_property
    def stats(self) -> SolveStats:
        """Evaluations and steps per lane."""
        return stats_of(self._task.march, self._task.const, self._end, self.mesh, self._frozen)

    def __call__(self, t: Time) -> Any:
        """The state at any times t (t) or (b, t) of the span, in any order, by dense output; a number gives one state.

        Nothing but the mesh is stored: its steps are taken again, without the rejected ones, from y0 and with weights
        as they are now, so ask before an optimiser changes them. Gradients flow as in `solve`.
        """
        times = torch.as_tensor(t, dtype=torch.float64)
        saved = self._again(mesh=self.mesh, save_at=times.reshape(-1) if times.ndim == 0 else times).ys
        if times.ndim:
            return saved
        return map_state(saved, lambda y: y.squeeze(self.status.ndim))


@apart
@full
def solve(
    term: Any,
    y0: Tree | None,
    t0: Time | None,
    t1: Time,
    solver: Solver | str | None = None,
    *,
    args: tuple[Tensor, ...] = (),
    path: Path | None = None,
    save_at: Tensor | Sequence[float] | None = None,
    folds: Mapping[str, Fold] | None = None,
    jumps: Sequence[Jump] = (),
    events: Any = (),
    mesh: Mesh | None = None,
    resume: Solution | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Solution:
    """Integrate dy/dt = f(t, y) from t0 to t1, forward or backward in time; within `torch.autocast` in full precision.

    Args:
        term: a `Term`, or any callable ``f(t, y)`` or ``f(t, y, args)``, `torch.nn.Module` or not; the third is the
            tuple ``args``, also of ``f(t, y, *args)``. It must be the same function at every evaluation: batch norms
            and dropout in train mode are refused. It returns a new tensor and leaves y as it is: eager marches refuse
            one that writes to y0 or to the slope there; stochastic and compiled ones may not notice.
        y0: initial state, real or complex: a tensor of any shape, or a tuple, list or dict of tensors.
        t0: start; a number or 0-d tensor, or (b) with lanes "each".
        t1: end; likewise. Differentiable, as t0, y0, ``args``, save times and the parameters of ``term`` are.
        solver: how to integrate; the name of a stepper in lower case, as "dopri5" or "auto", takes it with the defaults
            of `Solver`; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        args: a tuple of tensors handed to the term; refused where neither it nor anything else could read them.
        path: what drives the equation; None is time itself.
        save_at: times to save at, (t) or (b, t), in any order; None saves the final state.
        folds: what else to read of the steps, by name.
        jumps: callables (t, y, key, args) -> (y, changed) that act one after the other on the state after every
            accepted step; key (l) is the step's number, ``changed`` (l) says where the state is another one.
        events: an `Event`, or several in a sequence or by name. A plain callable g(t, y) or g(t, y, args) is an event
            that terminates. Save times that lie after the end hold the state there.
        mesh: steps to take instead of choosing them; resets happen where they happened then.
        resume: a solution to go on from, with its carry and step size; y0 and t0 are then None.
        progress: show a progress bar.
        throw: raise `SolveError` where a lane fails; otherwise failed lanes hold their last good state.

    Returns:
        The solution. A failure is a `Status` per lane.

    Raises:
        SolveError: a lane failed and ``throw`` is set.
        ValueError: an argument does not fit.
        TypeError: an argument is of a wrong type.
        RuntimeError: within a transform of torch.func, of what does not go through it.

    Example:
        >>> import torch
        >>> from sciml import solve
        >>> solution = solve(lambda t, y: -y, torch.ones(2), 0.0, 1.0, save_at=[0.5, 1.0])
        >>> solution.ys.shape
        torch.Size([2, 2])
    """
    for name, given, kind in (("path", path, Path), ("mesh", mesh, Mesh), ("resume", resume, Solution)):
        if given is not None:
            expect(name, given, kind, f"a {kind.__name__} or None")
    if resume is not None:
        if y0 is not None or t0 is not None:
            raise ValueError("y0, t0: expected None with resume, since they are the end of the resumed solution")
        if path is not None and path.repeats(resume._task.march.path):
            raise ValueError("path: expected one of another seed than that of the resumed solve, which has used it up")
        y0, t0 = resume._y, resume._t
    if y0 is None or t0 is None:
        raise ValueError("y0, t0: expected a state and a time; only resume= goes without them")
    named = arguments.named_events(events)
    solver = eager(_solver(solver), named)
    make = partial(_Task.of, term, y0, t0, t1, solver, args, path, save_at, folds, jumps, named, mesh)
    again = partial(solve, term, y0, t0, t1, args=args, path=path, jumps=jumps, events=events, throw=throw)
    over = partial(again, save_at=save_at, folds=folds, mesh=mesh, progress=progress)
    try:
        task = recalled(make, term, y0, t0, t1, solver, save_at, args, path, folds, jumps, events, mesh, resume)
        taken, results, end = task.run(mesh, resume, progress)
    except Stiff as found:
        return over(replace(solver, stepper=found.stepper))
    except RuntimeError as found:
        refuse_transforms(found)
        raise
    if isinstance(task.march.stepper, Auto) and mesh is None:
        found = task.march.stepper.rescued(end, lambda stepper: over(replace(solver, stepper=stepper)))
        if found is not None:
            return found
    if throw:
        raise_failures(task.march, task.const, end)
    return task.solution(taken, results, end, partial(again, solver=solver), mesh is not None)


@dataclass(frozen=True, eq=False)
class _Task:
    """The arguments of a solve in the form that the march takes."""

    march: March
    const: Const
    y0: Tensor
    names: tuple[str, ...]
    awaited: tuple[Any, ...]  # the names of the events
    layout: Layout | None
    solver: Solver
    empty: bool  # whether all times are equal

    @classmethod
    def of(
        cls,
        term: Any,
        y0: Tree,
        t0: Time,
        t1: Time,
        solver: Solver,
        args: tuple[Tensor, ...],
        path: Path | None,
        save_at: Any,
        folds: Mapping[str, Fold] | None,
        jumps: Sequence[Any],
        events: dict[Any, Event],
        mesh: Mesh | None,
    ) -> "_Task":
        """Check the arguments and pack them."""
        controller = solver.controller or PID()
        stepper = (solver.stepper or Tsit5()).within(controller)
        bound = as_term(term)
        refuse_changing(bound)
        check_noise(bound, stepper, path, y0)
        arguments.check_args(args, bound, events.values(), folds or jumps)
        layout = None
        if not isinstance(y0, Tensor):
            layout = Layout.of(y0, solver.lanes)
            bound, y0 = PackedTerm(bound, layout), layout.pack(y0)
        if not isinstance(bound, stepper.needs):
            name, needs = type(stepper).__name__, stepper.needs.__name__
            raise ValueError(f"term: {name} expects a {needs} term, got {type(term).__name__}")
        if bound.mass(args) is not None and not stepper.masses:
            raise ValueError(f"term: {type(stepper).__name__} takes no mass; expected Rodas5P or Kvaerno5, for example")
        arguments.check_state(y0, solver.lanes)
        controller.fits(y0)
        nodes = None if mesh is None else mesh.theta.movedim(0, -1)
        frame = Frame.of(solver, stepper, controller, t0, t1, y0, save_at, nodes)
        if path is not None:
            path = path.within(stepper, controller, frame.t0, frame.t1, y0, solver.lanes)
        if path is not None and not frame.empty:
            path.admit(torch.cat([torch.zeros_like(frame.grid[..., :1]), frame.grid], -1).movedim(-1, 0))
        named = arguments.check_folds(folds)
        for name, fold in named.items():
            if isinstance(fold, SaveAt):
                named[name] = SaveAt(frame.save_times(fold.ts, solver.lanes, stepper))
            elif reason := fold.refusal(stepper, controller):
                raise ValueError(f"folds[{name!r}]: {reason}")
        used = tuple(fold if layout is None else fold.packed(layout) for fold in named.values())
        prepared = tuple(fold.prepare(frame.t0, frame.t1, y0) for fold in used)
        if frame.saves is not None:
            named[""], used, prepared = frame.saves, (*used, frame.saves), (*prepared, frame.saved)
        const = Const(
            frame.t0,
            frame.t1,
            frame.grid,
            args,
            path.tensors() if path else (),
            prepared,
            frame.stepper,
            frame.edges,
        )
        if events and (stepper.uniform if stepper.dense else path is None):
            why = "takes steps of one size only" if stepper.dense else "has no dense output to find roots on"
            raise ValueError(f"events: {type(stepper).__name__} {why}")
        jumps = arguments.check_jumps(jumps)
        if solver.compact is not None:
            arguments.check_compact(solver.compact, args, y0, controller, events, jumps, path, used)
        if layout is not None:
            jumps = tuple(PackedJump(each, layout) for each in jumps)
        awaited = tuple(each if layout is None else each.packed(layout) for each in events.values())
        march = March(
            bound, stepper, controller, solver.lanes, solver.max_steps, path, jumps, awaited, used, solver.compact
        )
        return cls(march, const, y0, tuple(named), tuple(events), layout, solver, frame.empty)

    def run(self, mesh: Mesh | None, resume: Solution | None, progress: bool) -> tuple[Mesh, Pass, State]:
        """March, and differentiate where gradients are asked for."""
        if mesh is None and resume is None and not self.empty and self.march.term.mass(self.const.args) is not None:
            check_consistent(self.march, self.const, self.y0)
        mesh, done, end = self._run(mesh, resume, progress)
        if torch.is_grad_enabled() and not transformed() and (len(mesh.theta) == 1 or bool(mesh.failed.all())):
            done = still(self.march, self.const, self.y0, done)
        return mesh, done, end

    def _run(self, mesh: Mesh | None, resume: Solution | None, progress: bool) -> tuple[Mesh, Pass, State]:
        march, c, y0, adjoint = self.march, self.const, self.y0, self.solver.gradient
        if y0.numel() == 0 or self.empty:
            return self._nothing()
        gradients, graph, parameters = torch.is_grad_enabled(), adjoint.store == "graph", []
        moving = [times for times in (c.stops, *c.edges) if (gradients and times.requires_grad) or tangent(times)]
        if gradients and (not graph or march.lanes == "each"):  # a second pass, only where it is needed
            parameters = declared_parameters(march.term, march.path, *march.folds, *march.jumps, *march.events)
            if not graph:
                refuse_undeclared(march, c, y0, parameters)
            gradients = transformed() or any(x.requires_grad for x in (y0, *c.leaves(), *parameters))
        gradients = gradients or bool(moving)
        recorded = gradients and graph and march.lanes == "joint" and not moving and not self.solver.compile
        keep = gradients and adjoint.store == "all"
        with torch.set_grad_enabled(recorded):
            mesh, done, end = self._march(resume, keep, progress) if mesh is None else self._frozen(mesh, keep)
        if torch.is_grad_enabled() and graph and not recorded and not gradients:
            gradients = any(undeclared(march, c, t, y, parameters) is not None for t, y in ((c.t0, y0), (c.t1, done.y)))
        if recorded or not gradients or bool(mesh.failed.all()):
            return mesh, done, end
        calm, c, y0 = resting(mesh, c, y0)
        for times in moving:
            theta = pinned(calm.theta, times)
            calm, mesh = calm._replace(theta=theta), mesh._replace(theta=torch.where(mesh.failed, mesh.theta, theta))
        if graph:
            return mesh, select(march, mesh.failed, done, over(march, calm, c, y0)), end
        if isinstance(adjoint, Backsolve):
            return mesh, attach(adjoint, march, calm, c, y0, done, parameters), end
        if done.states is not None and calm is not mesh:
            done = done._replace(states=torch.where(expand(mesh.failed.to(y0.device), y0), y0.detach(), done.states))
        known = march.lanes == "joint" and march.stepper.history and bool(end.carry)
        last = (end.y, *end.carry) if known else ()
        return mesh, replay(adjoint, march, calm, c, y0, done, parameters, self._pull(), last), end

    def _march(self, resume: Solution | None, keep: bool, progress: bool) -> tuple[Mesh, Pass, State]:
        march, c = self.march, self.const
        if self.solver.compile and not torch.compiler.is_compiling() and forward_ad._current_level < 0:
            from sciml.solvers import compiled

            with progress_bar(progress) as tick:
                first = None if resume is None else self._warm(march.start(c, self.y0), resume, TENSORS)
                through = compiled.through(
                    self.solver.compile, self.solver.fast_math, march, c, self.y0, first, keep, tick
                )
            if through is not None:
                return through
        with np.errstate(all="ignore"), progress_bar(progress) as tick:
            watch = Watch(self.y0)
            s = march.start(c, self.y0, march.host)
            watch.start(s.carry)
            if resume is not None:
                s = self._warm(s, resume, march.host)
            tape = Tape(march.folds, keep)
            end = replace(march, patience=PATIENCE).run(s, c, tape, tick)
            grid = march.lanes == "joint" and not march.controller.adaptive
            if grid and int(end.status) >= Status.MAX_STEPS:  # again, to see where it failed
                tape = Tape(march.folds, keep)
                end = march.run(s, c, tape, tick)
        watch.check()
        return *freeze(march, c, end, tape), end

    def _pull(self) -> Callable[..., list[Any]] | None:
        """A compiled backward pass, where there is one."""
        if self.solver.compile != "loop":
            return None
        from sciml.solvers import compiled

        return compiled.puller(self.march, self.solver.fast_math)

    def _warm(self, s: State, resume: Solution, xp: Arithmetic) -> State:
        """The first state with step sizes and memory of a solution, where that has them."""
        if not self.march.controller.adaptive or resume._end.theta.shape != self.const.t0.shape:
            return s
        end, before, c = resume._end, resume._task.const, self.const
        dt = end.dtheta * (before.t1 - before.t0).abs()
        known = (end.status < Status.MAX_STEPS.value) & dt.isfinite() & (dt > 0) & (c.t0 != c.t1)
        dtheta = (dt / (c.t1 - c.t0).abs()).clamp_min(2 * control.FLOOR)
        memory = end.memory if len(end.memory) == len(s.memory) else ()
        return s._replace(
            dtheta=xp.where(xp.number(known, known), xp.number(dtheta, dtheta), s.dtheta),
            memory=tuple(xp.number(m, m) for m in memory) or s.memory,
        )

    def _frozen(self, mesh: Mesh, keep: bool) -> tuple[Mesh, Pass, State]:
        march, c = self.march, self.const
        if mesh.theta.shape[1:] != c.t0.shape:
            raise ValueError(
                f"mesh: expected one of lanes {tuple(c.t0.shape)}, got one of lanes {tuple(mesh.theta.shape[1:])}"
            )
        if (mesh.events is None) == bool(march.events):
            raise ValueError("mesh: expected one of a solve with the same events, since they were met at its nodes")
        if march.path is not None:
            march.path.admit(mesh.theta)
        done = over(march, mesh, c, self.y0, keep)
        zero = torch.zeros_like(mesh.theta[-1])
        return mesh, done, State(mesh.theta[-1], zero, done.y, (), (), (), mesh.count, mesh.count, mesh.status)

    def _nothing(self) -> tuple[Mesh, Pass, State]:
        """A solve over no time, or of no state."""
        march, c, y0 = self.march, self.const, self.y0
        if y0.numel() == 0:  # only the shapes of what folds emit are wanted, which may read errors and stages
            march = replace(march, stepper=Tsit5(), path=None)
            c = c._replace(stepper=march.stepper.constants(c.t0, y0))
        elif torch.is_grad_enabled() and (c.t0.requires_grad or c.t1.requires_grad):
            with torch.no_grad():
                slope = march.field(c).checked(c.t0, y0)
            y0 = y0 + event.drifted(c.t1 - c.t0, slope)
        zero = torch.zeros_like(c.t0.detach())
        none = zero.long()
        end = State(zero, zero + 1, y0, (), (), (), none, none, none + Status.DONE.value)
        mesh = Mesh(zero[None], none, end.status, none[None][:0] if march.events else None)
        return mesh, close(march, c, end, Tape(march.folds, keep=False)), end

    def solution(self, mesh: Mesh, results: Pass, end: State, again: Callable[..., Solution], frozen: bool) -> Solution:
        """The results as the user sees them."""
        march, c = self.march, self.const
        unpack = self.layout.unpack if self.layout else lambda y: y
        met = outcome(march, c, mesh, results)
        found = {}
        for name, fold, value, inputs in zip(self.names, march.folds, results.values, c.folds, strict=True):
            if march.events:
                value = fold.ended(value, met.y, mesh.theta[-1], mesh.status == Status.EVENT.value, *inputs)
            found[name] = fold.finish(value, mesh, c.t0, c.t1, unpack)
        ys, ts = last = unpack(met.y), met.t
        crossed = (crossings._replace(ys=unpack(crossings.ys)) for crossings in met.crossings)
        events = dict(zip(self.awaited, crossed, strict=True))
        for name, fold in zip(self.names, march.folds, strict=True):
            if name == "" and isinstance(fold, SaveAt):
                ys, ts = found.pop(""), fold.ts
        mesh = mesh._replace(theta=mesh.theta.detach()) if mesh.theta.requires_grad else mesh
        return Solution(ys, ts, mesh.status, mesh, found, events, *last, end, self, frozen, again)


def _solver(given: Solver | str | None) -> Solver:
    """The solver itself, or the default one with the stepper of that name."""
    if given is None or isinstance(given, Solver):
        return given or Solver()
    expect("solver", given, str, "a Solver or a name, as Solver(Tsit5()) or 'tsit5'")
    return Solver(arguments.stepper_named(given))
