import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from sciml import Discrete, SolveError, Solver, solve
from sciml.solvers import (
    ETDRK4,
    PID,
    RK4,
    SDIRK2,
    Backsolve,
    CarpenterKennedy4,
    Dopri5,
    Dopri8,
    Event,
    Final,
    Grid,
    Kvaerno5,
    Quadrature,
    Stepper,
    Steps,
    Trapezoid,
    Tsit5,
)
from tests.solvers.systems import DTYPE, Linked, Net
from tests.solvers.test_gradients import saved_bytes

KINDS = ["joint", "each"]


class Scaled(Net):
    """With an argument beside its weights."""

    def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * super().forward(t, y) - 0.1 * y


def inputs(kind: str) -> list[Tensor]:
    y0, k = torch.linspace(-1, 1, 6, dtype=DTYPE).reshape(3, 2), torch.tensor(1.3, dtype=DTYPE)
    t0, t1 = torch.tensor(0.1, dtype=DTYPE), torch.tensor(1.7, dtype=DTYPE)
    if kind == "each":
        t0, t1 = torch.linspace(0, 0.3, 3, dtype=DTYPE), torch.linspace(2, 1.5, 3, dtype=DTYPE)
    ts = torch.tensor([1.2, 0.5, 1.4, 0.5], dtype=DTYPE)
    return [x.requires_grad_() for x in (y0, k, t0, t1, ts)]


def gradients(solver: Solver, net: nn.Module, start: float | None = None) -> list[Tensor]:
    """Of save times in any order, twice the same among them, and of the end."""
    y0, k, t0, t1, ts = given = inputs(solver.lanes)
    s = solve(net, y0, t0, t1, solver, args=(k,), save_at=ts, folds={"end": Final()})
    weights = torch.linspace(0.5, 2, s.ys.numel(), dtype=DTYPE).reshape(s.ys.shape)
    loss = (weights * s.ys**2).sum() + (s.folds["end"] ** 3).sum()
    return list(torch.autograd.grad(loss, [*given, *net.parameters()]))


def apart(found: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stepper", "controller"),
    [(None, None), (Dopri8(), PID(1e-11, 1e-11)), (RK4(), Grid(n=150)), (Kvaerno5(), PID(1e-8, 1e-8))],
    ids=["own", "dopri8", "grid", "kvaerno5"],
)
def test_backsolve_is_the_gradient_of_the_solve(stepper: Stepper, controller: PID | Grid, kind: str):
    solver = partial(Solver, Tsit5(), PID(1e-10, 1e-10), lanes=kind)
    net = Scaled()
    right = gradients(solver(Discrete("graph")), net)
    # Solves at 1e-8 and better. The discrete gradient of a save time is the slope of the dense output, right to the
    # third power of steps of a tenth times the local error's root.
    assert apart(gradients(solver(Backsolve(stepper, controller)), net), right) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_backsolve_converges_with_its_tolerance(kind: str):
    net, solver = Scaled(), partial(Solver, Tsit5(), PID(1e-11, 1e-11), lanes=kind)
    right = gradients(solver(Discrete("graph")), net)
    errors = [apart(gradients(solver(Backsolve(None, PID(rtol, rtol))), net)[:2], right[:2]) for rtol in (1e-4, 1e-8)]
    assert errors[1] < 1e-7
    assert errors[0] > 100 * errors[1]


@pytest.mark.parametrize("stepper", [CarpenterKennedy4(), SDIRK2(), Trapezoid(), RK4()], ids=lambda s: type(s).__name__)
def test_last_step_of_a_grid_counts_in_the_gradient_of_an_argument(stepper: Stepper):
    w = torch.ones((), dtype=DTYPE, requires_grad=True)
    y0, solver = torch.ones(1, dtype=DTYPE), Solver(stepper, Grid(n=32), Backsolve())
    ys = solve(lambda t, y, args: -args[0] * y, y0, 0.0, 1.0, solver, args=(w,)).ys
    (grad,) = torch.autograd.grad(ys.sum(), w)
    assert abs(float(grad) + math.exp(-1)) < 1 / 32**2  # of second order at least


