"""Equations driven by data: exact and scipy's solutions, orders, gradients, and what time does not matter for."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor, nn
from torch.nn import functional

from sciml import PID, Solver, solve
from sciml.solvers import CDE, RK4, Backsolve, Bosh3, Discrete, Dopri8, Grid, Rodas5P, Spline, Tsit5
from tests.elsewhere import agree, differentiated
from tests.solvers.systems import DTYPE
from tests.solvers.test_gradients import agrees_with_differences, same, weighted

KINDS, LANES = ["linear", "hermite"], ["joint", "each"]
SAMPLES, COUNT, CHANNELS, HIDDEN = 4, 7, 2, 3
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
# Errors of tight solves: tens of times the tolerance, of states up to 5.
SOLVED = 1e-7


class Matrix(nn.Module):
    """tanh(W y), as a matrix."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(HIDDEN * CHANNELS, HIDDEN, dtype=DTYPE, generator=draw))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(functional.linear(y, self.weight)).unflatten(-1, (HIDDEN, CHANNELS))


def data(own: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Times from 0 on, values of which some are missing, and initial states."""
    draw = torch.Generator().manual_seed(1)
    gaps = 0.1 + torch.rand(*([SAMPLES] if own else []), COUNT, dtype=DTYPE, generator=draw)
    values = 0.3 * torch.randn(SAMPLES, COUNT, CHANNELS, dtype=DTYPE, generator=draw)
    values[1, 2], values[2, 4:, 0] = torch.nan, torch.nan
    ts = gaps.cumsum(-1)
    return ts - ts[..., :1], values, torch.randn(SAMPLES, HIDDEN, dtype=DTYPE, generator=draw)


def driven(x: Spline, y0: Tensor, solver: Solver, field: Any = None, **options: Any) -> Any:
    """The solution over all knots."""
    t1 = x.ts[..., -1].detach()
    return solve(CDE(field or Matrix()), y0, 0.0, t1, solver, args=x, **options)


def at_knots(x: Spline, lanes: str, **options: Any) -> Solver:
    return Solver(Tsit5(), PID(**TIGHT, jump_ts=x.ts.detach()), lanes=lanes, **options)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("kind", ["linear", "rectilinear"])
def test_linear_equations_over_straight_lines_are_products_of_exponentials(kind: str, lanes: str):
    """dy = (A_1 dX_1 + .. + A_c dX_c) y with matrices that do not commute, at every knot."""
    ts, values, y0 = data(own=lanes == "each")
    x = getattr(Spline, kind)(ts, values)
    channels = x.coefficients.shape[2]
    a = torch.randn(HIDDEN, HIDDEN, channels, dtype=DTYPE, generator=torch.Generator().manual_seed(3))
    knots = x.ts
    ys = driven(x, y0, at_knots(x, lanes), lambda t, y: torch.einsum("hkc,bk->bhc", a, y), save_at=knots).ys
    states = [y0]
    for piece in x.coefficients[..., 1].unbind(1):
        states.append((torch.einsum("hkc,bc->bhk", a, piece).matrix_exp() @ states[-1][..., None])[..., 0])
    right = torch.stack(states, int(lanes == "each"))
    assert torch.allclose(ys, right, rtol=SOLVED, atol=SOLVED)


@pytest.mark.parametrize("lanes", LANES)
def test_along_cubics_it_is_scipys_solution(lanes: str):
    ts, values, y0 = data(own=lanes == "each")
    values = values.nan_to_num(0.3)
    field, x = Matrix(), Spline.hermite(ts, values)
    found = driven(x, y0, at_knots(x, lanes), field).ys
    weight = field.weight.detach().numpy()
    for row, times in enumerate(ts.expand(SAMPLES, COUNT).numpy()):
        slopes = np.diff(values[row].numpy(), axis=0) / np.diff(times)[:, None]
        slope = CubicHermiteSpline(times, values[row], np.concatenate([slopes[:1], slopes])).derivative()
        right = lambda t, y: np.tanh(weight @ y).reshape(HIDDEN, CHANNELS) @ slope(t)  # noqa: B023, E731
        known = solve_ivp(right, (0, times[-1]), y0[row], method="DOP853", rtol=1e-11, atol=1e-12, max_step=0.05)
        np.testing.assert_allclose(found[row].detach(), known.y[:, -1], rtol=0, atol=SOLVED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stepper", "order"), [(Bosh3(), 3), (RK4(), 4)], ids=["bosh3", "rk4"])
def test_methods_have_their_order_where_steps_end_at_knots(stepper: Any, order: int, kind: str):
    ts, values, y0 = data()
    x = getattr(Spline, kind)(ts, values).by_index()
    right = driven(x, y0, Solver(Dopri8(), PID(1e-12, 1e-13, jump_ts=x.ts))).ys
    sizes, pieces = (4, 8, 16, 32), COUNT - 1
    errors = {}
    for jumps in (x.ts, None):
        grids = (Solver(stepper, Grid(n=n * pieces, jump_ts=jumps)) for n in sizes)
        errors[jumps is None] = [(driven(x, y0, grid).ys - right).abs().max().item() for grid in grids]
    slopes = {key: -np.polyfit(np.log(sizes), np.log(values), 1)[0] for key, values in errors.items()}
    assert order - 0.2 < slopes[False] < order + 0.5
    assert slopes[True] < 1.5  # the last stage of a step to a knot looks behind it


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_end_at_knots_take_fewer_evaluations(kind: str):
    ts, values, y0 = data()
    x = getattr(Spline, kind)(ts, values)
    free, stopped = (driven(x, y0, Solver(controller=PID(1e-4, 1e-6, jump_ts=jumps))) for jumps in (None, x.ts))
    assert stopped.stats.nfe < (0.3 if kind == "linear" else 0.7) * free.stats.nfe
    right = driven(x, y0, at_knots(x, "joint")).ys
    for solution in (free, stopped):
        assert torch.allclose(solution.ys, right, rtol=1e-2, atol=1e-2)  # a hundred times the tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_how_time_goes_does_not_matter(kind: str):
    """Knot by knot, whatever lies between: states at the knots, samples of other times in one system."""
    ts, values, y0 = data(own=True)
    x = getattr(Spline, kind)(ts, values)
    own = driven(x, y0, at_knots(x, "each"), save_at=ts).ys
    y = x.by_index()
    joint = driven(y, y0, at_knots(y, "joint"), save_at=y.ts).ys
    assert torch.allclose(own, joint.transpose(0, 1), rtol=SOLVED, atol=SOLVED)
    later = x._replace(ts=ts**3 + 2 * ts)
    assert torch.allclose(
        own, driven(later, y0, at_knots(later, "each"), save_at=later.ts).ys, rtol=SOLVED, atol=SOLVED
    )


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("kind", [*KINDS, "rectilinear"])
def test_gradients_to_data_states_and_weights_are_differences(kind: str, lanes: str):
    """On frozen steps, under every discrete adjoint; values that are missing have none."""
    ts, values, y0 = data(own=lanes == "each")
    field, seen = Matrix(), ~values.isnan()
    if kind == "rectilinear":
        field = lambda t, y, args: torch.tanh(y @ args[0].T).unflatten(-1, (HIDDEN, CHANNELS + 1))  # noqa: E731
    extra = torch.randn(HIDDEN * (CHANNELS + 1), HIDDEN, dtype=DTYPE, generator=torch.Generator().manual_seed(6))
    controller = PID(1e-5, 1e-7, jump_ts=getattr(Spline, kind)(ts, values).ts)

    def solution(adjoint: Discrete, *inputs: Tensor, **options: Any) -> Any:
        y0, known, *more = inputs
        x = getattr(Spline, kind)(ts, torch.full_like(values, torch.nan).masked_scatter(seen, known))
        solver = Solver(Tsit5(), controller, adjoint, lanes=lanes)
        return solve(CDE(field), y0, 0.0, x.ts[..., -1], solver, args=(*x, *more), **options)

    inputs = [y0, values[seen], *([extra] if kind == "rectilinear" else [])]
    leaves = [x.clone().requires_grad_() for x in inputs]
    grads, weights = [], list(field.parameters()) if isinstance(field, nn.Module) else []
    for store in ("graph", "all", "every"):
        ys = solution(Discrete(store), *leaves).ys
        grads.append(torch.autograd.grad(weighted(ys), [*leaves, *weights]))
    assert same(grads[1], grads[0])
    assert same(grads[2], grads[0])
    mesh = solution(Discrete(), *inputs).mesh
    loss = lambda *inputs: weighted(solution(Discrete(), *inputs, mesh=mesh).ys)  # noqa: E731
    agrees_with_differences(loss, inputs, list(grads[0][: len(inputs)]))
    for weight, grad in zip(weights, grads[0][len(inputs) :], strict=True):

        def of_weight(value: Tensor, weight: nn.Parameter = weight) -> Tensor:
            weight.data = value
            return loss(*inputs)

        agrees_with_differences(of_weight, [weight.detach().clone()], [grad])


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("kind", KINDS)
def test_backsolve_has_the_gradient_of_the_solve(kind: str, lanes: str):
    """Both are the exact one within the tolerance."""
    ts, values, y0 = data(own=lanes == "each")
    grads, field = [], Matrix()
    for adjoint in (Discrete("graph"), Backsolve()):
        leaves = y0.clone().requires_grad_(), values.clone().requires_grad_()
        x = getattr(Spline, kind)(ts, leaves[1])
        solver = Solver(Tsit5(), PID(1e-7, 1e-9, jump_ts=x.ts), adjoint, lanes=lanes)
        ys = driven(x, leaves[0], solver, field).ys
        grads.append(torch.autograd.grad(weighted(ys), [*leaves, *field.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # a thousand times the tolerance


def test_backsolve_goes_back_over_a_grid_with_its_discontinuities():
    """To the order of the method."""
    ts, values, y0 = data()
    field, misses = Matrix(), []
    for n in (4, 8, 16):
        grads, save_at = [], torch.tensor([2.0, 5.0, 6.0])
        for adjoint in (Discrete("graph"), Backsolve()):
            known = values.clone().requires_grad_()
            x = Spline.linear(ts, known).by_index()
            solver = Solver(RK4(), Grid(n=n * (COUNT - 1), jump_ts=x.ts), adjoint)
            ys = driven(x, y0, solver, field, save_at=save_at).ys
            grads.append(torch.autograd.grad(weighted(ys), known)[0])
        misses.append((grads[0] - grads[1]).abs().max())
    assert misses[0] > 8 * misses[1] > 64 * misses[2]


def test_times_have_gradients():
    """With discontinuities of the field at them, which move with them."""
    ts, values, y0 = data()

    def loss(times: Tensor) -> Tensor:
        x = Spline.linear(times, values)
        solver = Solver(Tsit5(), PID(**TIGHT, jump_ts=times))
        field = lambda t, y: (t + y).sin()[..., None] * torch.tensor([1.0, 0.5], dtype=DTYPE)  # noqa: E731
        return weighted(solve(CDE(field), y0, times[0], times[-1], solver, args=x).ys)

    times = ts.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(times), times)
    for i in range(COUNT):
        step = 1e-4 * torch.eye(COUNT, dtype=DTYPE)[i]
        with torch.no_grad():
            right = (loss(ts + step) - loss(ts - step)) / 2e-4
        assert abs(grad[i] - right) < 1e-6  # 1e-8 times third derivatives, 1e-11 / 1e-4 of the solves


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_samples_that_arrived_are_left_out(own: bool):
    ts, values, y0 = data(own)
    ts, values, y0 = ts.repeat(100, 1) if own else ts, values.repeat(100, 1, 1), y0.repeat(100, 1)
    t1 = ts.max() * torch.tensor([0.1, 0.1, 0.1, 1.0], dtype=DTYPE).repeat(100)
    seen: list[int] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append(len(y))
        return torch.tanh(y)[..., None].expand(*y.shape, CHANNELS)

    found = []
    for compact in (None, (0, 1) if own else (1,)):
        solver = Solver(Tsit5(), PID(1e-4, 1e-6), lanes="each", compact=compact)
        found.append(solve(CDE(field), y0, 0.0, t1, solver, args=Spline.hermite(ts, values)).ys)
    assert torch.equal(*found)
    assert min(seen) == 100


@pytest.mark.parametrize("lanes", LANES)
def test_on_another_device_it_is_the_same(lanes: str):
    ts, values, y0 = data(own=lanes == "each")

    def make(device: torch.device) -> tuple[Tensor, ...]:
        field = Matrix().to(device)
        leaves = y0.to(device).requires_grad_(), values.to(device).nan_to_num(0.1).requires_grad_()
        x = Spline.hermite(ts.to(device), leaves[1])
        solver = Solver(controller=PID(1e-3, 1e-5, jump_ts=ts.to(device)), adjoint=Discrete("all"), lanes=lanes)
        ys = solve(CDE(field), leaves[0], 0.0, ts[..., -1], solver, args=x).ys
        return differentiated(ys, *leaves, *field.parameters())

    agree(make)


def test_implicit_steppers_and_states_of_several_axes_go_too():
    ts, values, y0 = data()
    x = Spline.hermite(ts, values)
    right = driven(x, y0, at_knots(x, "joint")).ys
    implicit = Solver(Rodas5P(), PID(1e-4, 1e-6, jump_ts=ts))
    with torch.no_grad():
        assert torch.allclose(driven(x, y0, implicit).ys, right, rtol=1e-3, atol=1e-3)
    field = Matrix()
    twice = driven(x, torch.stack([y0, y0], 1), at_knots(x, "joint"), lambda t, y: field(t, y)).ys
    assert torch.allclose(twice, right[:, None], rtol=SOLVED, atol=SOLVED)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", LANES)
def test_a_compiled_loop_is_the_eager_march(lanes: str):
    """Forward and backward, with batches that shrink."""
    ts, values, y0 = data(own=lanes == "each")
    found, field = [], Matrix()
    for compact, mode in ((None, None), ((0, 1) if lanes == "each" else None, "loop")):
        leaves = y0.clone().requires_grad_(), values.clone().requires_grad_()
        x = Spline.linear(ts, leaves[1])
        ys = driven(x, leaves[0], at_knots(x, lanes, compile=mode, compact=compact), field).ys
        found.append([ys.detach(), *torch.autograd.grad(weighted(ys), [*leaves, *field.parameters()])])
    assert same(found[1], found[0])


@pytest.mark.parametrize(
    ("field", "y0", "args", "said"),
    [
        (lambda t, y: y, (SAMPLES, 3), None, "field: expected values"),
        (lambda t, y: y[..., None].expand(*y.shape, 3), (SAMPLES, 3), None, "field: expected values"),
        (Matrix(), (3, 3), None, "y0: expected states"),
        (Matrix(), (SAMPLES,), None, "y0: expected states"),
        (Matrix(), (SAMPLES, 3), (), "args: expected a Spline"),
        (Matrix(), (SAMPLES, 3), (torch.zeros(3), torch.zeros(3)), "args: expected a Spline"),
    ],
)
def test_what_does_not_fit_is_refused(field: Any, y0: tuple[int, ...], args: Any, said: str):
    ts, values, _ = data()
    args = Spline.linear(ts, values) if args is None else args
    with pytest.raises(ValueError, match=said):
        solve(CDE(field), torch.zeros(y0, dtype=DTYPE), 0.0, 1.0, args=args)


def test_a_field_that_is_no_callable_is_refused():
    with pytest.raises(TypeError, match="field: expected a callable"):
        CDE(torch.zeros(3))
    with pytest.raises(TypeError, match="field: expected a callable"):
        CDE(lambda y: y)
