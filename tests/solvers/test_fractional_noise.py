"""Weights of fractional noise against quadrature, covariances against those of fractional Brownian motion."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import gamma, hyp2f1
from torch import Tensor

from sciml.solvers import FractionalNoise

DTYPE = torch.float64
KINDS = ["I", "II"]
TS = np.arange(1, 101) / 100


def integral(f: Any, start: float, end: float) -> float:
    """Over u, in log u: of a function that is singular at 0 and decays slowly."""
    value, error = quad(lambda s: f(math.exp(s)) * math.exp(s), math.log(start or 1e-30), math.log(end), limit=400)
    assert error < 1e-7
    return value


def overlap(kind: str, hurst: float, rate: float, t: float) -> float:
    """The mean of B(t) (Y(t) - Y(0)), from their kernels over Brownian motion; B as the reference scales it."""
    a = hurst - 0.5
    found = integral(lambda u: u**a * math.exp(-rate * u), 0, t)
    if kind == "I":
        found += integral(lambda v: ((t + v) ** a - v**a) * math.exp(-rate * v) * math.expm1(-rate * t), 0, 60 / rate)
    return found / gamma(hurst + 0.5)


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.85])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_solve_the_normal_equations_by_quadrature(kind: Any, hurst: float):
    """Gauss-Legendre over t on t = T s^2, smooth enough at 0 for 60 nodes; rates on both sides of the series' end."""
    horizon = 1.7
    noise = FractionalNoise(kind, horizon, 3, 0.3, 20.0)
    s, w = np.polynomial.legendre.leggauss(60)
    s, w = (s + 1) / 2, w / 2
    ts, w = horizon * s**2, horizon * 2 * s * w
    rates = noise.rates.numpy()
    right = [sum(v * overlap(kind, hurst, rate, t) for t, v in zip(ts, w, strict=True)) for rate in rates]
    total = rates[:, None] + rates
    decays = [np.exp(-rates * t) for t in ts]
    grams = [(2 - e[:, None] - e if kind == "I" else 1 - np.outer(e, e)) / total for e in decays]
    expected = np.linalg.solve(sum(v * gram for v, gram in zip(w, grams, strict=True)), right)
    unit = math.sqrt(gamma(2 * hurst + 1) * math.sin(math.pi * hurst)) if kind == "I" else 1
    # Quadrature is good to about 1e-7 where B is rough; the equations amplify it by their condition of 30.
    np.testing.assert_allclose(noise.weights(hurst).numpy(), unit * expected, rtol=1e-5)


def exact(kind: str, hurst: float, ts: np.ndarray = TS) -> np.ndarray:
    t, s = np.maximum(ts[:, None], ts), np.minimum(ts[:, None], ts)
    if kind == "I":
        return (t ** (2 * hurst) + s ** (2 * hurst) - (t - s) ** (2 * hurst)) / 2
    a = hurst - 0.5
    return s ** (a + 1) * t**a / (a + 1) * hyp2f1(-a, 1, a + 2, s / t) / gamma(hurst + 0.5) ** 2


def missed(noise: FractionalNoise, hurst: float) -> float:
    right = exact(noise.kind, hurst)
    return float(np.linalg.norm(noise.covariance(hurst, TS).numpy() - right) / np.linalg.norm(right))


def test_exact_covariance_of_kind_two_is_its_integral():
    for hurst, s, t in ((0.3, 0.2, 0.9), (0.8, 0.5, 0.6)):
        value = integral(lambda u: u ** (hurst - 0.5) * (t - s + u) ** (hurst - 0.5), 0, s)  # noqa: B023
        found = exact("II", hurst, np.array([s, t]))[0, 1]
        assert abs(value / gamma(hurst + 0.5) ** 2 - found) < 1e-9


# Kind I at large H remembers more of the past than five fixed rates tell: there they are chosen for H.
FAR = {0.7: (5e-5, 4.5)}


@pytest.mark.parametrize(
    ("kind", "hurst", "bound"),
    [
        ("II", 0.3, 0.06),
        ("II", 0.7, 0.005),
        ("II", 0.8, 0.005),
        ("II", 0.9, 0.005),
        ("I", 0.3, 0.06),
        ("I", 0.7, 0.005),
    ],
)
def test_covariance_is_that_of_fractional_brownian_motion(kind: Any, hurst: float, bound: float):
    ranges = FAR.get(hurst, (None, None)) if kind == "I" else (None, None)
    assert missed(FractionalNoise(kind, 1.0, 5, *ranges), hurst) <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_half_is_brownian_motion(kind: Any):
    """Exact in the limit of slow processes: kind I misses the order of its slowest rate, 1e-4."""
    assert missed(FractionalNoise(kind), 0.5) < 1e-4


