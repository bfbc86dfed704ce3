"""A net and data small enough to train a run in a second; the configuration beside it names them."""

import os
import signal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.functional import normalize

from sciml.calculus import Unknown
from sciml.data import FieldData, Observed
from sciml.data.trajectories import ObservedData
from sciml.problems import Condition, SineGordon
from sciml.training import PINNModule


class Net(nn.Module):
    """Two convolutions with dropout between them, so that training depends on torch's global generator."""

    def __init__(self, width: int = 4, dropout: float = 0.2):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, width, 3, padding=1), nn.Tanh(), nn.Dropout(dropout), nn.Conv1d(width, 1, 3, padding=1)
        )

    def forward(self, fields: Tensor) -> Tensor:
        return self.layers(fields)


class Adversaries(lightning.LightningModule):
    """Two nets with an optimiser each, stepped by hand."""

    monitor = "val_relative_l2"

    def __init__(self, lr: float = 1e-2):
        super().__init__()
        self.automatic_optimization, self.lr = False, lr
        self.nets = nn.ModuleList([Net(dropout=0), Net(dropout=0)])

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), self.lr) for net in self.nets]

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        for net, optimizer in zip(self.nets, self.optimizers(), strict=True):
            loss = (net(inputs) - targets).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val_relative_l2", (self.nets[1](inputs) - targets).square().mean(), batch_size=len(inputs))


class Ball(SineGordon):
    """Its condition on the sphere may be among the losses."""

    def conditions(self):
        return {"sphere": Condition(Unknown() + 0.0, lambda n, g: normalize(torch.randn(n, self.dim, generator=g)))}


class Both(PINNModule):
    """Trains in one process on the points of two."""

    rank = 0

    @property
    def global_rank(self) -> int:
        return self.rank

    def training_step(self, batch, batch_idx):
        losses = []
        for self.rank in (1, 0):
            losses.append(super().training_step(batch, batch_idx))
        return sum(losses) / 2


class Data(FieldData):
    """Random fields and their running means."""

    def __init__(self, train: int = 18, val: int = 4, test: int = 4, batch_size: int = 4, workers: int = 0):
        super().__init__(train, val, test, batch_size, workers)

    def fields(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(32, 1, 16, generator=torch.Generator().manual_seed(0))
        return inputs, (inputs.roll(1, -1) + inputs + inputs.roll(-1, -1)) / 3


class Rotations(ObservedData):
    """Points that go round the origin; with holes, a value in three is missing and stands there as a large number."""

    names = ("x", "y")

    def __init__(self, holes: bool = False, batch_size: int = 8):
        super().__init__(batch_size)
        self.holes = holes

    def read(self) -> dict[str, Observed]:
        generator = torch.Generator().manual_seed(0)
        ts = torch.linspace(0, 2, 9, dtype=torch.float64)
        turns = torch.linalg.matrix_exp(ts[:, None, None].float() * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        ys = torch.einsum("nc,tcd->ntd", torch.randn(24, 2, generator=generator), turns)
        mask = torch.ones_like(ys, dtype=torch.bool)
        if self.holes:
            mask[:, 1:] = torch.rand(ys[:, 1:].shape, generator=generator) > 1 / 3
            ys = ys.where(mask, 1e6)
        whole = Observed(ts, ys, mask)
        return {"train": whole.take(slice(16)), "val": whole.take(slice(16, 20)), "test": whole.take(slice(20, 24))}


class Stop(Callback):
    """Ends a run after a number of steps: by an exception, or by a signal to itself."""

    def __init__(self, step: int, signal: str | None = None):
        super().__init__()
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        self.step, self.signal = step, signal

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            if self.signal is None:
                raise RuntimeError("stopped")
            os.kill(os.getpid(), getattr(signal, self.signal))


class Weights(Callback):
    """Writes what the net of each process has come to."""

    def on_train_end(self, trainer, module):
        torch.save(module.solution.net.state_dict(), f"{trainer.default_root_dir}/weights{trainer.global_rank}.pt")


class End(Callback):
    """Ends a run in order after a batch of its first epoch, counted from 1."""

    def __init__(self, batch: int):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx + 1 == self.batch
