"""What all training modules share."""

import warnings
from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sciml.data.seeding import derive_seed, run_seed
from sciml.training.sizes import STEPS, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def averages(trainer: lightning.Trainer) -> bool:
    """Whether one of its callbacks averages the weights."""
    return any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # pyrefly: ignore


class TrainingModule(lightning.LightningModule):
    """A Lightning module whose runs can be resumed bit by bit.

    Before each training step torch's global generator is seeded from (seed, epoch, batch, rank), for dropout and the
    like. A step in which the sizes of a net and of the data do not fit raises a `SizeError`. In `training_step`, log
    with `on_step=True` (the default): a mean over the epoch would miss, after a resumption, the batches before it.

    Args:
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Attributes:
        monitor: the validation metric (lower is better) that says which checkpoint is the best.
    """

    monitor: str = "val_loss"

    def __init_subclass__(cls, **options: Any) -> None:
        """Have the steps of a subclass say which argument is wrong where sizes do not fit."""
        super().__init_subclass__(**options)
        for name in STEPS:
            if (step := vars(cls).get(name)) is not None:
                setattr(cls, name, told(step))

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__()
        self.make_optimizer, self.make_scheduler = optimizer or torch.optim.Adam, scheduler
        self.scheduler_interval = scheduler_interval
        self._drawn: tuple[tuple[int, int], int] | None = None
        self._fitted = False
        self._met = 0  # samples of an evaluation so far

    def fit_to(self, data: Any) -> None:
        """Take from the trainer's data module, if it has one, what is to be known before training, as scales are."""

    def setup(self, stage: str) -> None:
        """Before training fit the module to the data."""
        if stage == "fit" and self._trainer is not None:
            self.fit_to(self.trainer.datamodule)  # pyrefly: ignore[missing-attribute]
            self._fitted = True

    def configure_model(self) -> None:
        """Take the trainer's precision before Lightning does: it reads a checkpoint into the module before that.

        Callbacks that average weights call this before `setup` and then copy the module, so that it is fitted here.
        """
        if self._trainer is None:  # in `load_from_checkpoint`
            return
        if self.trainer.state.fn == "fit" and averages(self.trainer) and not self._fitted:
            self.fit_to(self.trainer.datamodule)  # pyrefly: ignore[missing-attribute]
        self._fitted = False
        self.trainer.precision_plugin.convert_module(self)

    def configure_optimizers(self) -> Any:
        """The optimiser over all parameters, and its scheduler."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler: dict[str, Any] = {
            "scheduler": self.make_scheduler(optimizer),
            "interval": self.scheduler_interval,
            "monitor": self.monitor,
        }
        waits = isinstance(scheduler["scheduler"], ReduceLROnPlateau) and self.scheduler_interval == "epoch"
        if waits and self._trainer:
            scheduler["frequency"] = self.trainer.check_val_every_n_epoch or 1  # epochs that end with the metric
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def noise_seed(self, batch_idx: int) -> int:
        """A seed drawn for a trainer's step, the same for every evaluation of an optimiser's closure in it."""
        step = (self.current_epoch, batch_idx)
        if self._trainer is None or self._drawn is None or self._drawn[0] != step:
            self._drawn = step, int(torch.randint(2**62, ()))
        return self._drawn[1]

    def sample_seeds(self, batch_idx: int, count: int) -> Tensor:
        """Seeds (count) for an evaluation's batch: of each sample its place in its part, whatever the batches are.

        To be asked for once in a step, as it counts the samples of the batches before. Of n processes each takes
        every n-th sample, as `sciml.data.Loader` and Lightning deal them out.
        """
        first = self._met if batch_idx else 0
        self._met = first + count
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self._trainer else (0, 1)
        return rank + processes * torch.arange(first, first + count)

    def _check_schedulers(self) -> None:
        """Refuse a scheduler that ends before the training, where torch would raise after all of its steps.

        Raises:
            ValueError: naming the number of steps there are.
        """
        for config in self.trainer.lr_scheduler_configs:
            found = self.trainer.max_epochs if config.interval == "epoch" else self.trainer.estimated_stepping_batches
            total = getattr(config.scheduler, "total_steps", None)
            if total is not None and found is not None and total < found < float("inf"):
                rest = "; a run that goes on keeps its checkpoint's, or with scheduler: null goes on without"
                raise ValueError(
                    f"scheduler: expected total_steps of {found} or more, the {config.interval}s of this training, "
                    f"got {total}{rest if self.trainer.global_step else ''}"
                )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's; keeps the graph for optimisers that estimate curvature, as AdaHessian and Sophia."""
        if not any("hessian" in signature(optimizer.step).parameters for optimizer in self.trainer.optimizers):
            return super().backward(loss, *args, **kwargs)
        with warnings.catch_warnings():  # the next step's zero_grad ends the cycle that torch warns of
            warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
            return super().backward(loss, *args, create_graph=True, **kwargs)

    def on_train_start(self) -> None:
        """Put optimisers that have modes, as schedule-free ones, into that of training; check the schedulers."""
        self._check_schedulers()
        self.switch_optimizers("train")

    def on_validation_model_eval(self) -> None:
        """Validate with the weights that such optimisers are to be judged by; the best checkpoint holds these."""
        super().on_validation_model_eval()
        self.switch_optimizers("eval")

    def on_validation_model_train(self) -> None:
        """Go on training."""
        super().on_validation_model_train()
        self.switch_optimizers("train")

    def switch_optimizers(self, mode: Literal["train", "eval"]) -> None:
        """Into a mode, those that have any."""
        for optimizer in self.trainer.optimizers:
            getattr(optimizer, mode, lambda: None)()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make what the step draws a function of where it stands."""
        torch.manual_seed(derive_seed(run_seed(), "step", self.current_epoch, batch_idx, self.global_rank))

    def log(self, *args: Any, batch_size: int | None = None, **kwargs: Any) -> None:
        """Lightning's; exact also where processes have parts of different lengths.

        Lightning truncates the mean over the processes of an integer batch size.
        """
        size = None if batch_size is None else float(batch_size)
        super().log(*args, batch_size=size, **kwargs)  # pyrefly: ignore[bad-argument-type]

    def predictor(self) -> nn.Module:
        """The trained map with its normaliser, free of Lightning: what `sciml.load` returns and `export` writes."""
        raise NotImplementedError(f"{type(self).__name__} has no `predictor`: define it to load or export the model")

    def example_inputs(self, data: Any) -> tuple[Tensor, ...]:
        """Arguments of `predictor` to trace it with, at least two samples in the first axis."""
        raise NotImplementedError(
            f"there is no export of {type(self).__name__}; `sciml.load` gives the trained map in Python, and a module "
            "of your own is exported if it defines `example_inputs`"
        )

    def pictures(self, data: Any) -> Iterator[tuple[str, "Figure"]]:
        """Pictures of what the model does on test data, with their names."""
        return iter(())
