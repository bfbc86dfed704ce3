"""Forecasts by stochastic interpolants, where the velocity is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sciml import Grid, Solver, solve
from sciml.models import FNO, MLP, ForecastInterpolant
from sciml.models.forecast import _Bridge
from sciml.solvers import Brownian, EulerMaruyama

COUNT, NOISE = 20_000, 0.7
SHIFT = torch.tensor([[0.5, -0.4], [0.3, 0.8]], dtype=torch.float64)
DEVIATION = torch.tensor([0.3, 1.2], dtype=torch.float64)


def parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, x0 and t of a net's input."""
    return z[:, :2], z[:, 2:4], z[:, 4:]


class Normal(nn.Module):
    """b where x1 given x0 is normal with mean x0 SHIFT and DEVIATION: means of jointly normal variables."""

    def __init__(self, off: float = 0.0):
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        x, x0, t = parts(z)
        mean, variance = x0 @ SHIFT, DEVIATION**2
        beyond = (x - (1 - t) * x0 - t * mean) / (t * variance + NOISE**2 * (1 - t) ** 2)
        return mean + variance * beyond - x0 - NOISE**2 * (1 - t) * beyond + self.off * x.cos()


class TwoWays(nn.Module):
    """b where each entry of x1 is that of x0 plus or minus 1, with even chances: a mean weighted by Bayes' formula."""

    def forward(self, z: Tensor) -> Tensor:
        x, x0, t = parts(z)
        deviation = NOISE * (1 - t) * t.sqrt()
        up = torch.sigmoid((2 * t * (x - x0) / deviation**2).nan_to_num(0.0))  # of (x - x0 - t)^2 and (x - x0 + t)^2
        step = 2 * up - 1
        return step - ((x - x0 - t * step) / (1 - t).clamp_min(1e-12))


def pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(count, 2, generator=generator, dtype=torch.float64) + 1
    return x0, x0 @ SHIFT + DEVIATION * torch.randn(count, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("solver", [None, Solver(EulerMaruyama(), Grid(n=256))])
def test_forecasts_have_the_law_of_what_comes(solver):
    """Mean, covariance and dependence on x0, within 4 standard errors and what steps miss."""
    model = ForecastInterpolant(Normal(), NOISE, solver=solver)
    x0 = pairs(COUNT)[0]
    with torch.no_grad():
        x1 = model.forecast(x0, seed=3)[0]
    rest = (x1 - x0 @ SHIFT) / DEVIATION
    slack = 4 / math.sqrt(COUNT) + 0.004
    assert float(rest.mean(0).abs().max()) < slack
    assert float((rest.T @ rest / COUNT - torch.eye(2)).abs().max()) < 2 * slack
    assert float((rest.T @ x0 / COUNT).abs().max()) < 2 * slack
    assert model.stats.nfe.sum() == 256 if solver else 32


def test_steps_that_grow_shorter_leave_no_noise_where_little_is_unknown(monkeypatch):
    """A 70th and a 700th of the noise: 1.08 and 2.8 times the deviation; equal steps leave 1.6 and 27 times it."""
    monkeypatch.setattr("tests.models.test_forecast.DEVIATION", torch.tensor([1e-3, 1e-2], dtype=torch.float64))
    model, x0 = ForecastInterpolant(Normal(), NOISE), pairs(COUNT)[0]
    with torch.no_grad():
        rest = (model.forecast(x0)[0] - x0 @ SHIFT) / DEVIATION
    assert float(rest[:, 0].std()) < 3
    assert float(rest[:, 1].std()) < 1.1


def test_laws_of_two_peaks_are_met():
    model = ForecastInterpolant(TwoWays(), NOISE, steps=64)
    x0 = torch.linspace(-2, 2, COUNT, dtype=torch.float64)[:, None].expand(-1, 2)
    step = model.forecast(x0)[0] - x0
    assert float((step.abs() - 1).abs().mean()) < 0.01
    assert float((step > 0).double().mean(0).sub(0.5).abs().max()) < 4 * 0.5 / math.sqrt(COUNT)
    assert abs(float(torch.corrcoef(torch.stack([(step[:, 0] > 0).double(), x0[:, 0]]))[0, 1])) < 4 / math.sqrt(COUNT)


def test_the_objective_is_least_at_the_velocity():
    """Its slope there is 0 within 4 standard errors of 50 batches; off by d it rises by the mean square of d cos x."""
    x0, x1 = pairs(COUNT)
    slopes, rises = [], []
    for k, (state, later) in enumerate(zip(x0.chunk(50), x1.chunk(50), strict=True)):
        nets = [Normal(off) for off in (0.0, 0.3)]
        models = [ForecastInterpolant(net, NOISE) for net in nets]
        losses = [model.objective(state, later, torch.Generator().manual_seed(k)) for model in models]
        slopes.append(torch.autograd.grad(losses[0], nets[0].off)[0])
        rises.append((losses[1] - losses[0]).detach() - 0.3 * slopes[-1])  # the slope is noise of mean 0
    slopes, rises = torch.stack(slopes), torch.stack(rises)
    assert abs(float(slopes.mean())) < 4 * float(slopes.std()) / math.sqrt(50)
    assert float(slopes.std()) / math.sqrt(50) < 0.02
    assert 0.3 * 0.09 < float(rises.mean()) < 0.7 * 0.09  # cos^2 is about a half


def test_steps_with_given_numbers_are_those_of_the_solver():
    torch.manual_seed(0)
    model, state = ForecastInterpolant(MLP(5, 2), NOISE, steps=8).double(), torch.randn(6, 2, dtype=torch.float64)
    path = Brownian((6, 2), 4, cells=1024, areas=True, dtype=torch.float64)
    expected = solve(_Bridge(model), state, 0.0, 1.0, model.solver, args=(state,), path=path).ys
    ends = (1 - (1 - torch.arange(9, dtype=torch.float64) / 8) ** 1.5).tolist()
    steps = [(t1 - t0, path(t0, t1)) for t0, t1 in pairwise(ends)]
    normal = torch.stack([torch.stack([s.w / math.sqrt(h), s.h / math.sqrt(h / 12)], 1) for h, s in steps], 1)
    assert_close(model(state, normal), expected, rtol=0, atol=1e-13)
    batch = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (state[:2], normal[:2]), dynamic_shapes=(batch, batch)).module()
    assert_close(exported(state, normal), expected, rtol=0, atol=1e-13)


def test_fields_and_members():
    torch.manual_seed(0)
    model, state = ForecastInterpolant(FNO(3, 1, [4], width=8, layers=2)), torch.randn(5, 1, 16)
    with torch.no_grad():
        found = model.forecast(state, members=3, seed=1)
        other = model.forecast(state, members=3, seed=2)
    assert found.shape == (3, 5, 1, 16)
    assert torch.equal(model.forecast(state, members=3, seed=1), found)
    assert_close(model.forecast(state[:2], members=3, seed=1).detach(), found[:, :2], rtol=0, atol=1e-5)
    assert float((other - found).abs().min()) > 0
    assert float((found[0] - found[1]).abs().mean()) > 0.1
    loss = model.objective(state, state.flip(-1))
    assert model.stats is None
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="noise: expected a positive number, got 0"):
        ForecastInterpolant(MLP(5, 2), noise=0)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match=f"steps: expected a whole number from 1 on, got {steps}"):
            ForecastInterpolant(MLP(5, 2), steps=steps)
    with pytest.raises(ValueError, match="solver: expected a stepper for additive noise, as ShARK, got Tsit5"):
        ForecastInterpolant(MLP(5, 2), solver=Solver())
    with pytest.raises(ValueError, match="members: expected at least 1, got -1"):
        ForecastInterpolant(MLP(5, 2)).forecast(torch.zeros(4, 2), members=-1)
    with pytest.raises(ValueError, match=r"later: expected the states' shape \(4, 2\), got \(4, 1\)"):
        ForecastInterpolant(MLP(5, 2)).objective(torch.zeros(4, 2), torch.zeros(4, 1))
