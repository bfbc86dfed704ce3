"""Neural stochastic equations: a drift and a diffusion with weights and a solver, as a map of states and seeds."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciml.models.draws import brownian
from sciml.models.neural_ode import Flow
from sciml.models.solver_regularizer import SolverRegularizer
from sciml.solvers.control import PID
from sciml.solvers.solve import Solver
from sciml.solvers.stochastic_runge_kutta import SRIW1
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Calculus, Seed


class DiagonalSDE(nn.Module, Diffusive):
    """dy = drift(t, y) dt + diffusion(y) dW, with a number of W for each of the state.

    Args:
        drift: maps (t, y) to dy/dt, e.g. `Autonomous` or `TimeDependent`.
        diffusion: maps states to tensors of their shape, each entry a function of that of the state alone, as
            `CoordinateDiffusion`: steppers of order 1 and above take it for such.
        calculus: ``"ito"`` or ``"stratonovich"``.
    """

    noise_type = "diagonal"

    def __init__(self, drift: nn.Module, diffusion: nn.Module, calculus: Calculus = "ito"):
        super().__init__()
        self.rate, self.diffusion, self.calculus = drift, diffusion, calculus

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The drift net."""
        return self.rate(t, y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The diffusion net times the increment."""
        return self.diffusion(y) * dw


class NeuralSDE(Flow):
    """Paths of a stochastic equation with weights: y0 -> y(t1), or all times, driven by noise of a seed.

    The same seed is the same noise: training takes another one at every step, see `forward`.

    Args:
        field: the equation, a `Diffusive` module as `DiagonalSDE`.
        solver: how to integrate; None takes SRIW1 with rtol and atol 1e-2.
        t1: the final time.
        regularizer: keeps the solver's estimates small in training, so that solves take fewer steps (Pal et al. 2021,
            2023); all forms but "global" also under `Backsolve`.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.
        penalty: what the regulariser adds to the loss, of the last solve in train mode; else None.
        watched, stiffness: as of `Watched`.

    Reference:
        X. Liu, T. Xiao, S. Si, Q. Cao, S. Kumar, C.-J. Hsieh, Neural SDE: stabilizing neural ODE networks with
        stochastic noise (2019), arXiv:1906.02355.

    Example:
        >>> import torch
        >>> from sciml.models import MLP, Autonomous, CoordinateDiffusion, DiagonalSDE, NeuralSDE
        >>> sde = NeuralSDE(DiagonalSDE(Autonomous(MLP(2, 2)), CoordinateDiffusion(2)))
        >>> sde(torch.zeros(5, 2), seed=1).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        field: nn.Module,
        solver: Solver | None = None,
        t1: float = 1.0,
        regularizer: SolverRegularizer | None = None,
    ):
        if not isinstance(field, Diffusive):
            raise TypeError(f"field: expected a Diffusive module, as DiagonalSDE, got {type(field).__name__}")
        if regularizer is not None and not isinstance(regularizer, SolverRegularizer):
            raise ValueError(f"regularizer: expected a SolverRegularizer for noise, got {type(regularizer).__name__}")
        super().__init__(field, solver or Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2)), t1, regularizer)

    def forward(self, y0: Tensor, ts: Tensor | None = None, seed: Seed = 0) -> Tensor:
        """Solves.

        Args:
            y0: initial states (b, ..).
            ts: times to save at, of which the first is that of y0 and the last ends the solve: (t), or with lanes
                "each" also (b, t).
            seed: of the noise. The same seed is the same noise, also that of the default: a training loop has to give
                another one at every step, as ``int(torch.randint(2**62, ()))``, or it fits the net to one draw. Whole
                numbers (b) are one for each state, in whatever batches they come.

        Returns:
            The states at t1, (b, ..), or at the given times, (b, t, ..).
        """
        return self.solved(y0, ts, brownian(seed))


class Moments(NamedTuple):
    """Of paths, at each time (..): 0 where there are too few."""

    mean: Tensor
    std: Tensor
    count: Tensor  # of paths


def moments(paths: Tensor, mask: Tensor | None = None) -> Moments:
    """Mean and deviation over paths (b, ..) where the mask is set."""
    there = torch.ones_like(paths) if mask is None else mask.to(paths)
    paths, count = paths if mask is None else paths.where(mask, 0), there.sum(0)
    mean = paths.sum(0) / count.clamp_min(1)
    variance = ((paths - mean).square() * there).sum(0) / (count - 1).clamp_min(1)
    std = torch.where(variance > 0, variance.clamp_min(torch.finfo(paths.dtype).tiny).sqrt(), 0.0)
    return Moments(mean, std, count)


def power_sums(paths: Tensor, mask: Tensor | None = None) -> Tensor:
    """Number, sum and sum of squares (3, ..) of paths (b, ..) where the mask is set; float64, to be added up."""
    there = torch.ones_like(paths, dtype=torch.bool) if mask is None else mask
    paths = paths.double().where(there, 0)
    return torch.stack([there.double().sum(0), paths.sum(0), paths.square().sum(0)])


def summed_moments(sums: Tensor) -> Moments:
    """`moments` of all paths that are in sums (3, ..) of `power_sums`, to the round-off of their squares."""
    count, total, squares = sums
    mean = total / count.clamp_min(1)
    variance = (squares - total * mean).clamp_min(0) / (count - 1).clamp_min(1)
    return Moments(mean, variance.sqrt(), count)
