"""CPU time of `interop.sdeint` beside torchsde's, and of adjoints beside backpropagation, in float32.

A neural stochastic equation of 512 x 4 numbers, its drift a perceptron of width 64, its diffusions of width 16, takes
100 steps over [0, 1], forward and with backward. Both draw their own noise; "same motion" hands both a
`BrownianInterval`, made anew for each run. "adjoint": `sdeint_adjoint` forward and backward; its ratio to
backpropagation through `sdeint`. Figures are milliseconds.

"adaptive" and "adaptive backward": both with steps by doubling, of geometric Brownian motion of the same size from dt =
.1 on. The strong error, the mean of |y - exact| / (1 + |exact|) at the end on a motion that is given, is measured at
several tolerances, with medians over paths; CPU time, of calls that draw their own noise, and evaluations of the drift
are read off at the error in the row.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from bench_sde_adaptive import Outcome, at, missed
from sciml.solvers import interop
from timing import interleaved

BATCH, SIZE, STEPS, REPEATS = 512, 4, 100, 11
METHODS = {
    "euler": "ito",
    "milstein": "ito",
    "srk": "ito",
    "midpoint": "stratonovich",
    "reversible_heun": "stratonovich",
}
LEVY = {"srk": "space-time"}
ADAPTIVE = [method for method in METHODS if method != "euler"]  # whose adaptive steps go elsewhere
TARGETS = {"srk": 1e-3}  # of adaptive steps, else 3e-3
LEVELS = [3e-2, 1e-2, 3e-3, 1e-3, 3e-4]


def cases() -> list[str]:
    kinds = ("forward", "backward", "forward, same motion", "backward, same motion", "adjoint")
    steps = [f"{method}, {kind}" for method in METHODS for kind in kinds]
    return steps + [f"{method}, {kind}" for method in ADAPTIVE for kind in ("adaptive", "adaptive backward")]


def run(case: str, seed: int) -> dict[str, float | str]:
    method, kind, *rest = case.split(", ")
    if kind.startswith("adaptive"):
        return adaptive(method, kind.endswith("backward"), seed)
    torch.manual_seed(seed)
    net, y0 = Net(METHODS[method]), torch.randn(BATCH, SIZE)

    def call(library: Any, name: str = "sdeint") -> Callable[[], None]:
        def once() -> None:
            bm = None
            if rest:
                bm = torchsde.BrownianInterval(
                    0.0, 1.0, (BATCH, SIZE), entropy=seed, levy_area_approximation=LEVY.get(method, "none")
                )
            ys = getattr(library, name)(net, y0, [0.0, 1.0], bm=bm, dt=1 / STEPS, method=method)
            if kind != "forward":
                ys[-1].square().sum().backward()

        return once

    functions = {"ours": call(interop), "torchsde": call(torchsde)}
    if kind == "adjoint":
        functions = {"backpropagation": functions["ours"]}
        functions |= {"ours": call(interop, "sdeint_adjoint"), "torchsde": call(torchsde, "sdeint_adjoint")}
    found = {name: 1e3 * timing.cpu.median for name, timing in interleaved(functions, REPEATS, warmup=2).items()}
    row = {f"{name} ms": value for name, value in found.items()} | {
        "ours / torchsde": found["ours"] / found["torchsde"]
    }
    if kind == "adjoint":
        row["ours / backpropagation"] = found["ours"] / found["backpropagation"]
    return row


def adaptive(method: str, backward: bool, seed: int) -> dict[str, float | str]:
    """Adaptive steps at equal strong error."""
    target = TARGETS.get(method, 3e-3)

    def solver(library: Any) -> Callable[[float, int], Outcome]:
        return lambda tolerance, k: judged(library, method, tolerance, k, backward)

    found = {name: at(target, solver(each), LEVELS, seed) for name, each in (("ours", interop), ("torchsde", torchsde))}
    row: dict[str, float | str] = {"error": target}
    for name, outcome in found.items():
        row |= {f"{name} ms": 1e3 * outcome.seconds, f"{name} evaluations": outcome.evaluations}
    return row | {"ours / torchsde": found["ours"].seconds / found["torchsde"].seconds}


def judged(library: Any, method: str, tolerance: float, seed: int, backward: bool) -> Outcome:
    """The error of a solve on a given motion, and the time of one that draws its own."""
    growth, y0 = Growth(METHODS[method]), torch.ones(BATCH, SIZE)
    bm = torchsde.BrownianInterval(
        0.0, 1.0, (BATCH, SIZE), entropy=seed, levy_area_approximation=LEVY.get(method, "none")
    )
    options = {"method": method, "adaptive": True, "dt": 0.1, "rtol": 0.0, "atol": tolerance}
    with torch.no_grad():
        error = missed(library.sdeint(growth, y0, [0.0, 1.0], bm=bm, **options)[-1], growth.exact(bm(0.0, 1.0)))
    growth.calls, start = 0, time.process_time()
    with torch.set_grad_enabled(backward):
        end = library.sdeint(growth, y0, [0.0, 1.0], **options)[-1]
    calls = growth.calls
    if backward:
        end.square().sum().backward()
    return Outcome(error, calls, time.process_time() - start)


class Growth(nn.Module):
    """dy = .2 y dt + s y dW, s = .8 at first, which counts its drifts."""

    noise_type = "diagonal"

    def __init__(self, calculus: str):
        super().__init__()
        self.sde_type, self.s, self.calls = calculus, nn.Parameter(torch.tensor(0.8)), 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return 0.2 * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.s * y

    def exact(self, w: Tensor) -> Tensor:
        return (0.2 - (0.32 if self.sde_type == "ito" else 0) + 0.8 * w).exp()


class Net(nn.Module):
    """Drift and diagonal diffusion from perceptrons, the latter entry by entry."""

    noise_type = "diagonal"

    def __init__(self, calculus: str):
        super().__init__()
        self.sde_type = calculus
        self.drift = nn.Sequential(nn.Linear(SIZE, 64), nn.Tanh(), nn.Linear(64, SIZE))
        self.inner, self.outer = nn.Parameter(torch.randn(SIZE, 16)), nn.Parameter(torch.randn(SIZE, 16) / 16)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(y) - y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.3 + ((y[..., None] * self.inner).tanh() * self.outer).sum(-1)
