"""Solves, or samples of them, in which nothing moves: no time, no state, no step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciml import Discrete, Solver, Status, solve
from sciml.solvers import PID, Backsolve, Event, Final, Grid, Heun, Quadrature, Stats, Steps, Tsit5
from tests.solvers.registry import STEPPERS, Case
from tests.solvers.systems import DTYPE, Linked

STORES = [Discrete("graph"), Discrete("all"), Discrete("every", 2)]
KINDS = ["joint", "each"]


class Lost(nn.Module):
    """A field that is never finite."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.w * y * torch.nan


class Affine(nn.Linear):
    """A linear field of two unknowns."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        return super().forward(y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
@pytest.mark.parametrize("end", [1.0, 0.0], ids=["failed", "no time"])
def test_solve_without_a_step_has_the_gradient_zero_for_parameters(kind: str, adjoint: Discrete, end: float):
    """So that a loss over a batch that fails as a whole can be differentiated."""
    term, y0 = Lost(), torch.ones(1, 2, dtype=DTYPE)
    solver = Solver(Tsit5(), PID(), adjoint, lanes=kind)
    folds = {"stats": Stats(), "final": Final(), "steps": Steps()}
    s = solve(term, y0, 0.0, end, solver, save_at=[0.0, end], folds=folds, throw=False)
    assert bool((s.status == (Status.NON_FINITE.value if end else Status.DONE.value)).all())
    (grad,) = torch.autograd.grad(s.ys.sum() + s.folds["final"].sum() + s.folds["stats"].error.sum(), term.w)
    assert grad == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [*STORES, Backsolve()], ids=lambda a: getattr(a, "store", "backsolve"))
@pytest.mark.parametrize("plain", [True, False], ids=["function", "module"])
def test_weights_have_the_gradient_zero_where_nothing_moves(kind: str, adjoint: Discrete | Backsolve, plain: bool):
    """As those of torch's modules have of an empty batch, also behind a layer before it."""
    net = Affine()
    for b, end in ((0, 1.0), (3, 0.0)):
        for y0 in (torch.ones(b, 2), torch.ones(b, 2).requires_grad_() * 1):
            field = (lambda t, y: net(t, y)) if plain else net
            ys = solve(field, y0, 0.0, end, Solver(adjoint=adjoint, lanes=kind)).ys
            grads = torch.autograd.grad(ys.sum(), list(net.parameters()))
            assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
def test_stats_of_no_steps_do_not_spoil_a_gradient(kind: str, adjoint: Discrete):
    y0 = torch.ones(2, 2, dtype=DTYPE).requires_grad_()
    s = solve(Lost(), y0, 0.0, 0.0, Solver(Tsit5(), PID(), adjoint, lanes=kind), folds={"stats": Stats()})
    assert s.folds["stats"].h.numel() == 0
    (grad,) = torch.autograd.grad(s.ys.sum() + s.folds["stats"].error.sum(), y0)
    assert torch.equal(grad, torch.ones_like(y0))


