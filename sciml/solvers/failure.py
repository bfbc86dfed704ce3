"""Says which lanes of a solve failed, where and why."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml.errors import CAUSES, SolveError, Status
from sciml.solvers.adjoint import Discrete
from sciml.solvers.control import FLOOR
from sciml.solvers.explicit import RungeKutta
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.march import March
from sciml.solvers.state import Const, State
from sciml.solvers.transforms import plain

if TYPE_CHECKING:
    from sciml.solvers.solve import Solver

SHOWN = 5
STIFF = ", or take solver 'auto' or Kvaerno5 if the equation is stiff"


def raise_failures(march: March, c: Const, end: State) -> None:
    """Raise where a lane failed.

    Raises:
        SolveError: naming samples, times and causes.
    """
    status = end.status if end.status.ndim == 0 or end.status.numel() == 0 else end.status.amax()
    if status.numel() == 0 or status.item() < Status.MAX_STEPS.value:
        return
    failed = (end.status >= Status.MAX_STEPS.value).reshape(-1)
    joint = march.lanes == "joint"
    lanes = failed.nonzero().reshape(-1).tolist()
    status = [Status(value) for value in end.status.reshape(-1)[failed].tolist()]
    times = plain((c.t0 + (c.t1 - c.t0) * end.theta).detach()).reshape(-1)[failed].tolist()
    finest = 0.0 if march.path is None else march.path.finest
    cells = "two cells" if march.stepper.halves else "a cell"
    least = f"{finest:g}, {cells} of the path," if finest > FLOOR else "2^-48"
    lines = []
    for lane, why, t in list(zip(lanes, status, times, strict=True))[:SHOWN]:
        where = f"at t={t:g}" if joint else f"sample {lane} at t={t:g}"
        advice = STIFF if why is Status.MAX_STEPS and isinstance(march.stepper, RungeKutta) else ""
        cause = CAUSES[why].format(max_steps=march.max_steps, least=least)
        lines.append(f"{where}: {cause}{advice}{_culprit(march, c, end, lane, why)}")
    if len(lanes) > SHOWN:
        lines.append(f"and {len(lanes) - SHOWN} more")
    head = "solve failed" if joint else f"solve failed in {len(lanes)} of {len(failed)} samples"
    raise SolveError(
        f"{head} {'; '.join(lines)}" if joint else f"{head}: {'; '.join(lines)}", status, [] if joint else lanes, times
    )


@torch.no_grad()
def _culprit(march: March, c: Const, end: State, lane: int, why: Status) -> str:
    """The component that the step size or the finiteness failed on, from one more trial."""
    if transformed() or why not in (Status.DT_UNDERFLOW, Status.NON_FINITE) or end.y.ndim == int(march.lanes == "each"):
        return ""
    stop = march.bounds(c)[0](end.theta)
    theta1 = torch.where(end.dtheta.isfinite() & (end.dtheta > 0), end.theta + end.dtheta, stop)
    segment, y1, *_ = march.segment(c, end.theta, theta1, end.y, None, end.accepted)
    pick = lambda x: x if march.lanes == "joint" else x[lane]  # noqa: E731
    bad = _badness(segment.error, y1, why)
    if bad is None:
        return ""
    worst = torch.unravel_index(pick(bad).argmax(), pick(bad).shape)
    return f" (component {tuple(int(i) for i in worst)} of the state)"


def _badness(error: Tensor | None, y1: Tensor, why: Status) -> Tensor | None:
    if why is Status.NON_FINITE:
        return (~y1.isfinite()).to(torch.uint8)
    return None if error is None else error.abs().nan_to_num(nan=torch.inf)


def refuse_transforms(cause: RuntimeError) -> None:
    """Say of an error within a transform of torch.func what to take instead, besides what it says itself.

    Raises:
        RuntimeError: where there is such a transform, but for what has a type of its own.
    """
    if type(cause) is RuntimeError and transformed():
        stack = torch._C._functorch.get_interpreter_stack() or ()
        names = " of ".join(f"torch.func.{each.key().name.lower()}" for each in stack)
        raise RuntimeError(
            f"{cause}; this solve does not go through {names}: take torch.autograd.grad or "
            "torch.autograd.functional.jacobian for derivatives, and a batch with lanes='each' for vmap"
        ) from cause


def eager(solver: "Solver", events: Any) -> "Solver":
    """The solver, within transforms of torch.func without a compiler and with a graph, which these can follow.

    Raises:
        ValueError: its adjoint would give other derivatives, or there are events.
    """
    if not transformed():
        return solver
    if events:
        raise ValueError(
            "events: transforms of torch.func do not go through them; take torch.autograd.grad for derivatives, and a "
            "batch with lanes='each' for vmap"
        )
    if not isinstance(solver.gradient, Discrete):
        raise ValueError(
            f"adjoint: transforms of torch.func differentiate the discrete solution, expected Discrete(), got "
            f"{type(solver.gradient).__name__}()"
        )
    return replace(solver, compile=None, fast_math=False, adjoint=Discrete("graph"))


def tangent(x: Tensor) -> bool:
    """Whether a tensor has a forward-mode derivative."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def refuse_tangents(*times: Tensor) -> None:
    """Refuse times whose forward-mode derivative a march that reads them as numbers would drop.

    Raises:
        ValueError: one of them has a tangent.
    """
    if any(map(tangent, times)):
        raise ValueError(
            "t0, t1, ts, jump_ts: joint lanes have no forward-mode derivative by times; expected lanes='each', or "
            "gradients by torch.autograd.grad"
        )
