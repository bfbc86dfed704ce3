"""Learning to forecast with probabilities, from pairs of states."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.fields import FieldData
from sciml.data.generate import OperatorData
from sciml.data.seeding import derive_seed, run_seed
from sciml.models.forecast import ForecastInterpolant
from sciml.training.ensembles import crps, spread
from sciml.training.module import TrainingModule
from sciml.training.operator import Normalizer
from sciml.typing import Draws, Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[Tensor, Tensor]
SHOWN, CLIMATE = 32, 64  # states, in pictures and for a forecast that knows no state


class Forecaster(nn.Module):
    """An interpolant between normalised states, as a forecast of states in their own units."""

    def __init__(self, interpolant: ForecastInterpolant):
        super().__init__()
        self.states, self.interpolant = Normalizer(), interpolant

    def forward(self, state: Tensor, normal: Tensor) -> Tensor:
        """Later states (b, c, ..) by n steps from standard normal numbers (b, n, 2, c, ..)."""
        return self.states.inverse(self.interpolant(self.states(state), normal))

    def forecast(self, state: Tensor, members: int = 1, seed: Seed = 0) -> Tensor:
        """Draws of later states (members, b, c, ..), as of `ForecastInterpolant.forecast`."""
        return self.states.inverse(self.interpolant.forecast(self.states(state), members, seed))


class ForecastModule(TrainingModule):
    """Trains a stochastic interpolant on pairs of a state and a later one, by least squares.

    States are normalised by channel with mean and deviation of all that are there to train on. The loss is that of
    `ForecastInterpolant.objective`, logged as `train_loss`, `val_loss` and `test_loss`; times and noise of validation
    and test are each pair's own, the same in every epoch and in any batch, as those of forecasts are. The test draws
    several forecasts of each state, in its own units: `test_crps` is their continuous ranked probability score, beside
    `test_crps_climate`, that of 64 later states of the training part whatever the state, and `test_persistence`, that
    of the state itself; `test_mse` the squared error of the mean forecast, beside `test_spread`, what it would be if
    the truth were one more of the forecasts.

    Args:
        interpolant: of normalised states.
        members: number of forecasts of each state, at least 2.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: less than 2 members.
    """

    def __init__(
        self,
        interpolant: ForecastInterpolant,
        members: int = 16,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        if members < 2:
            raise ValueError(f"members: expected at least 2, got {members}")
        self.forecaster, self.members = Forecaster(interpolant), members

    def setup(self, stage: str) -> None:
        """See to it that states and later ones are of one kind, and fit the normaliser."""
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if isinstance(data, FieldData):
            _pairs(data)
        super().setup(stage)

    def fit_to(self, data: Any) -> None:
        """Fit the normaliser to the training part."""
        if isinstance(data, FieldData):
            self.forecaster.states.fit(torch.cat(_pairs(data)))

    def forward(self, state: Tensor) -> Tensor:
        """One forecast (b, c, ..) of each state (b, c, ..)."""
        return self.forecaster.forecast(state)[0]

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """The loss of a batch of pairs."""
        seed = derive_seed(run_seed(), "forecast", self.current_epoch, batch_idx, self.global_rank)
        loss = self._loss(batch, torch.Generator(self.device).manual_seed(seed))
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        """Log the loss."""
        self._evaluate("val", batch, self.sample_seeds(batch_idx, len(batch[0])))

    def test_step(self, batch: Pair, batch_idx: int) -> None:
        """Log the loss, and what several forecasts of each state are worth."""
        state, later = batch
        seeds = self.sample_seeds(batch_idx, len(state))
        self._evaluate("test", batch, seeds)
        drawn = self.forecaster.forecast(state, self.members, seeds)
        metrics = {
            "test_crps": crps(drawn, later).mean(),
            "test_persistence": crps(state[None], later).mean(),
            "test_mse": (drawn.mean(0) - later).square().mean(),
            "test_spread": spread(drawn).mean(),
        }
        data = self.trainer.datamodule  # pyrefly: ignore[missing-attribute]
        if isinstance(data, FieldData):
            known = data.part("train")[1][:CLIMATE].to(later)
            metrics["test_crps_climate"] = crps(known[:, None], later).mean()
        self.log_dict(metrics, batch_size=len(state), sync_dist=True)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """States and, where given, later ones (b, c, ..), and several forecasts (b, members, c, ..) of each."""
        given = dict(zip(("inputs", "targets"), batch, strict=False))
        state = given["inputs"]
        drawn = self.forecaster.forecast(state, self.members, self.sample_seeds(batch_idx, len(state)))
        return {**given, "forecasts": drawn.transpose(0, 1)}

    def predictor(self) -> nn.Module:
        """From states and normal numbers to later states, with `forecast`."""
        return self.forecaster

    def example_inputs(self, data: FieldData) -> tuple[Tensor, ...]:
        """Two states, and the numbers of their steps."""
        model = self.forecaster.interpolant
        if model.custom:
            raise ValueError(
                "solver: an export draws by the interpolant's own steps, expected None; `steps` tells how many"
            )
        states = data.inputs[:2].contiguous()
        return states, states.new_zeros(2, model.steps, 2, *states.shape[1:])

    def pictures(self, data: FieldData) -> Iterator[tuple[str, "Figure"]]:
        """Of fields: forecasts of the first test state, and spectra of test states and of forecasts."""
        from sciml.training.drawing import draw_forecasts, draw_spectra

        states, later = (part[:SHOWN] for part in data.part("test"))
        if states.ndim == 2 or not len(states):
            return
        with torch.no_grad():
            drawn = self.forecaster.forecast(states.to(self.device), self.members, run_seed()).cpu()[:, :, 0]
        coordinates = data.problem.coordinates() if isinstance(data, OperatorData) else ()
        if states.ndim < 5:
            yield "forecasts", draw_forecasts(states[0, 0], later[0, 0], drawn[:, 0], coordinates)
        fields = {"truth": later[:, 0], "forecasts": drawn.flatten(0, 1), "mean of forecasts": drawn.mean(0)}
        yield "spectrum", draw_spectra(fields)

    def _loss(self, batch: Pair, draws: Draws) -> Tensor:
        states, later = map(self.forecaster.states, batch)
        return self.forecaster.interpolant.objective(states, later, draws)

    def _evaluate(self, stage: Literal["val", "test"], batch: Pair, seeds: Tensor) -> None:
        loss = self._loss(batch, seeds)
        self.log(f"{stage}_loss", loss, prog_bar=True, batch_size=len(batch[0]), sync_dist=True)


def _pairs(data: FieldData) -> Pair:
    """States and later ones to train on, which have to be of one kind."""
    states, later = data.part("train")
    if states.shape != later.shape:
        raise ValueError(
            f"data: expected later states of the states' shape {tuple(states.shape[1:])}, got {tuple(later.shape[1:])}"
        )
    return states, later
