import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import ellipk
from torch import Tensor, nn

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    PID,
    Event,
    Final,
    Grid,
    Quadrature,
    ReversibleHeun,
    Separable,
    Stepper,
    Steps,
    Tsit5,
    VelocityVerlet,
    Yoshida4,
)
from tests.solvers.registry import SYMPLECTIC, Case
from tests.solvers.systems import DTYPE, Net
from tests.solvers.test_gradients import saved_bytes
from tests.solvers.test_order import in_range, slope

KINDS = ["joint", "each"]
STEPPERS = [case.stepper for case in SYMPLECTIC]
GRAPH, INVERT = Discrete("graph"), Discrete("invert")


def name(stepper: Stepper) -> str:
    return type(stepper).__name__


class Pendulum(Separable, nn.Module):
    """q'' = -w^2 sin q + b sin t, with the frequency w as a parameter and the push b an argument."""

    def __init__(self, frequency: float = 1.0):
        nn.Module.__init__(self)
        self.frequency = nn.Parameter(torch.tensor(frequency, dtype=DTYPE))

    def velocity(self, t: Tensor, p: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return p

    def force(self, t: Tensor, q: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        push = args[0] * t.sin() if args else 0.0
        return push - self.frequency**2 * q.sin()


class Kepler(Separable):
    """A planet around a sun of mass 1 in a plane."""

    def velocity(self, t: Tensor, p: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return p

    def force(self, t: Tensor, q: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -q / q.norm(dim=-1, keepdim=True) ** 3

    @staticmethod
    def start(eccentricity: float) -> Tensor:
        """At the perihelion, with major axis 2 and period 2 pi."""
        e = eccentricity
        return torch.tensor([1 - e, 0, 0, math.sqrt((1 + e) / (1 - e))], dtype=DTYPE)

    @staticmethod
    def energy(y: Tensor) -> Tensor:
        q, p = y.chunk(2, -1)
        return (p**2).sum(-1) / 2 - 1 / q.norm(dim=-1)

    @staticmethod
    def momentum(y: Tensor) -> Tensor:
        q, p = y.chunk(2, -1)
        return q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]


@pytest.mark.parametrize("case", SYMPLECTIC, ids=str)
def test_symplectic_stepper_converges_to_the_exact_pendulum(case: Case):
    # from rest at the angle 2, a period is 4 K(sin^2 1); a quarter of it later the pendulum hangs down, with p^2 / 2
    # the height lost
    quarter = float(ellipk(math.sin(1.0) ** 2))
    y0, fall = torch.tensor([2.0, 0.0], dtype=DTYPE), -math.sqrt(2 * (1 - math.cos(2.0)))
    errors = []
    for n in case.steps:
        y1 = solve(Pendulum(), y0, 0.0, quarter, Solver(case.stepper, Grid(n=n))).ys.detach()
        errors.append(float((y1 - torch.tensor([0.0, fall], dtype=DTYPE)).norm()))
    assert in_range(slope([1 / n for n in case.steps], errors), case.stepper.order), errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_symplectic_stepper_keeps_its_order_under_a_force_in_time(stepper: Stepper, kind: str):
    y0, push = torch.tensor([[0.4, 0.1], [1.0, -0.3]], dtype=DTYPE), (torch.tensor(0.7, dtype=DTYPE),)
    t0 = torch.tensor([0.3, 0.5], dtype=DTYPE) if kind == "each" else 0.3
    right = solve(Pendulum(), y0, t0, 2.5, Solver(Tsit5(), PID(1e-12, 1e-12), lanes=kind), args=push).ys
    errors, counts = [], (20, 40, 80, 160)
    for n in counts:
        y1 = solve(Pendulum(), y0, t0, 2.5, Solver(stepper, Grid(n=n), lanes=kind), args=push).ys
        errors.append(float((y1 - right).detach().norm()))
    assert in_range(slope([1 / n for n in counts], errors), stepper.order), errors


@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_symplectic_stepper_keeps_energy_within_a_bound(stepper: Stepper):
    y0, turns, n = Kepler.start(0.3), 100, 60
    with torch.no_grad():
        solver = Solver(stepper, Grid(n=turns * n))
        ys = solve(Kepler(), y0, 0.0, turns * 2 * math.pi, solver, folds={"s": Steps()}).folds["s"].ys
    off = (Kepler.energy(ys) - Kepler.energy(y0)).abs().reshape(turns, n).amax(1)
    assert off[:10].max() < 0.02  # h = 0.1, whose square times the third derivatives at the perihelion
    assert off[-10:].max() < 1.2 * off[:10].max()  # ninety turns later it is the same
    # each kick is central, so that angular momentum is kept by every step: round-off of 6000 of them
    assert (Kepler.momentum(ys) - Kepler.momentum(y0)).abs().max() < 6000 * 1e-15


@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_symplectic_stepper_is_reversible_and_keeps_area(stepper: Stepper):
    y0, solver = torch.tensor([1.2, 0.3], dtype=DTYPE), Solver(stepper, Grid(n=200))
    there = lambda y: solve(Pendulum(), y, 0.0, 20.0, solver).ys  # noqa: E731
    back = solve(Pendulum(), there(y0), 20.0, 0.0, solver).ys
    assert (back - y0).abs().max() < 1e-12  # round-off of 400 steps, which a pendulum lets grow linearly
    jacobian = torch.autograd.functional.jacobian(there, y0)
    assert abs(float(torch.linalg.det(jacobian)) - 1) < 1e-11


def test_symplectic_stepper_counts_forces_and_refuses_others():
    y0 = torch.tensor([1.0, 0.0], dtype=DTYPE)
    assert int(solve(Pendulum(), y0, 0.0, 1.0, Solver(Yoshida4(), Grid(n=5))).stats.nfe) == 1 + 3 * 5
    with pytest.raises(ValueError, match="expects a Separable term, got function"):
        solve(lambda t, y: -y, y0, 0.0, 1.0, Solver(Yoshida4(), Grid(n=5)))
    with pytest.raises(ValueError, match="halves of the last axis"):
        solve(Pendulum(), torch.ones(3, dtype=DTYPE), 0.0, 1.0, Solver(Yoshida4(), Grid(n=5)))


def gradients(stepper: Stepper, controller: Grid | PID, adjoint: Discrete, kind: str) -> list[Tensor]:
    """Of everything that a solve depends on, through save times, the end, a quadrature and all steps."""
    each = kind == "each"
    y0 = torch.tensor([[0.4, 0.1], [1.0, -0.3]], dtype=DTYPE, requires_grad=True)
    t0 = torch.tensor([0.3, 0.5] if each else 0.3, dtype=DTYPE, requires_grad=True)
    t1 = torch.tensor([2.5, 1.5] if each else 2.5, dtype=DTYPE, requires_grad=True)
    push, ts = (torch.tensor(x, dtype=DTYPE, requires_grad=True) for x in (0.7, [1.4, 0.6]))
    term = Pendulum(1.1)
    folds = {"q": Quadrature(lambda t, y, args: args[0] * y**2), "s": Steps(), "f": Final()}
    solver = Solver(stepper, controller, adjoint, lanes=kind)
    s = solve(term, y0, t0, t1, solver, args=(push,), save_at=ts, folds=folds)
    loss = (s.ys**3).sum() + s.folds["q"].sum() + s.folds["f"].sin().sum()
    if not controller.adaptive:
        loss = loss + (s.folds["s"].ys ** 2).sum()
    return list(torch.autograd.grad(loss, [y0, t0, t1, push, ts, *term.parameters()]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stepper", "controller"),
    [
        (VelocityVerlet(), Grid(n=60)),
        (Yoshida4(), Grid(n=60)),
        (ReversibleHeun(), Grid(n=60)),
        (ReversibleHeun(), PID(1e-5, 1e-5)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_inverted_steps_give_the_gradient_of_the_graph(stepper: Stepper, controller: Grid | PID, kind: str):
    right, found = (gradients(stepper, controller, adjoint, kind) for adjoint in (GRAPH, INVERT))
    for a, b in zip(found, right, strict=True):
        # round-off times steps: some 1e-16 times at most 300, and a factor for what the oscillation does to it
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("controller", [Grid(n=1), Grid(n=60), PID(1e-5, 1e-5)], ids=["one", "grid", "adaptive"])
def test_inverted_steps_give_the_gradient_of_the_end(controller: Grid | PID, kind: str):
    """With one evaluation at every node; lanes that step by themselves take the steps once more to find the end."""
    grads, calls = [], []
    for adjoint in (GRAPH, INVERT):
        y0 = torch.tensor([[0.4, 0.1], [1.0, -0.3]], dtype=DTYPE, requires_grad=True)
        push, term = torch.tensor(0.7, dtype=DTYPE, requires_grad=True), Pendulum(1.1)
        force = term.force
        term.force = lambda *given, force=force: calls.append(0) or force(*given)
        s = solve(term, y0, 0.3, 2.5, Solver(ReversibleHeun(), controller, adjoint, lanes=kind), args=(push,))
        calls.clear()
        grads.append(torch.autograd.grad((s.ys**3).sum(), [y0, push, *term.parameters()]))
    assert len(calls) == (1 + (kind == "each")) * len(s.mesh.theta)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)  # as above


def test_inverted_steps_of_a_slope_that_depends_on_nothing_have_the_gradient_one():
    y0 = torch.zeros(3, 2, dtype=DTYPE, requires_grad=True)
    y = solve(lambda t, y: torch.ones_like(y), y0, 0.0, 1.0, Solver(ReversibleHeun(), Grid(n=4), INVERT)).ys
    assert torch.equal(torch.autograd.grad(y.sum(), y0)[0], torch.ones_like(y0))


@pytest.mark.parametrize("kind", KINDS)
def test_inverted_steps_of_a_network_keep_nothing(kind: str):
    net, y0 = Net(), torch.ones(500, 2, dtype=DTYPE)
    state = y0.untyped_storage().nbytes()

    def kept(steps: int) -> float:
        solver = Solver(ReversibleHeun(), Grid(n=steps), INVERT, lanes=kind)
        return saved_bytes(lambda: solve(net, y0, 0.0, 1.0, solver)) / state

    mesh = (500 if kind == "each" else 1) * 8 / state  # bytes of one node of the mesh
    assert kept(100) < 5 + 220 * mesh
    assert kept(400) - kept(100) <= 2.2 * 300 * mesh  # the times of the steps and of the grid, and no state


def test_inverted_gradient_equals_differences():
    net, y0 = Net(), torch.tensor([0.3, -0.8], dtype=DTYPE)

    def end(y: Tensor, t1: Tensor, inner: Tensor) -> Tensor:
        solver = Solver(ReversibleHeun(), Grid(n=20), INVERT)
        field = lambda t, y, args: (y @ args[0] + t).tanh() @ net.outer.detach()  # noqa: E731
        return solve(field, y, 0.0, t1, solver, args=(inner,)).ys

    given = (y0.requires_grad_(), torch.tensor(1.5, dtype=DTYPE, requires_grad=True), net.inner)
    assert torch.autograd.gradcheck(end, given)


def test_reversible_heun_meets_its_tolerance():
    y0 = torch.tensor([1.0, 0.5], dtype=DTYPE)
    errors = []
    for rtol in (1e-4, 1e-6):
        y1 = solve(Pendulum(), y0, 0.0, 3.0, Solver(ReversibleHeun(), PID(rtol, rtol))).ys
        right = solve(Pendulum(), y0, 0.0, 3.0, Solver(Tsit5(), PID(1e-11, 1e-11))).ys
        errors.append(float((y1 - right).abs().max().detach()))
    assert np.less(errors, [1e-3, 1e-5]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_stores_that_do_not_fit_are_refused(kind: str):
    with pytest.raises(ValueError, match="Tsit5 cannot be inverted"):
        Solver(Tsit5(), adjoint=INVERT, lanes=kind)
    with pytest.raises(ValueError, match="needs its history; expected store='graph' or 'invert', got 'all'"):
        Solver(ReversibleHeun(), adjoint=Discrete("all"), lanes=kind)
    solve_it = partial(solve, Net(), torch.ones(2, 2, dtype=DTYPE), 0.0, 1.0)
    solver = Solver(ReversibleHeun(), adjoint=INVERT, lanes=kind)
    with pytest.raises(ValueError, match="events: "):
        solve_it(solver, events=Event(lambda t, y, args: y.flatten(int(kind == "each")).sum(-1) - 99))
    with pytest.raises(ValueError, match="jump_ts: "):
        solve_it(Solver(ReversibleHeun(), PID(jump_ts=[0.5]), INVERT, lanes=kind))
