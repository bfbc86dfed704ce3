from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.linalg import cholesky
from scipy.sparse.linalg import LinearOperator as LinearOperatorOfScipy
from scipy.sparse.linalg import cg
from torch import Tensor

from sciml.problems import Diffusion, FiniteElements, TwoPhase
from sciml.problems.linear_systems import Space
from sciml.solvers.linear import (
    FSAI,
    SSOR,
    Aggregation,
    AlgebraicMultigrid,
    Chebyshev,
    FunctionOperator,
    IncompleteCholesky,
    Jacobi,
    Preconditioner,
    Prepared,
    Single,
    SparseOperator,
    ThresholdCholesky,
    kernels,
    pcg,
)
from sciml.solvers.linear.aggregation import constant, pairwise, smoothed, soft, spatial
from sciml.solvers.linear.approximate_inverse import LEAST, Inverse, approximate_inverse, strongest
from sciml.solvers.linear.chebyshev import largest
from sciml.solvers.linear.sparse import Compressed
from tests.solvers.linear.bad import Bad
from tests.solvers.linear.spd import diffusion, draw, operator
from tests.solvers.systems import DTYPE

SMALL = diffusion(5, 30.0)
WHOLE = torch.from_numpy(SMALL.toarray())
BLOCKS = torch.arange(25) // 5


def matrix(preconditioner: Preconditioner, a: sp.csr_matrix) -> Tensor:
    """What a preconditioner multiplies by, column by column."""
    return matrix_of(preconditioner.setup(SparseOperator.from_scipy(a)), a.shape[0])


def matrix_of(prepared: Prepared, n: int) -> Tensor:
    return prepared.apply(torch.eye(n, dtype=DTYPE)).mT


def near(a: Tensor, b: Tensor | np.ndarray) -> bool:
    return torch.allclose(a, torch.as_tensor(b), rtol=1e-12, atol=1e-12)  # some ten operations on numbers of size 1


def test_jacobi_and_ssor_are_their_formulas():
    a = SMALL.toarray()
    d, low = np.diag(np.diag(a)), np.tril(a, -1)
    assert near(matrix(Jacobi(), SMALL), np.linalg.inv(d))
    for w in (1.0, 1.6):
        m = (d + w * low) @ np.linalg.inv(d) @ (d + w * low).T / (w * (2 - w))
        assert near(matrix(SSOR(w), SMALL), np.linalg.inv(m))


def test_incomplete_factor_is_the_libraries_and_the_whole_one_where_nothing_falls_outside():
    ilupp = pytest.importorskip("ilupp")
    (lower,) = ilupp.IChol0Preconditioner(SMALL).factors()
    prepared = IncompleteCholesky().setup(SparseOperator.from_scipy(SMALL))
    assert near(prepared.lower.compressed.dense(), lower.toarray())
    full = sp.csr_matrix(SMALL.toarray() + 0.01)  # a pattern without zeros
    whole = IncompleteCholesky().setup(SparseOperator.from_scipy(full)).lower.compressed.dense()
    assert near(whole, cholesky(full.toarray(), lower=True))


