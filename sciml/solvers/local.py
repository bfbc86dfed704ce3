"""One step of a solver from a given state, and what its estimates say there."""

from typing import Any

import torch
from torch import Tensor

from sciml.solvers.arguments import check_args, check_state, span
from sciml.solvers.arithmetic import TENSORS, Arithmetic
from sciml.solvers.control import PID
from sciml.solvers.expect import expect
from sciml.solvers.explicit import Tsit5
from sciml.solvers.heuristics import Heuristic
from sciml.solvers.layout import Layout, PackedTerm
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.march import March, Segment
from sciml.solvers.path import Path
from sciml.solvers.solve import Solution, Solver
from sciml.solvers.state import Const
from sciml.solvers.stochastic import check_noise
from sciml.solvers.term import as_term, refuse_changing
from sciml.typing import State, Time


def local_heuristic(
    heuristic: Heuristic,
    term: Any,
    t: Time,
    y: State,
    solver: Solver | None = None,
    *,
    t1: Time | None = None,
    h: Time | None = None,
    args: tuple[Tensor, ...] = (),
    path: Path | None = None,
) -> Tensor:
    """What a heuristic says of one step from (t, y): of the solver's automatic first size, or of a given one.

    Times and state count as constants: gradients flow through this step to the parameters of the term and to ``args``
    only, whatever the solver's adjoint, which is not used, so that it serves beside any solve of any library. With an
    automatic size it costs as many evaluations as a step and two more, with a given one as a step and one more.

    Args:
        heuristic: what to read, e.g. `ErrorEstimate`.
        term: as of `solve`.
        t: start of the step; a number or 0-d tensor, or (b) with lanes "each".
        y: state there.
        solver: stepper, controller and lanes; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        t1: a time that the step does not pass, where its size is automatic.
        h: its size, where it is given; exactly one of t1 and h is expected. The first size of a stochastic equation is
            a sixteenth of what is left until t1, whatever the tolerances.
        args: tensors handed to the term.
        path: what drives a stochastic equation, from t to t1 or over the step: another one than the path of the solve.

    Returns:
        The heuristic's value (l) for this step.

    Raises:
        ValueError: an argument does not fit.

    Reference:
        A. Pal, A. Edelman, C. Rackauckas, Locally regularized neural differential equations: some black boxes were
        meant to remain closed!, ICML 2023, arXiv:2303.02262.

    Example:
        >>> import torch
        >>> from sciml.solvers import ErrorEstimate, local_heuristic
        >>> rate = torch.tensor(1.0, requires_grad=True)
        >>> value = local_heuristic(ErrorEstimate(), lambda t, y: -rate * y, 0.3, torch.ones(2), t1=1.0)
        >>> value.backward()
        >>> bool(rate.grad > 0)
        True
    """
    expect("heuristic", heuristic, Heuristic, "a Heuristic")
    if (t1 is None) == (h is None):
        raise ValueError(f"t1, h: expected exactly one of them, got t1={t1} and h={h}")
    solver = solver or Solver()
    controller = solver.controller or PID()
    stepper, bound = (solver.stepper or Tsit5()).within(controller), as_term(term)
    if h is None and not controller.adaptive:
        raise ValueError(f"t1: {type(controller).__name__} has no first size of its own; expected h, or PID")
    if reason := heuristic.refusal(stepper, controller):
        raise ValueError(f"heuristic: {reason}")
    refuse_changing(bound)
    check_noise(bound, stepper, path, y)
    check_args(args, bound)
    if not isinstance(y, Tensor):
        layout = Layout.of(y, solver.lanes)
        bound, y = PackedTerm(bound, layout), layout.pack(y)
    check_state(y, solver.lanes)
    controller.fits(y)
    y = y.detach()
    last = t + h if h is not None else t1 if t1 is not None else t
    start, end = (x.detach() for x in span(t, last, y, solver.lanes))
    stops = torch.ones(1, dtype=start.dtype, device=start.device)
    if path is not None:
        path = path.within(stepper, PID(), start, end, y, solver.lanes)  # for a step that is on no grid
    c = Const(start, end, stops, args, path.tensors() if path else (), stepper=stepper.constants(start, y))
    march = March(bound, stepper, controller, solver.lanes, path=path)
    zero = torch.zeros_like(start)
    xp = _books(march)
    theta0, theta1, carry = xp.number(zero, zero), xp.number(zero + 1, zero), None
    with torch.autocast(y.device.type, enabled=False):  # as in `solve`
        if h is None:
            first = march.start(c, y, xp)
            theta1, carry = first.dtheta, first.carry
        theta0, theta1 = (xp.tensor(theta, start) for theta in (theta0, theta1))
        segment, *_ = march.segment(c, theta0, theta1, y, carry, zero.long())
        return heuristic.emit(segment, None)


def step_again(heuristic: Heuristic, solution: Solution, theta0: Tensor, theta1: Tensor, y: Tensor) -> Tensor:
    """What a heuristic says of a step of a solution that is taken again, on the path of the solve.

    Times and state count as constants, as in `local_heuristic`.

    Args:
        heuristic: what to read.
        solution: the solution.
        theta0: start of the step as a fraction of the span (l).
        theta1: its end (l).
        y: state at its start.

    Returns:
        The heuristic's value (l) for this step.
    """
    return heuristic.emit(_again(solution, theta0, theta1, y), None)


@torch.no_grad()
def state_within(solution: Solution, theta0: Tensor, theta: Tensor, y: Tensor) -> Tensor:
    """The state within a step of a solution that has no dense output, by a shorter step on the path of the solve.

    Args:
        solution: the solution.
        theta0: start of the step as a fraction of the span (l).
        theta: the place within it (l).
        y: state at its start.
    """
    return _again(solution, theta0, theta, y).y1


def _again(solution: Solution, theta0: Tensor, theta1: Tensor, y: Tensor) -> Segment:
    march, c = solution._task.march, solution._task.const
    c = c._replace(t0=c.t0.detach(), t1=c.t1.detach())
    xp = _books(march)
    theta0, theta1 = (xp.tensor(xp.number(x, x), c.t0) for x in (theta0.detach(), theta1.detach()))
    with torch.autocast(y.device.type, enabled=False):
        segment, *_ = march.segment(c, theta0, theta1, y.detach(), None, solution.mesh.count)
    return segment


def _books(march: March) -> Arithmetic:
    """The arithmetic of one step: within transforms of torch.func tensors, so that samples have steps of their own."""
    return TENSORS._replace(tensor=lambda theta, like: theta.detach()) if transformed() else march.host
