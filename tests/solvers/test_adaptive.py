import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from sciml import Solver, Status, solve
from sciml.solvers import ETDRK4, PID, RK4, Dopri5, Euler, Grid, Stats, Steps, Tsit5
from tests.solvers.registry import ADAPTIVE, EXPLICIT, EXPONENTIAL, Case
from tests.solvers.systems import DTYPE, Linked, coupled, coupled_exact

KINDS = ["joint", "each"]


class Named(NamedTuple):
    name: str
    field: object
    y0: list[float]
    t1: float


def lotka(t: Tensor, y: Tensor) -> Tensor:
    prey, predators = y.unbind(-1)
    return torch.stack([1.5 * prey - prey * predators, prey * predators - 3 * predators], -1)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    position, speed = y.unbind(-1)
    return torch.stack([speed, 5 * (1 - position**2) * speed - position], -1)


def arenstorf(t: Tensor, y: Tensor) -> Tensor:
    """A satellite between earth and moon, two thirds of its closed orbit."""
    a, b, u, v = y.unbind(-1)
    mu = 0.012277471
    earth, moon = ((a + mu) ** 2 + b**2) ** -1.5, ((a - 1 + mu) ** 2 + b**2) ** -1.5
    pull_a = (1 - mu) * earth * (a + mu) + mu * moon * (a - 1 + mu)
    pull_b = (1 - mu) * earth * b + mu * moon * b
    return torch.stack([u, v, a + 2 * v - pull_a, b - 2 * u - pull_b], -1)


PROBLEMS = [
    Named("coupled", coupled, [1.0, 1.0], 3.0),
    Named("lotka_volterra", lotka, [1.0, 1.0], 5.0),
    Named("van_der_pol", van_der_pol, [2.0, 0.0], 8.0),
    Named("arenstorf", arenstorf, [0.994, 0.0, 0.0, -2.00158510637908252], 11.0),
]


def reference(problem: Named, times: list[float]) -> np.ndarray:
    def field(t: float, y: np.ndarray) -> np.ndarray:
        return problem.field(torch.tensor(t, dtype=DTYPE), torch.from_numpy(y)).numpy()

    found = solve_ivp(field, (0, problem.t1), problem.y0, "DOP853", times, rtol=1e-13, atol=1e-14)
    return found.y.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", [Tsit5(), Dopri5()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_error_is_proportional_to_the_tolerance(problem: Named, stepper, kind: str):
    y0 = torch.tensor(problem.y0, dtype=DTYPE)
    ts = torch.linspace(0, problem.t1, 21, dtype=DTYPE)
    right = torch.from_numpy(reference(problem, ts.tolist()))
    rtols, errors = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9], []
    if problem.name == "arenstorf":
        rtols = rtols[2:]  # with larger ones the satellite misses the moon
    for rtol in rtols:
        solver = Solver(stepper, PID(rtol, rtol), lanes=kind)
        ys = solve(problem.field, y0 if kind == "joint" else y0[None], 0.0, problem.t1, solver, save_at=ts).ys
        errors.append(float((ys.reshape(21, -1) - right).square().mean().sqrt()))
    slope = np.polyfit(np.log(rtols), np.log(errors), 1)[0]
    assert 0.7 <= slope <= 1.3, errors


@pytest.mark.parametrize("problem", PROBLEMS[:3], ids=lambda p: p.name)
def test_solution_agrees_with_scipy_and_torchdiffeq(problem: Named):
    y0, ts = torch.tensor(problem.y0, dtype=DTYPE), torch.linspace(0, problem.t1, 11, dtype=DTYPE)
    ys = solve(problem.field, y0, 0.0, problem.t1, Solver(Dopri5(), PID(1e-9, 1e-11)), save_at=ts).ys
    assert np.abs(ys.numpy() - reference(problem, ts.tolist())).max() < 1e-6  # the tolerance grown over the span
    other = odeint(problem.field, y0, ts, rtol=1e-9, atol=1e-11, method="dopri5")
    assert (ys - other).abs().max() < 1e-6


def test_number_of_steps_is_that_of_the_literature():
    """Same pair, tolerance and norm as in torchdiffeq: about as many evaluations."""
    problem = PROBLEMS[2]
    y0, ts = torch.tensor(problem.y0, dtype=DTYPE), torch.tensor([0.0, problem.t1], dtype=DTYPE)
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(float(t))
        return problem.field(t, y)

    odeint(counted, y0, ts, rtol=1e-6, atol=1e-8, method="dopri5")
    s = solve(problem.field, y0, 0.0, problem.t1, Solver(Dopri5(), PID(1e-6, 1e-8)))
    assert 0.8 < int(s.stats.nfe) / len(calls) < 1.25


