"""Neural controlled differential equations: series of data drive a state."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sciml.models.neural_ode import Flow
from sciml.models.regularizers import STEER, Regularizer
from sciml.models.solver_regularizer import SolverRegularizer
from sciml.models.unrolled import unrolled
from sciml.solvers.cde import CDE
from sciml.solvers.control import PID
from sciml.solvers.solve import Solver
from sciml.solvers.spline import Spline, filled

Curve = Literal["linear", "hermite", "rectilinear"]


class MatrixField(nn.Module):
    """A net of the state as a matrix for each state: f(t, y) = tanh(net(y)), shaped (b, h, c).

    Args:
        net: maps states (b, h) to (b, h c).
        channels: c, the number of a series' values and one for time.
    """

    def __init__(self, net: nn.Module, channels: int):
        super().__init__()
        self.net, self.channels = net, channels

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The matrices."""
        return torch.tanh(self.net(y)).unflatten(-1, (-1, self.channels))


class Driven(nn.Module, CDE):
    """A `CDE` with weights."""

    def __init__(self, field: nn.Module):
        nn.Module.__init__(self)
        CDE.__init__(self, field)


class NeuralCDE(Flow):
    """A state that is driven by a series X of data: dy = field(t, y) dX, y = initial(X) at its start (Kidger 2020).

    A series (b, n, 1 + c) has the time first, then values, NaN where one is missing: what lies between is a curve, see
    `Spline`. Times may differ by sample; where a time is NaN, as behind the end of a shorter series, nothing happens.
    The equation is solved over the numbers of the observations, which leaves states as they are and makes samples one
    system, and steps end at each of them, but for a solver that has ``jump_ts`` of its own, [] for none. A `Grid` has a
    multiple of n - 1 steps, for "rectilinear" of 2 n - 2.

    `torch.export` takes it with fixed steps, ``Solver(..., Grid(n=...))``.

    Args:
        field: maps (t, y) to matrices (b, h, 1 + c), e.g. `MatrixField`.
        initial: maps the first row of a series (b, 1 + c), what is missing in it filled in, to states (b, h).
        solver: how to integrate; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        curve: ``"linear"``, ``"hermite"``, or ``"rectilinear"``, which at no time depends on what is seen later.
        regularizer: what makes it easy to solve in training: `SolverRegularizer` of the form "global" or "reuse",
            `TaylorRegularizer`, `KineticRegularizer`.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.
        penalty: what the regulariser adds to the loss, of the last solve in train mode; else None.
        progress: the share of the training that is over, from 0 to 1, for weights that change; training modules set it.
        watched, stiffness: as of `Watched`.

    Raises:
        ValueError: if the curve is none of these, or the regulariser does not go with it or the solver.

    References:
        P. Kidger, J. Morrill, J. Foster, T. Lyons, Neural controlled differential equations for irregular time series,
        NeurIPS 2020, arXiv:2005.08926. J. Morrill, P. Kidger, L. Yang, T. Lyons, Neural controlled differential
        equations for online prediction tasks (2021), arXiv:2106.11028.

    Example:
        >>> import torch
        >>> from sciml.models import MLP, MatrixField, NeuralCDE
        >>> cde = NeuralCDE(MatrixField(MLP(8, 8 * 3), 3), MLP(3, 8))
        >>> times = torch.rand(5, 10, 1).sort(1).values
        >>> cde(torch.cat([times, torch.rand(5, 10, 2)], -1)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        field: nn.Module,
        initial: nn.Module,
        solver: Solver | None = None,
        curve: Curve = "linear",
        regularizer: Regularizer | None = None,
    ):
        if curve not in get_args(Curve):
            raise ValueError(f"curve: expected one of {', '.join(get_args(Curve))}, got {curve!r}")
        if isinstance(regularizer, STEER):
            raise ValueError("regularizer: STEER moves the end of a solve, which is here that of the data")
        if isinstance(regularizer, SolverRegularizer) and regularizer.form not in ("global", "reuse"):
            raise ValueError(f"regularizer: expected form='global' or 'reuse' with data, got {regularizer.form!r}")
        super().__init__(Driven(field), solver or Solver(), 1.0, regularizer)
        self.initial, self.curve = initial, curve

    def forward(self, series: Tensor, ts: Tensor | None = None) -> Tensor:
        """Solves.

        Args:
            series: times and values (b, n, 1 + c), times not decreasing.
            ts: increasing times to save at, (t) or (b, t), from each series' first to its last, beyond which states
                are those there. Joint lanes take them where all samples are observed at the same times.

        Returns:
            The states after the last observation, (b, h), or at the given times, (b, t, h).
        """
        if series.ndim != 3:
            raise ValueError(f"series: expected times and values (b, n, 1 + c), got shape {tuple(series.shape)}")
        count = series.shape[1]
        index = torch.arange(count, dtype=series.dtype, device=series.device)
        times = filled(index, series[..., :1])[..., 0]
        x = self._driving(times, series[..., 1:])
        y0, end = self.initial(x(index[0])), x.ts[-1:]
        saves = torch.cat([index[:1], end]) if ts is None else self._places(times, ts)
        solver = self._stopping(x)
        if torch.compiler.is_exporting() and ts is None:
            ends = torch.tensor([0.0, x.ts.shape[0] - 1.0], dtype=torch.float64)
            t0, t1 = ends.expand(*y0.shape[: solver.lanes == "each"], 2).unbind(-1)
            return unrolled(self.field, y0, t0, t1, solver, args=x)
        ys = self.solved(y0, saves, args=x, solver=solver)
        return ys[:, -1] if ts is None else ys[:, 1:]

    def _driving(self, times: Tensor, values: Tensor) -> Spline:
        """The curve of times and values over the numbers of the observations."""
        if self.curve == "rectilinear":
            return Spline.rectilinear(times, values)
        make = Spline.linear if self.curve == "linear" else Spline.hermite
        return make(times, torch.cat([times[..., None], values], -1)).by_index()

    def _stopping(self, x: Spline) -> Solver:
        """The solver, whose steps end at knots where it does not say otherwise."""
        controller = self.solver.controller or PID()
        if getattr(controller, "jump_ts", ()) is not None:
            return self.solver
        return replace(self.solver, controller=replace(controller, jump_ts=x.ts))  # pyrefly: ignore[bad-specialization]

    def _places(self, times: Tensor, ts: Tensor) -> Tensor:
        """Of times (t) or (b, t) their places (t + 1) or (b, t + 1) on the curve, behind that of the start."""
        wanted = ts.to(times).expand(len(times), -1).contiguous()
        before = (torch.searchsorted(times.contiguous(), wanted, right=True) - 1).clamp_min(0)
        after = (before + 1).clamp_max(times.shape[1] - 1)
        start, end = times.gather(1, before), times.gather(1, after)
        gap = end - start
        share = torch.where(gap > 0, (wanted - start) / torch.where(gap > 0, gap, 1), 0).clamp(0, 1)
        places = (2 if self.curve == "rectilinear" else 1) * before + share
        places = torch.cat([torch.zeros_like(places[:, :1]), places], 1)
        same = self.solver.lanes == "joint" and bool((places == places[:1]).all())
        return places[0] if same else places
