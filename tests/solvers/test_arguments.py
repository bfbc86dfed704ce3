"""Arguments of wrong types and values are refused by name."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import ETDRK2, PID, RK4, Euler, Event, Final, Grid, Quadrature, SaveAt, Steps, Tsit5
from tests.solvers.systems import DTYPE, Linked


def field(t: Tensor, y: Tensor) -> Tensor:
    return -y


def nothing(t: Any, y: Any, key: Tensor, args: Any) -> Any:
    return y, torch.zeros(key.shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": [Final()]}, "folds: expected a mapping from names to folds.*got list"),
        ({"folds": {"a": 3}}, r"folds\['a'\]: expected a Fold, got int"),
        ({"folds": {"a": Steps}}, r"folds\['a'\]: expected a Fold, got the class Steps"),
        ({"folds": {"a": SaveAt("now")}}, "save_at: expected a tensor or a sequence of times, got str"),
        ({"jumps": nothing}, "jumps: expected a sequence of callables.*got function"),
        ({"jumps": [nothing, 3]}, r"jumps\[1\]: expected a callable.*got int"),
        ({"events": 3}, "events: expected an Event, or several.*got int"),
        ({"events": [None]}, "function: expected a callable"),
        ({"path": 3}, "path: expected a Path or None, got int"),
        ({"mesh": 3}, "mesh: expected a Mesh or None, got int"),
        ({"resume": 3}, "resume: expected a Solution or None, got int"),
        ({"save_at": "now"}, "save_at: expected a tensor or a sequence of times, got str"),
        ({"save_at": torch.tensor([1j])}, "save_at: expected real times"),
    ],
)
def test_argument_of_a_wrong_type_is_named(options: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=message):
        solve(field, torch.ones(2), 0.0, 1.0, **options)


@pytest.mark.parametrize("name", ["t0", "t1"])
@pytest.mark.parametrize("given", [None, "0", torch.tensor(1j), object()])
def test_time_of_a_wrong_type_is_named(name: str, given: Any):
    times = {"t0": 0.0, "t1": 1.0, name: given}
    with pytest.raises((TypeError, ValueError), match="t0" if given is None and name == "t0" else f"{name}: expected"):
        solve(field, torch.ones(2), **times)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64])
def test_times_that_leave_no_room_for_arithmetic_are_refused(dtype: torch.dtype):
    large = 1e-7 * torch.finfo(dtype).max
    late = torch.tensor([0.0, -large], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"t1: expected a time of at most .*e\+(30|300) with a state"):
        solve(field, torch.ones(2, dtype=dtype), 0.0, large)
    with pytest.raises(ValueError, match="t0: expected a time of at most"):
        solve(field, torch.ones(2, dtype=dtype), late, 0.0, Solver(lanes="each"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Solver, {"stepper": Tsit5}, "stepper: expected a Stepper or None, got the class Tsit5"),
        (Solver, {"stepper": "tsit5"}, "stepper: expected a Stepper or None, got str"),
        (Solver, {"controller": 1e-3}, "controller: expected a Controller or None, got float"),
        (Solver, {"adjoint": "all"}, "adjoint: expected .* got str"),
        (Solver, {"max_steps": 2.5}, "max_steps: expected a whole number, got float"),
        (PID, {"rtol": "1e-3"}, "rtol: expected a number, got str"),
        (PID, {"atol": [1e-3]}, "atol: expected a number, got list"),
        (PID, {"rtol": torch.tensor(1j)}, "rtol: expected a real number"),
        (PID, {"dt0": "0.1"}, "dt0: expected a number"),
        (PID, {"safety": "0.9"}, "safety: expected a number"),
        (PID, {"factormax": None}, "factormax: expected a number"),
        (PID, {"norm": "rms"}, "norm: expected a callable"),
        (PID, {"step_ts": ["a"]}, "step_ts: expected a tensor or a sequence of times"),
        (PID, {"jump_ts": torch.tensor([1j])}, "jump_ts: expected real times"),
        (Grid, {"n": 2.5}, "n: expected a whole number"),
        (Grid, {"dt": "0.1"}, "dt: expected a number"),
        (Grid, {"ts": "a"}, "ts: expected a tensor or a sequence of times"),
        (Quadrature, {"integrand": 3.0}, "integrand: expected a callable"),
        (Quadrature, {"integrand": field, "nodes": 2.5}, "nodes: expected a whole number"),
        (Event, {"function": field, "reset": 3}, "reset: expected a callable"),
    ],
)
def test_configuration_of_a_wrong_type_is_named(kind: type, options: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PID, {"safety": 0.0}, "safety: expected a positive factor"),
        (PID, {"pcoeff": math.nan}, "pcoeff: expected a finite number"),
        (Grid, {"dt": math.inf}, "dt: expected a positive step size"),
        (Quadrature, {"integrand": field, "nodes": 0}, "nodes: expected at least one"),
    ],
)
def test_configuration_of_a_wrong_value_is_named(kind: type, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (PID(rtol=torch.ones(7)), r"rtol: expected a shape that broadcasts against \(2, 3\), got \(7,\)"),
        (PID(atol=torch.ones(1, 2, 3)), "atol: expected a shape that broadcasts"),
        (PID(norm=lambda e: torch.ones(5)), r"norm: expected a tensor of shape \(2,\), got \(5,\)"),
        (PID(norm=lambda e: 1.0), "norm: expected a tensor .* got float"),
        (PID(jump_ts=torch.ones(5, 2)), r"jump_ts: expected times of shape \(k\) or \(2, k\), got \(5, 2\)"),
    ],
)
def test_controller_that_does_not_fit_the_state_is_named(controller: PID, message: str):
    with pytest.raises(ValueError, match=message):
        solve(field, torch.ones(2, 3), 0.0, 1.0, Solver(Tsit5(), controller, lanes="each"))


@pytest.mark.parametrize("dt", [1e-30, 1e-320])
def test_grid_of_far_too_many_steps_is_refused_before_it_is_made(dt: float):
    with pytest.raises(ValueError, match=r"max_steps: expected at least|dt: expected a step that divides"):
        solve(field, torch.ones(2), 0.0, 1.0, Solver(RK4(), Grid(dt=dt)))
    with pytest.raises(ValueError, match="max_steps: expected at least"):
        solve(field, torch.ones(2), 0.0, 1.0, Solver(RK4(), Grid(n=10**15)))


def test_grid_of_a_list_of_times_is_that_of_a_tensor():
    given, made = (
        solve(field, torch.ones(2), 0.0, 1.0, Solver(Euler(), Grid(ts=ts))).ys
        for ts in ([0.0, 0.25, 1.0], torch.tensor([0.0, 0.25, 1.0]))
    )
    assert torch.equal(given, made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda y, key: y, "got Tensor|got .*"),
        (lambda y, key: 3, "got int and NoneType"),
        (lambda y, key: (y, True), "and bool"),
        (lambda y, key: (y, torch.zeros(key.shape)), "of torch.bool, got .* of torch.float32"),
        (lambda y, key: (y[:1], key < 0), r"got \(1,\)"),
    ],
)
def test_jump_that_gives_something_else_is_named(given: Any, message: str):
    with pytest.raises(ValueError, match=f"jumps: expected a state of shape .*{message}"):
        solve(field, torch.ones(2), 0.0, 1.0, jumps=[lambda t, y, key, args: given(y, key)])
    with pytest.raises(ValueError, match="jumps: expected a state and where it changed, got Tensor"):
        solve(lambda t, y: y, (torch.ones(2),), 0.0, 1.0, jumps=[lambda t, y, key, args: y[0]])


@pytest.mark.parametrize("value", [1.0, None])
def test_integrand_that_gives_no_tensor_is_named(value: Any):
    folds = {"q": Quadrature(lambda t, y, args: value)}
    with pytest.raises(ValueError, match="integrand: expected a tensor"):
        solve(field, torch.ones(2), 0.0, 1.0, folds=folds)


def test_save_times_of_an_exponential_stepper_may_be_rounded_at_a_late_start():
    one = torch.ones(3, dtype=DTYPE)
    start, span, n = 1e8, 1e-3, 32
    ts = [start + span * k / n for k in (3, 17)]
    s = solve(Linked(), one, start, start + span, Solver(ETDRK2(), Grid(n=n)), args=(-one, one), save_at=ts)
    assert s.ys.shape == (2, 3)


def test_adjoint_that_is_a_class_is_named():
    with pytest.raises(TypeError, match=r"adjoint: expected .* got the class Discrete"):
        Solver(adjoint=Discrete)
