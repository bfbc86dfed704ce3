"""Jumps: what changes the state between two steps, and steps that end at a discontinuity of the field."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciml.solvers.event import turns
from sciml.solvers.state import Const
from sciml.solvers.stepper import Interval
from sciml.solvers.term import expand, real_dtype
from sciml.typing import Args, Number

if TYPE_CHECKING:
    from sciml.solvers.march import March, Segment

BESIDE = 8  # units in the last place of time between a discontinuity and where the field is evaluated beside it

Jump = Callable[[Tensor, Any, Tensor, Args], tuple[Any, Tensor]]
"""(t, y, key, args) -> (y, changed): acts after an accepted step; key (l) counts the lane's accepted steps.

``changed`` (l) says where the state is another one, so that what the stepper keeps of it has to be computed anew.
"""


def jumped(
    segment: "Segment", fired: Tensor | None, carry: tuple[Tensor, ...]
) -> tuple["Segment", Tensor, tuple[Tensor, ...]]:
    """The step, and state and carry after the resets of the events that ``fired`` at its end and the jumps."""
    march, c, (t, h, _), y = segment.march, segment.const, segment.interval, segment.y1
    field, t, changed = march.field(c), t + h, None
    if fired is not None:
        segment = segment._replace(turns=turns(march, c, t, y, fired))
    for turn in segment.turns:
        if turn.after is not None:
            y, changed = turn.after, turn.hit if changed is None else changed | turn.hit
    for jump in march.jumps:
        new, marked = _fitting(jump(field.clock(t, y), y, torch.as_tensor(segment.key), c.args), y, c)
        if isinstance(segment.theta0, Tensor):  # a lane at rest does not jump
            moves = segment.theta0 != segment.theta1
            new, marked = torch.where(expand(moves.to(y.device), y), new, y), marked & moves.to(marked.device)
        y, changed = new, marked if changed is None else changed.to(marked.device) | marked
    if not carry or changed is None:
        return segment, y, carry
    fresh = march.stepper.init(field, t, y, h)
    again = changed.to(y.device)
    return segment, y, tuple(torch.where(expand(again, new), new, old) for new, old in zip(fresh, carry, strict=True))


def _fitting(given: Any, y: Tensor, c: Const) -> tuple[Tensor, Tensor]:
    """What a jump gave; refused where it is not a state, and where (l) that is another one."""
    pair = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    new, marked = pair
    if (
        isinstance(new, Tensor)
        and isinstance(marked, Tensor)
        and (new.shape, new.dtype) == (y.shape, y.dtype)
        and (marked.shape, marked.dtype) == (c.t0.shape, torch.bool)
    ):
        return new, marked
    got = (f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in pair)
    raise ValueError(
        f"jumps: expected a state of shape {tuple(y.shape)} of {y.dtype} and changed of shape "
        f"{tuple(c.t0.shape)} of torch.bool, got {' and '.join(got)}"
    )


def beside(interval: Interval, c: Const, theta0: Number, theta1: Number, y: Tensor) -> tuple[Interval, bool | Tensor]:
    """The same step with times just after a discontinuity at its start and just before one at its end.

    Returns:
        the interval, and whether the step starts at a discontinuity: a bool, or (l).
    """
    (edges,) = c.edges
    t, h, scale = interval
    if isinstance(theta0, float):
        listed = edges.tolist()
        first, last = theta0 in listed, theta1 in listed
        if not (first or last):
            return interval, False
    else:
        first, last = ((edges == theta[..., None]).any(-1) for theta in (theta0, theta1))
    width = BESIDE * torch.finfo(real_dtype(y)).eps * torch.maximum(c.t0.abs(), c.t1.abs()).detach()
    width = width * (c.t1 - c.t0).detach().sign()
    shift = width.item() if isinstance(h, float) else width
    return Interval(t + shift * first, h - shift * first - shift * last, scale), first


def pinned(theta: Tensor, times: Tensor) -> Tensor:
    """The ends of steps (n + 1, ...), with the gradient of those that lie at given times (k) or (l, k)."""
    at = theta.movedim(0, -1).contiguous()
    times = times.sort(-1).values.expand(*at.shape[:-1], -1).contiguous()
    place = torch.searchsorted(times.detach(), at.detach()).clamp_max(times.shape[-1] - 1)
    near = times.gather(-1, place)
    return torch.where(near == at, near, at).movedim(-1, 0)


def evaluations(march: "March", c: Const, theta: Tensor, trials: Tensor, chosen: bool) -> Tensor | int:
    """Evaluations of the field after jumps and discontinuities (l), on a mesh that was ``chosen`` or not.

    For joint lanes a trial that was rejected just after a discontinuity is not counted.
    """
    count, starts, first = 0, march.stepper.starts, int(not chosen)
    if march.jumps:
        reads = march.controller.adaptive or march.lanes == "each" or any(fold.stages for fold in march.folds)
        count = starts * trials - (0 if reads and chosen else starts * march.stepper.lean * (theta[-1] == 1))
    if c.edges and march.lanes == "joint":
        count = count + starts * torch.isin(theta[first:-1], c.edges[0]).sum()
    elif c.edges:
        count = count + starts * (trials - first)
    return count
