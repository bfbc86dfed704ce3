"""Solver heuristics as folds, each against what it is made of, and their gradients on the frozen mesh."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    PID,
    RK4,
    Backsolve,
    Bosh3,
    ErrorEstimate,
    Fold,
    Grid,
    Heuristic,
    MaxStiffness,
    Stats,
    StepCount,
    Stiffness,
    Tsit5,
)
from tests.solvers.registry import EXPLICIT, Case
from tests.solvers.systems import DTYPE, Net

ALL = {"error": ErrorEstimate(), "count": StepCount(), "stiffness": Stiffness(), "most": MaxStiffness()}
KINDS = ["joint", "each"]
# Of differences of fourth order: truncation 1e-18 times fifth derivatives, which are large where an error estimate is
# nearly 0; round-off 1e-16 over the tolerance 1e-3 and over this.
H = 3e-5


def start(b: int = 3) -> Tensor:
    return torch.rand(b, 2, dtype=DTYPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["forward", "backward"])
def test_sums_are_those_of_the_steps_sizes_and_errors(kind: str, ends: tuple[float, float]):
    solver = Solver(Tsit5(), PID(1e-6, 1e-6), lanes=kind)
    solution = solve(Net(), start(), *ends, solver, folds={**ALL, "stats": Stats()})
    h, error = solution.folds["stats"]
    assert torch.allclose(solution.folds["error"], (h.abs() * error).sum(-1), rtol=1e-12)
    taken = torch.where(h == 0, 0, error.clamp_min(1e-10) ** 0.2)
    assert torch.allclose(solution.folds["count"], taken.sum(-1), rtol=1e-12)
    accepted = solution.stats.accepted
    assert bool((solution.folds["count"] < accepted).all() & (solution.folds["count"] > 0.5 * accepted).all())


@pytest.mark.parametrize("moving", [False, True], ids=["fixed ends", "moving ends"])
@pytest.mark.parametrize("kind", [ErrorEstimate, StepCount])
def test_errors_read_of_all_steps_at_once_are_those_read_one_after_another(kind: type[Heuristic], moving: bool):
    """To round-off, which is 1e-13 of errors near the tolerance."""
    apart = type("Apart", (kind,), {"errors": False})()
    net, y0 = Net(), start().requires_grad_()
    end = torch.tensor(2.0, dtype=torch.float64, requires_grad=moving)
    folds = {"together": kind(), "apart": apart}
    values = solve(net, y0, 0.0, end, Solver(Tsit5(), PID(1e-3, 1e-3), adjoint=Discrete()), folds=folds).folds
    wanted = [y0, *net.parameters(), *([end] if moving else [])]
    ours, theirs = (
        [value, *torch.autograd.grad(value, wanted, retain_graph=True)]
        for value in (values["together"], values["apart"])
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_what_reads_errors_where_they_are_known_goes_with_grids_too():
    class Total(Stats):
        reduce = "sum"
        finish = Fold.finish

    field = lambda t, y: -y  # noqa: E731
    y0 = start().requires_grad_()
    length, error = solve(field, y0, 0.0, 1.0, Solver(Tsit5(), Grid(n=4)), folds={"total": Total()}).folds["total"]
    assert abs(float(length) - 1) < 1e-12
    assert float(error) == 0


@pytest.mark.parametrize("case", EXPLICIT, ids=str)
def test_stability_interval_is_where_steps_begin_to_grow(case: Case):
    stepper = case.stepper
    known = {"Heun": 2.0, "RK4": 2.7853, "Dopri5": 3.3066, "Tsit5": 3.5068}  # Hairer & Wanner II, IV.2; OrdinaryDiffEq
    assert abs(stepper.stability - known.get(str(case), stepper.stability)) < 1e-4
    for share, grows in ((0.1, False), (0.5, False), (0.999, False), (1.001, True)):
        rate = share * stepper.stability
        y1 = solve(lambda t, y, rate=rate: -rate * y, torch.ones(1, dtype=DTYPE), 0.0, 1.0, Solver(stepper, Grid(n=1)))
        assert bool(y1.ys.abs() > 1) == grows


@pytest.mark.parametrize("case", [c for c in EXPLICIT if c.stepper.apart is not None], ids=str)
def test_stiffness_is_the_rate_of_a_linear_field(case: Case):
    """Exactly, since slopes differ by the rate times the difference of the states; per sample."""
    rates = torch.tensor([0.5, -2.0, 7.0], dtype=DTYPE)
    folds = {"sum": Stiffness(), "max": MaxStiffness()}
    solver = Solver(case.stepper, Grid(n=8), lanes="each")
    found = solve(lambda t, y: -rates[:, None] * y, start(), 0.0, 2.0, solver, folds=folds).folds
    expected = rates.abs() / case.stepper.stability
    assert torch.allclose(found["max"], expected, rtol=1e-6)  # differences of slopes cancel
    assert torch.allclose(found["sum"], 2 * expected, rtol=1e-6)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences_on_the_frozen_mesh(kind: str, backward: bool):
    net, lanes = Net(), (3,) if kind == "each" else ()
    ends = [torch.full(lanes, t, dtype=DTYPE) for t in ((4.0, 0.1) if backward else (0.1, 4.0))]
    solver = partial(Solver, Tsit5(), PID(1e-3, 1e-4, dt0=4.0), lanes=kind)
    first = solve(net, start(), *ends, solver())
    assert bool((first.stats.rejected > 0).all())

    def loss(adjoint: Discrete, *inputs: Tensor, mesh: object = None) -> Tensor:
        y0, t0, t1, *weights = inputs
        field = lambda t, y: torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (t, y))  # noqa: E731
        if adjoint.store != "graph":
            field = net
        found = solve(field, y0, t0, t1, solver(adjoint), folds=ALL, mesh=mesh).folds
        share = 1 + torch.arange(len(start()), dtype=DTYPE) if kind == "each" else 1.0
        return sum((0.3 + i) * (share * value).sum() for i, value in enumerate(found.values()))

    names = [name for name, _ in net.named_parameters()]
    inputs = [start().requires_grad_(), *(t.clone().requires_grad_() for t in ends), *net.parameters()]
    right = torch.autograd.grad(loss(Discrete(), *inputs, mesh=first.mesh), inputs)
    for adjoint in (Discrete("all"), Discrete("every"), Discrete("every", 2)):
        for mesh in (first.mesh, None):  # also of steps that it chooses itself
            for a, b in zip(torch.autograd.grad(loss(adjoint, *inputs, mesh=mesh), inputs), right, strict=True):
                assert (a - b).abs().max() <= 1e-9 * b.abs().max()  # the same operations, added in another order
    generator = torch.Generator().manual_seed(1)
    for i, (x, grad) in enumerate(zip(inputs, right, strict=True)):
        way = torch.randn(x.shape, dtype=DTYPE, generator=generator)

        def at(e: float, i: int = i, x: Tensor = x, way: Tensor = way) -> float:
            return float(loss(Discrete(), *inputs[:i], x + e * way, *inputs[i + 1 :], mesh=first.mesh))

        with torch.no_grad():
            difference = (8 * (at(H) - at(-H)) - (at(2 * H) - at(-2 * H))) / (12 * H)
        found = float((grad * way).sum())
        assert abs(found - difference) < 1e-6 * max(1, abs(difference))


@pytest.mark.parametrize("kind", KINDS)
def test_equilibrium_has_no_heuristics_and_finite_gradients(kind: str):
    rate = torch.nn.Parameter(torch.tensor(2.0, dtype=DTYPE))
    y0 = torch.zeros(3, 2, dtype=DTYPE, requires_grad=True)
    solver = Solver(Tsit5(), PID(1e-6, 1e-6), lanes=kind)
    found = solve(lambda t, y: -rate * y, y0, 0.0, 1.0, solver, folds=ALL).folds
    for name, value in found.items():
        assert bool(
            (value <= (0.1 if name == "count" else 0)).all()
        )  # the root of the least error, (1e-10)^(1/5), a step
        for grad in torch.autograd.grad(value.sum(), [rate, y0], retain_graph=True):
            assert bool((grad == 0).all())


def test_stiffness_of_states_that_agree_to_round_off_is_none():
    """In single precision a short step's last stages differ by round-off, over which slopes must not be divided."""
    field = lambda t, y: (3 * y).sin() + 1e3  # noqa: E731
    y0, grid = torch.full((4,), 1e3), Grid(ts=[0.0, 1e-6, 0.1])
    found = solve(field, y0, 0.0, 0.1, Solver(Tsit5(), grid), folds={"most": MaxStiffness()}).folds["most"]
    assert float(found) < 3.0 / Tsit5().stability


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("mode", "kind"), [("loop", "joint"), ("chunks", "each")])
def test_compiled_march_has_the_same(mode: str, kind: str):
    net, found = Plain(), []
    for compile in (mode, None):
        solver = Solver(Tsit5(), PID(1e-6, 1e-6), Discrete("all"), lanes=kind, compile=compile)
        folds = solve(net, start(), 0.0, 2.0, solver, folds=ALL).folds
        grads = torch.autograd.grad(sum(value.sum() for value in folds.values()), net.parameters())
        found.append([*folds.values(), *grads])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)  # an error estimate is a difference that cancels


@pytest.mark.parametrize(
    ("solver", "fold", "said"),
    [
        (Solver(Tsit5(), Grid(n=4)), ErrorEstimate(), r"folds\['x'\]: ErrorEstimate is in units of the tolerance"),
        (Solver(RK4(), Grid(n=4)), StepCount(), "which Grid has not; expected PID"),
        (Solver(Bosh3()), Stiffness(), "those of Bosh3 are not; expected Tsit5"),
        (Solver(adjoint=Backsolve()), ErrorEstimate(), "save times only, got ErrorEstimate; use Discrete"),
    ],
)
def test_what_cannot_be_read_is_refused(solver: Solver, fold: ErrorEstimate, said: str):
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    with pytest.raises(ValueError, match=said):
        solve(lambda t, y: -y, y0, 0.0, 1.0, solver, folds={"x": fold})
