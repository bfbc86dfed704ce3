import pickle
import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from sciml import Discrete, SolveError, Solver, Status, solve
from sciml.solvers import (
    ETDRK2,
    ETDRK4,
    PID,
    RK4,
    Euler,
    Final,
    Grid,
    Kvaerno5,
    Quadrature,
    SaveAt,
    Stats,
    Steps,
    Tsit5,
)
from tests.solvers.registry import STEPPERS, Case
from tests.solvers.systems import DTYPE, Linked, coupled

STORES = [Discrete("graph"), Discrete("all"), Discrete("every", 3)]
EACH = Solver(Tsit5(), PID(1e-6, 1e-8), lanes="each")


class Square(nn.Module):
    """y' = w y^2: blows up at t = 1 / (w y0)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.w * y**2


def lanes(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)[:, None]


@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
def test_blow_up_in_one_sample_leaves_the_others_exact(adjoint: Discrete):
    solver = Solver(Tsit5(), PID(1e-6, 1e-8), adjoint, lanes="each")
    term = Square()
    results = []
    for values in ([0.3, 2.0, 0.5], [0.3, 0.5]):
        y0 = lanes(values).requires_grad_()
        s = solve(term, y0, 0.0, 1.0, solver, save_at=[0.25, 0.45, 1.0], folds={"nodes": Final()}, throw=False)
        keep = torch.tensor([i for i, v in enumerate(values) if v < 1])
        loss = s.ys[keep].square().sum() + s.folds["nodes"][keep].sum()
        results.append((s, keep, *torch.autograd.grad(loss, [y0, term.w])))
    (three, keep, to_y0, to_w), (two, _, right_y0, right_w) = results
    assert three.status.tolist() == [Status.DONE, Status.DT_UNDERFLOW, Status.DONE]
    assert torch.equal(three.ys[keep], two.ys)  # no rounding differs: the lanes are computed elementwise
    assert torch.equal(to_y0[keep], right_y0)
    assert to_y0[1] == 0
    assert torch.allclose(to_w, right_w, rtol=1e-14)  # a sum over samples in another order
    assert torch.equal(three.stats.nfe[keep], two.stats.nfe)


def test_blow_up_leaves_the_other_samples_of_a_vector_alone():
    field = lambda t, y: y * y  # noqa: E731
    y0 = torch.tensor([0.3, 2.0, 0.5], dtype=DTYPE)
    s = solve(field, y0, 0.0, 1.0, EACH, throw=False)
    assert s.status.tolist() == [Status.DONE, Status.DT_UNDERFLOW, Status.DONE]
    assert (s.ys[::2] - y0[::2] / (1 - y0[::2])).abs().max() < 1e-4  # rtol is 1e-6


@pytest.mark.parametrize("norm", [None, lambda e: e[:, 0].abs()], ids=["rms", "of one component"])
def test_overflow_is_found_where_the_error_estimate_stays_finite(norm: Callable[[Tensor], Tensor] | None):
    field = lambda t, y: torch.tensor([0.0, 3e38]).expand(y.shape)  # noqa: E731
    y0 = torch.tensor([[1.0, 3e38], [1.0, 0.0]])  # the largest float32 is 3.4e38
    s = solve(field, y0, 0.0, 1.0, Solver(controller=PID(norm=norm), lanes="each", max_steps=500), throw=False)
    assert s.status[0] >= Status.MAX_STEPS
    assert s.status[1] == Status.DONE
    assert bool(s.ys.isfinite().all())
    assert 0.1 < float(s.ts[0]) < 0.14
    joint = solve(field, y0[0], 0.0, 1.0, Solver(max_steps=500), throw=False)
    assert joint.status >= Status.MAX_STEPS


def test_failed_sample_holds_its_last_good_state():
    s = solve(Square(), lanes([0.3, 2.0]), 0.0, 1.0, EACH, save_at=[0.25, 0.9, 1.0], throw=False)
    assert abs(s.ys[1, 0].item() - 4.0) < 1e-4  # 1 / (1/2 - 1/4); rtol is 1e-6, the error grows as y^2
    assert bool(s.ys.isfinite().all())
    assert torch.equal(s.ys[1, 1], s.ys[1, 2])
    last = solve(Square(), lanes([0.3, 2.0]), 0.0, 1.0, EACH, throw=False)
    assert torch.equal(last.ys[1], s.ys[1, 2])
    assert last.ts[0] == 1.0
    assert abs(last.ts[1].item() - 0.5) < 1e-6


@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
def test_pole_at_one_sample_does_not_spoil_the_gradient_of_a_parameter(adjoint: Discrete):
    weight = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))

    class Pole(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = weight

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.w / y  # y0 = 0 is the pole

    solver = Solver(Tsit5(), PID(1e-6, 1e-8), adjoint, lanes="each")
    s = solve(Pole(), lanes([1.0, 0.0, 2.0]), 0.0, 1.0, solver, throw=False)
    assert s.status.tolist() == [Status.DONE, Status.NON_FINITE, Status.DONE]
    (grad,) = torch.autograd.grad(s.ys.sum(), weight)
    exact = (lanes([1.0, 2.0]).square() + 2).rsqrt().sum()  # y = sqrt(y0^2 + 2 w), dy/dw = 1 / y
    assert torch.allclose(grad, exact, rtol=1e-5)  # rtol is 1e-6


@pytest.mark.parametrize("kind", ["each", "joint"])
@pytest.mark.parametrize("stepper", [Tsit5(), Euler()])
def test_field_that_is_nan_fails_as_non_finite(kind: str, stepper):
    controller = PID() if stepper.adaptive else Grid(n=8)
    solver = Solver(stepper, controller, lanes=kind)
    field = lambda t, y: torch.where(y > 2, torch.nan, y)  # noqa: E731
    with pytest.raises(SolveError, match="became NaN or infinite") as caught:
        solve(field, lanes([0.1, 1.5]), 0.0, 1.0, solver)
    assert caught.value.status == (Status.NON_FINITE,)
    assert caught.value.samples == ((1,) if kind == "each" else ())
    assert 0 < caught.value.times[0] < 1


@pytest.mark.parametrize("kind", ["each", "joint"])
def test_first_step_that_fails_leaves_the_initial_state(kind: str):
    y0 = lanes([1.0, 2.0])
    solver = Solver(Tsit5(), PID(), lanes=kind)
    fails = lambda t, y: torch.where(y > 1.5, torch.nan, y)  # noqa: E731
    folds = {"final": Final(), "stats": Stats(), "steps": Steps()}
    s = solve(fails, y0, 0.0, 1.0, solver, save_at=[0.5], folds=folds, throw=False)
    failed = s.ys[1, 0] if kind == "each" else s.ys[0, 1]
    assert failed.item() == 2.0
    assert s.folds["final"][1].item() == 2.0
    assert s.status.reshape(-1)[-1] == Status.NON_FINITE


@pytest.mark.parametrize("kind", ["each", "joint"])
def test_max_steps_counts_trials(kind: str):
    solver = Solver(Tsit5(), PID(1e-8, 1e-10), max_steps=7, lanes=kind)
    with pytest.raises(
        SolveError, match=r"max_steps=7 trials were used up; raise max_steps or loosen .* if the equation is stiff"
    ) as caught:
        solve(coupled, torch.ones(2, 2, dtype=DTYPE), 0.0, 3.0, solver)
    assert set(caught.value.status) == {Status.MAX_STEPS}
    s = solve(coupled, torch.ones(2, 2, dtype=DTYPE), 0.0, 3.0, solver, throw=False)
    assert bool((s.stats.accepted + s.stats.rejected == 7).all())


def test_grid_of_more_steps_than_allowed_is_refused_at_once():
    with pytest.raises(ValueError, match="max_steps: expected at least the grid's 20000, got 10000"):
        solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 3.0, Solver(RK4(), Grid(n=20_000)))
    solver = Solver(RK4(), Grid(n=20), max_steps=20)
    assert solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 3.0, solver).status == Status.DONE


def test_who_has_an_implicit_stepper_is_not_told_to_take_one():
    with pytest.raises(SolveError, match=r"loosen rtol and atol$"):
        solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 3.0, Solver(Kvaerno5(), PID(1e-8, 1e-10), max_steps=3))


def test_max_steps_that_are_just_enough_do_not_fail():
    s = solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 3.0, Solver())
    trials = int(s.stats.accepted + s.stats.rejected)
    assert solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 3.0, Solver(max_steps=trials)).status == Status.DONE


def test_dt_underflow_names_time_sample_and_component():
    field = lambda t, y: torch.cat([y[:, :1], y[:, 1:] ** 2], 1)  # noqa: E731
    y0 = torch.tensor([[1.0, 0.1], [1.0, 4.0]], dtype=DTYPE)
    with pytest.raises(SolveError, match=r"1 of 2 samples: sample 1 at t=0\.25.*component \(1,\)") as caught:
        solve(field, y0, 0.0, 1.0, EACH)
    assert caught.value.samples == (1,)
    assert caught.value.status == (Status.DT_UNDERFLOW,)
    assert caught.value.times == pytest.approx((0.25,), abs=1e-6)
    with pytest.raises(SolveError, match=r"at t=0\.25.*component \(1, 1\)") as caught:
        solve(field, y0, 0.0, 1.0, Solver(controller=PID(1e-6, 1e-8)))
    assert caught.value.samples == ()


def test_batch_of_which_no_sample_takes_a_step_holds_its_initial_state():
    s = solve(lambda t, y: y * torch.nan, lanes([1.0, 2.0]), 0.0, 1.0, EACH, throw=False)
    assert s.status.tolist() == [Status.NON_FINITE] * 2
    assert torch.equal(s.ys, lanes([1.0, 2.0]))
    assert s.mesh.theta.shape == (1, 2)


def test_many_failures_are_summed_up():
    with pytest.raises(SolveError, match=r"7 of 8 samples.*and 2 more") as caught:
        solve(Square(), lanes([0.1, *[3.0] * 7]), 0.0, 1.0, EACH)
    assert caught.value.samples == tuple(range(1, 8))


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        (lambda t, y: y[:1], ValueError, r"term: expected a drift of the state's shape \(3,\), got \(1,\)"),
        (lambda t, y: y[:, None], ValueError, "shape"),
        (lambda t, y: y.float(), ValueError, r"dtype torch.float64, got torch.float32"),
        (lambda t, y: y.to("meta"), ValueError, "device cpu, got meta"),
        (lambda t, y: 1.0, ValueError, "got float"),
        (lambda t, y: None, ValueError, "got NoneType"),
        (lambda t, y: y.detach().numpy(), ValueError, "got ndarray"),
        (lambda y: y, TypeError, "got one of 1 positional"),
        (lambda t, y, args, more: y, TypeError, "got one of 4 positional"),
        (3.0, TypeError, "expected a Term or a callable"),
    ],
)
@pytest.mark.parametrize("kind", ["each", "joint"])
@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
def test_field_that_does_not_fit_is_refused(field, error, message: str, kind: str, adjoint: Discrete):
    with pytest.raises(error, match=message):
        solve(field, torch.ones(3, dtype=DTYPE), 0.0, 1.0, Solver(adjoint=adjoint, lanes=kind))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_state_of_a_wrong_dtype_is_refused(dtype: torch.dtype):
    with pytest.raises(TypeError, match="y0: expected"):
        solve(lambda t, y: y, torch.empty(3, dtype=dtype), 0.0, 1.0)


@pytest.mark.parametrize("kind", ["each", "joint"])
@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((torch.zeros(2), 1.0), r"t0: expected .* got shape \(2,\)"),
        ((0.0, torch.ones(3, 1)), r"t1: expected .* got shape \(3, 1\)"),
        ((float("nan"), 1.0), "t0: expected a finite time"),
        ((0.0, float("inf")), "t1: expected a finite time"),
        ((torch.tensor(float("-inf")), 1.0), "t0: expected a finite time"),
    ],
)
def test_times_that_do_not_fit_are_refused(kind: str, times, message: str):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: y, torch.ones(3, 1), *times, Solver(lanes=kind))


def test_times_per_sample_need_lanes_each():
    with pytest.raises(ValueError, match="t1"):
        solve(lambda t, y: y, torch.ones(3, 1), 0.0, torch.ones(3))
    with pytest.raises(ValueError, match="0-d"):
        solve(lambda t, y: y, torch.ones(()), 0.0, 1.0, Solver(lanes="each"))


@pytest.mark.parametrize("times", [[-0.1, 0.5], [0.5, 1.1], [float("nan")], [float("inf")]])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_save_times_outside_the_span_are_refused(times: list[float], ends: tuple[float, float]):
    with pytest.raises(ValueError, match="save_at: expected times between t0 and t1"):
        solve(lambda t, y: y, torch.ones(3), *ends, save_at=times)


def test_save_times_outside_an_empty_span_are_refused():
    with pytest.raises(ValueError, match="save_at"):
        solve(lambda t, y: y, torch.ones(3), 1.0, 1.0, save_at=[5.0])
    with pytest.raises(ValueError, match="save_at"):
        solve(lambda t, y: y, torch.ones(2), 0.0, torch.tensor([1.0, 0.0]), Solver(lanes="each"), save_at=[0.0, 0.5])


@pytest.mark.parametrize("shape", [(), (2, 2), (1, 3, 2)])
def test_save_times_of_a_wrong_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="save_at: expected times of shape"):
        solve(lambda t, y: y, torch.ones(3, 1), 0.0, 1.0, Solver(lanes="each"), save_at=torch.full(shape, 0.5))


@pytest.mark.parametrize("kind", ["each", "joint"])
@pytest.mark.parametrize("case", STEPPERS, ids=str)
def test_no_time_gives_the_initial_state(case: Case, kind: str):
    controller = PID() if case.stepper.adaptive else Grid(n=3)
    y0 = torch.rand(2, 3, dtype=DTYPE).requires_grad_()
    args = (torch.ones(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    solver = Solver(case.stepper, controller, lanes=kind)
    s = solve(Linked(), y0, 1.0, 1.0, solver, args=args, save_at=[1.0, 1.0])
    assert torch.equal(s.ys, torch.stack([y0, y0], 0 if kind == "joint" else 1))
    assert bool((s.status == Status.DONE.value).all())
    (grad,) = torch.autograd.grad(s.ys.sum(), y0)
    assert torch.equal(grad, torch.full_like(y0, 2.0))
    assert torch.equal(solve(Linked(), y0, 1.0, 1.0, solver, args=args).ys, y0)


@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
@pytest.mark.parametrize("case", STEPPERS, ids=str)
def test_no_time_for_one_sample_leaves_it_alone(case: Case, adjoint: Discrete):
    if case.stepper.history and not case.stepper.reversible and adjoint.store != "graph":
        pytest.skip("its steps cannot be taken again one by one, which is refused")
    adjoint = Discrete("invert") if case.stepper.history and adjoint.store != "graph" else adjoint
    controller = PID() if case.stepper.adaptive else Grid(n=3)
    y0 = torch.rand(3, 3, dtype=DTYPE).requires_grad_()
    args = (torch.ones(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    t1 = torch.tensor([1.0, 0.0, 0.5], dtype=DTYPE).requires_grad_()
    solver = Solver(case.stepper, controller, adjoint, lanes="each")
    s = solve(Linked(), y0, 0.0, t1, solver, args=args, folds={"final": Final()})
    assert torch.equal(s.ys[1], y0[1])
    assert torch.equal(s.folds["final"], s.ys)
    assert bool((s.status == Status.DONE.value).all())
    grad, to_t1 = torch.autograd.grad(s.ys.sum(), [y0, t1])
    assert torch.equal(grad[1], torch.ones_like(grad[1]))
    assert torch.allclose(to_t1[1], Linked().drift(torch.zeros((), dtype=DTYPE), y0[1], args).sum())


@pytest.mark.parametrize("kind", ["each", "joint"])
def test_batch_of_size_zero_gives_results_of_size_zero(kind: str):
    y0 = torch.ones(0, 2, dtype=DTYPE)
    solver = Solver(lanes=kind)
    s = solve(coupled, y0, 0.0, 1.0, solver, save_at=[0.5, 1.0, 0.2], folds={"final": Final()})
    assert s.ys.shape == ((3, 0, 2) if kind == "joint" else (0, 3, 2))
    assert s.folds["final"].shape == (0, 2)
    assert solve(coupled, y0, 0.0, 1.0, solver).ys.shape == (0, 2)


SHAPES = [(1,), (3,), (3, 3), (2, 3, 4)]


@pytest.mark.parametrize("case", STEPPERS, ids=str)
@pytest.mark.parametrize(("kind", "shape"), [("joint", ()), *product(["joint", "each"], SHAPES)], ids=str)
def test_state_of_any_shape_is_solved(case: Case, shape: tuple[int, ...], kind: str):
    controller = PID(1e-4, 1e-6) if case.stepper.adaptive else Grid(n=16)

    class Decay(Linked):
        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return t.expand(y.shape) - y

    y0 = torch.rand(shape, dtype=DTYPE)
    zero = torch.zeros((), dtype=DTYPE)
    solver = Solver(case.stepper, controller, lanes=kind)
    s = solve(Decay(), y0, 0.0, 1.0, solver, args=(zero,), save_at=[0.5, 1.0])
    at = s.ys.select(int(kind == "each"), 1)
    exact = (y0 + 1) * torch.tensor(-1.0).exp()  # y = (y0 + 1) e^-t + t - 1
    assert at.shape == y0.shape
    most = 0.05 if case.stepper.order == 1 else 1e-3 * case.loose  # sixteen Euler steps, or rtol 1e-4
    assert torch.allclose(at, exact, atol=most)


@pytest.mark.parametrize("stepper", [ETDRK2(), ETDRK4()])
def test_exponential_stepper_with_a_plain_term_is_refused(stepper):
    with pytest.raises(ValueError, match="expects a Semilinear term"):
        solve(lambda t, y: y, torch.ones(1), 0.0, 1.0, Solver(stepper, Grid(n=2)))


@pytest.mark.parametrize("stepper", [RK4(), Euler(), ETDRK2(), ETDRK4()])
@pytest.mark.parametrize("controller", [PID(), None])
def test_controller_that_needs_an_error_estimate_is_refused_without_one(stepper, controller):
    with pytest.raises(ValueError, match=f"controller: {type(stepper).__name__}"):
        Solver(stepper, controller)


@pytest.mark.parametrize("stepper", [ETDRK2(), ETDRK4()])
@pytest.mark.parametrize("kind", ["each", "joint"])
@torch.no_grad()  # with gradients lanes "each" refuse the drift as a whole before
def test_semilinear_term_that_does_not_fit_is_refused(stepper, kind: str):
    y0 = torch.ones(2, 3, dtype=DTYPE)
    solver = Solver(stepper, Grid(n=2), lanes=kind)
    one = torch.ones(3, dtype=DTYPE)

    class Narrow(Linked):
        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return y[:, :1]

    with pytest.raises(ValueError, match=r"drift of the state's shape \(2, 3\), got \(2, 1\)"):
        solve(Narrow(), y0, 0.0, 1.0, solver, args=(one, one))
    with pytest.raises(ValueError, match="expected a real linear part"):
        solve(Linked(), y0, 0.0, 1.0, solver, args=(1j * one, one))
    with pytest.raises(ValueError, match=r"broadcasts against \(2, 3\), got shape \(4, 2, 3\)"):
        solve(Linked(), y0, 0.0, 1.0, solver, args=(torch.ones(4, 2, 3, dtype=DTYPE), one))


@pytest.mark.parametrize("stepper", [ETDRK2(), ETDRK4()])
def test_fold_that_reads_within_steps_is_refused_without_dense_output(stepper):
    args = (torch.ones(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    y0, solver = torch.ones(3, dtype=DTYPE), Solver(stepper, Grid(n=10))
    with pytest.raises(ValueError, match=r"folds\['q'\]: Quadrature reads the states within steps"):
        solve(Linked(), y0, 0.0, 1.0, solver, args=args, folds={"q": Quadrature(lambda t, y, args: y)})
    with pytest.raises(ValueError, match="times at which its steps end"):
        solve(Linked(), y0, 0.0, 1.0, solver, args=args, folds={"s": SaveAt(torch.tensor([0.25]))})


@pytest.mark.parametrize("controller", [Grid(dt=0.3), Grid(ts=torch.linspace(0, 1, 3)), Grid(n=4)])
def test_no_time_fits_any_grid(controller: Grid):
    y0 = torch.ones(2, 2, dtype=DTYPE)
    for kind in ("joint", "each"):
        assert torch.equal(solve(coupled, y0, 1.0, 1.0, Solver(RK4(), controller, lanes=kind)).ys, y0)
        empty = solve(coupled, y0[:0], 0.0, 0.6, Solver(RK4(), Grid(dt=0.3), lanes=kind)).ys
        assert empty.shape == (0, 2)
    t1 = torch.tensor([0.0, 0.6], dtype=DTYPE)
    two = solve(coupled, y0, 0.0, t1, Solver(RK4(), Grid(dt=0.3), lanes="each"))
    assert torch.equal(two.ys[0], y0[0])
    assert torch.equal(two.ys[1], solve(coupled, y0[1:], 0.0, 0.6, Solver(RK4(), Grid(dt=0.3), lanes="each")).ys[0])


def test_uniform_stepper_with_given_times_is_refused():
    with pytest.raises(ValueError, match="one size only"):
        Solver(ETDRK4(), Grid(ts=torch.linspace(0, 1, 3)))


def test_save_times_off_the_grid_of_an_exponential_stepper_are_refused():
    args = (torch.ones(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    solver = Solver(ETDRK4(), Grid(n=10))
    with pytest.raises(ValueError, match=re.escape("times at which its steps end, as 0.2 and 0.3, got 0.25")):
        solve(Linked(), torch.ones(3, dtype=DTYPE), 0.0, 1.0, solver, args=args, save_at=[0.1, 0.25])
    s = solve(Linked(), torch.ones(3, dtype=DTYPE), 0.0, 1.0, solver, args=args, save_at=torch.arange(11) * 0.1)
    nodes = solve(Linked(), torch.ones(3, dtype=DTYPE), 0.0, 1.0, solver, args=args, folds={"nodes": Steps()}).folds[
        "nodes"
    ]
    assert torch.equal(s.ys[1:], nodes.ys)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PID, {"rtol": -1e-3}, "rtol: expected"),
        (PID, {"rtol": 0, "atol": 0}, "rtol, atol"),
        (PID, {"rtol": torch.tensor([1e-3, float("nan")])}, "rtol: expected a non-negative tolerance"),
        (PID, {"dt0": -0.1}, "dt0"),
        (PID, {"dtmax": 0.0}, "dtmax"),
        (PID, {"factormin": 2.0}, "factormin"),
        (Grid, {}, "got none"),
        (Grid, {"n": 2, "dt": 0.1}, "got n and dt"),
        (Grid, {"n": 0}, "n: expected"),
        (Grid, {"dt": -0.1}, "dt: expected"),
        (Discrete, {"store": "some"}, "store"),
        (Discrete, {"store": "all", "every": 2}, "got 2 with 'all'"),
        (Discrete, {"store": "every", "every": 0}, "got 0 with 'every'"),
        (Solver, {"lanes": "some"}, "lanes"),
        (Solver, {"max_steps": 0}, "max_steps"),
    ],
)
def test_configuration_that_cannot_work_is_refused(kind: type, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (Grid(dt=0.3), "divides t1 - t0"),
        (Grid(ts=torch.tensor([0.0, 0.5])), "the first must be t0 and the last t1"),
        (Grid(ts=torch.tensor([0.0, 0.5, 0.4, 1.0])), "monotone"),
        (Grid(ts=torch.tensor([0.0, 0.5, 0.5, 1.0])), "monotone"),
        (Grid(ts=torch.tensor([1.0, 0.5, 0.0])), "monotone"),
        (Grid(ts=torch.tensor([0.0])), "at least two"),
    ],
)
def test_grid_that_does_not_fit_the_span_is_refused(controller: Grid, message: str):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: y, torch.ones(1), 0.0, 1.0, Solver(RK4(), controller))


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "vmap"])
def test_errors_within_transforms_of_torch_func_say_what_to_take_instead(transform: str):
    apply, y0 = getattr(torch.func, transform), torch.ones(3, 3, 2, dtype=DTYPE)
    unfit = lambda y: solve(lambda t, y: y @ y, y, 0.0, 1.0).ys.sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"Expected size.*; this solve does not go through torch.func.*lanes='each'"):
        apply(unfit)(y0)
    with pytest.raises(RuntimeError, match=r"Expected size[^;]*$"):  # an error of the field is left alone
        unfit(y0)

    def full(t: Tensor, y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match=r"^full$"):  # one with a type of its own in a transform too
        apply(lambda y: solve(full, y, 0.0, 1.0).ys.sum())(y0)


def test_resume_with_a_state_is_refused():
    s = solve(lambda t, y: y, torch.ones(1), 0.0, 1.0)
    with pytest.raises(ValueError, match="resume"):
        solve(lambda t, y: y, torch.ones(1), None, 2.0, resume=s)
    with pytest.raises(ValueError, match="y0, t0"):
        solve(lambda t, y: y, None, None, 2.0)


def test_mesh_of_other_lanes_is_refused():
    s = solve(lambda t, y: y, torch.ones(3), 0.0, 1.0)
    with pytest.raises(ValueError, match="mesh"):
        solve(lambda t, y: y, torch.ones(3), 0.0, 1.0, Solver(lanes="each"), mesh=s.mesh)


def test_solve_error_survives_pickling():
    error = SolveError("why", [Status.MAX_STEPS], [3], [0.5])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.status, copy.samples, copy.times) == ("why", (Status.MAX_STEPS,), (3,), (0.5,))
