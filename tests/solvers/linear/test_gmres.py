from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import gmres as scipy_gmres
from torch import Tensor
from torch.autograd import forward_ad

from sciml.errors import LinearSolveError
from sciml.solvers.linear import (
    FSAI,
    GMRES,
    FunctionOperator,
    Jacobi,
    LinearStatus,
    Prepared,
    Single,
    SparseOperator,
    gmres,
    pcg,
)
from tests.solvers.linear.bad import Bad
from tests.solvers.linear.spd import draw
from tests.solvers.systems import DTYPE

OK, MAX_ITER, BREAKDOWN, NON_FINITE = (status.value for status in LinearStatus)


def carried(cells: int, wind: float = 3.0) -> sp.csr_matrix:
    """Diffusion on a square grid with wind along one axis, by central differences."""
    line = lambda below, above: sp.diags([below, 2.0, above], [-1, 0, 1], shape=(cells, cells))  # noqa: E731
    one = sp.eye(cells)
    return sp.csr_matrix(sp.kron(line(-1.0, -1.0), one) + sp.kron(one, line(-1.0 - wind / 2, -1.0 + wind / 2)))


A = carried(12)
B = draw(4, 144)


class Inverse(Prepared):
    """Exact, of a dense matrix."""

    dtype = DTYPE

    def __init__(self, matrix: sp.csr_matrix):
        self.inverse = torch.from_numpy(np.linalg.inv(matrix.toarray()))

    def apply(self, r: Tensor) -> Tensor:
        return r @ self.inverse.mT


@pytest.mark.parametrize("restart", [10, 200])
def test_solutions_and_residuals_are_those_of_other_libraries(restart: int):
    """Errors are at most 1e-9 |b| / the least singular value of A, which is .4, and |b| some 12."""
    found = gmres(A, B, rtol=1e-9, restart=restart)
    assert torch.allclose(found.x, torch.from_numpy(np.linalg.solve(A.toarray(), B.numpy().T).T), rtol=1e-6, atol=1e-8)
    for row, count, history in zip(B, found.iterations.tolist(), found.history.mT, strict=True):
        known: list[float] = []
        scipy_gmres(A, row.numpy(), rtol=1e-9, restart=restart, callback=known.append, callback_type="pr_norm")
        assert abs(count - len(known)) <= 1  # scipy's residual at the end of a cycle is another one
        k = min(count, len(known), restart) - 1  # as far as round-off in the basis has not grown
        right = torch.tensor(known[:k], dtype=DTYPE) * row.norm()
        assert torch.allclose(history[1 : 1 + k], right, rtol=1e-6, atol=1e-10)
        assert (history[count:] == history[count]).all()


def test_right_hand_sides_are_frozen_one_by_one_and_fare_as_alone():
    b = torch.stack([B[0], torch.zeros(144, dtype=DTYPE), 1e-100 * B[1], torch.eye(144, dtype=DTYPE)[5]])
    together = gmres(A, b, restart=20)
    assert together.iterations[1] == 0
    assert len(set(together.iterations.tolist())) == 4
    for i, row in enumerate(b):
        alone = gmres(A, row, restart=20)
        assert alone.iterations.tolist() == together.iterations[i : i + 1].tolist()
        assert torch.allclose(alone.x, together.x[i], rtol=1e-10, atol=0)
    assert (together.residual <= 1e-8 * b.norm(dim=1)).all()


def test_preconditioners_and_guesses_save_products():
    exact = torch.from_numpy(np.linalg.solve(A.toarray(), B.numpy().T).T)
    assert gmres(A, B, Inverse(A)).iterations.tolist() == [1] * 4
    assert gmres(A, B, x0=exact).iterations.tolist() == [0] * 4
    scaled = sp.csr_matrix(sp.diags(np.geomspace(1, 1e4, 144)) @ A)  # rows of any size, which the diagonal undoes
    plain, jacobi = (gmres(scaled, B, m, rtol=1e-8, throw=False) for m in (None, Jacobi()))
    assert jacobi.converged.all()
    assert (2 * jacobi.iterations < plain.iterations).all()


def test_what_is_not_solved_is_told():
    shift = torch.roll(torch.eye(12, dtype=DTYPE), 1, 0)  # stands still until all 12 products are taken together
    b = torch.eye(12, dtype=DTYPE)[0]
    assert gmres(shift, b, restart=12).iterations.tolist() == [12]
    assert gmres(shift, b, restart=5, throw=False).status.tolist() == [BREAKDOWN]
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=DTYPE))
    b = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=DTYPE)
    assert gmres(singular, b, throw=False).status.tolist() == [OK, BREAKDOWN]
    assert gmres(shift, shift[0], restart=12, max_iter=8, throw=False).status.tolist() == [MAX_ITER]
    found = gmres(A, B, max_iter=7, restart=5, throw=False)
    assert found.status.tolist() == [MAX_ITER] * 4
    assert found.iterations.tolist() == [7] * 4
    mixed = torch.cat([B[:1], torch.full_like(B[:1], torch.nan)])
    assert gmres(A, mixed, throw=False).status.tolist() == [OK, NON_FINITE]
    with pytest.raises(LinearSolveError, match=r"1 of 1 not solved: .* breakdown: a whole cycle brought nothing"):
        gmres(shift, b.new_ones(12).cumsum(0), restart=3, rtol=1e-14)