def test_backsolve_is_torchdiffeqs_adjoint():
    net, y0 = Net(), torch.tensor([1.0, -0.5], dtype=DTYPE, requires_grad=True)
    ts = torch.tensor([0.0, 0.4, 1.3, 2.0], dtype=DTYPE, requires_grad=True)
    weights = torch.linspace(-1, 2, 8, dtype=DTYPE).reshape(4, 2)
    theirs = odeint_adjoint(net, y0, ts, rtol=1e-10, atol=1e-10, method="dopri5")
    right = torch.autograd.grad((weights * theirs).sum(), [y0, ts, *net.parameters()])
    solver = Solver(Dopri5(), PID(1e-10, 1e-10), Backsolve())
    ours = solve(net, y0, ts[0], ts[-1], solver, save_at=ts).ys
    found = torch.autograd.grad((weights * ours).sum(), [y0, ts, *net.parameters()])
    assert apart(list(found), list(right)) < 1e-7  # two solves at 1e-10, whose errors grow along the span of 2


@pytest.mark.parametrize("kind", KINDS)
def test_backsolve_goes_forward_where_the_solve_goes_back(kind: str):
    y0, rate = torch.ones(2, dtype=DTYPE, requires_grad=True), torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
    solver = Solver(Tsit5(), PID(1e-9, 1e-9), Backsolve(), lanes=kind)
    ys = solve(lambda t, y, args: args[0] * y, y0, 1.0, -1.0, solver, args=(rate,)).ys
    grads = torch.autograd.grad(ys.sum(), [y0, rate])
    exact = torch.exp(-2 * rate.detach())
    torch.testing.assert_close(grads[0], exact.expand(2), rtol=1e-7, atol=0)
    torch.testing.assert_close(grads[1], 2 * -2 * exact, rtol=1e-7, atol=0)


def test_backsolve_of_a_complex_state():
    y0 = torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor(0.3 + 1.1j, dtype=torch.complex128, requires_grad=True)

    def grads(adjoint: Discrete | Backsolve) -> list[Tensor]:
        t1 = torch.tensor(1.5, dtype=DTYPE, requires_grad=True)
        solver = Solver(Tsit5(), PID(1e-10, 1e-10), adjoint)
        ys = solve(lambda t, y, args: args[0] * y + t * y.conj(), y0, 0.0, t1, solver, args=(rate,)).ys
        return list(torch.autograd.grad((ys.abs() ** 2).sum() + ys.imag.sum(), [y0, rate, t1]))

    assert apart(grads(Backsolve()), grads(Discrete("graph"))) < 1e-7  # two solves at 1e-10


def test_backsolve_of_trees_and_of_a_norm_by_component():
    y0 = {"a": torch.ones(3, dtype=DTYPE, requires_grad=True), "b": torch.zeros((), dtype=DTYPE, requires_grad=True)}

    def grads(adjoint: Discrete | Backsolve) -> list[Tensor]:
        norm = lambda x: x.abs().amax()  # noqa: E731
        atol = torch.tensor([1e-9, 1e-9, 1e-9, 1e-8], dtype=DTYPE)
        solver = Solver(Tsit5(), PID(1e-9, atol, norm=norm), adjoint)
        field = lambda t, y: {"a": y["b"] - 0.5 * y["a"], "b": y["a"].sum().sin()}  # noqa: E731
        ys = solve(field, y0, 0.0, 1.0, solver).ys
        return list(torch.autograd.grad(ys["a"].sum() + ys["b"] ** 2, list(y0.values())))

    assert apart(grads(Backsolve()), grads(Discrete("graph"))) < 1e-6


