"""Controlled equations: the bound on the evidence against the exact evidence of Gaussian processes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.models.latent_dynamics import Control
from sciml.solvers import (
    Brownian,
    Controlled,
    Diffusive,
    EulerMaruyama,
    Fractional,
    FractionalHeun,
    FractionalNoise,
    Given,
    Grid,
    StratonovichHeun,
)
from sciml.solvers.stochastic import Stochastic

DTYPE = torch.float64
STEPS, PATHS, NOISE, TS = 256, 10_000, 0.25, (0.25, 0.5, 0.75, 1.0)
DATA = np.array([0.6, -0.1, 0.5, 1.1])
RATE, SIGMA = 1.5, 0.8


class Relaxing(Diffusive):
    """dX = -RATE X dt + SIGMA dB."""

    noise_type = "additive"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -RATE * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return SIGMA * dw


def system(noise: FractionalNoise | None, hurst: float) -> tuple[np.ndarray, np.ndarray]:
    """F and G of dz = F z dt + G dW for z = (X, Z), or for X alone."""
    if noise is None:
        return np.array([[-RATE]]), np.array([SIGMA])
    w, rates = noise.weights(hurst).numpy(), noise.rates.numpy()
    f = np.diag(np.concatenate([[-RATE], -rates]))
    f[0, 1:] = -SIGMA * rates
    return f, np.concatenate([[SIGMA * w.sum()], w])


def step(f: np.ndarray, g: np.ndarray, h: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transition, what a step's mean slope of W adds, and the covariance that is gained, by Van Loan's method."""
    n = len(f)
    block = np.zeros((2 * n, 2 * n))
    block[:n, :n], block[:n, n:], block[n:, n:] = -f, np.outer(g, g), f.T
    found = expm(block * h)
    move = found[n:, n:].T
    wide = np.zeros((n + 1, n + 1))
    wide[:n, :n], wide[:n, n] = f * h, g
    return move, expm(wide)[:n, n], move @ found[:n, n:]


def evidence(f: np.ndarray, g: np.ndarray) -> float:
    """Log-density of the data at TS, from X = 0 and Z = 0."""
    move, _, gained = step(f, g, 1 / STEPS)  # over longer times Van Loan's method overflows with the fastest rate
    return filtered(move, gained, STEPS)


def filtered(move: np.ndarray, gained: np.ndarray, steps: int) -> float:
    """Log-density of the data by a Kalman filter, from the transition and the covariance that a step gains."""
    mean, cov, total = np.zeros(len(move)), np.zeros_like(move), 0.0
    for j in range(1, steps + 1):
        mean, cov = move @ mean, move @ cov @ move.T + gained
        if j / steps in TS:
            miss, spread = DATA[TS.index(j / steps)] - mean[0], cov[0, 0] + NOISE**2
            total -= 0.5 * (miss**2 / spread + math.log(2 * math.pi * spread))
            mean, cov = mean + cov[:, 0] * miss / spread, cov - np.outer(cov[:, 0], cov[0]) / spread
    return total


