"""Weak orders: errors of expectations, against better solutions on the same paths, so that they vary little."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor

from sciml import Solver, solve
from sciml.solvers import (
    SRA1,
    SRIW1,
    SRK,
    Brownian,
    Diffusive,
    EulerHeun,
    Given,
    Grid,
    LogODE,
    MatrixDiffusive,
    ShARK,
    StratonovichHeun,
    StratonovichMidpoint,
    StratonovichReversibleHeun,
)
from sciml.solvers.stochastic import Stochastic
from tests.solvers.systems import DTYPE
from tests.solvers.test_stochastic import END, Linear, name

COUNT = 20_000


def order_of(steps: tuple[int, ...], missed: list[Tensor]) -> tuple[float, float]:
    """The slope of log |mean| over log step sizes and its standard error, of means that are seen sharply."""
    means = np.array([float(x.mean()) for x in missed])
    bars = np.array([float(x.std()) / math.sqrt(len(x)) for x in missed])
    assert (np.abs(means) > 8 * bars).all(), (means, bars)
    x = -np.log(steps)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return float(weights @ np.log(np.abs(means))), float(np.linalg.norm(weights * bars / means))


@pytest.mark.parametrize("stepper", [SRIW1(), SRK()], ids=name)
def test_second_moment_of_geometric_motion_is_of_weak_order_two(stepper: Stochastic):
    """Against the exact solution; the mean of SRK falls faster still, as the third order of its drift."""
    args = torch.tensor([1.5, 1.0], dtype=DTYPE), 0.4 * torch.eye(2, dtype=DTYPE)
    path, y0 = Brownian((COUNT, 2), 3, cells=64, areas=True, dtype=DTYPE), torch.ones(COUNT, 2, dtype=DTYPE)
    right = ((args[0] - 0.08) * END + 0.4 * path(0.0, 1.0).w * math.sqrt(END)).exp()
    solver = lambda n: Solver(stepper, Grid(n=n))  # noqa: E731
    steps = (8, 16, 32, 64)
    ends = [solve(Linear("diagonal", "ito"), y0, 0.0, END, solver(n), args=args, path=path).ys for n in steps]
    slope, error = order_of(steps, [(y**2 - right**2)[:, 0] for y in ends])
    assert 4 * error < 0.3
    assert 1.8 <= slope <= 2.5, (slope, error)


class Well(Diffusive):
    """dy = (y - y^3) dt + (1 + t / 2) / 2 dW: a drift with curvature, so that the noise has part in the weak error."""

    noise_type = "additive"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y - y**3

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0.5 * (1 + 0.5 * t) * dw


@pytest.mark.parametrize(("stepper", "other"), [(SRA1(), ShARK()), (ShARK(), SRA1())], ids=name)
def test_additive_noise_is_of_weak_order_two(stepper: Stochastic, other: Stochastic):
    """Of the second moment, against the other method with eight times as many steps, whose error is a 64th."""
    path, y0 = Brownian((COUNT, 1), 3, cells=256, areas=True, dtype=DTYPE), torch.full((COUNT, 1), 0.3, dtype=DTYPE)
    end = lambda method, n: solve(Well(), y0, 0.0, END, Solver(method, Grid(n=n)), path=path).ys[:, 0]  # noqa: E731
    steps, right = (4, 8, 16, 32), end(other, 256)
    slope, error = order_of(steps, [end(stepper, n) ** 2 - right**2 for n in steps])
    assert 4 * error < 0.3
    assert 1.8 <= slope <= 2.6, (slope, error)


class Turn(MatrixDiffusive):
    """dy = -y / 2 dt + sum_k B_k y o dW_k, whose matrices do not commute."""

    noise_type, calculus = "general", "stratonovich"
    b = torch.tensor([[[0.0, 0.8], [0.2, 0.0]], [[0.5, 0.0], [0.0, -0.5]]], dtype=DTYPE)

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -0.5 * y

    def diffusion(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return torch.einsum("kij,bj->bik", self.b, y)


METHODS = [EulerHeun(), StratonovichHeun(), StratonovichMidpoint(), StratonovichReversibleHeun(), LogODE()]


@pytest.mark.parametrize("stepper", METHODS, ids=name)
def test_noise_that_does_not_commute_is_of_weak_order_one(stepper: Any):
    """Where the strong order is 1/2; the mean of the fine solution is that of E y' = (A + sum_k B_k^2 / 2) E y."""
    path: Any = Brownian((COUNT, 2), 5, cells=64, dtype=DTYPE)
    if isinstance(stepper, LogODE):
        path = Given(
            torchsde.BrownianInterval(
                0.0,
                1.0,
                (COUNT, 2),
                DTYPE,
                entropy=5,
                levy_area_approximation="foster",
                halfway_tree=True,
                tol=1e-9,
                cache_size=None,
            )
        )
    y0 = torch.ones(COUNT, 2, dtype=DTYPE)
    end = lambda n: solve(Turn(), y0, 0.0, 1.0, Solver(stepper, Grid(n=n)), path=path).ys  # noqa: E731
    steps, right = (2, 4, 8), end(64)
    mean = torch.linalg.matrix_exp(0.5 * (Turn.b @ Turn.b).sum(0) - 0.5 * torch.eye(2, dtype=DTYPE)).sum(1)
    assert bool(((right.mean(0) - mean).abs() < 4 * right.std(0) / math.sqrt(COUNT) + 2e-3).all())
    slope, error = order_of(steps, [(y - right)[:, 1] for y in map(end, steps)])
    assert 4 * error < 0.3
    assert 0.8 <= slope <= 1.5, (slope, error)
