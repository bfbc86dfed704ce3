"""Learning a neural equation between an encoder and a head: classifiers and regressors of inputs."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.split import SplitData
from sciml.models.neural_cde import NeuralCDE
from sciml.models.neural_sde import NeuralSDE
from sciml.training.neural_ode import RegularizedModule, Stage, regularized, work
from sciml.training.operator import Normalizer
from sciml.typing import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


class Headed(nn.Module):
    """head(ode(encoder(x))); of a `NeuralSDE` in eval mode the mean over several paths of each input.

    Args:
        encoder: maps inputs (b, ..) to states.
        ode: maps states to states.
        head: maps states to outputs (b, k).
        draws: number of paths.
    """

    def __init__(self, encoder: nn.Module, ode: nn.Module, head: nn.Module, draws: int):
        super().__init__()
        self.encoder, self.ode, self.head, self.draws = encoder, ode, head, draws

    def forward(self, inputs: Tensor, seed: Seed = 0) -> Tensor:
        """The outputs (b, k); the seed is that of the noise, or of each input's own (b)."""
        states = self.encoder(inputs)
        if not isinstance(self.ode, NeuralSDE):
            return self.head(self.ode(states))
        draws = 1 if self.ode.training else self.draws
        if isinstance(seed, Tensor):
            seed = (draws * seed[:, None] + torch.arange(draws, device=seed.device)).flatten()
        outputs = self.head(self.ode(states.repeat_interleave(draws, 0), seed=seed))
        return outputs.unflatten(0, (-1, draws)).mean(1)


class Inverse(nn.Module):
    """From normalised outputs of a head to those in own units."""

    def __init__(self, head: nn.Module, units: Normalizer):
        super().__init__()
        self.head, self.units = head, units

    def forward(self, states: Tensor) -> Tensor:
        """The outputs (b, k)."""
        return self.units.inverse(self.head(states))


