"""Learning a latent equation from trajectories by the evidence lower bound, and what it makes of hidden values."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.seeding import derive_seed, generator
from sciml.data.trajectories import Observed, ObservedData
from sciml.models.draws import own_normals
from sciml.models.latent import Fit, LatentModel
from sciml.training.neural_ode import RegularizedModule, Stage, regularized, stiffness
from sciml.training.operator import Normalizer
from sciml.typing import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = Literal["interpolation", "extrapolation"]
MEANS = ("val_loss", "test_loss")  # of values, not of trajectories
PATHS = 1000  # of the prior, whose moments are compared with the data's


def shown(observed: Observed, task: Task, share: float, seed: Seed) -> Tensor:
    """What an encoder may see of trajectories, (b, t, c), bool.

    Of each trajectory a share of the times that have values at random, or all times up to a share of its span; of
    either at least one.
    """
    ts, _, mask = observed
    if task == "extrapolation":
        ts = ts.expand(mask.shape[:2])
        early = ts <= ts[:, :1] + share * (ts[:, -1:] - ts[:, :1])
    else:
        there = mask.any(-1)
        draw = _marks(there.shape, seed).to(mask.device).where(there, torch.inf)
        count = (share * there.sum(1, keepdim=True).double()).round().clamp_min(1)
        early = draw.argsort(1).argsort(1) < count
    return mask & early[..., None]


def _marks(shape: torch.Size, seed: Seed) -> Tensor:
    """Random numbers (b, t) to order times by."""
    if isinstance(seed, Tensor):
        return own_normals(seed, shape[1], derive_seed(0, "shown"))
    return torch.rand(shape, generator=generator(seed, "shown"))


def interpolated(observed: Observed, seen: Tensor) -> Tensor:
    """Values (b, t, c) on lines between those that are seen; before the first and behind the last as these are.

    Where none of a component is seen, 0, which should be its mean.
    """
    ts, ys, _ = observed
    t = ts.expand(seen.shape[:2])[..., None].expand_as(ys).to(ys)
    places = torch.arange(ys.shape[1], device=ys.device)[:, None].expand_as(ys)
    last = places.where(seen, -1).cummax(1).values
    following = places.where(seen, ys.shape[1]).flip(1).cummin(1).values.flip(1)
    before = last.where(last >= 0, following).clamp_max(ys.shape[1] - 1)
    after = following.where(following < ys.shape[1], last).clamp_min(0)
    values = ys.where(seen, 0)
    (t0, t1), (y0, y1) = ([x.gather(1, place) for place in (before, after)] for x in (t, values))
    return y0 + (y1 - y0) * ((t - t0) / (t1 - t0).where(t1 > t0, 1)).clamp(0, 1)


def course(observed: Observed) -> Tensor:
    """The mean (t, c) of trajectories at each of the times that they share; 0 where none has a value."""
    return observed.ys.where(observed.mask, 0).sum(0) / observed.mask.sum(0).clamp_min(1)


def same_times(observed: Observed, other: Observed) -> bool:
    """Whether all trajectories of both share their times."""
    return observed.ts.ndim == other.ts.ndim == 1 and torch.equal(observed.ts.cpu(), other.ts.cpu())


class NormalizedLatent(nn.Module):
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

    def posterior(self, observed: Observed, seed: Seed, seen: Tensor | None = None) -> Fit:
        """The fit of normalised observations; its likelihoods are of these."""
        ts, ys, mask = observed
        return self.model.posterior(self.scaled(ts), self.state(ys), mask, seed, seen)

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor | None = None, seed: Seed = 0) -> Tensor:
        """Means of observations (b, t, c) at times (t), given those that the mask has, or all that are finite."""
        mask = ys.isfinite() if mask is None else mask
        return self.state.inverse(self.model.smooth(self.scaled(ts), self.state(ys), mask, seed))

    def sample(self, count: int, ts: Tensor, seed: int = 0, noisy: bool = False) -> Tensor:
        """So many new trajectories (count, t, c) at times (t)."""
        return self.state.inverse(self.model.sample(count, self.scaled(ts), seed, noisy))


class LatentModule(RegularizedModule):
    """Trains a latent model on trajectories; `LatentODEModule` and `LatentSDEModule` say what is logged.

    Outside of the training each trajectory has noise of its own, told by its place in its part, so that metrics and
    predictions do not depend on the batches; but joint lanes choose adaptive steps for a batch, within the tolerance.

    Args:
        model: what is trained.
        warm_up: number of epochs in which the divergence's weight rises from 0 to 1.
        task: what the encoder is shown.
        share: of the times, or of the span.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: if an argument is not of its range.
    """

    def __init__(
        self,
        model: LatentModel,
        warm_up: int = 0,
        task: Task = "interpolation",
        share: float = 1.0,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        if warm_up < 0:
            raise ValueError(f"warm_up: expected a number of epochs, 0 or more, got {warm_up}")
        if task not in get_args(Task):
            raise ValueError(f"task: expected one of {', '.join(get_args(Task))}, got {task!r}")
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a number above 0 and at most 1, got {share}")
        self.latent, self.warm_up = NormalizedLatent(model), warm_up
        self.task, self.share = task, share

    def fit_to(self, data: Any) -> None:
        """Fit the normalisers to the training part."""
        if isinstance(data, ObservedData):
            self.latent.fit(data.part("train"))

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Means of observations, given some."""
        return self.latent(ts, ys, mask)

    def seen(self, observed: Observed, seed: Seed) -> Tensor:
        """What the encoder is shown (b, t, c)."""
        return observed.mask if self.share == 1 else shown(observed, self.task, self.share, seed)

    def training_step(self, batch: Observed, batch_idx: int) -> Tensor:
        """The loss of a batch of trajectories, on new paths."""
        weight = min(1.0, (self.current_epoch + 1) / self.warm_up) if self.warm_up else 1.0
        return self._step("train", batch, self.noise_seed(batch_idx), weight)

    def validation_step(self, batch: Observed, batch_idx: int) -> None:
        """Log the loss, on paths that are each trajectory's own, and the error of what is hidden."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Observed, batch_idx: int) -> None:
        """Log the loss, likewise, and errors beside those of what needs no training."""
        self._evaluate("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log what new trajectories miss."""
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if not isinstance(data, ObservedData):
            return
        ts, ys, mask = (x.to(self.device) for x in data.part("test"))
        if ts.ndim > 1 or not bool(mask.all()):
            return
        new = self.latent.sample(PATHS, ts, noisy=True)
        std = ys.std(0)
        self.log("test_mean_error", (new.mean(0) - ys.mean(0)).norm() / std.norm())
        self.log("test_std_error", (new.std(0) - std).norm() / std.norm())

    def predict_step(self, batch: Observed, batch_idx: int) -> dict[str, Tensor]:
        """Times (b, t), data, mask, what the encoder was shown, and predictions, each (b, t, c)."""
        ts, ys, mask = batch
        seeds = self.sample_seeds(batch_idx, len(ys))
        seen = self.seen(batch, seeds)
        predictions = self.latent(ts, ys, seen, seeds)
        times = ts.expand(mask.shape[:2])
        return {"ts": times, "targets": ys, "mask": mask, "shown": seen, "predictions": predictions}

    def predictor(self) -> nn.Module:
        """The smoother in own units, with `sample` for new trajectories."""
        return self.latent

    def pictures(self, data: ObservedData) -> Iterator[tuple[str, "Figure"]]:
        """Test trajectories with predictions, and beside new ones."""
        from sciml.training.drawing import draw_ensembles, draw_trajectories

        observed = data.part("test").take(slice(4))
        ts, ys, mask = observed
        seen = self.seen(observed, 0)
        with torch.no_grad():
            smoothed = self(*(x.to(self.device) for x in (ts, ys, seen))).cpu()
            ts, ys = ts.expand(ys.shape[:2]), ys.where(mask, torch.nan)
            yield "posterior", draw_trajectories(ts, ys, smoothed, data.names, None if self.share == 1 else seen)
            ts, ys, mask = data.part("test")
            if ts.ndim == 1:
                new = self.latent.sample(len(ys), ts.to(self.device), seed=1, noisy=True).cpu()
                yield "samples", draw_ensembles(ts, ys.where(mask, torch.nan), new, data.names)

    def log_errors(self, stage: Stage, batch: Observed, seen: Tensor, seed: Seed) -> None:
        """Of what is hidden: the mean square of normalised values, of the test also in own units and of baselines."""
        if self.share == 1:
            return
        ts, ys, mask = batch
        hidden, normalized = mask & ~seen, self.latent.state
        prediction, right = self.latent(ts, ys, seen, seed), normalized(ys)
        found = {"mse": normalized(prediction)}
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if stage == "test":
            found |= {"mean_mse": torch.zeros_like(ys), "linear_mse": interpolated(batch._replace(ys=right), seen)}
        if stage == "test" and isinstance(data, ObservedData) and same_times(data.part("train"), batch):
            usual = normalized(course(data.part("train")).to(ys))
            found["course_mse"] = usual + interpolated(batch._replace(ys=right - usual), seen)
        count = int(hidden.sum())
        for name, values in found.items():
            mse = (values - right).square().where(hidden, 0).sum() / max(count, 1)
            self.log(f"{stage}_{name}", mse, batch_size=count, sync_dist=True)
        if stage != "test" or not isinstance(data, ObservedData):
            return
        off, counts = (prediction - ys).abs().where(hidden, 0).sum((0, 1)), hidden.sum((0, 1)).tolist()
        for name, total, count in zip(data.names, off, counts, strict=True):
            self.log(f"test_{name}_error", total / max(count, 1), batch_size=count, sync_dist=True)

    def _evaluate(self, stage: Stage, batch: Observed, batch_idx: int) -> None:
        seeds = self.sample_seeds(batch_idx, len(batch.ys))
        self._step(stage, batch, seeds)
        self.log_errors(stage, batch, self.seen(batch, seeds), seeds)
        self.log_dict(stiffness(stage, self.latent.model), batch_size=len(batch.ys), sync_dist=True)

    def _step(self, stage: Stage, batch: Observed, seed: Seed, weight: float = 1.0) -> Tensor:
        fit, values = self.latent.posterior(batch, seed, self.seen(batch, seed)), batch.mask.sum()
        loss = (weight * fit.kl - fit.log_likelihood).sum() / values
        total, metrics = regularized(stage, loss, self.latent.model)
        metrics |= {
            f"{stage}_loss": -fit.elbo.sum() / values,
            f"{stage}_log_likelihood": fit.log_likelihood.mean(),
            f"{stage}_kl": fit.kl.mean(),
        }
        stats = self.latent.model.stats
        if stats is not None:
            metrics |= {f"{stage}_{name}": count.float().mean() for name, count in stats._asdict().items()}
        for name, value in metrics.items():
            size = int(values) if name in MEANS else len(batch.ys)
            self.log(name, value, prog_bar=stage != "train", batch_size=size, sync_dist=stage != "train")
        return total
