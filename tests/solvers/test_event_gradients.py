"""Gradients of solves with events, of their times and states."""

import math

import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver, Status, solve
from sciml.solvers import PID, RK4, Grid
from tests.solvers.bouncing import (
    ADJOINTS,
    GRAVITY,
    KINDS,
    bouncing,
    falling,
    name,
    problem,
    results,
    row,
    started,
)
from tests.solvers.systems import DTYPE


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences_on_the_frozen_mesh(kind: str, adjoint: Discrete):
    inputs, events = problem(kind)
    s, _ = results(kind, events, PID(1e-6, 1e-8), adjoint, *inputs)
    assert bool((s.status == Status.EVENT).any())
    assert all(bool((met.count > 0).any()) for met in s.events.values())
    assert int(s.events["kick"].count.max()) >= 2

    def weighted(*inputs: Tensor) -> Tensor:
        _, found = results(kind, events, PID(1e-6, 1e-8), adjoint, *inputs, mesh=s.mesh)
        return torch.stack(
            [(x * (1 + torch.arange(x.numel(), dtype=DTYPE).reshape(x.shape) * 0.37).sin()).sum() for x in found]
        )

    # central differences of 1e-6: truncation 1e-12 times third derivatives, which the kicks make large, round-off 1e-9
    assert torch.autograd.gradcheck(weighted, inputs, eps=1e-6, atol=1e-6, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_flow(kind: str):
    """Finite differences over whole solves, each with its own steps and event times, at tight tolerances."""
    inputs, events = problem(kind)
    control = PID(1e-10, 1e-12)

    def loss(*inputs: Tensor) -> Tensor:
        s, (ys, q, _, y, t, *met) = results(kind, events, control, Discrete("graph"), *inputs)
        return sum(
            (
                (x * (1 + torch.arange(x.numel(), dtype=DTYPE).reshape(x.shape)).sin()).sum()
                for x in (ys, q, y, t, *met)
            ),
            s.ys.new_zeros(()),
        )

    grads = torch.autograd.grad(loss(*inputs), inputs)
    generator = torch.Generator().manual_seed(0)
    for x, grad in zip(inputs, grads, strict=True):
        along = torch.randn(x.shape, generator=generator, dtype=DTYPE)
        with torch.no_grad():
            start, values = x.clone(), []
            for h in (1e-5, -1e-5):
                x.copy_(start + h * along)
                values.append(loss(*inputs))
            x.copy_(start)
        right = (values[0] - values[1]) / 2e-5
        # errors of 1e-10 over differences of 2e-5, amplified by the kicks; truncation 1e-10 times third derivatives
        assert abs((grad * along).sum() - right) < 1e-4 * (1 + abs(right))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_bounce_times_have_their_exact_derivative(kind: str, adjoint: Discrete):
    y0, t0 = started(kind, 10, 0).requires_grad_(), row(0.0).squeeze().requires_grad_()
    solver = Solver(controller=PID(1e-8, 1e-10), adjoint=adjoint, lanes=kind)
    s = solve(falling, y0, t0, 12.0, solver, events=bouncing(0.9))
    times = s.events[0].ts.reshape(-1)
    for t in times[[0, 2, -1]]:
        dy, dt = torch.autograd.grad(t, [y0, t0], retain_graph=True)
        assert abs(dy.reshape(2)[0] - t / 20) < 1e-10  # all times go with the root of the height
        assert abs(dt - 1) < 1e-10


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
def test_times_of_a_grid_keep_their_gradient_beside_events(adjoint: Discrete):
    ts = torch.linspace(0, 2, 21, dtype=DTYPE).requires_grad_()
    y0 = row(10.0, 0.0).requires_grad_()
    drag = lambda t, y: torch.stack([y[1], -GRAVITY - 0.1 * y[1] * y[1].abs()])  # noqa: E731
    solver = Solver(RK4(), Grid(ts=ts), adjoint)
    first = solve(drag, y0, 0.0, 2.0, solver, events=bouncing(0.9))
    grad, _ = torch.autograd.grad(first.ys.sum() + first.events[0].ts.sum(), [ts, y0])
    (step,) = (first.mesh.events != 0).nonzero().tolist()[0]
    for i in (3, step, step + 1):  # the nodes at both sides of the bounce, too
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                moved = ts + h * (torch.arange(21) == i)
                s = solve(drag, y0, 0.0, 2.0, Solver(RK4(), Grid(ts=moved)), events=bouncing(0.9))
            ends.append(s.ys.sum() + s.events[0].ts.sum())
        assert abs(grad[i] - (ends[0] - ends[1]) / 2e-5) < 1e-6  # the error of a step of .1 is 1e-5 of its own size


def test_second_derivatives_are_refused():
    y0 = row(10.0, 0.0).requires_grad_()
    s = solve(falling, y0, 0.0, 5.0, events=bouncing(0.9))
    for found in (s.events[0].ts[0], s.ys[0]):
        (grad,) = torch.autograd.grad(found, y0, create_graph=True)
        with pytest.raises(RuntimeError, match="gradients through events cannot be differentiated again"):
            torch.autograd.grad(grad.sum(), y0)


def test_undeclared_tensors_of_events_are_refused_or_differentiated():
    level = row(2.0)[0].requires_grad_()
    event = lambda t, y, args: y[0] - level  # noqa: E731
    s = solve(falling, row(10, 0), 0.0, 5.0, events=event)
    (grad,) = torch.autograd.grad(s.ts, level)
    assert abs(grad + 1 / math.sqrt(2 * GRAVITY * 8)) < 1e-12  # dt = -dl / v
    with pytest.raises(ValueError, match="not declared"):
        solve(falling, row(10, 0), 0.0, 5.0, Solver(adjoint=Discrete("all")), events=event)
