import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciml import Discrete, SolveError, Solver, Status, solve
from sciml.solvers import ETDRK4, PID, RK4, Euler, Event, Final, Grid, Stats, Steps, Tsit5
from sciml.solvers.root import itp
from tests.solvers.bouncing import FINE, GRAVITY, KINDS, bouncing, driven, falling, height, problem, row, started
from tests.solvers.systems import DTYPE, Linked

# A ball


@pytest.mark.parametrize("controller", [PID(1e-8, 1e-10), Grid(n=100)], ids=["pid", "grid"])
@pytest.mark.parametrize("kind", KINDS)
def test_ball_keeps_its_energy_law_over_thirty_bounces(kind: str, controller: Any):
    e, k = 0.95, torch.arange(30, dtype=DTYPE)
    first = math.sqrt(2 * 10 / GRAVITY)
    exact = first * (1 + 2 * (e * (1 - e**k) / (1 - e)))  # flights of 2 e^k times the first fall
    t1 = float(exact[-1]) + 0.1
    s = solve(falling, started(kind, 10, 0), 0.0, t1, Solver(controller=controller, lanes=kind), events=bouncing(e))
    met = s.events[0]
    assert met.count.item() == 30
    assert not bool(met.ended)
    # parabolas are exact for a fifth-order method: round-off of thirty bounces, each amplified by no more than 1/e
    assert (met.ts.reshape(-1) - exact).abs().max() < 1e-10
    energy = met.ys.reshape(-1, 2)[:, 1] ** 2 / 2 + GRAVITY * met.ys.reshape(-1, 2)[:, 0]
    assert (energy / (GRAVITY * 10 * e ** (2 * k)) - 1).abs().max() < 1e-10
    after = s.ys.reshape(2)
    assert abs((after[1] ** 2 / 2 + GRAVITY * after[0]) / (GRAVITY * 10 * e**60) - 1) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_bounces_that_pile_up_end_in_a_status(kind: str, dtype: torch.dtype):
    y0 = started(kind, 1, 0).to(dtype)
    end = math.sqrt(2 / GRAVITY) * 3  # 1 + 2 (1/2 + 1/4 + ..) falls
    solver = Solver(lanes=kind)
    s = solve(falling, y0, 0.0, 10.0, solver, events=bouncing(0.5), throw=False)
    assert s.status.item() == Status.PILE_UP
    assert abs(s.ts.item() - end) < 100 * torch.finfo(dtype).eps * 10
    with pytest.raises(SolveError, match=r"at t=1\.354\d*: events pile up"):
        solve(falling, y0, 0.0, 10.0, solver, events=bouncing(0.5))
    few = Solver(lanes=kind, max_steps=12)
    s = solve(falling, y0, 0.0, 10.0, few, events=bouncing(0.5), throw=False)
    assert s.status.item() == Status.MAX_STEPS
    assert int(s.stats.accepted + s.stats.rejected) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_the_start_counts_as_after(kind: str):
    solver = Solver(lanes=kind)
    up = solve(falling, started(kind, 0, 5), 0.0, 60.0, solver, events=height)
    assert up.status.item() == Status.EVENT
    assert abs(up.ts.item() - 10 / GRAVITY) < 60 * 2.0**-51  # times are fractions of the span
    down = solve(falling, started(kind, 0, -5), 0.0, 1.0, solver, events=height)
    assert down.status.item() == Status.DONE
    assert down.events[0].count.item() == 0
    on = solve(falling, None, None, 2.0, solver, resume=up, events=height)  # from the root itself
    assert on.status.item() == Status.DONE
    assert (on.ys - started(kind, 10 - GRAVITY * 2, 5 - GRAVITY * 2)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_plain_callable_ends_the_solve_and_later_saves_hold_its_state(kind: str):
    solver = Solver(lanes=kind)
    folds = {"nodes": Steps(), "final": Final(), "stats": Stats()}
    ts = row(3.0, 0.5, 2.0, 1.0)
    s = solve(falling, started(kind, 0, 5), 0.0, 3.0, solver, events=height, save_at=ts, folds=folds)
    ys, end = s.ys.reshape(4, 2), row(0.0, -5.0)
    right = torch.stack([5 * ts - GRAVITY * ts**2 / 2, 5 - GRAVITY * ts], -1)
    assert (ys[[1, 3]] - right[[1, 3]]).abs().max() < 1e-12
    assert (ys[[0, 2]] - end).abs().max() < 1e-12
    assert (s(ts).reshape(4, 2) - ys).abs().max() < 1e-13  # the same steps again
    assert (s.folds["final"].reshape(2) - end).abs().max() < 1e-12
    assert abs(s.folds["nodes"].ts.reshape(-1)[-1] - 10 / GRAVITY) < 1e-13
    assert abs(s.folds["stats"].h.sum() - 10 / GRAVITY) < 1e-13
    assert s.events[0].ended.item()
    assert (s.events[0].ys.reshape(2) - end).abs().max() < 1e-12


# What is an event


def turning(t: Tensor, y: Tensor) -> Tensor:
    """A circle: y = (cos t, sin t) from (1, 0)."""
    return torch.stack([-y[..., 1], y[..., 0]], -1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_direction_is_that_of_integration(kind: str, sign: float):
    sine = lambda t, y, args: y[..., 1]  # noqa: E731
    events = {d: Event(sine, d, terminate=False) for d in (-1, 0, 1)}
    s = solve(turning, started(kind, 1, 0), 0.0, 10.0 * sign, Solver(controller=FINE, lanes=kind), events=events)
    pi = math.pi * sign
    falls, rises = [pi, 3 * pi], [2 * pi]
    right = (
        {-1: falls, 0: [pi, 2 * pi, 3 * pi], 1: rises} if sign > 0 else {1: falls, 0: [pi, 2 * pi, 3 * pi], -1: rises}
    )
    for d, times in right.items():
        met = s.events[d]
        assert met.count.item() == len(times)
        assert (met.ts.reshape(-1) - row(*times)).abs().max() < 1e-7  # rtol 1e-9 over a hundred steps
        assert (met.ys.reshape(-1, 2)[:, 1]).abs().max() < 1e-12
    assert s.status.item() == Status.DONE
    assert bool((s.ys.reshape(2) - row(math.cos(10), math.sin(10 * sign))).abs().max() < 1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_first_of_several_events_ends_the_solve(kind: str):
    at = lambda level: lambda t, y, args: y[..., 1] - level  # noqa: E731
    events = {"high": at(0.9), "low": at(0.3), "middle": at(0.6)}
    s = solve(
        turning, started(kind, 1, 0), 0.0, 3.0, Solver(RK4(), Grid(n=2), lanes=kind), events=events
    )  # in one step
    assert s.status.item() == Status.EVENT
    assert {key: met.ended.item() for key, met in s.events.items()} == {"high": False, "low": True, "middle": False}
    assert abs(s.ys.reshape(2)[1] - 0.3) < 1e-12
    assert s.events["low"].ts.item() == s.ts.item()


def flying(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[..., 2:], 0 * y[..., 2:]], -1)


@pytest.mark.parametrize("start", [(0.0, 0.0), (0.1, 0.3)], ids=["corner", "apart"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_events_at_once_are_both_met(kind: str, start: tuple[float, float]):
    flip = lambda *f: lambda t, y, args: y * row(*f)  # noqa: E731
    events = {
        "x": Event(lambda t, y, args: y[..., 0] - 1, reset=flip(1, 1, -1, 1)),
        "y": Event(lambda t, y, args: y[..., 1] - 1, reset=flip(1, 1, 1, -1)),
        "never": Event(lambda t, y, args: y[..., 1] + 5),
    }
    s = solve(flying, started(kind, *start, 1, 1), 0.0, 1.5, Solver(lanes=kind), events=events)
    right = [1 - start[0], 1 - start[1]]
    assert [s.events[key].ts.item() for key in "xy"] == pytest.approx(right, abs=1e-13)
    assert s.events["never"].count.item() == 0
    assert (s.ys.reshape(4) - row(0.5 - start[0], 0.5 - start[1], -1, -1)).abs().max() < 1e-12
    assert int((s.mesh.events != 0).sum()) == (1 if start[0] == start[1] else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_first_of_two_roots_is_found_when_another_event_shortens_the_step(kind: str):
    """Steps of 2, roots of a sine at pi/3 n, and a level at 1.5 that makes the first of them noticed."""
    grow = lambda t, y: torch.ones_like(y)  # noqa: E731
    wave = lambda t, y, args: torch.sin(3 * y[..., 0] + 0 * t.reshape(y.shape[:-1]))  # noqa: E731
    events = {"wave": Event(wave, terminate=False), "level": Event(lambda t, y, args: y[..., 0] - 1.5, terminate=False)}
    s = solve(grow, started(kind, 0.5), 0.0, 2.0, Solver(RK4(), Grid(n=1), lanes=kind), events=events)
    assert s.events["level"].ts.reshape(-1).tolist() == pytest.approx([1.0], abs=1e-13)
    roots = s.events["wave"].ts.reshape(-1)
    assert (roots - (math.pi / 3 * row(1, 2) - 0.5)).abs().max() < 1e-13
    assert int(s.mesh.count) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_reset_to_where_the_field_is_not_defined_fails_there(kind: str):
    field = lambda t, y: torch.where(y > 2, torch.nan, torch.ones_like(y))  # noqa: E731
    event = Event(lambda t, y, args: y[..., 0] - 1, reset=lambda t, y, args: y + 5)
    s = solve(field, started(kind, 0), 0.0, 2.0, Solver(lanes=kind), events=event, throw=False)
    assert s.status.item() == Status.NON_FINITE
    assert (s.ys.item(), s.ts.item()) == pytest.approx((6, 1), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_two_resets_at_once_act_in_order(kind: str):
    first = Event(lambda t, y, args: y[..., 0] - 1, reset=lambda t, y, args: y * 2)
    second = Event(lambda t, y, args: 3 * y[..., 0] - 3, reset=lambda t, y, args: y + 10)
    grow = lambda t, y: torch.ones_like(y)  # noqa: E731
    solver = Solver(lanes=kind)
    both = [
        solve(grow, started(kind, 0), 0.0, 1.5, solver, events=e).ys.item() for e in ((first, second), (second, first))
    ]
    assert both == pytest.approx([12.5, 22.5], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_event_that_never_fires_changes_nothing(kind: str):
    solver = Solver(lanes=kind)
    plain = solve(turning, started(kind, 1, 0), 0.0, 3.0, solver)
    s = solve(turning, started(kind, 1, 0), 0.0, 3.0, solver, events={"far": lambda t, y, args: y[..., 0] - 2})
    assert torch.equal(s.ys, plain.ys)
    assert torch.equal(s.mesh.theta, plain.mesh.theta)
    assert s.events["far"].ts.numel() == 0
    assert s.events["far"].ys.shape == ((0, 2) if kind == "joint" else (1, 0, 2))
    assert not s.events["far"].ended.item()


def test_event_with_a_kink_or_a_leap_is_found_by_bisection():
    decay = lambda t, y: -y  # noqa: E731
    for g in (
        lambda y: torch.where(y > 0.3, 1.0, -1.0),
        lambda y: (y - 0.3) ** 3,
        lambda y: (y - 0.3).abs().sqrt() * (y - 0.3).sign(),
    ):
        s = solve(decay, row(1.0), 0.0, 3.0, Solver(controller=FINE), events=lambda t, y, args, g=g: g(y[0]))
        assert abs(s.ts.item() + math.log(0.3)) < 1e-8  # rtol is 1e-9


def test_roots_of_many_functions_are_found_at_once():
    roots = torch.linspace(0.001, 0.999, 50, dtype=DTYPE)
    seen = []

    def g(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.exp(3 * x) - torch.exp(3 * roots)

    ends = [torch.exp(torch.full_like(roots, 3.0 * x)) - torch.exp(3 * roots) for x in (0, 1)]
    assert (itp(g, *ends) - roots).abs().max() < 2.0**-48
    assert len(seen) < 20  # bisection takes fifty
    wild = lambda x: torch.where(x < roots, row(-1e-9), row(1e9))  # noqa: E731
    assert (itp(wild, wild(0 * roots), wild(0 * roots + 1)) - roots).abs().max() < 2.0**-48


@pytest.mark.parametrize("kind", KINDS)
def test_event_function_that_is_nan_is_named(kind: str):
    g = lambda t, y, args: (0.5 - y[..., 1]).sqrt() + 1  # noqa: E731
    with pytest.raises(SolveError, match="an event function became NaN in the step that starts there") as caught:
        solve(turning, started(kind, 1, 0), 0.0, 3.0, Solver(lanes=kind), events=g)
    assert caught.value.status == (Status.EVENT_NAN,)
    assert 0 < caught.value.times[0] < math.asin(0.5)  # the last good state


# Lanes, trees, meshes


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_samples_meet_what_they_would_meet_alone(seed: int):
    draw = partial(torch.rand, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))
    y0 = torch.cat([5 * draw(4, 1), 8 * draw(4, 1) - 4], 1)
    t0, t1 = draw(4), 2 + 2 * draw(4)
    events = {
        "floor": bouncing(0.95),
        "top": Event(lambda t, y, args: y[..., 1], terminate=False),
        "end": lambda t, y, args: y[..., 0] - 0.02 * t.reshape(-1) ** 3 - 2,
    }
    solver = Solver(controller=PID(1e-8, 1e-10), lanes="each")
    ts = t0[:, None] + (t1 - t0)[:, None] * torch.linspace(0, 1, 5, dtype=DTYPE)
    options = {"events": events, "folds": {"nodes": Steps()}, "throw": False}

    def run(i: slice):
        return solve(falling, y0[i], t0[i], t1[i], solver, save_at=ts[i], **options)

    together = run(slice(None))
    for lane in range(4):
        alone = run(slice(lane, lane + 1))
        # the same operations in kernels of other shapes: round-off, amplified by the bounces
        assert torch.equal(together.status[lane], alone.status[0])
        assert (together.ys[lane] - alone.ys[0]).abs().max() < 1e-9
        for key, met in together.events.items():
            n = int(met.count[lane])
            assert n == alone.events[key].count.item()
            assert torch.equal(met.ended[lane], alone.events[key].ended[0])
            assert bool(met.ts[lane, n:].isnan().all())
            assert bool(met.ys[lane, n:].isnan().all())
            if n:
                assert (met.ts[lane, :n] - alone.events[key].ts[0]).abs().max() < 1e-9
                assert (met.ys[lane, :n] - alone.events[key].ys[0]).abs().max() < 1e-9
        k = int(alone.mesh.count)
        assert torch.equal(together.mesh.events[:k, lane], alone.mesh.events[:, 0])
        assert (together.folds["nodes"].ys[lane, :k] - alone.folds["nodes"].ys[0]).abs().max() < 1e-9


@pytest.mark.parametrize("store", ["graph", "all"])
def test_sample_that_fails_leaves_the_others_their_events(store: str):
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 20, torch.nan, y**2)

    y0 = row(0.5, 5.0, 0.4)[:, None].requires_grad_()
    solver = Solver(controller=FINE, adjoint=Discrete(store), lanes="each")
    events = {
        "one": Event(lambda t, y, args: y[:, 0] - 0.8, terminate=False),
        "ten": Event(lambda t, y, args: y[:, 0] - 10.0, terminate=False),
    }
    s = solve(field, y0, 0.0, 1.4, solver, events=events, throw=False)
    assert s.status.tolist() == [Status.DONE, Status.NON_FINITE, Status.DONE]
    assert s.events["one"].count.tolist() == [1, 0, 1]
    assert s.events["ten"].count.tolist() == [0, 1, 0]
    times = s.events["one"].ts[[0, 2], 0]
    assert (times - (1 / y0[[0, 2], 0] - 1 / 0.8)).abs().max() < 1e-7  # y = 1 / (1/y0 - t), rtol 1e-9
    (grad,) = torch.autograd.grad(times.sum(), y0)
    assert (grad[[0, 2]] + 1 / y0[[0, 2]] ** 2).abs().max() < 1e-6
    assert grad[1].item() == 0


@pytest.mark.parametrize("make", [tuple, dict])
@pytest.mark.parametrize("kind", KINDS)
def test_events_and_resets_see_trees(kind: str, make: type):
    build = (lambda x, v: {"v": v, "x": x}) if make is dict else lambda x, v: (x, v)
    pick = (lambda y: (y["x"], y["v"])) if make is dict else lambda y: y
    lanes = (2,) if kind == "each" else ()
    times = []

    def g(t: Tensor, y: Any, args: tuple[Tensor, ...]) -> Tensor:
        times.append(t.shape)
        return pick(y)[0]

    def fall(t: Tensor, y: Any) -> Any:
        return build(pick(y)[1], torch.full_like(pick(y)[1], -GRAVITY))

    bounce = Event(g, -1, reset=lambda t, y, args: build(pick(y)[0], -0.9 * pick(y)[1]))
    y0 = build(torch.full(lanes, 10.0, dtype=DTYPE), torch.zeros(lanes, dtype=DTYPE))
    s = solve(fall, y0, 0.0, 5.0, Solver(lanes=kind), events=bounce)
    flat = torch.stack([row(10, 0)] * 2) if kind == "each" else row(10, 0)
    right = solve(falling, flat, 0.0, 5.0, Solver(lanes=kind), events=bouncing(0.9))
    assert set(times) == {lanes}
    assert (s.events[0].ts - right.events[0].ts).abs().max() < 1e-13
    assert (pick(s.events[0].ys)[1] - right.events[0].ys[..., 1]).abs().max() < 1e-12
    assert (pick(s.ys)[0] - right.ys[..., 0]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="reset: expected a state in the structure"):
        solve(fall, y0, 0.0, 5.0, Solver(lanes=kind), events=Event(g, reset=lambda t, y, args: pick(y)[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_complex_states_have_events(kind: str):
    y0 = torch.ones(*((2, 1) if kind == "each" else (1,)), dtype=torch.complex128)
    s = solve(
        lambda t, y: 1j * y,
        y0,
        0.0,
        9.0,
        Solver(controller=FINE, lanes=kind),
        events=Event(lambda t, y, args: y[..., 0].imag, terminate=False),
    )
    assert (s.events[0].ts - math.pi * row(1, 2)).abs().max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", [Tsit5(), RK4(), Euler()])
def test_mesh_meets_the_same_events_again(kind: str, stepper: Any):
    inputs, events = problem(kind)
    controller = PID(1e-5, 1e-7) if isinstance(stepper, Tsit5) else Grid(n=60)
    y0, t0, t1, *args = (x.detach() for x in inputs[:5])
    run = partial(
        solve,
        driven,
        y0,
        t0,
        t1,
        Solver(stepper, controller, lanes=kind),
        args=tuple(args),
        events=events,
        folds={"nodes": Steps()},
    )
    with torch.no_grad():
        first = run()
        again = run(mesh=first.mesh)
    # the same float64 operations in the same order
    assert torch.equal(again.ys, first.ys)
    assert torch.equal(again.ts, first.ts)
    assert torch.equal(again.mesh.events, first.mesh.events)
    assert torch.equal(again.folds["nodes"].ys, first.folds["nodes"].ys)
    for key, met in first.events.items():
        assert torch.equal(met.ts.nan_to_num(), again.events[key].ts.nan_to_num())
        assert torch.equal(met.ys.nan_to_num(), again.events[key].ys.nan_to_num())
        assert torch.equal(met.ended, again.events[key].ended)
    with pytest.raises(ValueError, match="mesh: expected one of a solve with the same events"):
        solve(driven, y0, t0, t1, Solver(stepper, controller, lanes=kind), args=tuple(args), mesh=first.mesh)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_output_is_piecewise(kind: str):
    s = solve(falling, started(kind, 10, 0), 0.0, 3.0, Solver(lanes=kind), events=bouncing(0.9))
    bounce, v = s.events[0].ts.item(), GRAVITY * s.events[0].ts.item()
    ts = torch.tensor([bounce - 1e-3, bounce + 1e-3], dtype=DTYPE)
    dt = ts - bounce
    right = torch.stack([row(-v, 0.9 * v) * dt - GRAVITY * dt**2 / 2, row(-v, 0.9 * v) - GRAVITY * dt], -1)
    assert (s(ts).reshape(2, 2) - right).abs().max() < 1e-12


@pytest.mark.parametrize("controller", [PID(), Grid(n=50)], ids=["pid", "grid"])
def test_evaluations_at_events_are_counted(controller: Any):
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return falling(t, y)

    s = solve(
        counted,
        row(10, 0),
        0.0,
        10.0,
        Solver(controller=controller),
        events={"b": bouncing(0.9), "top": Event(lambda t, y, args: y[1], -1, False)},
    )
    assert len(calls) == s.stats.nfe.item()
    calls.clear()
    again = solve(
        counted,
        row(10, 0),
        0.0,
        10.0,
        Solver(controller=controller),
        events={"b": bouncing(0.9), "top": Event(lambda t, y, args: y[1], -1, False)},
        mesh=s.mesh,
    )
    assert len(calls) == again.stats.nfe.item()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_solve_meets_nothing(kind: str):
    s = solve(falling, started(kind, 10, 0), 1.0, 1.0, Solver(lanes=kind), events=height)
    assert s.events[0].count.item() == 0
    empty = solve(falling, torch.ones(0, 2), 0.0, 1.0, Solver(lanes="each"), events=height)
    assert empty.events[0].ts.shape == (0, 0)


# Mistakes


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Event(3.0), TypeError, "function: expected a callable"),
        (lambda: Event(height, 2), ValueError, "direction: expected -1, 0 or 1"),
        (lambda: Event(height, terminate=True, reset=height), ValueError, "reset: a terminating event"),
        (
            lambda: solve(falling, row(1, 0), 0.0, 1.0, events=lambda t, y, args: y),
            ValueError,
            "shape () of event 0, got (2,)",
        ),
        (
            lambda: solve(falling, row(1, 0), 0.0, 1.0, events=lambda t, y, args: 1.0),
            ValueError,
            "of event 0, got float",
        ),
        *(
            (
                lambda g=g: solve(falling, row(1, 0), 0.0, 1.0, events=g),
                ValueError,
                f"floating-point numbers of shape () of event 0, got () of {dtype}; an event is where a number",
            )
            for g, dtype in (
                (lambda t, y, args: y[0] < 0.5, torch.bool),  # has no sign that could change
                (lambda t, y, args: y[0].sign().long(), torch.int64),
                (lambda t, y, args: y[0] * 1j, torch.complex128),
            )
        ),
        (
            lambda: solve(falling, row(1, 0), 0.0, 1.0, events=Event(height, reset=lambda t, y, args: y[:1])),
            ValueError,
            "reset: expected a state of shape (2,)",
        ),
        (
            lambda: solve(
                Linked(), row(1, 0), 0.0, 1.0, Solver(ETDRK4(), Grid(n=2)), args=(row(1), row(1)), events=height
            ),
            ValueError,
            "ETDRK4 has no dense output",
        ),
        (lambda: solve(falling, row(1, 0), 0.0, 1.0, events=[3.0]), TypeError, "or g(t, y, args), got float"),
        (
            lambda: solve(falling, row(1, 0), 0.0, 1.0, events=lambda y: y[0]),
            TypeError,
            "function: expected a callable g(t, y) or g(t, y, args), got one of 1 positional arguments",
        ),
    ],
)
def test_mistakes_are_named(make: Any, error: type, message: str):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drop", [0.0, -1.0])
def test_a_function_that_jumps_across_zero_is_met_where_it_jumps(kind: str, drop: float):
    """Newton's method would lead away from there, and -g / (dg/dt) is no delay."""
    y0 = started(kind, 1.0, 3.0).requires_grad_()
    limit = lambda t, y, args: torch.where(t.reshape(y[..., 0].shape) > 0.3, drop, y[..., 0] + 0.1)  # noqa: E731
    s = solve(falling, y0, 0.0, 1.0, Solver(lanes=kind), events=limit)
    assert s.status == Status.EVENT
    assert (s.ts - 0.3).abs() < 1e-12
    assert (s.ys[..., 0] - (1 + 0.9 - GRAVITY * 0.045)).abs() < 1e-9
    (grad,) = torch.autograd.grad(s.ts.sum(), y0, allow_unused=True, materialize_grads=True)
    assert torch.equal(grad, torch.zeros_like(y0))