@pytest.mark.parametrize("modified", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("matrix", [SMALL, FiniteElements(cells=5, dimension=3).system(0).matrix], ids=["grid", "mesh"])
def test_modified_factor_moves_what_it_drops_to_the_diagonal(matrix: sp.csr_matrix, modified: float):
    a = matrix.toarray()
    lower = IncompleteCholesky(modified).setup(SparseOperator.from_scipy(matrix)).lower.compressed.dense().numpy()
    product = lower @ lower.T
    outside = np.where(a == 0, product, 0)
    inside = np.where(a != 0, product - a, 0)
    assert near(torch.from_numpy(inside), np.diag(-modified * outside.sum(1)))


def test_factor_of_a_matrix_that_has_none_is_shifted():
    rng = np.random.default_rng(3)
    a = sp.random(40, 40, 0.2, random_state=rng)
    a = sp.csr_matrix(a @ a.T + 1e-3 * sp.eye(40))
    prepared = IncompleteCholesky().setup(SparseOperator.from_scipy(a))
    assert prepared.shift > 0
    lower = prepared.lower.compressed.dense()
    assert lower.isfinite().all()
    b = draw(40)
    assert pcg(SparseOperator.from_scipy(a), b, prepared).converged.all()
    with pytest.raises(ValueError, match="A: no incomplete factor even with"):
        IncompleteCholesky().setup(SparseOperator.from_scipy(sp.csr_matrix(np.eye(3) + 1e6 * (1 - np.eye(3)))))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dimension", [2, 3])
def test_approximate_inverse_solves_its_small_systems(dimension: int):
    a = diffusion(4, 20.0, dimension)
    g = FSAI().setup(SparseOperator.from_scipy(a)).g.dense().numpy()
    dense = a.toarray()
    assert near(torch.from_numpy((g @ dense @ g.T).diagonal().copy()), np.ones(len(g)))
    for i, row in enumerate(g):  # g A is a multiple of e_i on the row's own pattern (Kolotilina & Yeremin, (2.3))
        pattern = np.nonzero(np.tril(dense)[i])[0]
        assert set(np.nonzero(row)[0]) <= set(pattern)
        product = (row @ dense)[pattern]
        assert near(torch.from_numpy(product[:-1]), np.zeros(len(pattern) - 1))


STRETCHED = Diffusion(cells=9, anisotropy=(1.0, 0.1), coefficient=TwoPhase(contrast=30.0, correlation=0.2))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("space", [STRETCHED, FiniteElements(cells=7), FiniteElements(cells=3, dimension=3)])
def test_strong_pattern_has_the_strongest_pairs_and_as_many_entries_as_the_matrix(space: Space):
    a = space.system(seed=1).matrix
    g = FSAI(strong=True).setup(SparseOperator.from_scipy(a)).g
    assert g.nnz == sp.tril(a).nnz
    assert all((np.diff(columns) > 0).all() for columns in np.split(g.col.numpy(), g.crow[1:-1].numpy()))
    dense, n = a.toarray(), a.shape[0]
    d, off = dense.diagonal(), ~np.eye(n, dtype=bool)
    scaled = np.abs(dense) * off / np.sqrt(np.outer(d, d))
    paths = np.where(scaled >= LEAST, scaled, 0)
    strength = np.abs(dense) / np.minimum.outer(d, d) + paths @ paths / 2
    kept = np.zeros((n, n), bool)
    kept[g.row, g.col.long()] = True
    assert not (kept & kept.T & off).any()
    kept |= kept.T
    assert strength[kept & off].min() >= strength[~kept].max() - 1e-14  # of sums in another order
    assert (kept != (dense != 0)).any() == (strength[dense == 0].max() > strength[(dense != 0) & off].min())
    values = g.dense()
    assert near((values @ torch.from_numpy(dense) @ values.mT).diagonal(), np.ones(n))
    # triangular in some order
    assert torch.linalg.slogdet(values).logabsdet == pytest.approx(float(values.diagonal().log().sum()), rel=1e-10)


@pytest.mark.usefixtures("compiled")
def test_strong_pattern_of_a_matrix_that_is_stored_unsymmetrically_is_no_larger():
    a = 2 * np.eye(41)
    a[20, :20] = a[21:, 20] = 0.1  # many pairs have this neighbour in common, few couplings are stored both ways
    a[1, 0] = a[0, 1] = 1e-6
    g = FSAI(strong=True).setup(SparseOperator.from_scipy(sp.csr_matrix(a))).g
    assert g.nnz == 41 + 42 // 2
    assert g.values.isfinite().all()


def test_strong_pattern_saves_iterations_of_two_levels():
    system = Diffusion(cells=48, anisotropy=(1.0, 0.1)).system(seed=0)
    a, b = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.draw(2))
    aggregates = torch.from_numpy(system.aggregates(4))
    lower, strong = (pcg(a, b, Aggregation(FSAI(x), aggregates)).iterations for x in (False, True))
    assert (strong < 0.75 * lower).all()  # .70 to .72


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_approximate_inverse_is_applied_to_rows_of_any_layout(dtype: torch.dtype):
    g = approximate_inverse(SparseOperator.from_scipy(SMALL).compressed, strong=True)
    prepared, dense = Inverse(g.with_values(g.values.to(dtype))), g.dense().to(dtype)
    r = draw(25, 3).to(dtype)
    for rows in (r.mT, r.mT.contiguous(), r.mT[:0], r.mT[::2]):
        assert torch.allclose(
            prepared.apply(rows), rows @ dense.mT @ dense, rtol=1e-5 if dtype == torch.float32 else 1e-13
        )


