"""Compiled marches: the whole march as one loop, or chunks of masked steps, in the place of an eager march.

What is compiled is in `loops`, what goes in and comes out of it in `bound`; here programs are made, run and kept.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from operator import is_
from types import FunctionType
from typing import Any, Literal

import torch
import torch._dynamo
import torch._inductor.exc
from torch import Tensor
from torch._dynamo.callback import callback_handler
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sciml.solvers import hosted, loops, recall
from sciml.solvers.auto import Auto
from sciml.solvers.block import Blocks
from sciml.solvers.bound import Bound, Met, Run, moved, with_tensor_tolerances
from sciml.solvers.components import Components, Forget, Passes
from sciml.solvers.direct import Direct
from sciml.solvers.explicit import RungeKutta
from sciml.solvers.fast_math import BY_COLUMN, BY_ROW, Rewrite
from sciml.solvers.fold import SaveAt
from sciml.solvers.loops import CHUNK, Found, Owner, Pull, Trials, backward, chunk, loop, progress, saved
from sciml.solvers.march import March
from sciml.solvers.mesh import Mesh, Pass
from sciml.solvers.rosenbrock import Rosenbrock
from sciml.solvers.state import Const, State
from sciml.solvers.term import FunctionTerm, Term, declared_modules, declared_parameters

Mode = Literal["loop", "chunks"]


class Program:
    """The compiled functions of marches of one structure; whatever else changes is for the compiler to notice."""

    def __init__(self, mode: Mode, march: March, fast_math: bool):
        self.fast_math = fast_math
        method = f"{type(march.stepper).__name__}, lanes {march.lanes!r}"
        self.mode = mode
        small = isinstance(march.stepper, RungeKutta | Rosenbrock)
        forward = _options(BY_COLUMN if fast_math else None, small)
        whole = mode == "loop"
        self.forward = _compiled(loop if whole else chunk, f"the march of {method}", forward, captured=not whole)
        self.save = _compiled(saved, f"the saved states of {method}", {**OPTIONS, "assert_indirect_indexing": False})
        self.backward = _compiled(backward, f"the backward pass of {method}", _options(BY_ROW if fast_math else None))
        self.known: dict[Any, Any] = {}
        self.blocks = Blocks()
        self.owned: tuple[tuple[Any, ...], Owner] | None = None

    def march(
        self, march: March, c: Const, y0: Tensor, first: State | None, keep: bool, tick: Callable[[State], None]
    ) -> tuple[Mesh, Pass, State]:
        """The mesh, the results and the last state, as of an eager march."""
        name, kind = ("bound", self.mode, self.fast_math, keep), (y0.shape, y0.dtype, y0.device)
        given, known, bound = march.kept.get(name, (None, None, None))
        if given is c and known == kind:
            bound = bound._replace(y0=y0)
        else:
            bound = Bound.of(march, c, y0, keep, self.known, self.fast_math)
            march.kept[name] = c, kind, bound._replace(y0=y0.new_empty(0))
        run = self._loop if self.mode == "loop" else self._chunks
        return bound.finish(run(bound, first, tick))

    def pull(
        self,
        march: March,
        mesh: Mesh,
        c: Const,
        states: Tensor,
        parameters: Sequence[Tensor],
        needs: Sequence[bool],
        best: tuple[Tensor | None, ...],
        grad_y: Tensor,
        grad_values: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """The gradients of y0, of the constants' leaves and of the parameters, None where none is needed.

        Args:
            march: the march, its parameters all in modules.
            mesh: its steps.
            c: constants.
            states: the state at the start of every step (n + 1, ...).
            parameters: those of the march's modules.
            needs: which of the constants' leaves and of the parameters need a gradient.
            best: the steps in which maxima were attained.
            grad_y: that of the last state.
            grad_values: those of the folds' results.
        """
        leaves, owner = c.leaves(), self._owner(march)
        if mesh.theta.device != states.device:
            mesh, c = moved((mesh, c), states.device)
        c = _hosted(march, c)
        given, spec = tree_flatten((mesh, c, states, best, grad_y, tuple(grad_values)))
        mesh, c, states, best, grad_y, grads = tree_unflatten(_apart(given), spec)
        values = tuple(p.detach() for p in parameters)
        pull = Pull(owner, values, c, tuple(needs[: len(leaves)]), self.fast_math, mesh, states, best, grad_y, grads)
        steps = torch.full((), len(mesh.theta) - 2, dtype=torch.int64, device=states.device)
        pull = _varying(pull, self._sizes("backward", states[0], march, len(mesh.theta)))
        with torch.no_grad():
            inner = with_tensor_tolerances(march, states, march.folds)
            grads = iter(self.backward(inner, pull, steps, _most_saves(march, mesh, c)))
        parts = [
            next(grads),
            *(next(grads).to(x.device) if need else None for x, need in zip(leaves, needs, strict=False)),
        ]
        return [*parts, *(grad if need else None for grad, need in zip(grads, needs[len(leaves) :], strict=True))]

    def _owner(self, march: March) -> Owner:
        """Of the march's parameters; the last one is kept, since it takes as long to make as several steps."""
        folds = (fold for fold in march.folds if not isinstance(fold, SaveAt))
        things = (field_of(march.term), march.path, *folds, *march.jumps, *march.events)
        if self.owned is None or not all(map(is_, self.owned[0], things)) or len(self.owned[0]) != len(things):
            self.owned = things, Owner(declared_modules(*things))
        return self.owned[1]

    def _sizes(self, name: str, y: Tensor, march: March, *more: int) -> tuple[int, ...]:
        """What may vary where a state of this kind is new here: the first axis of a batch, and ``more``."""
        kind = (name, y.ndim, y.shape[1:], y.dtype, y.device)
        if kind in self.known:
            return ()
        self.known[kind] = None
        batch = (y.shape[0],) if y.ndim > int(march.lanes == "joint") else ()
        places = (fold.places for fold in march.folds if fold.reduce == "write")
        return tuple(size for size in (*batch, *places, *more) if size > 1)

    def _loop(self, bound: Bound, first: State | None, tick: Callable[[State], None], totals: Any = None) -> Run:
        base = torch.zeros_like(bound.c.t0, dtype=torch.int64) if first is None else first.accepted
        s, shape = first, bound.shape
        run = Run(bound.totals() if totals is None else totals, [], Met(bound.outer.folds))
        sizes = self._sizes(f"{self.mode} {shape.states}", bound.y0, bound.outer, shape.rows + 1)
        few = bound.outer.sparse(base)
        stop = torch.full((), few, dtype=torch.int64, device=base.device)
        while True:
            rows = bound.places()
            s, totals, state = self.forward(
                bound.march, *_varying((s, bound.y0, run.totals, bound.c, shape.packing, rows, stop), sizes)
            )
            running, waiting, done, trials, n = state.tolist()
            run = run.grown(totals, base, rows.kept, bound.written(s, rows, trials, partial(self._saved, bound)))
            tick(s)
            if waiting and not running:
                s, run = bound.met(s, run)
                running, _, done, _, n = progress(s, torch.zeros_like(state[0])).tolist()
            if not running:
                return run._replace(s=s, n=n, done=bool(done))
            if running <= few:
                return self._rest(self._loop, bound, run._replace(s=s), tick)
            base = s.accepted

    def _rest(self, go: Callable[..., Run], bound: Bound, run: Run, tick: Callable[[State], None]) -> Run:
        """What comes of the lanes that are running alone, the others left out."""
        lanes = (run.s.status == 0).nonzero()[:, 0]
        if len(lanes) == 1:  # one would be compiled for by itself
            lanes = torch.cat([lanes, (lanes + 1) % len(run.s.status)])
        few, s, totals = bound.among(run.s, run.totals, lanes)
        return run.completed(go(few, s, tick, totals), lanes)

    def _saved(self, bound: Bound, writing: Sequence[Any], trials: Trials, each: bool) -> list[Found]:
        """`saved`, compiled."""
        places = (theta.shape[-1] for theta, _ in writing)
        writing, trials = _varying(
            (writing, trials), self._sizes("saved", bound.y0, bound.outer, len(trials.theta), *places)
        )
        return self.save(writing, trials, each)

    def _chunks(self, bound: Bound, s: State | None, tick: Callable[[State], None], totals: Any = None) -> Run:
        s = s or bound.march.start(bound.c, bound.y0)
        run = Run(bound.totals() if totals is None else totals, [], Met(bound.outer.folds))
        sizes = self._sizes(f"{self.mode} {bound.shape.states}", bound.y0, bound.outer, bound.shape.rows + 1)
        few = 0 if self.blocks.stay(bound) else bound.outer.sparse(s.accepted)
        running, waiting, done, n = few + 1, 0, 0, 0
        while running:
            if running <= few:
                return self._rest(self._chunks, bound, run._replace(s=s), tick)
            block, trials = self.blocks.take(bound, s, run.totals), 0
            while running > few and trials + CHUNK <= bound.shape.rows:
                state = self.forward(bound.march, *_varying(block, sizes))
                running, waiting, done, trials, n = state.tolist()
                tick(block.place.held[0])
            block = self.blocks.give(bound, block)
            s, totals = block.place.held
            run = run.grown(totals, block.base, block.rows.kept, bound.written(s, block.rows, trials))
            if waiting and not running:
                s, run = bound.met(s, run)
                running, waiting, done, _, n = progress(s, torch.zeros_like(state[0])).tolist()
        return run._replace(s=s, n=n, done=bool(done))


