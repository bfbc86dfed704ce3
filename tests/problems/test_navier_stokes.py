import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sciml import Solver, solve
from sciml.problems import NavierStokes
from sciml.solvers import ETDRK4, Grid, Tsit5

EXPONAX = Path(__file__).with_name("exponax_vorticity.npz")  # made by make_exponax_reference.py beside it


def at(*ts):
    return torch.tensor(ts, dtype=torch.float64)


def grid(problem):
    x, y = problem.coordinates()
    return x[:, None], y[None]


def random_field(problem, count=1, seed=0):
    return problem.initial(count, torch.Generator().manual_seed(seed), torch.float64)


def largest(a, b=0.0):
    return (a - b).abs().max().item()


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.regression
def test_taylor_green_is_carried_by_a_mean_flow():
    """Without the mean flow its advection vanishes, so that a solver without advection would pass."""
    nu, t1, (a, b) = 0.05, 2.0, (1.0, 0.5)
    sizes, errors = [0.04, 0.02, 0.01, 0.005], []
    for dt in sizes:
        problem = NavierStokes(points=32, mean=(a, b), nu=nu, dt=dt, t1=t1)
        x, y = grid(problem)
        start = 2 * torch.cos(x) * torch.cos(y)
        exact = 2 * torch.cos(x - a * t1) * torch.cos(y - b * t1) * math.exp(-2 * nu * t1)
        errors.append(largest(problem.evolve(start[None, None], at(t1))[0, 0, 0], exact))
    # a mode turns by (a + b) per time; a fourth-order step of dt turns it wrongly by (1.5 dt)^5 / 120
    assert errors[2] <= 2 * t1 * 1.5**5 * 0.01**4 / 120
    assert 3.8 <= slope(sizes, errors) <= 4.5


class Manufactured(NavierStokes):
    """The force that makes psi = cos t sin x sin y + sin t cos 2x cos y the streamfunction of a solution."""

    @staticmethod
    def vorticity(t, x, y):
        return 2 * torch.cos(t) * torch.sin(x) * torch.sin(y) + 5 * torch.sin(t) * torch.cos(2 * x) * torch.cos(y)

    def forcing(self, t, x, y):
        c, s, (a, b) = torch.cos(t), torch.sin(t), self.mean
        u = a + c * torch.sin(x) * torch.cos(y) - s * torch.cos(2 * x) * torch.sin(y)
        v = b - c * torch.cos(x) * torch.sin(y) + 2 * s * torch.sin(2 * x) * torch.cos(y)
        w_x = 2 * c * torch.cos(x) * torch.sin(y) - 10 * s * torch.sin(2 * x) * torch.cos(y)
        w_y = 2 * c * torch.sin(x) * torch.cos(y) - 5 * s * torch.cos(2 * x) * torch.sin(y)
        w_t = -2 * s * torch.sin(x) * torch.sin(y) + 5 * c * torch.cos(2 * x) * torch.cos(y)
        laplace = -4 * c * torch.sin(x) * torch.sin(y) - 25 * s * torch.cos(2 * x) * torch.cos(y)
        return w_t + u * w_x + v * w_y - self.nu * laplace + self.drag * self.vorticity(t, x, y)


@pytest.mark.regression
def test_manufactured_solution_is_met_at_fourth_order():
    sizes, errors = [0.04, 0.02, 0.01, 0.005], []
    for dt in sizes:
        problem = Manufactured(points=16, largest=2, nu=0.02, drag=0.1, mean=(0.3, -0.2), dt=dt, t1=2.0)
        x, y = grid(problem)
        w = problem.evolve(problem.vorticity(at(0.0), x, y)[None, None], at(2.0))[0, 0, 0]
        errors.append(largest(w, problem.vorticity(at(2.0), x, y)))
    assert 3.8 <= slope(sizes, errors) <= 4.5  # wavenumbers up to 4 of products fit on the grid: no error in space
    assert errors[-1] <= 1e-8  # like dt^4 = 6e-10, times derivatives of a field of amplitude 5


def shear_layers(problem):
    """Two layers of width 1/4 of opposite vorticity, with a wave (Brown & Minion 1995, J. Comput. Phys. 122)."""
    x, y = grid(problem)
    layers = sum(
        sign / (0.25 * torch.cosh((y - middle) / 0.25) ** 2)
        for sign, middle in ((-1, math.pi / 2), (1, 3 * math.pi / 2))
    )
    return (layers + 0.05 * torch.cos(x))[None, None]


