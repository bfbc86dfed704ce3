"""Motions that are given, and the steppers that read Levy areas of them."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import SRK, EulerMaruyama, Given, Grid, LogODE, MatrixDiffusive, Milstein
from tests.solvers.systems import DTYPE
from tests.solvers.test_stochastic import ARGS, END, Linear, refused

PATHS, STEPS = 400, (8, 16, 32, 64)


def motion(count: int, channels: int, levy: str = "space-time", end: float = END) -> Any:
    """The same path whatever is asked, to the tolerance of its tree."""
    size = (count, channels)
    return torchsde.BrownianInterval(
        0.0, end, size, DTYPE, entropy=5, levy_area_approximation=levy, halfway_tree=True, tol=1e-9, cache_size=None
    )


def test_a_solve_sees_the_increments_of_the_motion():
    """Also in a second pass; on a grid of times between these times, bit by bit."""
    asked, y0 = [], torch.ones(3, 2, dtype=DTYPE)
    inner = motion(3, 2)

    def watched(t0: Tensor, t1: Tensor) -> Tensor:
        asked.append((float(t0), float(t1)))
        return inner(t0, t1)

    term, nodes = Linear("diagonal", "ito"), [0.1, 0.30000000000000004, 0.7, 1.1]
    args = tuple(x.clone().requires_grad_() for x in ARGS)
    solver = Solver(EulerMaruyama(), Grid(ts=nodes), Discrete("all"))
    end = solve(term, y0, 0.1, 1.1, solver, args=args, path=Given(watched)).ys
    steps = list(itertools.pairwise(nodes))
    assert [pair for pair in asked if pair[0] < pair[1]] == steps
    y = y0
    for t, u in steps:
        y = y + term.drift(y, y, ARGS) * (u - t) + term.diffuse(y, y, inner(t, u), ARGS)
    assert torch.allclose(end, y, rtol=1e-14, atol=0)
    asked.clear()
    end.sum().backward()
    assert asked == steps[::-1]


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive"])
def test_srk_is_of_strong_order_three_halves(noise: str):
    """Of additive noise 2, since the drift is linear: the terms that are left out hold its second derivative."""
    term, y0 = Linear(noise, "ito"), torch.ones(PATHS, 2, dtype=DTYPE)
    path, rates = motion(PATHS, 1 if noise == "scalar" else 2), ARGS[0]
    if noise == "additive":  # the integral by Simpson's rule of the kernel in every cell, from w and its integral
        right, n = (rates * END).exp() * y0, 512
        for k in range(n):
            t, u = END * k / n, END * (k + 1) / n
            w, area = path(t, u, return_U=True)
            kernel = lambda s: (rates * (END - s)).exp()  # noqa: E731
            right = right + kernel(u) * (w @ ARGS[1].T) + rates * kernel((t + u) / 2) * (area @ ARGS[1].T)
    else:
        strengths = ARGS[1].diagonal() if noise == "diagonal" else ARGS[1][:, 0]
        right = y0 * ((rates - strengths**2 / 2) * END + strengths * path(0.0, END)).exp()
    errors = []
    for n in STEPS:
        ys = solve(term, y0, 0.0, END, Solver(SRK(), Grid(n=n)), args=ARGS, path=Given(path)).ys
        errors.append(float((ys - right).norm(dim=1).mean()))
    slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    order = 2.0 if noise == "additive" else 1.5
    assert order - 0.2 <= slope <= order + 0.5, (slope, errors)
    best = solve(term, y0, 0.0, END, Solver(Milstein(), Grid(n=STEPS[-1])), args=ARGS, path=Given(path)).ys
    assert errors[-1] < 0.2 * float((best - right).norm(dim=1).mean())


class Area(MatrixDiffusive):
    """dy1 = dW1, dy2 = dW2, dy3 = y1 dW2: the third is the iterated integral, half the product and the Levy area."""

    noise_type, calculus = "general", "stratonovich"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return torch.zeros_like(y)

    def diffusion(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        one, none = torch.ones_like(y[:, 0]), torch.zeros_like(y[:, 0])
        return torch.stack([one, none, none, one, none, y[:, 0]], 1).reshape(-1, 3, 2)


def test_log_ode_is_exact_where_its_bracket_is_constant():
    y0, path, n = torch.zeros(20, 3, dtype=DTYPE), motion(20, 2, "foster", 1.0), 7
    ys = solve(Area(), y0, 0.0, 1.0, Solver(LogODE(), Grid(n=n)), path=Given(path)).ys
    total, iterated = torch.zeros(20, 2, dtype=DTYPE), 0.0
    for k in range(n):  # Chen's relation
        w, a = path(k / n, (k + 1) / n, return_A=True)
        iterated = iterated + total[:, 0] * w[:, 1] + w[:, 0] * w[:, 1] / 2 + a[:, 0, 1]
        total = total + w
    assert float(iterated.std()) > 0.3
    assert torch.allclose(ys, torch.cat([total, iterated[:, None]], 1), rtol=0, atol=1e-12)


def test_motion_that_does_not_fit_is_refused():
    solver, diagonal = Solver(EulerMaruyama(), Grid(n=4)), Linear("diagonal", "ito")
    each = Solver(EulerMaruyama(), Grid(n=4), lanes="each")
    refused("expected lanes='joint', got 'each'", path=Given(motion(3, 2)), solver=each)
    refused("runs forward in time", path=Given(motion(3, 2)), t0=1.0, t1=0.0)
    single = torchsde.BrownianInterval(0.0, 1.0, (3, 2), dtype=torch.float32)
    refused("expected the state's dtype torch.float64, got torch.float32", path=Given(single))
    refused("has no derivative in time", path=Given(motion(3, 2)), t1=torch.tensor(1.0, requires_grad=True))
    refused("Levy area", path=Given(motion(3, 2, "none")), solver=Solver(SRK(), Grid(n=4)))
    refused("Levy area", path=Given(motion(3, 2)), term=Area(), solver=Solver(LogODE(), Grid(n=4)))
    refused(
        "term: LogODE expects a MatrixDiffusive term",
        Linear("general", "stratonovich"),
        solver=Solver(LogODE(), Grid(n=4)),
    )
    with pytest.raises(TypeError, match="motion: expected a callable"):
        Given(3)
    assert math.isfinite(
        float(
            solve(
                diagonal, torch.ones(3, 2, dtype=DTYPE), 0.0, 1.0, solver, args=ARGS, path=Given(motion(3, 2))
            ).ys.sum()
        )
    )
