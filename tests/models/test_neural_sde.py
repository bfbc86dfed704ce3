"""Neural stochastic equations: paths by their seed, gradients, moments, and what is refused."""

import pytest
import torch

from sciml import Discrete, Grid, Solver, solve
from sciml.models import MLP, STEER, Autonomous, CoordinateDiffusion, DiagonalSDE, NeuralSDE, SolverRegularizer
from sciml.models.neural_sde import moments, power_sums, summed_moments
from sciml.solvers import PID, SRIW1, Backsolve, Brownian, ErrorEstimate


def model(**options: object) -> NeuralSDE:
    torch.manual_seed(0)
    return NeuralSDE(DiagonalSDE(Autonomous(MLP(2, 2, width=8)), CoordinateDiffusion(2, width=4)), **options)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_paths_belong_to_their_seed_and_pass_through_the_times(lanes: str):
    sde, y0, ts = model(solver=Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), lanes=lanes)), torch.ones(3, 2), [0, 0.3, 1.0]
    ts = torch.tensor(ts)
    paths = sde(y0, ts, seed=1)
    assert paths.shape == (3, 3, 2)
    assert torch.equal(paths[:, 0], y0)
    assert torch.equal(sde(y0, ts, seed=1), paths)
    assert not torch.equal(sde(y0, ts, seed=2), paths)
    # other stops, other steps of the same path
    assert torch.allclose(sde(y0, seed=1), paths[:, -1], atol=0.02)


def test_gradients_reach_all_parameters():
    sde = model(solver=Solver(SRIW1(), Grid(n=4)))
    sde(torch.ones(3, 2), seed=1).square().sum().backward()
    assert all(bool(p.grad.any()) and bool(p.grad.isfinite().all()) for p in sde.parameters())
    assert int(sde.stats.accepted) == 4


def test_moments_are_those_of_the_paths_that_are_there():
    paths = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(paths, dtype=torch.bool)
    mask[4:, 1] = False
    mask[:, 3] = False
    mean, std, count = moments(paths.where(mask, torch.nan), mask)
    assert count[:, 0].tolist() == [6, 4, 6, 0]
    assert bool(mean.isfinite().all())
    assert torch.allclose(mean[1], paths[:4, 1].mean(0))
    assert torch.allclose(std[1], paths[:4, 1].std(0))
    for found, right in zip(moments(paths)[:2], (paths.mean(0), paths.std(0)), strict=True):
        assert torch.allclose(found, right)
    halves = [(paths[part].where(mask[part], torch.nan), mask[part]) for part in (slice(4), slice(4, 6))]
    summed = summed_moments(sum(power_sums(*half) for half in halves))
    for found, right in zip(summed, moments(paths.where(mask, torch.nan), mask), strict=True):
        assert torch.allclose(found.float(), right, atol=1e-6)
    assert torch.equal(power_sums(paths), power_sums(paths, torch.ones_like(mask)))


def test_deviation_of_equal_paths_is_zero_and_has_a_finite_gradient():
    paths = torch.ones(3, 2, requires_grad=True)
    std = moments(paths).std
    std.sum().backward()
    assert not bool(std.any())
    assert bool(paths.grad.isfinite().all())


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="field: expected a Diffusive module, as DiagonalSDE, got MLP"):
        NeuralSDE(MLP(2, 2))
    with pytest.raises(ValueError, match="solver: expected lanes='each' for times"):
        model()(torch.ones(3, 2), torch.rand(3, 4))


def test_regulariser_reads_the_steps_of_noisy_solves_in_train_mode():
    sde = model(solver=Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2)), regularizer=SolverRegularizer(weight=2.0))
    sde(torch.ones(3, 2), seed=1)
    penalty = sde.take_penalty()
    assert 0 < penalty.item() <= 2  # errors are at most 1, over a span of 1
    penalty.backward()
    assert all(bool(p.grad.any()) for p in sde.parameters())
    sde.eval()(torch.ones(3, 2), seed=1)
    assert sde.take_penalty() is None


def test_regularisers_that_take_steps_without_the_noise_are_refused():
    for regularizer, given in ((SolverRegularizer(form="biased"), "biased"), (STEER(), "STEER")):
        with pytest.raises(ValueError, match=f"form 'global' or 'reuse' for noise, got '{given}'"):
            model(regularizer=regularizer)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_a_step_that_is_taken_again_estimates_all_steps_under_every_adjoint(
    lanes: str, monkeypatch: pytest.MonkeyPatch
):
    """On the path of the solve; over draws from a grid its mean is the global form, but for the grid's coarseness."""
    y0, draws = torch.ones(2, 2, dtype=torch.float64), 100
    field = model().field.double()
    solver = Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), lanes=lanes)
    right = (
        solve(field, y0, 0.0, 1.0, solver, path=Brownian(seed=1), folds={"e": ErrorEstimate()})
        .folds["e"]
        .mean()
        .detach()
    )
    found = []
    for adjoint in (Backsolve(), Discrete("all"), None):
        used = Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), adjoint, lanes=lanes)
        sde = NeuralSDE(field, used, regularizer=SolverRegularizer(form="reuse"))
        monkeypatch.setattr(torch, "rand", lambda shape, dtype=None: torch.full(shape, 0.4, dtype=dtype))
        sde(y0, seed=1).sum().backward()
        found.append(torch.autograd.grad(sde.take_penalty(), list(sde.parameters()), allow_unused=True))
    for one, *others in zip(*found, strict=True):
        assert all(torch.allclose(one, other, rtol=1e-12, atol=0) for other in others)
    assert any(bool(grad.any()) for grad in found[0])
    sde, values = NeuralSDE(field, solver, regularizer=SolverRegularizer(form="reuse")), []
    for k in range(draws):
        monkeypatch.setattr(
            torch, "rand", lambda shape, dtype=None, k=k: torch.full(shape, (k + 0.5) / draws, dtype=dtype)
        )
        with torch.no_grad():
            sde(y0, seed=1)
        values.append(float(sde.take_penalty()))
    # each of some ten steps is met by its share of the draws to within one of them
    assert sum(values) / draws == pytest.approx(float(right), rel=0.1)


def test_training_takes_fewer_steps_with_a_local_penalty_under_backsolve():
    solver = Solver(SRIW1(), PID(rtol=1e-3, atol=1e-3), Backsolve())
    sde = model(solver=solver, regularizer=SolverRegularizer(form="reuse", weight=1.0))
    optimizer, y0, steps = torch.optim.Adam(sde.parameters(), 0.02), torch.ones(8, 2), []
    for seed in range(40):
        optimizer.zero_grad()
        (0.01 * sde(y0, seed=seed).square().mean() + sde.take_penalty()).backward()
        optimizer.step()
        steps.append(int(sde.stats.accepted))
    assert sum(steps[-8:]) < 0.8 * sum(steps[:8])
