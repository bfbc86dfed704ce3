"""Learned relaxation: policies against their definitions, and on the rates that Young's theory gives."""

import json
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from sciml.errors import LinearSolveError
from sciml.problems import Diffusion, Heat
from sciml.problems.linear_systems import LinearSystem
from sciml.solvers.linear import LearnedOmega, SparseOperator
from sciml.solvers.linear.learned_omega import Averages, ChebCB, Regression, TsallisINF
from tests.solvers.linear.spd import draw, operator

GRID = np.linspace(1, 1.95, 20)
METHODS: list[dict[str, Any]] = [
    {"method": "tsallis-inf"},
    {"method": "regression"},
    {"method": "chebcb", "context": (-0.2, 0.5)},
    {"method": "regression", "context": (-0.2, 0.5)},
]
methods = pytest.mark.parametrize("options", METHODS, ids=lambda o: o["method"] + " context" * ("context" in o))


def counts(shifts: np.ndarray) -> np.ndarray:
    """Iterations (t, d) to 1e-8 by the spectral radius of over-relaxation for the five-point formula, n = 10."""
    mu = 4 * math.cos(math.pi / 11) / (4 + shifts[:, None])
    best = 2 / (1 + np.sqrt(1 - mu**2))
    root = np.sqrt(np.maximum((GRID * mu) ** 2 - 4 * (GRID - 1), 0))
    radius = np.where(best > GRID, ((GRID * mu + root) / 2) ** 2, GRID - 1)
    return np.ceil(math.log(1e-8) / np.log(radius))


