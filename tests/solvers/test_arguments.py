"""Arguments of wrong types and values are refused by name."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciml import Discrete, Solver, solve
from sciml.solvers import ETDRK2, PID, RK4, Euler, Event, Final, Grid, Quadrature, SaveAt, Steps, Tsit5
from tests.solvers.bouncing import GRAVITY, falling, row
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
        ({"save_at": [[0.1, 0.2], [0.3]]}, r"save_at: .* got list \(expected sequence of length 2"),
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


@pytest.mark.parametrize("args", [[torch.ones(1)], torch.ones(1), (1.0,), (None,), 3.0])
def test_args_other_than_a_tuple_of_tensors_are_refused(args):
    with pytest.raises(TypeError, match="args: expected a tuple of tensors"):
        solve(lambda t, y, args: y, torch.ones(1), 0.0, 1.0, args=args)


def test_args_are_refused_where_nothing_reads_them():
    w, y0 = torch.full((), 2.0, dtype=DTYPE), torch.ones(3, dtype=DTYPE)
    message = r"args: expected none with a term f\(t, y\), got 1; a term f\(t, y, args\)"
    for each, events in ((field, ()), (lambda t, y, scale=3: -scale * y, ()), (field, lambda t, y, i=0: y[i] - 0.5)):
        with pytest.raises(ValueError, match=message):
            solve(each, y0, 0.0, 1.0, args=(w,), events=events)
    read = solve(field, y0, 0.0, 1.0, args=(w,), folds={"q": Quadrature(lambda t, y, args: args[0].expand(3))})
    assert torch.allclose(read.folds["q"], w.expand(3))  # a constant, exact to round-off


def test_args_are_given_to_what_can_take_them():
    fields = [
        lambda t, y, *args: -args[0][0] * y,
        lambda t, y, args=(): -args[0] * y,
        lambda t, y, rates=None: -rates[0] * y,
        lambda *given: -given[2][0] * given[1],
    ]
    w, y0 = torch.full((), 2.0, dtype=DTYPE), torch.ones(3, dtype=DTYPE)
    want = solve(lambda t, y, args: -args[0] * y, y0, 0.0, 1.0, args=(w,)).ys
    for field in fields:
        assert torch.equal(solve(field, y0, 0.0, 1.0, args=(w,)).ys, want)


class Floor(nn.Module):
    """Zero at the height of a parameter."""

    def __init__(self):
        super().__init__()
        self.height = nn.Parameter(torch.zeros((), dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y[..., 0] - self.height


def test_events_and_resets_take_args_or_not():
    one, e, floor = torch.ones(1, dtype=DTYPE), 0.5, Floor()
    short = Event(floor, -1, reset=lambda t, y: y * torch.tensor([1.0, -e]))
    others = [
        Event(lambda t, y, args: y[0], -1, reset=lambda t, y, args: args[0] * y * torch.tensor([1.0, -e])),
        Event(
            lambda t, y, given=(): y[0] * given[0][0], -1, reset=lambda t, y, given=None: given[0] * y * row(1.0, -e)
        ),
        Event(lambda t, y, *args: y[0] * args[0][0].squeeze(), -1, reset=lambda t, y, args=(): args[0] * y * -e),
    ]
    ball = lambda event, *args: solve(falling, row(10, 0), 0.0, 2.0, args=args, events=event)  # noqa: E731
    want, *found = ball(short), *(ball(event, one) for event in others)
    assert want.events[0].count == 1
    for s in found:
        assert torch.equal(s.events[0].ts, want.events[0].ts)
    assert torch.equal(found[0].ys, want.ys)
    # an event of two arguments keeps its parameters: t = sqrt(2 (10 - h) / g) has dt/dh = -1 / (g t)
    adjoint = Solver(adjoint=Discrete("all"))
    s = solve(falling, row(10, 0), 0.0, 2.0, adjoint, events=floor)
    (grad,) = torch.autograd.grad(s.ts.sum(), floor.height)
    assert abs(grad * GRAVITY * s.ts.detach() + 1) < 1e-9