def best(f: np.ndarray, g: np.ndarray, steps: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    """The best control, held over each of equal steps."""
    return recursion(*step(f, g, 1 / steps)[:2], steps)


def recursion(move: np.ndarray, push: np.ndarray, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The control of greatest bound, u = offset - gain z and c in every step, by Bellman's recursion from the end.

    A step takes z to ``move z + push w`` where W rises by w.
    """
    h, n = 1 / steps, len(move)
    p, q, gains, offsets, narrowing = np.zeros((n, n)), np.zeros(n), [], [], []
    for j in range(steps, 0, -1):
        if (j / steps) in TS:
            p[0, 0] += 1 / NOISE**2
            q[0] += DATA[TS.index(j / steps)] / NOISE**2
        narrowing.append(push @ p @ push)
        scale = 1 / (1 + h * narrowing[-1])
        gains.append(scale * push @ p @ move)
        offsets.append(scale * push @ q)
        q = move.T @ (q - h * p @ push * offsets[-1])
        p = move.T @ (p - h * scale * np.outer(p @ push, push @ p)) @ move
    gains, offsets, narrowing = (torch.from_numpy(np.stack(x[::-1])) for x in (gains, offsets, narrowing))
    return gains, offsets, narrowing


def transition(noise: FractionalNoise, hurst: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What a step of `FractionalHeun` makes of z, and of a rise of W by 1."""
    args, solver = (noise.coefficients(hurst),), Solver(FractionalHeun(), Grid(n=1))
    points = torch.cat([torch.eye(noise.terms + 1, dtype=DTYPE), torch.zeros(1, noise.terms + 1, dtype=DTYPE)])
    rise = Given(lambda start, end: (points == 0).all(1, keepdim=True).to(DTYPE))  # of 1, from 0
    inner = Fractional(Relaxing(), (1,), (1,))
    ends = solve(inner, points, 0.0, 1 / steps, solver, args=args, path=rise).ys.numpy()
    return ends[:-1].T, ends[-1]


class Feedback:
    """A control from a table."""

    def __init__(self, table: tuple[Tensor, ...], part: float = 1.0, narrow: bool = False):
        self.table, self.part, self.narrow = table, part, narrow

    def __call__(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Any:
        steps = len(self.table[0])
        gain, offset, c = (x[(t.reshape(-1) * steps).round().long().clamp_max(steps - 1)] for x in self.table)
        u = self.part * (offset[:, None] - (gain * y).sum(-1, keepdim=True))
        return (u * (1 + c[:, None] / steps), c[:, None].expand_as(u)) if self.narrow else u


def bound(
    stepper: Stochastic, noise: FractionalNoise | None, hurst: Any, control: Any, lanes: Any = "joint", **options: Any
) -> Tensor:
    """The bound of each path."""
    inner = Relaxing() if noise is None else Fractional(Relaxing(), (1,), (1,))
    term, x0 = (
        Controlled(inner, control, noise=(1,), narrows=options.pop("narrows", getattr(control, "narrow", False))),
        torch.zeros(options.pop("paths", PATHS), 1, dtype=DTYPE),
    )
    y0 = term.start(x0 if noise is None else inner.start(x0, noise, hurst))
    args = () if noise is None else (noise.coefficients(hurst),)
    path = options.pop("path", Brownian((len(x0), 1), seed=2))
    solver = Solver(stepper, Grid(n=options.pop("steps", STEPS)), lanes=lanes, **options)
    states = solve(term, y0, 0.0, 1.0, solver, args=args, path=path, save_at=TS).ys
    states = states.movedim(1, 0) if lanes == "each" else states
    y, diverged = term.split(states)
    miss = (torch.from_numpy(DATA)[:, None] - y[..., 0]) / NOISE
    return (-0.5 * miss**2 - math.log(NOISE * math.sqrt(2 * math.pi))).sum(0) - diverged[-1]


CASES = [
    (FractionalHeun(), FractionalNoise("II"), 0.35),
    (FractionalHeun(), FractionalNoise("II"), 0.8),
    (EulerMaruyama(), FractionalNoise("II", 1.0, 4, 0.1, 10.0), 0.7),
    (StratonovichHeun(), FractionalNoise("II", 1.0, 4, 0.1, 10.0), 0.7),
    (EulerMaruyama(), None, 0.5),
]


@pytest.mark.parametrize(("stepper", "noise", "hurst"), CASES)
def test_bound_is_the_evidence_under_the_best_control(stepper: Stochastic, noise: Any, hurst: float):
    """Never above it, beyond 4 standard errors and a discretisation error of 0.5 %, and within 5 %; else below."""
    f, g = system(noise, hurst)
    right, table = evidence(f, g), best(f, g)
    value = bound(stepper, noise, hurst, Feedback(table))
    error = 4 * float(value.std()) / math.sqrt(PATHS)
    slack = 0.005 * abs(right)
    assert error < 0.05 * abs(right)
    assert right - 0.05 * abs(right) < float(value.mean()) < right + error + slack, (right, float(value.mean()), error)
    half = bound(stepper, noise, hurst, Feedback(table, 0.5), paths=2000)
    assert float(half.mean()) < right - 0.05 * abs(right)


@pytest.mark.parametrize(("hurst", "lost"), [(0.35, 0.15), (0.7, 0.015)])
def test_bound_of_coarse_steps_is_the_evidence_where_noise_is_made_narrower(hurst: float, lost: float):
    """In 32 steps within 3 standard errors and a discretisation error of .5 %, where a drift alone loses that much."""
    noise, steps = FractionalNoise("II"), 32
    f, g = system(noise, hurst)
    right, table = evidence(f, g), best(f, g, steps)
    for lanes in ("joint", "each"):
        value = bound(FractionalHeun(), noise, hurst, Feedback(table, narrow=True), lanes, steps=steps)
        error = 3 * float(value.std()) / math.sqrt(PATHS)
        assert error < 0.02 * abs(right)
        assert abs(float(value.mean()) - right) < error + 0.005 * abs(right), (right, float(value.mean()), error)
    plain = bound(FractionalHeun(), noise, hurst, Feedback(table), steps=steps)
    assert float(plain.mean()) < right - lost * abs(right)


@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.7])
def test_mean_bound_of_the_best_control_is_the_evidence_of_the_discrete_model(hurst: float):
    """To round-off: along a direction of W's increments the bound is a parabola, so that three points give its mean.

    The discrete model is that of the stepper's own transition. Of neighbouring controls the bound is less.
    """
    noise, steps = FractionalNoise("II"), 16
    move, push = transition(noise, hurst, steps)
    table = recursion(move, push, steps)
    root = steps**-0.5 * torch.eye(steps, dtype=DTYPE)
    increments = torch.cat([0 * root[:1], root, -root]).T[..., None]  # of all paths, by steps
    path = Given(lambda start, end: increments[round(steps * float(start))])

    def mean(*table: Tensor) -> float:
        control = Feedback(table, narrow=True)
        values = bound(FractionalHeun(), noise, hurst, control, paths=2 * steps + 1, steps=steps, path=path)
        return float(values[0] + 0.5 * (values[1:] - values[0]).sum())

    right = filtered(move, np.outer(push, push) / steps, steps)
    found = mean(*table)
    assert abs(found - right) < 1e-10 * abs(right)
    for k, part in enumerate(table):
        assert mean(*table[:k], 1.01 * part, *table[k + 1 :]) < found - 1e-7


def test_learnt_control_of_latent_models_reaches_the_evidence_of_the_discrete_model():
    """In 150 steps of Adam; never above it beyond 3 standard errors of 10,000 paths, and within 5 %."""
    noise, hurst, steps = FractionalNoise("II"), 0.3, 16
    torch.manual_seed(0)
    net, ts = Control(1, noise.terms, 4, 32).double(), torch.tensor([0.0, *TS], dtype=DTYPE)
    contexts = torch.nn.Parameter(torch.randn(1, 5, 4, dtype=DTYPE))
    weights = [*net.parameters(), contexts]

    def control(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return net(t, y, (*args, ts, contexts.expand(len(y), -1, -1)))

    def values(paths: int, seed: int) -> Tensor:
        path = Brownian((paths, 1), seed)
        return bound(FractionalHeun(), noise, hurst, control, paths=paths, steps=steps, path=path, narrows=True)

    optimiser = torch.optim.Adam(weights, 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 150)
    for seed in range(150):
        optimiser.zero_grad()
        (-values(64, seed).mean()).backward()
        torch.nn.utils.clip_grad_norm_(weights, 10.0, error_if_nonfinite=True)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        value = values(PATHS, -1)
    move, push = transition(noise, hurst, steps)
    right, error = filtered(move, np.outer(push, push) / steps, steps), 3 * float(value.std()) / math.sqrt(PATHS)
    assert error < 0.03 * abs(right)
    assert right - 0.05 * abs(right) < float(value.mean()) < right + error


def test_derivative_of_the_bound_is_that_of_the_evidence():
    """At the best control, which may be held fixed there; within 4 standard errors of 10,000 paths.

    Path by path from differences of 1e-4 on the same noise, with whose mean over some of them backpropagation agrees to
    the square of that.
    """
    noise, hurst, h = FractionalNoise("II"), 0.7, 1e-4
    control = Feedback(best(*system(noise, hurst)))
    upper, lower = (bound(FractionalHeun(), noise, hurst + sign * h, control) for sign in (1, -1))
    slopes = (upper - lower) / (2 * h)
    for adjoint in (Discrete(), Discrete("all")):
        leaf = torch.tensor(hurst, dtype=DTYPE, requires_grad=True)
        value = bound(FractionalHeun(), noise, leaf, control, paths=200, adjoint=adjoint)
        grad = float(torch.autograd.grad(value.mean(), leaf)[0])
        assert abs(grad - float(slopes[:200].mean())) < 1e-6 * float(slopes.abs().max())
    right = (evidence(*system(noise, hurst + h)) - evidence(*system(noise, hurst - h))) / (2 * h)
    error = float(slopes.std()) / math.sqrt(PATHS)
    assert 4 * error < 0.2 * abs(right)
    assert abs(float(slopes.mean()) - right) < 4 * error


def test_lanes_that_step_by_themselves_give_the_same():
    noise = FractionalNoise("II")
    control = Feedback(best(*system(noise, 0.6)))
    joint, each = (bound(FractionalHeun(), noise, 0.6, control, kind, paths=5) for kind in ("joint", "each"))
    assert torch.allclose(joint, each, rtol=1e-9, atol=0)


def test_states_of_any_shape_diverge_by_what_the_control_costs():
    """A control of 2 on each of 3 x 2 entries for half a unit of time costs 6."""

    class Wiener(Relaxing):
        noise_type = "diagonal"

        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            assert t.ndim in (0, y.ndim)
            return 0 * y

    term, solver = Controlled(Wiener(), lambda t, y, args: 2 + 0 * y, (3, 2)), Solver(EulerMaruyama(), Grid(n=4))
    for lanes in ("joint", "each"):
        solver = Solver(EulerMaruyama(), Grid(n=4), lanes=lanes)
        y0 = term.start(torch.zeros(4, 3, 2, dtype=DTYPE))
        y, diverged = term.split(solve(term, y0, 0.0, 0.5, solver, path=Brownian((4, 3, 2))).ys)
        assert y.shape == (4, 3, 2)
        assert torch.allclose(diverged, torch.full_like(diverged, 6.0), rtol=1e-12)


def test_mistakes_are_named():
    def refused(message: str, control: Any, stepper: Any, **options: Any) -> None:
        term = Controlled(Relaxing(), control, noise=(2,))
        y0, solver = term.start(torch.zeros(3, 2)), Solver(stepper, Grid(n=4))
        with pytest.raises(ValueError, match=message):
            solve(term, y0, 0.0, 1.0, solver, path=Brownian((3, 2)), **options)

    wrong = lambda t, y, args: y[:, :1]  # noqa: E731
    refused(r"control: expected values of the noise's shape \(3, 2\), got \(3, 1\)", wrong, EulerMaruyama())
    refused("term: FractionalHeun expects a Fractional term, got Controlled", wrong, FractionalHeun())
    with pytest.raises(ValueError, match="noise: expected the shape of a sample of W for additive noise"):
        Controlled(Relaxing(), wrong)
    pair = lambda t, y, args: (y, y)  # noqa: E731
    for narrows, control, kind, message in (
        (True, pair, ValueError, "narrows: expected False but for FractionalHeun"),
        (True, wrong, TypeError, r"control: expected a pair \(u, c\) with narrows=True, got Tensor"),
        (False, pair, TypeError, "control: expected a tensor with narrows=False, got tuple"),
    ):
        term = Controlled(Relaxing(), control, noise=(2,), narrows=narrows)
        with pytest.raises(kind, match=message):
            solve(
                term, term.start(torch.zeros(3, 2)), 0.0, 1.0, Solver(EulerMaruyama(), Grid(n=4)), path=Brownian((3, 2))
            )
    with pytest.raises(TypeError, match="control: expected a callable"):
        Controlled(Relaxing(), None)  # pyrefly: ignore
