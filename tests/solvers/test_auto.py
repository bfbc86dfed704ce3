from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from sciml import Discrete, Solver, solve
from sciml.errors import SolveError, Status
from sciml.solvers import PID, Auto, Backsolve, Event, Kvaerno5, Quadrature, Rodas5P, Steps, Tsit5
from sciml.solvers.auto import _reach
from sciml.solvers.interop import odeint
from tests.solvers.stiff import PROBLEMS, scaled_error
from tests.solvers.systems import DTYPE, Net, coupled
from tests.solvers.test_adaptive import PROBLEMS as MILD

KINDS = ["joint", "each"]
REPLAYS = [Discrete("graph"), Discrete("all"), Discrete("every"), Backsolve(Tsit5())]


def method(s: Any) -> type:
    return type(s._task.march.stepper)


@pytest.mark.parametrize("name", PROBLEMS)
def test_stiff_problem_is_handed_over_and_solved(name: str):
    problem, rtol = PROBLEMS[name], 1e-4
    s = solve(problem.field, problem.y0, 0.0, problem.end, Solver(Auto(), PID(rtol, rtol * problem.ratio)))
    assert method(s) is Rodas5P
    assert scaled_error(s.ys, problem.exact) < 300 * rtol  # the bar of every stiff method


@pytest.mark.parametrize("lanes", KINDS)
@pytest.mark.parametrize("end", [1.0, 1e2, 1e5])
def test_solve_that_fails_is_handed_over(end: float, lanes: Any):
    """At these tolerances Tsit5 takes one step of Robertson's reaction that is too long, and blows up."""
    field, y0 = PROBLEMS["robertson"].field, PROBLEMS["robertson"].y0.expand(2, 3)
    s = solve(field, y0, 0.0, end, Solver(Auto(), PID(1e-4, 1e-6), lanes=lanes))
    right = solve(field, y0, 0.0, end, Solver(Rodas5P(), PID(1e-9, 1e-12)))
    assert method(s) is Rodas5P
    assert (s.ys - right.ys).abs().max() < 1e-3


@pytest.mark.parametrize("lanes", KINDS)
def test_pole_is_a_failure_of_the_stiff_method_too(lanes: Any):
    with pytest.raises(SolveError, match=r"at t=1\.000"):  # to rtol 1e-4
        solve(lambda t, y: y * y, torch.ones(2, dtype=DTYPE), 0.0, 2.0, Solver(Auto(), lanes=lanes))


def test_failures_that_are_not_stiff_are_those_of_tsit5():
    """Trials that were used up, a state that is not finite, and a field that leaves torch."""
    left = lambda t, y: torch.from_numpy(y.detach().numpy() ** 2)  # noqa: E731
    cases = (
        (lambda t, y: torch.cos(50 * t) * y, torch.ones(2, dtype=DTYPE), 50, "MAX_STEPS"),
        (lambda t, y: -y, torch.full((2,), torch.nan, dtype=DTYPE), 50, "NON_FINITE"),
        (left, torch.tensor([1.0, 0.1], dtype=DTYPE), 10_000, "DT_UNDERFLOW"),
    )
    for field, y0, trials, status in cases:
        s = solve(field, y0, 0.0, 5.0, Solver(Auto(), max_steps=trials), throw=False)
        assert method(s) is Auto
        assert Status(int(s.status)).name == status


def test_van_der_pol_costs_hardly_more_than_with_the_stiff_method():
    problem, calls = PROBLEMS["van_der_pol"], []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return problem.field(t, y)

    s = solve(field, problem.y0, 0.0, problem.end, "auto")
    tried = len(calls)
    calls.clear()
    solve(field, problem.y0, 0.0, problem.end, Solver(Rodas5P()))
    assert method(s) is Rodas5P
    assert tried - len(calls) < 6 * 100  # fifteen steps are enough, but for the first ones and those rejected


def test_field_that_becomes_stiff_late_agrees_with_scipy():
    """A flame: y grows from d until it burns at 1, where the field is stiff, for as long again (Shampine)."""
    d, ts = 1e-4, [5e3, 9.9e3, 1.001e4, 1.5e4, 2e4]
    s = solve(
        lambda t, y: y**2 - y**3,
        torch.tensor([d], dtype=DTYPE),
        0.0,
        2 / d,
        Solver(Auto(), PID(1e-8, 1e-11)),
        save_at=ts,
    )
    right = solve_ivp(lambda t, y: y**2 - y**3, (0, 2 / d), [d], "Radau", ts, rtol=1e-11, atol=1e-13).y[0]
    assert method(s) is Rodas5P
    # ten early errors of rtol, each of which shifts the ignition by rtol / d = 1e-4, where y grows by up to .15 a unit
    assert np.abs(s.ys[:, 0].numpy() - right).max() < 1.5e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("problem", MILD, ids=lambda p: p.name)
def test_mild_problem_is_solved_by_tsit5(problem: Any, rtol: float, kind: Any):
    y0 = torch.tensor([problem.y0], dtype=DTYPE)
    auto, plain = (
        solve(problem.field, y0, 0.0, problem.t1, Solver(x, PID(rtol, rtol), lanes=kind)) for x in (Auto(), Tsit5())
    )
    assert method(auto) is Auto
    assert torch.equal(auto.ys, plain.ys)
    assert auto.stats == plain.stats


