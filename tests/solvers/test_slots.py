"""`March.advance` with every slot filled by a stub: eager, compiled and inside one compiled loop."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._pytree import tree_leaves, tree_map

from sciml.errors import Status
from sciml.solvers import PID, Event, Path, Quadrature, SaveAt, Stats, Steps, Tsit5
from sciml.solvers.march import March
from sciml.solvers.state import Const, State
from sciml.solvers.stepper import Field, Interval, Step
from sciml.solvers.tape import Tape
from sciml.solvers.term import as_term, expand
from tests.solvers.systems import DTYPE

# The three ways run the same float64 operations, but a compiler may fuse a product and a sum into one rounding: a few
# units in the last place a step, over some 60 steps of a system that contracts.
ROUND_OFF = 1e-12
# An error estimate is a difference that cancels: it and the sizes chosen by it agree to fewer digits. An error of 1e-6
# in where a step ends changes the solution there, but at a given time only by 1e-6 of the local error.
CHOSEN = 1e-6
SAVES = 4  # no step of these solves holds more save times


class Waves(Path):
    """A smooth path: sines with given weights."""

    def __init__(self, weights: Tensor):
        self.weights = weights

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weights,)

    def increment(self, tensors: tuple[Tensor, ...], theta0: Any, theta1: Any, span: Tensor) -> Tensor:
        (weights,) = tensors
        theta0, theta1 = (torch.as_tensor(theta, dtype=DTYPE) for theta in (theta0, theta1))
        pitch = (torch.arange(len(weights), dtype=DTYPE) + 0.5) * torch.pi
        at = lambda theta: (pitch * theta[..., None]).sin() / pitch  # noqa: E731
        rise = at(theta1) - at(theta0)  # (l, m)
        return torch.tensordot(rise, weights, 1) if rise.ndim == 1 else torch.einsum("bm,mb...->b...", rise, weights)


@dataclass(frozen=True)
class Newton(Tsit5):
    """Tsit5 that reads the path and carries what an implicit method would: a matrix, its age and a status."""

    fails_after: int = 10**9  # accepted steps; past them sample 0's stage equations do not converge
    steps: int = field(default=3)  # a matrix serves so many

    def init(self, field: Field, t: Any, y: Tensor, h: Any) -> tuple[Tensor, ...]:
        lanes = () if field.lanes == "joint" else y.shape[:1]
        count = torch.zeros(lanes, dtype=torch.int64)
        return (*super().init(field, t, y, h), y.new_zeros(*lanes, 2, 2), count, count.clone())

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        slope, matrix, age, taken = carry
        step = super().step(field, interval, y, (slope,), dx, True)
        y1 = step.y + 0.01 * dx
        old = age >= self.steps
        matrix = torch.where(expand(old, matrix), matrix + 1, matrix)
        slope = field(field.clock(interval.t + interval.h, y), y1)
        fails = taken >= self.fails_after
        if fails.ndim:
            fails = fails & (torch.arange(len(fails)) == 0)
        status = torch.where(fails, Status.NEWTON.value, 0)
        return step._replace(y=y1, carry=(slope, matrix, torch.where(old, 0, age + 1), taken + 1), status=status)


def van_der_pol(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    position, speed = y[:, :1], y[:, 1:]
    return torch.cat([speed, args[0] * (1 - position**2) * speed - position], 1) + 0 * t


def brake(t: Tensor, y: Tensor, key: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A jump: at t = 1, which is a stop, the speed loses a tenth."""
    changed = ((t - 1).abs() < 1e-12).reshape(key.shape)
    return torch.where(expand(changed, y), y * torch.tensor([1.0, 0.9]).to(y), y), changed


def height(lanes: str, level: float):
    """An event function: the first position above a level."""

    def event(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y[0, 0] - level if lanes == "joint" else y[:, 0] - level

    return event


def filled(lanes: str, stepper: Newton | None = None, level: float = -100.0, full: bool = True) -> tuple[March, Const]:
    """A march with all its slots filled over [0, 5], stops at .06 and .2 of it."""
    shape = () if lanes == "joint" else (3,)
    t0, t1 = torch.zeros(shape, dtype=DTYPE), torch.full(shape, 5.0, dtype=DTYPE)
    folds = (SaveAt(torch.linspace(0, 5, 20)), Quadrature(lambda t, y, args: y.square()), Stats(), Steps())
    march = March(
        as_term(van_der_pol),
        stepper or Newton(),
        PID(1e-4, 1e-6),
        lanes,
        10_000,
        Waves(torch.ones(4, 3, 2, dtype=DTYPE)),
        (brake,) if full else (),
        (Event(height(lanes, level)),),
        folds if full else (),
    )
    y0 = start()
    const = Const(
        t0,
        t1,
        torch.tensor([0.06, 0.2, 1.0], dtype=DTYPE),
        (torch.tensor([[1.0], [3.0], [5.0]], dtype=DTYPE),),
        march.path.tensors(),
        tuple(fold.prepare(t0, t1, y0) for fold in march.folds),
        march.stepper.constants(t0, y0),
    )
    return march, const


def start() -> Tensor:
    return torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, -1.0]], dtype=DTYPE)


def walk(step, s: State) -> tuple[State, list[Any]]:
    rows = []
    while bool((s.status == Status.RUNNING.value).any()):
        s, row = step(s)
        rows.append(row)
    return s, rows


