"""Learning a probability density from points of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.seeding import derive_seed, run_seed
from sciml.data.split import SplitData
from sciml.models.cnf import CNF, Divergence, normal_log_prob
from sciml.training.module import TrainingModule
from sciml.training.neural_ode import work
from sciml.training.operator import Normalizer
from sciml.typing import Draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Literal["train", "val", "test"]
CHUNK, CELLS = 10_000, 100  # points at a time, and the cells along an axis, of a picture


class NormalizedFlow(nn.Module):
    """The density of a flow of normalised points, in the points' own units."""

    def __init__(self, flow: CNF):
        super().__init__()
        self.points, self.flow = Normalizer(), flow

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of the density (b) at points (b, d), with the exact divergence."""
        return self.log_prob(x, divergence="exact")

    def log_prob(
        self, x: Tensor, generator: torch.Generator | None = None, divergence: Divergence | None = None
    ) -> Tensor:
        """As of `CNF.log_prob`."""
        units = self.points.std.expand(x.shape[1]).log().sum()
        return self.flow.log_prob(self.points(x), generator, divergence) - units

    def sample(self, count: int, draws: Draws = None) -> Tensor:
        """Points (count, d); arguments as of `CNF.sample`."""
        return self.points.inverse(self.flow.sample(count, draws))


class NormalFit(nn.Module):
    """The normal distribution of a sample's mean and covariance: what a density has to be better than."""

    mean: Tensor
    factor: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))  # of Cholesky

    def fit(self, x: Tensor) -> None:
        """Take them from points (n, d); a covariance that is singular is widened by round-off."""
        deviations = x.double() - x.double().mean(0)
        covariance = deviations.t() @ deviations / len(x)
        rounding = torch.finfo(self.mean.dtype).eps * covariance.diagonal().mean()
        covariance.diagonal().add_(rounding)
        self.mean.copy_(x.mean(0))
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of its density (b) at points (b, d)."""
        z = torch.linalg.solve_triangular(self.factor, (x - self.mean).t(), upper=False).t()
        return normal_log_prob(z) - self.factor.diagonal().log().sum()


class DensityModule(TrainingModule):
    """Trains a continuous normalising flow on points, by maximum likelihood.

    Points are normalised by coordinate with mean and deviation of the training part; densities are of the points' own
    units. The loss is the mean of -log p in nats per point. Training takes the flow's divergence, with noise drawn anew
    at every step; validation and test take the exact one. Logs `train_loss`, `val_loss` and `test_loss`, beside the
    latter two `val_gaussian` and `test_gaussian`, the same of a normal distribution with mean and covariance of the
    training part, and what the solves took: `train_nfe`, `train_accepted`, `train_rejected`, ...

    Args:
        flow: the density of normalised points.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        flow: CNF,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        self.density, self.gaussian = NormalizedFlow(flow), NormalFit(flow.dim)

    def fit_to(self, data: Any) -> None:
        """Fit normaliser and normal distribution to the training part."""
        if not isinstance(data, SplitData):
            return
        x = data.part("train")[0]
        dim = self.density.flow.dim
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"dim: expected that of the data's points {tuple(x.shape[1:])}, got {dim}")
        self.density.points.fit(x)
        self.gaussian.fit(x)

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of the density (b) at points (b, d)."""
        return self.density(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of points."""
        seed = derive_seed(run_seed(), "hutchinson", self.current_epoch, batch_idx, self.global_rank)
        generator = torch.Generator(self.device).manual_seed(seed)
        return self._log("train", batch[0], self.loss(batch[0], generator))

    def loss(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """The mean of -log p over points (b, d), with the flow's divergence."""
        return -self.density.log_prob(x, draws).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss, and that of the normal distribution."""
        self._evaluate("val", batch[0], batch_idx)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss, and that of the normal distribution."""
        self._evaluate("test", batch[0], batch_idx)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Points (b, d), the logarithms (b) of the density there, and as many samples (b, d)."""
        (x,) = batch
        samples = self.density.sample(len(x), self.sample_seeds(batch_idx, len(x)))
        return {"points": x, "log_prob": self(x), "samples": samples}

    def predictor(self) -> nn.Module:
        """From points to the logarithm of the density."""
        return self.density

    def example_inputs(self, data: SplitData) -> tuple[Tensor, ...]:
        """Two points."""
        return (data.part("train")[0][:2].contiguous(),)

    def pictures(self, data: SplitData) -> Iterator[tuple[str, "Figure"]]:
        """In the plane: test points, as many samples, and the density."""
        from sciml.training.drawing import draw_density

        (x,) = data.part("test")
        if x.shape[1] != 2:
            return
        x = x[:CHUNK]
        low, high = x.amin(0), x.amax(0)
        axes = [torch.linspace(float(a), float(b), CELLS) for a, b in zip(*_widened(low, high), strict=True)]
        generator = torch.Generator(self.device).manual_seed(derive_seed(run_seed(), "picture"))
        with torch.no_grad():
            samples = self.density.sample(len(x), generator).cpu()
            cells = torch.cartesian_prod(*axes).to(self.device, x.dtype)
            log_prob = torch.cat([self(part) for part in cells.split(CHUNK)]).cpu()
        names = getattr(data, "names", ("x", "y"))
        yield "density", draw_density(x, samples, axes, log_prob.reshape(CELLS, CELLS).exp(), names)

    def _evaluate(self, stage: Stage, x: Tensor, batch_idx: int) -> None:
        self._log(stage, x, -self(x).mean())
        self._log_gaussian(stage, x)

    def _log_gaussian(self, stage: Stage, x: Tensor) -> None:
        self.log(f"{stage}_gaussian", -self.gaussian(x).mean(), batch_size=len(x), sync_dist=True)

    def _log(self, stage: Stage, x: Tensor, loss: Tensor) -> Tensor:
        self.log(f"{stage}_loss", loss, prog_bar=True, batch_size=len(x), sync_dist=stage != "train")
        self.log_dict(work(stage, self.density.flow), batch_size=len(x), sync_dist=stage != "train")
        return loss


def _widened(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A box, a tenth of its width larger on each side."""
    rim = (high - low) / 10
    return low - rim, high + rim
