"""Adaptive and order 3/2 steps of stochastic equations beside torchsde's, at equal strong error, in float32.

"hard samples" is a geometric Brownian motion of 512 samples with 4 entries, of which one sample in ten has a volatility
of 2.5 and the others of .25: SRIW1 with steps per sample ("each", and samples that arrived left out) and joint, beside
torchsde's adaptive "srk", which judges the whole batch by halving steps; "hard samples, 16384" is the same with 16,384
samples, where the work of a step exceeds its overhead. "fixed" is the same motion, all volatilities .5, on grids: SRIW1
beside torchsde's "srk". "compiled" are marches as one compiled loop, compilation apart. "neural" is a drift of our own
making (a perceptron of width 64) with diagonal noise on grids,
forward and with backward. The error is the mean of |y - exact| / (1 + |exact|) on the path that was used; of "neural"
exact is the same method with 16 times as many steps on that path. Every solver runs at several tolerances, or numbers
of steps; evaluations of the drift, summed over samples, and seconds of CPU time are read off at the error in the row by
interpolation of their logarithms.

"million" is a million Euler steps of one sample, "long" an adaptive solve over a span of 10,000: the most memory that
the process takes beyond what it had, in MiB. torchsde's BrownianInterval raises RecursionError in the first (its issue
105).
"""

import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torchsde
from torch import Tensor

from sciml import Solver, solve
from sciml.solvers import PID, SRIW1, Brownian, Diffusive, EulerMaruyama, Grid

SHAPE, LARGE, REPEATS = (512, 4), (16384, 4), 5
OURS = {"ours": None, "ours compiled": "loop"}
TARGETS = {"hard samples": 1e-3, "hard samples, 16384": 1e-3, "fixed": 3e-4, "neural": 3e-4, "neural backward": 3e-4}


class Growth(Diffusive, torch.nn.Module):
    """dy = m y dt + s y dW, as a term and as torchsde's SDE, which counts its drifts."""

    noise_type, calculus, sde_type = "diagonal", "ito", "ito"

    def __init__(self, rates: Tensor, strengths: Tensor):
        super().__init__()
        self.rates, self.strengths, self.calls = rates, strengths, 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.rates * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.strengths * y

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * y * dw

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rates), SHAPE[1]

    @property
    def args(self) -> tuple[Tensor, ...]:
        return self.rates, self.strengths

    def exact(self, w: Tensor) -> Tensor:
        return (self.rates - 0.5 * self.strengths**2 + self.strengths * w).exp()


class Neural(torch.nn.Module, Diffusive):
    """dy = (net(y) - y) dt + .5 sin(y + 1) dW, likewise."""

    noise_type, calculus, sde_type = "diagonal", "ito", "ito"

    def __init__(self, size: int):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(size, 64), torch.nn.Tanh(), torch.nn.Linear(64, size))
        self.calls = 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.drift(t, y, ())

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y + 1).sin()

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 3 * self.net(y) - y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return self.g(t, y) * dw


class Outcome(NamedTuple):
    """One solve."""

    error: float
    evaluations: float
    seconds: float


def cases() -> list[str]:
    return [*TARGETS, "million", "long"]


def run(case: str, seed: int) -> dict[str, float | str]:
    if case in ("million", "long"):
        return memory(case, seed)
    target = TARGETS[case]
    generator, samples = torch.Generator().manual_seed(seed), LARGE[0] if case.endswith("16384") else SHAPE[0]
    rates = 0.2 * torch.rand(samples, 1, generator=generator)
    hard = torch.rand(samples, 1, generator=generator) < 0.1
    process = Growth(rates, torch.where(hard, 2.5, 0.25) if case.startswith("hard") else torch.full_like(rates, 0.5))
    if case == "fixed":
        ours = {name: (lambda n, k, mode=mode: fixed(process, int(n), k, mode)) for name, mode in OURS.items()}
        theirs, levels = lambda n, k: peer(process, k, n=int(n)), [4, 8, 16, 32]
    elif case.startswith("neural"):
        torch.manual_seed(seed)
        net, backward = Neural(SHAPE[1]), case == "neural backward"
        ours = {name: (lambda n, k, mode=mode: neural(net, int(n), k, backward, mode)) for name, mode in OURS.items()}
        theirs, levels = lambda n, k: neural_peer(net, int(n), k, backward), [4, 8, 16, 32]
    else:
        ours = {
            kind: (lambda tol, k, kind=kind: adaptive(process, tol, k, kind))
            for kind in ("each", "each compiled", "joint")
        }
        theirs, levels = lambda tol, k: peer(process, k, tolerance=tol), [1e-1, 3e-2, 1e-2, 3e-3, 1e-3]
    found = {name: at(target, solver, levels, seed) for name, solver in {**ours, "torchsde": theirs}.items()}
    row: dict[str, float | str] = {"error": target}
    for name, outcome in found.items():
        row |= {f"{name} evaluations": outcome.evaluations, f"{name} ms": 1e3 * outcome.seconds}
    for name in ours:
        row |= {
            f"{name} / torchsde evaluations": found[name].evaluations / found["torchsde"].evaluations,
            f"{name} / torchsde time": found[name].seconds / found["torchsde"].seconds,
        }
    return row


