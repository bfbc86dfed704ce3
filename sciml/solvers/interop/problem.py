"""A call of torchdiffeq's interface as a solve of the core."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sciml.errors import SolveError, Status
from sciml.solvers.adjoint import Discrete
from sciml.solvers.control import Controller, Grid
from sciml.solvers.event import Event
from sciml.solvers.fold import SaveAt, Steps
from sciml.solvers.interop import options as legacy
from sciml.solvers.interop.options import Between, Method, require
from sciml.solvers.interop.snap import Snap
from sciml.solvers.interop.watch import Watch
from sciml.solvers.solve import Solution, Solver, solve
from sciml.solvers.term import Term, real_dtype
from sciml.solvers.undeclared import graph_leaves
from sciml.typing import Args

State = Tensor | tuple[Tensor, ...]

LOOK = 8  # how much further an event is looked for each time
FAR = 16  # how many times
PATIENCE = 1_000_000  # trials that an event is waited for
GRID = 20_000  # steps of a fixed grid that an event is waited for, as in torchdiffeq


class OdeintError(SolveError, AssertionError):
    """A solve stopped before its end; torchdiffeq raises AssertionError then."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A checked call: the state is flat where the user's is a tuple.

    Raises:
        AssertionError: what torchdiffeq asserts does not hold.
        TypeError: t is not of floating point.
    """

    func: Any
    y0: Tensor
    shapes: list[torch.Size] | None  # of the parts of a tuple
    t: Tensor
    rtol: float | Tensor
    atol: float | Tensor
    kind: Method
    options: dict[str, Any]
    adjoint: Discrete | None = None
    params: tuple[Tensor, ...] | None = None  # the only ones that get gradients; None: all that are read

    @classmethod
    def of(
        cls, func: Any, y0: Any, t: Any, rtol: Any, atol: Any, kind: Method, options: dict[str, Any] | None
    ) -> "Problem":
        """Check the arguments."""
        shapes = None
        if not isinstance(y0, Tensor):
            require(isinstance(y0, tuple), f"y0: expected a tensor or a tuple of tensors, got {type(y0).__name__}")
            shapes, y0 = [part.shape for part in y0], torch.cat([part.reshape(-1) for part in y0])
        require(isinstance(t, Tensor), f"t: expected a tensor, got {type(t).__name__}")
        if not t.is_floating_point():
            raise TypeError(f"t: expected times of floating point, got {t.dtype}")
        require(t.ndim == 1, f"t: expected a vector, got shape {tuple(t.shape)}")
        rises = t.detach().diff() * (1.0 if len(t) < 2 or t[1] > t[0] else -1.0)
        require(bool((rises > 0).all()), "t: expected strictly increasing or decreasing times")
        rtol, atol = (legacy.tolerance(*pair, y0, shapes) for pair in (("rtol", rtol), ("atol", atol)))
        problem = cls(func, y0, shapes, t, rtol, atol, kind, kind.checked(options))
        kind.warn_of(problem.watch(moving=False).names)
        return problem

    def declaring(self, params: tuple[Tensor, ...] | None, event_fn: Callable[..., Tensor] | None) -> "Problem":
        """The same, to be differentiated with little memory: to ``params``, or to the parameters of the module."""
        declared = tuple(p for p in (self.func.parameters() if params is None else params) if p.requires_grad)
        little = replace(self, adjoint=Discrete("all"), params=declared)
        if params is not None:
            return little
        with torch.enable_grad():
            t = self.t[0].detach().to(self.y0.device, real_dtype(self.y0), copy=True).requires_grad_()
            y = self.y0.detach().requires_grad_()
            roots = [self.flow([]).slope(t, y)]
            roots += [] if event_fn is None else [event_fn(t, unflatten(y, self.shapes))]
        known = {id(p) for p in (t, y, *declared)}
        other = next((leaf for leaf in graph_leaves(roots) if id(leaf) not in known), None)
        if other is None:
            return little
        warnings.warn(
            f"func or event_fn reads a tensor of shape {tuple(other.shape)} that needs a gradient and is no parameter "
            "of func; all steps are kept in memory for it, unless adjoint_params says what is to get gradients",
            stacklevel=3,
        )
        return self

    def flow(self, nodes: list[float]) -> "Flow":
        """The term of flat states; its times are among the nodes where they nearly are."""
        return Flow(self.func, self.shapes, nodes, self.params, self.kind)

    def watch(self, moving: bool) -> Watch:
        """The callbacks."""
        return Watch(self.func, lambda y: unflatten(y, self.shapes), moving)

    def norm(self, quotients: Tensor) -> Any:
        """Of a flat state: the user's, or the root mean square, of a tuple the largest of its parts'."""
        given, state = self.options.get("norm"), unflatten(quotients, self.shapes)
        if given is not None:
            return given(state)
        parts = state if isinstance(state, tuple) else (state,)
        return torch.stack([torch.linalg.vector_norm(part) / max(part.numel(), 1) ** 0.5 for part in parts]).amax()

    def states(self) -> State:
        """At all times."""
        t, y0 = self.t, self.y0[None]
        if len(t) == 1 or y0.numel() == 0:
            return unflatten(y0.expand(len(t), *y0.shape[1:]), self.shapes)
        if self.kind.adaptive:
            inner = {"at": SaveAt(t[1:-1])} if len(t) > 2 else {}
            found = self.adaptive(inner)
            parts = [y0, found.folds["at"], found.ys[None]] if inner else [y0, found.ys[None]]
        else:
            parts = [y0, self.fixed()]
        return unflatten(torch.cat(parts), self.shapes)

    def adaptive(self, folds: dict[str, Any]) -> Solution:
        """The solve over the span of t by an adaptive method."""
        most = self.options.get("max_num_steps")
        require(most is None or most > 0, f"max_num_steps: expected a positive number, got {most}")
        most = 2**31 - 1 if most is None else int(most) * (len(self.t) - 1)
        return self.solve(self.t[0], self.t[-1], self.pid(self.t[-1] - self.t[0]), most, folds=folds)

    def fixed(self) -> Tensor:
        """The states at t[1:] by steps of given sizes."""
        t, interp = self.t, self.options.get("interp", "linear")
        if interp not in ("linear", "cubic"):
            raise ValueError(f"interp: expected 'linear' or 'cubic', got {interp!r}")
        nodes = legacy.grid(self.options, self.func, self.y0, t)
        folds = {"at": Steps() if nodes is t else Between(t[1:], interp == "cubic")} if len(t) > 2 else {}
        sided = bool(self.options.get("perturb", False))
        controller = (legacy.Sided if sided else Grid)(ts=nodes.double())
        exact = [] if sided or real_dtype(self.y0) != torch.float64 or self.y0.is_cuda else nodes.detach().tolist()
        found = self.solve(t[0], t[-1], controller, len(nodes), exact, folds)
        if not folds:
            return found.ys[None]
        return found.folds["at"].ys if nodes is t else found.folds["at"]

    def until(self, event_fn: Callable[..., Tensor]) -> tuple[Tensor, State]:
        """The time at which a component of ``event_fn`` first changes its sign, and the states at t[0] and there."""
        if len(self.t) != 2:
            raise ValueError(f"t: expected two times with event_fn, got {len(self.t)}")
        t0, y0 = self.t[0], self.y0
        size = self.options.get("step_size")
        require(self.kind.adaptive or size is not None, "step_size: expected one among the options with event_fn")
        value = lambda t, y: event_fn(t, unflatten(y, self.shapes))  # noqa: E731
        with torch.no_grad():
            signs = value(t0.to(y0.device, real_dtype(y0)), y0).sign()
        if bool((signs == 0).any()):
            return t0, unflatten(torch.stack([y0, y0]), self.shapes)
        only = lambda t, y, args: limited(value, self.params, t, y, args)  # noqa: E731
        event = Event(lambda t, y, args: (only(t, y, args) * signs).min(), direction=-1)
        span = (self.t[1] - t0).detach()
        if self.kind.adaptive:
            spans, most = [span * LOOK**reach for reach in range(FAR)], self.options.get("max_num_steps") or PATIENCE
        else:
            spans, most = [span.sign() * GRID * (1.0 if size is None else size)], GRID + 1
        for length in spans:
            controller = self.pid(length) if self.kind.adaptive else Grid(n=GRID)
            found = self.solve(t0, t0.detach() + length, controller, int(most), events=event)
            if found.status == Status.EVENT:
                return found.ts.to(self.t), unflatten(torch.stack([y0, found.ys]), self.shapes)
        raise OdeintError(f"event_fn: no event until {(t0 + spans[-1]).item():g}", (), (), ())

    def pid(self, span: Tensor) -> Controller:
        """The controller of an adaptive method."""
        t0, length = self.t[0].item(), span.item()
        return legacy.adaptive(self.options, self.rtol, self.atol, t0, length, self.norm)

    def solve(
        self,
        t0: Tensor,
        t1: Tensor,
        controller: Controller,
        max_steps: int,
        nodes: list[float] | None = None,
        folds: Any = None,
        events: Any = (),
    ) -> Solution:
        """The core's, watched where the field has callbacks."""
        stepper = self.kind.new()
        watch = self.watch(moving=torch.is_grad_enabled() and self.t.requires_grad and not self.kind.adaptive)
        if watch.needed:
            stepper, controller = watch.over(stepper), watch.of(controller)
        solver, flow = Solver(stepper, controller, self.adjoint, max_steps), self.flow(nodes or [])
        try:
            return solve(flow, self.y0, t0, t1, solver, args=self.params or (), folds=folds, events=events)
        except SolveError as error:
            raise OdeintError(str(error), error.status, error.samples, error.times) from None
        finally:
            watch.phase = "after"


