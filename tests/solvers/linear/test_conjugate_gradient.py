import pickle
import re

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import cg, spsolve
from torch import Tensor

from sciml.errors import LinearSolveError
from sciml.solvers.linear import (
    CG,
    FSAI,
    GMRES,
    SSOR,
    Aggregation,
    Chebyshev,
    DenseOperator,
    FunctionOperator,
    IncompleteCholesky,
    Jacobi,
    LinearStatus,
    Preconditioner,
    Prepared,
    Single,
    SparseOperator,
    StencilOperator,
    jacobian,
    pcg,
    sor,
)
from tests.solvers.linear.bad import Bad
from tests.solvers.linear.spd import diffusion, draw, operator
from tests.solvers.systems import DTYPE

OK, MAX_ITER, BREAKDOWN, NON_FINITE = (status.value for status in LinearStatus)


@pytest.mark.parametrize("preconditioner", [None, Jacobi(), IncompleteCholesky()], ids=["none", "jacobi", "ic"])
def test_solutions_and_counts_are_those_of_scipy(preconditioner: Preconditioner | None):
    a, b = diffusion(20, 100.0), draw(3, 400)
    op = SparseOperator.from_scipy(a)
    found = pcg(op, b, preconditioner, rtol=1e-10)
    assert found.converged.all()
    assert (found.residual <= 1e-10 * b.norm(dim=-1)).all()
    prepared = preconditioner and preconditioner.setup(op)
    apply = lambda r: prepared.apply(torch.from_numpy(r)[None])[0].numpy()  # noqa: E731
    inverse = ScipyOperator(a.shape, apply) if prepared else None
    for k, row in enumerate(b.numpy()):
        counted: list[int] = []
        _, info = cg(a, row, rtol=1e-10, M=inverse, callback=lambda _, counted=counted: counted.append(1))
        assert info == 0
        assert abs(len(counted) - int(found.iterations[k])) <= 1 + 0.02 * len(counted)  # round-off delays
        exact = spsolve(a.tocsc(), row)
        assert np.abs(found.x[k].numpy() - exact).max() < 1e-8 * np.abs(exact).max()  # rtol times some of the condition


def test_each_right_hand_side_is_solved_as_if_alone():
    a, b = operator(16, 50.0), draw(4, 256)
    b[1] = 0
    b[2] = a.matvec(torch.ones(1, 256, dtype=DTYPE))[0] * 1e-9
    together = pcg(a, b, Jacobi())
    assert int(together.iterations[1]) == 0
    assert torch.equal(together.x[1], torch.zeros(256, dtype=DTYPE))
    for row, x, iterations in zip(b, together.x, together.iterations, strict=True):
        alone = pcg(a, row, Jacobi())
        assert int(alone.iterations) == int(iterations)
        assert torch.allclose(alone.x, x, rtol=1e-12, atol=1e-12 * float(x.norm()))  # sums in another order
    ended = together.history[2, int(together.iterations[2]) :]
    assert torch.equal(ended, ended[:1].expand_as(ended))


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize(
    "case", ["solved", "tiny", "too few", "indefinite", "infinite", "breaks down late", "overflows"]
)
def test_one_right_hand_side_fares_as_among_others(case: str, flexible: bool):
    """Alone its iteration keeps numbers on a CPU, in the place of tensors."""
    a, b = operator(16).dense()[0], draw(2, 256)
    options = {"too few": {"max_iter": 7}, "breaks down late": {"rtol": 1e-30}, "tiny": {"M": Jacobi()}}.get(case, {})
    if case == "tiny":
        a *= 1e-160  # products of its numbers overflow
    elif case == "indefinite":
        a[100, 100] *= -1
    elif case == "infinite":
        a[100, 100] = torch.nan
    elif case == "overflows":
        a *= 1e307 / a.max()
    together, alone = (pcg(a, b[:n], flexible=flexible, throw=False, **options) for n in (2, 1))
    assert alone.status.tolist() == together.status[:1].tolist()
    if case == "breaks down late":  # where round-off says
        assert abs(int(alone.iterations) - int(together.iterations[0])) < 30
        return
    assert alone.iterations.tolist() == together.iterations[:1].tolist()
    k = len(alone.history)
    assert torch.allclose(alone.history[:, 0], together.history[:k, 0], rtol=1e-8, equal_nan=True)
    assert torch.allclose(alone.x[0], together.x[0], rtol=1e-8, atol=1e-12)


