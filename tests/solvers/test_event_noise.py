"""Events of equations with noise: met at the end of the step over which their function changes its sign."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciml import PID, Solver, solve
from sciml.solvers import (
    SRA1,
    Brownian,
    Diffusive,
    Discrete,
    EulerMaruyama,
    Event,
    Grid,
    ShARK,
    StratonovichHeun,
)

DTYPE, STEPS, END, LANES = torch.float64, 200, 4.0, 30
KINDS = ("joint", "each")


class Noisy(nn.Module, Diffusive):
    """dy = (a - b y) dt + s dW."""

    noise_type, calculus = "additive", "ito"

    def __init__(self, a: float = 0.0, b: float = 0.0, s: float = 1.0, calculus: Any = "ito"):
        super().__init__()
        self.a, self.b, self.s = nn.Parameter(torch.tensor(a, dtype=DTYPE)), b, s
        self.calculus = calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return self.a - self.b * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return self.s * dw


def margin(kind: str) -> Any:
    """How far all of joint lanes, or each sample, are from leaving (-1, 1)."""
    return lambda t, y: 1 - (y.abs().amax() if kind == "joint" else y.abs())


def by_hand(term: Noisy, path: Brownian, kind: str, reset: float | None) -> tuple[list[list[float]], Tensor]:
    """Euler's method in a plain loop: times of crossings of every lane, and the states in the end."""
    y, h = torch.zeros(LANES, dtype=DTYPE), END / STEPS
    ts: list[list[float]] = [[] for _ in range(1 if kind == "joint" else LANES)]
    runs = torch.ones(len(ts), dtype=torch.bool)
    for j in range(STEPS):
        dw = path(j / STEPS, (j + 1) / STEPS) * END**0.5
        y = torch.where(runs, y + h * term.drift(torch.zeros(()), y, ()) + term.s * dw, y)
        out = (margin(kind)(0, y) <= 0).reshape(-1) & runs
        for lane in out.nonzero()[:, 0].tolist():
            ts[lane].append((j + 1) * h)
        if reset is None:
            runs = runs & ~out
        else:
            y = torch.where(out, reset, y)
    return ts, y


@pytest.mark.parametrize("reset", [None, 0.25])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_events_are_those_of_a_plain_loop(kind: str, reset: float | None):
    term, solver = Noisy(0.3, 0.5, 0.7), Solver(EulerMaruyama(), Grid(n=STEPS), lanes=kind)
    event = Event(margin(kind), reset=None if reset is None else lambda t, y: torch.full_like(y, reset))
    s = solve(term, torch.zeros(LANES, dtype=DTYPE), 0.0, END, solver, path=Brownian(seed=3), events=event)
    path = Brownian((LANES,), 3, cells=STEPS, dtype=DTYPE)
    ts, y = by_hand(term, path, kind, reset)
    found = s.events[0]
    assert sum(map(len, ts)) > len(ts) * (0.7 if reset is None else 1.2)
    assert found.count.reshape(-1).tolist() == [len(x) for x in ts]
    for lane, times in zip(found.ts.reshape(len(ts), -1), ts, strict=True):
        assert (lane[: len(times)] - torch.tensor(times, dtype=DTYPE)).abs().max() < 1e-13 if times else True
    assert (s.ys - y).abs().max() < 1e-13
    if reset is None:
        assert found.ended.reshape(-1).tolist() == [len(x) == 1 for x in ts]


@torch.no_grad()
def test_exit_times_of_brownian_motion():
    """W^2 - t is a martingale on the steps, too: the mean exit time is the mean square of where they end, beyond 1."""
    n, h, end = 4000, 0.02, 8.0
    solver = Solver(EulerMaruyama(), Grid(n=400), lanes="each")
    s = solve(Noisy(), torch.zeros(n, dtype=DTYPE), 0.0, end, solver, path=Brownian(seed=1), events=margin("each"))
    left, (t, y) = s.events[0].ended, (s.events[0].ts[:, 0], s.ys)
    assert left.double().mean() > 0.999
    surplus = y.square() - torch.where(left, t, end)
    assert abs(surplus.mean()) < 3 * surplus.std() / n**0.5
    beyond = y[left].abs() - 1
    assert abs(beyond.mean() - 0.5826 * h**0.5) < 3 * beyond.std() / n**0.5 + h / 4