@pytest.mark.parametrize("case", ADAPTIVE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_adaptive_stepper_meets_its_tolerance(case: Case, kind: str):
    rtol = 1e-5
    solver = Solver(case.stepper, PID(rtol, rtol), lanes=kind)
    y1 = solve(coupled, torch.ones(2, 2, dtype=DTYPE), 0.0, 2.0, solver).ys
    assert (y1 - coupled_exact(torch.tensor(2.0))).abs().max() < 30 * case.loose * rtol  # local errors add up


def test_proportional_integral_controller_rejects_less():
    y0, t1 = torch.tensor([2.0, 0.0], dtype=DTYPE), 20.0
    integral, both = (
        solve(van_der_pol, y0, 0.0, t1, Solver(controller=PID(1e-6, 1e-6, **options)))
        for options in ({}, {"pcoeff": 0.4, "icoeff": 0.3})
    )
    assert both.status == integral.status == Status.DONE
    assert int(both.stats.rejected) < int(integral.stats.rejected)
    assert (both.ys - integral.ys).abs().max() < 1e-3
    full = solve(van_der_pol, y0, 0.0, t1, Solver(controller=PID(1e-6, 1e-6, pcoeff=0.3, icoeff=0.3, dcoeff=0.05)))
    assert (full.ys - integral.ys).abs().max() < 1e-3


def test_proportional_integral_controller_follows_its_formula():
    """Sizes recomputed from the recorded errors, for the deadbeat stretch without rejections or limits."""
    options = {"pcoeff": 0.4, "icoeff": 0.3, "dcoeff": 0.1}
    s = solve(
        coupled,
        torch.ones(2, dtype=DTYPE),
        0.0,
        2.0,
        Solver(controller=PID(1e-6, 1e-8, dt0=0.01, **options)),
        folds={"stats": Stats()},
    )
    assert int(s.stats.rejected) == 0
    h, error = s.folds["stats"]
    p, i, d = options.values()
    e = [1.0, 1.0, *error.tolist()]
    for n in range(len(h) - 2):
        now, last, before = e[n + 2], e[n + 1], e[n]
        factor = 0.9 * now ** (-(p + i + d) / 5) * last ** ((p + 2 * d) / 5) * before ** (-d / 5)
        assert abs(h[n + 1] / h[n] - min(10.0, max(0.2, factor))) < 1e-6  # h comes as a difference of times


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [2.0, -2.0])
def test_first_and_largest_step_are_in_units_of_time(kind: str, end: float):
    solver = Solver(controller=PID(dt0=1e-3, dtmax=0.11), lanes=kind)
    s = solve(coupled, torch.ones(2, 2, dtype=DTYPE), 0.0, end, solver, folds={"stats": Stats()})
    h = s.folds["stats"].h.abs().reshape(-1, int(s.stats.accepted.max()))
    assert (h[:, 0] - 1e-3).abs().max() < 1e-15
    assert h.max() < 0.11 + 1e-14
    assert (h[:, 4:-1] - 0.11).abs().max() < 1e-14  # the tolerances are loose: it steps as far as it may
    long = solve(coupled, torch.ones(2, 2, dtype=DTYPE), 0.0, end / 1e4, solver, folds={"stats": Stats()})
    assert bool((long.stats.accepted == 1).all())  # dt0 beyond the end


@pytest.mark.parametrize("kind", KINDS)
def test_tolerances_may_be_tensors(kind: str):
    y0 = torch.ones(3, 2, dtype=DTYPE)
    number = Solver(controller=PID(1e-5, 1e-7), lanes=kind)
    tensor = Solver(
        controller=PID(torch.tensor(1e-5, dtype=DTYPE), torch.tensor([1e-7, 1e-7], dtype=DTYPE)), lanes=kind
    )
    right, found = (solve(coupled, y0, 0.0, 2.0, solver) for solver in (number, tensor))
    assert torch.equal(found.ys, right.ys)
    loose = Solver(controller=PID(torch.tensor([[1e-9], [1e-5], [1e-3]], dtype=DTYPE), 0.0), lanes=kind)
    accepted = solve(coupled, y0, 0.0, 2.0, loose).stats.accepted
    if kind == "each":
        assert accepted[0] > accepted[1] > accepted[2]


def test_norm_may_be_given():
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-y[:, 0], (40 * t[:, 0]).cos()], 1)  # the first component is slow, the second fast

    accepted = [
        solve(
            field, torch.ones(3, 2, dtype=DTYPE), 0.0, 2.0, Solver(controller=PID(norm=norm), lanes="each")
        ).stats.accepted
        for norm in (lambda e: e[:, 0].abs(), lambda e: e.abs().amax(1))
    ]
    assert bool((3 * accepted[0] < accepted[1]).all())


@pytest.mark.parametrize(("kind", "steps"), [("joint", 30_000), ("each", 3_000)])
def test_time_does_not_drift_in_float32(kind: str, steps: int):
    seen = torch.zeros(())

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        seen = t
        return torch.zeros_like(y)

    with torch.no_grad():
        end = steps * 1e-3
        solve(field, torch.zeros(1), 0.0, end, Solver(Euler(), Grid(dt=1e-3), lanes=kind, max_steps=steps))
    last = end if kind == "each" else end - 1e-3  # joint lanes leave the evaluation at the end out
    assert abs(float(seen) - last) < 1e-5  # float32 itself is 2e-6 apart at 30; a running sum is off by .005


