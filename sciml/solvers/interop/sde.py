"""torchsde's interface on the core; see `sciml.solvers.interop`."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sciml.solvers.adjoint import Discrete
from sciml.solvers.apart import apart
from sciml.solvers.brownian import Brownian
from sciml.solvers.control import Controller, Grid
from sciml.solvers.doubled import Doubled
from sciml.solvers.given import Given
from sciml.solvers.interop import equation
from sciml.solvers.interop.equation import Equation, WithRatio
from sciml.solvers.interop.options import Between
from sciml.solvers.interop.sde_methods import METHODS, check_adjoint, chosen, stepper
from sciml.solvers.interop.sde_steps import Adaptive, Nodes
from sciml.solvers.interop.sde_steps import nodes as nodes_of
from sciml.solvers.path import Path
from sciml.solvers.solve import Solver, solve
from sciml.solvers.stochastic import Stochastic
from sciml.solvers.undeclared import graph_leaves, graph_nodes

Backend = Literal["sciml", "torchsde"]

STUB = 1e-3  # of a step, by which equal steps of own noise may miss the end together


@apart
def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: str | None = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    rtol: Any = 1e-5,
    atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    backend: Backend = "sciml",
    **unused_kwargs: Any,
) -> Any:
    """Integrate a stochastic equation of torchsde's and save at all times; differentiable by backpropagation.

    With ``adaptive=True`` the method takes every step once whole and once in halves, whose difference is judged, as in
    torchsde; the states at ``ts`` are ends of steps then. Sizes are chosen by `PID`, and steps are nodes of a binary
    tree over the span (see `Doubled`), so that rejections do not bias the noise: states differ from torchsde's by the
    errors of both. With "euler" and noise that is not additive, adaptive steps converge to another process, as a
    warning says; "heun" and "midpoint" of the equation in Stratonovich's calculus do not.

    Args:
        sde: the equation: an object with ``noise_type``, ``sde_type`` and methods ``f(t, y)`` and ``g(t, y)``, or
            ``f_and_g``, ``g_prod``, ``f_and_g_prod``.
        y0: state at ts[0], (b, d).
        ts: times (t), strictly increasing: a tensor, or a list of numbers. Between steps the states are interpolated
            by straight lines.
        bm: Brownian motion of shape (b, m), as `torchsde.BrownianInterval`; None draws one whose seed is from numpy's
            generator.
        method: "euler", "milstein", "srk", "midpoint", "heun", "euler_heun", "reversible_heun" or "log_ode"; None is
            "srk" for Ito equations ("euler" where the noise is general), "midpoint" for Stratonovich equations.
        dt: step size, the first one of adaptive steps.
        adaptive: whether to choose the steps.
        rtol: relative tolerance of adaptive steps.
        atol: absolute tolerance of adaptive steps.
        dt_min: least size of adaptive steps; where a smaller one is wanted, a warning says so and this one is taken.
        options: ``grad_free`` of "milstein".
        names: other names of the equation's methods, by "drift", "diffusion", "prior_drift", "drift_and_diffusion",
            "drift_and_diffusion_prod".
        logqp: whether the increments of the log ratio to the prior of drift ``h`` are wanted too.
        extra: whether the state that a method carries along is wanted too.
        extra_solver_state: such a state, to go on from.
        backend: "torchsde" has its own solvers run, for comparison.
        unused_kwargs: warned of.

    Returns:
        states (t, b, d); with ``logqp`` also (t - 1, b), with ``extra`` also a tuple of tensors.

    Raises:
        ValueError: what torchsde refuses with it.
        RuntimeError: the equation lacks what the method calls.
        AttributeError: likewise with ``logqp``.
        SolveError: a state became infinite or NaN.

    Example:
        >>> import torch
        >>> from sciml.solvers.interop import SDEIto, sdeint
        >>> class Growth(SDEIto):
        ...     def f(self, t, y):
        ...         return 0.1 * y
        ...     def g(self, t, y):
        ...         return 0.5 * y
        >>> sdeint(Growth("diagonal"), torch.ones(7, 2), torch.linspace(0, 1, 5), dt=0.01, method="milstein").shape
        torch.Size([5, 7, 2])
    """
    given: dict[str, Any] = {
        "bm": bm,
        "method": method,
        "dt": dt,
        "adaptive": adaptive,
        "rtol": rtol,
        "atol": atol,
        "dt_min": dt_min,
    }
    given |= {"options": options, "names": names, "logqp": logqp, "extra": extra}
    given |= {"extra_solver_state": extra_solver_state}
    if _foreign(backend):
        import torchsde

        return torchsde.sdeint(sde, y0, ts, **given, **unused_kwargs)
    _warn_of("sdeint", unused_kwargs)
    numbers = (rtol, atol, dt_min)
    problem = SDEProblem.of(sde, y0, ts, bm, method, dt, adaptive, numbers, options, names, logqp)
    return problem.results(extra, extra_solver_state, tuple)


@apart
def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: Any = 1e-5,
    adjoint_rtol: Any = 1e-5,
    atol: Any = 1e-4,
    adjoint_atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
    backend: Backend = "sciml",
    **unused_kwargs: Any,
) -> Any:
    """`sdeint` with little memory: each step is taken again for its gradient.

    torchsde integrates the adjoint equation back in time by ``adjoint_method``, whose gradient differs from that of
    the solution that was computed by the errors of both solves, except for "reversible_heun". Here it is the gradient
    of the discrete solution, the same as `sdeint`'s to round-off, whatever the method: from the accepted states (b, d),
    which are kept, and for "reversible_heun" from none, since its steps are undone. ``adjoint_method`` and
    ``adjoint_options`` are checked, and have no effect, like the tolerances of the adjoint. It cannot be
    differentiated again. With ``extra`` or ``extra_solver_state`` all steps are kept in memory.

    Args:
        sde: as for `sdeint`; a module, unless ``adjoint_params`` is given.
        y0: state at ts[0].
        ts: times.
        bm: Brownian motion; asked again in the backward pass.
        method: a name.
        adjoint_method: without effect.
        dt: step size.
        adaptive: as for `sdeint`.
        adjoint_adaptive: without effect.
        rtol: of adaptive steps.
        adjoint_rtol: without effect.
        atol: of adaptive steps.
        adjoint_atol: without effect.
        dt_min: of adaptive steps.
        options: of the method.
        adjoint_options: without effect.
        adjoint_params: the tensors beside y0 that get gradients, and no others; None: the module's parameters. If the
            equation then reads another tensor that needs a gradient, which torchsde would leave without one, a warning
            says so and all steps are kept in memory, so that no gradient is missing.
        names: as for `sdeint`.
        logqp: likewise.
        extra: likewise.
        extra_solver_state: likewise.
        backend: likewise.
        unused_kwargs: warned of.

    Returns:
        as `sdeint`.

    Raises:
        ValueError: also: ``adjoint_params`` is needed and missing, or ``adjoint_method`` does not fit.
        NotImplementedError: ``adjoint_method`` does not fit.
    """
    given: dict[str, Any] = {
        "bm": bm,
        "method": method,
        "dt": dt,
        "adaptive": adaptive,
        "rtol": rtol,
        "atol": atol,
        "dt_min": dt_min,
    }
    given |= {"options": options, "names": names, "logqp": logqp, "extra": extra}
    given |= {"extra_solver_state": extra_solver_state}
    if _foreign(backend):
        import torchsde

        more: dict[str, Any] = {
            "adjoint_method": adjoint_method,
            "adjoint_adaptive": adjoint_adaptive,
            "adjoint_rtol": adjoint_rtol,
        }
        more |= {"adjoint_atol": adjoint_atol, "adjoint_options": adjoint_options, "adjoint_params": adjoint_params}
        return torchsde.sdeint_adjoint(sde, y0, ts, **given, **more, **unused_kwargs)
    _warn_of("sdeint_adjoint", unused_kwargs)
    if adjoint_params is None and not isinstance(sde, nn.Module):
        raise ValueError(f"adjoint_params: expected them with an sde that is no module, got {type(sde).__name__}")
    numbers = (rtol, atol, dt_min, adjoint_rtol, adjoint_atol)
    problem = SDEProblem.of(sde, y0, ts, bm, method, dt, adaptive, numbers, options, names, logqp)
    adjoint_method = problem.adjoint(adjoint_method)
    problem.warn_of_ends(adjoint_method)
    if torch.is_grad_enabled():
        own = adjoint_params is None
        params = tuple(p for p in (sde.parameters() if own else adjoint_params) if p.requires_grad)
        if params or y0.requires_grad:
            check_adjoint(adjoint_method, problem.method, problem.sde, bm, dict(adjoint_options or {}))
        if not (extra or extra_solver_state is not None):
            problem = problem.declaring(params, own)
    return problem.results(extra, extra_solver_state, list)


@dataclass(frozen=True, eq=False)
class SDEProblem:
    """A checked call."""

    sde: Any
    y0: Tensor  # with the log ratio, where that is wanted
    ts: Tensor
    bm: Any
    method: str
    dt: Any
    options: dict[str, Any]
    noise: int
    logqp: bool
    adaptive: Adaptive | None = None
    store: Discrete | None = None
    params: tuple[Tensor, ...] | None = None  # the only ones that get gradients; None: all that are read
    declared: tuple[Tensor, ...] = ()  # parameters that are all that is read

    @classmethod
    def of(
        cls,
        sde: Any,
        y0: Any,
        ts: Any,
        bm: Any,
        method: str | None,
        dt: Any,
        adaptive: bool,
        numbers: tuple[Any, ...],
        options: Mapping[str, Any] | None,
        names: Mapping[str, str] | None,
        logqp: bool,
    ) -> "SDEProblem":
        """Check the arguments."""
        sde = equation.renamed(sde, names)
        equation.check_types(sde)
        if not isinstance(y0, Tensor) or y0.ndim != 2:
            found = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
            raise ValueError(f"y0: expected a tensor (batch, channels), got {found}")
        if logqp:
            sde, y0 = WithRatio(sde), torch.cat([y0, y0.new_zeros(len(y0), 1)], 1)
        method, ts = chosen(method, sde), _times(ts, y0)
        sizes = equation.sizes(sde, y0, ts[0], bm)
        if any(isinstance(x, Tensor) and x.requires_grad for x in (ts, dt, *numbers)):
            raise ValueError("ts, dt, rtol, atol, dt_min: expected values without gradients")
        if not float(dt) > 0:
            raise ValueError(f"dt: expected a positive step size, got {float(dt)}")
        steps = Adaptive(ts, dt, *numbers[:3]) if adaptive and len(ts) > 1 else None
        return cls(sde, y0, ts, bm, method, dt, dict(options or {}), sizes.noise, logqp, steps)

    def adjoint(self, method: str | None) -> str:
        """The adjoint method, torchsde's default where it is None."""
        if method is not None:
            return method
        if self.method == "reversible_heun":
            return "adjoint_reversible_heun"
        if self.sde.sde_type == "stratonovich":
            return "midpoint"
        return "milstein" if self.sde.noise_type == "diagonal" else "euler"

    def warn_of_ends(self, adjoint_method: str) -> None:
        """Warn as torchsde does of another adjoint method than that of the reversible one."""
        if self.method == "reversible_heun" and adjoint_method != "adjoint_reversible_heun":
            warnings.warn(
                f"method='reversible_heun', but adjoint_method is {adjoint_method!r}, not 'adjoint_reversible_heun'",
                stacklevel=3,
            )

    def declaring(self, params: tuple[Tensor, ...], own: bool) -> "SDEProblem":
        """The same, to be differentiated with little memory: to y0 and ``params`` (the module's ``own``)."""
        little = replace(self, store=Discrete("invert" if self.method == "reversible_heun" else "all"))
        with torch.enable_grad():
            t, y = self.ts[0].to(self.y0), self.y0.detach().requires_grad_()
            term = Equation(self.sde, self.noise, METHODS[self.method].pairs, [], None)
            call = lambda: [term.drift(t, y, ()), term.diffuse(t, y, y.new_ones(len(y), self.noise), ())]  # noqa: E731
            roots, again = call(), call()
        known = {id(p) for p in (y, *params)}
        other = next((leaf for leaf in graph_leaves(roots) if id(leaf) not in known), None)
        if other is None and all(isinstance(p, nn.Parameter) for p in params) and not _share(roots, again):
            return replace(little, declared=params)
        if other is None or not own:
            return replace(little, params=params)
        warnings.warn(
            f"sde reads a tensor of shape {tuple(other.shape)} that needs a gradient and is no parameter of it; all "
            "steps are kept in memory for it, unless adjoint_params says what is to get gradients",
            stacklevel=3,
        )
        return self

    def results(self, extra: bool, before: Sequence[Tensor] | None, kind: type) -> Any:
        """What the interface returns."""
        scheme = stepper(self.method, self.sde, self.bm, self.options, self._unpacked(before))
        ys, carry = self.states(scheme)
        found: list[Any] = [ys]
        if self.logqp:
            found = [ys[..., :-1], ys[..., -1].diff(dim=0)]
        if extra:
            found.append(kind(self._packed(carry) if self.method == "reversible_heun" else ()))
        return tuple(found) if len(found) > 1 else ys

    def _unpacked(self, extra: Sequence[Tensor] | None) -> tuple[Tensor, ...] | None:
        """The state of torchsde's method (f, g, z) as the stepper carries it."""
        if extra is None or self.method != "reversible_heun":
            return None
        f, g, z = extra
        return f, g[..., 0] if self.sde.noise_type == "scalar" else g, z

    def _packed(self, carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The reverse."""
        f, g, z = carry
        return f, g[..., None] if self.sde.noise_type == "scalar" else g, z

    def _begin(self) -> tuple[Tensor, ...]:
        """What the stepper carries at the start."""
        if self.method != "reversible_heun":
            return ()
        term, t = Equation(self.sde, self.noise, True, [], None), self.ts[0].to(self.y0)
        return self._unpacked((term.drift(t, self.y0, ()), term.diffusion(t, self.y0, ()), self.y0)) or ()

    def states(self, scheme: Stochastic) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states at all times, and what the method carried to the end."""
        ts, y0 = self.ts, self.y0
        if len(ts) == 1 or y0.numel() == 0:
            return y0.expand(len(ts), *y0.shape), self._begin()
        nodes = ts.double().cpu() if self.adaptive else nodes_of(ts, self.dt)
        path, controller, nodes = self.noise_of(scheme, nodes)
        exact = nodes.tolist() if y0.dtype == torch.float64 and not y0.is_cuda else []
        term = Equation(self.sde, self.noise, METHODS[self.method].pairs, exact, self.params, self.declared)
        folds, saves, most = {}, None, len(nodes)
        if self.adaptive:
            scheme, saves, most = Doubled(scheme), ts[1:].double(), self.adaptive.max_steps
        elif len(ts) > 2:
            folds = {"at": Between(ts[1:].double(), False)}
        solver = Solver(scheme, controller, self.store, max_steps=most)
        start, end = ts[0].item(), ts[-1].item()
        found = solve(term, y0, start, end, solver, args=self.params or (), path=path, folds=folds, save_at=saves)
        term.last = term.free.last = None  # which may hold a graph
        ys = found.folds["at"] if folds else found.ys if self.adaptive else found.ys[None]
        return torch.cat([y0[None], ys]), found._end.carry

    def noise_of(self, scheme: Stochastic, nodes: Tensor) -> tuple[Path, Controller, Tensor]:
        """The path, and the controller that it is asked under, with the nodes that are known before."""
        ts, y0, bm = self.ts, self.y0, self.bm
        if bm is None and scheme.area and self.adaptive:
            import torchsde

            shape = len(y0), self.noise
            bm = torchsde.BrownianInterval(ts[0], ts[-1], shape, y0.dtype, y0.device, levy_area_approximation="foster")
        if bm is not None:
            if self.adaptive:
                return Given(bm, self.adaptive.cells), self.adaptive.controller, nodes
            return Given(bm), Nodes(ts=nodes), nodes
        seed, shape = int(np.random.randint(0, 2**31 - 1)), (len(y0), self.noise)  # noqa: NPY002 - as torchsde
        if self.adaptive:
            return Brownian(shape, seed, cells=self.adaptive.cells), self.adaptive.controller, nodes
        start, end = float(nodes[0]), float(nodes[-1])
        count = (end - start) / float(self.dt)
        if abs(count - round(count)) <= STUB and round(count):
            n = round(count)
            nodes = torch.linspace(start, end, n + 1, dtype=torch.float64)
            return Brownian(shape, seed, cells=n, by="step"), Grid(n=n), nodes
        return Brownian(shape, seed), Grid(ts=nodes), nodes


def _share(roots: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether the graphs of two evaluations have a part in common, as one that a tensor in the equation comes from."""
    first, second = (set(graph_nodes(tensors)) for tensors in (roots, others))
    return any(not hasattr(node, "variable") for node in first & second)


def _times(ts: Any, y0: Tensor) -> Tensor:
    """The times as a tensor.

    Raises:
        ValueError: they are none, or do not increase.
    """
    if not isinstance(ts, Tensor):
        if not isinstance(ts, tuple | list) or not all(isinstance(t, float | int) for t in ts):
            raise ValueError(f"ts: expected a vector or a list of numbers, got {type(ts).__name__}")
        ts = torch.tensor(ts, dtype=y0.dtype, device=y0.device)
    if not all(a < b for a, b in pairwise(ts.tolist())):
        raise ValueError("ts: expected strictly increasing times")
    return ts


def _foreign(backend: str) -> bool:
    if backend not in ("sciml", "torchsde"):
        raise ValueError(f"backend: expected 'sciml' or 'torchsde', got {backend!r}")
    return backend == "torchsde"


def _warn_of(name: str, unused: dict[str, Any]) -> None:
    if unused:
        warnings.warn(f"`{name}`: Unexpected arguments {unused}", stacklevel=3)
