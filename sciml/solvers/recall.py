"""The last compiled solve, which the next one may repeat from another initial state.

Checking and packing the arguments of a solve takes as long as several compiled steps of a small state. What came out of
it serves again where nothing but the values of the initial state has changed. Only the last one is kept, with its term.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.frame import key_of
from sciml.solvers.term import FunctionTerm, refuse_changing
from sciml.typing import Time


class Last(NamedTuple):
    """A solve of a plain function between times that are numbers."""

    term: Any
    solver: Any
    save_at: Any
    version: int  # of the save times
    times: tuple[Time, Time]
    kind: tuple[torch.Size, torch.dtype, torch.device]  # of the initial state
    task: Any  # with an empty state


_last: Last | None = None


def recalled(
    make: Callable[[], Any], term: Any, y0: Any, t0: Time, t1: Time, solver: Any, save_at: Any, *others: Any
) -> Any:
    """The task of a solve: that of the last one if this one repeats it, or a new one.

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
    global _last
    numbers = isinstance(t0, float | int) and isinstance(t1, float | int)
    left_out = all(x is None or (type(x) is tuple and not x) for x in others)
    if not (solver.compile and numbers and left_out and type(y0) is Tensor):
        return make()
    version = save_at._version if isinstance(save_at, Tensor) and not save_at.is_inference() else 0
    kind, last = (y0.shape, y0.dtype, y0.device), _last
    if (
        last is not None
        and last.term is term
        and last.solver is solver
        and last.save_at is save_at
        and (last.version, last.times, last.kind) == (version, (t0, t1), kind)
    ):
        refuse_changing(last.task.march.term)
        return replace(last.task, y0=y0)
    task = make()
    constant = key_of(solver, task.march.controller, t0, t1, y0, save_at) is not None
    if constant and type(task.march.term) is FunctionTerm:
        _last = Last(term, solver, save_at, version, (t0, t1), kind, replace(task, y0=y0.new_empty(0)))
    return task


def forget() -> None:
    """Drop it."""
    global _last
    _last = None