def distance(a: Any, b: Any) -> float:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return max(float((x.to(DTYPE) - y.to(DTYPE)).abs().max()) for x, y in pairs if x.numel())


def assert_same_end(a: State, b: State) -> None:
    assert distance(a.y, b.y) < ROUND_OFF
    assert distance(a[-3:], b[-3:]) == 0  # trials, accepted, status
    assert distance(a, b) < CHOSEN


def in_one_loop(march: March, s: State, c: Const, rows: int, backend: str) -> tuple[Tensor, State, list[Tensor]]:
    """All trials in one while_loop, their rows written to buffers."""
    _, like = march.advance(s, c, SAVES)
    buffers = [x.new_zeros(rows, *x.shape) for x in tree_leaves(like)]

    def loop(s: State, c: Const, buffers: list[Tensor]) -> Any:
        def running(i: Tensor, s: State) -> Tensor:
            return (s.status == 0).any() & (i < rows)

        def body(i: Tensor, s: State) -> Any:
            known = {id(x) for x in tree_leaves(s)}
            s, row = march.advance(s, c, SAVES)
            for buffer, x in zip(buffers, tree_leaves(row), strict=True):
                buffer.index_put_((i,), x)
            return i + 1, tree_map(lambda x: x.clone() if id(x) in known else x, s)  # a loop refuses unchanged entries

        return while_loop(running, body, (torch.zeros((), dtype=torch.int64), tree_map(torch.clone, s)))

    with torch.no_grad():
        count, end = torch.compile(loop, fullgraph=True, dynamic=False, backend=backend)(s, c, buffers)
    return count, end, buffers


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's compiler
@pytest.mark.parametrize(("lanes", "backend"), [("joint", "inductor"), ("each", "aot_eager")])
def test_advance_is_the_same_eager_compiled_and_in_one_loop(lanes: str, backend: str):
    march, c = filled(lanes)
    first = march.start(c, start())
    end, rows = walk(lambda s: march.advance(s, c, SAVES), first)
    assert bool((end.status == Status.DONE.value).all())
    assert bool((end.trials > end.accepted).any()), "the problem should make the controller reject"

    compiled = torch.compile(lambda s: march.advance(s, c, SAVES), fullgraph=True, dynamic=False, backend="aot_eager")
    again, kept = walk(compiled, first)
    assert len(kept) == len(rows)
    assert_same_end(again, end)
    assert all(distance(a, b) < CHOSEN for a, b in zip(kept, rows, strict=True))

    count, looped, buffers = in_one_loop(march, first, c, len(rows) + 5, backend)
    assert int(count) == len(rows)
    assert_same_end(looped, end)
    stacked = [torch.stack(x) for x in zip(*(tree_leaves(row) for row in rows), strict=True)]
    assert distance([buffer[: len(rows)] for buffer in buffers], stacked) < CHOSEN


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_march_from_numbers_on_the_host_takes_the_steps_of_advance(lanes: str):
    march, c = filled(lanes)
    end, _ = walk(lambda s: march.advance(s, c, SAVES), march.start(c, start()))
    direct, _ = march_through(march, c)
    assert_same_end(direct, end)


def march_through(march: March, c: Const) -> tuple[State, Tape]:
    tape = Tape(march.folds, keep=True)
    with torch.no_grad():
        return march.run(march.start(c, start(), march.host), c, tape, lambda s: None), tape


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_stepper_that_fails_gives_its_status_to_its_lane(lanes: str):
    march, c = filled(lanes, Newton(fails_after=5), full=False)
    end, _ = march_through(march, c)
    status = end.status.reshape(-1).tolist()
    assert status[0] == Status.NEWTON
    assert all(other == Status.DONE for other in status[1:])
    assert int(end.accepted.reshape(-1)[0]) == 5
    assert bool(end.y.isfinite().all())


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_event_stops_its_lane(lanes: str):
    march, c = filled(lanes, level=1.9, full=False)  # only the first oscillator starts above
    end, _ = march_through(march, c)
    status, theta = end.status.reshape(-1), end.theta.reshape(-1)
    at = (end.y[:, 0] - 1.9).abs() < 1e-12  # Newton's method leaves round-off of a position of 2
    assert status[0] == Status.EVENT
    assert theta[0] < 1
    assert bool(at[0])
    if lanes == "each":
        assert torch.equal(status == Status.EVENT.value, at)
        assert torch.equal(theta < 1, at)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_stops_are_hit_exactly_and_the_step_size_comes_back(lanes: str):
    march, c = filled(lanes, full=False)
    c = c._replace(stops=torch.tensor([0.2, 0.2 + 1e-6, 1.0], dtype=DTYPE))
    s = march.start(c, start())
    seen, before = [], None
    while bool((s.status == Status.RUNNING.value).any()):
        new, row = march.advance(s, c, SAVES)
        theta = s.theta.reshape(-1)[0]
        if bool(row.taken.reshape(-1)[0]):
            seen.append(float(new.theta.reshape(-1)[0]))
            if float(theta) == 0.2:  # the step between the two stops is tiny
                before = float(s.dtheta.reshape(-1)[0])
                assert float(new.dtheta.reshape(-1)[0]) == before
        s = new
    assert before is not None
    assert before > 1e-4
    assert 0.2 in seen
    assert 0.2 + 1e-6 in seen
