import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    PID,
    AdamsBashforth4,
    AdamsBashforthMoulton4,
    AdamsBashforthMoulton6,
    Backsolve,
    Event,
    Grid,
    Stepper,
)
from tests.solvers.registry import MULTISTEP, Case
from tests.solvers.systems import DTYPE, Net, coupled, coupled_exact
from tests.solvers.test_order import in_range, slope

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
STEPPERS = [case.stepper for case in MULTISTEP]
KINDS = ["joint", "each"]


def name(stepper: Stepper) -> str:
    return type(stepper).__name__


def test_weights_are_those_of_the_literature():
    """Hairer, Norsett & Wanner, Solving ODEs I, III.1."""
    stepper, row = AdamsBashforthMoulton4(), lambda *w: pytest.approx([x / 24 for x in w], rel=1e-14)  # of a 4x4 system
    assert stepper.predictor == AdamsBashforth4().predictor == row(55, -59, 37, -9)
    assert stepper.corrector == row(9, 19, -5, 1)
    first = (4277, -7923, 9982, -7298, 2877, -475)
    assert AdamsBashforthMoulton6().predictor == pytest.approx([x / 1440 for x in first], rel=1e-12)  # of a 6x6 one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_polynomial_of_its_order_is_met_from_the_first_step_on(stepper: Stepper, kind: Any):
    y0, p = torch.ones(2, 1, dtype=DTYPE), stepper.order
    for n in (1, 2, 7):
        for t1 in (1.5, -0.5):
            ys = solve(lambda t, y: 0 * y + p * t ** (p - 1), y0, 0.3, t1, Solver(stepper, Grid(n=n), lanes=kind)).ys
            off = (ys - 1 - t1**p + 0.3**p).abs().max()
            assert off < 1e-10 * (1 + 9 * 1.2**p)  # round-off, times weights of the start of up to 1800, and slopes


@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_states_between_steps_are_of_order_four(stepper: Stepper):
    ts, errors, counts = torch.linspace(0.03, 1.49, 37, dtype=DTYPE), [], (64, 128, 256, 512)
    for n in counts:
        ys = solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 1.5, Solver(stepper, Grid(n=n)), save_at=ts).ys
        errors.append(float((ys - coupled_exact(ts)).norm(dim=1).mean()))
    assert in_range(slope([1 / n for n in counts], errors), 4), errors


@pytest.mark.parametrize(("stepper", "method", "options", "factor"), [
    (AdamsBashforth4(), "explicit_adams", {"max_order": 5}, 4.0),  # theirs starts with steps that err otherwise
    (AdamsBashforthMoulton4(), "implicit_adams", {"max_order": 4, "max_iters": 50}, 1.1),
])  # fmt: skip
def test_errors_are_those_of_torchdiffeq(stepper: Stepper, method: str, options: dict[str, int], factor: float):
    """It has other starts, and corrects until that converges, here only once: to the leading order the same."""
    y0, nodes = torch.ones(2, dtype=DTYPE), torch.linspace(0, 1.5, 129, dtype=DTYPE)
    theirs = torchdiffeq.odeint(coupled, y0, nodes, rtol=1e-11, atol=1e-11, method=method, options=options)[-1]
    ours = solve(coupled, y0, 0.0, 1.5, Solver(stepper, Grid(n=128))).ys
    ratio = (ours - coupled_exact(nodes[-1])).norm() / (theirs - coupled_exact(nodes[-1])).norm()
    assert 1 / factor < ratio < factor


