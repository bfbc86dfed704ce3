"""Latent stochastic equations: the bound is one, its parts are right, noise is a function of its seed."""

import math

import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver
from sciml.models import CoordinateDiffusion, LatentSDE
from sciml.models.latent import normal_divergence
from sciml.models.latent_sde import Posterior
from sciml.solvers import PID, SOSRI2, SRIW1, Backsolve, Brownian, Grid, Milstein

TS = torch.linspace(0, 1, 6)


def model(**options: object) -> LatentSDE:
    torch.manual_seed(0)
    return LatentSDE(channels=2, latent=3, context=4, width=8, **options)


def data(count: int = 5) -> tuple[Tensor, Tensor]:
    ys = torch.randn(count, len(TS), 2, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(ys.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    return ys, mask


def test_divergence_of_normal_distributions_is_that_of_torch():
    draw = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, log_std, other, log_other = draw
    normal = torch.distributions.Normal
    right = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(other, log_other.exp()))
    assert torch.allclose(normal_divergence(mean, log_std, other, log_other), right)


@pytest.mark.parametrize("stepper", [SOSRI2(), SRIW1()])
def test_watched_solves_tell_stiffness_where_the_stepper_does(stepper: SOSRI2):
    latent, (ys, mask) = model(solver=Solver(stepper, PID(1e-2, 1e-2))), data()
    with torch.no_grad():
        right = latent.posterior(TS, ys, mask).predictions
        assert latent.stiffness is None
        latent.watched = True
        assert torch.equal(latent.posterior(TS, ys, mask).predictions, right)
    assert (latent.stiffness is not None and latent.stiffness > 0) == isinstance(stepper, SOSRI2)


def test_each_coordinate_has_a_diffusion_of_its_own_within_bounds():
    torch.manual_seed(0)
    diffusion, z = CoordinateDiffusion(3, scale=2.0).double(), torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(diffusion, z)
    assert torch.equal(jacobian, jacobian.diagonal().diag())
    assert bool(jacobian.diagonal().ne(0).all())
    far = diffusion(1e6 * torch.randn(100, 3, dtype=torch.float64))
    assert bool(((far > 0) & (far <= 2)).all())


def test_missing_observations_take_no_part():
    ys, mask = data()
    fits = [model().posterior(TS, y, mask, seed=3) for y in (ys, ys.where(mask, 1e3), ys.where(mask, torch.nan))]
    for other in fits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, fits[0], strict=True))
    latent = model()
    latent.posterior(TS, ys.where(mask, torch.nan), mask).elbo.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in latent.parameters())
    nothing = model().posterior(TS, ys, torch.zeros_like(mask))
    assert not bool(nothing.log_likelihood.any())


def test_later_observations_tell_the_start_and_earlier_ones_do_not_tell_the_end():
    ys, mask = data()
    contexts = lambda ys: model().contexts(TS, ys, torch.ones_like(mask))  # noqa: E731
    first, last = ys.clone(), ys.clone()
    first[:, 0] += 1
    last[:, -1] += 1
    assert torch.equal(contexts(first)[:, 1:], contexts(ys)[:, 1:])
    assert bool((contexts(last) != contexts(ys)).any(-1).all())