def _apart(tensors: Sequence[Any]) -> list[Any]:
    """The same tensors without graphs, each with memory of its own: a loop refuses two views of one."""
    seen: set[int] = set()

    def own(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.detach() if x.requires_grad else x
        place = x.untyped_storage().data_ptr()
        if place in seen or not x.is_contiguous():
            x = x.clone(memory_format=torch.contiguous_format)
        seen.add(place)
        return x

    return [own(x) for x in tensors]


def _beside(march: March, c: Const, device: torch.device) -> Const:
    """Constants on the device of the state, as compiled marches take them; those that come again are known."""
    given, found = march.kept.get("beside", (None, c))
    if given is not c:
        found = _hosted(march, c if c.t0.device == device else moved(c, device))
        march.kept["beside"] = c, found
    return found


def _hosted(march: March, c: Const) -> Const:
    return c if march.path is None else c._replace(path=march.path.hosted(c.path))


def _separate(march: March, y0: Tensor, c: Const) -> tuple[Tensor, Const]:
    """State and constants as of `_apart`; constants that come again are known."""
    given, own, places = march.kept.get("apart", (None, c, frozenset()))
    if given is not c:
        leaves = _apart(c.leaves())
        own, places = c.with_leaves(leaves), frozenset(x.untyped_storage().data_ptr() for x in leaves)
        march.kept["apart"] = c, own, places
    y0 = y0.detach() if y0.requires_grad else y0
    if y0.untyped_storage().data_ptr() in places or not y0.is_contiguous():
        y0 = y0.clone(memory_format=torch.contiguous_format)
    return y0, own


def _varying(tree: Any, sizes: Sequence[int]) -> Any:
    """The same tensors, told that axes of these sizes may have other ones next time."""

    def mark(x: Any) -> Any:
        axes = [i for i, n in enumerate(x.shape) if n in sizes] if isinstance(x, Tensor) else []
        if axes:
            x = x.detach()
            torch._dynamo.maybe_mark_dynamic(x, axes)
        return x

    return tree_map(mark, tree) if sizes else tree


def _most_saves(march: March, mesh: Mesh, c: Const) -> int:
    """The next power of two to the largest number of save times in one step."""
    most = 1
    for fold, inputs in zip(march.folds, c.folds, strict=True):
        if fold.reduce == "write":
            theta = mesh.theta.mT.contiguous() if mesh.theta.ndim == 2 else mesh.theta
            most = max(most, int(torch.searchsorted(inputs[1].detach(), theta.detach(), right=True).diff(dim=-1).max()))
    return 1 << (most - 1).bit_length()


def _options(rewrites: dict[Any, Any] | None, small: bool = False) -> dict[str, Any]:
    """Those of the compiler; ``small`` is whether to take small tensors apart."""
    passes = [*([Components()] if small else []), *([Rewrite(rewrites)] if rewrites else [])]  # which hides products
    options = OPTIONS | (COMPONENTS if small else {})
    return options | ({"post_grad_custom_post_pass": Passes(passes)} if passes else {})


def _compiled(function: FunctionType, what: str, options: dict[str, Any], captured: bool = False) -> Callable[..., Any]:
    """A function compiled by itself, since recompilations are counted by code object; it says when that happens.

    ``captured`` is whether its kernels may be replayed as a graph.
    """
    name = f"{function.__name__}_{next(_numbers)}"
    own = FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)
    call = Direct(own, options, _guards, captured)

    def announced(*args: Any) -> Any:
        if _say not in callback_handler.start_callbacks:  # `torch._dynamo.reset` drops it
            callback_handler.register_start_callback(_say)
        _speech.append(what)
        try:
            with hosted.telling():
                return call(*args)
        finally:
            _speech.pop()

    return announced


