"""Test error of Fourier neural operators after at most a minute of training on one thread.

The map is u(0) -> u(1) of Burgers' equation u_t + u u_x = nu u_xx with nu = 0.01, periodic on [0, 1), at 256 points,
learned from 500 samples and tested on 100 others (Li et al. 2021, arXiv:2010.08895, with a tenth of their viscosity).
Everything is drawn anew from the seed, and all cases of a seed see the same fields. Beside the nets stand the best
constant (the mean of the training targets) and the best linear map (ridge regression). The peer's cases are there where
it is installed (`pip install neuraloperator==2.0.0`): "neuralop" is its default architecture with a recipe chosen for
it, "neuralop, plain" the formula and recipe of ours. Epochs are set for at most 60 s. CPU seconds count training and
compilation from an empty cache, with its subprocesses, not the making of the data.
"""

import importlib.util
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from sciml.models.fno import FNO
from sciml.problems import Burgers

POINTS, TRAIN, TEST, VISCOSITY = 256, 500, 100, 0.01


class Pairs(NamedTuple):
    """Samples of u(0) and u(1), both (b, 1, n)."""

    x: Tensor
    y: Tensor


class Scale(NamedTuple):
    """Mean and standard deviation over all samples and points."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Scale":
        """The scale of the training part."""
        return cls(values.mean(), values.std())

    def encode(self, values: Tensor) -> Tensor:
        """To mean 0 and standard deviation 1."""
        return (values - self.mean) / self.std

    def decode(self, values: Tensor) -> Tensor:
        """And back."""
        return values * self.std + self.mean


@dataclass(frozen=True)
class Recipe:
    """Adam with weight decay, a one-cycle rate stepped with each batch, the mean relative L2 error as the loss."""

    net: Callable[[], nn.Module]
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 1e-4
    warmup: float = 0.1  # part of the steps on which the rate rises
    compiled: bool = False


def plain_fno() -> nn.Module:
    return FNO(1, 1, modes=[16], width=48, layers=4)


def neuralop_fno(**options: Any) -> nn.Module:
    from neuralop.models import FNO as Peer

    return Peer(n_modes=(32,), in_channels=1, out_channels=1, hidden_channels=48, n_layers=4, **options)


def plain_neuralop_fno() -> nn.Module:
    """The peer's net reduced to the formula of ours."""
    return neuralop_fno(use_channel_mlp=False, positional_embedding=None, lifting_channel_ratio=0)


RECIPES = {
    "sciml": Recipe(plain_fno, epochs=80, batch_size=10, lr=4e-3),
    "sciml, compiled": Recipe(plain_fno, epochs=80, batch_size=10, lr=4e-3, compiled=True),
    "neuralop": Recipe(neuralop_fno, epochs=42, batch_size=20, lr=2e-3),
    "neuralop, plain": Recipe(plain_neuralop_fno, epochs=80, batch_size=10, lr=4e-3),
}


def cases() -> list[str]:
    peer = importlib.util.find_spec("neuralop") is not None
    return ["mean", "ridge", *(name for name in RECIPES if peer or not name.startswith("neuralop"))]


def run(case: str, seed: int) -> dict[str, float | str]:
    train, test = data(seed)
    if case in RECIPES:
        return fit(RECIPES[case], train, test, seed)
    predicted = ridge(train, test.x) if case == "ridge" else train.y.mean(0).expand_as(test.y)
    return {"test relative L2": relative_l2(predicted, test.y).item()}


def data(seed: int) -> tuple[Pairs, Pairs]:
    """Training and test pairs, solved by ETDRK4 to about 1e-6."""
    problem = Burgers(points=POINTS, nu=VISCOSITY, dt=1e-3)
    u0 = problem.initial(TRAIN + TEST, torch.Generator().manual_seed(seed))
    u1 = problem.evolve(u0, torch.ones(1))[:, 0]
    return Pairs(u0[:TRAIN], u1[:TRAIN]), Pairs(u0[TRAIN:], u1[TRAIN:])


def relative_l2(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean over samples of |predicted - target| / |target|."""
    return ((predicted - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)).mean()


def ridge(train: Pairs, x: Tensor, damping: float = 1e-3) -> Tensor:
    """The linear map that fits the training pairs best, with a small penalty."""
    a, b = train.x.flatten(1).double(), train.y.flatten(1).double()
    matrix = torch.linalg.solve(a.T @ a + damping * len(a) * torch.eye(a.shape[1]).double(), a.T @ b)
    return (x.flatten(1).double() @ matrix).view_as(x).to(x.dtype)


def fit(recipe: Recipe, train: Pairs, test: Pairs, seed: int) -> dict[str, float | str]:
    """Trains a net and measures it."""
    torch.manual_seed(seed)
    start = cpu_seconds()
    net = recipe.net()
    x_scale, y_scale = Scale.of(train.x), Scale.of(train.y)
    with empty_cache() if recipe.compiled else nullcontext():
        if recipe.compiled:
            net.compile()
        optimise(recipe, net, Pairs(x_scale.encode(train.x), train.y), y_scale, seed)
    seconds = cpu_seconds() - start
    with torch.no_grad():
        error = relative_l2(y_scale.decode(net.eval()(x_scale.encode(test.x))), test.y)
    return {
        "test relative L2": error.item(),
        "CPU s": seconds,
        "parameters": str(sum(p.numel() * (2 if p.is_complex() else 1) for p in net.parameters())),
        "epochs": str(recipe.epochs),
    }


def optimise(recipe: Recipe, net: nn.Module, pairs: Pairs, y_scale: Scale, seed: int) -> None:
    """Runs all epochs; the loss compares in the units of the target."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * math.ceil(len(pairs.x) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=steps, pct_start=recipe.warmup, cycle_momentum=False
    )
    for _ in range(recipe.epochs):
        for index in torch.randperm(len(pairs.x), generator=generator).split(recipe.batch_size):
            optimiser.zero_grad()
            relative_l2(y_scale.decode(net(pairs.x[index])), pairs.y[index]).backward()
            optimiser.step()
            schedule.step()


@contextmanager
def empty_cache() -> Iterator[None]:
    """Lets nothing compiled earlier, in this process or another, save time."""
    torch.compiler.reset()
    with fresh_cache():
        yield


def cpu_seconds() -> float:
    """CPU time of this process and of the compilers that it has started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