@pytest.mark.parametrize("kind", ["stored", "function"])
def test_chebyshev_levels_the_interval_that_it_aims_at(kind: str):
    """1 - p(l) l is T_k((b + a - 2 l) / (b - a)) / T_k((b + a) / (b - a)) on the eigenvalues l of D^-1 A."""
    dense = SMALL.toarray()
    functions = {
        "stored": SparseOperator.from_scipy(SMALL),
        "function": FunctionOperator(lambda x: x @ WHOLE, 25, DTYPE),
    }
    a, root = functions[kind], np.diag(1 / np.sqrt(SMALL.diagonal()))
    eigenvalues = np.linalg.eigvalsh(root @ dense @ root)
    top = float(largest(a, 1 / a.diagonal()))
    assert eigenvalues[-1] <= top <= 1.2 * eigenvalues[-1]  # rows sum to 2 at most, the power method's margin is .1
    low = top / 8
    for degree in (1, 2, 3, 5):
        m = matrix_of(Chebyshev(degree, 8.0).setup(a), 25).numpy()
        assert near(torch.from_numpy(m), m.T)
        error = np.sort(np.linalg.eigvals(np.eye(25) - m @ dense).real)
        t = np.polynomial.Chebyshev.basis(degree)
        expected = t((top + low - 2 * eigenvalues) / (top - low)) / t((top + low) / (top - low))
        assert np.abs(error - np.sort(expected)).max() < 1e-10  # eigenvalues of a matrix that is not symmetric


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("damping", [0.0, 0.6])
def test_two_levels_are_their_formula(damping: float):
    op, a = SparseOperator.from_scipy(SMALL), SMALL.toarray()
    z = soft(op.compressed, BLOCKS, damping).dense().numpy()
    q = z @ np.linalg.inv(z.T @ a @ z) @ z.T
    s = matrix(FSAI(), SMALL).numpy()
    two = Aggregation(aggregates=BLOCKS, damping=damping).setup(op)
    whole = s + q @ (np.eye(25) - a @ s)
    assert near(matrix_of(two, 25), whole)
    r = draw(25, 3)
    for rows in (r.mT, r.mT.contiguous(), r.mT[:0], r.mT[:1]):
        before = rows.clone()
        assert near(two.apply(rows), before.numpy() @ whole.T)
        assert torch.equal(rows, before)
    b = draw(2, 25)
    assert near(two.start(op, b, torch.zeros_like(b)), b.numpy() @ q)
    left = b - op.matvec(two.start(op, b, draw(2, 25, seed=4)))
    assert near(two.coarse.restrict(left), np.zeros((2, 5)))


def test_smoothed_coarse_vectors_are_their_formula_and_hold_constants():
    a = SparseOperator.from_scipy(SMALL).compressed
    z = smoothed(a, constant(a, BLOCKS), 0.6).dense()
    laplacian = SMALL.toarray() - np.diag(SMALL.toarray().sum(1))
    plain = np.eye(5)[BLOCKS.numpy()]
    assert near(z, plain - 0.6 * laplacian @ plain / np.diag(laplacian)[:, None])
    assert near(z.sum(1), np.ones(25))


def test_aggregates_found_by_matching_cover_everything():
    pytest.importorskip("pyamg")
    a = operator(20, 1e2)
    two = Aggregation(doublings=3).setup(a)
    sizes = torch.bincount(two.coarse.z.col)
    assert int(sizes.sum()) == 400
    assert int(sizes.min()) >= 1
    assert 4 <= 400 / len(sizes) <= 8.5


@pytest.mark.parametrize("dimension", [2, 3])
def test_steps_of_any_length_have_coarse_spaces_of_one_size(dimension: int):
    """Where the mass rules, couplings are positive, and aggregates by negative ones would be single unknowns."""
    pytest.importorskip("pyamg")
    space = FiniteElements(cells={2: 16, 3: 6}[dimension], dimension=dimension).discretise(0)
    for dt in (1e-7, 1e-4, 1e-3, 1e-1):
        a = SparseOperator.from_scipy(space.mass + dt * space.stiffness)
        assert 8 <= len(space.points) / (1 + int(pairwise(a, 4).max())) <= 20