def test_corrector_makes_it_stable_on_larger_steps():
    for stepper in STEPPERS:  # bounds on h L along the negative axis: 0.30, 1.28 and 0.70
        for z, stable in ((0.29, True), (0.4, name(stepper) != "AdamsBashforth4"), (1.4, False)):
            s = solve(lambda t, y, z=z: -z * y, torch.ones(1, dtype=DTYPE), 0.0, 400.0, Solver(stepper, Grid(n=400)))
            assert (s.ys.abs().item() < 1e-3) == stable, (name(stepper), z)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_gradient_flows_through_start_and_history(stepper: Stepper, kind: Any):
    def end(y0: Tensor, rate: Tensor, t1: Tensor) -> Tensor:
        field = lambda t, y, args: args[0] * (y.roll(1, -1) + t).sin()  # noqa: E731
        return solve(field, y0, 0.1, t1, Solver(stepper, Grid(n=8), lanes=kind), args=(rate,), save_at=[0.45, 0.9]).ys

    inputs = torch.tensor([[1.0, 0.5]], dtype=DTYPE), torch.tensor(1.3, dtype=DTYPE), torch.tensor(1.1, dtype=DTYPE)
    assert torch.autograd.gradcheck(end, [x.requires_grad_() for x in inputs])
    assert torch.autograd.gradgradcheck(lambda rate: end(inputs[0], rate, inputs[2]), [inputs[1]])


def test_continuous_adjoint_serves_it():
    net, y0, grads = Net(), torch.ones(3, 2, dtype=DTYPE), []
    for adjoint in (Discrete("graph"), Backsolve()):
        end = solve(net, y0, 0.0, 1.0, Solver(AdamsBashforthMoulton4(), Grid(n=60), adjoint)).ys
        grads.append(torch.autograd.grad(end.square().sum(), [*net.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # of order 4 on 60 steps, both ways


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MULTISTEP, ids=str)
def test_history_starts_anew_after_a_jump(case: Case, kind: Any):
    """y' = y + cos t, halved at t = 1."""

    def halve(t: Tensor, y: Tensor, key: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        there = (t - 1).abs() < 1e-9
        return torch.where(there, y / 2, y), there.reshape(-1) if kind == "each" else there

    flow = lambda t, y: y + t.cos()  # noqa: E731
    particular = lambda t: (math.sin(t) - math.cos(t)) / 2  # noqa: E731
    at_one = (1 - particular(0)) * math.e + particular(1)
    right = (at_one / 2 - particular(1)) * math.e + particular(2)
    errors, counts = [], [2 * n // 3 * 2 for n in case.steps]
    for n in counts:
        y = solve(
            flow, torch.ones(1, 1, dtype=DTYPE), 0.0, 2.0, Solver(case.stepper, Grid(n=n), lanes=kind), jumps=[halve]
        ).ys
        errors.append(abs(y.item() - right))
    # the terms after the leading one still show; the slopes before a jump would leave order 1
    assert slope([1 / n for n in counts], errors) > case.stepper.order - 0.6, errors


@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_evaluations_are_counted(stepper: Stepper):
    calls = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return -y

    s = solve(field, torch.ones(1, dtype=DTYPE), 0.0, 1.0, Solver(stepper, Grid(n=5)))
    p = stepper.order
    assert int(s.stats.nfe) == len(calls) == 1 + p * (p - 1) + 5 * stepper.evaluations


@pytest.mark.usefixtures("traced")
def test_compiled_march_is_the_eager_one():
    solver = Solver(AdamsBashforthMoulton4(), Grid(n=9), lanes="each")
    y0, ts = torch.tensor([[1.0, 0.5], [0.3, 2.0]], dtype=DTYPE), [0.5, 1.2]
    ys = [solve(coupled, y0, 0.0, 1.2, replace(solver, compile=mode), save_at=ts).ys for mode in ("loop", None)]
    assert torch.allclose(*ys, rtol=1e-12)  # units in the last place, times weights of the start of up to 45


def test_what_cannot_work_is_refused():
    y0, stepper = torch.ones(1, dtype=DTYPE), AdamsBashforth4()
    with pytest.raises(ValueError, match="needs its history; expected store='graph', got 'all'"):
        Solver(stepper, Grid(n=4), Discrete("all"))
    with pytest.raises(ValueError, match="takes steps of one size only, expected Grid"):
        Solver(stepper, PID())
    with pytest.raises(ValueError, match="takes steps of one size only, expected Grid"):
        Solver(stepper, Grid(ts=torch.tensor([0.0, 0.1, 1.0])))
    with pytest.raises(ValueError, match="events: AdamsBashforth4 takes steps of one size only"):
        solve(lambda t, y: -y, y0, 0.0, 1.0, Solver(stepper, Grid(n=4)), events=Event(lambda t, y, args: y[0] - 0.5))
