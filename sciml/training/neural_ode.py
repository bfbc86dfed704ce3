"""Learning a vector field from trajectories, and what modules that solve share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.trajectories import Observed, ObservedData
from sciml.models.cnf import CNF
from sciml.models.neural_ode import Flow, NeuralODE
from sciml.models.watched import Watched
from sciml.training.losses import relative_l2
from sciml.training.module import TrainingModule
from sciml.training.operator import Normalizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Literal["train", "val", "test"]


def work(stage: Stage, ode: nn.Module) -> dict[str, Tensor]:
    """What the last solve took, as a mean over its lanes: `nfe`, `accepted` and `rejected` with the stage before.

    And `stiffness`, where it was watched.
    """
    if not isinstance(ode, Flow | CNF) or ode.stats is None:
        return {}
    found = {f"{stage}_{name}": count.float().mean() for name, count in ode.stats._asdict().items()}
    return found | stiffness(stage, ode)


def stiffness(stage: Stage, model: nn.Module) -> dict[str, Tensor]:
    """That of the last solve, by its name; none where it was not watched."""
    found = model.stiffness if isinstance(model, Watched) else None
    return {} if found is None else {f"{stage}_stiffness": found}


def regularized(stage: Stage, loss: Tensor, module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with what regularisers of all flows in a module add to it, and the two parts as metrics."""
    parts = [part.take_penalty() for part in module.modules() if isinstance(part, Flow)]
    found = [part for part in parts if part is not None]
    if not found:
        return loss, {f"{stage}_loss": loss}
    penalty = torch.stack(found).sum()
    return loss + penalty, {f"{stage}_loss": loss, f"{stage}_penalty": penalty}


class RegularizedModule(TrainingModule):
    """A module that tells its flows how far the training is, for penalties with changing weights.

    In validation and test it watches how stiff their equations are.
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed, and tell them."""
        super().on_train_batch_start(batch, batch_idx)
        changing = [ode for ode in self.modules() if isinstance(ode, Flow) and changes(ode)]
        if not changing:
            return
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ValueError(
                "final_weight: expected a training of known length, got none; give max_epochs or max_steps"
            )
        for ode in changing:
            ode.progress = self.trainer.global_step / steps

    def on_validation_start(self) -> None:
        """Watch."""
        self._watch(True)

    def on_validation_end(self) -> None:
        """Go on without."""
        self._watch(False)

    def on_test_start(self) -> None:
        """Watch."""
        self._watch(True)

    def on_test_end(self) -> None:
        """Go on without."""
        self._watch(False)

    def _watch(self, watched: bool) -> None:
        for model in self.modules():
            if isinstance(model, Watched):
                model.watched = watched


def changes(ode: Flow) -> bool:
    """Whether the weight of its regulariser does in training."""
    return ode.regularizer is not None and ode.regularizer.final_weight is not None


class NormalizedODE(nn.Module):
    """A neural ODE of normalised states and times, as a map in their own units."""

    def __init__(self, ode: NeuralODE):
        super().__init__()
        self.state, self.time, self.ode = Normalizer(), Normalizer(), ode

    def forward(self, y0: Tensor, ts: Tensor) -> Tensor:
        """From states (b, c) at the first time to (b, t, c) at all times (t), or (b, t) with lanes "each"."""
        return self.state.inverse(self.ode(self.state(y0), self.time(ts)))


class NeuralODEModule(RegularizedModule):
    """Trains a neural ODE on trajectories, each solved from its first state.

    States and times are normalised with mean and deviation of the training part; the loss sees normalised states.
    What is missing takes no part. Logs `train_loss`, `val_loss`, `val_relative_l2`, the same of the test, and for each
    of them what the solves took: `train_nfe`, `train_accepted`, `train_rejected`, ...; of validation and test
    `.._stiffness`, about how many steps stability would ask for, where the solver's steps tell it (see `Stiffness`)
    without another evaluation; and `train_penalty`, which a regulariser of the ODE adds to the loss.

    Args:
        ode: maps states (b, c) and times to (b, t, c).
        loss: takes the observed values (n) of prediction and data; default `torch.nn.MSELoss`.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        ode: NeuralODE,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        self.flow = NormalizedODE(ode)
        self.loss = loss or nn.MSELoss()

    def fit_to(self, data: Any) -> None:
        """Fit the normalisers to the training part."""
        if not isinstance(data, ObservedData):
            return
        ts, ys, mask = data.part("train")
        self.flow.time.fit(ts.reshape(-1, 1).float())
        self.flow.state.fit(ys.flatten(0, 1), mask.flatten(0, 1))

    def forward(self, y0: Tensor, ts: Tensor) -> Tensor:
        """From states (b, c) at the first time to (b, t, c) at all times."""
        return self.flow(y0, ts)

    def training_step(self, batch: Observed, batch_idx: int) -> Tensor:
        """The loss of a batch of trajectories."""
        return self._step("train", batch)

    def validation_step(self, batch: Observed, batch_idx: int) -> None:
        """Log loss and error."""
        self._step("val", batch)

    def test_step(self, batch: Observed, batch_idx: int) -> None:
        """Log loss and error."""
        self._step("test", batch)

    def predict_step(self, batch: Observed, batch_idx: int) -> dict[str, Tensor]:
        """Times (b, t), data, mask and predictions, each (b, t, c)."""
        ts, ys, mask = batch
        times = ts.expand(mask.shape[:2])
        return {"ts": times, "targets": ys, "mask": mask, "predictions": self(ys[:, 0], ts)}

    def predictor(self) -> nn.Module:
        """The map in own units."""
        return self.flow

    def example_inputs(self, data: ObservedData) -> tuple[Tensor, ...]:
        """Two initial states and their times."""
        ts, ys, _ = data.part("train").take(slice(2))
        return ys[:, 0].contiguous(), ts.contiguous()

    def pictures(self, data: ObservedData) -> Iterator[tuple[str, "Figure"]]:
        """Prediction and data of the first test trajectories over time, and of two components in the phase plane."""
        from sciml.training.drawing import draw_phase_plane, draw_trajectories

        ts, ys, mask = data.part("test").take(slice(4))
        with torch.no_grad():
            predictions = self(ys[:, 0].to(self.device), ts.to(self.device)).cpu()
        values, times = ys.where(mask, torch.nan), ts.expand(ys.shape[:2])
        yield "trajectories", draw_trajectories(times, values, predictions, data.names)
        if len(data.names) == 2:
            yield "phase_plane", draw_phase_plane(values, predictions, data.names)

    def _step(self, stage: Stage, batch: Observed) -> Tensor:
        ts, ys, mask = batch
        prediction = self(ys[:, 0], ts)
        normalized = self.flow.state
        loss = self.loss(normalized(prediction)[mask], normalized(ys)[mask])
        total, metrics = regularized(stage, loss, self.flow.ode)
        if stage != "train":
            metrics[f"{stage}_relative_l2"] = relative_l2(prediction.where(mask, 0), ys).mean()
        for name, value in metrics.items():
            size = int(mask.sum()) if name in ("val_loss", "test_loss") else len(ys)  # what it is the mean of
            self.log(name, value, prog_bar=True, batch_size=size, sync_dist=stage != "train")
        self.log_dict(work(stage, self.flow.ode), batch_size=len(ys), sync_dist=stage != "train")
        return total
