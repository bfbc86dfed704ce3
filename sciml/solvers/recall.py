"""The last compiled solves, which the next one may repeat from another initial state.

Checking and packing the arguments of a solve takes as long as several compiled steps of a small state. What came out of
it serves again where nothing but the values of the initial state has changed. A few are kept, with their terms.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.frame import key_of
from sciml.solvers.term import FunctionTerm, refuse_changing
from sciml.typing import Time


class Made(NamedTuple):
    """A solve of a plain function between times that are numbers."""

    term: Any
    solver: Any
    save_at: Any
    like: Any  # version of the save times, start and end, kind of the initial state
    task: Any  # with an empty state


KEPT = 4
NUMBER = (float, int)
_kept: deque[Made] = deque(maxlen=KEPT)


def recalled(
    make: Callable[[], Any], term: Any, y0: Any, t0: Time, t1: Time, solver: Any, save_at: Any, *others: Any
) -> Any:
    """The task of a solve: that of one that this one repeats, or a new one.

    Args:
        make: makes a new one.
        term: of `solve`, as all that follow.
        y0: initial state.
        t0: start.
        t1: end.
        solver: the solver.
        save_at: save times.
        others: all other arguments; where one of them is given, the solve is nothing that is kept.

    Raises:
        ValueError: the term is another function at every evaluation by now.
    """
    numbers = isinstance(t0, NUMBER) and isinstance(t1, NUMBER)
    left_out = all(x is None or (type(x) is tuple and not x) for x in others)
    if not (solver.compile and numbers and left_out and type(y0) is Tensor):
        return make()
    version = save_at._version if isinstance(save_at, Tensor) and not save_at.is_inference() else 0
    like = version, (t0, t1), (y0.shape, y0.dtype, y0.device, torch.is_inference_mode_enabled())
    for made in _kept:
        if made.term is term and made.solver is solver and made.save_at is save_at and made.like == like:
            refuse_changing(made.task.march.term)
            return replace(made.task, y0=y0)
    task = make()
    constant = key_of(solver, task.march.controller, t0, t1, y0, save_at) is not None
    if constant and type(task.march.term) is FunctionTerm:
        _kept.append(Made(term, solver, save_at, like, replace(task, y0=y0.new_empty(0))))
    return task


def forget() -> None:
    """Drop them."""
    _kept.clear()