def geometric(noise: FractionalNoise, hurst: float) -> Tensor:
    r"""Weights by quadrature of u^{H-1/2} = c \int e^{-x u} x^{-H-1/2} dx, cell by cell between geometric means.

    Above 1/2 the integrand is (1 - e^{-x u}), with the slowest process in place of 1.
    """
    rates, a = noise.rates.numpy(), hurst + 0.5
    middle = np.sqrt(rates[1:] * rates[:-1])
    last = rates[-1] ** 1.5 / rates[-2] ** 0.5 if hurst < 0.5 else np.inf
    ends = np.array([0.0 if hurst < 0.5 else middle[0] ** 2 / middle[1], *middle, last])
    with np.errstate(divide="ignore"):
        cells = np.diff(ends ** (1 - a)) / (1 - a) / (gamma(a) * abs(gamma(1 - a)))
    if hurst > 0.5:
        cells = np.array([cells[1:].sum(), *-cells[1:]])
    return torch.from_numpy(cells)


@pytest.mark.parametrize("terms", [3, 5])
@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_closed_form_beats_geometric_quadrature(hurst: float, terms: int):
    """Both with as many rates, each on the range that suits it best; by 2 at least, at H = 0.7 by ten."""
    right, s, t = exact("II", hurst), torch.from_numpy(TS)[:, None], torch.from_numpy(TS)
    ours, others = [], []
    for low, high in itertools.product((0.02, 0.2, 1.0), (10.0, 30.0, 100.0)):
        noise = FractionalNoise("II", 1.0, terms, low, high)
        w = geometric(noise, hurst)
        found = torch.einsum("i,j,stij->st", w, w, noise._products(noise.rates, s, t)).numpy()
        ours.append(missed(noise, hurst))
        others.append(float(np.linalg.norm(found - right) / np.linalg.norm(right)))
    assert min(ours) < min(others) / (2 if hurst < 0.5 else 10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_to_the_hurst_index_are_those_of_differences(kind: Any):
    noise = FractionalNoise(kind, 2.0, 4, 0.05, 30.0)
    hurst = torch.tensor([0.3, 0.5, 0.8], dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(noise.weights, hurst, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradgradcheck(noise.weights, hurst, atol=1e-4, rtol=1e-4)
    ts = torch.tensor([0.3, 1.1, 2.0], dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(noise.covariance, (hurst, ts), atol=1e-6, rtol=1e-6)


def test_processes_start_from_their_stationary_law_whatever_the_batch():
    noise, count = FractionalNoise("I", 3.0, 6), 20_000
    start = noise.start((count, 2), seed=4)
    total = noise.rates[:, None] + noise.rates
    scale = (2 * noise.rates).sqrt()
    found = torch.einsum("bmi,bmj->ij", start * scale, start * scale) / (2 * count)
    right = scale[:, None] * scale / total  # correlations
    error = ((1 + right**2) / (2 * count)).sqrt()
    assert bool(((found - right).abs() < 4.5 * error).all())
    some = [7, 19_000, 3]
    assert torch.equal(noise.start((3, 2), seed=4, samples=some), start[some])
    assert not FractionalNoise("II").start((3, 2)).any()


def negative(noise: FractionalNoise, hurst: Tensor, ts: Tensor, paths: Tensor) -> Tensor:
    """Minus the log-likelihood of paths (b, n), without constants."""
    factor = torch.linalg.cholesky(noise.covariance(hurst, ts))
    white = torch.linalg.solve_triangular(factor, paths.T, upper=False)
    return white.square().sum() / 2 + len(paths) * factor.diagonal().log().sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_hurst_index_of_fractional_brownian_motion_is_found(hurst: float, seed: int):
    """By maximum likelihood of the approximation, from 32 paths of the true process at 20 times.

    The likelihood of the true process has a standard error of about 0.007.
    """
    rng = np.random.default_rng(seed)
    ts = np.arange(1, 21) / 20
    paths = rng.standard_normal((32, 20)) @ np.linalg.cholesky(exact("II", hurst, ts)).T
    noise, raw = FractionalNoise("II"), torch.zeros((), dtype=DTYPE, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = negative(noise, raw.sigmoid(), torch.from_numpy(ts), torch.from_numpy(paths))
        loss.backward()
        return loss

    optimiser.step(closure)
    assert abs(raw.sigmoid().item() - hurst) <= 0.03


def test_mistakes_are_named():
    for message, arguments in (
        ("kind: expected 'I'", {"kind": "III"}),
        ("terms: expected at least one", {"terms": 0}),
        ("horizon: expected a positive number", {"horizon": -1.0}),
        ("slowest: expected less than the fastest rate 100, got 200", {"slowest": 200.0}),
        ("terms: 16 rates between 0.02 and 100 over the horizon lie too close", {"terms": 16}),
    ):
        with pytest.raises(ValueError, match=message):
            FractionalNoise(**arguments)
    with pytest.raises(ValueError, match=r"hurst: expected numbers between 0 and 1, got 1\.0"):
        FractionalNoise().weights(1.0)


def test_numbers_are_taken_in_double_precision():
    noise = FractionalNoise()
    assert torch.equal(noise.weights(0.7), noise.weights(torch.tensor(0.7, dtype=DTYPE)))
    assert torch.equal(noise.covariance(0.7, [0.3]), noise.covariance(0.7, torch.tensor([0.3], dtype=DTYPE)))
