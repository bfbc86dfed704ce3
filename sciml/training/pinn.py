"""Training a network on an equation: physics-informed neural networks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from sciml.calculus import Draw, Estimator, Expression
from sciml.data.collocation import Block, Collocation
from sciml.problems.equation import Ansatz, Equation
from sciml.training.levenberg_marquardt import LevenbergMarquardt, Residuals
from sciml.training.module import TrainingModule
from sciml.training.sizes import misfit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Literal["train", "val", "test"]
RESERVED = ("residual", "loss", "relative_l2", "baseline")
ENTRIES = 2**25  # of the points of a picture
SHOWN = 1000  # coordinates up to which predictions come with their points
FEW = 10  # entries of a parameter of the equation up to which it is logged


class Part(NamedTuple):
    """A part of the loss: weight times the mean square of a residual at some points."""

    name: str
    residual: Expression
    x: Tensor  # (n, d)
    weight: float

    @property
    def scale(self) -> float:
        """What makes a sum of squares of it."""
        return (self.weight / len(self.x)) ** 0.5


class Squared(nn.Module):
    """The mean square of a residual, or the mean product of two independent estimates of it, and of its gradient.

    Args:
        residual: what is to be zero.
        u: the function (b, d) -> (b, c).
        gradient: weight of the square of the residual's gradient along all coordinates (gPINN); 0 leaves it out.
    """

    def __init__(self, residual: Expression, u: nn.Module, gradient: float = 0.0):
        super().__init__()
        self.residual, self.u, self.gradient = residual, u, gradient

    def forward(self, x: Tensor, draws: Sequence[Draw | None]) -> tuple[Tensor, Tensor]:
        """The loss, and the mean square of the residual itself.

        Args:
            x: points (b, d).
            draws: one for a plain square, two for an unbiased one; None computes all terms.
        """
        if not self.gradient:
            found = [self._summed(x, draw)[1] for draw in draws]
            loss = (found[0] * found[-1]).mean()
            return loss, loss.detach()
        slopes, found = zip(*(grad(self._summed, has_aux=True)(x, draw) for draw in draws), strict=True)
        square = (found[0] * found[-1]).mean()
        return square + self.gradient * (slopes[0] * slopes[-1]).sum(1).mean(), square.detach()

    def _summed(self, x: Tensor, draw: Draw | None) -> tuple[Tensor, Tensor]:
        """The sum of the residual over the points, and the residual (b)."""
        r = self.residual(self.u, x, draw)
        if not isinstance(r, Tensor) or r.shape != x.shape[:1]:
            got = tuple(r.shape) if isinstance(r, Tensor) else r
            raise ValueError(f"residual: expected a number per point, ({len(x)}), got {got}")
        return r.sum(), r


class PINNModule(TrainingModule):
    """Trains a net to solve an equation, on points that are drawn anew for every step.

    loss = mean r^2 (+ gradient_weight mean |grad r|^2) + sum over conditions of weight mean r_condition^2.

    With an estimator, sums over coordinates in the residual are estimated (STDE). Two ``draws`` make the loss and its
    gradient unbiased. One is cheaper and as in the paper, but adds the variance of the estimate to the loss: where the
    terms of a solution's sum differ much, `Sparse` samples then train a net whose terms are equal, and `Dense` ones,
    whose variance comes from mixed derivatives, or two draws are needed. What is logged of the residual contains that
    variance too.

    Logs `train_loss`, `train_residual` (the mean square), each condition's loss, and for validation and test the same
    and, where the solution is known, `relative_l2` over all points and what the best constant net reaches, `baseline`;
    where it is known at a landmark, that error by its name. An unknown number `k` of the equation is logged as
    `train_k`, several entries as `train_k_0` and so on. Where at least two samples estimate a sum,
    `train_estimate_std` is the standard error of the residual's estimate (root mean square over the points), at the
    steps that are written down: its square is what the variance of the estimate adds to `train_residual` with one draw.

    Args:
        equation: the equation, its domain and its conditions.
        net: maps points (b, d) to (b, c).
        estimator: estimates sums over coordinates; None computes all of their terms.
        draws: independent estimates per step, 1 or 2.
        hard: let the output meet the conditions that the equation can build in.
        weights: of the conditions' losses, by name; 1 where none is given.
        gradient_weight: of the squared gradient of the residual (gPINN).
        candidates: how many points to draw for each one that is trained on; of these they are chosen with probabilities
            in proportion to |r| / mean |r| + 1 (Wu et al. 2023).
        compile: compile the loss.
        optimizer: makes the optimiser from the parameters; default `torch.optim.Adam`.
        scheduler: makes a learning-rate scheduler from the optimiser.
        scheduler_interval: whether the scheduler counts epochs or steps.

    Raises:
        ValueError: if a condition is missing, or an argument does not fit.

    Reference:
        M. Raissi, P. Perdikaris, G. E. Karniadakis, Physics-informed neural networks, J. Comput. Phys. 378 (2019),
        doi:10.1016/j.jcp.2018.10.045; gPINN: J. Yu et al., CMAME 393 (2022), doi:10.1016/j.cma.2022.114823;
        candidates: C. Wu et al., CMAME 403 (2023), doi:10.1016/j.cma.2022.115671.
    """

    def __init__(
        self,
        equation: Equation,
        net: nn.Module,
        estimator: Estimator | None = None,
        draws: int = 1,
        hard: bool = True,
        weights: dict[str, float] | None = None,
        gradient_weight: float = 0.0,
        candidates: int = 1,
        compile: bool = False,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "step",
    ):
        super().__init__(optimizer, scheduler, scheduler_interval)
        if draws not in (1, 2):
            raise ValueError(f"draws: expected 1 or 2, got {draws!r}")
        self.solution, self.estimator, self.draws = Ansatz(equation, net, hard), estimator, draws
        self.residual = equation.residual()
        self.weights = weights or {}
        unknown = [name for name in self.weights if name not in self.solution.soft]
        if unknown:
            raise ValueError(f"weights: expected names among {list(self.solution.soft)}, got {', '.join(unknown)}")
        reserved = [name for name in self.solution.soft if name in RESERVED]
        if reserved:
            raise ValueError(f"equation: a condition cannot be named {reserved[0]!r}, as a metric is; expected another")
        if candidates < 1:
            raise ValueError(f"candidates: expected at least 1, got {candidates}")
        self.gradient_weight, self.candidates, self.compile_loss = gradient_weight, candidates, compile
        self.monitor = "val_loss" if type(equation).exact is Equation.exact else "val_relative_l2"
        self._losses: dict[tuple[str, bool], Callable[..., tuple[Tensor, Tensor]]] = {}
        self._choice: tuple[list[int], Tensor] | None = None  # epoch and block, the candidates chosen
        self._parts: list[Part] = []  # of the last step
        self._sums: Tensor | None = None  # of squares: error, solution, and the products with the baseline

    @property
    def equation(self) -> Equation:
        """What is solved."""
        return self.solution.equation

    def setup(self, stage: str) -> None:
        """Try equation and net on a few points.

        Raises:
            ValueError: if they do not fit together.
        """
        super().setup(stage)
        generator = torch.Generator(next(self.solution.net.parameters()).device).manual_seed(0)
        samples = {"sample": self.equation.sample, **{name: c.sample for name, c in self.solution.soft.items()}}
        for sample in samples.values():
            x = self._cast(sample(4, generator))
            self.equation.check(x)
        try:
            with torch.no_grad():
                self.solution(x)
        except RuntimeError as error:
            if (found := misfit(error, self)) is not None:
                raise found from error
            raise ValueError(f"net: it cannot take points (b, {self.equation.dim}): {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        """The solution (b, c) at points (b, d)."""
        return self.solution(x)

    def training_step(self, batch: Block, batch_idx: int) -> Tensor:
        """The loss of points drawn for this step."""
        return self._step("train", batch)

    def validation_step(self, batch: Block, batch_idx: int) -> None:
        """Log the loss, and add up errors."""
        self._step("val", batch)

    def test_step(self, batch: Block, batch_idx: int) -> None:
        """Log the loss, and add up errors."""
        self._step("test", batch)

    def on_validation_epoch_start(self) -> None:
        """Begin to add up; an evaluation before may have been stopped."""
        self._sums = None

    def on_test_epoch_start(self) -> None:
        """Begin to add up."""
        self._sums = None

    def on_validation_epoch_end(self) -> None:
        """Log the error over all points."""
        self._log_error("val")

    def on_test_epoch_end(self) -> None:
        """Log the error over all points."""
        self._log_error("test")

    def predict_step(self, batch: Block, batch_idx: int) -> dict[str, Tensor]:
        """Predictions and, where known, the solution (b, c); the residual (b); points (b, d) of few coordinates."""
        with torch.inference_mode(False), torch.no_grad():
            x, draw = self._sample(batch)
            found = {"predictions": self(x), "residual": self.residual(self.solution, x, draw)}
            exact = self.equation.exact(x)
        shown = {"points": x} if self.equation.dim <= SHOWN else {}
        return {**shown, **found, **({} if exact is None else {"targets": exact})}

    def predictor(self) -> nn.Module:
        """From points to the solution."""
        return self.solution

    def example_inputs(self, data: Collocation) -> tuple[Tensor, ...]:
        """Two points."""
        return (self.equation.sample(2, torch.Generator().manual_seed(0)),)

    def pictures(self, data: Collocation) -> Iterator[tuple[str, "Figure"]]:
        """The solution on a plane through the domain, beside the exact one where it is known."""
        from sciml.training.drawing import draw_plane

        plane = self.equation.plane(max(11, min(101, int((ENTRIES / self.equation.dim) ** 0.5))))
        x = self._cast(plane.points.to(self.device))
        with torch.no_grad():
            prediction, exact = self(x)[:, 0].cpu(), self.equation.exact(x)
        inside = self.equation.inside(x).cpu()
        yield "solution", draw_plane(plane, prediction, None if exact is None else exact[:, 0].cpu(), inside)

    def configure_optimizers(self) -> Any:
        """The optimiser over all parameters; a least-squares one gets the residuals of the step's points."""
        made = super().configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        if isinstance(optimizer, LevenbergMarquardt):
            if self.estimator is not None or self.gradient_weight or list(self.equation.parameters()):
                raise ValueError(
                    "optimizer: LevenbergMarquardt takes plain residuals: no estimator, no gradient_weight, "
                    "no parameters of the equation"
                )
            optimizer.residuals = Residuals(self._residuals, self._jacobian)
        elif self.compile_loss and "hessian" in signature(optimizer.step).parameters:
            raise ValueError(f"compile: {type(optimizer).__name__} differentiates the gradient; expected False")
        return made

    def on_fit_start(self) -> None:
        """Refuse what would go wrong silently.

        Raises:
            ValueError: if several processes, or several batches for a step, cannot work with the other arguments.
        """
        if self.candidates > 1 and self.trainer.world_size > 1:
            raise ValueError(f"candidates: expected 1 with several processes, got {self.candidates}")
        settings = {
            "devices": self.trainer.world_size > 1,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches > 1,
            "gradient_clip_val": bool(self.trainer.gradient_clip_val),
        }
        if any(isinstance(optimizer, LevenbergMarquardt) for optimizer in self.trainer.optimizers):
            for name, given in settings.items():
                if given:
                    raise ValueError(f"trainer.{name}: LevenbergMarquardt solves for one whole batch in one process")

    def _step(self, stage: Stage, block: Block) -> Tensor:
        with torch.inference_mode(False), torch.set_grad_enabled(stage == "train"):
            x, *draws = self._sample(block, self.draws)
            self._parts = [Part("residual", self.residual, x, 1.0), *self._boundary(block)]
            total, metrics = torch.zeros((), dtype=x.dtype, device=x.device), {}
            for part in self._parts:
                inner = part.name == "residual"
                loss, square = self._loss(part, self.gradient_weight if inner else 0.0)(
                    part.x, draws if inner else [None]
                )
                total = total + part.weight * loss
                metrics[f"{stage}_{part.name}"] = square
        metrics = {**self._sought(stage), **metrics, f"{stage}_loss": total}
        self.log_dict(metrics, prog_bar=True, batch_size=block.interior, sync_dist=stage != "train")
        if stage != "train":
            self._add_error(x.detach())
        elif self._has_spread(x, draws[0]):
            self.log("train_estimate_std", self._spread(x, draws[0]))
        return total

    def _has_spread(self, x: Tensor, draw: Draw | None) -> bool:
        """Whether this step is one that is written down, and the samples can tell the error of the estimate."""
        every = self.trainer.log_every_n_steps  # pyrefly: ignore[missing-attribute]
        written = every and (self.global_step + 1) % every == 0
        return bool(written and draw is not None and draw.estimator.samples > 1 and draw.random(x))

    @torch.no_grad()
    def _spread(self, x: Tensor, draw: Draw) -> Tensor:
        """The standard error of the residual, root mean square over the points."""
        return self.residual.with_error(self.solution, x, draw)[1].square().mean().sqrt()

    def _sought(self, stage: Stage) -> dict[str, Tensor]:
        """The unknown numbers of the equation: its own parameters of few entries."""
        found = {}
        for name, parameter in self.equation.named_parameters(recurse=False):
            entries = parameter.detach().flatten()
            if len(entries) <= FEW:
                names = [name] if len(entries) == 1 else [f"{name}_{i}" for i in range(len(entries))]
                found |= {f"{stage}_{key}": entry for key, entry in zip(names, entries, strict=True)}
        return found

    def _boundary(self, block: Block) -> Iterator["Part"]:
        """The conditions among the losses, at a block's points."""
        for name, condition in self.solution.soft.items():
            x = self._cast(condition.sample(block.boundary, self._generator(block, f"condition {name}")))
            yield Part(name, condition.residual, x, self.weights.get(name, 1.0))

    def _residuals(self) -> Tensor:
        """Those at the step's points, such that the loss is their sum of squares."""
        return torch.cat([part.scale * part.residual(self.solution, part.x) for part in self._parts])

    def _jacobian(self) -> tuple[Tensor, Tensor]:
        """The residuals (n) and their derivatives (n, p) to the parameters."""

        def one(parameters: Mapping[str, Tensor], point: Tensor, residual: Expression) -> Tensor:
            return residual(lambda x: functional_call(self.solution, dict(parameters), (x,)), point[None])[0]

        parameters = {name: p for name, p in self.solution.named_parameters() if p.requires_grad}
        rows, values = [], []
        for part in self._parts:
            slopes, value = vmap(grad_and_value(one), (None, 0, None))(parameters, part.x, part.residual)
            rows.append(part.scale * torch.cat([slopes[name].flatten(1) for name in parameters], 1))
            values.append(part.scale * value)
        return torch.cat(values), torch.cat(rows)

    def _sample(self, block: Block, draws: int = 1) -> tuple[Any, ...]:
        """Points of a block, and samples for estimates."""
        many = self.candidates if block.part == "train" else 1
        x = self._cast(self.equation.sample(many * block.interior, self._generator(block, "domain")))
        if many > 1:
            x = x[self._chosen(x, block)]
        return x, *self._draws(x, self._generator(block, "estimate"), draws)

    def _draws(self, x: Tensor, generator: torch.Generator, count: int = 1) -> list[Draw | None]:
        if self.estimator is None:
            return [None]  # for each draw there would be the same
        return [self.estimator.draw(self.residual, x, generator) for _ in range(count)]

    def _generator(self, block: Block, purpose: str) -> torch.Generator:
        return block.generator(self.current_epoch, self.device, purpose, self.global_rank)

    def _chosen(self, x: Tensor, block: Block) -> Tensor:
        """Which of many points to train on, by their residuals when the block is met first."""
        place = [self.current_epoch, block.number]
        if self._choice is None or self._choice[0] != place:
            generator = self._generator(block, "choice")
            with torch.no_grad():
                size = self.residual(self.solution, x, *self._draws(x, generator)).abs()
            weight = size / size.mean().clamp_min(torch.finfo(size.dtype).tiny) + 1
            if not bool(weight.isfinite().all()):
                raise RuntimeError(
                    "residual: it is not finite, training has diverged; expected a smaller learning rate"
                )
            self._choice = place, torch.multinomial(weight, block.interior, generator=generator)
        return self._choice[1]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which points were chosen: a resumed run may be in the middle of their block."""
        checkpoint["sciml_pinn"] = self._choice

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        self._choice = checkpoint.get("sciml_pinn")

    def _cast(self, x: Tensor) -> Tensor:
        """Points in the dtype of the net."""
        return x.to(next(self.solution.net.parameters()).dtype)

    def _loss(self, part: "Part", gradient: float) -> Callable[..., tuple[Tensor, Tensor]]:
        """The loss of a residual, compiled for training where that is wanted."""
        key = part.name, self.training
        if key not in self._losses:
            loss = Squared(part.residual, self.solution, gradient)
            self._losses[key] = torch.compile(loss, fullgraph=True) if self.compile_loss and self.training else loss
        return self._losses[key]

    @torch.no_grad()
    def _add_error(self, x: Tensor) -> None:
        """Add up squares over the points: of the error, of the solution, and those that the baseline is made of."""
        exact = self.equation.exact(x)
        if exact is None:
            return
        found, ones = self(x), torch.ones_like(exact)
        if found.shape != exact.shape:
            raise ValueError(f"equation.exact: expected values {tuple(found.shape)}, got {tuple(exact.shape)}")
        base = self.equation.output(x, 0 * ones) if self.solution.hard else 0 * ones
        slope = (self.equation.output(x, ones) if self.solution.hard else ones) - base
        pairs = ((found - exact,) * 2, (exact,) * 2, (exact - base,) * 2, (exact - base, slope), (slope,) * 2)
        sums = torch.stack([(a.double() * b.double()).sum() for a, b in pairs])
        self._sums = sums if self._sums is None else self._sums + sums

    def _log_error(self, stage: Stage) -> None:
        """Log errors relative to the solution: at landmarks, over all points, and that of the best constant net."""
        for name, landmark in self.equation.landmarks().items():
            x = self._cast(landmark.point.to(self.device))
            exact = self.equation.exact(x) if landmark.value is None else landmark.value.to(x)
            if exact is not None:
                self.log(f"{stage}_{name}_error", (self(x) - exact).abs().max() / exact.abs().max(), sync_dist=True)
        if self._sums is None:
            return
        gathered: Any = self.all_gather(self._sums)
        sums, self._sums = gathered.reshape(-1, 5).sum(0), None
        error, whole, shifted, along, slope = sums.unbind()
        self.log(f"{stage}_relative_l2", (error / whole).sqrt(), prog_bar=True, sync_dist=True)
        self.log(f"{stage}_baseline", ((shifted - along**2 / slope).clamp_min(0) / whole).sqrt(), sync_dist=True)
