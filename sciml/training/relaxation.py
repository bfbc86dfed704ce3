"""Learning a relaxation parameter over a sequence of linear systems."""

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from sciml.data.system_sequence import SystemSequence
from sciml.problems.linear_systems import LinearSystem
from sciml.solvers.linear import SSOR, LearnedOmega, LinearSolution, SparseOperator, pcg, sor
from sciml.training.module import TrainingModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTRIES = 512  # of the table of omegas over contexts


class RelaxationModule(TrainingModule):
    """Solves one linear system in each training step and learns which omega takes the fewest iterations.

    There is no gradient and no optimiser: what is learned, `LearnedOmega`, is a part of checkpoints. Where it has a
    context this is the logarithm of the time step. Logs `train_iterations` and `train_omega` of each system; of other
    systems, with the omega that is best as far as is known, `val_iterations` and `test_iterations`, beside them
    `val_best_fixed` with the best single omega for all of them, `val_best_for_each` with the best one of the grid for
    each, and `val_first` with the first of the grid, by default 1.

    Args:
        omega: what learns; `LearnedOmega` without a context if there is none.
        sweeps: ``"ssor-cg"`` for conjugate gradients preconditioned by symmetric over-relaxation, or ``"sor"``.
        rtol: residual to reach, relative to the right-hand side.
        max_iter: iterations allowed; a system that takes more is an error.
    """

    monitor = "val_iterations"

    def __init__(
        self,
        omega: LearnedOmega | None = None,
        sweeps: Literal["ssor-cg", "sor"] = "ssor-cg",
        rtol: float = 1e-8,
        max_iter: int = 100_000,
    ):
        super().__init__()
        self.omega, self.sweeps, self.rtol, self.max_iter = omega or LearnedOmega(), sweeps, rtol, max_iter
        self.seen: dict[str, list[Any]] = {}
        self._counts: dict[LinearSystem, ndarray] = {}  # of every omega

    def configure_optimizers(self) -> None:
        """None."""
        warnings.filterwarnings("ignore", r"`LightningModule.configure_optimizers` returned `None`")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing to differentiate."""

    def get_extra_state(self) -> dict[str, Any]:
        """What has been learned, as a part of the weights."""
        return self.omega.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Learn it again."""
        self.omega.load_state_dict(state)

    def training_step(self, batch: LinearSystem, batch_idx: int) -> Tensor:
        """Choose, solve and observe."""
        a, b, x0 = _tensors(batch)
        options = {"rtol": self.rtol, "max_iter": self.max_iter}
        solution = self.omega.solve(a, b, x0, context=self.context(batch), sweeps=self.sweeps, **options)
        iterations = solution.iterations.double().mean()
        self.log("train_iterations", iterations, prog_bar=True, batch_size=1)
        self.log("train_omega", float(self.omega.grid[self.omega.arms[-1]]), batch_size=1)
        return iterations

    def on_validation_epoch_start(self) -> None:
        """Begin to collect."""
        self.seen = {}

    def on_test_epoch_start(self) -> None:
        """Begin to collect."""
        self.seen = {}

    def validation_step(self, batch: LinearSystem, batch_idx: int) -> None:
        """Count the iterations of a system."""
        self._evaluate(batch)

    def test_step(self, batch: LinearSystem, batch_idx: int) -> None:
        """Count the iterations of a system."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was counted."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Log what was counted."""
        self._log("test")

    def predict_step(self, batch: LinearSystem, batch_idx: int) -> dict[str, Tensor]:
        """Time step, omega and iterations, (1) each."""
        omega = self.omega.best(self.context(batch))
        values = {"dt": batch.dt or math.nan, "omega": omega, "iterations": self._solve(batch, omega).iterations.item()}
        return {name: torch.tensor([value]) for name, value in values.items()}

    def context(self, system: LinearSystem) -> float | None:
        """The logarithm of a system's time step, if that is to be known."""
        if self.omega.context is None:
            return None
        if system.dt is None:
            raise ValueError("omega.context: expected none, since the systems have no time step")
        return math.log(system.dt)

    def predictor(self) -> nn.Module:
        """From contexts (b) to omegas (b)."""
        low, high = self.omega.context or (0.0, 1.0)
        contexts = np.linspace(low, high, ENTRIES)
        return OmegaTable(low, high, [self.omega.best(None if self.omega.context is None else c) for c in contexts])

    def example_inputs(self, data: Any) -> tuple[Tensor, ...]:
        """Two contexts."""
        return (torch.tensor(self.omega.context or (0.0, 1.0), dtype=torch.float64),)

    def pictures(self, data: SystemSequence) -> Iterator[tuple[str, "Figure"]]:
        """On the test systems: the iterations of all omegas, and over the time step the best and the learned ones."""
        from sciml.training.drawing import draw_relaxation

        systems = data.part("test")
        counts = np.array([self.counts(system) for system in systems])
        learned = np.array([self.omega.best(self.context(system)) for system in systems])
        dts = np.array([system.dt or math.nan for system in systems])
        yield "relaxation", draw_relaxation(self.omega.grid, counts, dts, learned)

    def counts(self, system: LinearSystem) -> ndarray:
        """The iterations that every omega of the grid takes (d), counted once."""
        if system not in self._counts:
            self._counts[system] = np.array([self._solve(system, w).iterations.item() for w in self.omega.grid])
        return self._counts[system]

    def _solve(self, system: LinearSystem, omega: float) -> LinearSolution:
        a, b, x0 = _tensors(system)
        if self.sweeps == "sor":
            return sor(a, b, omega, x0, rtol=self.rtol, max_iter=self.max_iter)
        return pcg(a, b, SSOR(omega), x0, rtol=self.rtol, max_iter=self.max_iter)

    def _evaluate(self, system: LinearSystem) -> None:
        counts = self.counts(system)
        learned = counts[self.omega.grid == self.omega.best(self.context(system))][0]
        for name, value in {"learned": learned, "all": counts}.items():
            self.seen.setdefault(name, []).append(value)

    def _log(self, stage: str) -> None:
        counts = np.array(self.seen["all"])
        values = {
            "iterations": np.mean(self.seen["learned"]),
            "best_fixed": counts.mean(0).min(),
            "best_for_each": counts.min(1).mean(),
            "first": counts[:, 0].mean(),
        }
        self.log_dict({f"{stage}_{name}": float(value) for name, value in values.items()}, batch_size=1)


class OmegaTable(nn.Module):
    """Omegas (b) of contexts (b): those of the nearest entries of a table."""

    table: Tensor

    def __init__(self, low: float, high: float, omegas: list[float]):
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("table", torch.tensor(omegas, dtype=torch.float64))

    def forward(self, context: Tensor) -> Tensor:
        """The omegas."""
        place = (context - self.low) / (self.high - self.low) * (len(self.table) - 1)
        return self.table[place.round().clamp(0, len(self.table) - 1).long()]


def _tensors(system: LinearSystem) -> tuple[SparseOperator, Tensor, Tensor | None]:
    x0 = None if system.x0 is None else torch.from_numpy(system.x0)
    return SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b), x0