def test_one_right_hand_side_fares_as_among_others_where_a_step_is_too_long_for_single_precision():
    a = torch.tensor([[4.0, 1.0], [1.0, 3.0]]) * 1e-39
    assert [pcg(a, torch.ones(n, 2), throw=False).status.tolist() for n in (1, 2)] == [[3], [3, 3]]


def test_looks_are_rare_and_change_nothing():
    a, b = operator(16), draw(2, 256)
    often, rarely = (pcg(a, b, Jacobi(), check_every=every) for every in (1, 10))
    assert torch.equal(often.iterations, rarely.iterations)
    assert torch.allclose(often.x, rarely.x, rtol=1e-13, atol=1e-13)


def test_nothing_to_solve():
    a = operator(4)
    assert pcg(a, draw(0, 16)).x.shape == (0, 16)
    guess = draw(16)
    zero = pcg(a, torch.zeros(16, dtype=DTYPE), x0=guess)
    assert torch.equal(zero.x, torch.zeros(16, dtype=DTYPE))
    assert zero.status.tolist() == [OK]
    known = pcg(a, a.matvec(guess[None])[0], x0=guess)
    assert known.iterations.tolist() == [0]
    assert torch.equal(known.x, guess)


def test_matrices_of_every_kind():
    a, b = diffusion(6), draw(36)
    exact = torch.from_numpy(spsolve(a.tocsc(), b.numpy()))
    dense = torch.from_numpy(a.toarray())
    near = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    weights = torch.tensor([4.0, -1, -1, -1, -1], dtype=DTYPE)[:, None, None]
    csr = torch.sparse_csr_tensor(*map(torch.from_numpy, (a.indptr, a.indices, a.data)), a.shape, check_invariants=True)
    for kind in (
        dense,
        dense.to_sparse(),
        csr,
        StencilOperator(near, weights, (6, 6)),
        FunctionOperator(lambda x: x @ dense, 36, DTYPE),
    ):
        assert torch.allclose(pcg(kind, b, Jacobi(), rtol=1e-12).x, exact, rtol=1e-9, atol=1e-10)


def test_gradients_to_matrix_and_right_hand_side():
    a = operator(4, 10.0)
    lower = torch.nonzero(a.compressed.col <= a.compressed.row).squeeze(-1)
    up = a.compressed.turned[2]  # where the transposed entries are

    def solution(half: Tensor, b: Tensor) -> Tensor:
        values = torch.zeros(a.compressed.nnz, dtype=DTYPE).index_put((lower,), half)
        symmetric = torch.where(a.compressed.col <= a.compressed.row, values, values[up])
        return pcg(a.with_values(symmetric), b, Jacobi(), rtol=1e-13).x

    inputs = a.compressed.values[lower].clone().requires_grad_(), draw(2, 16).requires_grad_()
    assert torch.autograd.gradcheck(solution, inputs, check_forward_ad=True)
    near = [(0,), (1,), (-1,)]
    stencil = lambda d, b: pcg(StencilOperator(near, torch.stack([d, -1 + 0 * d, -1 + 0 * d])), b, rtol=1e-13).x  # noqa: E731
    assert torch.autograd.gradcheck(
        stencil, ((3 + draw(8) ** 2).requires_grad_(), draw(8).requires_grad_()), check_forward_ad=True
    )
    scaled = lambda c, b: pcg(FunctionOperator(lambda x: c * x, 4, DTYPE), b, rtol=1e-13).x  # noqa: E731
    assert torch.autograd.gradcheck(
        scaled, ((1 + draw(4) ** 2).requires_grad_(), draw(3, 4).requires_grad_()), check_forward_ad=True
    )


def test_solutions_have_tangents_under_transforms():
    a, (b, db) = operator(4, 10.0), (draw(2, 16, seed=s) for s in (1, 2))
    tangent = torch.func.jvp(lambda b: pcg(a, b, rtol=1e-13).x, (b,), (db,))[1]
    assert torch.allclose(tangent, pcg(a, db, rtol=1e-13).x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "preconditioner",
    [
        Jacobi(),
        IncompleteCholesky(),
        FSAI(),
        SSOR(1.6),
        Chebyshev(),
        Aggregation(Chebyshev()),
        Aggregation(FSAI(), damping=0.66),
    ],
    ids=repr,
)
def test_lower_precision_inside(preconditioner):
    a, b = operator(24, 1e3), draw(576)
    single = Single(preconditioner)
    prepared = single.setup(a)
    assert prepared.dtype == torch.float32
    assert prepared.apply(b[None].float()).dtype == torch.float32
    found, double = pcg(a, b, single, rtol=1e-11), pcg(a, b, preconditioner, rtol=1e-11)
    assert found.x.dtype == DTYPE
    assert float(found.residual) <= 1e-11 * float(b.norm())
    assert int(found.iterations) <= 1.1 * int(double.iterations) + 1


