"""Latent ODEs: the bound is the evidence where the posterior is exact, gaps take no part, regularisers act."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sciml import PID, Grid, Solver, Tsit5, solve
from sciml.models import STEER, KineticRegularizer, LatentODE, SolverRegularizer, TaylorRegularizer
from sciml.models.encoders import ODERNN, ObservedGRU
from sciml.solvers import RK4

TS = torch.linspace(0, 1, 6)
ENCODERS = ["ode_rnn", "gru"]


def model(**options: object) -> LatentODE:
    torch.manual_seed(0)
    return LatentODE(channels=2, width=8, **{"latent": 3, **options})


def data(count: int = 5) -> tuple[Tensor, Tensor]:
    ys = torch.randn(count, len(TS), 2, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(ys.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    return ys, mask


class Growth(nn.Module):
    """dz/dt = z / 2."""

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return 0.5 * z


def linear() -> tuple[LatentODE, Tensor, Tensor, Tensor]:
    """A model whose observations are normal, their means at z0 = 0, how these grow with z0, and observations."""
    latent = model(latent=1, noise=0.4, field=Growth(), solver=Solver(Tsit5(), PID(1e-9, 1e-9))).double()
    with torch.no_grad():
        latent.prior_start.copy_(torch.tensor([[0.3], [-0.2]]))
        latent.log_noise.add_(torch.tensor([0.0, 0.5]))
        at_0 = latent.decoder.bias.expand(6, 2)
        slope = torch.exp(TS.double() / 2)[:, None] * latent.decoder.weight[:, 0]
    return latent, at_0.detach(), slope, data(1)[0][0].double()


def test_bound_is_the_evidence_under_the_exact_posterior_and_below_it_under_another():
    """Linear and Gaussian: log N(y; a + b m, b b' s^2 + noise^2), of the observed values alone."""
    latent, at_0, slope, ys = linear()
    mask = data(1)[1][0]
    (mean, log_std), noise = latent.prior_start.detach(), latent.log_noise.detach().exp().expand(6, 2)
    a, b, y, deviation = (x[mask] for x in (at_0, slope, ys, noise))
    covariance = torch.outer(b, b) * (2 * log_std).exp() + deviation.square().diag()
    normal = torch.distributions.MultivariateNormal
    evidence = normal(a + b * mean, covariance).log_prob(y)
    precision = (-2 * log_std).exp() + (b / deviation).square().sum()
    exact = (mean * (-2 * log_std).exp() + (b * (y - a) / deviation.square()).sum()) / precision
    n = 2000
    for shift in (0.0, 0.5):
        with torch.no_grad():
            latent.start.weight.zero_()
            latent.start.bias.copy_(torch.cat([exact + shift / precision.sqrt(), -0.5 * precision.log()]))
            fit = latent.posterior(TS.double(), ys.expand(n, 6, 2), mask.expand(n, 6, 2), seed=1)
        error = 4 * float(fit.elbo.std()) / math.sqrt(n)
        right = evidence - 0.5 * shift**2  # the divergence of the two posteriors
        assert abs(float(fit.elbo.mean() - right)) < error < 0.1


@pytest.mark.parametrize("encoder", ENCODERS)
def test_missing_and_hidden_observations_take_no_part(encoder: str):
    ys, mask = data()
    others = (ys, ys.where(mask, 1e3), ys.where(mask, torch.nan))
    fits = [model(encoder=encoder).posterior(TS, y, mask, 3) for y in others]
    for other in fits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, fits[0], strict=True))
    latent = model(encoder=encoder)
    latent.posterior(TS, ys.where(mask, torch.nan), mask).elbo.sum().backward()
    assert all(bool(p.grad.isfinite().all() and p.grad.any()) for p in latent.parameters())
    shown = torch.zeros_like(mask)
    shown[:, :3] = True
    hidden = [latent.posterior(TS, y, mask, 3, shown) for y in (ys, ys.where(shown, 7.0))]
    assert torch.equal(hidden[0].predictions, hidden[1].predictions)
    assert torch.equal(hidden[0].kl, hidden[1].kl)
    assert not torch.equal(hidden[0].log_likelihood, hidden[1].log_likelihood)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoder_reads_backwards(encoder: str):
    ys, _ = data()
    contexts = lambda ys: model(encoder=encoder).contexts(TS, ys, torch.ones_like(ys, dtype=torch.bool))  # noqa: E731
    first, last = ys.clone(), ys.clone()
    first[:, 0] += 1
    last[:, -1] += 1
    assert torch.equal(contexts(first)[:, 1:], contexts(ys)[:, 1:])
    assert bool((contexts(last) != contexts(ys)).any(-1).all())


