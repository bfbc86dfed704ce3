"""CPU time per increment of Brownian motion, beside torchsde's BrownianInterval, and of an Euler step, in float32.

A path over [0, 1] is asked for its increments one step after another, 128 or 100 of them; "rejected": every fifth step
is asked for whole, then its first half, then whole again. The tree is the default of a solve, asked as joint lanes ask;
with rejections its cells are half steps. "each" are lanes that step by themselves. "Euler" is a solve of an
Ornstein-Uhlenbeck process with a drift of our own making (a perceptron of width 64), forward and with backward, beside
torchsde's `sdeint`; "compiled" is the same with ``compile="loop"`` and noise by the step. Figures are
microseconds per accepted step.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from sciml import Solver, solve
from sciml.solvers import Brownian, Diffusive, EulerMaruyama, Grid
from timing import interleaved

SHAPES, STEPS, REPEATS = ((16, 4), (512, 4)), (128, 100), 11


def cases() -> list[str]:
    kinds = ("increments", "rejected", "each", "Euler", "Euler backward", "Euler compiled", "Euler compiled backward")
    return [f"{kind}, {b} x {d}" for kind in kinds for b, d in SHAPES]


def run(case: str, seed: int) -> dict[str, float | str]:
    kind, sizes = case.split(", ")
    b, d = map(int, sizes.split(" x "))
    torch.manual_seed(seed)
    times: dict[str, float] = {}
    for n in STEPS:
        ours, theirs = pair(kind, (b, d), n, seed)
        timings = interleaved({f"ours {n}": ours, f"torchsde {n}": theirs}, REPEATS, warmup=2)
        times |= {name: timing.cpu.median for name, timing in timings.items()}
    micro = {f"{name} us": 1e6 * seconds / int(name.split()[1]) for name, seconds in times.items()}
    first, second = STEPS
    return {
        **micro,
        **{f"ours / torchsde {n}": times[f"ours {n}"] / times[f"torchsde {n}"] for n in STEPS},
        "ours 100 / 128": micro[f"ours {second} us"] / micro[f"ours {first} us"],
        "torchsde 100 / 128": micro[f"torchsde {second} us"] / micro[f"torchsde {first} us"],
    }


def pair(kind: str, shape: tuple[int, int], n: int, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One run over all steps, ours and torchsde's, each from a path that was not asked before."""
    if kind.startswith("Euler"):
        process, y0, backward = Process(shape[1]), torch.zeros(shape), kind.endswith("backward")
        ts = torch.tensor([0.0, 1.0])
        compiled = "compiled" in kind
        solver = Solver(EulerMaruyama(), Grid(n=n), compile="loop" if compiled else None)
        options = {"cells": n, "by": "step"} if compiled else {}

        def ours() -> Any:
            return end(solve(process, y0, 0.0, 1.0, solver, path=Brownian(seed=seed, **options)).ys, backward)

        def theirs() -> Any:
            return end(torchsde.sdeint(process, y0, ts, dt=1 / n, method="euler")[-1], backward)

        return ours, theirs
    questions = list(asked(n, kind == "rejected"))
    cells = 2 * n if kind == "rejected" else n

    def ours() -> None:
        path = Brownian(shape, seed, cells=cells)
        tensors, span = path.tensors(), torch.ones((), dtype=torch.float64)
        if kind == "each":
            for s, t in questions:
                ends = (torch.full(shape[:1], x, dtype=torch.float64) for x in (s, t))
                path.increment(tensors, *ends, span.expand(shape[0]))
        else:
            for s, t in questions:
                path.increment(tensors, s, t, span)

    def theirs() -> None:
        path = torchsde.BrownianInterval(0.0, 1.0, size=shape, entropy=seed, dtype=torch.float32)
        for s, t in questions:
            path(s, t)

    return ours, theirs


def asked(n: int, rejects: bool) -> Any:
    for j in range(n):
        s, t = j / n, (j + 1) / n
        if rejects and j % 5 == 0:
            yield s, t
            yield s, (j + 0.5) / n
        yield s, t


def end(y: Tensor, backward: bool) -> None:
    if backward:
        y.square().sum().backward()


class Process(nn.Module, Diffusive):
    """dy = (net(y) - y) dt + 0.3 dW, as a term and as torchsde's SDE."""

    noise_type, calculus, sde_type = "diagonal", "ito", "ito"

    def __init__(self, size: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, size))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) - y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, 0.3)

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return self.f(t, y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0.3 * dw
