"""Learning what an iteration for linear systems starts with."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.random_systems import RandomSystems
from sciml.models.acceleration import MetaSolver, Start
from sciml.solvers.linear.blocks import BlockSystems
from sciml.solvers.linear.unrolled import Unrolled, UnrolledSOR, jacobi_radii, young
from sciml.training.iteration_loss import IterationCount, IterationLoss
from sciml.training.module import TrainingModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Literal["val", "test"]
TUNED, LANCZOS = 64, 60  # training systems that the best single omega is of; products for Young's
SHOWN = 80  # iterations in a picture


class AccelerationModule(TrainingModule):
    """Trains a net that chooses the relaxation or the first guess of a stationary iteration, through its steps.

    Logs `train_loss` and the mean number of iterations to the tolerance, `val_iterations` and `test_iterations`; beside
    them, both with the first guess of the data, `val_tuned` and `test_tuned` with the single omega that is the best one
    for systems of the training part, and `val_young` and `test_young` with Young's omega of each system, which takes
    the spectral radius of its Jacobi iteration, by 60 further products with the matrix.

    Args:
        net: chooses.
        method: the iteration; default `UnrolledSOR`, for which the figures beside are meant.
        loss: of its history; default `IterationCount` of the tolerance in 80 iterations.
        tolerance: of the residual relative to the right-hand side, for the figures that are logged.
        max_iter: iterations after which to give up in these, which counts as one more.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: numbers that are not positive.
    """

    monitor = "val_iterations"
    tuned: Tensor

    def __init__(
        self,
        net: MetaSolver,
        method: Unrolled | None = None,
        loss: IterationLoss | None = None,
        tolerance: float = 1e-4,
        max_iter: int = 300,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        for name, value in {"tolerance": tolerance, "max_iter": max_iter}.items():
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        self.net, self.method, self.loss = net, method or UnrolledSOR(), loss or IterationCount(tolerance, 80)
        self.tolerance, self.max_iter = tolerance, max_iter
        self.register_buffer("tuned", torch.ones((), dtype=torch.float64))

    def fit_to(self, data: Any) -> None:
        """Look for the best single omega."""
        if isinstance(data, RandomSystems):
            self.tuned.fill_(best_omega(BlockSystems.join(data.part("train")[:TUNED]), self.method, self.tolerance))

    def forward(self, systems: BlockSystems) -> Start:
        """Relaxations and first guesses."""
        return self.net(systems)

    def training_step(self, batch: BlockSystems, batch_idx: int) -> Tensor:
        """The loss of a batch of systems."""
        start = self(batch)
        errors = self.loss.measure == "error"
        loss = self.loss(self.method.run(batch, self.loss.steps, start.omega, start.x0, errors))
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: BlockSystems, batch_idx: int) -> None:
        """Log the numbers of iterations."""
        self._evaluate("val", batch)

    def test_step(self, batch: BlockSystems, batch_idx: int) -> None:
        """Log the numbers of iterations."""
        self._evaluate("test", batch)

    def predict_step(self, batch: BlockSystems, batch_idx: int) -> dict[str, Tensor]:
        """Relaxations (s), numbers of iterations (s) and first guesses (n)."""
        start = self(batch)
        history = self.method.run(batch, self.max_iter, start.omega, start.x0)
        return {"omega": start.omega, "iterations": history.iterations(self.tolerance), "x0": start.x0}

    def predictor(self) -> nn.Module:
        """From systems to relaxations and first guesses."""
        return self.net

    def pictures(self, data: RandomSystems) -> Iterator[tuple[str, "Figure"]]:
        """Residuals of the test systems over the iterations."""
        from sciml.training.drawing import draw_histories

        systems = BlockSystems.join(data.part("test")).to(self.device)
        with torch.no_grad():
            starts = self._starts(systems)
            histories = {
                name: self.method.run(systems, SHOWN, *start).residuals.cpu() for name, start in starts.items()
            }
        names = ("learned", "best single omega", "Young's omega")
        yield "residuals", draw_histories(dict(zip(names, histories.values(), strict=True)), self.tolerance)

    def _starts(self, systems: BlockSystems) -> dict[str, Start]:
        tuned = self.tuned.to(systems.b.dtype).expand(len(systems))
        spectral = young(jacobi_radii(systems, LANCZOS)[-1])
        beside = {"tuned": Start(tuned, systems.x0), "young": Start(spectral, systems.x0)}
        return {"iterations": self(systems), **beside}

    def _evaluate(self, stage: Stage, batch: BlockSystems) -> None:
        for name, start in self._starts(batch).items():
            count = self.method.run(batch, self.max_iter, *start).iterations(self.tolerance).double().mean()
            options: dict[str, Any] = {"prog_bar": name == "iterations", "sync_dist": True}
            self.log(f"{stage}_{name}", count, batch_size=len(batch), **options)


def best_omega(
    systems: BlockSystems, method: Unrolled, tolerance: float, max_iter: int = 150, count: int = 39
) -> float:
    """The single omega for which all systems together take the fewest iterations.

    Args:
        systems: to be solved from their first guesses.
        method: the iteration.
        tolerance: of relative residuals.
        max_iter: iterations after which to give up.
        count: omegas between 0 and 2 to try, equally far apart.
    """
    tried = [2 * (i + 1) / (count + 1) for i in range(count)]
    with torch.no_grad():
        runs = [method.run(systems, max_iter, systems.b.new_full((len(systems),), omega)) for omega in tried]
    return min(zip([int(run.iterations(tolerance).sum()) for run in runs], tried, strict=True))[1]