def test_seed_decides_the_paths():
    ys, mask = data()
    one, again, other = (model().posterior(TS, ys, mask, seed).predictions for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(model().sample(4, TS, 5), model().sample(4, TS, 5))
    assert not torch.equal(model().sample(4, TS, 5), model().sample(4, TS, 5, noisy=True))


def test_posterior_that_is_the_prior_does_not_diverge():
    latent = model()
    with torch.no_grad():
        for p in latent.start.parameters():
            p.zero_()
        weight = latent.drift.layers[0].weight
        weight.zero_()
        weight[:, :3] = latent.prior.layers[0].weight
    own, prior = latent.drift.state_dict(), latent.prior.state_dict()
    latent.drift.load_state_dict(
        {name: own[name] if own[name].ndim == 2 and "0" in name else prior[name] for name in own}
    )
    assert float(latent.posterior(TS, *data()).kl.detach().abs().max()) < 1e-9


def test_divergence_of_the_path_is_the_integral_of_what_the_drifts_differ_by():
    """Against a sum over fine steps of the same path, of order 1 in the step: h times its derivative."""
    n = 512
    latent = model(solver=Solver(SRIW1(), Grid(n=n))).double()
    ys, mask = data()
    ys, ts = ys.double(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys, mask = ys[:, :2], mask[:, :2]
    with torch.no_grad():
        contexts = latent.contexts(ts, ys, mask)
        mean, log_std = latent.start(contexts[:, 0]).chunk(2, -1)
        z = mean + log_std.exp() * torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
        term, path = Posterior(latent), Brownian((5, 4), 4, cells=n, areas=True, dtype=torch.float64)
        total = torch.zeros(5, dtype=torch.float64)
        for k in range(n):
            t, dw = torch.tensor(k / n, dtype=torch.float64), path(k / n, (k + 1) / n).w
            y = torch.cat([z, total[:, None]], 1)
            step = term.drift(t, y, (ts - 1e-6, contexts)) / n + term.diffuse(t, y, dw, ())
            z, total = z + step[:, :3], total + step[:, 3]
        start = normal_divergence(mean, log_std, *latent.prior_start).sum(-1)
        found = latent.posterior(ts, ys, mask, seed=4).kl - start
    assert float(((found - total) / total).abs().max()) < 0.05


def test_bound_lies_below_the_evidence():
    """Of one observation at the end, whose law under the prior is that of many paths of it."""
    latent, ts = model(noise=0.5).double(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys, mask = torch.zeros(400, 2, 2, dtype=torch.float64), torch.zeros(400, 2, 2, dtype=torch.bool)
    ys[:, 1], mask[:, 1] = torch.tensor([0.3, -0.2]), True
    with torch.no_grad():
        bound = latent.posterior(ts, ys, mask, seed=1).elbo
        means = latent.sample(20_000, ts, seed=2)[:, 1]
        noise = latent.log_noise.exp()
        logs = (-0.5 * ((ys[0, 1] - means) / noise) ** 2 - noise.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    evidence = float(logs.logsumexp(0) - math.log(len(logs)))
    assert float(bound.mean() + 4 * bound.std() / math.sqrt(len(bound))) < evidence


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_gradients_reach_all_parameters(lanes: str):
    latent = model(solver=Solver(SRIW1(), PID(rtol=1e-1, atol=1e-1), lanes=lanes))
    (-latent.posterior(TS, *data()).elbo.mean()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in latent.parameters())
    assert all(bool(p.grad.any()) for p in latent.parameters())


def test_times_of_their_own_need_lanes_of_their_own():
    ys, mask = data()
    own = TS * torch.linspace(0.5, 1, 5)[:, None]
    with pytest.raises(ValueError, match=r"solver: expected lanes='each' for times \(5, 6\) of each sample's own"):
        model().posterior(own, ys, mask)
    each = model(solver=Solver(SRIW1(), PID(rtol=1e-1, atol=1e-1), lanes="each"))
    together = each.posterior(TS.expand(5, 6), ys, mask).elbo
    assert torch.allclose(together, each.posterior(TS, ys, mask).elbo, rtol=1e-5)
    assert each.posterior(own, ys, mask).predictions.shape == (5, 6, 2)


def test_impossible_scales_are_refused():
    with pytest.raises(ValueError, match="noise: expected a positive deviation, got 0"):
        model(noise=0.0)
    with pytest.raises(ValueError, match="diffusion: expected a number above"):
        model(diffusion=0.0)


def test_bound_trains_under_the_continuous_adjoint():
    """Its gradient, of the encoder too, comes to that of the discrete solution by order one."""
    ts, (ys, mask), off = torch.linspace(0, 1, 6, dtype=torch.float64), data(), []
    for n in (20, 80):
        grads = []
        for adjoint in (Backsolve(), Discrete("all")):
            latent = model(solver=Solver(Milstein(), Grid(n=n), adjoint)).double()
            latent.posterior(ts, ys.double(), mask, seed=3).elbo.sum().backward()
            grads.append(torch.cat([p.grad.reshape(-1) for p in latent.parameters()]))
        off.append(float((grads[0] - grads[1]).norm() / grads[1].norm()))
    assert off[1] < 0.01
    assert off[0] > 2.5 * off[1]