def unflatten(y: Tensor, shapes: list[torch.Size] | None) -> Any:
    """The parts (..., *shape) of flat states (..., n); y itself where the user's state is one tensor."""
    if shapes is None:
        return y
    parts = y.split([shape.numel() for shape in shapes], -1)
    return tuple(part.reshape((*y.shape[:-1], *shape)) for part, shape in zip(parts, shapes, strict=True))


class Flow(Term):
    """The user's function of the user's states as a term of flat ones.

    Args:
        func: the function.
        shapes: of the parts of a tuple, or None.
        nodes: times that it sees exactly, in order or the reverse.
        params: the only tensors that get gradients, which the solve takes as ``args`` too; None: all that are read.
        kind: the method; those of fixed steps take a slope that can be broadcast to the state.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        shapes: list[torch.Size] | None,
        nodes: list[float],
        params: tuple[Tensor, ...] | None,
        kind: Method,
    ):
        self.call = lambda t, y: func(t, y)  # its parameters are not declared by being found
        self.shapes, self.params, self.snapped, self.kind = shapes, params, Snap(nodes), kind

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The slope, of the state's shape and dtype."""
        return limited(self.slope, self.params, self.snapped(t), y, args)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """The function's value, flat; broadcast and cast where it can be."""
        dy = self.call(t, unflatten(y, self.shapes))
        if self.shapes is not None:
            dy = torch.cat([part.reshape(-1) for part in dy])
        if self.kind.adaptive and dy.numel() != y.numel():
            raise RuntimeError(f"func: expected a slope of the state's shape {tuple(y.shape)}, got {tuple(dy.shape)}")
        return dy if dy.shape == y.shape and dy.dtype == y.dtype else dy.to(y).broadcast_to(y.shape)