def test_lower_precision_needs_entries_within_its_range():
    with pytest.raises(TypeError, match="A: Single expects a SparseOperator or a StencilOperator"):
        pcg(FunctionOperator(lambda x: 2 * x, 4, DTYPE), draw(4), Single(Jacobi()))
    a = operator(4, 1.0)
    with pytest.raises(ValueError, match="A: Single expects entries within the range of float32"):
        pcg(a.with_values(a.compressed.values * 1e40), draw(16), Single(Jacobi()))


class Turning(Prepared):
    """A preconditioner that changes from one application to the next."""

    def __init__(self, n: int):
        self.dtype, self.count = DTYPE, 0

    def apply(self, r: Tensor) -> Tensor:
        self.count += 1
        weights = 1 + 0.9 * (torch.arange(r.shape[-1], dtype=DTYPE) * 0.7 + self.count).sin()
        return weights * r


def test_flexible_form_bears_a_preconditioner_that_changes():
    a, b = operator(16), draw(256)
    plain = pcg(a, b, Turning(256), max_iter=400, throw=False)
    flexible = pcg(a, b, Turning(256), max_iter=400, flexible=True, throw=False)
    assert flexible.status.tolist() == [OK]
    assert int(flexible.iterations) < int(plain.iterations)


def test_what_cannot_be_solved_is_told():
    a = np.diag([1.0, 2.0, 3.0, 4.0])
    b = torch.ones(2, 4, dtype=DTYPE)
    state = lambda a, b=b, **options: pcg(  # noqa: E731
        torch.as_tensor(a, dtype=DTYPE), b, throw=False, **options
    ).status.tolist()
    assert state(np.diag([1.0, 2.0, -3.0, 4.0])) == [BREAKDOWN, BREAKDOWN]
    laplacian = np.array([[1.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 1]])
    inside = torch.tensor([1.0, -1, 1, -1], dtype=DTYPE)
    assert state(laplacian, torch.stack([inside, 1 + inside])) == [OK, BREAKDOWN]  # singular; consistent and not
    assert state(a * np.array([1.0, 1, np.nan, 1])) == [NON_FINITE, NON_FINITE]
    bad = torch.stack([b[0], b[1] * torch.inf])
    assert state(a, bad) == [OK, NON_FINITE]
    hilbert = 1 / (np.arange(12)[:, None] + np.arange(12) + 1.0)
    assert state(hilbert, torch.ones(12, dtype=DTYPE), rtol=1e-15) in ([BREAKDOWN], [MAX_ITER])
    assert pcg(operator(16), draw(256), max_iter=3, throw=False).status.tolist() == [MAX_ITER]


def test_failed_solve_leaves_finite_numbers():
    a = 1e308 * torch.eye(3, dtype=DTYPE)
    found = pcg(a, torch.ones(3, dtype=DTYPE), throw=False)
    assert found.status.tolist() == [NON_FINITE]
    assert found.x.isfinite().all()


def test_failure_is_an_error_unless_asked_otherwise():
    a = operator(16)
    with pytest.raises(LinearSolveError, match=r"2 of 3 .*right-hand side 0: max_iter at .*raise max_iter") as caught:
        pcg(a, torch.stack([draw(256), torch.zeros(256, dtype=DTYPE), draw(256, seed=5)]), max_iter=2)
    assert caught.value.rows == (0, 2)
    assert pickle.loads(pickle.dumps(caught.value)).status == (LinearStatus.MAX_ITER,) * 2


@pytest.mark.parametrize("size", [1e-170, 1e-23, 1e20, 1e200])
@pytest.mark.parametrize("solver", ["pcg", "gmres", "sor"])
def test_size_of_the_right_hand_side_does_not_matter(solver: str, size: float):
    """Its square is not to vanish or to overflow, in either precision."""
    for dtype in (torch.float64, torch.float32):
        if not torch.finfo(dtype).tiny < size < torch.finfo(dtype).max:
            continue
        a, b = operator(6).to(dtype), draw(2, 36).to(dtype)
        solve = {
            "pcg": lambda b, a=a: pcg(a, b, rtol=1e-5).x,
            "gmres": lambda b, a=a: GMRES(1e-5, restart=40).inverse(a)(b)[0],
            "sor": lambda b, a=a: sor(a, b, 1.5, rtol=1e-5).x,
        }[solver]
        assert torch.allclose(solve(size * b) / size, solve(b), rtol=1e-3)
    gradients = []
    for scale in (1.0, 1e-170):
        b = draw(36).requires_grad_()
        (scale * pcg(operator(6), b).x).sum().backward()
        assert b.grad is not None
        gradients.append(b.grad / scale)
    assert torch.allclose(*gradients, rtol=1e-6)


