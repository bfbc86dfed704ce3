"""The fractional Ornstein-Uhlenbeck process: its law where another formula gives it, and its paths."""

import math

import pytest
import torch

from sciml import Solver, solve
from sciml.problems import FractionalOrnsteinUhlenbeck
from sciml.solvers import Brownian, Fractional, FractionalHeun, FractionalNoise, Grid


def test_law_of_index_one_half_is_that_of_brownian_motion():
    problem = FractionalOrnsteinUhlenbeck(hurst=0.5, rate=1.5, strength=0.7, t1=2.0)
    ts = problem.times(7)
    lag, total = (ts - ts[:, None]).abs(), ts + ts[:, None]
    right = 0.7**2 / 3 * ((-1.5 * lag).exp() - (-1.5 * total).exp())
    assert torch.allclose(problem.covariance(ts), right, atol=1e-6)  # the square of the 2000th part of the time


@pytest.mark.parametrize("hurst", [0.3, 0.8])
def test_law_is_that_of_the_simulated_equation(hurst: float):
    """Five processes and 200 steps, 2 % for these, and 4 standard errors of 20,000 paths."""
    problem, count = FractionalOrnsteinUhlenbeck(hurst=hurst, t1=2.0), 20_000
    noise, term, ts = FractionalNoise("I", 2.0), problem.term(), problem.times(4)
    assert isinstance(term, Fractional)
    y0 = term.start(torch.zeros(count, 1, dtype=torch.float64), noise, hurst, seed=1)
    solver, args = Solver(FractionalHeun(), Grid(n=200)), (noise.coefficients(hurst),)
    ys = solve(term, y0, 0.0, 2.0, solver, args=args, path=Brownian((count, 1), seed=1), save_at=ts).ys
    found, right = torch.cov(term.split(ys)[0][1:, :, 0]), problem.covariance(ts)[1:, 1:]
    scale = right.diagonal().sqrt()
    assert float(((found - right) / (scale * scale[:, None])).abs().max()) < 0.02 + 4 * math.sqrt(2 / count)


def test_observations_have_the_evidence_of_their_law():
    """The mean of -log p over many paths is the entropy, within 4 standard errors."""
    problem, ts = FractionalOrnsteinUhlenbeck(hurst=0.7), torch.linspace(0, 4, 6, dtype=torch.float64)
    ys = problem.evolve(problem.initial(10_000, torch.Generator().manual_seed(0), torch.float64), ts)
    surprise = -problem.log_evidence(ts, ys)
    decay = (-ts).exp()
    covariance = problem.covariance(ts) + 0.25 * decay * decay[:, None] + 0.01 * torch.eye(6)
    entropy = 0.5 * (6 * math.log(2 * math.pi * math.e) + torch.logdet(covariance))
    assert abs(float(surprise.mean() - entropy)) < 4 * float(surprise.std()) / 100


def test_index_outside_of_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="hurst: expected a number between 0 and 1, got 1"):
        FractionalOrnsteinUhlenbeck(hurst=1.0)
