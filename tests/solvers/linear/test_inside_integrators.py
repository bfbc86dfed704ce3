"""Implicit steps of sparse systems: mass and Jacobian stored, conjugate gradients with preconditioners inside."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import expm_multiply, spsolve
from torch import Tensor

from sciml import PID, Grid, Solution, SolveError, Solver, solve
from sciml.solvers import CG, GMRES, SDIRK2, Dense, ImplicitEuler, Kvaerno5, RadauIIA5, Rodas5P, Term
from sciml.solvers.linear import (
    FSAI,
    Aggregation,
    Chebyshev,
    DenseOperator,
    IncompleteCholesky,
    Jacobi,
    LinearOperator,
    ShiftedOperator,
    SparseOperator,
)
from tests.solvers.linear.counting import Counting
from tests.solvers.linear.spd import diffusion, draw
from tests.solvers.systems import DTYPE

N = 6
STIFFNESS = diffusion(N, 10.0) * 20.0
MASS = diffusion(N, 1.0) * -0.05 + 1.2 * np.eye(N * N)  # positive definite, with neighbours, as of finite elements
MASS = SparseOperator.from_scipy(MASS)


class Heat(Term):
    """M du/dt = -K u + sin(t), with both matrices stored."""

    def __init__(self, stiffness: SparseOperator, mass: SparseOperator | None = MASS, stored: bool = True):
        self.stiffness, self.inertia, self.stored = stiffness, mass, stored

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return t.sin() - self._matrix(args).matvec(y.reshape(-1, self.stiffness.shape[-1])).reshape(y.shape)

    def mass(self, args: tuple[Tensor, ...]) -> Tensor | LinearOperator | None:
        return self.inertia if self.stored or self.inertia is None else self.inertia.dense()[0]

    def jacobian(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> LinearOperator | None:
        matrix = self._matrix(args)
        return matrix.with_values(-matrix.compressed.values) if self.stored else None

    def _matrix(self, args: tuple[Tensor, ...]) -> SparseOperator:
        return self.stiffness.with_values(args[0]) if args else self.stiffness


HEAT = SparseOperator.from_scipy(STIFFNESS)
TOLERANCES = PID(rtol=1e-4, atol=1e-6)


@cache
def dense_one(stepper: type) -> Solution:
    """The solution by dense matrices, whose entries differentiation finds."""
    return solve(Heat(HEAT, stored=False), draw(N * N), 0.0, 0.5, Solver(stepper(linear=Dense()), TOLERANCES))


SOLVERS = {
    "plain": (Rodas5P, CG()),
    "chebyshev": (Rodas5P, CG(Chebyshev())),
    "factor": (Rodas5P, CG(IncompleteCholesky())),
    "inverse": (Kvaerno5, CG(FSAI())),
    "two levels": (Kvaerno5, CG(Aggregation(aggregates=torch.arange(N * N) // N))),
    "gmres": (Kvaerno5, GMRES()),
    "gmres from the right": (Kvaerno5, GMRES(preconditioner=Jacobi())),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solution_is_that_with_dense_matrices(name: str):
    stepper, linear = SOLVERS[name]
    found, dense = (
        solve(Heat(HEAT), draw(N * N), 0.0, 0.5, Solver(stepper(linear=linear), TOLERANCES)),
        dense_one(stepper),
    )
    assert (found.ys - dense.ys).abs().max() < 1e-4 * (1 + dense.ys.abs().max())  # a unit of the tolerance
    assert found.stats.accepted == dense.stats.accepted


def test_solution_is_the_exponential():
    y0 = draw(N * N)

    class Still(Heat):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return super().drift(0 * t, y, args)

    rate = -spsolve(MASS.to_scipy().tocsc(), STIFFNESS.tocsc())
    exact = torch.from_numpy(expm_multiply(rate * 0.3, y0.numpy()))
    found = solve(Still(HEAT), y0, 0.0, 0.3, Solver(Kvaerno5(linear=CG(FSAI())), PID(rtol=1e-7, atol=1e-9)))
    assert (found.ys - exact).abs().max() < 1e-5  # a hundred tolerances


def test_gradient_through_implicit_steps():
    """To the entries of the stiffness, symmetric, and to the initial state."""
    small = SparseOperator.from_scipy(diffusion(3, 5.0))
    up = small.compressed.turned[2]
    solver = Solver(ImplicitEuler(linear=CG(Jacobi(), rtol=1e-13), rtol=1e-12, atol=1e-13), Grid(n=3))

    def end(values: Tensor, y0: Tensor) -> Tensor:
        symmetric = (values + values[up]) / 2
        return solve(Heat(small, None), y0, 0.0, 0.3, solver, args=(symmetric,)).ys

    assert torch.autograd.gradcheck(end, (small.compressed.values.clone().requires_grad_(), draw(9).requires_grad_()))


def test_one_factor_serves_all_stages_of_a_step():
    counting = Counting(FSAI())
    found = solve(Heat(HEAT), draw(N * N), 0.0, 0.5, Solver(Kvaerno5(linear=CG(counting)), TOLERANCES))
    trials = int(found.stats.accepted + found.stats.rejected)
    assert counting.setups == trials
    assert counting.applications > 6 * trials  # six implicit stages and the error's filter


@pytest.mark.parametrize("stepper", [Kvaerno5, Rodas5P])
@pytest.mark.parametrize("solver", [CG, GMRES])
def test_backward_pass_sets_up_once_a_step(solver: type, stepper: type):
    counting, y0 = Counting(Jacobi()), draw(N * N).requires_grad_()
    found = solve(Heat(HEAT), y0, 0.0, 0.5, Solver(stepper(linear=solver(preconditioner=counting)), TOLERANCES))
    before = counting.setups
    found.ys.sum().backward()
    assert counting.setups - before <= int(found.stats.accepted)


@pytest.mark.parametrize("linear", [CG(), GMRES(), Dense()], ids=lambda x: type(x).__name__)
def test_samples_share_stored_matrices(linear: object):
    """With steps of their own, and with all stages solved for together."""
    y0 = draw(3, N * N)
    for stepper, options in (
        (Kvaerno5(linear=linear), {"lanes": "each", "controller": TOLERANCES}),
        (RadauIIA5(rows=True, linear=linear), {"controller": Grid(n=8)}),
    ):
        if isinstance(linear, CG) and isinstance(stepper, RadauIIA5):
            continue  # the matrix of coupled stages is not symmetric
        found = solve(Heat(HEAT), y0, 0.0, 0.1, Solver(stepper, **options)).ys
        one = solve(Heat(HEAT), y0[1], 0.0, 0.1, Solver(Kvaerno5(), PID(rtol=1e-7, atol=1e-9))).ys
        assert (found[1] - one).abs().max() < 1e-3 * y0.abs().max()


def test_products_suffice_for_conjugate_gradients():
    class Mixed(Heat):
        def mass(self, args: tuple[Tensor, ...]) -> Tensor:
            return torch.eye(N * N, dtype=DTYPE) / 2

    linear = [CG(), Dense()]
    ends = [solve(Mixed(HEAT), draw(N * N), 0.0, 0.1, Solver(Kvaerno5(linear=x), TOLERANCES)).ys for x in linear]
    assert (ends[0] - ends[1]).abs().max() < 1e-3


def test_state_that_is_not_finite_is_a_failure():
    class Breaks(Heat):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return super().drift(t, y, args) + torch.where((t > 0.1) & (t < 0.2), torch.nan, 0)

    solver = Solver(SDIRK2(linear=CG()), Grid(n=3))
    with pytest.raises(SolveError, match="t="):
        solve(Breaks(HEAT, None), draw(N * N), 0.0, 0.5, solver)


def test_indefinite_matrix_is_no_solution():
    """du/dt = +K u: Newton's matrix of a long step is indefinite, which conjugate gradients must not pass over."""
    grows = Heat(SparseOperator.from_scipy(-STIFFNESS), None)
    with pytest.raises(SolveError, match="stage equations"):
        solve(grows, draw(N * N), 0.0, 1.0, Solver(ImplicitEuler(linear=CG()), Grid(n=1)))


