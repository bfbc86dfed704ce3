"""Learning a stochastic equation from an ensemble of its paths, by their moments."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.trajectories import Observed, ObservedData
from sciml.models.neural_sde import NeuralSDE, moments
from sciml.training.neural_ode import RegularizedModule, Stage, regularized, work
from sciml.training.operator import Normalizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NormalizedSDE(nn.Module):
    """A neural SDE of normalised states and times, as a map in their own units."""

    def __init__(self, sde: NeuralSDE):
        super().__init__()
        self.state, self.time, self.sde = Normalizer(), Normalizer(), sde

    def forward(self, y0: Tensor, ts: Tensor, seed: int = 0) -> Tensor:
        """From states (b, c) at the first time to paths (b, t, c) at all times (t)."""
        return self.state.inverse(self.sde(self.state(y0), self.time(ts), seed))


class NeuralSDEModule(RegularizedModule):
    """Trains a stochastic equation on paths, so that its own have their mean and deviation at every time.

    The loss is the mean square of what means and of what deviations of a batch of paths from the same first states are
    off, of normalised states. Logs `train_loss`, `val_loss`, `test_loss`, and of the latter two `.._mean_error` and
    `.._std_error`: how far mean and deviation over time are off, relative to the deviation (norms over times and
    components); and what the solves took: `train_nfe`, `train_accepted`, `train_rejected`, ...; and `train_penalty`,
    which a regulariser of the SDE adds to the loss.

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

    def fit_to(self, data: Any) -> None:
        """Fit the normalisers to the training part."""
        if not isinstance(data, ObservedData):
            return
        ts, ys, mask = data.part("train")
        self.flow.time.fit(ts.reshape(-1, 1).float())
        self.flow.state.fit(ys.flatten(0, 1), mask.flatten(0, 1))

    def forward(self, y0: Tensor, ts: Tensor, seed: int = 0) -> Tensor:
        """From states (b, c) at the first time to paths (b, t, c)."""
        return self.flow(y0, ts, seed)

    def training_step(self, batch: Observed, batch_idx: int) -> Tensor:
        """The loss of a batch of paths, against new ones."""
        return self._step("train", batch, self.noise_seed(batch_idx))

    def validation_step(self, batch: Observed, batch_idx: int) -> None:
        """Log loss and errors, always of the same paths."""
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Observed, batch_idx: int) -> None:
        """Log loss and errors, likewise."""
        self._step("test", batch, batch_idx)

    def predict_step(self, batch: Observed, batch_idx: int) -> dict[str, Tensor]:
        """Times (b, t), data, mask and paths of the model from the same states, each (b, t, c)."""
        ts, ys, mask = batch
        paths = self(ys[:, 0], ts, batch_idx)
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

    def _step(self, stage: Stage, batch: Observed, seed: int) -> Tensor:
        ts, ys, mask = batch
        if ts.ndim > 1:
            raise ValueError(f"data: expected paths that share their times (t), got times of shape {tuple(ts.shape)}")
        paths, state = self(ys[:, 0], ts, seed), self.flow.state
        found, right = moments(state(paths)), moments(state(ys), mask)
        off = [(a - b).where(right.count > k, 0) for k, (a, b) in enumerate(zip(found[:2], right[:2], strict=True))]
        shares = [x.square().sum() / (right.count > k).sum().clamp_min(1) for k, x in enumerate(off)]
        loss = torch.stack(shares).sum()
        total, metrics = regularized(stage, loss, self.flow.sde)
        if stage != "train":
            scale = right.std.norm()
            metrics |= {f"{stage}_{name}_error": x.norm() / scale for name, x in zip(("mean", "std"), off, strict=True)}
        metrics |= work(stage, self.flow.sde)
        self.log_dict(metrics, prog_bar=stage != "train", batch_size=len(ys), sync_dist=stage != "train")
        return total
