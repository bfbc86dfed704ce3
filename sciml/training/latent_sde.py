"""Learning a latent stochastic equation from trajectories, by the evidence lower bound."""

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from sciml.data.trajectories import Observed, TrajectoryData
from sciml.models.latent_fsde import LatentFSDE
from sciml.models.latent_sde import LatentSDE
from sciml.problems.fractional import FractionalOrnsteinUhlenbeck
from sciml.training.latent import LatentModule, Task
from sciml.training.neural_ode import Stage
from sciml.typing import Seed


class LatentSDEModule(LatentModule):
    """Trains a latent stochastic equation on trajectories.

    Observations are normalised with mean and deviation of the training part, times by the first and the last. The loss
    is the negative evidence lower bound in nats per observed value, with the divergence weighted in training by a
    factor that rises to 1. Logs `train_loss`, `val_loss`, `test_loss`, the bound's parts `.._log_likelihood` and
    `.._kl`, in nats per trajectory, and what the solves took: `train_nfe`, `train_accepted`, `train_rejected`, ..., and
    of validation and test `.._stiffness`, where the solver's steps tell it, as those of `SOSRI2`; and of new
    trajectories of the prior, against the test part, `test_mean_error` and `test_std_error`: how far mean and deviation
    over time are off, relative to the deviation (norms over times and components). Where a part is hidden from the
    encoder, the errors there are logged as of `LatentODEModule`. Of `LatentFSDE` also `.._hurst`, and on
    `FractionalOrnsteinUhlenbeck` `test_least_loss`, that of the process itself.

    Args:
        model: what is trained.
        warm_up: number of epochs in which the divergence's weight rises from 0 to 1.
        task: what the encoder is shown: times at random, or the first of the span.
        share: of the times, or of the span; 1 shows all.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: if an argument is not of its range.
    """

    def __init__(
        self,
        model: LatentSDE | LatentFSDE,
        warm_up: int = 0,
        task: Task = "interpolation",
        share: float = 1.0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(model, warm_up, task, share, optimizer, scheduler, scheduler_interval)

    def on_test_epoch_end(self) -> None:
        """Log what new trajectories miss, and the loss of the true law where that is known."""
        super().on_test_epoch_end()
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        problem = data.problem if isinstance(data, TrajectoryData) else None
        if isinstance(problem, FractionalOrnsteinUhlenbeck):
            ts, ys, mask = data.part("test")
            if bool(mask.all()):
                evidence = problem.log_evidence(ts, ys).mean() / len(ts)
                self.log("test_least_loss", -(evidence + self.latent.state.std.log().mean().cpu()).float())

    def _step(self, stage: Stage, batch: Observed, seed: Seed, weight: float = 1.0) -> Tensor:
        model = self.latent.model
        if isinstance(model, LatentFSDE):
            hurst = model.dynamics.hurst.detach()
            self.log(f"{stage}_hurst", hurst, batch_size=len(batch.ys), sync_dist=stage != "train")
        return super()._step(stage, batch, seed, weight)
