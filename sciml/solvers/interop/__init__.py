"""torchdiffeq's and torchsde's interfaces on the core: a script switches by its import line.

    from sciml.solvers.interop import odeint, odeint_adjoint, odeint_event
    from sciml.solvers.interop import BrownianInterval, SDEIto, sdeint, sdeint_adjoint

Of torchdiffeq names, options, callbacks, shapes, warnings and types of exceptions are those of 0.2.5, methods also
those of its main branch and the core's own. What differs:

- The state at t[-1] is the end of a step, not interpolated within one that goes past it.
- `odeint_adjoint` gives the gradient of the discrete solution, as `odeint` does, from the accepted states (see there).
- What fails raises `OdeintError`, a `SolveError` that is an AssertionError too. A fixed grid whose state becomes
  infinite or NaN fails as well.
- With ``event_fn`` every function gives the gradient of the event's time, not `odeint_event` alone.
- ``max_num_steps`` bounds the trials of the whole solve, by itself times the number of intervals of t.

The Adams methods, ``scipy_solver`` and states of half precision are handed on to torchdiffeq, as is everything with
``backend="torchdiffeq"``. Batch norms and dropout in train mode, which `sciml.solve` refuses, act at every evaluation,
as with torchdiffeq.

Of torchsde names, methods, options, shapes and types of exceptions are those of 0.2.6, and on the same Brownian motion
the states of every method are the same to round-off, of fixed steps. What differs:

- Adaptive steps are nodes of a binary tree over the span, so that rejected ones do not bias the noise, and end at all
  times of ``ts``, where torchsde interpolates by straight lines.
- `sdeint_adjoint` gives the gradient of the discrete solution, as `sdeint` does, not that of an adjoint equation
  integrated back in time (see there); so it does not warn where torchsde's is inexact.
- Without ``bm`` the core's own Brownian motion is drawn (for adaptive steps of "log_ode" torchsde's), its seed from
  numpy's generator as torchsde's is, so that the numbers are others.
- Two faults of torchsde's "milstein" are kept, so that its states are: of scalar noise it takes the transposed Jacobian
  of g, which halves its strong order unless entry i of g depends on y_i alone, as ``grad_free`` does for Stratonovich
  equations, and adaptive steps may converge to another process then. The core's `Milstein` and `StratonovichMilstein`
  have neither.
- A state that becomes infinite or NaN raises `SolveError`.
- The equation sees times in the dtype of the state.

``BrownianInterval``, ``SDEIto`` and the other classes are torchsde's own.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sciml.solvers.apart import apart
from sciml.solvers.interop.options import Method, require
from sciml.solvers.interop.problem import OdeintError, Problem
from sciml.solvers.interop.sde import sdeint, sdeint_adjoint

THEIRS = (
    "BaseBrownian",
    "BaseSDE",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "SDEIto",
    "SDEStratonovich",
    "brownian_interval_like",
)
__all__ = ["OdeintError", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event", "sdeint", "sdeint_adjoint"]

State = Tensor | tuple[Tensor, ...]
Backend = Literal["sciml", "torchdiffeq"]

HALF = (torch.float16, torch.bfloat16)


def __getattr__(name: str) -> Any:
    if name not in THEIRS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import torchsde

    return getattr(torchsde, name)


@apart
def odeint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    backend: Backend = "sciml",
) -> Any:
    """Integrate dy/dt = func(t, y) and save at all times; differentiable by backpropagation through the steps.

    Gradients flow to y0, t and every tensor that ``func`` reads, declared or not, and can be differentiated again.

    Args:
        func: maps time (0-d) and state to the slope; callbacks are its attributes.
        y0: state at t[0]: a tensor of any shape, or a tuple of tensors.
        t: times (t), strictly increasing or decreasing.
        rtol: relative tolerance; a number, a tensor, or one for each part of a tuple.
        atol: absolute tolerance; likewise.
        method: a name of torchdiffeq's ("dopri5" where it is None), or a stepper of the core in lower case, as
            "kvaerno5"; the core's adaptive ones take the options of dopri5, the others those of euler.
        options: of the method, as torchdiffeq documents them.
        event_fn: where it changes its sign the solve ends; of t the first time counts, and the direction.
        backend: "torchdiffeq" has its own solvers run, for comparison.

    Returns:
        states (t, *y0), or a tuple of such; with ``event_fn`` the event's time, and the states at t[0] and there.

    Raises:
        OdeintError: the solve failed.
        AssertionError: an argument is one that torchdiffeq asserts against.
        ValueError: there is no such method, or options exclude each other.
        TypeError: t is not of floating point.

    Example:
        >>> import torch
        >>> odeint(lambda t, y: -y, torch.ones(2), torch.linspace(0, 1, 5), method="rk4").shape
        torch.Size([5, 2])
    """
    kind = Method.of(method)
    if _foreign(kind, y0, backend):
        return _theirs("odeint", func, y0, t, event_fn, rtol=rtol, atol=atol, method=method, options=options)
    problem = Problem.of(func, y0, t, rtol, atol, kind, options)
    return problem.until(event_fn) if event_fn is not None else problem.states()


@apart
def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    backend: Backend = "sciml",
) -> Any:
    """`odeint` with little memory: only the accepted states are kept, and each step is taken again for its gradient.

    torchdiffeq integrates the continuous adjoint equation back in time, whose gradient is as inexact as its tolerance.
    Here it is the gradient of the discrete solution, the same as `odeint`'s. ``adjoint_rtol``, ``adjoint_atol``,
    ``adjoint_method`` and ``adjoint_options`` are checked, and have no effect. The callbacks
    ``callback_step_adjoint`` and ``callback_accept_step_adjoint`` are called for every step taken again, with time and
    state at its start; none is rejected then.

    Args:
        func: as for `odeint`; a module, unless ``adjoint_params`` is given.
        y0: state at t[0].
        t: times.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: a name.
        options: of the method.
        event_fn: as for `odeint`.
        adjoint_rtol: without effect.
        adjoint_atol: without effect.
        adjoint_method: without effect.
        adjoint_options: without effect.
        adjoint_params: the tensors beside y0 and t that get gradients, and no others; None: the module's parameters.
            If ``func`` or ``event_fn`` then reads another tensor that needs a gradient, which torchdiffeq would leave
            without one, a warning says so and all steps are kept in memory, so that no gradient is missing.
        backend: as for `odeint`.

    Returns:
        as `odeint`.

    Raises:
        ValueError: also: ``adjoint_params`` or ``adjoint_options`` are needed and missing.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise ValueError(f"adjoint_params: expected them with a func that is no module, got {type(func).__name__}")
    kind = Method.of(method)
    if _foreign(kind, y0, backend):
        keep = {"rtol": rtol, "atol": atol, "method": method, "options": options, "adjoint_params": adjoint_params}
        keep |= {"adjoint_rtol": adjoint_rtol, "adjoint_atol": adjoint_atol}
        keep |= {"adjoint_method": adjoint_method, "adjoint_options": adjoint_options}
        return _theirs("odeint_adjoint", func, y0, t, event_fn, **keep)
    Method.of(adjoint_method)
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise ValueError("adjoint_options: expected them with options and another adjoint_method, got None")
    problem = Problem.of(func, y0, t, rtol, atol, kind, options)
    if torch.is_grad_enabled():
        problem = problem.declaring(None if adjoint_params is None else tuple(adjoint_params), event_fn)
    return problem.until(event_fn) if event_fn is not None else problem.states()