def test_what_is_not_finite_stays_so_inside_a_march_and_in_gradients():
    a, bad = operator(4), torch.full((1, 16), torch.nan, dtype=DTYPE)
    x, _ = CG().inverse(a)(bad)
    assert x.isnan().all()
    b = draw(16).requires_grad_()
    (pcg(a, b).x * torch.nan).sum().backward()
    assert b.grad is not None
    assert b.grad.isnan().all()


def test_single_precision_has_its_own_tolerance():
    a, b = operator(12).to(torch.float32), draw(144).float()
    found = pcg(a, b)
    assert float(found.residual) <= 1e-5 * float(b.norm())
    for solver in (CG(), CG(rtol=1e-12)):  # which is raised to ten roundings inside a march
        assert solver.inverse(a)(b[None])[1].all()


def test_gradient_that_was_not_found_is_an_error_unless_asked_otherwise():
    a = operator(16)
    b = a.matvec(torch.ones(1, 256, dtype=DTYPE))[0].requires_grad_()
    exact = torch.ones(256, dtype=DTYPE)  # no iterations forward, many backward
    with pytest.raises(LinearSolveError, match="the system of the gradient was not solved"):
        (pcg(a, b, x0=exact, max_iter=3).x * draw(256)).sum().backward()
    (pcg(a, b, x0=exact, max_iter=3, throw=False).x * draw(256)).sum().backward()
    assert b.grad is not None
    assert b.grad.isnan().all()


def test_tensors_with_columns_in_any_order():
    """Twice the same column, too; torch's contract forbids both, and does not ask."""
    crow, col = torch.tensor([0, 3, 5]), torch.tensor([1, 0, 0, 1, 0])
    values = torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0], dtype=DTYPE)  # [[2, 1], [1, 3]]
    a = torch.sparse_csr_tensor(crow, col, values, (2, 2), check_invariants=False)
    b = torch.tensor([3.0, 4.0], dtype=DTYPE)
    for m in (None, Jacobi(), FSAI(), IncompleteCholesky()):
        assert torch.allclose(pcg(a, b, m).x, torch.ones(2, dtype=DTYPE))
    weights = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=DTYPE, requires_grad=True)
    a = torch.sparse_csr_tensor(
        torch.tensor([0, 2, 4]), torch.tensor([1, 0, 1, 0]), weights, (2, 2), check_invariants=False
    )
    pcg(a, b, FSAI()).x.sum().backward()
    dense = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=DTYPE, requires_grad=True)
    torch.linalg.solve(dense, b).sum().backward()
    assert weights.grad is not None
    assert torch.allclose(weights.grad[[1, 0, 3, 2]], dense.grad.flatten())
    assert torch.allclose(pcg(torch.eye(3).to_sparse_csc(), torch.ones(3)).x, torch.ones(3))


def test_many_vectors_share_a_matrix_known_by_its_products():
    a = FunctionOperator(lambda x: x @ torch.diag(torch.arange(1.0, 4, dtype=DTYPE)), 3, DTYPE)
    b = draw(4, 3).requires_grad_()
    x, known = GMRES(1e-12).inverse(a)(b)
    assert known.all()
    x.sum().backward()
    assert torch.allclose(b.grad, 1 / torch.arange(1.0, 4, dtype=DTYPE).expand(4, 3))
    slope = jacobian(lambda y: 2 * y, torch.zeros(3, dtype=DTYPE))
    assert torch.allclose(pcg(slope, b.detach()).x, b.detach() / 2)


class Wrong(Preconditioner):
    """What a network might learn on a bad day; the identity takes over."""

    def __init__(self, sign: float, fallback: Preconditioner | None):
        self.sign, self.fallback = sign, fallback

    def setup(self, operator: SparseOperator) -> Prepared:
        prepared = Jacobi().setup(operator)
        prepared.inverse = self.sign * prepared.inverse  # pyrefly: ignore[missing-attribute]
        return prepared