def play(learned: LearnedOmega, shifts: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The costs (t) of its choices."""
    for shift, cost in zip(shifts, costs, strict=True):
        omega = learned.choose(float(shift) if learned.context else None)
        learned.observe(float(cost[omega == GRID][0]))
    return np.array(learned.iterations)


def test_tsallis_weights_are_the_minimum_and_losses_are_without_bias():
    """p minimises <L, p> - (4 / eta) sum sqrt(p) on the simplex, and the mean update of all losses is the costs."""
    policy = TsallisINF(GRID[:4], 1)
    costs = np.array([30.0, 20.0, 25.0, 90.0])
    for arm in (0, 3, 1, 2, 1, 1):
        policy.weights(np.ones(1))
        policy.learn(arm, costs[arm])
    p = policy.weights(np.ones(1)).copy()
    losses, rate = policy.losses / (policy.total / policy.t), policy.rate
    right = minimize(
        lambda q: losses @ q - 4 / rate * np.sqrt(q).sum(),
        np.full(4, 0.25),
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
        options={"ftol": 1e-14},
    )
    assert np.allclose(p, right.x, atol=1e-5)  # of the minimisation
    policy.total = policy.t * 19.0  # so that the base, which any number serves as, is the same for all
    mean = np.zeros(4)
    for arm in range(4):
        after = deepcopy(policy)
        after.learn(arm, 20.0)
        mean += p[arm] * (after.losses - policy.losses)
    assert np.allclose(mean, 19.0, rtol=1e-12)


def test_averages_are_the_posterior_of_all_costs():
    rng, policy = np.random.default_rng(0), Averages(GRID, 1)
    arms, costs = rng.integers(5, 12, 40), rng.uniform(20, 90, 40)
    for arm, cost in zip(arms, costs, strict=True):
        policy.learn(int(arm), float(cost))
    within = sum(((costs[arms == a] - costs[arms == a].mean()) ** 2).sum() for a in set(arms)) / costs.mean() ** 2
    noise = (20 * 0.09 + within) / (20 + 40 - len(set(arms)))
    prior = policy.prior
    gain = prior[:, arms] @ np.linalg.inv(prior[np.ix_(arms, arms)] + noise * np.eye(40))
    mean, variance = policy.posterior()
    assert np.allclose(mean, gain @ (costs / costs.mean() - 1), atol=1e-9)
    assert np.allclose(variance, np.diag(prior - gain @ prior[arms]), atol=1e-9)


def test_regression_is_the_gaussian_posterior(monkeypatch: pytest.MonkeyPatch):
    """One cost after another as all at once, with the noise of each step; 1e-9 for 30 updates in double precision."""
    monkeypatch.setattr("sciml.solvers.linear.learned_omega.FORGET", 0.0)
    rng, terms = np.random.default_rng(0), 6
    policy = Regression(GRID, terms)
    rows, values, noises = [], [], []
    for _ in range(30):
        features, arm, cost = rng.standard_normal(terms), int(rng.integers(20)), rng.uniform(20, 40)
        policy.weights(features)
        noises.append(max(policy.squares / policy.count, 1e-4))
        policy.learn(arm, cost)
        rows.append(np.kron(np.arange(20) == arm, features))
        values.append(math.log(cost / policy.first))
    prior, rows_ = policy.prior.reshape(20 * terms, -1), np.array(rows)
    gain = prior @ rows_.T @ np.linalg.inv(rows_ @ prior @ rows_.T + np.diag(noises))
    assert np.allclose(policy.mean.ravel(), gain @ values, atol=1e-9)
    assert np.allclose(policy.spread.reshape(prior.shape), prior - gain @ rows_ @ prior, atol=1e-9)


def test_inverse_gap_weights_follow_the_fitted_series():
    """Costs that are polynomials in the context are found, and the best omega has the largest weight."""
    rng, policy = np.random.default_rng(0), ChebCB(GRID[:3], 6)
    cost = lambda arm, x: 20 + 5 * (arm - 1) * x  # noqa: E731
    for _ in range(300):
        x, arm = rng.uniform(-1, 1), int(rng.integers(3))
        policy.weights(np.polynomial.chebyshev.chebvander(x, 5)[0])
        policy.learn(arm, cost(arm, x))
    for x, best in ((0.9, 0), (-0.9, 2)):
        p = policy.weights(np.polynomial.chebyshev.chebvander(x, 5)[0])
        assert math.isclose(p.sum(), 1)
        assert p.argmax() == best
        assert p[best] > 0.8
        assert np.allclose(policy.predictions * policy.scale + 1, [cost(arm, x) for arm in range(3)], rtol=0.01)


def test_regret_falls_and_contexts_beat_the_best_fixed_omega():
    """On the shifts of the paper's experiment: the bars of the benchmark, on rates that need no solves."""
    rng = np.random.default_rng(1)
    shifts = -0.15 + 0.6 * rng.beta(0.5, 1.5, 1000)
    costs = counts(shifts)
    fixed, best = costs[:, costs.mean(0).argmin()], costs.min(1)
    late = slice(200, None)
    found = {str(o): play(LearnedOmega(seed=1, **o), shifts, costs) for o in METHODS}
    tsallis, smooth, chebcb, contextual = found.values()
    assert contextual[late].mean() < 1.03 * best[late].mean() < chebcb[late].mean() < fixed[late].mean()
    assert smooth[late].mean() < 1.06 * fixed[late].mean()
    assert tsallis[500:].mean() - fixed[500:].mean() < 0.6 * (tsallis[:100].mean() - fixed[:100].mean())


@methods
def test_choices_are_a_function_of_the_seed_and_what_was_seen(options: dict[str, Any]):
    """A state that went through JSON goes on as if nothing had been."""
    shifts = np.random.default_rng(0).uniform(-0.15, 0.45, 60)
    costs = counts(shifts)
    whole, first = LearnedOmega(**options), LearnedOmega(**options)
    play(whole, shifts, costs)
    play(first, shifts[:35], costs[:35])
    first.choose(0.0 if first.context else None)  # of which nothing is known yet
    second = LearnedOmega(**options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    play(second, shifts[35:], costs[35:])
    assert second.arms == whole.arms
    if options["method"] != "regression":
        other = LearnedOmega(**{**options, "seed": 1})
        play(other, shifts, costs)
        assert other.arms != whole.arms


@pytest.mark.parametrize("sweeps", ["ssor-cg", "sor"])
def test_a_sequence_is_solved_and_learned_from(sweeps: Any):
    learned = LearnedOmega(context=(math.log(1e-3), math.log(1e-1)))

    def solve(system: LinearSystem) -> np.ndarray:
        assert system.dt is not None
        assert system.x0 is not None
        a, b, x0 = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b), torch.from_numpy(system.x0)
        solution = learned.solve(a, b, x0, context=math.log(system.dt), sweeps=sweeps)
        assert solution.iterations.tolist() == [learned.iterations[-1]]
        return solution.x.numpy()

    exact = Heat(Diffusion(cells=8), dt=(1e-3, 1e-1))
    for found, right in zip(exact.steps(0, 20, solve=solve), exact.steps(0, 20), strict=True):
        assert np.allclose(found.b, right.b, atol=1e-6 * np.abs(right.b).max())  # residuals of 1e-8 in 20 steps
    assert len(learned.iterations) == 19
    assert len(set(learned.arms)) > 1


def test_failed_solves_are_learned_from_and_bad_input_is_not():
    learned, a, b = LearnedOmega(), operator(6), draw(2, 36)
    with pytest.raises(LinearSolveError, match="max_iter=2"):
        learned.solve(a, b, max_iter=2)
    assert learned.iterations == [2.0]
    with pytest.raises(ValueError, match="b: expected the shape"):
        learned.solve(a, b[:, :5])
    assert len(learned.arms) == 1
    assert not learned.solve(a, b, sweeps="sor", max_iter=2, throw=False).converged.any()
    assert learned.solve(a, b, sweeps="sor").converged.all()
    assert learned.solve(a, torch.zeros(36, dtype=b.dtype)).iterations.tolist() == [0]


def test_bad_input_is_refused():
    learned = LearnedOmega(context=(0.0, 1.0))
    nothing: Tensor = draw(1, 36)
    for make, error, message in [
        (lambda: LearnedOmega(grid=[1.5]), ValueError, "grid: expected"),
        (lambda: LearnedOmega(grid=[1.5, 2.0]), ValueError, "grid: expected"),
        (lambda: LearnedOmega("greedy"), ValueError, "method: expected one of regression"),  # pyrefly: ignore
        (lambda: LearnedOmega("chebcb"), ValueError, "context: expected one"),
        (lambda: LearnedOmega("tsallis-inf", context=(0.0, 1.0)), ValueError, "context: expected none"),
        (lambda: LearnedOmega(context=(1.0, 1.0)), ValueError, "context: expected the least"),
        (lambda: LearnedOmega(seed=-1), ValueError, "seed: expected"),
        (lambda: LearnedOmega().choose(1.0), ValueError, "context: expected none"),
        (lambda: learned.choose(), ValueError, "context: expected a number"),
        (lambda: learned.choose(math.nan), ValueError, "context: expected a number"),
        (lambda: learned.observe(3), RuntimeError, "choose"),
        (lambda: learned.solve(operator(6), nothing, context=0.5, sweeps="jacobi"), ValueError, "sweeps"),  # pyrefly: ignore
    ]:
        with pytest.raises(error, match=message):
            make()
    learned.choose(0.5)
    with pytest.raises(RuntimeError, match="observe"):
        learned.choose(0.5)
    with pytest.raises(ValueError, match="iterations: expected"):
        learned.observe(math.inf)
