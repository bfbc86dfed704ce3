import math

import pytest
import torch

from sciml.calculus import Partial, Unknown
from sciml.calculus.algebra import downset
from sciml.calculus.fallback import FallbackWarning
from sciml.calculus.jet import jet
from tests.calculus.nested import along, mixed, worst

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
V = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def scanned(x):
    return x.sin().logcumsumexp(-1) * x


def test_function_without_a_rule_is_right_and_named():
    with pytest.warns(FallbackWarning, match="logcumsumexp has no Taylor rule"):
        y = jet(scanned, X, V, 4)
    for order in range(1, 5):
        expected = torch.stack([along(scanned, X, v, order) for v in V])
        assert worst(y.derivative(order), expected) < 1e-12  # round-off: both nest autograd


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
def test_several_variables_and_collapsed_coefficients():
    algebra, summed = downset((2, 1), (0, 2)), downset((2, 1), (0, 2), collapsed=[(2, 1)])
    w = V.flip(0)
    y, z = (jet(scanned, X, (V, w), a) for a in (algebra, summed))
    for index in algebra.indices[1:]:
        expected = torch.stack([mixed(scanned, X, [a] * index[0] + [b] * index[1]) for a, b in zip(V, w, strict=True)])
        assert worst(y.derivative(index), expected) < 1e-12  # round-off
        expected = expected.sum(0) if index == (2, 1) else expected
        assert worst(z.derivative(index), expected) < 1e-12


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
def test_several_results():
    y = jet(lambda x: torch.sort(x.sin(), -1)[0], X, V, 2)
    expected = torch.stack([along(lambda x: torch.sort(x.sin(), -1)[0], X, v, 2) for v in V])
    assert worst(y.derivative(2), expected) < 1e-13  # round-off


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
def test_gradients_pass_through():
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def second(weight):
        return jet(lambda x: (x * weight).logcumsumexp(-1), X, V, 2).derivative(2)

    assert torch.autograd.gradcheck(second, weight)


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
def test_function_without_derivatives_is_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"bitwise_not: no Taylor rule, and nested forward-mode autograd"):
        jet(torch.bitwise_not, X, V, 2)


NAMED = {
    "sort": (lambda x: torch.sort(x.sin()).values, lambda x: torch.sort(x.sin())[0]),
    "max": (lambda x: x.sin().max(-1).values, lambda x: x.sin().amax(-1)),
    "topk": (lambda x: torch.topk(x.sin(), 2).values, lambda x: torch.sort(x.sin(), descending=True)[0][:, :2]),
    "places": (lambda x: x.cos().gather(-1, x.sort().indices), lambda x: x.sort()[0].cos()),
    "eigh": (
        lambda x: torch.linalg.eigh(x[:, :, None] * x[:, None] + torch.diag_embed(x)).eigenvalues.sum(-1),
        lambda x: (x * x + x).sum(-1),
    ),
}


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
@pytest.mark.parametrize("name", NAMED)
def test_results_have_their_names(name: str):
    function, expected = NAMED[name]
    y = jet(function, X, V, 2)
    for order in (1, 2):
        found = torch.stack([along(expected, X, v, order) for v in V])
        assert worst(y.derivative(order), found) < 1e-11  # round-off, over differences of eigenvalues
    assert jet(lambda x: torch.sort(x)[1], X, V, 2).dtype == torch.int64


def test_determinant_of_a_singular_matrix_has_its_derivatives():
    """det diag(x) is the product of x; at (0, 2, 3) torch's jvp along the first entry is 0, not 6."""
    function = lambda x: torch.linalg.det(torch.diag_embed(x))  # noqa: E731
    x = torch.tensor([[0.0, 2.0, 3.0]], dtype=torch.float64)
    u = Unknown()
    assert Partial(0)(u)(function, x).tolist() == [6.0]
    assert Partial(0, 1)(u)(function, x).tolist() == [3.0]
    assert Partial(0)(u)(lambda x: torch.det(input=torch.diag_embed(x)), x).tolist() == [6.0]
    wide = torch.cat([x, torch.ones(1, 6, dtype=torch.float64)], 1)
    with pytest.raises(RuntimeError, match="singular"):  # of more than 8 rows
        Partial(0)(u)(function, wide)


def square(x):
    return x[:, :, None] * x[:, None].sin() + torch.diag_embed(x.exp() + 1)


def definite(x):
    return torch.matmul(square(x), square(x).mT)


