"""Events at the end of the span, and resets that a solve does not survive."""

import pytest
import torch

from sciml import Solver, Status, solve
from sciml.solvers import SDIRK2, Event, Grid, Heun
from tests.solvers.systems import DTYPE

KINDS = ["joint", "each"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("late", [4.0, 1e8])
def test_event_at_the_end_ends_the_solve(kind: str, dtype: torch.dtype, late: float):
    """Its place is rounded to a little before the end, from where it shall not be met again."""
    at = lambda t, y, args: (t - late).reshape(y.shape[: t.ndim > 0])  # noqa: E731
    event = Event(at, reset=lambda t, y, args: y)
    y0 = torch.ones(2, 1, dtype=dtype)
    s = solve(lambda t, y: 0 * y, y0, late - 1, late, Solver(Heun(), Grid(n=16), lanes=kind), events=event, throw=False)
    assert set(s.status.reshape(-1).tolist()) <= {Status.DONE.value, Status.PILE_UP.value}
    assert dtype is not DTYPE or bool((s.status == Status.DONE.value).all())
    assert int(s.stats.accepted.max()) < 20


@pytest.mark.parametrize("kind", KINDS)
def test_reset_to_where_the_state_is_not_finite_fails_before_it(kind: str):
    at = lambda t, y, args: (t - 0.5).reshape(y.shape[: t.ndim > 0])  # noqa: E731
    event = Event(at, reset=lambda t, y, args: y * torch.nan)
    y0 = torch.ones(2, 1, dtype=DTYPE)
    s = solve(lambda t, y: 0 * y, y0, 0.0, 1.0, Solver(lanes=kind), events=event, throw=False)
    assert bool((s.status == Status.NON_FINITE.value).all())
    assert torch.equal(s.ys, y0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
def test_event_at_a_node_of_a_grid_is_met_once(kind: str, dtype: torch.dtype):
    at = lambda t, y, args: (t - 0.25).reshape(y.shape[: t.ndim > 0])  # noqa: E731
    event = Event(at, reset=lambda t, y, args: y)
    y0 = torch.ones(2, 1, dtype=dtype)
    s = solve(lambda t, y: -y, y0, 0.0, 1.0, Solver(SDIRK2(), Grid(n=16), lanes=kind), events=event, throw=False)
    assert bool((s.status == Status.DONE.value).all())
    assert bool((s.events[0].count == 1).all())