def test_estimate_is_that_of_a_linear_field():
    """Between any two slopes of y' = -r y at one time lies r times the difference of the states."""
    for rate in (1.0, 37.0):
        y0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=DTYPE)
        for lane, size in ((0, ()), (1, (2,))):
            ks = stages(rate, y0, 0.05)
            found = _reach(ks, lane)
            assert found.shape == size
            assert torch.allclose(found, torch.full(size, 0.05 * rate, dtype=DTYPE), rtol=1e-9)  # of small differences


def stages(rate: float, y0: Tensor, h: float) -> tuple[Tensor, ...]:
    """Those of a step of Tsit5 over y' = -rate y."""
    ks = [-rate * y0]
    for row in Tsit5().tableau.a:
        ks.append(-rate * (y0 + h * sum(a * k for a, k in zip(row, ks, strict=True))))
    return tuple(ks)


class Tracking(nn.Module):
    """y' = -r (y - cos t), with r a parameter; y is (b, 2)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * (t.cos() - y)


def gradients(field: nn.Module, solver: Solver) -> tuple[Tensor, ...]:
    y0, end = torch.tensor([[1.0, 0.5], [0.7, 1.2]], dtype=DTYPE).requires_grad_(), torch.tensor(1.0, dtype=DTYPE)
    found = solve(field, y0, 0.0, end.requires_grad_(), solver, save_at=[0.1, 0.8])
    return torch.autograd.grad(found.ys.square().sum(), [y0, *field.parameters()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", REPLAYS, ids=str)
def test_gradient_is_that_of_the_method_that_went_through(adjoint: Any, kind: Any):
    for field, stepper in ((Tracking(3000.0), Rodas5P()), (Net(), Tsit5())):
        if stepper == Rodas5P() and isinstance(adjoint, Backsolve):
            continue  # a damped state cannot be integrated back
        found, right = (gradients(field, Solver(x, PID(1e-5, 1e-6), adjoint, lanes=kind)) for x in (Auto(), stepper))
        for a, b in zip(found, right, strict=True):
            assert torch.equal(a, b)


def test_one_stiff_sample_hands_all_over():
    rate, y0 = torch.tensor([[1.0], [3000.0]], dtype=DTYPE), torch.zeros(2, 1, dtype=DTYPE)
    field = lambda t, y: rate * (t.cos() - y)  # noqa: E731
    both = [solve(field, y0, 0.0, 1.0, Solver(x, lanes="each")) for x in (Auto(), Rodas5P())]
    assert torch.equal(both[0].ys, both[1].ys)
    assert method(solve(field, y0, 0.0, 1e-3, Solver(Auto(), lanes="each"))) is Auto  # over before it is noticed


def test_all_that_a_solve_takes_and_gives_is_that_of_the_other_method():
    field, y0 = (lambda t, y: {"u": 3000 * (t.cos() - y["u"])}), {"u": torch.zeros(2, dtype=DTYPE)}
    halve = lambda t, y, key, args: ({"u": torch.where(key == 40, y["u"] / 2, y["u"])}, key == 40)  # noqa: E731
    options: dict[str, Any] = {
        "save_at": [0.2, 0.9, 1.4],
        "folds": {"steps": Steps(), "q": Quadrature(lambda t, y, args: y["u"].sum())},
        "jumps": [halve],
        "events": {"half": Event(lambda t, y, args: y["u"][0] - 0.5, -1, terminate=False)},
    }
    found, right = (solve(field, y0, 0.0, 1.5, Solver(x, PID(1e-6, 1e-8)), **options) for x in (Auto(), Rodas5P()))
    assert torch.equal(found.ys["u"], right.ys["u"])
    assert torch.equal(found.folds["q"], right.folds["q"])
    assert torch.equal(found.events["half"].ts, right.events["half"].ts)
    assert found.stats == right.stats
    assert torch.equal(found(0.77)["u"], right(0.77)["u"])
    more = solve(field, None, None, 2.0, Solver(Auto(), PID(1e-6, 1e-8)), resume=found)
    assert method(more) is Rodas5P
    assert torch.allclose(more.ys["u"], torch.full_like(more.ys["u"], 2.0).cos(), atol=1e-3)  # 1 / rate


def test_what_takes_over_can_be_chosen():
    s = solve(Tracking(3000.0), torch.zeros(1, 2, dtype=DTYPE), 0.0, 1.0, Solver(Auto(Kvaerno5())))
    assert method(s) is Kvaerno5


def test_complex_states_go_on_with_tsit5():
    z0 = torch.ones(1, dtype=torch.complex128)
    s = solve(lambda t, z: -200 * (z - t.cos()), z0, 0.0, 1.0, Solver(Auto(), PID(1e-4, 1e-4)))
    assert method(s) is Auto


@pytest.mark.parametrize("mode", ["chunks", "loop"])
def test_it_is_not_compiled_and_says_so_where_it_was_asked(mode):
    y0 = torch.ones(1, 2, dtype=DTYPE)
    with pytest.warns(UserWarning, match="Auto cannot be compiled .* name the method") as told:
        s = solve(coupled, y0, 0.0, 1.0, Solver(Auto(), compile=mode))
    assert [w.filename for w in told] == [__file__]
    assert torch.equal(s.ys, solve(coupled, y0, 0.0, 1.0, Solver(Auto())).ys)


def test_drop_in_does_not_take_it():
    with pytest.raises(ValueError, match=r"method: expected one of .*, got 'auto'"):
        odeint(coupled, torch.ones(2, dtype=DTYPE), torch.linspace(0, 1, 3), method="auto")