def at(target: float, solver: Callable[[float, int], Outcome], levels: list[float], seed: int) -> Outcome:
    """What a solver needs for an error, from the medians of several paths at each level."""
    solver(levels[0], seed)
    rows = [np.median([solver(level, 100 * seed + k) for k in range(REPEATS)], axis=0) for level in levels]
    errors, evaluations, seconds = np.log(rows).T
    order = errors.argsort()
    if not errors.min() <= np.log(target) <= errors.max():
        raise RuntimeError(f"errors {np.exp(errors)} do not hold the target {target}")
    read = lambda y: float(np.exp(np.interp(np.log(target), errors[order], y[order])))  # noqa: E731
    return Outcome(target, read(evaluations), read(seconds))


def missed(y: Tensor, right: Tensor) -> float:
    return float(((y - right).abs() / (1 + right.abs())).mean())


@torch.no_grad()
def adaptive(process: Growth, tolerance: float, seed: int, kind: str) -> Outcome:
    lanes, shape = kind.split()[0], process.shape
    options = {"compile": "loop" if "compiled" in kind else None, "compact": (0, 1) if lanes == "each" else None}
    solver = Solver(SRIW1(), PID(tolerance, tolerance), lanes=lanes, **options)
    start = time.process_time()
    solution = solve(process, torch.ones(shape), 0.0, 1.0, solver, args=process.args, path=Brownian(seed=seed))
    seconds = time.process_time() - start
    right = process.exact(Brownian(shape, seed, cells=2**20, areas=True)(0.0, 1.0).w)
    nfe = solution.stats.nfe.sum() * (shape[0] if lanes == "joint" else 1)
    return Outcome(missed(solution.ys, right), float(nfe), seconds)


@torch.no_grad()
def fixed(process: Growth, n: int, seed: int, mode: Any) -> Outcome:
    start = time.process_time()
    solver = Solver(SRIW1(), Grid(n=n), compile=mode)
    y = solve(process, torch.ones(SHAPE), 0.0, 1.0, solver, args=process.args, path=Brownian(seed=seed)).ys
    seconds = time.process_time() - start
    right = process.exact(Brownian(SHAPE, seed, cells=n, areas=True)(0.0, 1.0).w)
    return Outcome(missed(y, right), float(2 * n * SHAPE[0]), seconds)


@torch.no_grad()
def peer(process: Growth, seed: int, tolerance: float | None = None, n: int = 16) -> Outcome:
    path = torchsde.BrownianInterval(
        0.0, 1.0, size=process.shape, entropy=seed, dtype=torch.float32, levy_area_approximation="space-time"
    )
    options = {"rtol": tolerance, "atol": tolerance, "adaptive": True} if tolerance else {}
    process.calls = 0
    start = time.process_time()
    ys = torchsde.sdeint(
        process,
        torch.ones(process.shape),
        torch.tensor([0.0, 1.0]),
        bm=path,
        method="srk",
        dt=1 / n,
        dt_min=1e-6,
        **options,
    )
    seconds = time.process_time() - start
    return Outcome(missed(ys[-1], process.exact(path(0.0, 1.0))), float(process.calls * process.shape[0]), seconds)


def neural(net: Neural, n: int, seed: int, backward: bool, mode: Any) -> Outcome:
    def end(n: int) -> Tensor:
        path = Brownian(seed=seed, cells=512)
        return solve(net, torch.ones(SHAPE), 0.0, 1.0, Solver(SRIW1(), Grid(n=n), compile=mode), path=path).ys

    return timed(net, end, n, backward)._replace(evaluations=2 * n * SHAPE[0])


def neural_peer(net: Neural, n: int, seed: int, backward: bool) -> Outcome:
    path = torchsde.BrownianInterval(
        0.0, 1.0, size=SHAPE, entropy=seed, dtype=torch.float32, levy_area_approximation="space-time"
    )

    def end(n: int) -> Tensor:
        return torchsde.sdeint(net, torch.ones(SHAPE), torch.tensor([0.0, 1.0]), bm=path, method="srk", dt=1 / n)[-1]

    return timed(net, end, n, backward)


def timed(net: Neural, end: Callable[[int], Tensor], n: int, backward: bool) -> Outcome:
    """The time of n steps on a path that was not asked before, and their error against 16 times as many."""
    net.calls, start = 0, time.process_time()
    with torch.set_grad_enabled(backward):
        y = end(n)
        if backward:
            y.square().sum().backward()
    seconds, calls = time.process_time() - start, net.calls
    with torch.no_grad():
        return Outcome(missed(y, end(16 * n)), float(calls * SHAPE[0]), seconds)


@torch.no_grad()
def memory(case: str, seed: int) -> dict[str, float | str]:
    process, y0 = Growth(torch.tensor([[-0.5]]), torch.tensor([[0.5]])), torch.ones(1, 1)
    most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    if case == "million":
        go = lambda n: solve(  # noqa: E731
            process,
            y0,
            0.0,
            1.0,
            Solver(EulerMaruyama(), Grid(n=n), max_steps=n),
            args=process.args,
            path=Brownian(seed=seed),
        )
        few, many = 1000, 1_000_000
    else:
        controller = PID(rtol=1e-2, atol=1e-2)
        go = lambda end: solve(  # noqa: E731
            process,
            y0,
            0.0,
            end,
            Solver(SRIW1(), controller, max_steps=10**6),
            args=process.args,
            path=Brownian(seed=seed),
        )
        few, many = 10.0, 10_000.0
    go(few)
    before, start = most(), time.process_time()
    solution = go(many)
    return {
        "steps": float(solution.stats.accepted.sum()),
        "rejected": float(solution.stats.rejected.sum()),
        "CPU s": time.process_time() - start,
        "MiB more": most() - before,
    }
