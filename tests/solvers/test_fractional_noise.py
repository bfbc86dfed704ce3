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

from sciml.solvers import Brownian, FractionalNoise

DTYPE = torch.float64
KINDS = [("I", "fitted"), ("I", "stationary"), ("II", "fitted")]
TS = np.arange(1, 101) / 100


def integral(f: Any, start: float, end: float) -> float:
    """Over u, in log u: of a function that is singular at 0 and decays slowly."""
    value, error = quad(lambda s: f(math.exp(s)) * math.exp(s), math.log(start or 1e-30), math.log(end), limit=400)
    assert error < 1e-7
    return value


def overlap(past: str, hurst: float, rate: float, t: float) -> float:
    """The mean of B(t) (Y(t) - Y(0)), from their kernels over Brownian motion; of kind I without its unit."""
    a = hurst - 0.5
    found = integral(lambda u: u**a * math.exp(-rate * u), 0, t)
    if past == "stationary":
        found += integral(lambda v: ((t + v) ** a - v**a) * math.exp(-rate * v) * math.expm1(-rate * t), 0, 60 / rate)
    return found / gamma(hurst + 0.5)


def unit(kind: str, hurst: float) -> float:
    return math.sqrt(gamma(2 * hurst + 1) * math.sin(math.pi * hurst)) if kind == "I" else 1.0