@apart
def odeint_event(
    func: Callable[..., Any],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Integrate until a function of the solution changes its sign; differentiable, the time of the event too.

    Args:
        func: as for `odeint`.
        y0: state at t0.
        t0: start, a tensor of one element.
        event_fn: maps (t, y) to a tensor; of several elements the first to change its sign counts. Where one is zero at
            the start, the event is there.
        reverse_time: whether to go backward in time.
        odeint_interface: `odeint`, `odeint_adjoint` or something that calls one of them; torchdiffeq's are handed on.
        kwargs: its other arguments.

    Returns:
        the event's time (0-d), and the states at t0 and there, (2, *y0) or a tuple of such.

    Raises:
        OdeintError: no event was met.
        AssertionError: a method on a fixed grid has no ``step_size`` among its options.
    """
    home = odeint_interface
    while isinstance(home, partial):
        home = home.func
    if getattr(home, "__module__", "").startswith("torchdiffeq"):
        import torchdiffeq

        given = {"event_fn": event_fn, "reverse_time": reverse_time, "odeint_interface": odeint_interface}
        return torchdiffeq.odeint_event(func, y0, t0, **given, **kwargs)
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


@apart
def odeint_dense(
    func: Callable[..., Any],
    y0: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Tensor]:
    """Integrate from t0 to t1 and return the solution as a function of time.

    Args:
        func: as for `odeint`.
        y0: state at t0, a tensor.
        t0: start.
        t1: end.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: a name of an adaptive method that the core has.
        options: of the method.

    Returns:
        a function of times, 0-d or (t), in the span.
    """
    require(isinstance(y0, Tensor), f"y0: expected a tensor, got {type(y0).__name__}")
    kind = Method.of(method)
    require(kind.stepper is not None and kind.adaptive, f"method: expected an adaptive one of the core, got {method!r}")
    t = torch.stack([torch.as_tensor(t0), torch.as_tensor(t1)]).to(torch.as_tensor(t0))
    return Problem.of(func, y0, t, rtol, atol, kind, options).adaptive({})


def _foreign(kind: Method, y0: Any, backend: str) -> bool:
    """Whether torchdiffeq's own solvers are to run."""
    if backend not in ("sciml", "torchdiffeq"):
        raise ValueError(f"backend: expected 'sciml' or 'torchdiffeq', got {backend!r}")
    if backend == "torchdiffeq" or kind.stepper is None:
        return True
    return any(getattr(y, "dtype", None) in HALF for y in (y0 if isinstance(y0, tuple) else (y0,)))


def _theirs(name: str, func: Any, y0: Any, t: Any, event_fn: Any, **kwargs: Any) -> Any:
    import torchdiffeq

    if event_fn is None:
        return getattr(torchdiffeq, name)(func, y0, t, **kwargs)
    _two(t)
    interface = getattr(torchdiffeq, name)
    back = bool(t[0] > t[1])
    return torchdiffeq.odeint_event(
        func, y0, t[0], event_fn=event_fn, reverse_time=back, odeint_interface=interface, **kwargs
    )


def _two(t: Tensor) -> None:
    if len(t) != 2:
        raise ValueError(f"t: expected two times with event_fn, got {len(t)}")
