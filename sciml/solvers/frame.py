"""What a solve needs beside its term and the values of its state: times, stops, save times, coefficients.

Frames of plain numbers are kept: making one takes as long as several compiled steps of a small state.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sciml.solvers.control import PID, Controller, Grid
from sciml.solvers.fold import SaveAt
from sciml.solvers.stepper import Stepper
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
        cls, solver: Any, stepper: Stepper, controller: Controller, t0: Time, t1: Time, y0: Tensor, at: Any
    ) -> "Frame":
        """The frame of a solve, made or found.

        Raises:
            ValueError: a time that is none, or a grid that does not fit.
        """
        key = _key(solver, controller, t0, t1, y0, at)
        found = None if key is None else _kept.get(key)
        if found is not None:
            return found[0]
        frame = cls._made(solver, stepper, controller, t0, t1, y0, at)
        if key is not None and type(frame.t0) is Tensor and not frame.t0.is_inference():
            if len(_kept) == KEPT:
                _kept.pop(next(iter(_kept)))
            _kept[key] = frame, at  # whose id is in the key
        return frame

    @classmethod
    def _made(
        cls, solver: Any, stepper: Stepper, controller: Controller, t0: Time, t1: Time, y0: Tensor, at: Any
    ) -> "Frame":
        start, end = times(t0, t1, y0, solver.lanes)
        fixed, empty = isinstance(controller, Grid), torch.equal(start, end)
        grid = torch.ones(1, dtype=start.dtype, device=start.device)
        if not fixed or not empty:
            grid = controller.thetas(start, end)
            if fixed and grid.shape[-1] > solver.max_steps:
                raise ValueError(f"max_steps: expected at least the grid's {grid.shape[-1]}, got {solver.max_steps}")
        edges = controller.edges(start, end)
        bare = cls(start, end, grid, edges, stepper.constants(start, y0), None, (), empty)
        if at is None:
            return bare
        saves = SaveAt(bare.save_times(at, solver.lanes, stepper))
        return bare._replace(saves=saves, saved=saves.prepare(start, end, y0))

    def save_times(self, save_at: Any, lanes: Lanes, stepper: Stepper) -> Tensor:
        """Save times on the control device; those of a stepper without dense output must lie on its grid."""
        t0, t1, grid = self.t0, self.t1, self.grid
        ts = save_at if isinstance(save_at, Tensor) else torch.as_tensor(save_at, dtype=torch.float64)
        batch = tuple(t0.shape)
        if ts.ndim == 0 or ts.ndim > 1 + t0.ndim or (ts.ndim == 2 and ts.shape[:1] != batch):
            each = f" or ({batch[0]}, t)" if lanes == "each" else ""
            raise ValueError(f"save_at: expected times of shape (t){each}, got shape {tuple(ts.shape)}")
        ts = ts.to(t0.device)
        if stepper.dense:
            return ts
        name = type(stepper).__name__
        if ts.requires_grad:
            raise ValueError(f"save_at: {name} has no dense output, so its save times cannot carry gradients")
        nodes = torch.cat([torch.zeros_like(grid[..., :1]), grid], -1)
        span = (t1 - t0)[..., None]
        theta = (ts.to(torch.float64) - t0[..., None]) / span
        nearest = nodes[(theta * (nodes.shape[-1] - 1)).round().long().clamp(0, nodes.shape[-1] - 1)]
        off = (theta - nearest).abs() > 1e-6 / (nodes.shape[-1] - 1)
        if bool(off.any()):
            step = (span / (nodes.shape[-1] - 1)).reshape(-1)[0].item()
            raise ValueError(
                f"save_at: {name} has no dense output, so expected multiples of its step {step:g} after t0, "
                f"got {ts.expand(theta.shape)[off][0].item():g}"
            )
        return t0[..., None] + span * nearest


def _key(solver: Any, controller: Controller, t0: Time, t1: Time, y0: Tensor, at: Any) -> Any:
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


def times(t0: Time, t1: Time, y0: Tensor, lanes: Lanes) -> tuple[Tensor, Tensor]:
    """Start and end (l), float64; for joint lanes on the CPU, where the march reads them without waiting.

    Raises:
        ValueError: a time that is not finite, or of a shape that does not fit.
    """
    shape = () if lanes == "joint" else y0.shape[:1]
    device = torch.device("cpu") if lanes == "joint" else y0.device
    ends = []
    for name, given in (("t0", t0), ("t1", t1)):
        number = isinstance(given, float | int)
        t = torch.scalar_tensor(given, dtype=torch.float64) if number else torch.as_tensor(given)
        t = t.to(device=device, dtype=torch.float64)
        if t.shape not in ((), shape):
            raise ValueError(
                f"{name}: expected a number or a tensor of shape {tuple(shape)}, got shape {tuple(t.shape)}"
            )
        if not (math.isfinite(given) if number else bool(t.isfinite().all())):
            raise ValueError(f"{name}: expected a finite time, got {given}")
        ends.append(t.expand(shape).contiguous() if number else t.expand(shape))
    return ends[0], ends[1]