def test_sum_of_sparse_matrices_is_stored_and_others_are_told():
    a = ShiftedOperator(MASS, HEAT, 0.3)
    assert torch.allclose(a.sparse().dense(), a.dense(), rtol=1e-13)
    assert torch.allclose(a.diagonal(), a.dense().diagonal(dim1=-2, dim2=-1), rtol=1e-13)
    none = ShiftedOperator(MASS, HEAT, torch.tensor(0.0, dtype=DTYPE))
    assert torch.equal(none.sparse().dense()[0], torch.eye(N * N, dtype=DTYPE))
    assert torch.equal(none.diagonal(), torch.ones(1, N * N, dtype=DTYPE))
    assert MASS.filled().all()
    with pytest.raises(TypeError, match="expected the entries of mass and Jacobian in SparseOperators"):
        FSAI().setup(ShiftedOperator(None, DenseOperator(torch.eye(3)), 1.0))
    with pytest.raises(ValueError, match="expected a Jacobian of shape"):
        solve(Heat(HEAT, None), draw(N * N).reshape(N, N), 0.0, 1.0, Solver(Kvaerno5(rows=True), TOLERANCES))


@pytest.mark.parametrize("damping", [0.0, 2 / 3])
def test_two_levels_serve_the_matrix_that_they_were_made_for_and_are_made_anew_for_others(damping: float):
    a = diffusion(20, 1e3)
    other = a + sparse.diags(np.linspace(0, 0.1, 400) * a.diagonal())
    first, same, other = (SparseOperator.from_scipy(x) for x in (a, a.copy(), other))
    blocks = (torch.arange(20)[:, None] // 4 * 5 + torch.arange(20) // 4).reshape(-1)
    counted = Counting(Aggregation(Chebyshev(), blocks, damping=damping))
    linear = CG(counted, max_iter=100).near(first)
    b = draw(2, 400)
    for operator, setups in ((first, 1), (same, 1), (other, 2)):
        x, found = linear.inverse(operator)(b)
        assert found.all()
        assert (b - operator.matvec(x)).norm(dim=1).max() < 2e-8 * b.norm(dim=1).max()
        assert counted.setups == setups
    assert CG(Jacobi().setup(first)).near(other).preconditioner is not None  # what is prepared stays