def test_iterations_stay_as_the_mesh_is_refined():
    """With a fixed number of unknowns to an aggregate; without the coarse space they double with the cells."""
    counts, alone = [], []
    for m in (16, 32, 64):
        i = torch.arange(m) // 4
        blocks = (i[:, None] * (m // 4) + i).reshape(-1)
        a, b = operator(m), draw(m * m)
        counts.append(int(pcg(a, b, Aggregation(aggregates=blocks)).iterations))
        alone.append(int(pcg(a, b, FSAI()).iterations))
    assert counts[-1] <= 1.25 * counts[0]
    assert alone[-1] >= 3 * alone[0]


@pytest.mark.parametrize("kind", ["ruge_stuben", "smoothed_aggregation"])
def test_multigrid_is_the_librarys(kind: str):
    pyamg = pytest.importorskip("pyamg")
    a, b = diffusion(24, 10.0), draw(576)
    sweeps = {
        f"{name}smoother": ("gauss_seidel", {"sweep": way}) for name, way in (("pre", "forward"), ("post", "backward"))
    }
    make = {"ruge_stuben": pyamg.ruge_stuben_solver, "smoothed_aggregation": pyamg.smoothed_aggregation_solver}
    counted: list[int] = []
    np.random.seed(0)  # noqa: NPY002  (the library draws a start of a power iteration from it)
    cycle = make[kind](a, **sweeps).aspreconditioner("V")
    cg(a, b.numpy(), rtol=1e-8, M=cycle, callback=lambda _: counted.append(1))
    found = pcg(SparseOperator.from_scipy(a), b, AlgebraicMultigrid(kind))
    assert abs(int(found.iterations) - len(counted)) <= 1


def test_native_multigrid_is_the_librarys_and_symmetric():
    pyamgcl = pytest.importorskip("pyamgcl")
    a, b = diffusion(80, 10.0), draw(6400)
    counted: list[int] = []
    cycle = LinearOperatorOfScipy(a.shape, pyamgcl.amg(a))
    cg(a, b.numpy(), rtol=1e-8, M=cycle, callback=lambda _: counted.append(1))
    prepared = AlgebraicMultigrid("amgcl").setup(SparseOperator.from_scipy(a))
    assert abs(int(pcg(SparseOperator.from_scipy(a), b, prepared).iterations) - len(counted)) <= 1
    left, right = draw(2, 6400, seed=2)
    one, other = prepared.apply(left[None])[0] @ right, prepared.apply(right[None])[0] @ left
    assert abs(one - other) < 1e-12 * abs(one)
    assert prepared.nnz > 3 * a.nnz


@pytest.mark.parametrize("m", [SSOR(), IncompleteCholesky(), FSAI(True), Aggregation(aggregates=BLOCKS)])
def test_dense_tensors_are_taken(m: Preconditioner):
    dense, b = torch.from_numpy(SMALL.toarray()), draw(25)
    found, right = (pcg(a, b, m) for a in (dense, SMALL))
    assert found.iterations == right.iterations
    assert near(found.x, right.x)


@pytest.mark.usefixtures("compiled")
def test_smoother_of_two_levels_may_return_what_it_is_given_but_in_no_other_precision():
    op, r = SparseOperator.from_scipy(SMALL), draw(2, 25)
    two = Aggregation(Bad(lambda r: r), aggregates=BLOCKS).setup(op)
    z = np.eye(5)[BLOCKS.numpy()]
    q = z @ np.linalg.inv(z.T @ SMALL.toarray() @ z) @ z.T
    before = r.clone()
    assert near(two.apply(r), r.numpy() @ (np.eye(25) + q @ (np.eye(25) - SMALL.toarray())).T)
    assert torch.equal(r, before)
    with pytest.raises(TypeError, match=r"smoother: expected .* torch.float64, got torch.float32; Single\(Aggregation"):
        Aggregation(Single(FSAI()), aggregates=BLOCKS).setup(op)


def test_kinds_of_multigrid_are_named():
    with pytest.raises(ValueError, match=r"kind: expected 'ruge_stuben', .* got 'classic'"):
        AlgebraicMultigrid("classic").setup(SparseOperator.from_scipy(SMALL))  # pyrefly: ignore[bad-argument-type]


def test_fill_saves_iterations():
    pytest.importorskip("ilupp")
    a, b = operator(32, 10.0), draw(2, 1024)
    few, more = (pcg(a, b, m).iterations for m in (IncompleteCholesky(), ThresholdCholesky(10, 1e-4)))
    assert (2 * more <= few).all()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "preconditioner",
    [
        Jacobi(),
        SSOR(1.5),
        IncompleteCholesky(),
        FSAI(),
        Aggregation(aggregates=BLOCKS),
        Chebyshev(),
        AlgebraicMultigrid(),
        ThresholdCholesky(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_applications_have_derivatives_both_ways(preconditioner: Preconditioner):
    if isinstance(preconditioner, (AlgebraicMultigrid, ThresholdCholesky)):
        pytest.importorskip("pyamg")
        pytest.importorskip("ilupp")
    prepared = preconditioner.setup(SparseOperator.from_scipy(SMALL))
    assert torch.autograd.gradcheck(prepared.apply, draw(2, 25).requires_grad_(), check_forward_ad=True)


def test_approximate_inverse_has_its_gradient_whoever_asked_it_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    g = FSAI().setup(SparseOperator.from_scipy(SMALL)).g
    r = draw(2, 25)

    def gradient(ask: bool) -> Tensor:
        values = g.values.clone().requires_grad_()
        inverse = Inverse(g.with_values(values))
        if ask:
            with torch.no_grad():
                inverse.apply(r)
        return torch.autograd.grad(inverse.apply(r).square().sum(), values)[0]

    assert torch.equal(gradient(True), gradient(False))


def test_products_and_their_gradients():
    a = SparseOperator.from_scipy(SMALL[:, :]).compressed
    product = lambda values, x: a.with_values(values).product(x)  # noqa: E731
    inputs = a.values.clone().requires_grad_(), draw(3, 25).requires_grad_()
    assert torch.autograd.gradcheck(product, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, inputs)
    values, x = (part.detach() for part in inputs)
    directions = draw(a.nnz, seed=3), draw(3, 25, seed=4)
    tangent = torch.func.jvp(product, (values, x), directions)[1]
    assert near(tangent, product(directions[0], x) + product(values, directions[1]))
    many = torch.stack([x, 2 * x, -x])
    assert near(torch.func.vmap(product, (None, 0))(values, many), torch.stack([product(values, y) for y in many]))
    scaled = torch.stack([values, 3 * values])
    assert near(torch.func.vmap(product, (0, None))(scaled, x), torch.stack([product(v, x) for v in scaled]))
    assert near(torch.func.jacrev(product, 1)(values, x), torch.func.jacfwd(product, 1)(values, x))


@pytest.mark.parametrize("preconditioner", [Jacobi(), SSOR(), IncompleteCholesky(), FSAI(), AlgebraicMultigrid()])
def test_matrix_without_a_positive_diagonal_is_refused(preconditioner: Preconditioner):
    a = SparseOperator.from_scipy(sp.diags([1.0, 0.0, -2.0]))
    with pytest.raises(ValueError, match=r"A: .* expects a positive diagonal.*got 0.0 in row 1"):
        preconditioner.setup(a)


@pytest.mark.parametrize("damping", [0.0, 0.6])
def test_aggregation_refuses_rows_without_a_diagonal(damping: float):
    saddle = sp.bmat([[None, sp.eye(500)], [sp.eye(500), None]])
    with pytest.raises(ValueError, match="A: Aggregation expects a positive diagonal"):
        Aggregation(aggregates=torch.arange(1000), damping=damping).setup(SparseOperator.from_scipy(saddle))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("last", [-0.3, -0.3 - 1e-9])
def test_couplings_that_cancel_smooth_by_their_size(last: float):
    """Divided by their sum, which is nearly nothing, they would make entries of any size."""
    a = np.eye(4)
    a[0] = a[:, 0] = 1, 0.1, 0.2, last
    given = SparseOperator.from_scipy(a).compressed, torch.tensor([0, 0, 1, 1])
    z = soft(*given, 0.6).dense()
    assert near(z[0], 0.6 * np.array([0.1, 0.2 - last]) / (0.3 - last) + np.array([0.4, 0]))
    assert near(z.sum(1), np.ones(4))
    assert near(z, smoothed(given[0], constant(*given), 0.6).dense())


def test_callers_matrix_is_left_alone():
    a = sp.csr_matrix((np.array([1.0, 1, 5, 3]), np.array([0, 0, 1, 0]), np.array([0, 2, 4])), (2, 2))
    kept = [part.copy() for part in (a.data, a.indices, a.indptr)]
    operator = SparseOperator.from_scipy(a)
    assert all(np.array_equal(x, y) for x, y in zip((a.data, a.indices, a.indptr), kept, strict=True))
    assert operator.dense()[0].tolist() == [[2.0, 0.0], [3.0, 5.0]]
    with pytest.raises(TypeError, match="matrix: expected real entries"):
        SparseOperator.from_scipy(sp.eye(2) * 1j)


def test_one_unknown_and_singular_coarse_matrices():
    single = FunctionOperator(lambda x: 3 * x, 1, DTYPE)
    assert torch.allclose(pcg(single, torch.ones(1, dtype=DTYPE), Chebyshev()).x, torch.ones(1, dtype=DTYPE) / 3)
    neumann = sp.csr_matrix(np.array([[1.0, -1], [-1, 1]]))
    with pytest.raises(ValueError, match="its coarse form is singular"):
        Aggregation(Chebyshev(), torch.zeros(2, dtype=torch.int64)).setup(SparseOperator.from_scipy(neumann))


def test_patterns_first_asked_for_without_gradients_serve_gradients():
    a = SparseOperator.from_scipy(SMALL).compressed
    with torch.inference_mode():
        assert a.transpose().nnz == len(a.row)
    values = a.values.clone().requires_grad_()
    a.with_values(values).dense().square().sum().backward()
    assert values.grad is not None


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="omega: expected a number in"):
        SSOR(2.0)
    with pytest.raises(ValueError, match="modified: expected a share"):
        IncompleteCholesky(1.5)
    with pytest.raises(TypeError, match="A: FSAI expects a SparseOperator or a StencilOperator, got FunctionOperator"):
        FSAI().setup(FunctionOperator(lambda x: x, 3))
    with pytest.raises(ValueError, match=r"aggregates: expected the shape \(25,\)"):
        Aggregation(aggregates=torch.zeros(3)).setup(SparseOperator.from_scipy(SMALL))
    with pytest.raises(ValueError, match="doublings: expected at least 1, or None, got 0"):
        Aggregation(doublings=0)
    with pytest.raises(ValueError, match="aggregates: expected every number"):
        Aggregation(aggregates=2 * BLOCKS).setup(SparseOperator.from_scipy(SMALL))
    with pytest.raises(ValueError, match="block of row 1 is not"):
        FSAI().setup(SparseOperator.from_scipy(sp.csr_matrix(np.array([[1.0, 2.0], [2.0, 1.0]]))))
    with pytest.raises(ValueError, match="expected a square matrix"):
        SparseOperator.from_scipy(sp.csr_matrix((2, 3)))


@pytest.mark.parametrize("family", [Diffusion, FiniteElements])
def test_aggregates_are_four_unknowns_across_in_the_plane_and_in_space(family: Any):
    """By the pattern alone, which knows of no dimension."""
    pytest.importorskip("pyamg")
    for dimension, cells in ((2, 8), (2, 40), (3, 8), (3, 12)):
        matrix = family(dimension=dimension).system(0, cells).matrix
        assert spatial(matrix) == (dimension == 3)
        if cells > 10:
            found = pairwise(SparseOperator.from_scipy(matrix))
            assert matrix.shape[0] / (int(found.max()) + 1) == pytest.approx(4**dimension, rel=0.3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 7, 500, 998])
def test_the_least_of_the_largest_numbers_is_that_of_sorting(dtype: type, count: int):
    values = np.random.default_rng(0).lognormal(size=999).round(1).astype(dtype)  # some alike, some zero
    keys = values.view(f"u{values.itemsize}")
    least, larger = kernels.loop(kernels.largest, values, keys, 8 * values.itemsize - 16, count)
    assert least == np.sort(values)[-count]
    assert larger == (values > least).sum()


def test_strong_pattern_has_only_entries_that_were_found():
    """Of storage with more entries above the diagonal than below, which promises pairs that there are not."""
    crow, col = torch.tensor([0, 3, 4, 5], dtype=torch.int32), torch.tensor([0, 1, 2, 1, 2], dtype=torch.int32)
    found = strongest(Compressed(crow, col, torch.tensor([1.0, 0, 0, 1, 1], dtype=DTYPE), 3))
    assert found.crow.tolist() == [0, 1, 2, 3]
    assert found.col.tolist() == [0, 1, 2]
