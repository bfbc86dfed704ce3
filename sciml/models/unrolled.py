"""A solve on a grid as plain code, for `torch.export`."""

from typing import Any

import torch
from torch import Tensor

from sciml.solvers.control import Grid
from sciml.solvers.explicit import Tsit5
from sciml.solvers.march import March
from sciml.solvers.solve import Solver
from sciml.solvers.state import Const
from sciml.solvers.term import as_term, real_dtype
from sciml.typing import Args


def unrolled(
    term: Any, y0: Tensor, t0: Tensor, t1: Tensor, solver: Solver, ts: Tensor | None = None, args: Args = ()
) -> Tensor:
    """The steps of a grid one after the other, without the march, which reads values that a trace does not have.

    Args:
        term: as of `solve`.
        y0: initial state (b, ..).
        t0: start (l), float64.
        t1: end (l), float64.
        solver: with ``Grid(n=...)``.
        ts: increasing times to save at, (t) or (b, t); None gives the final state.
        args: tensors handed to the term.

    Raises:
        ValueError: if the number of steps is not fixed.
    """
    grid, stepper, each = solver.controller, solver.stepper or Tsit5(), solver.lanes == "each"
    if not isinstance(grid, Grid) or grid.n is None:
        found = f"Grid({'ts' if grid.dt is None else 'dt'}=...)" if isinstance(grid, Grid) else "adaptive steps"
        raise ValueError(
            f"solver: an export needs a fixed number of steps, expected Grid(n=...), got {found}; a key given to "
            "`sciml export` overrides the run's"
        )
    march = March(as_term(term), stepper, grid, solver.lanes)
    const = Const(t0, t1, grid.thetas(t0, t1), args, stepper=stepper.constants(t0, y0), edges=grid.edges(t0, t1))
    y, carry, saved = y0, None, y0.unsqueeze(int(each))
    for j in range(grid.n):
        theta0, theta1 = (torch.full_like(t0, i / grid.n) for i in (j, j + 1))
        segment, y, carry, _ = march.segment(const, theta0, theta1, y, carry, j)
        if ts is not None:
            s = (ts - t0[..., None]) / (t1 - t0)[..., None] * grid.n - j  # (l, t): from 0 to 1 within this step
            dense = segment.dense(s.clamp(0, 1).to(y.device, real_dtype(y)))
            later = s.reshape(*s.shape, *[1] * (y.ndim - each)) > 0
            saved = torch.where(later.to(y.device), dense, saved)
    return y if ts is None else saved
