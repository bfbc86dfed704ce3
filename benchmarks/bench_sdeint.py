"""CPU time of `interop.sdeint` beside torchsde's, and of adjoints beside backpropagation, in float32.

A neural stochastic equation of 512 x 4 numbers, its drift a perceptron of width 64, its diffusions of width 16, takes
100 steps over [0, 1], forward and with backward. Both draw their own noise; "same motion" hands both a
`BrownianInterval`, made anew for each run. "adjoint": `sdeint_adjoint` forward and backward; its ratio to
backpropagation through `sdeint`. Figures are milliseconds.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

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


def cases() -> list[str]:
    kinds = ("forward", "backward", "forward, same motion", "backward, same motion", "adjoint")
    return [f"{method}, {kind}" for method in METHODS for kind in kinds]


def run(case: str, seed: int) -> dict[str, float | str]:
    method, kind, *rest = case.split(", ")
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