@pytest.mark.parametrize("stepper", [SRA1(), ShARK()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_of_adaptive_steps_the_first_end_behind_a_crossing(kind: str, stepper: Any):
    """With drift a t and noise dW the solution is known, so that every accepted end tells its own side."""
    term, a = Noisy(0.4), 0.4
    solver = Solver(stepper, PID(rtol=1e-3, atol=1e-3, dtmax=0.05), lanes=kind)
    path = Brownian(seed=5)
    s = solve(term, torch.zeros(LANES, dtype=DTYPE), 0.0, END, solver, path=path, events=margin(kind))
    motion = Brownian((LANES,), 5, cells=2**20, areas=True, dtype=DTYPE)
    theta = s.mesh.theta.reshape(len(s.mesh.theta), -1)
    sides = []
    for ends in theta:
        w = motion(0.0, ends if kind == "each" else ends[0]).w * END**0.5
        y = a * END * ends + w
        sides.append(1 - (y.abs().amax()[None] if kind == "joint" else y.abs()))
    sides = torch.stack(sides)
    assert bool(s.events[0].ended.any())
    for lane in range(theta.shape[1]):
        steps = int(s.mesh.count.reshape(-1)[lane])
        out = (sides[: steps + 1, lane] <= 0).nonzero()[:, 0].tolist()
        assert out == ([steps] if s.events[0].ended.reshape(-1)[lane] else [])


@pytest.mark.parametrize("store", ["all", "every"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_have_the_gradient_of_the_steps(kind: str, store: Any):
    term, y0 = Noisy(0.3, 0.5, 0.7), torch.zeros(LANES, dtype=DTYPE)
    event = Event(margin(kind), reset=lambda t, y: y / 2)

    def end(mesh: Any = None, adjoint: Any = None) -> Any:
        solver = Solver(EulerMaruyama(), Grid(n=STEPS), adjoint=adjoint or Discrete(), lanes=kind)
        return solve(term, y0, 0.0, END, solver, path=Brownian(seed=3), events=event, mesh=mesh)

    first = end()
    assert int(first.events[0].count.sum()) > 0
    assert not first.events[0].ts.requires_grad
    (exact,) = torch.autograd.grad(first.ys.square().sum() + first.events[0].ys.nansum(), term.a)
    again = end(adjoint=Discrete(store))
    (replayed,) = torch.autograd.grad(again.ys.square().sum() + again.events[0].ys.nansum(), term.a)
    assert abs(replayed - exact) < 1e-9 * abs(exact)
    sides = []
    for move in (1e-5, -1e-5):
        with torch.no_grad():
            term.a += move
            moved = end(first.mesh)
            term.a -= move
        sides.append(moved.ys.square().sum() + moved.events[0].ys.nansum())
    assert abs((sides[0] - sides[1]) / 2e-5 - exact) < 1e-6 * abs(exact)


@pytest.mark.parametrize("controller", [Grid(n=STEPS), PID(rtol=1e-2, atol=1e-2)], ids=["grid", "pid"])
@torch.no_grad()
def test_evaluations_are_counted(controller: Any):
    class Counted(Noisy):
        calls = 0

        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            Counted.calls += 1
            return super().drift(t, y, args)

    stepper = SRA1() if controller.adaptive else EulerMaruyama()
    y0, solver = torch.zeros(LANES, dtype=DTYPE), Solver(stepper, controller)
    event = Event(margin("joint"), reset=lambda t, y: y / 2)
    s = solve(Counted(0.1, 0.5, 0.7), y0, 0.0, END, solver, path=Brownian(seed=3), events=event)
    assert s.events[0].count > 1
    assert s.stats.nfe == Counted.calls


@torch.no_grad()
def test_stratonovich_equations_and_given_motions():
    term, path = Noisy(0.3, 0.5, 0.7, "stratonovich"), Brownian((LANES,), 3, cells=STEPS, dtype=DTYPE)
    solver = Solver(StratonovichHeun(), Grid(n=STEPS), lanes="each")
    y0 = torch.zeros(LANES, dtype=DTYPE)
    s = solve(term, y0, 0.0, END, solver, path=path, events={"out": margin("each")})
    whole = solve(term, y0, 0.0, END, solver, path=path, save_at=torch.linspace(0, END, STEPS + 1, dtype=DTYPE))
    first = (whole.ys.abs() >= 1).to(torch.int8).argmax(1)
    ended = s.events["out"].ended
    assert int(ended.sum()) > 5
    assert (s.events["out"].ts[ended, 0] - first[ended].double() * END / STEPS).abs().max() < 1e-13
    assert (s.ys - whole.ys[torch.arange(LANES), torch.where(ended, first, -1)]).abs().max() < 1e-13


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("compile", ["loop", "chunks"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_compiled_marches_meet_the_same_events(kind: str, compile: Any):
    event = Event(margin(kind), reset=lambda t, y: y / 2)
    found = []
    for mode in (None, compile):
        solver = Solver(EulerMaruyama(), Grid(n=STEPS), lanes=kind, compile=mode)
        y0 = torch.zeros(LANES, dtype=DTYPE)
        found.append(solve(Noisy(0.3, 0.5, 0.7), y0, 0.0, END, solver, path=Brownian(seed=3), events=event))
    eager, compiled = found
    assert torch.equal(eager.events[0].count, compiled.events[0].count)
    assert (eager.ys - compiled.ys).abs().max() < 1e-12
    assert (eager.events[0].ts - compiled.events[0].ts).nan_to_num().abs().max() < 1e-12
