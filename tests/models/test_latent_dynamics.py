"""Latent dynamics: the noise is what its slot says, contexts rule until their end, gradients reach everything."""

import math

import pytest
import torch
from torch import Tensor

from sciml.models import LatentDynamics, LatentFSDE, LatentVideo
from sciml.models.latent import normal_divergence
from sciml.models.latent_dynamics import upcoming

TS = torch.linspace(0, 2, 6, dtype=torch.float64)


def dynamics(noise: str = "fractional", **options: object) -> LatentDynamics:
    torch.manual_seed(0)
    return LatentDynamics(2, 4, 8, noise, horizon=2.0, **options)  # pyrefly: ignore


def lively(model: LatentDynamics) -> LatentDynamics:
    """With a control that is not 0."""
    if model.control is not None:
        torch.nn.init.normal_(model.control.head.weight, std=0.3)
    return model


@pytest.mark.parametrize(("noise", "hurst"), [("brownian", 0.5), ("fractional", 0.75), ("none", 0.5)])
def test_paths_without_drift_have_the_variance_of_their_noise(noise: str, hurst: float):
    """t^2H times g^2, within 4 standard errors of 4000 samples and 2 % for five processes and ten steps."""
    model = dynamics(noise, hurst=hurst).double()
    with torch.no_grad():
        model.drift.layers[-1].weight.zero_()
        model.diffusion.outer.zero_()  # g is then the same everywhere
        model.prior_start[1] = -20
        z = model.sample(2000, TS)
        spread = float(model.diffusion(z[:1, 0])[0, 0]) * (noise != "none")
    right = spread**2 * TS ** (2 * hurst)
    assert torch.allclose(z.var((0, 2)), right, rtol=4 / math.sqrt(2000) + 0.02, atol=1e-12)


def test_without_noise_a_posterior_diverges_by_its_start_alone():
    model, start = dynamics("none"), torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    z, divergence = model.posterior(start, torch.randn(3, 6, 4), TS)
    assert z.shape == (3, 6, 2)
    assert torch.equal(divergence, normal_divergence(*start.unbind(1), *model.prior_start).sum(-1))


def test_context_is_that_of_the_next_observation_and_ends_with_the_last():
    ts, contexts = torch.tensor([0.0, 1.0, 3.0]), torch.arange(3.0).reshape(1, 3, 1)
    for t, context, share, ruled in (
        (0.0, 1, 0.0, 1),
        (0.5, 1, 0.5, 1),
        (1.0, 2, 0.0, 1),
        (2.5, 2, 0.75, 1),
        (3.0, 2, 1, 0),
    ):
        found = upcoming(torch.tensor(t), ts, contexts)
        right = torch.tensor([context, share, ruled], dtype=torch.float32)
        assert torch.allclose(torch.cat([x.reshape(1) for x in found]), right, atol=1e-4)


def test_control_grows_in_proportion_to_large_states_and_towards_an_observation():
    """As a linear drift does: one that grows with the square of the state makes paths explode within the time."""
    control, ts = lively(dynamics()).control, torch.tensor([0.0, 1.0])
    assert control is not None
    y, contexts = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)), torch.zeros(5, 2, 4)
    with torch.no_grad():
        large, larger = (control(torch.tensor(0.0), size * y, ((), ts, contexts))[0] / size for size in (1e4, 1e6))
        early, late, last = (control(torch.tensor(t), y, ((), ts, contexts))[0] for t in (0.0, 0.95, 1.0))
    assert torch.allclose(large, larger, rtol=0.01, atol=0.01)
    assert float(late.square().mean()) > 9 * float(early.square().mean())
    assert not bool(last.any())


@pytest.mark.parametrize("noise", ["fractional", "brownian"])
def test_posterior_that_sees_the_first_times_goes_on_by_the_prior(noise: str):
    """What it diverges is what it has diverged at the last of them."""
    model = lively(dynamics(noise))
    start = torch.zeros(3, 2, model.starts)
    contexts = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    z, divergence = model.posterior(start, contexts, TS)
    other, changed = model.posterior(start, torch.cat([contexts, torch.zeros(3, 2, 4)], 1), TS)
    assert torch.allclose(z[:, :4], other[:, :4], atol=1e-3)  # times that steps start at are rounded
    assert bool((z[:, 4:] != other[:, 4:]).any())
    assert bool((changed > divergence).all())


@pytest.mark.parametrize("noise", ["fractional", "brownian", "none"])
def test_gradients_reach_all_parameters_of_a_video_model(noise: str):
    model = LatentVideo(lively(dynamics(noise)), size=8, content=3, features=8, width=2)
    frames = torch.rand(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    fit = model.posterior(frames, 1)
    (-fit.elbo.mean()).backward()
    for name, p in model.named_parameters():
        unused = name == "dynamics.raw_hurst" and noise != "fractional"
        unused = unused or (noise == "none" and name.startswith("dynamics.diffusion"))
        assert unused or (p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any())), name


def test_forecast_sees_the_frames_given_and_draws_what_follows():
    model = LatentVideo(lively(dynamics()), size=8, content=3, features=8, width=2)
    frames = torch.rand(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    one, again, other = (model.forecast(frames, 8, seed) for seed in (1, 1, 2))
    assert one.shape == (2, 8, 1, 8, 8)
    assert torch.equal(one, again)
    assert not torch.equal(one[:, 5:], other[:, 5:])
    with pytest.raises(ValueError, match="total: expected at least the 5 frames given"):
        model.forecast(frames, 4)


def test_bound_lies_below_the_evidence():
    """Of one observation at the end, whose law under the prior is that of many paths of it."""
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    latent = LatentFSDE(1, lively(dynamics(steps=4)), width=8, noise=0.5).double()
    ys, mask = torch.zeros(400, 2, 1, dtype=torch.float64), torch.zeros(400, 2, 1, dtype=torch.bool)
    ys[:, 1], mask[:, 1] = 0.3, True
    with torch.no_grad():
        bound = latent.posterior(ts, ys, mask, seed=1).elbo
        means = latent.sample(20_000, ts, seed=2)[:, 1]
        noise = latent.log_noise.exp()
        logs = (-0.5 * ((ys[0, 1] - means) / noise) ** 2 - noise.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    evidence = float(logs.logsumexp(0) - math.log(len(logs)))
    assert float(bound.mean() + 4 * bound.std() / math.sqrt(len(bound))) < evidence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "white"}, "noise: expected one of fractional, brownian, none, got 'white'"),
        ({"hurst": 1.0}, "hurst: expected a number between 0 and 1, got 1.0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
    ],
)
def test_impossible_slots_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        LatentDynamics(**options)  # pyrefly: ignore


def test_trajectories_need_the_same_times():
    model, ys = LatentFSDE(1, dynamics()), torch.zeros(2, 3, 1)
    times: Tensor = torch.linspace(0, 1, 3).expand(2, 3)
    with pytest.raises(ValueError, match="ts: expected the same times"):
        model.posterior(times, ys, torch.ones_like(ys, dtype=torch.bool))
