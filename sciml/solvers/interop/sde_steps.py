"""The steps of torchsde's solvers: grids that are added up as it adds them up, and adaptive ones with a least size."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.arithmetic import Arithmetic
from sciml.solvers.brownian import MOST
from sciml.solvers.control import PID, Decision, Grid
from sciml.typing import Number

LEAST = 1e-7  # what torchsde divides errors by at least


@dataclass(frozen=True)
class Nodes(Grid):
    """A grid whose last step is taken even where it is round-off, since torchsde takes it."""

    def thetas(self, t0: Tensor, t1: Tensor) -> Tensor:
        """As of any grid; the last two differ."""
        found = super().thetas(t0, t1)
        if len(found) > 1 and bool(found[-2] == found[-1]):
            found[-2] = 1 - 2.0**-53
        return found


def nodes(ts: Tensor, dt: Any) -> Tensor:
    """The ends of torchsde's steps, float64: added up one after the other as it does, in the dtype of the times."""
    kind = torch.result_type(ts[0], dt)
    kind = kind if kind.is_floating_point else torch.get_default_dtype()
    start, end = ts[0].to(kind).item(), ts[-1].to(kind).item()
    size = torch.as_tensor(dt, dtype=kind).item()
    far = torch.tensor(max(abs(start), abs(end)), dtype=kind)
    if bool(far - size == far):
        raise ValueError(f"dt: expected steps that move a time of {kind}, got {size:g}")
    count, sums = int((end - start) / size) + 2, torch.tensor([start], dtype=kind)
    while sums[-1] < end:  # once, but for round-off
        more = torch.cat([sums[-1:], torch.full((count,), size, dtype=kind)]).numpy()
        sums = torch.cat([sums, torch.from_numpy(np.add.accumulate(more)[1:])])
    inner = sums[sums < end].double()
    return torch.cat([inner, torch.tensor([end], dtype=torch.float64)])


@dataclass(frozen=True)
class Floored(PID):
    """A controller that accepts what it would have to repeat with a step below ``least``, a fraction of the span."""

    least: float = 0.0

    def decide(
        self, error: Number, dtheta: Number, used: Number, memory: tuple[Number, ...], order: float, xp: Arithmetic
    ) -> Decision:
        """The verdict on a trial; torchsde's warning where the least size is met."""
        verdict = super().decide(error, dtheta, used, memory, order, xp)
        if verdict.accept or verdict.dtheta >= self.least or not xp.isfinite(error):
            return verdict
        warnings.warn("Hitting minimum allowed step size in adaptive time-stepping.", stacklevel=2)
        return verdict._replace(accept=True, dtheta=self.least)


class Adaptive:
    """What a call of torchsde's says of adaptive steps.

    Args:
        ts: times (t).
        dt: first size.
        rtol: relative tolerance.
        atol: absolute tolerance.
        dt_min: least size. Steps are at least the next power of two of the span, but for those that times cut off.
    """

    def __init__(self, ts: Tensor, dt: Any, rtol: Any, atol: Any, dt_min: Any):
        shares = ts.double().sub(ts[0].double()).div((ts[-1] - ts[0]).double())
        level = math.floor(-math.log2(max(float(dt_min) / float(ts[-1] - ts[0]), 2.0 / MOST)))
        least = 2.0 ** -max(level, 0)
        closest = float(shares.diff().min())
        if closest < 4 / MOST:
            raise ValueError(
                f"ts: expected times at least {4 / MOST:.0e} of the span apart with adaptive=True, got {closest:.0e}"
            )
        # two cells for a step of two halves, one for the places between any two times
        self.cells = max(round(2 / least), 1 << math.ceil(-math.log2(closest)) + 1)
        self.controller = Floored(rtol, _at_least(atol), float(dt), least=least)

    @property
    def max_steps(self) -> int:
        """More trials than there can be."""
        return 4 * self.cells


def _at_least(atol: Any) -> Any:
    return atol.clamp_min(LEAST) if isinstance(atol, Tensor) else max(atol, LEAST)
