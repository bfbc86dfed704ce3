import pytest
import torch
from torch import Tensor

from sciml.solvers.linear import (
    DenseOperator,
    FunctionOperator,
    LinearOperator,
    ShiftedOperator,
    SparseOperator,
    StencilOperator,
    jacobian,
)
from sciml.solvers.linear.operator import CoupledOperator
from tests.solvers.systems import DTYPE

M, N = 3, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def field(y: Tensor) -> Tensor:
    return y.sin() * y.roll(1, -1)


def derivative(y: Tensor) -> Tensor:
    """d field / dy of every row (m, n, n)."""
    n = y.shape[-1]
    eye = torch.eye(n, dtype=DTYPE)
    return (y.cos() * y.roll(1, -1)).diag_embed() + y.sin()[..., None] * eye.roll(1, 0)


STEP = torch.tensor([0.1, 0.0, -0.3], dtype=DTYPE)
MASS = DenseOperator(draw(M, N, N, seed=3))
STAGES = [jacobian(field, draw(M, N, seed=s), M) for s in (4, 5)]
WEIGHTS = draw(2, 2, seed=6)


def by_hand(mass: Tensor | None) -> Tensor:
    """The coupled operator's matrix, block by block; the identity where the step is 0."""
    eye = torch.eye(N, dtype=DTYPE)
    whole = torch.zeros(M, 2 * N, 2 * N, dtype=DTYPE)
    for i in range(2):
        for j in range(2):
            block = -STEP[:, None, None] * WEIGHTS[i, j] * derivative(STAGES[j].y)
            if i == j:
                block = block + torch.where(STEP[:, None, None] == 0, eye, eye if mass is None else mass)
            whole[:, i * N : (i + 1) * N, j * N : (j + 1) * N] = block
    return whole


def thinned(n: int) -> Tensor:
    """A matrix with zeros, some of them on its diagonal and one row of them."""
    a = draw(n, n, seed=8)
    a[a.abs() < 0.7] = 0
    a[2] = 0
    return a


GRID = (3, 4)
OFFSETS = [(0, 0), (1, 0), (0, -1), (-2, 1), (3, 0)]
COEFFICIENTS = draw(len(OFFSETS), *GRID, seed=9)


def stencil(periodic: bool) -> Tensor:
    """The stencil's matrix, entry by entry."""
    cells = [(i, j) for i in range(GRID[0]) for j in range(GRID[1])]
    a = torch.zeros(len(cells), len(cells), dtype=DTYPE)
    for s, (di, dj) in enumerate(OFFSETS):
        for row, (i, j) in enumerate(cells):
            there = (i + di, j + dj)
            if periodic:
                there = (there[0] % GRID[0], there[1] % GRID[1])
            if there in cells:
                a[row, cells.index(there)] += COEFFICIENTS[s, i, j]
    return a


