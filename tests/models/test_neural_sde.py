"""Neural stochastic equations: paths by their seed, gradients, moments, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciml import Discrete, Grid, Solver, solve
from sciml.models import MLP, STEER, Autonomous, CoordinateDiffusion, DiagonalSDE, NeuralSDE, SolverRegularizer
from sciml.models.neural_sde import moments, power_sums, summed_moments
from sciml.solvers import PID, SRIW1, Backsolve, Brownian, ErrorEstimate
from sciml.solvers.mesh import Mesh


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


def test_regularisers_that_know_nothing_of_noise_are_refused():
    with pytest.raises(ValueError, match="regularizer: expected a SolverRegularizer for noise, got STEER"):
        model(regularizer=STEER())


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("form", ["unbiased", "biased"])
def test_local_forms_are_steps_of_the_solution_on_noise_of_their_own(
    form: str, lanes: str, monkeypatch: pytest.MonkeyPatch
):
    """Against one-step solves from states of an accurate solve on the same path, over draws that are evenly spread."""
    y0, draws, tolerance = torch.linspace(-2, 2, 32, dtype=torch.float64).reshape(16, 2), 6, PID(1e-3, 1e-3)
    field, solver = model().field.double(), Solver(SRIW1(), tolerance, lanes=lanes)
    sde = NeuralSDE(field, solver, 2.0, SolverRegularizer(form=form))
    us, found = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws, []
    with torch.no_grad():
        for k, u in enumerate(us):
            monkeypatch.setattr(torch, "rand", lambda shape, dtype=None, u=u: u.expand(shape))
            monkeypatch.setattr(torch, "randint", lambda high, shape, k=k: torch.tensor(1000 + k))
            sde(y0, seed=1)
            found.append(sde.take_penalty())
        mesh = solve(field, y0, 0.0, 2.0, solver, path=Brownian(seed=1)).mesh
        ts, hs = places(mesh, us, form)
        exact = replace(solver, controller=PID(1e-4, 1e-4))
        ys = solve(field, y0, 0.0, 2.0, exact, path=Brownian(seed=1), save_at=ts.movedim(0, -1)).ys
        ys = ys if lanes == "joint" else ys.movedim(1, 0)
        right = [one_step(field, y, t, h, solver, 1000 + k) for k, (y, t, h) in enumerate(zip(ys, ts, hs, strict=True))]
    # the states are off by about the tolerance, and the estimates with them
    assert torch.allclose(torch.stack(found), torch.stack(right), rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", ["unbiased", "biased"])
def test_noise_of_local_forms_is_that_of_the_training_step(form: str, monkeypatch: pytest.MonkeyPatch):
    sde, found = model(regularizer=SolverRegularizer(form=form)), []
    monkeypatch.setattr(torch, "rand", lambda shape, dtype=None: torch.full(shape, 0.4, dtype=dtype))
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        sde(torch.ones(3, 2), seed=1)
        found.append(float(sde.take_penalty().detach()))
    assert found[0] == found[1] != found[2]


def places(mesh: Mesh, us: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Times and sizes (n, l) by numbers (n) in (0, 1), on a mesh of a span of 2."""
    nodes, pick = mesh.theta.movedim(0, -1), lambda x, at: x.gather(-1, at[..., None])[..., 0]
    found = []
    for u in us:
        place = pick(nodes, (u * mesh.count).long()) if form == "biased" else u.expand(mesh.count.shape)
        step = (nodes[..., 1:] <= place[..., None]).sum(-1)
        found.append((2 * place, 2 * (pick(nodes, step + 1) - pick(nodes, step)).minimum(1 - place)))
    ts, hs = zip(*found, strict=True)
    return torch.stack(ts), torch.stack(hs)


def one_step(field: torch.nn.Module, y: Tensor, t: Tensor, h: Tensor, solver: Solver, seed: int) -> Tensor:
    """The error estimate times the size of a step, on the path of a seed."""
    loose, path = replace(solver, controller=PID(1e9, 1e9, dt0=9.0)), Brownian(seed=seed)
    mesh, folds = solve(field, y, t, t + h, loose, path=path).mesh, {"x": ErrorEstimate()}
    return solve(field, y, t, t + h, solver, path=path, mesh=mesh, folds=folds).folds["x"].mean()


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("form", ["unbiased", "biased"])
def test_local_forms_have_one_gradient_under_every_adjoint(form: str, lanes: str):
    y0, found = torch.ones(2, 2, dtype=torch.float64), []
    for adjoint in (Backsolve(), Discrete("all"), Discrete("every"), None):
        solver = Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), adjoint, lanes=lanes)
        sde = model(solver=solver, regularizer=SolverRegularizer(form=form)).double()
        torch.manual_seed(3)
        sde(y0, seed=1)
        penalty = sde.take_penalty()
        found.append([penalty, *torch.autograd.grad(penalty, list(sde.parameters()))])
    assert any(bool(grad.any()) for grad in found[0][1:])
    for one, *others in zip(*found, strict=True):
        assert all(torch.allclose(one, other, rtol=1e-12, atol=0) for other in others)


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


@pytest.mark.parametrize(("form", "weight"), [("unbiased", 10.0), ("biased", 10.0), ("reuse", 1.0)])
def test_training_takes_fewer_steps_with_a_local_penalty_under_backsolve(form: str, weight: float):
    solver = Solver(SRIW1(), PID(rtol=1e-3, atol=1e-3), Backsolve())
    sde = model(solver=solver, regularizer=SolverRegularizer(form=form, weight=weight))
    optimizer, y0, steps = torch.optim.Adam(sde.parameters(), 0.02), torch.ones(8, 2), []
    for seed in range(40):
        optimizer.zero_grad()
        (0.01 * sde(y0, seed=seed).square().mean() + sde.take_penalty()).backward()
        optimizer.step()
        steps.append(int(sde.stats.accepted))
    assert sum(steps[-8:]) < 0.8 * sum(steps[:8])
