"""What a march carries: its constants, its state and what it keeps of a trial."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.typing import Args, Number


class Const(NamedTuple):
    """What stays the same during a march; every tensor in it may be a differentiable input."""

    t0: Tensor  # (l) float64
    t1: Tensor  # (l) float64
    stops: Tensor  # (s) or (l, s) thetas that a step may not pass, increasing, the last one 1
    args: Args = ()
    path: tuple[Tensor, ...] = ()
    folds: tuple[tuple[Tensor, ...], ...] = ()  # what each fold made in `prepare`
    stepper: tuple[Tensor, ...] = ()  # its coefficients
    edges: tuple[Tensor, ...] = ()  # none, or one: thetas (k) or (l, k) of discontinuities of the field

    def leaves(self) -> tuple[Tensor, ...]:
        """All its tensors in a fixed order."""
        return (self.t0, self.t1, self.stops, *self.args, *self.path, *chain(*self.folds), *self.stepper, *self.edges)

    def with_leaves(self, leaves: Sequence[Tensor]) -> "Const":
        """The same structure of other tensors."""
        rest = iter(leaves)
        take = lambda like: tuple(next(rest) for _ in like)  # noqa: E731
        t0, t1, stops = next(rest), next(rest), next(rest)
        args, path, folds = take(self.args), take(self.path), tuple(map(take, self.folds))
        return Const(t0, t1, stops, args, path, folds, take(self.stepper), take(self.edges))


def rows_of(args: Args, rows: Tensor, which: Sequence[int]) -> Args:
    """The args with the rows of some of the samples where ``which`` says that they have one for each."""
    return tuple(x.index_select(0, rows.to(x.device)) if i in which else x for i, x in enumerate(args))


class State(NamedTuple):
    """Where every lane stands: the state and the books, which an eager march keeps in numbers on the host."""

    theta: Number  # (l) float64, fraction of the span
    dtheta: Number  # (l) float64, the size to try next
    y: Tensor
    carry: tuple[Tensor, ...]  # the stepper's
    memory: tuple[Number, ...]  # the controller's, (l) each
    marks: tuple[Number, ...]  # value of each event function (l), at the start just after it
    trials: Number  # (l) int64
    accepted: Number  # (l) int64
    status: Number  # (l) int64


def with_tensors(s: State, like: Tensor) -> State:
    """The same state with books of tensors (l), where they are numbers on the host."""
    sizes = np.array([s.theta, s.dtheta, *s.memory, *s.marks], dtype=np.float64)
    theta, dtheta, *rest = torch.from_numpy(sizes).to(like.device).unbind()
    counts = torch.from_numpy(np.array(s[-3:], dtype=np.int64)).to(like.device).unbind()
    memory, marks = tuple(rest[: len(s.memory)]), tuple(rest[len(s.memory) :])
    return State(theta, dtheta, s.y, s.carry, memory, marks, *counts)


def with_numbers(s: State, number: Callable[[Tensor, Any], Number]) -> State:
    """The same state with books of the numbers that an arithmetic makes of tensors (l)."""
    theta, dtheta, *counts = (number(x, x) for x in (s.theta, s.dtheta, *s[-3:]))
    memory, marks = (tuple(number(x, x) for x in xs) for xs in (s.memory, s.marks))
    return State(theta, dtheta, s.y, s.carry, memory, marks, *counts)


def lanes_of(s: State, running: np.ndarray, rows: Tensor) -> State:
    """The state of some of the lanes, with books of arrays; both arguments are their numbers."""
    pick = lambda x: x[running]  # noqa: E731
    y, *carry = (x.index_select(0, rows) for x in (s.y, *s.carry))
    memory, marks = (tuple(map(pick, books)) for books in (s.memory, s.marks))
    return State(pick(s.theta), pick(s.dtheta), y, tuple(carry), memory, marks, *map(pick, s[-3:]))


def with_lanes(s: State, few: State, running: np.ndarray, rows: Tensor) -> State:
    """A state with that of some of its lanes put in."""

    def put(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[running] = y
        return x

    y, *carry = (x.index_copy(0, rows, z) for x, z in zip((s.y, *s.carry), (few.y, *few.carry), strict=True))
    memory, marks = (tuple(map(put, *books)) for books in ((s.memory, few.memory), (s.marks, few.marks)))
    theta, dtheta = put(s.theta, few.theta), put(s.dtheta, few.dtheta)
    return State(theta, dtheta, y, tuple(carry), memory, marks, *map(put, s[-3:], few[-3:]))


class Row(NamedTuple):
    """What is kept of one trial."""

    theta: Tensor  # (l) where it started
    taken: Tensor  # (l) bool
    y: Tensor  # the state there
    emits: tuple[Any, ...]  # by fold