J = jacobian(field, draw(M, N), M)
CASES = {
    "dense": (DenseOperator(draw(M, N, N)), draw(M, N, N)),
    "one for all": (DenseOperator(draw(N, N), M), draw(N, N).expand(M, N, N)),
    "jacobian": (J, derivative(J.y)),
    "shifted": (ShiftedOperator(None, J, STEP), torch.eye(N, dtype=DTYPE) - STEP[:, None, None] * derivative(J.y)),
    "by a number": (ShiftedOperator(None, J, 0.5), torch.eye(N, dtype=DTYPE) - 0.5 * derivative(J.y)),
    "with a mass": (ShiftedOperator(MASS, J, 0.5), MASS.matrix - 0.5 * derivative(J.y)),
    "sparse": (SparseOperator.from_scipy(thinned(6).numpy()), thinned(6)[None]),
    "function": (FunctionOperator(lambda x: x @ thinned(6).mT, 6, DTYPE), thinned(6)[None]),
    "stencil": (StencilOperator(OFFSETS, COEFFICIENTS), stencil(False)[None]),
    "periodic stencil": (StencilOperator(OFFSETS, COEFFICIENTS, periodic=True), stencil(True)[None]),
    "stored stencil": (StencilOperator(OFFSETS, COEFFICIENTS).sparse(), stencil(False)[None]),
    "coupled": (CoupledOperator(None, STAGES, WEIGHTS, STEP), by_hand(None)),
    "coupled with a mass": (CoupledOperator(MASS, STAGES, WEIGHTS, STEP), by_hand(MASS.matrix)),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_operator_is_its_matrix(case: str, transposed: bool):
    operator, matrix = CASES[case]
    if transposed:
        operator, matrix = operator.transpose(), matrix.mT
    m, n, _ = operator.shape
    x = draw(m, n, seed=1)
    near = lambda a, b: torch.allclose(a, b, rtol=1e-13, atol=1e-13)  # noqa: E731  (sums of some ten terms of size 1)
    assert tuple(matrix.shape) == operator.shape
    assert near(operator.dense(), matrix)
    assert near(LinearOperator.dense(operator), matrix)
    assert near(operator.matvec(x), (matrix @ x[..., None]).squeeze(-1))
    assert near(operator.diagonal(), matrix.diagonal(dim1=-2, dim2=-1))
    assert near(operator.transpose().dense(), matrix.mT)


def test_step_of_no_length_has_the_identity_even_with_a_singular_mass():
    shifted = ShiftedOperator(DenseOperator(torch.zeros(M, N, N, dtype=DTYPE)), J, STEP)
    assert torch.equal(shifted.dense()[1], torch.eye(N, dtype=DTYPE))
    x = draw(M, N)
    assert torch.equal(shifted.matvec(x)[1], x[1])


def test_whole_state_is_one_system():
    y = draw(2, 3)
    matrix = jacobian(lambda y: y.flip(0) ** 2, y).dense()
    right = torch.autograd.functional.jacobian(lambda y: y.flip(0) ** 2, y).reshape(1, 6, 6)
    assert torch.equal(matrix, right)


@pytest.mark.parametrize("n", [3, 12])  # one by one, and at once
def test_jacobian_without_a_graph_is_the_same(n: int):
    y = draw(2, n)
    with torch.inference_mode():
        assert torch.allclose(jacobian(field, y.clone(), 2).dense(), derivative(y), rtol=1e-13, atol=1e-13)
    hidden = torch.no_grad()(field)
    assert torch.allclose(jacobian(hidden, y, 2).dense(), derivative(y), rtol=1e-13, atol=1e-13)


def test_jacobian_records_a_graph_only_where_something_needs_it():
    weight = torch.tensor(2.0, dtype=DTYPE, requires_grad=True)
    y = draw(2, 3)
    assert not jacobian(field, y, 2).dense().requires_grad
    matrix = jacobian(lambda y: weight * y**2, y, 2).dense()
    (grad,) = torch.autograd.grad(matrix.sum(), weight)
    assert torch.allclose(grad, 2 * y.sum())


@pytest.mark.parametrize("n", [2, 12])  # one by one, and at once
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_jacobian_of_what_does_not_depend_on_the_state_is_zero(n: int, mode: type):
    weight = torch.ones(n, dtype=DTYPE, requires_grad=True)  # the value has a gradient, but not of y
    with mode():
        right = torch.zeros(1, n, n, dtype=DTYPE)
        assert torch.equal(jacobian(lambda y: weight * 2, torch.ones(n, dtype=DTYPE)).dense(), right)
        assert torch.equal(jacobian(lambda y: torch.ones_like(y), torch.ones(n, dtype=DTYPE)).dense(), right)


def test_jacobian_of_a_number_in_single_precision_is_in_single_precision():
    """Torch gives the product of a 0-d tensor and a number a tangent in double precision."""
    with torch.inference_mode():
        assert jacobian(lambda y: y * torch.nan, torch.ones(())).dense().dtype is torch.float32


def test_matrix_of_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"matrix: expected the shape \(n, n\) or \(1, n, n\), got \(2, 3\)"):
        DenseOperator(torch.ones(2, 3))
