"""What is compiled, run as it is on another device than the host's: no device is mixed, and a chunk is read once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sciml import solve
from sciml.solvers import (
    PID,
    Discrete,
    ErrorEstimate,
    Event,
    Grid,
    MaxStiffness,
    Quadrature,
    Solver,
    Stats,
    StepCount,
    Steps,
    Tsit5,
    compiled,
    loops,
)
from sciml.solvers.loops import CHUNK
from tests.elsewhere import agree, differentiated, elsewhere, reads, states
from tests.solvers.registry import IMPLICIT, STEPPERS, Case
from tests.solvers.systems import Net

KINDS = ["joint", "each"]


def plain_loop(running: Any, body: Any, carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    while bool(running(*carry)):
        carry = body(*carry)
    return carry


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch):
    """Programs that are the functions themselves."""
    compiled.forget()
    monkeypatch.setattr(compiled, "_compiled", lambda function, what, options, captured=False: function)
    monkeypatch.setattr(loops, "while_loop", plain_loop)
    yield
    compiled.forget()


@pytest.mark.parametrize(("kind", "mode"), [("joint", "loop"), ("each", "chunks")])
@pytest.mark.parametrize("case", [c for c in STEPPERS if c.stepper.needs.__name__ == "Term"], ids=str)
def test_programs_run_elsewhere(case: Case, kind: str, mode: str):
    if case in IMPLICIT and kind == "joint":
        pytest.skip("iterations are the same in either")

    def make(device: torch.device) -> tuple[Any, ...]:
        y0, net = states(device, 3, 2), Net().to(device)
        controller = PID(rtol=1e-2, atol=1e-3) if case.stepper.adaptive else Grid(n=2)
        solver = Solver(case.stepper, controller, lanes=kind, compile=mode)
        solution = solve(net, y0, 0.0, 1.0, solver, save_at=[0.25, 1.0])
        return *differentiated(solution.ys, y0, *net.parameters()), solution.mesh.theta

    agree(make)


@pytest.mark.parametrize("mode", ["loop", "chunks"])
@pytest.mark.parametrize("kind", KINDS)
def test_folds_and_events_of_programs_elsewhere(kind: str, mode: str):
    def make(device: torch.device) -> tuple[Any, ...]:
        y0, net = states(device, 3, 2), Net().to(device)
        folds = {
            "stats": Stats(),
            "steps": Steps(),
            "count": StepCount(),
            "error": ErrorEstimate(),
            "stiff": MaxStiffness(),
            "work": Quadrature(lambda t, y, args: y.square()),
        }
        low = Event(lambda t, y, args: y[..., 0].mean(-1) - 0.4 if kind == "joint" else y[:, 0] - 0.4, -1, False)
        solver = Solver(Tsit5(), PID(jump_ts=(0.25,)), Discrete("graph"), lanes=kind, compile=mode)
        solution = solve(net, y0, 0.0, 2.0, solver, folds=folds, events=low, save_at=[0.1, 0.2, 1.5])
        found = [solution.folds[name] for name in ("count", "error", "stiff", "work")]
        loss = torch.stack([solution.ys.square().sum(), *(x.square().sum() for x in found)]).sum()
        return loss, *torch.autograd.grad(loss, [y0, *net.parameters()]), solution(0.7)

    agree(make)


@pytest.mark.parametrize("kind", KINDS)
def test_host_reads_a_chunk_once(kind: str):
    with elsewhere() as device, torch.no_grad():
        net, y0, counts = Net().to(device), states(device, 3, 2), []
        for rtol in (1e-3, 1e-9):
            solver = Solver(Tsit5(), PID(rtol=rtol, atol=1e-2 * rtol), lanes=kind, compile="chunks")
            reads.clear()
            stats = solve(net, y0, 0.0, 6.0, solver).stats
            counts.append((len(reads), int((stats.accepted + stats.rejected).max())))
    (few, short), (many, long) = counts
    assert long > short + 5 * CHUNK
    assert many - few <= (long - short) // CHUNK + 1
