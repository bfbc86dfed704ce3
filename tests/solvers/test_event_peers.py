"""Events beside those of scipy and torchdiffeq."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from sciml import Solver, Status, solve
from sciml.solvers import PID, Dopri5, Event
from tests.solvers.bouncing import GRAVITY, height, row
from tests.solvers.systems import DTYPE


def test_pendulum_meets_what_scipys_does():
    def swing(t: Any, y: Any) -> Any:
        return np.array([y[1], -math.sin(y[0]) - 0.1 * y[1]])

    def passes(t: Any, y: Any) -> Any:
        return y[0]

    def slow(t: Any, y: Any) -> Any:
        return y[1] ** 2 / 2 - np.cos(y[0]) + 0.5

    passes.direction, slow.terminal = 1, True
    tight = {"rtol": 1e-11, "atol": 1e-13, "method": "DOP853"}
    right = solve_ivp(swing, (0, 60), [2.0, 0.0], events=[passes, slow], **tight)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0].sin() - 0.1 * y[1]])

    events = (
        Event(lambda t, y, args: y[0], 1, terminate=False),
        Event(lambda t, y, args: y[1] ** 2 / 2 - y[0].cos() + 0.5),
    )
    s = solve(field, row(2, 0), 0.0, 60.0, Solver(controller=PID(1e-10, 1e-12)), events=events)
    assert len(right.t_events[0]) >= 1
    for met, times, states in zip(s.events.values(), right.t_events, right.y_events, strict=True):
        assert met.ts.shape == times.shape
        assert (met.ts - torch.as_tensor(times)).abs().max() < 1e-8  # rtol 1e-10, over some ten time units
        assert (met.ys - torch.as_tensor(states)).abs().max() < 1e-8
    assert s.status == Status.EVENT
    assert s.ts.item() == pytest.approx(right.t[-1], abs=1e-8)


def test_time_and_gradient_of_an_event_are_torchdiffeqs():
    y0, g = row(10.0, 0.5).requires_grad_(), row(GRAVITY).requires_grad_()

    class Fall(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(row(GRAVITY))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.cat([y[1:], -self.g - 0.1 * y[1:]])

    term = Fall()
    options = {"atol": 1e-10, "rtol": 1e-10, "method": "dopri5"}
    time, states = torchdiffeq.odeint_event(
        term,
        y0,
        torch.tensor(0.0, dtype=DTYPE),
        event_fn=lambda t, y: y[0],
        odeint_interface=torchdiffeq.odeint,
        **options,
    )
    right = torch.autograd.grad(time + states[-1][1], [y0, term.g])
    field = lambda t, y, args: torch.cat([y[1:], -args[0] - 0.1 * y[1:]])  # noqa: E731
    s = solve(field, y0, 0.0, 10.0, Solver(Dopri5(), PID(1e-10, 1e-10)), args=(g,), events=height)
    found = torch.autograd.grad(s.ts + s.ys[1], [y0, g])
    assert abs(s.ts - time) < 1e-8
    assert all((a - b).abs().max() < 1e-7 for a, b in zip(found, right, strict=True))