def test_backsolve_takes_a_field_that_differentiates():
    def field(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad((args[0] * y**4).sum() / 4, y, create_graph=True)
        return -slope

    y0 = torch.tensor([0.5, 1.0], dtype=DTYPE, requires_grad=True)
    k = torch.tensor(0.8, dtype=DTYPE, requires_grad=True)
    ys = solve(field, y0, 0.0, 1.0, Solver(Tsit5(), PID(1e-9, 1e-9), Backsolve()), args=(k,)).ys
    found = torch.autograd.grad(ys.sum(), [y0, k])
    exact = (y0 / (1 + 2 * k * y0**2).sqrt()).sum()
    assert apart(list(found), list(torch.autograd.grad(exact, [y0, k]))) < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_backsolve_warns_where_the_state_does_not_come_back(kind: str):
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    decay = lambda t, y: -30 * y  # noqa: E731
    solver = Solver(adjoint=Backsolve(), lanes=kind)
    ys = solve(decay, y0, 0.0, 1.0, solver).ys
    with pytest.warns(RuntimeWarning, match="misses the one it came from by .* tolerances"):
        ys.sum().backward()
    # save times bring it back on its way: e^(-30) of the whole span is e^(-1.5) of each interval
    s = solve(decay, y0, 0.0, 1.0, Solver(adjoint=Backsolve(), lanes=kind), save_at=torch.linspace(0, 1, 21))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s.ys.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_backsolve_keeps_only_ends(kind: str):
    net, y0 = Net(), torch.ones(500, 2, dtype=DTYPE)

    def kept(steps: int) -> float:
        solver = Solver(Tsit5(), Grid(n=steps), Backsolve(), lanes=kind)
        return saved_bytes(lambda: solve(net, y0, 0.0, 1.0, solver)) / y0.untyped_storage().nbytes()

    assert kept(100) == kept(400) < 6  # the state at both ends, each lane's times (half a state each) and weights


def test_backsolve_leaves_failed_lanes_out():
    y0 = torch.tensor([[0.1], [2.0]], dtype=DTYPE, requires_grad=True)
    solver = Solver(Tsit5(), PID(1e-8, 1e-8), Backsolve(), lanes="each")
    k = torch.tensor(1.0, dtype=DTYPE, requires_grad=True)
    s = solve(lambda t, y, args: args[0] * y**2, y0, 0.0, 1.0, solver, args=(k,), save_at=[0.2, 1.0], throw=False)
    assert s.status.tolist()[0] == 1
    assert bool(s.mesh.failed[1])
    grads = torch.autograd.grad(s.ys[:, -1].sum(), [y0, k])
    # y = y0 / (1 - k y0 t)
    torch.testing.assert_close(grads[0], torch.tensor([[1 / 0.9**2], [0.0]], dtype=DTYPE), rtol=1e-6, atol=0)
    torch.testing.assert_close(grads[1], torch.tensor(0.1**2 / 0.9**2, dtype=DTYPE), rtol=1e-6, atol=0)


def test_backsolve_says_where_its_own_solve_failed():
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    loose = Solver(Tsit5(), PID(1e-2, 1e-2), Backsolve(None, PID(1e-12, 1e-12)), max_steps=20)
    ys = solve(lambda t, y: -y, y0, 0.0, 5.0, loose).ys
    with pytest.raises(SolveError, match="20 trials"):
        ys.sum().backward()


def test_backsolve_refuses_second_derivatives():
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    ys = solve(lambda t, y: -(y**2), y0, 0.0, 1.0, Solver(adjoint=Backsolve())).ys
    (grad,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match=r'only Discrete\(store="graph"\)'):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("solver", "more", "said"),
    [
        (Solver(adjoint=Backsolve()), {"folds": {"s": Steps()}}, "save times only, got Steps"),
        (Solver(adjoint=Backsolve()), {"folds": {"q": Quadrature(lambda t, y, a: y)}}, "only, got Quadrature"),
        (Solver(adjoint=Backsolve()), {"events": Event(lambda t, y, a: y.sum() - 9)}, "events: Backsolve"),
        (Solver(adjoint=Backsolve()), {"jumps": (lambda t, y, k, a: (y, k < 0),)}, "jumps: Backsolve"),
        (Solver(ETDRK4(), Grid(n=3), Backsolve()), {}, "ETDRK4 cannot integrate the adjoint"),
        (Solver(RK4(), Grid(ts=torch.linspace(0, 1, 4)), Backsolve()), {}, "got a grid of ts"),
        (Solver(adjoint=Backsolve(RK4())), {}, "RK4 has no error estimate"),
    ],
)
def test_backsolve_refuses_what_it_cannot_do(solver: Solver, more: dict[str, Callable], said: str):
    args = (torch.zeros(2, dtype=DTYPE), torch.ones(2, dtype=DTYPE))
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    with pytest.raises(ValueError, match=said):
        solve(Linked(), y0, 0.0, 1.0, solver, args=args, **more)
