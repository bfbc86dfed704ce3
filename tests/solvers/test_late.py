"""Gradients by what a field reads only later than at the start, and by times at which it jumps."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    PID,
    Backsolve,
    Brownian,
    Diffusive,
    Grid,
    Kvaerno5,
    ReversibleHeun,
    StratonovichHeun,
    Tsit5,
)
from tests.solvers.systems import DTYPE

KINDS = ["joint", "each"]
ADJOINTS = [Discrete("all"), Discrete("every"), Discrete("invert"), Backsolve()]
END = 1.0


def name(adjoint: Any) -> str:
    return getattr(adjoint, "store", "backsolve") if isinstance(adjoint, Discrete) else "backsolve"


def late(rate: Tensor) -> Any:
    """y' = -y, and -rate y in the second half."""
    return lambda t, y: -rate * y if float(t.max()) > 0.5 else -y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [True, False], ids=["y0", "nothing else"])
def test_backpropagation_finds_what_is_read_late(kind: Any, known: bool):
    """y(1) = exp(-(1 + rate) / 2) and its derivative, within the tolerance: a step ends at the branch."""
    rate = torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
    y0 = torch.ones(2, 1, dtype=DTYPE, requires_grad=known)
    solver = Solver(Tsit5(), PID(1e-8, 1e-8, jump_ts=(0.5,)), lanes=kind)
    (slope,) = torch.autograd.grad(solve(late(rate), y0, 0.0, END, solver).ys.sum(), rate)
    assert abs(slope + (-(1 + rate) / 2).exp()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
def test_other_adjoints_refuse_it_by_name(adjoint: Any, kind: Any):
    rate = torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
    y0 = torch.ones(2, 1, dtype=DTYPE, requires_grad=True)
    stepper = ReversibleHeun() if name(adjoint) == "invert" else Tsit5()
    solution = solve(late(rate), y0, 0.0, END, Solver(stepper, PID(), adjoint, lanes=kind))
    with pytest.raises(ValueError, match="which needs a gradient but is not declared"):
        solution.ys.sum().backward()


def test_backsolve_by_an_implicit_method_refuses_it():
    rate, known = (torch.tensor(x, dtype=DTYPE, requires_grad=True) for x in (0.7, 1.0))
    field = lambda t, y, args: -rate * y if t > 0.5 else -args[0] * y  # noqa: E731
    solver = Solver(Kvaerno5(), PID(), Backsolve())
    solution = solve(field, torch.ones(2, dtype=DTYPE), 0.0, END, solver, args=(known,))
    with pytest.raises(ValueError, match="which needs a gradient but is not declared"):
        solution.ys.sum().backward()


@pytest.mark.parametrize("adjoint", [Discrete("all"), Backsolve()], ids=name)
def test_noise_that_reads_it_late_is_refused(adjoint: Any):
    rate = torch.tensor(0.7, dtype=DTYPE, requires_grad=True)

    class Late(Diffusive):
        noise_type, calculus = "diagonal", "stratonovich"

        def drift(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
            return -y

        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Any) -> Tensor:
            return (rate * y if t > 0.5 else y) * dw

    y0, path = torch.ones(2, 2, dtype=DTYPE, requires_grad=True), Brownian((2, 2))
    solution = solve(Late(), y0, 0.0, END, Solver(StratonovichHeun(), Grid(n=8), adjoint), path=path)
    with pytest.raises(ValueError, match="which needs a gradient but is not declared"):
        solution.ys.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [Discrete("graph"), *ADJOINTS[:2]], ids=name)
def test_times_of_jumps_have_gradients(adjoint: Any, kind: Any):
    """y' = 1 up to r, then y: y(1) = (y0 + r) exp(1 - r), whose derivative by r is (1 - y0 - r) exp(1 - r)."""
    r = torch.tensor([0.3], dtype=DTYPE, requires_grad=True)
    y0 = torch.full((1, 1), 0.2, dtype=DTYPE)
    field = lambda t, y: torch.where(t < r.detach(), torch.ones_like(y), y)  # noqa: E731
    solver = Solver(Tsit5(), PID(1e-9, 1e-9, jump_ts=r), adjoint, lanes=kind)
    (slope,) = torch.autograd.grad(solve(field, y0, 0.0, END, solver).ys.sum(), r)
    assert torch.allclose(slope, (0.8 - r) * (1 - r).exp(), rtol=1e-7, atol=0)


def test_backsolve_refuses_times_of_jumps_that_need_a_gradient():
    r = torch.tensor([0.3], dtype=DTYPE, requires_grad=True)
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    with pytest.raises(ValueError, match="jump_ts: Backsolve has no gradient"):
        solve(lambda t, y: -y, y0, 0.0, END, Solver(None, PID(jump_ts=r), Backsolve()))


@pytest.mark.parametrize("what", ["t0", "t1", "ts"])
def test_joint_lanes_refuse_times_with_tangents(what: str):
    y0 = torch.ones(2, 1, dtype=DTYPE)
    with forward_ad.dual_level():
        dual = lambda *x: forward_ad.make_dual(torch.tensor(x).squeeze(), torch.ones(len(x)).squeeze())  # noqa: E731
        t0, t1 = dual(0.0) if what == "t0" else 0.0, dual(1.0) if what == "t1" else 1.0
        controller = Grid(ts=dual(0.0, 0.5, 1.0)) if what == "ts" else PID()
        with pytest.raises(ValueError, match="forward-mode"):
            solve(lambda t, y: -y, y0, t0, t1, Solver(None, controller))
        if what != "ts":
            each = lambda t: t.expand(2) if isinstance(t, Tensor) else t  # noqa: E731
            ys = solve(lambda t, y: -y, y0, each(t0), each(t1), Solver(None, PID(1e-8, 1e-8), lanes="each")).ys
            right = torch.full_like(y0, (1 if what == "t0" else -1) * 0.36787944)
            assert torch.allclose(forward_ad.unpack_dual(ys).tangent, right, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [Discrete("graph"), Discrete("all")], ids=name)
def test_field_by_numpy_is_solved_where_no_gradient_is_asked_for(adjoint: Any, kind: Any):
    field = lambda t, y: torch.from_numpy(-y.numpy())  # noqa: E731
    ys = solve(field, torch.ones(2, 1, dtype=DTYPE), 0.0, END, Solver(Tsit5(), PID(), adjoint, lanes=kind)).ys
    assert torch.allclose(ys, torch.full_like(ys, 0.36787944), rtol=1e-3)


def test_named_tuples_stay_named():
    State = namedtuple("State", "place speed")
    y0 = State(torch.ones(3, dtype=DTYPE), torch.zeros(3, dtype=DTYPE))
    solution = solve(lambda t, y: State(y.speed, -y.place), y0, 0.0, END, save_at=[0.5, 1.0])
    assert isinstance(solution.ys, State)
    assert torch.allclose(solution.ys.place[-1], torch.ones(3, dtype=DTYPE).cos(), atol=1e-3)
    assert isinstance(solution(0.5), State)
