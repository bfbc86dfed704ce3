"""Eager adaptive solves beside torchdiffeq and torchode, at equal measured error, CPU time.

A network (float32, all lanes joint, the final state) and 256 Van der Pol oscillators (float64, 50 save times, our lanes
"each"). Every peer solves at three tolerances, atol a hundredth of rtol, with the method both have: Dopri5 beside
torchdiffeq, Tsit5 beside torchode, which always steps per sample.
Ours then takes the loosest of a ladder of tolerances whose error, against a tight reference, is no larger than the
peer's. The calls are timed in turn, and a ratio is the peer's median time over ours. Needs `pip install torchode`.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
import torchdiffeq
from torch import Tensor, nn

from sciml import PID, Solver, Tsit5, solve
from sciml.solvers import Dopri5, Stepper
from sciml.typing import Lanes
from timing import interleaved

REPEATS = 25
LADDER = [10 ** (-2 - 0.1 * i) for i in range(60)]


class Problem(NamedTuple):
    """A field of (t, y), its initial state (b, d), its save times and how our lanes are taken."""

    field: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    ts: Tensor
    lanes: Lanes


Call = Callable[[Problem, float], Tensor]


class Network(nn.Module):
    """A 2-64-64-2 network whose flow takes tens of evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        for layer in self.layers[::2]:
            nn.init.normal_(layer.weight, std=2.0 * layer.in_features**-0.5)
            nn.init.normal_(layer.bias, std=0.1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


def network() -> Problem:
    return Problem(Network(), torch.randn(128, 2), torch.tensor([0.0, 1.0]), "joint")


def van_der_pol() -> Problem:
    mu = torch.linspace(2, 10, 256, dtype=torch.float64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, mu * (1 - x * x) * v - x], -1)

    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(256, 1)
    return Problem(field, y0, torch.linspace(0, 10, 50, dtype=torch.float64), "each")


def ours(stepper: Stepper, problem: Problem, rtol: float) -> Tensor:
    solver = Solver(stepper, PID(rtol, rtol / 100), lanes=problem.lanes)
    t0, t1 = float(problem.ts[0]), float(problem.ts[-1])
    if len(problem.ts) == 2:
        return solve(problem.field, problem.y0, t0, t1, solver).ys[None]
    return solve(problem.field, problem.y0, t0, t1, solver, save_at=problem.ts).ys.transpose(0, 1)


def with_torchdiffeq(problem: Problem, rtol: float) -> Tensor:
    return torchdiffeq.odeint(problem.field, problem.y0, problem.ts, rtol=rtol, atol=rtol / 100, method="dopri5")


def with_torchode(problem: Problem, rtol: float) -> Tensor:
    import torchode

    term = torchode.ODETerm(problem.field)
    controller = torchode.IntegralController(rtol / 100, rtol, term=term)
    adjoint = torchode.AutoDiffAdjoint(torchode.Tsit5(term), controller)
    ts = problem.ts.expand(len(problem.y0), -1)
    return adjoint.solve(torchode.InitialValueProblem(y0=problem.y0, t_eval=ts)).ys.transpose(0, 1)


PEERS = {"torchdiffeq": (with_torchdiffeq, Dopri5()), "torchode": (with_torchode, Tsit5())}
RTOLS = (1e-3, 1e-4, 1e-5)
CASES = {
    f"{name} {mode} vs {peer}": (problem, mode, peer)
    for name, problem, mode in (
        ("network", network, "forward"),
        ("network", network, "training"),
        ("Van der Pol", van_der_pol, "forward"),
    )
    for peer in PEERS
}


def cases() -> list[str]:
    return list(CASES)


def run(case: str, seed: int) -> dict[str, float | str]:
    make, mode, name = CASES[case]
    torch.manual_seed(seed)
    problem, (peer, stepper) = make(), PEERS[name]
    own, exact = partial(ours, stepper), reference(problem)
    row: dict[str, float | str] = {}
    for rtol in RTOLS:
        allowed = error(peer, problem, rtol, exact)
        tolerance = next(tol for tol in LADDER if error(own, problem, tol, exact) <= allowed)
        calls = {"peer": call(peer, problem, rtol, mode), "ours": call(own, problem, tolerance, mode)}
        times = {key: timing.cpu.median for key, timing in interleaved(calls, REPEATS, warmup=2).items()}
        row[f"error at {rtol:g}"] = allowed
        row[f"ms at {rtol:g}"] = 1e3 * times["ours"]
        row[f"ratio at {rtol:g}"] = times["peer"] / times["ours"]
    return row


@torch.no_grad()
def reference(problem: Problem) -> Tensor:
    """The solution in float64 at a tight tolerance, by torchdiffeq's dopri8."""
    field = deepcopy(problem.field).double() if isinstance(problem.field, nn.Module) else problem.field
    y0, ts = problem.y0.double(), problem.ts.double()
    return torchdiffeq.odeint(field, y0, ts, rtol=1e-11, atol=1e-12, method="dopri8")


@torch.no_grad()
def error(solver: Call, problem: Problem, rtol: float, exact: Tensor) -> float:
    """Root mean square over the saved states after the first."""
    found = solver(problem, rtol).double()
    saved = slice(-1, None) if len(exact) == 2 else slice(1, None)
    return (found[saved] - exact[saved]).square().mean().sqrt().item()


def call(solver: Call, problem: Problem, rtol: float, mode: str) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            solver(problem, rtol)

    def training() -> None:
        solver(problem, rtol)[-1].square().mean().backward()

    return forward if mode == "forward" else training
