"""Successive over-relaxation against its definition, and Young's formula against the exact one."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from sciml.errors import LinearSolveError
from sciml.solvers.linear import FunctionOperator, LinearStatus, SparseOperator, sor, young_omega
from tests.solvers.linear.spd import draw, operator

SMALL = operator(6, 30.0)


def reference(a: np.ndarray, b: np.ndarray, omega: float, x: np.ndarray, sweeps: int) -> np.ndarray:
    """The sweep by its matrices, and the norms of the residuals."""
    d, low = np.diag(np.diag(a)), np.tril(a, -1)
    sizes = [np.linalg.norm(b - a @ x)]
    for _ in range(sweeps):
        x = x + np.linalg.solve(d / omega + low, b - a @ x)
        sizes.append(np.linalg.norm(b - a @ x))
    return np.array(sizes)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("omega", [0.7, 1.0, 1.6])
def test_sweeps_are_the_definition(omega: float):
    """Each right-hand side ends on its own; 1e-10 for round-off through a hundred sweeps."""
    b, x0 = draw(3, 36), draw(3, 36, seed=1)
    b[1] = SMALL.matvec(x0[1:2])[0]  # solved before the first sweep
    found = sor(SMALL, b, omega, x0, rtol=1e-6)
    assert found.converged.all()
    assert found.iterations[1] == 0
    for s in (0, 2):
        k = int(found.iterations[s])
        right = reference(SMALL.to_scipy().toarray(), b[s].numpy(), omega, x0[s].numpy(), k)
        assert np.allclose(found.history[s, : k + 1], right, rtol=1e-8)
        assert (found.history[s, k:] == found.residual[s]).all()
        assert right[k] <= 1e-6 * b[s].norm() < right[k - 1]
        assert float((b[s] - SMALL.matvec(found.x[s : s + 1])[0]).norm()) <= 1.0001e-6 * b[s].norm()


@pytest.mark.usefixtures("compiled")
def test_what_is_not_solved_says_so():
    b = draw(2, 36)
    found = sor(SMALL, b, 1.0, rtol=1e-10, max_iter=3, throw=False)
    assert found.status.tolist() == [LinearStatus.MAX_ITER] * 2
    assert found.iterations.tolist() == [3, 3]
    with pytest.raises(LinearSolveError, match="max_iter=3"):
        sor(SMALL, b, 1.0, rtol=1e-10, max_iter=3)
    wild = torch.tensor([[1.0, 9.0], [9.0, 1.0]], dtype=torch.float64)  # indefinite
    found = sor(wild, torch.ones(2, dtype=torch.float64), 1.9, throw=False)
    assert found.status.tolist() == [LinearStatus.NON_FINITE]
    assert found.x.isfinite().all()
    b[1, 3] = math.nan
    assert sor(SMALL, b, 1.5, throw=False).status.tolist() == [
        LinearStatus.CONVERGED,
        LinearStatus.NON_FINITE,
    ]
    assert sor(SMALL, draw(0, 36), 1.5).x.shape == (0, 36)
    zero = sor(SMALL, torch.zeros(36, dtype=torch.float64), 1.5, draw(1, 36)[0])
    assert not zero.x.any()
    assert zero.iterations.tolist() == [0]


def test_bad_input_is_refused():
    a, b = SMALL, draw(1, 36)[0]
    for make, error, message in [
        (lambda: sor(a, b, 2.0), ValueError, "omega: expected a number in"),
        (lambda: sor(a, b, 1.0, rtol=-1.0), ValueError, "rtol: expected"),
        (lambda: sor(a, b, 1.0, max_iter=0), ValueError, "max_iter: expected"),
        (lambda: sor(a, b[:5], 1.0), ValueError, "b: expected the shape"),
        (lambda: sor(a, b.float(), 1.0), TypeError, "b: expected a tensor of A's dtype"),
        (lambda: sor(-torch.eye(2), torch.ones(2), 1.0), ValueError, "positive diagonal"),
        (lambda: sor(FunctionOperator(lambda x: x, 36), b, 1.0), TypeError, "SOR expects a SparseOperator"),
    ]:
        with pytest.raises(error, match=message):
            make()


@pytest.mark.parametrize("m", [3, 12])
def test_youngs_formula_is_that_of_the_grid(m: int):
    """For the five-point formula mu = cos(pi h), and w takes the fewest sweeps of all to the round-off of the count."""
    line = sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(m, m))
    a = SparseOperator.from_scipy(sp.kronsum(line, line))
    best = young_omega(a)
    assert math.isclose(best, 2 / (1 + math.sin(math.pi / (m + 1))), rel_tol=1e-6)

    def count(omega: float) -> Tensor:
        return sor(a, draw(1, m * m), omega, rtol=1e-10).iterations

    assert count(best) <= min(count(best + step) for step in (-0.15, -0.05, 0.05)) + 2