@pytest.mark.regression
def test_double_shear_layer_converges_in_space_faster_than_any_power():
    finest = NavierStokes(points=192, nu=0.01, dt=0.02)
    expected = finest.evolve(shear_layers(finest), at(1.0))
    errors = []
    for points in (24, 48, 96):
        problem = replace(finest, points=points)
        every = finest.points // points
        errors.append(largest(problem.evolve(shear_layers(problem), at(1.0)), expected[..., ::every, ::every]))
    # the layers' spectrum is k / sinh(pi k / 8), and kept is k <= 7, 15, 31
    assert errors[0] / errors[1] > math.exp(math.pi) / 2
    assert errors[1] / errors[2] > math.exp(2 * math.pi) / 2


@pytest.mark.regression
def test_double_shear_layer_is_of_fourth_order_in_time():
    problem = NavierStokes(points=48, nu=0.01, dt=0.001)
    expected = problem.evolve(shear_layers(problem), at(1.0))
    sizes = [0.04, 0.02, 0.01, 0.005]
    errors = [largest(replace(problem, dt=dt).evolve(shear_layers(problem), at(1.0)), expected) for dt in sizes]
    assert 3.8 <= slope(sizes, errors) <= 4.5


def drifts(stepper, sizes, count):
    """By how much the energy of random fields changes over T = 1 without viscosity, relatively, for every step size."""
    problem = NavierStokes(points=64, nu=0.0)
    start = problem.encode(random_field(problem, count))
    before = problem.energy(problem.decode(start))
    ends = (solve(problem, start, 0.0, 1.0, Solver(stepper, Grid(dt=dt))).ys for dt in sizes)
    return [(problem.energy(problem.decode(end)) / before - 1).abs() for end in ends]


@pytest.mark.regression
def test_energy_without_viscosity_drifts_by_less_than_1e_9_and_sixteen_times_less_with_half_the_step():
    found = drifts(Tsit5(), [0.02, 0.01, 0.005], 5)
    assert found[1].max() <= 1e-9
    assert all((coarse / fine).min() >= 16 for coarse, fine in pairwise(found))  # of order 5: 32, approached from above


@pytest.mark.regression
def test_fall_of_the_drift_of_fourth_order_steps_approaches_16_from_below():
    # L is zero, so that this is the classical method: a dt^4 + b dt^5 with a > 0 > b, of which b is its damping
    falls = [float(coarse / fine) for coarse, fine in pairwise(drifts(ETDRK4(), [0.02, 0.01, 0.005, 0.0025], 1))]
    missing = [16 - fall for fall in falls]  # -8 b dt / a to first order: it halves with dt
    assert missing[2] < 1.2
    assert all(1.6 < coarse / fine < 2.5 for coarse, fine in pairwise(missing))


def test_advection_keeps_energy_and_enstrophy_to_round_off():
    problem = NavierStokes(points=32, nu=0.0, mean=(0.5, -0.3), largest=10)
    w = random_field(problem)
    rate = problem.decode(problem.nonlinear(problem.encode(w)))
    psi_rate = (w * rate).mean()
    k = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    square = k[:, None] ** 2 + k[None] ** 2
    psi = torch.fft.ifft2(torch.fft.fft2(w) / torch.where(square > 0, square, torch.inf)).real
    scale = rate.abs().max() * w.abs().max()
    assert abs(psi_rate) <= 1e-14 * scale  # 2/3 dealiasing is exact for products, so only round-off is left
    assert abs((psi * rate).mean()) <= 1e-14 * scale


def forced(**changes):
    return NavierStokes(points=32, nu=0.02, drag=0.1, amplitude=1.0, wavenumber=2, dt=0.01, **changes)


@pytest.mark.parametrize("problem", [forced(), forced(mean=(0.4, 0.2)), NavierStokes(points=32, nu=0.02)])
def test_energy_and_enstrophy_follow_their_budgets(problem):
    ts = problem.times(100)
    u = problem.evolve(random_field(problem, 2), ts)
    residuals = problem.residuals(ts, u)
    assert set(residuals) == {"energy_budget_residual", "enstrophy_budget_residual"}
    assert max(residuals.values()) <= 1e-6  # splines of order 4 on rates whose modes turn by up to .2 between saves


