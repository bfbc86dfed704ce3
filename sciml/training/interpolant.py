"""Learning a probability density from points of it, by stochastic interpolants."""

from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from sciml.models.interpolant import StochasticInterpolant
from sciml.training.density import DensityModule, Stage
from sciml.typing import Draws


class InterpolantModule(DensityModule):
    """Trains the velocity of a stochastic interpolant on points, by least squares; no equation is solved for it.

    Points are normalised by coordinate with mean and deviation of the training part. The loss is that of
    `StochasticInterpolant.objective`, logged as `train_loss`, `val_loss` and `test_loss`; times and noise of validation
    and test are each point's own, the same in every epoch and in any batch, but for the optimal coupling, which pairs
    those of a batch. Beside the latter two stand, of the points' own units, the mean of -log p in nats per point,
    `val_nll` and `test_nll`, from the equation of the flow with the exact divergence, and `val_gaussian` and
    `test_gaussian`, the same of a normal distribution with mean and covariance of the training part.

    Args:
        flow: the interpolant of normalised points.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        flow: StochasticInterpolant,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(flow, optimizer, scheduler, scheduler_interval)

    def loss(self, x: Tensor, draws: Draws) -> Tensor:
        """The objective (a number) at points (b, d)."""
        flow: Any = self.density.flow
        return flow.objective(self.density.points(x), draws)

    def _evaluate(self, stage: Stage, x: Tensor, batch_idx: int) -> None:
        loss = self.loss(x, self.sample_seeds(batch_idx, len(x)))
        self.log(f"{stage}_nll", -self(x).mean(), batch_size=len(x), sync_dist=True)
        self._log(stage, x, loss)
        self._log_gaussian(stage, x)