_speech: list[str] = []  # what the calls that run now are about


def _say(*args: Any) -> None:
    if _speech:
        print(f"sciml: compiling {_speech[-1]} ...", file=sys.stderr, flush=True)


def _guards(entries: Sequence[Any]) -> list[bool]:
    """What to check at every call: all that is the user's. What is ours does not change, or is in a program's key."""
    return [not (entry.name == "march" or entry.name.startswith(OURS)) for entry in entries]


OURS = (
    *("march.stepper", "march.controller.", "march.lanes", "march.max_steps", "dict(", "type(", "list(", "__import__"),
    *("c.t0", "c.t1", "c.stepper[", "rows.packs[", "rows.trials.theta", "rows.trials.packs["),  # follow from y0
    *(f"G['{name}" for name in ("__import_sciml", "__import_torch", "__builtins", "___unnamed_scope", *vars(loops))),
)
OPTIONS: dict[str, Any] = {
    # a loop is its condition and body, which are parts of the graph that the cache on disk knows it by
    "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": "1"},
    "force_pointwise_cat": True,
    "cpp.enable_floating_point_contract_flag": "fast",
}
COMPONENTS = {  # not for Newton's iterations, which are too many operations to take apart
    "force_pointwise_cat": False,
    "_post_fusion_custom_pass": Forget(),
    "inplace_buffers": False,
    "max_fusion_size": 1000,
    "cpp.enable_loop_tail_vec": False,
}
TRACE_ERRORS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._inductor.exc.InductorError,
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)
_numbers = count()
_programs: dict[Any, Program | None] = {}


