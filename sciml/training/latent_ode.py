"""Learning a latent ordinary equation from trajectories, by the evidence lower bound."""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from sciml.data.trajectories import ObservedData
from sciml.models.latent_ode import LatentODE
from sciml.training.latent import LatentModule, Task


class LatentODEModule(LatentModule):
    """Trains a latent ODE on trajectories, of which a part may be hidden from the encoder.

    Observations are normalised with mean and deviation of the training part, times by the first and the last. The loss
    is the negative evidence lower bound of all observations, hidden ones too, in nats per observed value, with the
    divergence weighted in training by a factor that rises to 1. Logs

    - `train_loss`, `val_loss`, `test_loss`, and the bound's parts `.._log_likelihood` and `.._kl`, in nats per
      trajectory; `train_penalty`, which a regulariser adds to the loss;
    - what the solves took: `train_nfe`, `train_accepted`, `train_rejected`, ..., and of validation and test
      `.._stiffness`, about the number of steps that stability would ask for if accuracy asked for none, where the
      solver's steps tell it without another evaluation;
    - where a part is hidden, the mean square error there of normalised values, predicted from the mean of the posterior
      start: `val_mse`, `test_mse`; beside it `test_mean_mse` of the training part's mean, `test_linear_mse` of
      straight lines between what is shown, or of its last value behind that, and `test_course_mse` of such lines for
      what differs from the training part's mean at each time, where all share these. `test_<component>_error` is the
      mean absolute error in own units;
    - without missing values, `test_mean_error` and `test_std_error`: how far mean and deviation over time of new
      trajectories are off, relative to the deviation.

    Args:
        model: what is trained.
        warm_up: number of epochs in which the divergence's weight rises from 0 to 1.
        task: what the encoder is shown: ``"interpolation"``, times at random, other ones for every trajectory and step;
            ``"extrapolation"``, the first of the span.
        share: of the times, or of the span; 1 shows all.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: if an argument is not of its range.

    Reference:
        Y. Rubanova, R. T. Q. Chen, D. Duvenaud, Latent ODEs for irregularly-sampled time series, NeurIPS 2019,
        arXiv:1907.03907; both tasks are those of its section 5.
    """

    def __init__(
        self,
        model: LatentODE,
        warm_up: int = 0,
        task: Task = "interpolation",
        share: float = 1.0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(model, warm_up, task, share, optimizer, scheduler, scheduler_interval)

    def example_inputs(self, data: ObservedData) -> tuple[Tensor, ...]:
        """Times (t) or (2, t) and two trajectories, NaN where nothing is observed."""
        ts, ys, mask = data.part("train").take(slice(2))
        return ts.contiguous(), ys.where(mask, torch.nan)
