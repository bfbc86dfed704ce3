"""Randomly stirred Burgers and Navier-Stokes equations: balances of energy, exact laws, paths by number and seed."""

import math

import pytest
import torch
from torch import Tensor

from sciml.problems import Burgers, NavierStokes, PeriodicPDE, RandomlyForced, Spiral, random_forcing


def start(problem: RandomlyForced, count: int) -> Tensor:
    return problem.initial(count, torch.Generator().manual_seed(0), torch.float64)


@pytest.mark.parametrize("forced", [(1, 1), (2, 4)])
def test_vorticity_is_stirred_at_the_rate_that_is_named(forced):
    """Advection keeps enstrophy, so that its mean grows by strength^2 / 2 a time; within 4 standard errors."""
    flow = NavierStokes(points=16, nu=0.0, dt=0.02, t1=0.4, speed=0.3)
    problem = RandomlyForced(flow, strength=1.5, forced=forced)
    w = problem.evolve(start(problem, 1000), problem.times(2))
    gain = flow.enstrophy(w[:, 2]) - flow.enstrophy(w[:, 0])
    assert abs(float(gain.mean()) - 1.5**2 / 2 * 0.4) < 4 * float(gain.std()) / math.sqrt(1000)
    kicks = problem.evolve(torch.zeros(2000, 1, 16, 16, dtype=torch.float64), torch.tensor([0.02]))
    deviation = kicks.square().mean((0, 1, 2)).sqrt()  # the same in every point
    assert float((deviation / (1.5 * math.sqrt(0.02)) - 1).abs().max()) < 4.5 / math.sqrt(2 * 2000 / 4)
    k, spectrum = flow.spectrum(kicks[:200, 0])
    outside = (k < forced[0] - 0.5) | (k > forced[1] + 0.5)
    assert float(spectrum[:, outside].max()) < 1e-3 * float(spectrum.max())  # what advection made of it in a step


def test_burgers_keeps_the_balance_of_its_energy():
    """d E / dt = strength^2 / 2 - nu <u_x^2> in the mean; trapezoids in time, within 4 standard errors."""
    problem = RandomlyForced(Burgers(points=64, nu=0.02, dt=0.005, t1=0.3), strength=0.8)
    u = problem.evolve(start(problem, 1000), problem.times(60))
    slope = torch.fft.irfft(torch.fft.rfft(u) * (2j * math.pi * torch.arange(33)), n=64)
    rates = 0.32 - 0.02 * slope.square().mean((-2, -1))
    missed = (u[:, -1] ** 2 - u[:, 0] ** 2).mean((-2, -1)) / 2 - torch.trapezoid(rates, dx=0.005)
    assert abs(float(missed.mean())) < 4 * float(missed.std()) / math.sqrt(1000)


def test_decaying_waves_have_the_exact_variance():
    """From rest a wave of Burgers' equation with small noise is an Ornstein-Uhlenbeck process of rate nu k^2."""
    problem = RandomlyForced(Burgers(points=16, nu=0.05, dt=0.5), strength=1e-6, forced=(2, 2))
    u = problem.evolve(torch.zeros(4000, 1, 16, dtype=torch.float64), torch.tensor([1.0]))
    rate = 0.05 * (4 * math.pi) ** 2
    variance = 1e-12 * (1 - math.exp(-2 * rate)) / (2 * rate)
    assert float(u.square().mean()) == pytest.approx(variance, rel=4 / math.sqrt(4000))


@pytest.mark.parametrize("equation", [Burgers(points=16, dt=0.1), NavierStokes(points=16, dt=0.05)])
def test_paths_are_known_by_number_and_seed(equation: PeriodicPDE, monkeypatch):
    problem = RandomlyForced(equation)
    u0, ts = start(problem, 4), problem.times(2)
    u = problem.evolve(u0, ts)
    monkeypatch.setattr(random_forcing, "TOGETHER", 3 * 16**equation.space)
    assert float((problem.evolve(u0, ts) - u).abs().max()) < 1e-12
    assert u.shape == (4, 3, *u0.shape[1:])
    assert float((problem.evolve(u0[:2], ts) - u[:2]).abs().max()) < 1e-12
    assert float((RandomlyForced(equation, noise_seed=1).evolve(u0, ts) - u)[:, 1:].abs().max()) > 0.1
    still = RandomlyForced(equation, strength=0.0).evolve(u0, ts)
    assert float((still - equation.evolve(u0, ts)).abs().max()) < 1e-12


@pytest.mark.parametrize("forced", [(0, 2), (3, 2), (1, 6), (1, 2, 3), (1.5, 3)])
@pytest.mark.parametrize("equation", [Burgers(points=16), NavierStokes(points=16)])
def test_bands_that_do_not_fit_are_refused(equation, forced):
    with pytest.raises(ValueError, match="forced: expected two wavenumbers from 1 to the 5 that 16 points resolve"):
        RandomlyForced(equation, forced=forced)


def test_other_problems_are_refused():
    class Two(Burgers):
        channels = ("u", "v")

    for problem in (Two(points=16), Spiral()):
        with pytest.raises(ValueError, match="problem: expected a PeriodicPDE of one channel, got"):
            RandomlyForced(problem)
