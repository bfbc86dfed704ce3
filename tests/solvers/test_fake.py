"""One masked `advance` of everything under FakeTensorMode, where reading a number on the host raises."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sciml.solvers import (
    PID,
    Controller,
    ErrorEstimate,
    Event,
    Final,
    Fold,
    Grid,
    MaxStiffness,
    Quadrature,
    SaveAt,
    Starts,
    Stats,
    StepCount,
    Stepper,
    Steps,
    Stiffness,
    Tsit5,
    bound,
)
from sciml.solvers.implicit import NewtonStepper
from sciml.solvers.jump import Jump
from sciml.solvers.march import March, Segment
from sciml.solvers.state import Const
from sciml.solvers.term import expand
from tests.solvers.registry import IMPLICIT, STEPPERS, SYMPLECTIC, Case
from tests.solvers.systems import DTYPE, Linked, Oscillators

KINDS = ["joint", "each"]
CONTROLLERS = [
    PID(),
    PID(dt0=0.1, dtmax=0.2),
    PID(pcoeff=0.4, icoeff=0.3, dcoeff=0.1),
    PID(step_ts=(0.3, 0.9), jump_ts=(0.5, 0.7)),
    Grid(n=4),
]


@dataclass(frozen=True)
class Peak(Fold):
    reduce: ClassVar = "max"

    def emit(self, segment: Segment, saves: int | None, *inputs: Tensor) -> Tensor:
        return segment.dense(segment.y1.new_full((*segment.key.shape, 1), 0.5))


FOLDS = [
    Final(),
    Steps(),
    Stats(),
    Quadrature(lambda t, y, args: y.square() * t * args[0]),
    Peak(),
    SaveAt(torch.linspace(0, 1, 5)),
    Starts(),
    ErrorEstimate(),
    StepCount(),
    Stiffness(),
    MaxStiffness(),
]


def halve(t: Tensor, y: Tensor, key: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    changed = key % 2 == 0
    return torch.where(expand(changed, y), y / 2, y), changed


def prepared(
    kind: str,
    stepper: Stepper,
    controller: Controller,
    folds: list[Fold],
    dtype: torch.dtype = DTYPE,
    jumps: tuple[Jump, ...] = (),
    events: tuple[Event, ...] = (),
):
    """A march, its constants and first state, made of real tensors."""
    lanes = (2,) if kind == "each" else ()
    t0, t1 = torch.zeros(lanes, dtype=torch.float64), torch.ones(lanes, dtype=torch.float64)
    term = Linked() if isinstance(Linked(), stepper.needs) else Oscillators()
    y0 = torch.ones(2, 3 if isinstance(term, Linked) else 6, dtype=dtype)
    stops = (
        torch.linspace(0.25, 1, 4, dtype=torch.float64) if isinstance(controller, Grid) else controller.thetas(t0, t1)
    )
    args = (-torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype))
    march = March(term, stepper, controller, kind, jumps=jumps, events=events, folds=tuple(folds))
    inputs = tuple(fold.prepare(t0, t1, y0) for fold in folds)
    const = Const(t0, t1, stops, args, (), inputs, stepper.constants(t0, y0), controller.edges(t0, t1))
    return march, const, march.start(const, y0)


def advance_fake(march: March, const: Const, state):
    """One trial on fakes of the given tensors."""
    mode = FakeTensorMode()
    fake = lambda tree: torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, tree)  # noqa: E731
    const, state = fake(const), fake(state)
    with mode:
        return march.advance(state, const, saves=2)


def agrees(
    kind: str, stepper: Stepper, controller: Controller, folds: list[Fold], dtype: torch.dtype = DTYPE, **actors: Any
) -> None:
    """It runs, and what it makes has the shapes and dtypes of the real thing."""
    march, const, state = prepared(kind, stepper, controller, folds, dtype, **actors)
    like = lambda tree: [(x.shape, x.dtype) for x in torch.utils._pytree.tree_leaves(tree)]  # noqa: E731
    found, right = advance_fake(march, const, state), march.advance(state, const, saves=2)
    assert like(found) == like(right)
    assert like(right[0]) == like(state)  # a loop's carry keeps its shapes


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("joint", torch.float32), ("joint", torch.float64), ("each", torch.float64), ("each", torch.complex64)],
    ids=str,
)
@pytest.mark.parametrize("case", [*STEPPERS, *SYMPLECTIC], ids=str)
def test_stepper_does_not_wait_for_the_host(case: Case, kind: str, dtype: torch.dtype, monkeypatch):
    folds = [SaveAt(torch.linspace(0, 1, 5))]
    if case in IMPLICIT:  # its iterations stop early where that is not compiled
        if dtype != DTYPE:
            pytest.skip("states of one precision are enough for these, and complex ones are refused")
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        if isinstance(case.stepper, NewtonStepper):
            case = case._replace(stepper=replace(case.stepper, iterations=2))
    agrees(kind, case.stepper, PID() if case.stepper.adaptive else Grid(n=4), folds, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", IMPLICIT, ids=str)
def test_what_a_compiled_march_keeps_is_found_without_numbers(case: Case, kind: str):
    """Iterations that stop early where nothing is compiled go on to their last round among fakes."""
    controller = PID() if case.stepper.adaptive else Grid(n=4)
    march, const, state = prepared(kind, case.stepper, controller, [SaveAt(torch.linspace(0, 1, 5)), Final()])
    emits, packing = bound._shapes(march, const, state.y)
    _, last = emits
    assert last.shape == state.y.shape
    assert packing.count == sum(isinstance(x, Tensor) for x in torch.utils._pytree.tree_leaves((state, last)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("controller", range(len(CONTROLLERS)))
def test_controller_does_not_wait_for_the_host(controller: int, kind: str):
    agrees(kind, Tsit5(), CONTROLLERS[controller], [])


@pytest.mark.parametrize("kind", KINDS)
def test_given_norm_does_not_wait_for_the_host(kind: str):
    agrees(kind, Tsit5(), PID(norm=lambda e: e.abs().amax() if kind == "joint" else e.abs().amax(1)), [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", FOLDS, ids=lambda f: type(f).__name__)
def test_fold_does_not_wait_for_the_host(fold: Fold, kind: str):
    agrees(kind, Tsit5(), PID(), [fold])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_events_and_jumps_do_not_wait_for_the_host(kind: str, dtype: torch.dtype):
    over = lambda t, y, args: (y if kind == "each" else y[0])[..., 0] - 0.5  # noqa: E731
    events = tuple(Event(over, direction, terminate) for direction in (-1, 0, 1) for terminate in (False, True))
    agrees(kind, Tsit5(), PID(), [], dtype, events=events)
    agrees(kind, Tsit5(), PID(), [], dtype, jumps=(halve,))
    agrees(kind, Tsit5(), PID(jump_ts=(0.5,)), [], dtype, jumps=(halve,), events=events)


def test_reading_a_number_would_be_noticed():
    def nosy(error: Tensor) -> Tensor:
        return error.abs().amax() * (2.0 if error.sum().item() > 0 else 1.0)

    march, const, state = prepared("joint", Tsit5(), Grid(n=4), [])
    nosy_march = March(march.term, march.stepper, PID(norm=nosy), "joint")
    with pytest.raises(DataDependentOutputException):
        advance_fake(nosy_march, const, state)
