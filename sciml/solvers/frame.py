"""What a solve needs beside its term and the values of its state: times, stops, save times, coefficients.

Frames of plain numbers are kept: making one takes as long as several compiled steps of a small state.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sciml.solvers.arguments import save_times, span, stops_at
from sciml.solvers.control import PID, Controller, Grid
from sciml.solvers.failure import refuse_tangents
from sciml.solvers.fold import SaveAt
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.stepper import Stepper
from sciml.solvers.transforms import holds
from sciml.typing import Lanes, Time

KEPT = 32
_kept: dict[Any, tuple["Frame", Any]] = {}


class Frame(NamedTuple):
    """Tensors that are never written to, no two of them views of one memory."""

    t0: Tensor  # (l) float64
    t1: Tensor  # (l)
    grid: Tensor  # (s) or (l, s) thetas of the controller's stops
    edges: tuple[Tensor, ...]
    stepper: tuple[Tensor, ...]  # its coefficients
    saves: SaveAt | None
    saved: tuple[Tensor, ...]  # what its steps read of it
    empty: bool  # whether all times are equal

    @classmethod
    def of(
        cls,
        solver: Any,
        stepper: Stepper,
        controller: Controller,
        t0: Time,
        t1: Time,
        y0: Tensor,
        at: Any,
        nodes: Tensor | None = None,
    ) -> "Frame":
        """The frame of a solve, made or found; ``nodes`` (n) or (l, n) are those of a mesh that is given.

        Raises:
            ValueError: a time that is none, or a grid that does not fit.
        """
        free = controller.adaptive and not stepper.dense  # steps end at save times
        if free and nodes is not None:
            bare = cls._made(solver, stepper, controller, t0, t1, y0, None)._replace(grid=nodes)
            return bare if at is None else bare._saving(at, solver.lanes, stepper, y0)
        key = key_of(solver, controller, t0, t1, y0, at)
        try:
            found = _kept.get(key)
        except TypeError:  # a stepper that cannot be hashed
            key = found = None
        if found is not None:
            return found[0]
        frame = cls._made(solver, stepper, controller, t0, t1, y0, at)
        if key is not None and type(frame.t0) is Tensor and not (frame.t0.is_inference() or transformed()):
            if len(_kept) == KEPT:
                _kept.pop(next(iter(_kept)))
            _kept[key] = frame, at  # whose id is in the key
        return frame

    @classmethod
    def _made(
        cls, solver: Any, stepper: Stepper, controller: Controller, t0: Time, t1: Time, y0: Tensor, at: Any
    ) -> "Frame":
        start, end = (t.contiguous() for t in span(t0, t1, y0, solver.lanes))
        empty = holds(start == end)
        grid = torch.ones(1, dtype=start.dtype, device=start.device)
        if not (isinstance(controller, Grid) and empty):
            steps = controller.count(start, end) if isinstance(controller, Grid) else 0
            if steps > solver.max_steps:
                raise ValueError(f"max_steps: expected at least the grid's {steps}, got {solver.max_steps}")
            grid = controller.thetas(start, end)
        if at is not None and controller.adaptive and not stepper.dense:
            grid = stops_at(at, solver.lanes, grid, start, end)
        edges = () if empty else controller.edges(start, end)
        if solver.lanes == "joint" and not transformed():
            refuse_tangents(start, end, grid, *edges)
        bare = cls(start, end, grid, edges, stepper.constants(start, y0), None, (), empty)
        return bare if at is None else bare._saving(at, solver.lanes, stepper, y0)

    def _saving(self, at: Any, lanes: Lanes, stepper: Stepper, y0: Tensor) -> "Frame":
        saves = SaveAt(self.save_times(at, lanes, stepper))
        return self._replace(saves=saves, saved=saves.prepare(self.t0, self.t1, y0))

    def save_times(self, save_at: Any, lanes: Lanes, stepper: Stepper) -> Tensor:
        """Save times on the control device; those of a stepper without dense output must lie on its grid."""
        return save_times(save_at, lanes, stepper, self.grid, self.t0, self.t1)


def key_of(solver: Any, controller: Controller, t0: Time, t1: Time, y0: Tensor, at: Any) -> Any:
    """What a frame depends on where all of it can be compared; None otherwise."""
    numbers = isinstance(t0, float | int) and isinstance(t1, float | int)
    constant = at is None or (type(at) is Tensor and not (at.requires_grad or at.is_inference()))
    if not (numbers and constant and type(y0) in (Tensor, nn.Parameter) and type(controller) in (PID, Grid)):
        return None
    if not all(
        value is None or isinstance(value, float | int) or callable(value) for value in vars(controller).values()
    ):
        return None
    version = 0 if at is None else at._version
    return solver, float(t0), float(t1), y0.shape, y0.dtype, y0.device, id(at), version
