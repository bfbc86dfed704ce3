"""Learning a latent stochastic equation from trajectories, by the evidence lower bound."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.trajectories import Observed, ObservedData, TrajectoryData
from sciml.models.latent_fsde import LatentFSDE
from sciml.models.latent_sde import Fit, LatentModel
from sciml.problems.fractional import FractionalOrnsteinUhlenbeck
from sciml.training.module import TrainingModule
from sciml.training.neural_ode import Stage
from sciml.training.operator import Normalizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = 1000  # of the prior, whose moments are compared with the data's


class NormalizedLatentSDE(nn.Module):
    """A latent model of normalised observations and times, in their own units."""

    first: Tensor
    length: Tensor

    def __init__(self, model: LatentModel):
        super().__init__()
        self.state, self.model = Normalizer(), model
        self.register_buffer("first", torch.zeros((), dtype=torch.float64))
        self.register_buffer("length", torch.ones((), dtype=torch.float64))

    def fit(self, observed: Observed) -> None:
        """Take the units from trajectories."""
        ts, ys, mask = observed
        self.state.fit(ys.flatten(0, 1), mask.flatten(0, 1))
        self.first.copy_(ts.min())
        self.length.copy_(ts.max() - ts.min())

    def scaled(self, ts: Tensor) -> Tensor:
        """Times from 0 to 1."""
        return (ts - self.first) / self.length

    def posterior(self, observed: Observed, seed: int) -> Fit:
        """The fit of normalised observations; its likelihoods are of these."""
        ts, ys, mask = observed
        return self.model.posterior(self.scaled(ts), self.state(ys), mask, seed)

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor | None = None, seed: int = 0) -> Tensor:
        """Observations (b, t, c) at times (t) smoothed by a path of the posterior, (b, t, c)."""
        mask = ys.isfinite() if mask is None else mask
        return self.state.inverse(self.posterior(Observed(ts, ys, mask), seed).predictions)

    def sample(self, count: int, ts: Tensor, seed: int = 0, noisy: bool = False) -> Tensor:
        """So many new trajectories (count, t, c) at times (t)."""
        return self.state.inverse(self.model.sample(count, self.scaled(ts), seed, noisy))


class LatentSDEModule(TrainingModule):
    """Trains a latent stochastic equation on trajectories.

    Observations are normalised with mean and deviation of the training part, times by the first and the last. The loss
    is the negative evidence lower bound in nats per observed value, with the divergence weighted in training by a
    factor that rises to 1. Logs `train_loss`, `val_loss`, `test_loss`, the bound's parts `.._log_likelihood` and
    `.._kl`, in nats per trajectory, and what the solves took: `train_nfe`, `train_accepted`, `train_rejected`, ...; and
    of new trajectories of the prior, against the test part, `test_mean_error` and `test_std_error`: how far mean and
    deviation over time are off, relative to the deviation (norms over times and components). Of `LatentFSDE` also
    `.._hurst`, and on `FractionalOrnsteinUhlenbeck` `test_least_loss`, that of the process itself.

    Args:
        model: what is trained.
        warm_up: number of epochs in which the divergence's weight rises from 0 to 1.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        model: LatentModel,
        warm_up: int = 0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        if warm_up < 0:
            raise ValueError(f"warm_up: expected a number of epochs, 0 or more, got {warm_up}")
        self.latent, self.warm_up = NormalizedLatentSDE(model), warm_up

    def setup(self, stage: str) -> None:
        """Fit the normalisers to the training part."""
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if stage == "fit" and isinstance(data, ObservedData):
            self.latent.fit(data.part("train"))

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Observations smoothed by a path of the posterior."""
        return self.latent(ts, ys, mask)

    def training_step(self, batch: Observed, batch_idx: int) -> Tensor:
        """The loss of a batch of trajectories, on new paths."""
        weight = min(1.0, (self.current_epoch + 1) / self.warm_up) if self.warm_up else 1.0
        return self._step("train", batch, int(torch.randint(2**62, ())), weight)

    def validation_step(self, batch: Observed, batch_idx: int) -> None:
        """Log the loss, always on the same paths."""
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Observed, batch_idx: int) -> None:
        """Log the loss, likewise."""
        self._step("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log what new trajectories miss, and the loss of the true law where that is known."""
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if not isinstance(data, ObservedData):
            return
        ts, ys, mask = (x.to(self.device) for x in data.part("test"))
        if ts.ndim > 1 or not bool(mask.all()):
            return
        problem = data.problem if isinstance(data, TrajectoryData) else None
        if isinstance(problem, FractionalOrnsteinUhlenbeck):
            evidence = problem.log_evidence(ts.cpu(), ys.cpu()).mean() / len(ts)
            self.log("test_least_loss", -(evidence + self.latent.state.std.log().mean()).float())
        new = self.latent.sample(PATHS, ts, noisy=True)
        std = ys.std(0)
        self.log("test_mean_error", (new.mean(0) - ys.mean(0)).norm() / std.norm())
        self.log("test_std_error", (new.std(0) - std).norm() / std.norm())

    def predict_step(self, batch: Observed, batch_idx: int) -> dict[str, Tensor]:
        """Times (b, t), data, mask and a path of the posterior, each (b, t, c)."""
        ts, ys, mask = batch
        smoothed = self.latent.state.inverse(self.latent.posterior(batch, batch_idx).predictions)
        return {"ts": ts.expand(mask.shape[:2]), "targets": ys, "mask": mask, "predictions": smoothed}

    def predictor(self) -> nn.Module:
        """The smoother in own units, with `sample` for new trajectories."""
        return self.latent

    def pictures(self, data: ObservedData) -> Iterator[tuple[str, "Figure"]]:
        """Test trajectories with a path of the posterior each, and beside new ones."""
        from sciml.training.drawing import draw_ensembles, draw_trajectories

        observed = data.part("test").take(slice(4))
        ts, ys, mask = observed
        with torch.no_grad():
            smoothed = self(*(x.to(self.device) for x in observed)).cpu()
            yield (
                "posterior",
                draw_trajectories(ts.expand(ys.shape[:2]), ys.where(mask, torch.nan), smoothed, data.names),
            )
            ts, ys, mask = data.part("test")
            if ts.ndim == 1:
                new = self.latent.sample(len(ys), ts.to(self.device), seed=1, noisy=True).cpu()
                yield "samples", draw_ensembles(ts, ys.where(mask, torch.nan), new, data.names)

    def _step(self, stage: Stage, batch: Observed, seed: int, weight: float = 1.0) -> Tensor:
        fit, values = self.latent.posterior(batch, seed), batch.mask.sum()
        loss = (weight * fit.kl - fit.log_likelihood).sum() / values
        metrics = {
            f"{stage}_loss": -fit.elbo.sum() / values,
            f"{stage}_log_likelihood": fit.log_likelihood.mean(),
            f"{stage}_kl": fit.kl.mean(),
        }
        model = self.latent.model
        if isinstance(model, LatentFSDE):
            metrics[f"{stage}_hurst"] = model.dynamics.hurst.detach()
        stats = model.stats
        if stats is not None:
            metrics |= {f"{stage}_{name}": count.float().mean() for name, count in stats._asdict().items()}
        self.log_dict(metrics, prog_bar=stage != "train", batch_size=len(batch.ys), sync_dist=stage != "train")
        return loss