class HeadModule(RegularizedModule):
    """Trains head(ode(encoder(x))) on inputs and what belongs to them; a subclass says in `judge` how well it does."""

    def __init__(
        self,
        encoder: nn.Module,
        ode: nn.Module,
        head: nn.Module,
        loss: nn.Module,
        draws: int,
        optimizer: OptimizerCallable | None,
        scheduler: LRSchedulerCallable | None,
        scheduler_interval: Literal["epoch", "step"],
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        if draws < 1:
            raise ValueError(f"draws: expected a number of paths, 1 or more, got {draws}")
        self.encoder, self.ode, self.head, self.loss, self.draws = encoder, ode, head, loss, draws
        if isinstance(ode, NeuralCDE):
            self.inputs = Normalizer()

    def fit_to(self, data: Any) -> None:
        """Fit the normaliser of series to what is seen of the training part."""
        if isinstance(data, SplitData) and isinstance(self.ode, NeuralCDE):
            series = data.part("train")[0].flatten(0, -2)
            self.inputs.fit(series, ~series.isnan())

    @abstractmethod
    def judge(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of outputs (b, k), and what else tells how good they are, by name."""

    def predictor(self) -> nn.Module:
        """From inputs, and seeds of the noise, to outputs."""
        encoder = nn.Sequential(self.inputs, self.encoder) if isinstance(self.ode, NeuralCDE) else self.encoder
        return Headed(encoder, self.ode, self.head, self.draws)

    def forward(self, inputs: Tensor, seed: Seed = 0) -> Tensor:
        """The outputs (b, k)."""
        return self.predictor()(inputs, seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch of inputs and what belongs to them, of a stochastic equation on new paths."""
        return self._step("train", batch, self.noise_seed(batch_idx) if isinstance(self.ode, NeuralSDE) else 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and what else there is, on paths that are each input's own."""
        self._step("val", batch, self.sample_seeds(batch_idx, len(batch[0])))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same."""
        self._step("test", batch, self.sample_seeds(batch_idx, len(batch[0])))

    def example_inputs(self, data: SplitData) -> tuple[Tensor, ...]:
        """Two inputs."""
        if isinstance(self.ode, NeuralSDE):
            raise NotImplementedError("there is no export of a NeuralSDE; `sciml.load` gives the trained map in Python")
        return (data.part("train")[0][:2].contiguous(),)

    def tested(self, data: SplitData) -> Batch:
        """Outputs of the test part, and what belongs to them."""
        inputs, targets = data.part("test")
        with torch.no_grad():
            return self(inputs.to(self.device)).cpu(), targets

    def _step(self, stage: Stage, batch: Batch, seed: Seed) -> Tensor:
        inputs, targets = batch
        loss, metrics = self.judge(self(inputs, seed), targets)
        total, losses = regularized(stage, loss, self)
        losses |= {f"{stage}_{name}": value for name, value in metrics.items()}
        self.log_dict(losses, prog_bar=True, batch_size=len(targets), sync_dist=stage != "train")
        self.log_dict(work(stage, self.ode), batch_size=len(targets), sync_dist=stage != "train")
        return total


class ODEClassifierModule(HeadModule):
    """Trains a classifier of which a part is a neural ODE, SDE or CDE: head(ode(encoder(x))).

    Logs loss and accuracy of training, validation and test, `train_loss`, `train_accuracy`, `val_loss`, ..., and what
    the solves took, as of `NeuralODEModule`: `train_nfe`, `train_accepted`, `train_rejected`, ..., `.._stiffness`; and
    `train_penalty`, which a regulariser of the equation adds to the loss.

    With a `NeuralSDE` every step of the training has new noise. Validation, test and predictions take the mean of the
    logits over several paths of each input, told by its place in its part, so that they do not depend on the batches;
    but joint lanes choose adaptive steps for a batch, within the tolerance.

    A `NeuralCDE` makes states of series (b, n, 1 + c), times before values, NaN where missing. They are normalised with
    mean and deviation of what is seen of the training part, before the encoder, e.g. `torch.nn.Identity`.

    Args:
        encoder: maps inputs (b, ..) to states.
        ode: maps states to states, or series to states: a `NeuralODE`, a `NeuralSDE`, a `NeuralCDE`, or anything to
            compare it with.
        head: maps states to the logits of the classes (b, k).
        loss: takes logits and labels (b); default `torch.nn.CrossEntropyLoss`.
        draws: number of paths of each input outside of the training, where the equation is stochastic.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: if there are no draws.

    Reference:
        X. Liu, T. Xiao, S. Si, Q. Cao, S. Kumar, C.-J. Hsieh, Neural SDE: stabilizing neural ODE networks with
        stochastic noise (2019), arXiv:1906.02355. A. Pal, Y. Ma, V. Shah, C. Rackauckas (ICML 2021), arXiv:2105.03918,
        whose code evaluates a classifier of images with ten paths.
    """

    def __init__(
        self,
        encoder: nn.Module,
        ode: nn.Module,
        head: nn.Module,
        loss: nn.Module | None = None,
        draws: int = 10,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        loss = loss or nn.CrossEntropyLoss()
        super().__init__(encoder, ode, head, loss, draws, optimizer, scheduler, scheduler_interval)

    def judge(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the accuracy."""
        try:
            loss = self.loss(outputs, targets)
        except IndexError as error:
            least = int(targets.max()) + 1
            raise ValueError(f"head: expected logits of at least {least} classes, got {outputs.shape[1]}") from error
        return loss, {"accuracy": (outputs.argmax(1) == targets).float().mean()}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Labels (b) and logits (b, k)."""
        inputs, labels = batch
        return {"labels": labels, "logits": self(inputs, self.sample_seeds(batch_idx, len(inputs)))}

    def pictures(self, data: SplitData) -> Iterator[tuple[str, "Figure"]]:
        """How often the test part's inputs of each class are taken for each class."""
        from sciml.training.drawing import draw_confusion

        logits, labels = self.tested(data)
        count = logits.shape[1]
        confusion = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).reshape(count, count)
        yield "confusion", draw_confusion(confusion)


class ODERegressorModule(HeadModule):
    """Trains a regressor of which a part is a neural ODE, SDE or CDE: head(ode(encoder(x))).

    Inputs and targets are normalised by component, or channel, with mean and deviation of the training part; the loss
    sees normalised targets. Logs `train_loss`, `val_loss`, `test_loss`, beside them `train_mae`, ..., the mean absolute
    error in own units, what the solves took and what a regulariser adds, as of `ODEClassifierModule`; a `NeuralSDE` is
    treated as there, with the mean of the outputs over paths, and so are the series of a `NeuralCDE`.

    Args:
        encoder: maps normalised inputs (b, ..) to states.
        ode: maps states to states, or series to states: a `NeuralODE`, a `NeuralSDE`, a `NeuralCDE`, or anything to
            compare it with.
        head: maps states to normalised outputs of the targets' shape, (b, k) or (b, c, ..).
        loss: takes normalised outputs and targets; default `torch.nn.MSELoss`.
        draws: number of paths of each input outside of the training, where the equation is stochastic.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: if there are no draws.
    """

    def __init__(
        self,
        encoder: nn.Module,
        ode: nn.Module,
        head: nn.Module,
        loss: nn.Module | None = None,
        draws: int = 10,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(encoder, ode, head, loss or nn.MSELoss(), draws, optimizer, scheduler, scheduler_interval)
        self.inputs, self.targets = Normalizer(), Normalizer()

    def fit_to(self, data: Any) -> None:
        """Fit the normalisers to the training part."""
        super().fit_to(data)
        if not isinstance(data, SplitData):
            return
        inputs, targets = data.part("train")
        if targets.ndim < 2:
            raise ValueError(f"data: expected targets (n, k), got shape {tuple(targets.shape)}")
        if not isinstance(self.ode, NeuralCDE):
            self.inputs.fit(inputs)
        self.targets.fit(targets)

    def judge(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the mean absolute error."""
        if outputs.shape != targets.shape:
            shapes = tuple(targets.shape), tuple(outputs.shape)
            raise ValueError("head: expected outputs of the targets' shape {}, got {}".format(*shapes))
        return self.loss(*map(self.targets, (outputs, targets))), {"mae": (outputs - targets).abs().mean()}

    def predictor(self) -> nn.Module:
        """From inputs, and seeds of the noise, to outputs, all in own units."""
        encoder, head = nn.Sequential(self.inputs, self.encoder), Inverse(self.head, self.targets)
        return Headed(encoder, self.ode, head, self.draws)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Targets and predictions, each (b, k)."""
        inputs, targets = batch
        return {"targets": targets, "predictions": self(inputs, self.sample_seeds(batch_idx, len(inputs)))}

    def pictures(self, data: SplitData) -> Iterator[tuple[str, "Figure"]]:
        """Predictions of the test part over its targets."""
        from sciml.training.drawing import draw_regression

        outputs, targets = self.tested(data)
        yield "regression", draw_regression(outputs, targets)
