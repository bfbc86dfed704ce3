import pytest
import torch
from torch import Tensor

from sciml.solvers.linear import GMRES, Dense, DenseOperator, LinearSolver
from sciml.solvers.linear.solve import attach
from tests.solvers.systems import DTYPE

SOLVERS = {"dense": Dense(), "gmres": GMRES(1e-13), "restarted": GMRES(1e-13, restart=6, cycles=60)}


def matrices(m: int, n: int, seed: int = 0) -> Tensor:
    """Well conditioned, far from symmetric."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(m, n, n, dtype=DTYPE, generator=generator)
    return 2 * torch.eye(n, dtype=DTYPE) + 0.5 * noise / n**0.5


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[False, True], ids=["eager", "unrolled"])
def unrolled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a compiled program, too."""
    if request.param:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.usefixtures("unrolled")
@pytest.mark.parametrize("n", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("name", SOLVERS)
def test_systems_are_solved(name: str, n: int):
    a, b = matrices(5, n), draw(5, n)
    b[2] = 0
    x, found = SOLVERS[name].inverse(DenseOperator(a))(b)
    assert bool(found.all())
    assert (x - torch.linalg.solve(a, b)).abs().max() < 1e-12  # residual 1e-13 times a condition of some ten


@pytest.mark.usefixtures("unrolled")
def test_pivots_are_searched_for():
    a = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]], dtype=DTYPE)
    x, found = Dense().inverse(DenseOperator(a))(torch.tensor([[1.0, 2.0, 3.0]], dtype=DTYPE))
    assert bool(found.all())
    assert torch.equal(x, torch.ones(1, 3, dtype=DTYPE))
    tiny = torch.tensor([[[1e-20, 1.0], [1.0, 1.0]]], dtype=DTYPE)  # without pivoting x[0] is lost altogether
    x, _ = Dense().inverse(DenseOperator(tiny))(torch.tensor([[1.0, 2.0]], dtype=DTYPE))
    assert torch.allclose(x, torch.ones(1, 2, dtype=DTYPE))


@pytest.mark.usefixtures("unrolled")
@pytest.mark.parametrize("solver", [Dense(), GMRES()], ids=["dense", "gmres"])
def test_singular_matrix_is_told_and_leaves_the_others_alone(solver: LinearSolver):
    a, b = matrices(4, 3), torch.ones(4, 3, dtype=DTYPE)
    a[1] = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 1.0]])
    a[2] = 0
    x, found = solver.inverse(DenseOperator(a))(b)
    assert found.tolist() == [True, False, False, True]
    assert torch.allclose(x[[0, 3]], torch.linalg.solve(a[[0, 3]], b[[0, 3]]), rtol=1e-6)


def test_gmres_needs_no_more_products_than_there_are_eigenvalues():
    values = torch.tensor([1.0, 2.0, 5.0], dtype=DTYPE).repeat(1, 10)
    a = torch.linalg.inv(matrices(1, 30)) @ values.diag_embed() @ matrices(1, 30)
    products = []

    class Counted(DenseOperator):
        def matvec(self, x: Tensor) -> Tensor:
            products.append(x)
            return super().matvec(x)

    _, found = GMRES(1e-10).inverse(Counted(a))(draw(1, 30))
    assert bool(found.all())
    assert len(products) <= 5  # three for the space, one for the residual, one more where round-off asks for it


def test_gmres_that_does_not_converge_says_so():
    shift = torch.eye(40, dtype=DTYPE).roll(1, 0)[None]  # no Krylov space but the whole one holds the solution
    b = torch.zeros(1, 40, dtype=DTYPE)
    b[0, 0] = 1
    assert not bool(GMRES(restart=10, cycles=3).inverse(DenseOperator(shift))(b)[1])
    x, found = GMRES(restart=40).inverse(DenseOperator(shift))(b)
    assert bool(found)
    assert torch.allclose(shift @ x[..., None], b[..., None])


@pytest.mark.parametrize("name", SOLVERS)
def test_solution_has_the_gradient_of_the_inverse(name: str):
    a, b = matrices(2, 4).requires_grad_(), draw(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: SOLVERS[name].inverse(DenseOperator(a))(b)[0], (a, b), check_forward_ad=True
    )


def test_gradient_of_a_matrix_free_solution_is_not_taken_twice():
    a = matrices(2, 4).requires_grad_()
    x = GMRES(1e-13).inverse(DenseOperator(a))(draw(2, 4))[0]
    (grad,) = torch.autograd.grad(x.sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_attached_root_has_the_gradient_of_the_implicit_function():
    """x^3 + x = p with x' = 1/(3 x^2 + 1)."""
    p = torch.tensor([[2.0], [10.0]], dtype=DTYPE, requires_grad=True)
    root = torch.tensor([[1.0], [2.0]], dtype=DTYPE)
    x = attach(root, p - root**3 - root, lambda x: DenseOperator((3 * x**2 + 1)[..., None]), Dense())
    assert torch.equal(x, root)
    (grad,) = torch.autograd.grad(x.sum(), p)
    assert torch.allclose(grad, 1 / (3 * root**2 + 1), rtol=1e-14)


def test_gradient_that_cannot_be_found_is_nan():
    p = torch.zeros(2, 1, dtype=DTYPE, requires_grad=True)
    slopes = torch.tensor([[[0.0]], [[2.0]]], dtype=DTYPE)
    (grad,) = torch.autograd.grad(attach(p.detach(), p, lambda x: DenseOperator(slopes), Dense()).sum(), p)
    assert grad[0].isnan()
    assert grad[1] == 0.5


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"restart": 0}, {"cycles": 0}])
def test_gmres_that_cannot_iterate_is_refused(options: dict):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected a positive number"):
        GMRES(**options)
