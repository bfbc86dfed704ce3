"""Batches from which samples that arrived are left out: the same steps and states, bit by bit."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sciml import PID, Solver, Tsit5, solve
from sciml.errors import Status
from sciml.models import CNF, MLP, KineticRegularizer, NeuralODE
from sciml.solvers import (
    SRIW1,
    Bosh3,
    Brownian,
    Discrete,
    Event,
    Final,
    Fold,
    Kvaerno5,
    Path,
    Quadrature,
    Stats,
    Steps,
    bound,
)
from sciml.solvers.bound import Bound
from tests.solvers.systems import DTYPE, Growth

# Compiled code sums in another order, 1e-16 a step; sizes of steps follow error estimates, which cancel digits.
ROUND_OFF, STEPS = (1e-9, 1e-11), (1e-7, 1e-9)
SAMPLES = 2500  # of which half, with two entries each, are more than a kernel's launch costs
STIFFNESS = 10 ** torch.linspace(0, 2, SAMPLES, dtype=DTYPE)[torch.randperm(SAMPLES, generator=torch.manual_seed(0))]
Y0 = torch.randn(SAMPLES, 2, dtype=DTYPE, generator=torch.manual_seed(1))
widths: list[int] = []


class Ends(Fold):
    reduce = "last"

    def prepare(self, t0: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, ...]:
        return (t1,)

    def emit(self, segment: Any, saves: int | None, *inputs: Tensor) -> Tensor:
        return inputs[0]


class Clock(Path):
    def increment(self, tensors: tuple[Tensor, ...], theta0: Any, theta1: Any, span: Tensor) -> Any:
        return theta1 - theta0


def van_der_pol(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    widths.append(len(y))
    return oscillators(t, y, args)


def oscillators(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    x, v = y.unbind(1)
    return torch.stack([v, args[0] * (1 - x * x) * v - x], 1)


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the batches that compiled marches go on with."""
    found: list[int] = []
    real = Bound.among
    monkeypatch.setattr(Bound, "among", lambda self, s, t, rows: (found.append(len(rows)), real(self, s, t, rows))[1])
    return found


def both(field: Any, stepper: Any, y0: Tensor, t1: Any, which: Any = None, **options: Any) -> list[Any]:
    which = tuple(range(len(options.get("args", ())))) if which is None else which
    solvers = (Solver(stepper, PID(1e-3, 1e-5), lanes="each", compact=compact) for compact in (None, which))
    return [solve(field, y0, 0.0, t1, solver, **options) for solver in solvers]


@pytest.mark.parametrize("stepper", [Tsit5(), Kvaerno5()], ids=lambda s: type(s).__name__)
def test_all_that_is_read_of_the_steps_is_the_same(stepper: Any):
    widths.clear()
    ends = torch.linspace(0.5, 3.0, SAMPLES, dtype=DTYPE)
    folds = {"a": Stats(), "b": Steps(), "c": Final(), "d": Quadrature(lambda t, y, args: y)}
    times = torch.linspace(0, 1, 4, dtype=DTYPE) * ends[:, None]
    whole, few = both(van_der_pol, stepper, Y0, ends, args=(STIFFNESS,), save_at=times, folds=folds)
    assert min(widths) <= SAMPLES // 2 < max(widths) == SAMPLES
    assert torch.equal(whole.ys, few.ys)
    assert torch.equal(whole.mesh.theta, few.mesh.theta)
    assert all(map(torch.equal, whole.stats, few.stats))
    for name in ("a", "b"):
        assert all(map(torch.equal, whole.folds[name], few.folds[name]))
    assert torch.equal(whole.folds["c"], few.folds["c"])
    assert torch.equal(whole.folds["d"], few.folds["d"])


def test_gradients_are_the_same():
    grads = []
    for compact in (None, (0,)):
        y0, stiffness = Y0.clone().requires_grad_(), STIFFNESS.clone().requires_grad_()
        solver = Solver(Tsit5(), PID(1e-3, 1e-5), Discrete("all"), lanes="each", compact=compact)
        solve(van_der_pol, y0, 0.0, 0.5, solver, args=(stiffness,)).ys.square().sum().backward()
        grads.append((y0.grad, stiffness.grad))
    assert all(map(torch.equal, *grads))


def test_samples_that_fail_or_take_no_time_are_left_out_too():
    ends = torch.where(torch.arange(SAMPLES) % 3 == 0, 0.0, 1.0).to(DTYPE)
    y0 = Y0.abs().clamp_max(0.5)
    y0[1] = 5.0  # which is infinite at t = .2
    whole, few = both(lambda t, y: y * y, Tsit5(), y0, ends, throw=False)
    assert torch.equal(whole.ys, few.ys)
    assert torch.equal(whole.status, few.status)
    assert whole.status[1] != Status.DONE
    assert int((whole.status == Status.DONE).sum()) == SAMPLES - 1


def test_paths_are_those_of_their_samples():
    volatility = torch.where(torch.arange(SAMPLES) % 10 == 0, 1.5, 0.1).to(DTYPE)[:, None]
    whole, few = both(Growth(), SRIW1(), Y0, 1.0, args=(volatility,), path=Brownian(seed=3))
    assert torch.equal(whole.ys, few.ys)
    assert torch.equal(whole.mesh.theta, few.mesh.theta)