def program(mode: Mode, march: March, fast_math: bool) -> Program | None:
    """The program for marches of this structure; None where compiling it has failed."""
    name = mode, fast_math
    if name not in march.kept:
        key = _key(mode, march, fast_math)
        if key not in _programs:
            _programs[key] = Program(mode, march, fast_math)
        march.kept[name] = _programs[key]
    return march.kept[name]


INPUTS = ("rtol", "atol", "step_ts", "jump_ts", "n", "dt", "ts")  # of controllers, that reach a march as tensors


def _key(mode: Mode, march: March, fast_math: bool) -> tuple[Any, ...]:
    """What a program was made for: all that guards are not asked about, and the kind of field."""
    field, controller = field_of(march.term), march.controller
    sizes = tuple(value for name, value in vars(controller).items() if name not in INPUTS)
    static = (mode, fast_math, march.stepper, type(controller), sizes, march.lanes, march.max_steps)
    kinds = tuple(type(fold) for fold in march.folds), len(march.jumps), len(march.events)
    return *static, getattr(field, "__code__", type(field)), *kinds


def through(
    mode: Mode,
    fast_math: bool,
    march: March,
    c: Const,
    y0: Tensor,
    first: State | None,
    keep: bool,
    tick: Callable[[State], None],
) -> tuple[Mesh, Pass, State] | None:
    """An eager march's results from a compiled one; None where it cannot be compiled.

    The books of joint lanes go where the state is, so that a program waits for nothing, and come back in the end.
    """
    if isinstance(march.stepper, Auto):  # which reads a number in every step
        warnings.warn(
            "compile: Auto cannot be compiled and goes on without compiling; name the method that fits, as Tsit5 or "
            "Rodas5P",
            stacklevel=8,
        )
        return None
    host, c = c.t0.device, _beside(march, c, y0.device)
    y0, c = _separate(march, y0, c)
    first = first if host == y0.device else moved(first, y0.device)
    for kind in ("loop", "chunks") if mode == "loop" else ("chunks",):
        made = program(kind, march, fast_math)
        while made is not None:
            try:
                mesh, done, end = made.march(march, c, y0, first, keep, tick)
                if host != y0.device:
                    mesh, end = moved(mesh, host), moved(end, host)._replace(y=end.y, carry=end.carry)
                return mesh, done, end
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                made = _programs[_key(kind, march, fast_math)] = Program(kind, march, fast_math)
                march.kept[kind, fast_math] = made
            except TRACE_ERRORS as error:
                made = _give_up(kind, march, fast_math, error)
    return None


def _give_up(mode: Mode, march: March, fast_math: bool, error: Exception) -> None:
    _programs[_key(mode, march, fast_math)] = march.kept[mode, fast_math] = None
    following = "as chunks of compiled steps" if mode == "loop" else "without compiling"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    warnings.warn(
        f"compile: {type(march.stepper).__name__} over this vector field cannot be compiled as "
        f"{'one loop' if mode == 'loop' else 'chunks'} and goes on {following}: {reason}",
        stacklevel=5,
    )


def field_of(term: Term) -> Any:
    """What the user gave as a term."""
    return term.function if isinstance(term, FunctionTerm) else term


def puller(march: March, fast_math: bool) -> Callable[..., list[Any]] | None:
    """The backward pass as one loop; None where the march runs otherwise, or reads parameters outside of modules."""
    made = _programs.get(_key("loop", march, fast_math))
    modules = declared_modules(march.term, march.path, *march.folds, *march.jumps, *march.events)
    if made is None or (
        declared_parameters(march.term, march.path, *march.folds, *march.jumps, *march.events) and not modules
    ):
        return None
    return made.pull


def forget() -> None:
    """Drop all programs, and what has been said of fields that cannot be compiled."""
    _programs.clear()
    recall.forget()
