import pytest
import torch

from sciml.models import LatentDynamics, LatentFSDE, LatentODE, LatentSDE, LatentVideo
from sciml.models.draws import own_normals
from sciml.solvers import PID, SRIW1, Grid
from sciml.solvers.solve import Solver

TS = torch.linspace(0, 1, 6).double()


def dynamics():
    return LatentDynamics(2, 4, 8, hurst=0.7, steps=1)


MODELS = {
    "ode": lambda: LatentODE(2, latent=3, width=8, solver=Solver(controller=Grid(n=5))),
    "sde": lambda: LatentSDE(2, latent=3, context=4, width=8, solver=Solver(SRIW1(), Grid(n=5))),
    "sde_each": lambda: LatentSDE(2, 3, 4, 8, solver=Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), lanes="each")),
    "fsde": lambda: LatentFSDE(2, dynamics(), width=8),
    "video": lambda: LatentVideo(dynamics(), size=8, content=3, features=8, width=2),
}


def fit(model, ys, seed):
    if isinstance(model, LatentVideo):
        return model.posterior(ys.unflatten(-1, (1, 1, 2)).repeat(1, 1, 1, 8, 4), seed)
    return model.posterior(TS, ys, torch.ones_like(ys, dtype=torch.bool), seed)


@pytest.mark.parametrize("name", MODELS)
def test_draws_of_a_sample_are_those_of_its_seed(name):
    torch.manual_seed(0)
    model, ys, seeds = MODELS[name](), torch.randn(1, 6, 2).expand(7, 6, 2), torch.tensor([5, 3, 8, 0, 2, 5, 1])
    with torch.no_grad():
        whole = fit(model, ys, seeds)
        for part in (slice(4), slice(4, 7), torch.tensor([6, 2])):
            for one, other in zip(fit(model, ys[part], seeds[part]), whole, strict=True):
                torch.testing.assert_close(one, other[part], rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert len(whole.log_likelihood.round(decimals=3).unique()) == 6  # two have the same seed


def test_normals_are_normal_and_their_own():
    seeds, x = torch.arange(20000), own_normals(torch.arange(20000), 5)
    assert x.shape == (20000, 5)
    assert (x.mean(0).abs() < 0.04).all()  # 5 deviations
    off = torch.corrcoef(torch.cat([x, own_normals(seeds, 5, purpose=1)], 1).T) - torch.eye(10)
    assert off.abs().max() < 0.04
    assert ((x.square().mean(0) - 1).abs() < 0.05).all()
    assert torch.equal(own_normals(seeds, 4), x[:, :4])