def test_what_does_not_go_with_it_is_named():
    solver = Solver(lanes="each", compact=())
    with pytest.raises(ValueError, match="compact: expected lanes='each'"):
        Solver(compact=())
    for what in ({"events": Event(lambda t, y, args: y[:, 0])}, {"jumps": [lambda t, y, key, args: (y, key > 0)]}):
        with pytest.raises(ValueError, match=f"{next(iter(what))}: expected none with compact"):
            solve(lambda t, y: -y, Y0, 0.0, 1.0, solver, **what)
    tolerance = torch.full((SAMPLES, 1), 1e-3, dtype=DTYPE)
    with pytest.raises(ValueError, match="rtol: expected a number with compact"):
        solve(lambda t, y: -y, Y0, 0.0, 1.0, Solver(controller=PID(rtol=tolerance), lanes="each", compact=()))
    with pytest.raises(ValueError, match="path: Clock knows all samples together only"):
        solve(lambda t, y: -y, Y0, 0.0, 1.0, solver, path=Clock())
    with pytest.raises(ValueError, match="folds: Ends has no method `among` for compact"):
        solve(lambda t, y: -y, Y0, 0.0, 1.0, solver, folds={"ends": Ends()})
    with pytest.raises(TypeError, match=r"compact: expected the numbers of args .* got True"):
        solve(lambda t, y: -y, Y0, 0.0, 1.0, Solver(lanes="each", compact=True))
    which = Solver(lanes="each", compact=(1,))
    with pytest.raises(ValueError, match="compact: expected numbers of args, of which there are 1, got 1"):
        solve(lambda t, y, args: -y, Y0, 0.0, 1.0, which, args=(STIFFNESS,))
    with pytest.raises(ValueError, match=r"compact: expected args\[0\] to have a row for each of 2500 samples"):
        solve(lambda t, y, args: -y, Y0, 0.0, 1.0, Solver(lanes="each", compact=(0,)), args=(STIFFNESS[:9],))
    with pytest.raises(ValueError, match="solver: expected compact=None with KineticRegularizer"):
        NeuralODE(MLP(2, 2), solver, regularizer=KineticRegularizer())
    with pytest.raises(ValueError, match="solver: expected compact=None for a flow"):
        CNF(MLP(2, 2), 2, solver)


def test_args_that_are_not_named_stay_whole_whatever_their_length():
    """A table as long as the batch, or as what becomes of it."""
    ends = torch.where(torch.arange(SAMPLES) < 0.7 * SAMPLES, 0.1, 1.0).to(DTYPE)
    for knots in (SAMPLES, int(0.3 * SAMPLES)):
        table = torch.linspace(-1, 1, knots, dtype=DTYPE)

        def field(t: Tensor, y: Tensor, args: tuple[Tensor, ...], last: int = knots - 1) -> Tensor:
            return args[0][(t * last).long()] - args[1][:, None] * y

        whole, few = both(field, Tsit5(), Y0, ends, args=(table, STIFFNESS), which=(1,))
        assert torch.equal(whole.ys, few.ys)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("mode", [pytest.param("loop", marks=pytest.mark.slow), "chunks"])
def test_compiled_marches_leave_samples_out(mode: str, lanes: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bound, "ROWS", 16)
    folds = {"a": Stats(), "b": Steps(), "c": Final(), "d": Quadrature(lambda t, y, args: y)}
    y0, stiffness, found = Y0[:300].clone().requires_grad_(), STIFFNESS[:300].clone().requires_grad_(), []
    ends = torch.where(torch.arange(300) == 7, 1.5, torch.linspace(0.1, 0.5, 300)).to(DTYPE)
    times = torch.linspace(0, 1, 4, dtype=DTYPE) * ends[:, None]
    for compile, compact in ((None, None), (mode, None), (mode, (0,))):
        solver = Solver(Bosh3(), PID(1e-3, 1e-5), Discrete("all"), lanes="each", compile=compile, compact=compact)
        solution = solve(oscillators, y0, 0.0, ends, solver, args=(stiffness,), save_at=times, folds=folds)
        grads = torch.autograd.grad(solution.ys.square().sum(), [y0, stiffness]) if mode == "chunks" else ()
        found.append([solution.ys, solution.mesh.theta, *(solution.folds[name] for name in "abcd"), *grads])
    eager, whole, few = (tree_leaves(tree) for tree in found)
    assert all(torch.allclose(a, b, *STEPS) for a, b in zip(eager, few, strict=True))
    assert all(torch.allclose(a, b, *ROUND_OFF) for a, b in zip(whole, few, strict=True))
    assert len(lanes) >= 2
    assert lanes[0] <= 150


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("mode", ["loop", "chunks"])
def test_one_sample_that_is_left_over_takes_another_with_it(mode: str, lanes: list[int]):
    y0 = Y0[:100].clone()
    y0[7] *= 1e3
    ys = []
    for compile, compact in ((None, None), (mode, ())):
        solver = Solver(Bosh3(), PID(1e-4, 1e-1), lanes="each", compile=compile, compact=compact)
        solution = solve(lambda t, y: -y * y.abs(), y0, 0.0, 0.05, solver)
        ys.append(solution.ys)
    assert lanes == [2]
    assert torch.allclose(*ys, *ROUND_OFF)


@pytest.mark.usefixtures("traced")
def test_compiled_marches_on_paths_leave_samples_out(lanes: list[int]):
    volatility = torch.where(torch.arange(SAMPLES) % 10 == 0, 1.5, 0.1).to(DTYPE)[:, None]
    ys = []
    for compile, compact in ((None, None), ("loop", (0,))):
        solver = Solver(SRIW1(), PID(1e-3, 1e-5), lanes="each", compile=compile, compact=compact)
        with torch.no_grad():
            ys.append(solve(Growth(), Y0, 0.0, 1.0, solver, args=(volatility,), path=Brownian(seed=3)).ys)
    assert len(lanes) >= 2
    assert torch.allclose(*ys, *ROUND_OFF)
