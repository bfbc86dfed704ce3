"""Learning a stochastic equation from an ensemble of its paths, by their moments."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.trajectories import Observed, ObservedData
from sciml.models.neural_sde import Moments, NeuralSDE, moments, power_sums, summed_moments
from sciml.training.neural_ode import RegularizedModule, Stage, regularized, work
from sciml.training.operator import Normalizer
from sciml.typing import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def missed(found: Moments, right: Moments) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and what mean and deviation (..) are off, 0 where there are too few paths to tell."""
    known = {"mean": right.count > 0, "std": right.count > 1}
    off = {name: (getattr(found, name) - getattr(right, name)).where(there, 0) for name, there in known.items()}
    shares = [x.square().sum() / known[name].sum().clamp_min(1) for name, x in off.items()]
    return torch.stack(shares).sum(), off


class NormalizedSDE(nn.Module):
    """A neural SDE of normalised states and times, as a map in their own units."""

    def __init__(self, sde: NeuralSDE):
        super().__init__()
        self.state, self.time, self.sde = Normalizer(), Normalizer(), sde

    def forward(self, y0: Tensor, ts: Tensor, seed: Seed = 0) -> Tensor:
        """From states (b, c) at the first time to paths (b, t, c) at all times (t)."""
        return self.state.inverse(self.sde(self.state(y0), self.time(ts), seed))


class NeuralSDEModule(RegularizedModule):
    """Trains a stochastic equation on paths, so that its own have their mean and deviation at every time.

    The loss is the mean square of what means and of what deviations of paths from the same first states are off, of
    normalised states: in training of a batch, in validation and test of all of their paths. Logs `train_loss`,
    `val_loss`, `test_loss`, and of the latter two `.._mean_error` and `.._std_error`: how far mean and deviation over
    time are off, relative to the deviation (norms over times and components); what the solves took: `train_nfe`,
    `train_accepted`, `train_rejected`, ...; of validation and test `.._stiffness`, about how many steps stability would
    ask for, where the solver's steps tell it, as those of `SOSRI2`; and `train_penalty`, which a regulariser of the SDE
    adds to the loss.

    Args:
        sde: maps states (b, c), times and a seed to (b, t, c).
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        sde: NeuralSDE,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        self.flow = NormalizedSDE(sde)
        self._sums: Tensor | None = None  # over an evaluation, of the model's paths and of the data's

    def fit_to(self, data: Any) -> None:
        """Fit the normalisers to the training part."""
        if not isinstance(data, ObservedData):
            return
        ts, ys, mask = data.part("train")
        self.flow.time.fit(ts.reshape(-1, 1).float())
        self.flow.state.fit(ys.flatten(0, 1), mask.flatten(0, 1))

    def forward(self, y0: Tensor, ts: Tensor, seed: Seed = 0) -> Tensor:
        """From states (b, c) at the first time to paths (b, t, c)."""
        return self.flow(y0, ts, seed)

    def training_step(self, batch: Observed, batch_idx: int) -> Tensor:
        """The loss of a batch of paths, against new ones."""
        found, right = self._paths(batch, self.noise_seed(batch_idx))
        loss = missed(moments(found), moments(right, batch.mask))[0]
        total, metrics = regularized("train", loss, self.flow.sde)
        self.log_dict(metrics | work("train", self.flow.sde), batch_size=len(right))
        return total

    def validation_step(self, batch: Observed, batch_idx: int) -> None:
        """Add up the paths, which are always the same."""
        self._add("val", batch, batch_idx)

    def test_step(self, batch: Observed, batch_idx: int) -> None:
        """Add up the paths, likewise."""
        self._add("test", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log loss and errors of all paths."""
        self._log_missed("val")

    def on_test_epoch_end(self) -> None:
        """Log loss and errors of all paths."""
        self._log_missed("test")

    def predict_step(self, batch: Observed, batch_idx: int) -> dict[str, Tensor]:
        """Times (b, t), data, mask and paths of the model from the same states, each (b, t, c)."""
        ts, ys, mask = batch
        paths = self(ys[:, 0], ts, self.sample_seeds(batch_idx, len(ys)))
        return {"ts": ts.expand(mask.shape[:2]), "targets": ys, "mask": mask, "predictions": paths}

    def predictor(self) -> nn.Module:
        """The map in own units."""
        return self.flow

    def pictures(self, data: ObservedData) -> Iterator[tuple[str, "Figure"]]:
        """Paths of the test part beside those of the model."""
        from sciml.training.drawing import draw_ensembles

        ts, ys, mask = data.part("test")
        if ts.ndim == 1:
            with torch.no_grad():
                paths = self(ys[:, 0].to(self.device), ts.to(self.device), 1).cpu()
            yield "paths", draw_ensembles(ts, ys.where(mask, torch.nan), paths, data.names)

    def _paths(self, batch: Observed, seed: Seed) -> tuple[Tensor, Tensor]:
        """Normalised paths (b, t, c) of the model, and those of the data."""
        ts, ys, _ = batch
        if ts.ndim > 1:
            raise ValueError(f"data: expected paths that share their times (t), got times of shape {tuple(ts.shape)}")
        return self.flow.state(self(ys[:, 0], ts, seed)), self.flow.state(ys)

    def _add(self, stage: Stage, batch: Observed, batch_idx: int) -> None:
        found, right = self._paths(batch, self.sample_seeds(batch_idx, len(batch.ys)))
        sums = torch.stack([power_sums(found), power_sums(right, batch.mask)])
        self._sums = sums if self._sums is None or not batch_idx else self._sums + sums
        self.log_dict(work(stage, self.flow.sde), prog_bar=True, batch_size=len(right), sync_dist=True)

    def _log_missed(self, stage: Stage) -> None:
        if self._sums is None:
            return
        gathered: Any = self.all_gather(self._sums)
        sums, self._sums = gathered.reshape(-1, *self._sums.shape).sum(0), None
        found, right = map(summed_moments, sums)
        loss, off = missed(found, right)
        metrics = {f"{stage}_{name}_error": x.norm() / right.std.norm() for name, x in off.items()}
        self.log_dict({f"{stage}_loss": loss, **metrics}, prog_bar=True, sync_dist=True)
