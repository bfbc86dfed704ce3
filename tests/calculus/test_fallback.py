import pytest
import torch

from sciml.calculus import Partial, Unknown
from sciml.calculus.algebra import downset
from sciml.calculus.fallback import FallbackWarning
from sciml.calculus.jet import jet
from tests.calculus.nested import along, mixed, worst

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
V = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cumprod(x):
    return x.sin().cumprod(-1) * x


def test_function_without_a_rule_is_right_and_named():
    with pytest.warns(FallbackWarning, match="cumprod has no Taylor rule"):
        y = jet(cumprod, X, V, 4)
    for order in range(1, 5):
        expected = torch.stack([along(cumprod, X, v, order) for v in V])
        assert worst(y.derivative(order), expected) < 1e-12  # round-off: both nest autograd


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
def test_several_variables_and_collapsed_coefficients():
    algebra, summed = downset((2, 1), (0, 2)), downset((2, 1), (0, 2), collapsed=[(2, 1)])
    w = V.flip(0)
    y, z = (jet(cumprod, X, (V, w), a) for a in (algebra, summed))
    for index in algebra.indices[1:]:
        expected = torch.stack([mixed(cumprod, X, [a] * index[0] + [b] * index[1]) for a, b in zip(V, w, strict=True)])
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
        return jet(lambda x: (x * weight).cumprod(-1), X, V, 2).derivative(2)

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


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
def test_function_with_wrong_second_derivatives_is_refused():
    """Once torch's jvp of its own jvp is right, the function may leave the list of those that are refused."""
    function = lambda x: torch.nn.functional.instance_norm(x[:, None])[:, 0] ** 3  # noqa: E731
    centred = lambda x: x - x.mean(-1, keepdim=True)  # noqa: E731
    written = lambda x: (centred(x) / (centred(x).square().mean(-1, keepdim=True) + 1e-5).sqrt()) ** 3  # noqa: E731
    assert torch.allclose(jet(function, X, V, 1).derivative(1), jet(written, X, V, 1).derivative(1))
    assert worst(along(function, X, V[0], 2), along(written, X, V[0], 2)) > 0.01
    with pytest.raises(NotImplementedError, match="gives wrong numbers"):
        jet(function, X, V, 2)