def test_stats_are_padded_with_zeros_where_the_field_is_not_finite():
    field = lambda t, y: torch.where(y > 1.5, torch.nan, -y)  # noqa: E731
    y0 = torch.tensor([[1.0], [2.0]], dtype=DTYPE)
    s = solve(field, y0, 0.0, 1.0, Solver(lanes="each"), folds={"stats": Stats()}, throw=False)
    assert s.status.tolist() == [Status.DONE, Status.NON_FINITE]
    assert torch.equal(s.folds["stats"].error[1], torch.zeros_like(s.folds["stats"].error[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_a_solve_over_no_time_moves_along_the_field(kind: str):
    y0 = torch.tensor([[1.0], [2.0]], dtype=DTYPE)
    t0, t1 = (torch.tensor(1.0, dtype=DTYPE).requires_grad_() for _ in range(2))
    ys = solve(lambda t, y: 3 * y, y0, t0, t1, Solver(lanes=kind)).ys
    assert torch.equal(ys, y0)
    to_t0, to_t1 = torch.autograd.grad(ys.sum(), [t0, t1])
    assert (to_t0, to_t1) == (-9, 9)


@pytest.mark.parametrize("case", STEPPERS, ids=str)
@pytest.mark.parametrize(("kind", "shape"), [("joint", (2, 0)), ("each", (0, 3)), ("each", (2, 0))])
def test_folds_of_an_empty_state_have_their_shapes(case: Case, kind: str, shape: tuple[int, ...]):
    controller = PID() if case.stepper.adaptive else Grid(n=3)
    args = (torch.ones(shape[1], dtype=DTYPE),) * 2
    folds: dict[str, Any] = {"final": Final(), "steps": Steps(), "stats": Stats()}
    if case.stepper.dense:
        folds["q"] = Quadrature(lambda t, y, args: y)
    y0 = torch.ones(shape, dtype=DTYPE)
    s = solve(Linked(), y0, 0.0, 1.0, Solver(case.stepper, controller, lanes=kind), args=args, folds=folds)
    assert s.ys.shape == s.folds["final"].shape == shape
    assert "q" not in folds or s.folds["q"].shape == shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", STORES, ids=lambda a: a.store)
def test_no_save_times_give_no_states(kind: str, adjoint: Discrete):
    y0 = torch.ones(2, 3, dtype=DTYPE).requires_grad_()
    ys = solve(lambda t, y: -y, y0, 0.0, 1.0, Solver(adjoint=adjoint, lanes=kind), save_at=[]).ys
    assert ys.shape == ((0, 2, 3) if kind == "joint" else (2, 0, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_save_times_in_a_step_to_where_the_slope_is_infinite_lie_on_a_line(kind: str):
    """As at the end of a schedule on which the field is singular."""
    field = lambda t, y: torch.where(t < 1, y, torch.inf)  # noqa: E731
    y0 = torch.ones(2, 1, dtype=DTYPE)
    s = solve(field, y0, 0.0, 1.0, Solver(Heun(), Grid(ts=torch.tensor([0.0, 0.5, 1.0])), lanes=kind), throw=False)
    assert bool(s.ys.isfinite().all())
    weak = lambda t, y: y * y  # noqa: E731
    big = torch.full((2, 1), 1e20)
    s = solve(weak, big, 0.0, 1e-30, Solver(Heun(), Grid(n=1), lanes=kind), save_at=[5e-31], throw=False)
    assert bool(s.ys.isfinite().all())


def test_discontinuities_far_outside_a_short_span_do_not_spoil_its_gradient():
    t0 = torch.zeros((), dtype=DTYPE).requires_grad_()
    y0 = torch.ones(2, dtype=DTYPE)
    s = solve(lambda t, y: y, y0, t0, 1e-300, Solver(Tsit5(), PID(jump_ts=[0.5, -0.5]), Discrete("all")))
    (grad,) = torch.autograd.grad(s.ys.sum(), t0)
    assert grad == pytest.approx(-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
def test_component_that_stays_zero_needs_no_absolute_tolerance(kind: str, dtype: torch.dtype):
    y0 = torch.tensor([[0.0, 1.0]], dtype=dtype).requires_grad_()
    solver = Solver(Tsit5(), PID(1e-4, 0.0), Discrete("all"), lanes=kind)
    s = solve(lambda t, y: -y, y0, 0.0, 1.0, solver, folds={"stats": Stats()})
    assert bool((s.status == Status.DONE.value).all())
    (grad,) = torch.autograd.grad(s.ys.sum() + s.folds["stats"].error.sum(), y0)
    assert bool(grad.isfinite().all())


def test_weights_may_change_before_the_gradient_where_nothing_moves():
    """Which is 0 whatever they are."""
    net, y0 = Affine(), torch.ones(3, 2).requires_grad_()
    ys = solve(net, y0, 0.0, 0.0).ys.sum()
    with torch.no_grad():
        net.weight.add_(1)
        y0.add_(1)
    for _ in range(2):
        found = torch.autograd.grad(ys, [y0, net.weight], retain_graph=True)
        assert [grad.unique().tolist() for grad in found] == [[1.0], [0.0]]


def test_plain_field_beside_a_module_has_its_gradient_where_nothing_moves():
    w, net = torch.ones((), requires_grad=True), nn.Linear(2, 1)
    level = Event(lambda t, y: net(y).sum() - 100.0)
    ys = solve(lambda t, y: -w * y, torch.ones(2), 0.0, 0.0, events=level).ys
    assert torch.autograd.grad(ys.sum(), w)[0] == 0
