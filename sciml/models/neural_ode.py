"""Neural ordinary differential equations: a vector field with weights and a solver, as a map of states."""

from typing import Any

import torch
from torch import Tensor, nn

from sciml.models.regularizers import Regularizer
from sciml.models.unrolled import unrolled
from sciml.models.watched import Watched
from sciml.solvers.path import Path
from sciml.solvers.solve import Solver, SolveStats, solve
from sciml.typing import Args


class Autonomous(nn.Module):
    """A net of the state as a vector field: f(t, y) = net(y).

    Args:
        net: maps states to tensors of their shape.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt, of y's shape."""
        return self.net(y)


class TimeDependent(nn.Module):
    """A net of time and state as a vector field: f(t, y) = net([y, t]), the time behind the last axis.

    Args:
        net: maps (.., c + 1) to (.., c).
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt, of y's shape."""
        return self.net(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1))


def check_times(ts: Tensor, solver: Solver) -> None:
    """Refuse what is neither times (t) nor, with lanes "each", times (b, t).

    Raises:
        ValueError: with the remedy.
    """
    if ts.ndim == 2 and solver.lanes != "each":
        raise ValueError(f"solver: expected lanes='each' for times {tuple(ts.shape)} of each sample's own, got 'joint'")
    if ts.ndim not in (1, 2):
        raise ValueError(f"ts: expected times (t) or (b, t), got shape {tuple(ts.shape)}")


class Flow(Watched):
    """What solves an equation with weights, and in train mode may be kept easy to solve by a regulariser.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.
        penalty: what the regulariser adds to the loss, of the last solve in train mode; else None.
        progress: how much of the training is done, from 0 to 1, as told by its module.
        watched, stiffness: as of `Watched`.
    """

    stats: SolveStats | None = None
    penalty: Tensor | None = None
    progress: float = 0.0

    def __init__(self, field: nn.Module, solver: Solver, t1: float, regularizer: Regularizer | None):
        super().__init__()
        self.field, self.solver, self.t1, self.regularizer = field, solver, t1, regularizer
        if regularizer is not None:
            regularizer.fits(solver)

    def solved(
        self,
        y0: Tensor,
        ts: Tensor | None,
        path: Path | None = None,
        args: Args = (),
        solver: Solver | None = None,
    ) -> Tensor:
        """The states at t1, (b, ..), or at times from the first on, (b, t, ..); notes stats and penalty.

        ``solver`` is another one than the model's, where steps have to know the data.
        """
        solver = solver or self.solver
        if ts is not None:
            check_times(ts, solver)
        used = self.regularizer if self.training else None
        end = self.t1 if used is None else used.end(self.t1, ts)
        t0, t1 = (0.0, end) if ts is None else (ts[..., 0], ts[..., -1])
        reading = None if used is None else used.reading(self.field, solver, y0, t0, t1, args)
        folds = self.readings(solver) | ({} if reading is None else reading.folds)
        solution = solve(self.field, y0, t0, t1, solver, args=args, path=path, save_at=ts, folds=folds)
        self.note(solution)
        self.stats, self.penalty = solution.stats, None
        if used is not None and reading is not None:
            self.penalty = used.weight_at(self.progress) * reading.penalty(solution)
        return solution.ys if ts is None or solver.lanes == "each" else solution.ys.transpose(0, 1)

    def take_penalty(self) -> Tensor | None:
        """The penalty of the last solve, once: its graph is kept no longer than that of the loss."""
        penalty, self.penalty = self.penalty, None
        return penalty

    def __getstate__(self) -> dict[str, Any]:
        """What copies have: all but a graph."""
        return {**self.__dict__, "penalty": None}


class NeuralODE(Flow):
    """The flow of a vector field: y0 -> y(t1), the solution of dy/dt = field(t, y), y(0) = y0 (Chen et al. 2018).

    `torch.export` takes it with fixed steps, ``Solver(..., Grid(n=...))``; save times are then an input like y0.

    Args:
        field: maps (t, y) to dy/dt, e.g. `Autonomous` or `TimeDependent`.
        solver: how to integrate; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        t1: the final time.
        regularizer: what makes it easy to solve in training: `SolverRegularizer`, `TaylorRegularizer`,
            `KineticRegularizer`, `STEER`.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first. A regulariser's own are not in it.
        penalty: what the regulariser adds to the loss, of the last solve in train mode; else None.
        progress: the share of the training that is over, from 0 to 1, for weights that change; training modules set it.
        watched, stiffness: as of `Watched`.

    Raises:
        ValueError: if the regulariser does not go with the solver.

    Reference:
        R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, Neural ordinary differential equations, NeurIPS 2018,
        arXiv:1806.07366.

    Example:
        >>> import torch
        >>> from sciml.models import MLP, Autonomous, NeuralODE
        >>> ode = NeuralODE(Autonomous(MLP(2, 2)))
        >>> ode(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
        >>> ode(torch.zeros(5, 2), torch.linspace(0, 1, 10)).shape
        torch.Size([5, 10, 2])
    """

    def __init__(
        self,
        field: nn.Module,
        solver: Solver | None = None,
        t1: float = 1.0,
        regularizer: Regularizer | None = None,
    ):
        super().__init__(field, solver or Solver(), t1, regularizer)

    def forward(self, y0: Tensor, ts: Tensor | None = None) -> Tensor:
        """Solves.

        Args:
            y0: initial states (b, ..).
            ts: times to save at, of which the first is that of y0 and the last ends the solve: (t), or with lanes
                "each" also (b, t).

        Returns:
            The states at t1, (b, ..), or at the given times, (b, t, ..).
        """
        if torch.compiler.is_exporting() and (ts is None or ts.ndim == 1 or self.solver.lanes == "each"):
            each = self.solver.lanes == "each"
            ends = torch.tensor([0.0, self.t1]) if ts is None else ts[..., [0, -1]]
            t0, t1 = ends.to(torch.float64).expand(*y0.shape[:each], 2).unbind(-1)  # (l)
            saved = unrolled(self.field, y0, t0, t1, self.solver, ts)
            return saved if ts is None or each else saved.transpose(0, 1)
        return self.solved(y0, ts)