TRAPS = {  # from which order on torch's forward mode is wrong
    "cholesky_inverse": (lambda x: torch.cholesky_inverse(torch.linalg.cholesky(definite(x))), 1),
    "triangular_solve": (lambda x: torch.triangular_solve(x[:, :, None], square(x)).solution, 1),
    "scatter_reduce": (lambda x: x.scatter_reduce(1, torch.zeros(3, 4, dtype=torch.int64), x.cos(), "prod"), 1),
    "native_layer_norm": (lambda x: torch.native_layer_norm(x.exp(), (4,), None, None, 1e-5)[0], 2),
    "native_batch_norm": (lambda x: torch.native_batch_norm(x.exp(), None, None, None, None, True, 0.1, 1e-5)[0], 2),
    "linalg_solve_ex": (lambda x: torch.linalg.solve_ex(square(x), x).result, 2),
    "linalg_tensorsolve": (lambda x: torch.linalg.tensorsolve(square(x)[0], x[0]), 2),
    "linalg_householder_product": (lambda x: torch.linalg.householder_product(square(x), x), 2),
    "linalg_eig": (lambda x: torch.linalg.eig(square(x)).eigenvectors.abs().sum(-1), 3),
    "linalg_eigvals": (lambda x: torch.linalg.eigvals(square(x)).abs().sum(-1), 3),
}


def differences(u, x, v, order):
    """A derivative by central differences of that of one order less, to some 1e-8."""
    if not order:
        return u(x)
    h = 3e-3
    below = {n: differences(u, x + n * h * v, v, order - 1) for n in (-3, -2, -1, 1, 2, 3)}
    return sum(w * (below[n] - below[-n]) for n, w in ((1, 45), (2, -9), (3, 1))) / (60 * h)


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("name", TRAPS)
def test_functions_of_which_torch_has_wrong_derivatives_are_refused(name: str):
    """Once torch's forward mode is right, a function may leave the list of those that are refused."""
    function, order = TRAPS[name]
    for k in range(1, order):
        expected = differences(function, X, V[0], k)
        assert worst(jet(function, X, V[:1], k).derivative(k)[0], expected) < 1e-5  # of the differences
    assert worst(along(function, X, V[0], order), differences(function, X, V[0], order)) > 1e-4
    with pytest.raises(NotImplementedError, match=f"{name}: .* gives wrong numbers for derivatives of order {order}"):
        jet(function, X, V, order)


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
@pytest.mark.parametrize(
    "function",
    [
        torch.special.bessel_j0,
        torch.special.spherical_bessel_j0,
        torch.special.airy_ai,
        lambda x: torch.special.legendre_polynomial_p(x, 3),
    ],
)
def test_special_functions_that_torch_takes_to_be_constant_are_refused(function):
    assert along(function, X, V[0], 1).abs().max() == 0  # so that their derivatives would be zero without a word
    with pytest.raises(NotImplementedError, match=r"special_.*: no Taylor rule, and torch has no derivative of it"):
        jet(function, X, V, 1)


KINKED = {
    "prelu": (lambda x: torch.nn.functional.prelu(x, torch.tensor([0.3]).double()), 0),
    "threshold": (lambda x: torch.nn.functional.threshold(x, 0.1, 2.0), -1),
    "hardswish": (torch.nn.functional.hardswish, 0),
    "softshrink": (torch.nn.functional.softshrink, 0),
    "softsign": (torch.nn.functional.softsign, 1),
    "largest": (lambda x: x.amax(-1), 0),
    "max": (lambda x: x.max(-1).values, 0),
    "sort": (lambda x: x.sort(-1)[0], 0),
    "max_pool1d": (lambda x: torch.nn.functional.max_pool1d(x[:, None], 2), 0),
    "hypot": (lambda x: torch.hypot(x, x + 4), math.inf),
}


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
@pytest.mark.parametrize("name", KINKED)
def test_kinks_of_functions_without_a_rule_are_known(name: str):
    function, smoothness = KINKED[name]
    assert jet(function, X, V, 1).smoothness == smoothness
    u = Unknown()
    if smoothness < 1:  # else the Laplacian of a network of such pieces would be zero
        with pytest.raises(ValueError, match="a derivative of order 2 was asked for"):
            Partial(0, 0)(u)(lambda x: function(x).reshape(3, -1).sum(-1), X)


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_modules_of_a_script_are_refused():
    """torch's own forward derivatives of them are wrong after some calls: when this fails, they may be taken."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    scripted = torch.jit.script(module)
    found = [along(scripted, X, V[0], 1) for _ in range(4)]
    assert worst(found[-1], along(module, X, V[0], 1)) > 0.01
    for each in (scripted, torch.jit.trace(module, X)):
        with pytest.raises(NotImplementedError, match=r"u: .* modules from torch.jit; expected the module itself"):
            jet(each, X, V, 1)