@pytest.mark.parametrize("name", ["zero", "nan", "projection"])
def test_fallback_finishes_what_a_preconditioner_cannot(name: str):
    first = (torch.arange(144) < 70).to(DTYPE)
    function = {"zero": lambda r: 0 * r, "nan": lambda r: torch.nan * r, "projection": lambda r: first * r}[name]
    expected = gmres(A, B).x
    bad = Bad(function, Jacobi())
    assert not gmres(A, B, Bad(function), throw=False).converged.any()
    zero = torch.cat([B, 0 * B[:1]])
    found = gmres(A, zero, bad)
    assert found.fell_back.tolist() == [True] * 4 + [False]
    assert torch.allclose(found.x[:-1], expected, atol=1e-6)
    inside, known = GMRES(1e-10, cycles=12, preconditioner=bad).inverse(SparseOperator.from_scipy(A))(zero)
    assert known.all()
    assert torch.allclose(inside[:-1], expected, atol=1e-6)


def test_gradients_to_matrix_and_right_hand_side():
    a = SparseOperator.from_scipy(carried(3))
    solution = lambda values, b: gmres(a.with_values(values), b, rtol=1e-13).x  # noqa: E731
    inputs = a.compressed.values.clone().requires_grad_(), draw(2, 9).requires_grad_()
    assert torch.autograd.gradcheck(solution, inputs, check_forward_ad=True)
    free = lambda c, b: gmres(FunctionOperator(lambda x: c * x + x.roll(1, -1), 4, DTYPE), b, rtol=1e-13).x  # noqa: E731
    inputs = (2 + draw(4) ** 2).requires_grad_(), draw(4).requires_grad_()
    assert torch.autograd.gradcheck(free, inputs, check_forward_ad=True)


@pytest.mark.parametrize("solve", [pcg, gmres])
def test_derivatives_of_derivatives_are_refused_and_unrelated_transforms_pass(solve: Any):
    a = torch.from_numpy(carried(3, 0.0).toarray())
    b, way = draw(9, seed=1), draw(9, seed=2)
    with forward_ad.dual_level():
        own = b.clone().requires_grad_()
        x = solve(a, forward_ad.make_dual(own, way), rtol=1e-12).x
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(forward_ad.unpack_dual(x).tangent.square().sum(), own, retain_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(x.square().sum(), own)
    inner = lambda b: torch.func.jvp(lambda c: solve(a, b, rtol=1e-12).x * c, (way,), (way,))[1]  # noqa: E731
    right = torch.linalg.solve(a, way) * way
    assert torch.allclose(torch.func.jvp(inner, (b,), (way,))[1], right, rtol=1e-9)


def test_preconditioners_in_single_precision_bring_double_precision():
    a = SparseOperator.from_scipy(carried(12, 0.0))
    b = B[:2].clone().requires_grad_()
    x = gmres(a, b, Single(FSAI()), rtol=1e-12).x
    assert torch.allclose(torch.autograd.grad(x.sum(), b)[0], pcg(a, torch.ones_like(b), rtol=1e-13).x, rtol=1e-8)
    found, known = GMRES(rtol=1e-12, preconditioner=Single(FSAI())).inverse(a)(B)
    assert known.all()
    assert (torch.linalg.vector_norm(B - a.matvec(found), dim=1) <= 4e-12 * B.norm(dim=1)).all()


def test_matrices_of_scipy_are_taken():
    spd = sp.coo_matrix(carried(5, 0.0))
    b = draw(25)
    assert torch.allclose(pcg(spd, b, rtol=1e-12).x, gmres(spd, b, rtol=1e-12).x, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"A": A.toarray()}, TypeError, "A: expected a LinearOperator, a real tensor or a sparse scipy matrix"),
        ({"b": B.float()}, TypeError, "b: expected a tensor of A's dtype"),
        ({"b": B[:, 1:]}, ValueError, r"b: expected the shape \(144,\) or \(m, 144\)"),
        ({"x0": B[:2]}, ValueError, r"x0: expected the shape \(4, 144\) of b, got \(2, 144\)"),
        ({"M": 1.0}, TypeError, "M: expected a Preconditioner or None"),
        ({"rtol": -1.0}, ValueError, "rtol: expected at least 0"),
        ({"max_iter": 5.5}, TypeError, "max_iter: expected a whole number, got float"),
        ({"restart": 0}, ValueError, "restart: expected at least 1"),
        ({"max_iter": 0}, ValueError, "max_iter: expected at least 1"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], error: type, message: str):
    with pytest.raises(error, match=message):
        gmres(**{"A": A, "b": B, **change})
