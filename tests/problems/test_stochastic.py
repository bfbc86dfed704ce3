"""Stochastic problems: their laws, and that a sample's path is a function of its number and the seed."""

import math

import pytest
import torch

from sciml import Solver, solve
from sciml.problems import OrnsteinUhlenbeck, StochasticLorenz, StochasticSpiral
from sciml.problems.stochastic import StochasticProblem
from sciml.solvers import Brownian, Grid, ShARK


def test_ornstein_uhlenbeck_has_its_moments():
    problem, count = OrnsteinUhlenbeck(rate=1.5, level=0.4, strength=0.7), 20_000
    u0 = problem.initial(count, torch.Generator().manual_seed(0), torch.float64)
    ts = problem.times(8)
    ys = problem.evolve(u0, ts)[..., 0]
    mean, std = problem.moments(ts)
    assert float(((ys.mean(0) - mean) / std).abs().max()) < 4 / math.sqrt(count)
    assert float((ys.std(0) / std - 1).abs().max()) < 4 / math.sqrt(2 * count)  # of a normal sample's deviation


def test_lorenz_is_solved_as_another_method_with_finer_steps_does():
    problem = StochasticLorenz(noise_seed=3)
    u0 = problem.initial(20, torch.Generator().manual_seed(0), torch.float64)
    found = problem.evolve(u0, problem.times(40))[:, -1]
    path = Brownian((20, 3), 3, cells=800, areas=True, dtype=torch.float64)
    fine = Brownian((20, 3), 3, cells=3200, areas=True, dtype=torch.float64)
    solved = lambda n, path: solve(problem, u0, 0.0, 1.0, Solver(ShARK(), Grid(n=n), max_steps=n), path=path).ys  # noqa: E731
    coarse, right = solved(800, path), solved(3200, fine)
    assert float((coarse - right).abs().max()) < 2e-3  # twice as many cells refine the same path
    assert float((found - right).abs().max()) < 2e-3


@pytest.mark.parametrize(
    "problem", [OrnsteinUhlenbeck(), StochasticLorenz(), StochasticSpiral()], ids=lambda p: type(p).__name__
)
def test_samples_have_paths_by_their_number_and_the_seed(problem: StochasticProblem):
    u0 = problem.initial(5, torch.Generator().manual_seed(0))
    u0[1] = u0[0]
    ts = problem.times(4)
    ys = problem.evolve(u0, ts)
    assert torch.equal(ys[:, 0], u0)
    assert not torch.equal(ys[0, 1:], ys[1, 1:])
    assert torch.equal(problem.evolve(u0[:3], ts), ys[:3])
    other = type(problem)(noise_seed=1).evolve(u0, ts)
    assert not torch.equal(other, ys)


def test_times_that_are_not_equally_spaced_are_refused():
    problem = OrnsteinUhlenbeck()
    with pytest.raises(ValueError, match="ts: expected equally spaced times from 0"):
        problem.evolve(torch.zeros(2, 1), torch.tensor([0.0, 0.1, 0.3]))