def test_a_wrong_force_breaks_the_budget():
    problem = forced()
    u = problem.evolve(random_field(problem), problem.times(100))
    assert min(replace(problem, amplitude=0.99).residuals(problem.times(100), u).values()) > 1e-4


@pytest.mark.parametrize(("name", "changes"), [
    ("decaying", {}), ("kolmogorov", {"drag": 0.1, "amplitude": 0.7, "wavenumber": 2})
])  # fmt: skip
def test_navier_stokes_agrees_with_exponax(name, changes):
    arrays = np.load(EXPONAX)
    problem = NavierStokes(points=48, nu=0.05, dt=0.005, **changes)
    w = problem.evolve(torch.from_numpy(arrays["start"])[None, None], at(1.0))[0, 0, 0]
    moved = largest(w, torch.from_numpy(arrays["start"]))
    assert moved > 0.5
    # the same scheme with the same step: round-off, and the highest wavenumbers, of which they keep different ones
    assert largest(w, torch.from_numpy(arrays[name])) <= 1e-11


def test_velocity_has_the_vorticity_and_no_divergence():
    problem = NavierStokes(points=32, length=3.0, mean=(0.5, -0.3))
    w = random_field(problem, 2)
    velocity = problem.velocity(w)
    assert_close(velocity.mean((0, 2, 3)), at(0.5, -0.3))
    k = 2j * math.pi / 3.0 * torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    u, v = torch.fft.fft2(velocity).unbind(1)
    curl, divergence = (torch.fft.ifft2(f).real for f in (k[:, None] * v - k * u, k[:, None] * u + k * v))
    assert_close(curl[:, None], w, rtol=0, atol=1e-12)
    assert largest(divergence) < 1e-12
    fluctuation = velocity - at(0.5, -0.3)[:, None, None]
    assert_close(problem.energy(w), fluctuation.square().sum(1).mean((1, 2)) / 2)
    assert_close(problem.enstrophy(w), w.square().mean((1, 2, 3)) / 2)
    k_s, spectrum = problem.spectrum(w)
    assert_close(spectrum.sum(-1), problem.energy(w))
    assert_close(k_s[0].item(), 2 * math.pi / 3.0)


def test_spectrum_puts_a_wave_into_its_shell():
    problem = NavierStokes(points=32)
    x, y = grid(problem)
    k, spectrum = problem.spectrum((torch.cos(3 * x) * torch.cos(4 * y))[None, None])
    assert spectrum[0].argmax() == 4
    assert k[4] == 5
    assert_close(spectrum[0, 4], at(1 / 16 * 2 / 25)[0])  # <cos^2 cos^2> / (2 |k|^2) = 1/4 / 50
    assert spectrum[0].sum() - spectrum[0, 4] < 1e-16


def test_initial_fields_are_one_function_on_every_grid():
    coarse, fine = (NavierStokes(points=points) for points in (32, 64))
    w = random_field(fine, 3)
    assert_close(w[..., ::2, ::2], random_field(coarse, 3), rtol=0, atol=1e-12)
    assert_close(fine.velocity(w).square().sum(1).mean((1, 2)), at(1.0, 1.0, 1.0))
    assert fine.spectrum(w)[1][:, 4:].max() < 1e-28


def test_a_large_batch_and_small_ones_agree():
    problem = NavierStokes(points=16, t1=0.1, largest=3)
    w = random_field(problem, 5)
    parts = torch.cat([problem.evolve(part, at(0.1)) for part in w.split(2)])
    assert_close(problem.evolve(w, at(0.1)), parts, rtol=0, atol=1e-13)


def test_single_precision_is_close_to_double():
    problem = NavierStokes(points=32)
    w = random_field(problem)
    single = problem.evolve(w.float(), at(1.0))
    assert single.dtype == torch.float32
    assert largest(single, problem.evolve(w, at(1.0))) <= 1e-6 * 100 * w.abs().max()  # ten round-offs a step, at most


def test_unresolved_wavenumber_is_refused():
    with pytest.raises(ValueError, match="wavenumber: expected one from 1 to the 10 that 32 points resolve, got 11"):
        NavierStokes(points=32, amplitude=1.0, wavenumber=11)