def limited(
    function: Callable[[Tensor, Tensor], Any], params: tuple[Tensor, ...] | None, t: Tensor, y: Tensor, args: Args
) -> Any:
    """A function of (t, y) that has gradients to these and to ``params`` only, handed on to ``args``.

    Its value is a tensor or a tuple of tensors. With ``params=None`` it is differentiated to all that it reads.
    """
    if params is None or not torch.is_grad_enabled():
        return function(t, y)
    return _Only.apply(function, params, t, y, *args)


class _Only(torch.autograd.Function):
    """See `limited`."""

    @staticmethod
    def forward(ctx: Any, function: Any, params: tuple[Tensor, ...], t: Tensor, y: Tensor, *args: Tensor) -> Any:
        with torch.enable_grad():
            inputs = (t.detach().requires_grad_(), y.detach().requires_grad_())
            value = function(*inputs)
        several = isinstance(value, tuple)
        values = value if several else (value,)
        ctx.graph = values, (*inputs, *params)
        found = tuple(x.detach() for x in values)
        return found if several else found[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyrefly: ignore[bad-override]
        values, inputs = ctx.graph
        pairs = [(x, grad) for x, grad in zip(values, grads, strict=True) if x.requires_grad]
        if not pairs:
            return (None,) * (2 + len(inputs))
        outputs, given = ([x for x, _ in pairs], [grad for _, grad in pairs])
        return None, None, *torch.autograd.grad(outputs, inputs, given, allow_unused=True, retain_graph=True)