def test_gru_reads_what_is_observed_alone_whatever_the_batch():
    torch.manual_seed(0)
    encoder, (ys, mask) = ObservedGRU(2, 4).double(), data()
    ts, ys = TS.double(), ys.double().where(mask, 0)
    mask[0, 1:] = False  # nothing but the first time
    known = encoder(ts, ys, mask)
    for i in range(len(ys)):
        kept = mask[i].any(-1) | (ts == ts[0])
        assert_close(
            encoder(ts[kept], ys[i : i + 1, kept], mask[i : i + 1, kept]), known[i : i + 1], rtol=1e-13, atol=0
        )
    assert not torch.equal(encoder(ts + 0.1, ys, mask), known)  # it sees what time it is
    each = encoder(ts.expand(len(ys), -1), ys, mask)
    assert torch.equal(each, known)
    assert encoder(ts, ys[:0], mask[:0]).shape == (0, 1, 4)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.gru")
def test_gru_is_exported_without_numbers_of_the_data():
    torch.manual_seed(0)
    encoder, (ys, mask) = ObservedGRU(2, 4), data()
    few = torch.zeros_like(mask)
    few[:, -1] = True
    program = torch.export.export(
        encoder, (TS, ys, few), dynamic_shapes=(None, {0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    )
    for shown in (few, mask):
        assert_close(program.module()(TS, ys[:3], shown[:3]), encoder(TS, ys[:3], shown[:3]))


def test_ode_rnn_solves_its_equation_where_nothing_is_observed():
    """Between an observation at the end and the start, with many times: Euler's method, of order 1."""
    torch.manual_seed(0)
    encoder, errors = ODERNN(2, 4).double(), []
    for n in (64, 128):
        ts = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        mask = torch.zeros(1, n + 1, 2, dtype=torch.bool)
        mask[:, -1] = True
        with torch.no_grad():
            known = encoder(ts, torch.ones(1, n + 1, 2, dtype=torch.float64), mask)
            h = known[:, -1]
            right = solve(lambda t, y: encoder.field(y), h, 0.0, 1.0, Solver(Tsit5(), PID(1e-9, 1e-9))).ys
        errors.append(float((known[:, 0] - right).norm()))
    assert errors[0] > 1e-4
    assert 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.parametrize(
    "regularizer",
    [SolverRegularizer(), SolverRegularizer(form="unbiased"), KineticRegularizer(), TaylorRegularizer(2)],
    ids=["global", "unbiased", "kinetic", "taylor"],
)
def test_regularizer_penalises_the_latent_field_in_training(regularizer):
    latent = model(solver=Solver(Tsit5(), PID(1e-5, 1e-5)), regularizer=regularizer)
    latent.posterior(TS, *data())
    penalty = latent.ode.take_penalty()
    assert penalty.item() > 0
    penalty.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in list(latent.ode.parameters())[:-1])
    latent.eval().posterior(TS, *data())
    assert latent.ode.penalty is None


def test_samples_start_with_the_prior_and_smoothing_takes_the_mean():
    latent = model().double()
    with torch.no_grad():
        latent.prior_start.copy_(torch.tensor([[1.0, 0, 0], [-9.0, -9, -9]]))
        many = latent.sample(3, TS.double(), seed=1)
        z0 = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
        assert_close(many, latent.decoder(latent.ode(z0, TS.double())).expand(3, 6, 2), rtol=0, atol=2e-3)
        assert not torch.equal(many, latent.sample(3, TS.double(), seed=2))
        ys, mask = data()
        latent.start.weight[3:] = 0
        latent.start.bias[3:] = -30  # no deviation
        fit = latent.posterior(TS.double(), ys.double(), mask)
        assert_close(fit.predictions, latent.smooth(TS.double(), ys.double(), mask), rtol=1e-9, atol=1e-9)


def test_times_of_their_own_need_lanes_of_their_own():
    ys, mask = data()
    own = TS * torch.linspace(0.5, 1, 5)[:, None]
    with pytest.raises(ValueError, match="solver: expected lanes='each' for times"):
        model().posterior(own, ys, mask)
    each = model(solver=Solver(Tsit5(), PID(1e-6, 1e-6), lanes="each"))
    with torch.no_grad():
        alone = torch.cat([each.smooth(own[i], ys[i : i + 1], mask[i : i + 1]) for i in range(5)])
        assert_close(each.smooth(own, ys, mask), alone, rtol=1e-5, atol=1e-5)  # float32 sums in another order


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="encoder: expected one of ode_rnn, gru, got 'lstm'"):
        model(encoder="lstm")
    with pytest.raises(ValueError, match="noise: expected a positive deviation, got 0"):
        model(noise=0.0)
    with pytest.raises(ValueError, match="regularizer: STEER moves the end of a solve"):
        model(regularizer=STEER())
    with pytest.raises(ValueError, match=r"regularizer: .*expected PID"):
        model(solver=Solver(RK4(), Grid(n=4)), regularizer=SolverRegularizer())
