"""Learning a preconditioner from systems of linear equations."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sciml.data.linear_systems import Example, LinearSystems
from sciml.data.seeding import derive_seed, run_seed
from sciml.models.learned_preconditioner import LearnedPreconditioner
from sciml.solvers.linear import LinearSolution, pcg
from sciml.training.module import TrainingModule
from sciml.training.preconditioner_losses import PreconditionerLoss, UnrolledPCG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Literal["train", "val", "test"]
DRAWN = 10  # scale up to which a picture's systems may be


class PreconditionerModule(TrainingModule):
    """Trains a network that makes preconditioners, on small systems.

    The loss is that of the training size. Training draws white noise as right-hand sides anew at every step, unless the
    data have solutions, which then go with their own right-hand sides. Validation and test solve systems of each scale
    that the data have by conjugate gradients and log the mean number of iterations, with what the model has to be
    better than beside it: `val_iterations`, `val_plain`, ... at the training size, `val_iterations_10x`, ... at ten
    times its unknowns; and how many right-hand sides the model's fallback had to finish, `val_fell_back`, and how many
    were not solved, `val_failed`. The test logs every family's iterations by name too.

    Args:
        model: the network.
        loss: default `UnrolledPCG`.
        right_hand_sides: of a training step, where they are drawn.
        rtol: residual, relative to the right-hand side, at which a solve ends.
        max_iter: iterations allowed to a solve.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.
    """

    def __init__(
        self,
        model: LearnedPreconditioner,
        loss: PreconditionerLoss | None = None,
        right_hand_sides: int = 6,
        rtol: float = 1e-8,
        max_iter: int = 2000,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        if right_hand_sides < 1:
            raise ValueError(f"right_hand_sides: expected at least 1, got {right_hand_sides}")
        self.model, self.loss = model, loss or UnrolledPCG()
        self.right_hand_sides, self.rtol, self.max_iter = right_hand_sides, rtol, max_iter
        self._seen: dict[str, Any] = {}
        self._known: dict[str, dict[str, LinearSolution]] = {}

    def setup(self, stage: str) -> None:
        """Forget the systems of other data."""
        super().setup(stage)
        self._seen.clear()
        self._known.clear()

    def seen(self, example: Example) -> Any:
        """What the model sees of a system, kept where it comes again in every epoch."""
        if example.key not in self._seen:
            self._seen[example.key] = self.model.look(example.operator, example.aggregates)
        return self._seen[example.key]

    def training_step(self, batch: list[Example], batch_idx: int) -> Tensor:
        """The mean loss of a batch of systems."""
        losses = []
        for place, example in enumerate(batch):
            b = example.b if example.x is not None else self._noise(example, batch_idx, place)
            losses.append(self.loss(example.operator, self.model(self.seen(example)), b, example.x))
        loss = torch.stack(losses).mean()
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        """Log the loss at the training size, and iterations."""
        self._evaluate("val", batch)

    def test_step(self, batch: list[Example], batch_idx: int) -> None:
        """Log the loss at the training size, and iterations, by family too."""
        self._evaluate("test", batch)

    def predict_step(self, batch: list[Example], batch_idx: int) -> dict[str, Tensor]:
        """Of each system its number of unknowns (1), and iterations (1, k) with every preconditioner."""
        (example,) = batch
        solved = self.solve(example)
        counts = {name: solution.iterations[None].cpu() for name, solution in solved.items()}
        unknowns = torch.tensor([example.operator.shape[-1]])
        return {"unknowns": unknowns, **counts, "fell_back": solved["iterations"].fell_back[None].cpu()}

    def predictor(self) -> nn.Module:
        """The model, which is a preconditioner: ``pcg(A, b, M)``."""
        return self.model

    def example_inputs(self, data: LinearSystems) -> tuple[Tensor, ...]:
        """None: what the model takes, a matrix, is no tensor.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"model: {type(self.model).__name__} makes a preconditioner from a sparse matrix, which exported programs "
            "cannot; sciml.load(run) gives it, sciml.training.TrainedPreconditioner names it in a configuration"
        )

    def solve(self, example: Example) -> dict[str, LinearSolution]:
        """A system's solutions, "iterations" with the model, and with what it has to be better than, by name."""
        options = {"rtol": self.rtol, "max_iter": self.max_iter, "throw": False}
        with torch.no_grad():
            if example.key not in self._known:
                classic = self.model.classic(example.aggregates)
                found = {name: pcg(example.operator, example.b, m, **options) for name, m in classic.items()}
                self._known[example.key] = found
            learned = pcg(example.operator, example.b, self.model.on(example.aggregates), **options)
        return {"iterations": learned, **self._known[example.key]}

    def pictures(self, data: LinearSystems) -> Iterator[tuple[str, "Figure"]]:
        """Residuals over iterations with each preconditioner, for one test system of each family."""
        from sciml.training.drawing import draw_convergence

        part = data.part("test")
        scale = max((s for s in data.scales if s <= DRAWN), default=data.scales[0])
        first = {name: i for i, (name, _, s) in reversed(list(enumerate(part.plan))) if s == scale}
        panels = {}
        for name, i in sorted(first.items(), key=lambda item: item[1]):
            (example,) = move_data_to_device(part[[i]], self.device)
            solved = self.solve(example)
            curves = {
                "learned" if key == "iterations" else key: s.history[: int(s.iterations[0]) + 1, 0].cpu()
                for key, s in solved.items()
            }
            panels[f"{name}, {example.operator.shape[-1]} unknowns"] = curves
        yield "convergence", draw_convergence(panels)

    def _noise(self, example: Example, *place: int) -> Tensor:
        a = example.operator
        seed = derive_seed(run_seed(), "right-hand sides", self.current_epoch, *place, self.global_rank)
        generator = torch.Generator(a.device).manual_seed(seed)
        shape = (self.right_hand_sides, a.shape[-1])
        return torch.randn(shape, generator=generator, dtype=a.dtype, device=a.device)

    def _evaluate(self, stage: Stage, batch: list[Example]) -> None:
        (example,) = batch
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1}
        if example.scale == 1:
            loss = self.loss(example.operator, self.model(self.seen(example)), example.b, example.x)
            self.log(f"{stage}_loss", loss, prog_bar=True, **options)
        size = "" if example.scale == 1 else f"_{example.scale}x"
        solved = self.solve(example)
        for name, solution in solved.items():
            iterations = solution.iterations.double().mean()
            self.log(f"{stage}_{name}{size}", iterations, prog_bar=name == "iterations", **options)
            if stage == "test":
                self.log(f"test_{example.name}_{name}{size}", iterations, **options)
        learned = solved["iterations"]
        self.log(f"{stage}_fell_back", learned.fell_back.double().sum(), reduce_fx="sum", **options)
        self.log(f"{stage}_failed", (~learned.converged).double().sum(), reduce_fx="sum", **options)