# Evaluations


@pytest.mark.parametrize("reads", [False, True], ids=["", "stats"])
@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*EXPLICIT, *EXPONENTIAL], ids=str)  # implicit ones iterate as long as they need
def test_evaluations_are_counted(case: Case, kind: str, grad: bool, reads: bool):
    calls = []

    class Counted(Linked):
        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            calls.append(t)
            return super().remainder(t, y, args)

    args = (-torch.ones(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    y0 = torch.rand(1, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0)).repeat(2, 1)  # equally many steps
    grad = grad and kind == "joint"  # lanes "each" are differentiated in a second pass
    y0.requires_grad_(grad)
    controllers = [Grid(n=7), Grid(dt=0.25)]
    if not case.stepper.uniform:
        controllers.append(Grid(ts=torch.tensor([0.0, 0.1, 1.0])))
    if case.stepper.adaptive:
        controllers += [PID(1e-6, 1e-6), PID(1e-6, 1e-6, dt0=0.5), PID(1e-6, 1e-6, pcoeff=0.4, dtmax=0.1)]
    folds = {"stats": Stats()} if reads else {}
    for controller in controllers:
        calls.clear()
        with torch.set_grad_enabled(grad):
            s = solve(Counted(), y0, 0.0, 1.0, Solver(case.stepper, controller, lanes=kind), args=args, folds=folds)
        assert int(s.stats.nfe.max()) == len(calls), controller
        calls.clear()
        with torch.set_grad_enabled(grad):
            again = solve(
                Counted(),
                y0,
                0.0,
                1.0,
                Solver(case.stepper, controller, lanes=kind),
                args=args,
                folds=folds,
                mesh=s.mesh,
            )
        assert int(again.stats.nfe.max()) == len(calls), controller


def test_evaluations_are_counted_by_sample():
    y0, t1 = torch.ones(2, 2, dtype=DTYPE), torch.tensor([0.1, 3.0], dtype=DTYPE)
    both = solve(coupled, y0, 0.0, t1, Solver(lanes="each"))
    for lane in range(2):
        alone = solve(coupled, y0[lane : lane + 1], 0.0, t1[lane : lane + 1], Solver(lanes="each"))
        assert int(alone.stats.nfe) == int(both.stats.nfe[lane])
    assert both.stats.nfe[0] < both.stats.nfe[1]


def test_no_time_takes_no_evaluations():
    s = solve(coupled, torch.ones(2, dtype=DTYPE), 1.0, 1.0)
    assert int(s.stats.nfe) == int(s.stats.accepted) == 0


# Grids


@pytest.mark.parametrize("kind", KINDS)
def test_grids_that_say_the_same_are_the_same(kind: str):
    y0 = torch.ones(3, 2, dtype=DTYPE)
    grids = [Grid(n=4), Grid(dt=0.25), Grid(ts=torch.linspace(0, 1, 5))]
    found = [solve(coupled, y0, 0.0, 1.0, Solver(RK4(), grid, lanes=kind)) for grid in grids]
    assert all(torch.equal(s.ys, found[0].ys) for s in found)
    assert all(bool((s.stats.accepted == 4).all()) for s in found)


@pytest.mark.parametrize("kind", KINDS)
def test_grid_of_one_step_is_one_step(kind: str):
    y0 = torch.ones(3, 2, dtype=DTYPE)
    for grid in (Grid(n=1), Grid(dt=0.5), Grid(ts=torch.tensor([1.0, 0.5]))):
        s = solve(coupled, y0, 1.0, 0.5, Solver(Euler(), grid, lanes=kind))
        right = y0 - 0.5 * coupled(torch.ones((3, 1) if kind == "each" else (), dtype=DTYPE), y0)
        assert (s.ys - right).abs().max() < 1e-15


@pytest.mark.parametrize("stepper", [RK4(), ETDRK4()], ids=lambda s: type(s).__name__)
def test_grid_scales_with_the_span_of_each_sample(stepper):
    t1 = torch.tensor([1.0, -0.5, 2.0], dtype=DTYPE)
    args = (-torch.ones(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    y0 = torch.rand(3, 3, dtype=DTYPE)
    together = solve(Linked(), y0, 0.0, t1, Solver(stepper, Grid(n=5), lanes="each"), args=args)
    for lane in range(3):
        alone = solve(Linked(), y0[lane], 0.0, float(t1[lane]), Solver(stepper, Grid(n=5)), args=args)
        assert (together.ys[lane] - alone.ys).abs().max() < 1e-14  # joint lanes add in another order


def test_steps_of_a_grid_hit_its_times():
    ts = torch.tensor([0.1, 0.15, 0.2, 0.7, 1.3], dtype=DTYPE)
    s = solve(coupled, torch.ones(2, dtype=DTYPE), 0.1, 1.3, Solver(RK4(), Grid(ts=ts)), folds={"nodes": Steps()})
    assert (s.folds["nodes"].ts - ts[1:]).abs().max() < 1e-15
    assert math.isclose(float(s.ts), 1.3, rel_tol=0)
