"""Time and memory of the discrete adjoints on a neural ODE (2-64-64-2, batch 128, Tsit5), float32, CPU time.

"plain" is what differentiation costs at the least: a hand-written forward pass over the accepted steps, known
beforehand, and its backward pass. A solve also has to find the steps, and a replay to take them again.

"digits_node" is the field of that example, a batch of 64, over 200 steps of a grid: what the forward pass keeps, in MiB
and in states, and how many times as much backpropagation keeps.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bench_ode_eager import Network
from sciml import PID, Discrete, Grid, Solver, Tsit5, solve
from sciml.models import Autonomous, Chain
from sciml.solvers.tableau import TSIT5
from timing import interleaved

REPEATS = 40
STORES = {"graph": Discrete("graph"), "all": Discrete("all"), "every": Discrete("every")}
DIGITS, STEPS = "digits_node: ", 200


def cases() -> list[str]:
    return [*STORES, *(DIGITS + store for store in STORES)]


def run(case: str, seed: int) -> dict[str, float | str]:
    torch.manual_seed(seed)
    if case.startswith(DIGITS):
        return digits(STORES[case.removeprefix(DIGITS)])
    net, y0 = Network(), torch.randn(128, 2)
    solver = Solver(Tsit5(), PID(1e-5, 1e-7), STORES[case])
    theta = solve(net, y0, 0.0, 1.0, solver).mesh.theta.tolist()

    def with_solver() -> None:
        solve(net, y0, 0.0, 1.0, solver).ys.square().mean().backward()

    def plain() -> None:
        known_steps(net, y0, theta).square().mean().backward()

    times = interleaved({"solver": with_solver, "plain": plain}, REPEATS, warmup=3)
    return {
        "steps": str(len(theta) - 1),
        "ms": 1e3 * times["solver"].cpu.median,
        "plain ms": 1e3 * times["plain"].cpu.median,
        "ratio": times["solver"].cpu.median / times["plain"].cpu.median,
        "saved MiB": saved(net, y0, solver) / 2**20,
    }


def digits(adjoint: Discrete) -> dict[str, float | str]:
    conv = lambda: nn.Conv2d(32, 32, 3, padding=1)  # noqa: E731
    field, y0 = Autonomous(Chain([conv(), nn.Tanh(), conv()])), torch.randn(64, 32, 4, 4)
    kept, graph = (saved(field, y0, Solver(Tsit5(), Grid(n=STEPS), adjoint)) for adjoint in (adjoint, STORES["graph"]))
    return {
        "steps": str(STEPS),
        "saved MiB": kept / 2**20,
        "saved states": kept / y0.nbytes,
        "times as much by backpropagation": graph / kept,
    }


def known_steps(net: nn.Module, y: Tensor, theta: list[float]) -> Tensor:
    """Tsit5 over given steps as one would write it by hand."""
    k = net(torch.tensor(theta[0]), y)
    for t0, t1 in pairwise(theta):
        h, ks = t1 - t0, [k]
        for row, c in zip(TSIT5.a, TSIT5.c, strict=True):
            stage = y
            for a, k in zip(row, ks, strict=True):
                stage = torch.add(stage, k, alpha=h * a)
            ks.append(net(torch.tensor(t0 + c * h), stage))
        y, k = stage, ks[-1]
    return y


def saved(net: nn.Module, y0: Tensor, solver: Solver) -> float:
    """Bytes that the forward pass keeps for the backward one, parameters left out."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ys = solve(net, y0, 0.0, 1.0, solver).ys
    del ys
    return float(sum(kept.values()))
