"""Equations driven by fractional noise: laws, orders, gradients, controls; what is refused."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    Brownian,
    Controlled,
    Diffusive,
    EulerHeun,
    EulerMaruyama,
    Fractional,
    FractionalHeun,
    FractionalNoise,
    Grid,
    StratonovichHeun,
    brownian,
)
from sciml.solvers.march import March
from sciml.solvers.state import Const
from sciml.solvers.stochastic import Stochastic

DTYPE = torch.float64
KINDS = ["joint", "each"]


class Relaxing(Diffusive):
    """dX = -args[0] X dt + args[1] dB."""

    noise_type = "additive"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -args[0] * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * dw


class Growing(Diffusive):
    """dX = X (cos(t) dt + dB) in Stratonovich's calculus: X = X0 exp(sin t + B); a matrix of states."""

    calculus = "stratonovich"

    def __init__(self, noise_type: Any = "diagonal"):
        self.noise_type = noise_type

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y * torch.cos(t)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y * (dw[:, None] if self.noise_type == "scalar" else dw)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DTYPE)


def free(noise: FractionalNoise, hurst: float) -> tuple[Tensor, ...]:
    """Arguments without drift: X = B."""
    return noise.coefficients(hurst), number(0.0), number(1.0)


@pytest.mark.parametrize(
    ("kind", "past", "hurst"),
    [("I", "fitted", 0.3), ("I", "fitted", 0.8), ("I", "stationary", 0.4), ("II", "fitted", 0.3)],
)
def test_paths_have_the_covariance(kind: Any, past: Any, hurst: float):
    """Within 4.5 standard errors of 10,000 paths, and 0.5 % for what steps of 1/100 miss of the fastest process."""
    noise, count, ts = FractionalNoise(kind, past=past), 10_000, [0.1, 0.5, 1.0]
    term = Fractional(Relaxing(), (1,), (1,))
    y0 = term.start(torch.zeros(count, 1, dtype=DTYPE), noise, hurst, seed=3)
    solver, options = Solver(FractionalHeun(), Grid(n=100)), {"path": Brownian((count, 1), seed=3), "save_at": ts}
    ys = solve(term, y0, 0.0, 1.0, solver, args=free(noise, hurst), **options).ys
    x = term.split(ys)[0][..., 0]
    right = noise.covariance(hurst, ts)
    error = ((right.diagonal()[:, None] * right.diagonal() + right**2) / count).sqrt()
    assert bool(((x @ x.T / count - right).abs() < 4.5 * error + 0.005 * right).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise_type", ["diagonal", "scalar"])
def test_rates_beyond_the_step_are_stable(noise_type: str, kind: Any):
    """Of gamma h = 50. X is exp(sin t + B) along the same B, to the square of the 50 steps; Euler's would blow up."""
    noise = FractionalNoise("II", 1.0, 6, 0.1, 2500.0)
    shape = (3, 2) if noise_type == "diagonal" else (1,)
    term, y0 = Fractional(Growing(noise_type), (3, 2)), torch.ones(40, 3, 2, dtype=DTYPE)
    path, args = Brownian((40, *shape), seed=1), (noise.coefficients(0.6),)
    solver = Solver(FractionalHeun(), Grid(n=50), lanes=kind)
    end = solve(term, term.start(y0, noise, 0.6), 0.0, 1.0, solver, args=args, path=path).ys
    x, processes = term.split(end)
    b = processes.sum(-1)
    right = torch.exp(math.sin(1.0) + (b[:, None] if noise_type == "scalar" else b))
    assert float((x / right - 1).abs().max()) < 0.02
    blown = Solver(EulerHeun(), Grid(n=50), lanes=kind)
    wild = solve(term, term.start(y0, noise, 0.6), 0.0, 1.0, blown, args=args, path=path, throw=False).ys
    assert not float(wild.abs().max()) < 1e6


STEPPERS = [FractionalHeun(), EulerHeun(), StratonovichHeun(), EulerMaruyama()]


@pytest.mark.parametrize("stepper", STEPPERS, ids=lambda s: type(s).__name__)
def test_strong_order_against_the_finest_steps(stepper: Stochastic):
    """All on the same Brownian motion; of rates that the coarsest steps resolve. The noise commutes: order 1."""
    noise, count, steps = FractionalNoise("II", 1.0, 3, 0.5, 10.0), 200, (32, 64, 128, 256)
    inner = Relaxing() if isinstance(stepper, EulerMaruyama) else Growing()
    term, y0 = Fractional(inner, (2,), (2,)), torch.ones(count, 2, dtype=DTYPE)
    args = (noise.coefficients(0.4), number(2.0), number(0.5))
    start, path = term.start(y0, noise, 0.4), Brownian((count, 2), seed=5, cells=2048, dtype=DTYPE)
    ends = [
        term.split(solve(term, start, 0.0, 1.0, Solver(method, Grid(n=n)), args=args, path=path).ys)[0]
        for method, n in (*itertools.product([stepper], steps), (FractionalHeun(), 2048))
    ]
    missed = [float((end - ends[-1]).norm(dim=1).mean()) for end in ends[:-1]]
    slope = -np.polyfit(np.log(steps), np.log(missed), 1)[0]
    assert 0.8 <= slope <= 1.5, (slope, missed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stepper", "past"), [(STEPPERS[0], "fitted"), (STEPPERS[1], "stationary")], ids=str)
def test_gradients_are_those_of_differences(stepper: Stochastic, past: Any, kind: Any):
    """To the Hurst index, the state and the times, through the graph and by replay; the noise's start included."""
    noise = FractionalNoise("I", 1.0, 4, 0.05, 20.0, past)
    term, path = Fractional(Growing(), (2,)), Brownian((3, 2), seed=2)
    lanes = (3,) if kind == "each" else ()
    inputs = [number(0.4), torch.tensor([[1.0, 0.5]] * 3, dtype=DTYPE), torch.full(lanes, 1.2, dtype=DTYPE)]

    def loss(adjoint: Discrete, hurst: Tensor, x: Tensor, t1: Tensor) -> Tensor:
        solver = Solver(stepper, Grid(n=16), adjoint, lanes=kind)
        args = (noise.coefficients(hurst),)
        x, _ = term.split(solve(term, term.start(x, noise, hurst, 7), 0.0, t1, solver, args=args, path=path).ys)
        return (x * torch.arange(1, 7, dtype=DTYPE).reshape(3, 2)).sin().sum()

    found = []
    for adjoint in (Discrete(), Discrete("all")):
        leaves = [x.clone().requires_grad_() for x in inputs]
        found.append(torch.autograd.grad(loss(adjoint, *leaves), leaves))
    for i, (grad, replayed) in enumerate(zip(*found, strict=True)):
        assert torch.allclose(grad, replayed, rtol=1e-9, atol=1e-12)
        ends = [
            loss(Discrete(), *inputs[:i], inputs[i] + sign * 1e-6, *inputs[i + 1 :]) for sign in (1, -1)
        ]  # differences of 1e-6: truncation 1e-12, round-off 1e-10 of the sum
        assert abs(float(grad.sum()) - float(ends[0] - ends[1]) / 2e-6) < 1e-6 * max(1, abs(float(grad.sum())))


def test_entries_can_have_hurst_indices_of_their_own():
    noise = FractionalNoise("I")
    term, path = Fractional(Relaxing(), (2,), (2,)), Brownian((5, 2), seed=1)
    y0, solver = torch.zeros(5, 2, dtype=DTYPE), Solver(FractionalHeun(), Grid(n=20))
    hursts = [0.3, 0.8]
    both, *one = (
        term.split(solve(term, term.start(y0, noise, h), 0.0, 1.0, solver, args=free(noise, h), path=path).ys)[0]
        for h in (torch.tensor(hursts), *hursts)
    )
    for i, x in enumerate(one):
        assert torch.allclose(both[:, i], x[:, i], rtol=1e-6, atol=0)  # of a Hurst index in float32


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_states_of_any_shape_and_number(shape: tuple[int, ...], kind: Any):
    """Of single precision, and none at all; X is exp(sin t + B) of its entry, to what 200 steps leave."""
    noise, term = FractionalNoise("I"), Fractional(Growing(), shape)
    for count in (4, 0):
        start = term.start(torch.ones(count, *shape), noise, 0.6)
        solver, path = Solver(FractionalHeun(), Grid(n=200), lanes=kind), Brownian((count, *shape), seed=3)
        end = solve(term, start, 0.0, 1.0, solver, args=(noise.coefficients(0.6, start),), path=path).ys
        (x, processes), (_, before) = term.split(end), term.split(start)
        assert x.shape == (count, *shape)
        right = (math.sin(1.0) + (processes - before).sum(-1)).exp()
        assert torch.allclose(x, right, rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_march_is_the_eager_one(kind: Any):
    noise, y0 = FractionalNoise("II"), torch.ones(4, 2, dtype=DTYPE)
    term, path, ends = Fractional(Growing(), (2,)), Brownian((4, 2), seed=2, cells=16), []
    for compiled in (None, "loop"):
        hurst = number(0.7).requires_grad_()
        solver = Solver(FractionalHeun(), Grid(n=16), lanes=kind, compile=compiled)
        args = (noise.coefficients(hurst),)
        end = solve(term, term.start(y0, noise, hurst), 0.0, 1.0, solver, args=args, path=path).ys
        ends.append((end, *torch.autograd.grad(end.sum(), hurst)))
    for eager, compiled in zip(*ends, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-9, atol=1e-12)


def refused(message: str, **options: Any) -> None:
    noise = FractionalNoise("II")
    term = Fractional(Relaxing(), (2,), (2,))
    given = {"term": term, "y0": term.start(torch.zeros(3, 2, dtype=DTYPE), noise, 0.4), "args": free(noise, 0.4)}
    given |= {"t0": 0.0, "t1": 1.0, "solver": Solver(FractionalHeun(), Grid(n=8)), "path": Brownian((3, 2))}
    with pytest.raises(ValueError, match=message):
        solve(**(given | options))


def test_mistakes_are_named():
    refused(r"path: expected one of the noise's shape, Brownian\(\(3, 2\)\), got \(3, 12\)", path=Brownian())
    refused(
        r"args: expected FractionalNoise.coefficients\(hurst\) first, of shape \(2, .., 5\), got \(\)",
        args=(number(1.0),),
    )
    refused("term: FractionalHeun expects a Fractional term, got Relaxing", term=Relaxing(), args=(number(1.0),) * 2)
    ito = Growing()
    ito.calculus = "ito"
    with pytest.raises(ValueError, match="integrated in Stratonovich's calculus, found ito"):
        Fractional(ito, (2,))
    with pytest.raises(ValueError, match="noise: expected the shape of a sample of W for additive noise, got None"):
        Fractional(Relaxing(), (2,))
    with pytest.raises(ValueError, match=r"noise: scalar noise is one number for each sample, got \(2,\)"):
        Fractional(Growing("scalar"), (2,), (2,))


@pytest.mark.parametrize("kind", KINDS)
def test_step_does_not_wait_for_the_host(kind: Any, monkeypatch: pytest.MonkeyPatch):
    noise, y0, lanes = FractionalNoise("I"), torch.ones(3, 2, dtype=DTYPE), (3,) if kind == "each" else ()
    term = Controlled(Fractional(Growing(), (2,)), lambda t, y, args: y[:, :2] * t)
    start, solver = term.start(term.term.start(y0, noise, 0.6)), Solver(FractionalHeun(), Grid(n=4))
    t0, t1 = torch.zeros(lanes, dtype=DTYPE), torch.ones(lanes, dtype=DTYPE)
    path = Brownian((3, 2)).within(solver.stepper, solver.controller, t0, t1, start, kind)
    march = March(term, solver.stepper, solver.controller, kind, path=path)
    const = Const(t0, t1, torch.linspace(0.25, 1, 4, dtype=DTYPE), (noise.coefficients(0.6),), path.tensors())
    state, mode = march.start(const, start), FakeTensorMode()
    monkeypatch.setattr(brownian, "_reads", lambda x: False)  # as on a GPU
    fakes = tree_map_only(Tensor, mode.from_tensor, (state, const))
    with mode:
        found = march.advance(*fakes, saves=1)
    right = march.advance(state, const, saves=1)
    assert [(x.shape, x.dtype) for x in tree_leaves(found)] == [(x.shape, x.dtype) for x in tree_leaves(right)]
