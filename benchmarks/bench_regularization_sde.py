"""Regularised neural SDEs: what they save at prediction, what they cost in training, and what they lose.

The stochastic spiral of Pal et al. (2021): a perceptron of width 50 for the drift and a net of each coordinate for the
diffusion learn mean and deviation at 11 times of 250 paths of the data a step. SOSRI2, which tells the stiffness of the
drift too, takes adaptive steps at rtol = atol = 1e-2 that end at these times; Adam with a cosine schedule, one thread.
Every case is trained beside the unregularised one with the same seed; columns with an x are ratios to it. Errors are
those of mean and deviation over time of 4000 new paths against 4000 of the data, over the deviation; "of the data" is
what other 4000 paths of the data miss. Weights were chosen by a coarse search with seed 100.
"""

import time
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sciml import PID, Solver
from sciml.models import MLP, Autonomous, CoordinateDiffusion, DiagonalSDE, NeuralSDE, SolverRegularizer
from sciml.models.neural_sde import moments
from sciml.problems import StochasticSpiral
from sciml.solvers import SOSRI2, MaxStiffness, Stiffness

STEPS, BATCH, TRAIN, TEST = 150, 250, 1000, 4000
METHODS = {
    "unregularised": lambda: None,
    "ERNSDE": lambda: SolverRegularizer(weight=0.03),
    "SRNSDE": lambda: SolverRegularizer(Stiffness(), weight=0.3),
    "SRNSDE, max": lambda: SolverRegularizer(MaxStiffness(), weight=0.1),
    "local, unbiased": lambda: SolverRegularizer(form="unbiased", weight=1.0),
    "local, biased": lambda: SolverRegularizer(form="biased", weight=1.0),
}


class Data(NamedTuple):
    ts: Tensor
    train: Tensor
    test: Tensor
    other: Tensor


class Trained(NamedTuple):
    sde: NeuralSDE
    cpu: float
    nfe: float


@cache
def data() -> Data:
    """Paths (b, t, 2), over the deviation of all values of the training part."""
    ts = torch.linspace(0, 1, 11, dtype=torch.float64)
    draw = lambda count, seed: spiral(count, seed, ts)  # noqa: E731
    train, test, other = draw(TRAIN, 0), draw(TEST, 1), draw(TEST, 2)
    scale = train.std()
    return Data(ts, train / scale, test / scale, other / scale)


def spiral(count: int, seed: int, ts: Tensor) -> Tensor:
    problem = StochasticSpiral(noise_seed=seed)
    return problem.evolve(torch.tensor([2.0, 0.0]).expand(count, 2), ts)


def missed(paths: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """What mean and deviation are off."""
    found, known = moments(paths), moments(right)
    return found.mean - known.mean, found.std - known.std


@cache
def train(method: str, seed: int) -> Trained:
    torch.manual_seed(seed)
    ts, paths = data()[:2]
    field = DiagonalSDE(Autonomous(MLP(2, 2, 50, 2, activation="tanh")), CoordinateDiffusion(2, 16, 1.0))
    sde = NeuralSDE(field, Solver(SOSRI2(), PID(1e-2, 1e-2)), regularizer=METHODS[method]())
    optimizer = torch.optim.Adam(sde.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    cpu, nfe, begun = 0.0, 0.0, time.process_time()
    for step in range(STEPS):
        rows = torch.randperm(TRAIN)[:BATCH]
        off = missed(sde(paths[rows, 0], ts, 1000 * seed + step), paths[rows])
        loss, penalty = sum(x.square().mean() for x in off), sde.take_penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        nfe += float(sde.stats.nfe) / STEPS
    cpu = time.process_time() - begun
    return Trained(sde.eval(), cpu, nfe)


@torch.no_grad()
def judge(sde: NeuralSDE) -> dict[str, float]:
    ts, _, test, other = data()
    begun = time.process_time()
    paths = sde(test[:, 0], ts, 7)
    seconds = time.process_time() - begun
    found = {"NFE": float(sde.stats.nfe), "prediction s": seconds}
    for name, judged in (("", paths), (" of the data", other)):
        for kind, x in zip(("mean", "std"), missed(judged, test), strict=True):
            found[f"{kind} error{name}"] = float(x.norm() / moments(test).std.norm())
    return found


def cases() -> list[str]:
    return list(METHODS)


def run(case: str, seed: int) -> dict[str, float | str]:
    torch.set_num_threads(1)
    base, trained = train("unregularised", seed), train(case, seed)
    known, found = judge(base.sde), judge(trained.sde)
    return {
        **{name: value for name, value in found.items() if "error" in name},
        "NFE": found["NFE"],
        "NFE x": found["NFE"] / known["NFE"],
        "prediction CPU x": found["prediction s"] / known["prediction s"],
        "training CPU s": trained.cpu,
        "training CPU x": trained.cpu / base.cpu,
        "training NFE": trained.nfe,
    }
