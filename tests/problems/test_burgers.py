import math

import numpy as np
import pytest
import torch

from sciml.problems import Burgers, PeriodicPDE
from sciml.problems.cole_hopf import cole_hopf

SINE_TIMES = torch.linspace(0, 1, 11, dtype=torch.float64)


def sine(problem):
    return torch.sin(2 * math.pi * problem.coordinates()[0])[None, None]


@pytest.mark.regression
def test_burgers_matches_cole_hopf():
    problem = Burgers(points=1024, nu=0.01, dt=2e-3)
    u0 = sine(problem)
    error = (problem.evolve(u0, SINE_TIMES) - problem.exact(u0, SINE_TIMES)).abs().amax((0, 2, 3))
    assert error[-1] <= 1e-8  # at T = 1
    assert error.max() <= 2e-7  # at every saved time, the steepest shock (t = .2) among them


@pytest.mark.regression
def test_burgers_is_of_fourth_order_in_dt():
    at = torch.tensor([0.2], dtype=torch.float64)
    sizes = [4e-3, 2e-3, 1e-3, 5e-4]
    errors = []
    for dt in sizes:
        problem = Burgers(points=1024, nu=0.01, t1=0.2, dt=dt)
        errors.append((problem.evolve(sine(problem), at) - problem.exact(sine(problem), at)).abs().max())
    slope = np.polyfit(np.log(sizes), torch.stack(errors).log().numpy(), 1)[0]
    assert 3.8 <= slope <= 4.5


def test_cole_hopf_matches_bessel_series():
    """phi of u0 = sin(2 pi x) is a Fourier series in modified Bessel functions (Cole 1951)."""
    mpmath = pytest.importorskip("mpmath")
    nu, t, x = 0.05, 0.3, torch.arange(64, dtype=torch.float64) / 64
    r = 1 / (4 * math.pi * nu)
    top = bottom = 0.0
    for n in range(1, 40):
        a = (2 if n else 1) * float(mpmath.besseli(n, r)) * math.exp(-nu * (2 * math.pi * n) ** 2 * t)
        top = top + n * a * torch.sin(2 * math.pi * n * x)
        bottom = bottom + a * torch.cos(2 * math.pi * n * x)
    expected = 4 * math.pi * nu * top / (float(mpmath.besseli(0, r)) + bottom)
    computed = cole_hopf(torch.sin(2 * math.pi * x), nu, t)
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-12)  # quadrature converges to round-off


def test_burgers_of_random_fields_with_a_mean_matches_cole_hopf():
    problem = Burgers(points=1024)
    u0 = problem.initial(2, torch.Generator().manual_seed(0), torch.float64) + 0.3
    ts = torch.tensor([0.5, 1.0], dtype=torch.float64)
    error = (problem.evolve(u0, ts) - problem.exact(u0, ts)).abs().max()
    assert error <= 1e-5  # dt^4 on shocks four times as steep as the sine's


def test_burgers_keeps_the_mean_and_loses_energy():
    problem = Burgers(points=256)
    u0 = problem.initial(4, torch.Generator().manual_seed(1), torch.float64)
    u = problem.evolve(u0, torch.linspace(0, 1, 6, dtype=torch.float64))
    assert u.mean(-1).abs().max() < 1e-14  # the zeroth coefficient has neither flux nor diffusion
    assert bool((u.square().mean((2, 3)).diff(dim=1) < 0).all())


def test_initial_conditions_are_one_function_on_every_grid():
    fine, coarse = (Burgers(points=n).initial(3, torch.Generator().manual_seed(5), torch.float64) for n in (4096, 2048))
    # the coarser grid leaves out wavenumbers above 512 on neither, so that both sample the same series
    torch.testing.assert_close(fine[..., ::2], coarse, rtol=0, atol=1e-12)


def test_initial_conditions_have_the_variance_of_the_covariance():
    u0 = Burgers(points=256).initial(4000, torch.Generator().manual_seed(0), torch.float64)
    k = 2 * math.pi * torch.arange(1, 86, dtype=torch.float64)
    expected = 2 * (625 / (k**2 + 25) ** 2).sum()
    deviation = expected * math.sqrt(2 / 4000) * 2  # a few wavenumbers carry the variance: about a chi-square of two
    assert abs(u0.square().mean() - expected) < 4 * deviation


def test_user_pde_is_a_symbol_and_a_nonlinearity():
    class Heat(PeriodicPDE):
        def symbol(self, k):
            return -0.1 * k**2

    heat = Heat(points=32)
    u = heat.evolve(sine(heat), torch.tensor([1.0], dtype=torch.float64))
    expected = sine(heat) * math.exp(-0.1 * (2 * math.pi) ** 2)
    torch.testing.assert_close(u[:, 0], expected, rtol=0, atol=1e-15)  # the linear part is integrated exactly


def test_save_time_off_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"save_at: ETDRK4 has no dense output.*0\.002"):
        Burgers(points=32).evolve(torch.zeros(1, 1, 32), torch.tensor([0.0031]))


def test_exact_solution_too_early_for_the_grid_is_refused():
    with pytest.raises(ValueError, match="t: expected 0 or at least"):
        cole_hopf(torch.zeros(16), 1e-4, 1e-6)