def nodes(count: int, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights over t = T s^2, where functions that are rough at 0 are smooth."""
    s, w = np.polynomial.legendre.leggauss(count)
    return horizon * ((s + 1) / 2) ** 2, horizon * w * (s + 1) / 2


@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.85])
@pytest.mark.parametrize(("kind", "past"), KINDS)
def test_weights_solve_the_normal_equations_by_quadrature(kind: Any, past: Any, hurst: float):
    """Rates lie on both sides of where their formulas change."""
    noise = FractionalNoise(kind, 1.7, 3, 0.3, 20.0, past)
    rates, (ts, w) = noise.rates.numpy(), nodes(60, 1.7)
    right = [sum(v * overlap(past, hurst, rate, t) for t, v in zip(ts, w, strict=True)) for rate in rates]
    total = rates[:, None] + rates
    decays = [np.exp(-rates * t) for t in ts]
    grams = [(2 - e[:, None] - e if past == "stationary" else 1 - np.outer(e, e)) / total for e in decays]
    expected = np.linalg.solve(sum(v * gram for v, gram in zip(w, grams, strict=True)), right)
    # Quadrature is good to about 1e-7 where B is rough; the equations amplify it by their condition of 30.
    np.testing.assert_allclose(noise.weights(hurst).numpy(), unit(kind, hurst) * expected, rtol=1e-5)


@pytest.mark.parametrize("hurst", [0.1, 0.5, 0.8, 0.97])
def test_fitted_past_is_the_projection_of_what_is_known_of_it(hurst: float):
    """Its covariance is that of kind I less that of kind II, both known; least squares on nodes in time."""
    noise, (ts, w) = FractionalNoise("I", 1.7, 3, 0.3, 20.0), nodes(120, 1.7)
    told = exact("I", hurst, ts) - unit("I", hurst) ** 2 * exact("II", hurst, ts)
    basis = np.expm1(-noise.rates.numpy() * ts[:, None])
    project = np.linalg.pinv(np.sqrt(w)[:, None] * basis) * np.sqrt(w)
    expected, root = project @ told @ project.T, noise.root(hurst).numpy()
    # Rough at 0 or remembering far, 1e-4 of it lies outside of the nodes in time or of the past.
    assert np.abs(root @ root.T - expected).max() <= 1e-4 * np.abs(expected).max() + 1e-8


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


@pytest.mark.parametrize(("hurst", "bound"), [(0.3, 0.06), (0.7, 0.005), (0.8, 0.005), (0.9, 0.005)])
@pytest.mark.parametrize("kind", ["I", "II"])
def test_covariance_is_that_of_fractional_brownian_motion(kind: Any, hurst: float, bound: float):
    assert missed(FractionalNoise(kind), hurst) <= bound


@pytest.mark.parametrize(("kind", "past"), KINDS)
def test_half_is_brownian_motion(kind: Any, past: Any):
    """Exact in the limit of slow processes: a stationary past misses the order of its slowest rate, 1e-4."""
    assert missed(FractionalNoise(kind, past=past), 0.5) < 1e-4


def test_increments_are_stationary():
    """Their covariance, of the same lag at other times, to what five terms leave."""
    covariance = FractionalNoise("I").covariance(0.7, TS).numpy()
    rise = np.diff(np.diff(covariance[9::10, 9::10], axis=0), axis=1)
    for lag in range(4):
        line = np.diagonal(rise, lag)
        assert np.ptp(line) < 0.02 * rise[0, 0]


def geometric(noise: FractionalNoise, hurst: float) -> np.ndarray:
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
    return cells


@pytest.mark.parametrize("terms", [3, 5])
@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_closed_form_beats_geometric_quadrature(hurst: float, terms: int):
    """Both with as many rates, each on the range that suits it best; by 2 at least, at H = 0.7 by ten."""
    right, ours, others = exact("II", hurst), [], []
    for low, high in itertools.product((0.02, 0.2, 1.0), (10.0, 30.0, 100.0)):
        noise = FractionalNoise("II", 1.0, terms, low, high)
        w, rates, s, t = geometric(noise, hurst), noise.rates.numpy(), TS[:, None, None, None], TS[:, None, None]
        shared, i = np.minimum(s, t), rates[:, None]
        pairs = np.exp(-i * (s - shared) - rates * (t - shared)) * -np.expm1(-(i + rates) * shared) / (i + rates)
        found = np.einsum("i,j,stij->st", w, w, pairs)
        ours.append(missed(noise, hurst))
        others.append(float(np.linalg.norm(found - right) / np.linalg.norm(right)))
    assert min(ours) < min(others) / (2 if hurst < 0.5 else 10)


@pytest.mark.parametrize(("kind", "past"), KINDS)
def test_gradients_to_the_hurst_index_are_those_of_differences(kind: Any, past: Any):
    noise = FractionalNoise(kind, 2.0, 3, 0.1, 30.0, past)
    hurst = torch.tensor([0.3, 0.5, 0.8], dtype=DTYPE, requires_grad=True)
    for function in (noise.weights, noise.root):
        assert torch.autograd.gradcheck(function, hurst, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradgradcheck(noise.weights, hurst, atol=1e-4, rtol=1e-4)
    ts = torch.tensor([0.3, 1.1, 2.0], dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(noise.covariance, (hurst, ts), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("past", ["fitted", "stationary"])
def test_start_has_the_law_of_the_past_whatever_the_batch(past: Any):
    noise, count, hurst = FractionalNoise("I", 3.0, 4, past=past), 20_000, 0.7
    start, root = noise.start((count, 2), hurst, seed=4), noise.root(hurst)
    right = root @ root.T
    if past == "stationary":
        w, rates = noise.weights(hurst), noise.rates
        assert torch.allclose(right, w[:, None] * w / (rates[:, None] + rates), rtol=1e-12, atol=0)
    found = torch.einsum("bmi,bmj->ij", start, start) / (2 * count)
    error = ((right.diagonal()[:, None] * right.diagonal() + right**2) / (2 * count)).sqrt()
    assert bool(((found - right).abs() < 4.5 * error).all())
    some = [7, 19_000, 3]
    assert torch.equal(noise.start((3, 2), hurst, seed=4, samples=some), start[some])
    assert not FractionalNoise("II").start((3, 2), hurst).any()
    driving = Brownian((count, 2, 4), seed=4, cells=1, dtype=DTYPE)(0.0, 1.0)
    assert abs(float((driving * torch.linalg.solve(root, start[..., None])[..., 0]).mean())) < 4 / math.sqrt(8 * count)


def negative(noise: FractionalNoise, hurst: Tensor, ts: Tensor, paths: Tensor) -> Tensor:
    """Minus the log-likelihood of paths (b, n), without constants."""
    factor = torch.linalg.cholesky(noise.covariance(hurst, ts))
    white = torch.linalg.solve_triangular(factor, paths.T, upper=False)
    return white.square().sum() / 2 + len(paths) * factor.diagonal().log().sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "hurst"), [("I", 0.3), ("I", 0.7), ("II", 0.7)])
def test_hurst_index_of_fractional_brownian_motion_is_found(kind: Any, hurst: float, seed: int):
    """By maximum likelihood of the approximation, from 32 paths of the true process at 20 times.

    With the likelihood of the true process their standard error is 0.007 to 0.010.
    """
    rng = np.random.default_rng(seed)
    ts = np.arange(1, 21) / 20
    paths = rng.standard_normal((32, 20)) @ np.linalg.cholesky(exact(kind, hurst, ts)).T
    noise, raw = FractionalNoise(kind), torch.zeros((), dtype=DTYPE, requires_grad=True)
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
        ("past: expected 'fitted', or for kind I 'stationary'", {"kind": "II", "past": "stationary"}),
        ("horizon: expected a positive number", {"horizon": -1.0}),
        ("slowest: expected less than the fastest rate 100, got 200", {"slowest": 200.0}),
        ("terms: 8 rates between 0.02 and 100 over the horizon lie too close", {"terms": 8, "fastest": 100.0}),
    ):
        with pytest.raises(ValueError, match=message):
            FractionalNoise(**arguments)
    with pytest.raises(ValueError, match=r"hurst: expected numbers between 0 and 1, got 1\.0"):
        FractionalNoise().weights(1.0)


def test_numbers_are_taken_in_double_precision():
    noise = FractionalNoise()
    assert torch.equal(noise.weights(0.7), noise.weights(torch.tensor(0.7, dtype=DTYPE)))
    assert torch.equal(noise.covariance(0.7, [0.3]), noise.covariance(0.7, torch.tensor([0.3], dtype=DTYPE)))
