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
    from sciml.solvers.march import Segment

BESIDE = 8  # units in the last place of time between a discontinuity and where the field is evaluated beside it

Jump = Callable[[Tensor, Any, Tensor, Args], tuple[Any, Tensor]]
"""(t, y, key, args) -> (y, changed): acts after an accepted step; key (l) counts the lane's accepted steps.

``changed`` (l) says where the state is another one, so that what the stepper keeps of it has to be computed anew.
"""


def jumped(segment: "Segment", fired: Tensor | None, carry: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The state and the stepper's carry after a step with the resets of the events that ``fired`` and the jumps."""
    march, c, (t, h, _), y = segment.march, segment.const, segment.interval, segment.y1
    field, t, changed = march.field(c), t + h, None
    for turn in turns(march, c, t, y, fired) if fired is not None else ():
        if turn.after is not None:
            y, changed = turn.after, turn.hit if changed is None else changed | turn.hit
    for jump in march.jumps:
        new, marked = jump(field.clock(t, y), y, torch.as_tensor(segment.key), c.args)
        if new.shape != y.shape or new.dtype != y.dtype or marked.shape != c.t0.shape:
            raise ValueError(
                f"jumps: expected a state of shape {tuple(y.shape)} of {y.dtype} and changed of shape "
                f"{tuple(c.t0.shape)}, got {tuple(new.shape)} of {new.dtype} and {tuple(marked.shape)}"
            )
        if isinstance(segment.theta0, Tensor):  # a lane at rest does not jump
            moves = segment.theta0 != segment.theta1
            new, marked = torch.where(expand(moves.to(y.device), y), new, y), marked & moves.to(marked.device)
        y, changed = new, marked if changed is None else changed.to(marked.device) | marked
    if not carry or changed is None:
        return y, carry
    fresh = march.stepper.init(field, t, y, h)
    again = changed.to(y.device)
    return y, tuple(torch.where(expand(again, new), new, old) for new, old in zip(fresh, carry, strict=True))


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
