import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from sciml.problems import Diffusion, Heat, Lognormal
from sciml.solvers.linear import BlockSystems, UnrolledJacobi, UnrolledSOR, jacobi_radii, young

SPACE = Diffusion(cells=5, coefficient=Lognormal(contrast=30.0, correlation=0.3))


def pair():
    """Systems of 25 and 16 unknowns with their solutions, as blocks and as dense matrices."""
    made = [SPACE.system(0), SPACE.system(1, cells=4)]
    dense = [s.matrix.toarray() for s in made]
    solutions = [np.linalg.solve(a, s.b) for a, s in zip(dense, made, strict=True)]
    blocks = [BlockSystems.of(s.matrix, s.b, solution=x) for s, x in zip(made, solutions, strict=True)]
    return BlockSystems.join(blocks), [(a, s.b, x) for a, s, x in zip(dense, made, solutions, strict=True)]


@pytest.mark.parametrize(("method", "below"), [(UnrolledJacobi(), 0.0), (UnrolledSOR(), 1.0)])
def test_histories_are_those_of_dense_iterations_by_their_formula(method, below):
    systems, dense = pair()
    omega = torch.tensor([0.8, 1.3], dtype=torch.float64)
    history = method.run(systems, 6, omega, errors=True)
    for i, (a, b, solution) in enumerate(dense):
        w = np.diag(np.diag(a)) / float(omega[i]) + below * np.tril(a, -1)
        x, residuals, errors = np.zeros_like(b), [], []
        for _ in range(7):
            r = b - a @ x
            residuals.append(np.linalg.norm(r) / np.linalg.norm(b))
            errors.append(np.linalg.norm(x - solution) / np.linalg.norm(solution))
            x = x + np.linalg.solve(w, r)
        assert_close(history.residuals[:, i].numpy(), np.array(residuals), rtol=1e-12, atol=0)  # some round-offs
        assert_close(history.errors[:, i].numpy(), np.array(errors), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", [UnrolledJacobi(), UnrolledSOR()])
def test_gradients_to_guess_and_relaxation_are_those_of_differences(method):
    systems, _ = pair()
    omega = torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True)
    x0 = torch.randn(41, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert gradcheck(lambda omega, x0: tuple(method.run(systems, 5, omega, x0, errors=True)), (omega, x0))


def test_iterations_count_to_the_first_residual_at_the_tolerance():
    systems, _ = pair()
    history = UnrolledSOR().run(systems, 40, torch.full((2,), 1.3, dtype=torch.float64))
    for tolerance in (2.0, 1e-3, 1e-30):
        first = [next((k for k, r in enumerate(norms) if r <= tolerance), 41) for norms in history.residuals.T.tolist()]
        assert history.iterations(tolerance).tolist() == first
    assert history.iterations(2.0).tolist() == [0, 0]


def test_spectral_radii_of_jacobi_iterations_are_found_from_below_and_youngs_omega_is_the_best():
    systems, dense = pair()
    found = jacobi_radii(systems, 16)  # all Lanczos steps of the smaller one, whose subspace is invariant before
    exact = [np.abs(np.linalg.eigvals(np.eye(len(a)) - a / np.diag(a)[:, None])).max() for a, _, _ in dense]
    assert_close(found[-1].numpy(), np.array(exact), rtol=1e-6, atol=0)  # 16 of 25 steps for the larger one
    assert bool((found.diff(dim=0) > -1e-12).all())
    for (a, _, _), omega in zip(dense, young(found[-1]).tolist(), strict=True):
        radius = {}
        for o in (omega - 0.05, omega, omega + 0.05):
            w = np.diag(np.diag(a)) / o + np.tril(a, -1)
            radius[o] = np.abs(np.linalg.eigvals(np.eye(len(a)) - np.linalg.solve(w, a))).max()
        assert min(radius, key=radius.get) == omega
        assert radius[omega] == pytest.approx(omega - 1, rel=2e-2)  # a double eigenvalue there: the root of an error


def test_joined_systems_keep_what_all_have():
    heat = list(Heat(SPACE).steps(0, 2))
    steps = [BlockSystems.of(s.matrix, s.b, s.x0[None], [s.dt]) for s in heat]
    both = BlockSystems.join(steps)
    assert both.previous.shape == (1, 50)
    assert both.dt.tolist() == [[s.dt] for s in heat]
    assert_close(both.x0, torch.cat([s.x0 for s in steps]), rtol=0, atol=0)
    assert BlockSystems.join([both, pair()[0]]).previous is None
    assert both.to(torch.float32).residual(both.x0.float()).dtype == torch.float32


def test_mistakes_are_named():
    systems, _ = pair()
    ones = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="omega: expected one for each of 2 systems"):
        UnrolledSOR().run(systems, 3, ones[:1])
    with pytest.raises(ValueError, match="x0: expected the shape"):
        UnrolledSOR().run(systems, 3, ones, ones)
    with pytest.raises(ValueError, match="steps: expected a number of iterations"):
        UnrolledSOR().run(systems, -1, ones)
    unknown = BlockSystems(systems.matrix, systems.b, systems.sizes)
    with pytest.raises(ValueError, match="errors: expected systems with exact solutions"):
        UnrolledSOR().run(unknown, 3, ones, errors=True)
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        jacobi_radii(systems, 0)
    with pytest.raises(ValueError, match="previous: expected as many unknowns as rows, 41"):
        BlockSystems(systems.matrix, systems.b, systems.sizes, previous=ones[None])
    with pytest.raises(ValueError, match="dt: expected a step per system and previous solution"):
        BlockSystems(systems.matrix, systems.b, systems.sizes, dt=ones[:, None])
    with pytest.raises(ValueError, match="sizes: expected those of square blocks"):
        BlockSystems(systems.matrix, systems.b, systems.sizes + 1)
    with pytest.raises(ValueError, match="systems: expected at least one"):
        BlockSystems.join([])
