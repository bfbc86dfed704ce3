"""Learning a map from fields to fields."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.fields import FieldData
from sciml.data.generate import OperatorData
from sciml.training.losses import RelativeL2, relative_l2
from sciml.training.module import TrainingModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Normalizer(nn.Module):
    """An affine map of each channel to mean 0 and standard deviation 1; the identity until `fit`."""

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))
        self.register_load_state_dict_pre_hook(_take_shapes)

    def fit(self, fields: Tensor, mask: Tensor | None = None) -> None:
        """Take mean and deviation from fields `(n, c, *x)` where the mask is set; a constant one is only shifted."""
        channels = list(fields.unbind(1))
        if mask is not None:
            channels = [values[there] for values, there in zip(channels, mask.unbind(1), strict=True)]
        std, mean = map(torch.stack, zip(*(torch.std_mean(x, correction=0) for x in channels), strict=True))
        std = torch.where(std > 0, std, torch.ones_like(std))
        shape = (-1, *[1] * (fields.ndim - 2))  # (c, 1, ..)
        self.mean, self.std = mean.reshape(shape).to(self.mean.device), std.reshape(shape).to(self.std.device)

    def forward(self, fields: Tensor) -> Tensor:
        """To normalised fields `(b, c, *x)`."""
        return (fields - self.mean) / self.std

    def inverse(self, fields: Tensor) -> Tensor:
        """Back to the fields' own units."""
        return fields * self.std + self.mean


def _take_shapes(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """Take the number of channels from a checkpoint: before `fit` it is not known."""
    for name, buffer in module.named_buffers():
        if (saved := state_dict.get(prefix + name)) is not None:
            setattr(module, name, buffer.new_empty(saved.shape))


class NormalizedOperator(nn.Module):
    """A net between normalised fields, as a map between fields in their own units."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.input, self.net, self.output = Normalizer(), net, Normalizer()

    def forward(self, fields: Tensor) -> Tensor:
        """From `(b, c, *x)` to `(b, c, *x)`."""
        return self.output.inverse(self.net(self.input(fields)))


class OperatorModule(TrainingModule):
    """Trains a net that maps fields to fields, on pairs of them.

    Inputs and targets are normalised by channel with the mean and deviation of the training part; the loss sees the
    fields in their own units. Logs `train_loss`, `val_relative_l2` and `test_relative_l2`.

    Args:
        net: maps `(b, c, *x)` to `(b, c, *x)`.
        loss: takes prediction and target; default `RelativeL2`.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
        compile: compile the net for training.
    """

    monitor = "val_relative_l2"

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        compile: bool = False,
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        self.operator = NormalizedOperator(net)
        self.loss = loss or RelativeL2()
        self.compile_net = compile

    def setup(self, stage: str) -> None:
        """Fit the normalisers, and compile."""
        super().setup(stage)
        if stage == "fit" and self.compile_net:
            self.operator.net.compile()  # in place, so that the names in checkpoints stay as they are

    def fit_to(self, data: Any) -> None:
        """Fit the normalisers to the training part."""
        if isinstance(data, FieldData):
            inputs, targets = data.part("train")
            self.operator.input.fit(inputs)
            self.operator.output.fit(targets)

    def forward(self, fields: Tensor) -> Tensor:
        """From `(b, c, *x)` to `(b, c, *x)`."""
        return self.operator(fields)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of inputs and targets."""
        inputs, targets = batch
        loss = self.loss(self(inputs), targets)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(inputs))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean relative error."""
        self._log_error("val_relative_l2", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean relative error."""
        self._log_error("test_relative_l2", batch)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Inputs, targets where there are any, and predictions, each `(b, c, *x)`."""
        given = dict(zip(("inputs", "targets"), batch, strict=False))
        return {**given, "predictions": self(given["inputs"])}

    def predictor(self) -> nn.Module:
        """The map between fields in their own units."""
        return self.operator

    def example_inputs(self, data: FieldData) -> tuple[Tensor, ...]:
        """Two input fields."""
        return (data.inputs[:2].contiguous(),)

    def pictures(self, data: FieldData) -> Iterator[tuple[str, "Figure"]]:
        """Input, target, prediction and error of the first test sample."""
        from sciml.training.drawing import draw_fields

        inputs, targets = (part[:1] for part in data.part("test"))
        with torch.no_grad():
            prediction = self(inputs.to(self.device)).cpu()
        coordinates = data.problem.coordinates() if isinstance(data, OperatorData) else ()
        yield "prediction", draw_fields(inputs[0], targets[0], prediction[0], coordinates)

    def _log_error(self, name: str, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        error = relative_l2(self(inputs), targets).mean()
        self.log(name, error, prog_bar=True, batch_size=len(inputs), sync_dist=True)