def test_fallback_finishes_and_says_so():
    a, b = operator(12, 10.0), draw(2, 144)
    assert pcg(a, b, Wrong(-1.0, None), throw=False).status.tolist() == [BREAKDOWN, BREAKDOWN]
    found = pcg(a, torch.stack([b[0], 0 * b[0]]), Wrong(-1.0, FSAI()))
    assert found.status.tolist() == [OK, OK]
    assert found.fell_back.tolist() == [True, False]
    inside, known = CG(Wrong(-1.0, FSAI())).inverse(a)(b)
    assert known.all()
    assert torch.allclose(inside, pcg(a, b).x, rtol=1e-6, atol=1e-8)
    fine = pcg(a, b, Wrong(1.0, FSAI()))
    assert fine.fell_back.tolist() == [False, False]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_preconditioner_that_is_not_finite_leaves_the_guess_to_the_fallback(number: float, rows: int):
    a, b = operator(12, 10.0), draw(rows, 144)
    lost = pcg(a, b, Bad(lambda r: number * r), x0=draw(rows, 144, seed=2), throw=False)
    assert lost.status.tolist() == [NON_FINITE] * rows
    assert torch.equal(lost.x, draw(rows, 144, seed=2))
    found = pcg(a, b, Bad(lambda r: number * r, Jacobi()))
    assert found.fell_back.all()
    assert torch.allclose(found.x, pcg(a, b).x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rows", [1, 2])
def test_preconditioner_that_hardly_helps_is_given_up(rows: int):
    """Its product with the matrix has a condition of 1e12; alone it is left to go on."""
    a, b = operator(12, 10.0), draw(rows, 144)
    scales = torch.logspace(-6, 6, 144, dtype=DTYPE)[torch.randperm(144, generator=torch.Generator().manual_seed(0))]
    assert (pcg(a, b, Bad(lambda r: scales * r), throw=False, max_iter=1000).iterations == 1000).all()
    found = pcg(a, b, Bad(lambda r: scales * r, FSAI()))
    assert found.fell_back.all()
    assert (found.iterations < 300).all()  # twice a hundred, and 20


def test_solver_of_implicit_methods():
    """Batches of matrices, each with its own."""
    a = torch.stack([torch.diag(draw(5, seed=s) ** 2 + 1) + 0.3 * torch.ones(5, 5, dtype=DTYPE) for s in (1, 2, 3)])
    b = draw(3, 5)
    x, found = CG(Jacobi(), rtol=1e-13).inverse(DenseOperator(a))(b)
    assert found.all()
    assert torch.allclose(x, torch.linalg.solve(a, b), rtol=1e-11)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_matrices_of_any_size_are_known_to_be_symmetric(size: float):
    """In single precision, where squares of their entries vanish or are infinite."""
    a = size * (2.1 * torch.eye(30) - torch.diag(torch.ones(29), 1) - torch.diag(torch.ones(29), -1))
    solution = pcg(a, torch.ones(30))
    torch.testing.assert_close(size * solution.x, torch.linalg.solve(a / size, torch.ones(30)), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="symmetric"):
        pcg(a.triu(), torch.ones(30))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"A": np.eye(4)},
            TypeError,
            "A: expected a LinearOperator, a real tensor or a sparse scipy matrix",
        ),
        ({"A": torch.ones(3, 4)}, ValueError, "A: expected a square matrix"),
        ({"A": torch.ones(0, 0), "b": torch.ones(0)}, ValueError, "A: expected at least one unknown"),
        ({"b": torch.ones(4)}, TypeError, "b: expected a tensor of A's dtype torch.float64, got torch.float32"),
        ({"b": torch.ones(2, 5, dtype=DTYPE)}, ValueError, "b: expected the shape (4,) or (m, 4)"),
        ({"x0": torch.ones(2, 4, dtype=DTYPE)}, ValueError, "x0: expected the shape (4,) of b, got (2, 4)"),
        ({"rtol": -1.0}, ValueError, "rtol: expected"),
        ({"max_iter": 0}, ValueError, "max_iter: expected"),
        ({"max_iter": 2.5}, TypeError, "max_iter: expected a whole number, got float"),
        ({"M": Jacobi}, TypeError, "M: expected a Preconditioner or None, got the class Jacobi"),
        ({"A": torch.eye(4, dtype=torch.float16)}, TypeError, "A: expected float32 or float64, got torch.float16"),
        ({"check_every": 0}, ValueError, "check_every: expected"),
        ({"A": torch.triu(torch.ones(4, 4, dtype=DTYPE))}, ValueError, "A: conjugate gradients expect a symmetric"),
    ],
)
def test_mistakes_are_named(change: dict, error: type[Exception], message: str):
    arguments = {"A": torch.eye(4, dtype=DTYPE), "b": torch.ones(4, dtype=DTYPE)} | change
    with pytest.raises(error, match=re.escape(message)):
        pcg(arguments.pop("A"), arguments.pop("b"), **arguments)
