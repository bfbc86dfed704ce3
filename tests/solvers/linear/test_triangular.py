import copy
import pickle
import weakref

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from sciml.solvers.linear import FSAI, SSOR, IncompleteCholesky, Preconditioner, SparseOperator, pcg
from sciml.solvers.linear.triangular import Lower
from sciml.solvers.linear.triangular_kernels import WINDOW
from tests.solvers.linear.spd import diffusion, draw
from tests.solvers.systems import DTYPE

SMALL = diffusion(5, 30.0)


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)  # some ten operations on numbers of size 1


@pytest.mark.usefixtures("compiled")
def test_triangular_solves_and_their_gradients():
    lower = Lower.of(SparseOperator.from_scipy(SMALL).compressed)
    dense, b = lower.compressed.dense(), draw(3, 25)
    assert near(lower.solve(b), torch.linalg.solve(dense, b.mT).mT)
    assert near(lower.solve(b, transposed=True), torch.linalg.solve(dense.mT, b.mT).mT)
    assert near(lower.solve(b.mT.contiguous().mT), lower.solve(b))  # strides do not matter
    for transposed in (False, True):
        solve = lambda values, b, t=transposed: lower.with_values(values).solve(b, t)  # noqa: E731
        inputs = lower.compressed.values.clone().requires_grad_(), b.clone().requires_grad_()
        assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(solve, inputs, check_fwd_over_rev=True)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("reach", [3, 700, 10_000])
def test_triangular_solves_in_windows_are_those_of_scipy(reach: int):
    generator, n = np.random.default_rng(reach), 2 * WINDOW + 17  # rows of 0 to some entries, from here and far away
    row = np.sort(generator.integers(1, n, 3 * n))
    col = row - 1 - generator.integers(0, np.minimum(row, reach))
    matrix = (sp.coo_matrix((generator.standard_normal(3 * n) / 3, (row, col)), (n, n)) + 2 * sp.eye(n)).tocsr()
    lower, b = Lower.of(SparseOperator.from_scipy(matrix).compressed), draw(2, n)
    for transposed, triangle in ((False, matrix), (True, matrix.T.tocsr())):
        expected = sp.linalg.spsolve_triangular(triangle, b.numpy().T, lower=not transposed).T
        assert near(lower.solve(b, transposed), torch.from_numpy(expected))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("preconditioner", [IncompleteCholesky(), SSOR(), FSAI()])
@pytest.mark.parametrize("cells", [4, 6])
def test_preconditioners_of_matrices_of_another_size_are_refused(preconditioner: Preconditioner, cells: int):
    prepared, other = preconditioner.setup(SparseOperator.from_scipy(SMALL)), diffusion(cells, 30.0)
    with pytest.raises(ValueError, match=f"M: it was set up for a matrix of 25 unknowns, got one of {cells**2}"):
        pcg(other, draw(1, cells**2)[0], prepared)


def test_factors_of_computed_entries_can_be_copied():
    theta = torch.ones((), dtype=DTYPE, requires_grad=True)
    operator = SparseOperator.from_scipy(SMALL)
    prepared, b = SSOR().setup(operator.with_values(theta * operator.compressed.values)), draw(2, 25)
    expected = prepared.apply(b)
    assert torch.equal(copy.deepcopy(prepared).apply(b), expected)
    assert torch.equal(pickle.loads(pickle.dumps(prepared)).apply(b), expected)


@pytest.mark.usefixtures("compiled")
def test_factors_are_freed_at_once_and_share_the_order_of_solves():
    lower = Lower.of(SparseOperator.from_scipy(SMALL).compressed)
    other, b = lower.with_values(2 * lower.compressed.values), draw(1, 25)
    assert near(4 * other.solve_twice(b), lower.solve_twice(b))
    assert lower.known is other.known
    assert len(other.known) == 1
    alive = weakref.ref(lower)
    del lower  # a cycle of references would wait for the collector, with all of a large factor's memory
    assert alive() is None
