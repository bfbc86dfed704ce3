import pytest
import torch

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


def test_torchs_forward_mode_within_itself_is_wrong_of_a_determinant():
    """det(1 + x x^T) = 1 + |x|^2; once this fails, the function may leave the list of those that are refused."""
    matrix = lambda x: torch.eye(3, dtype=x.dtype) + torch.outer(x, x)  # noqa: E731
    x, v = X[0, :3], torch.ones(3, dtype=X.dtype)
    slope = lambda x: torch.func.jvp(lambda x: torch.linalg.det(matrix(x)), (x,), (v,))[1]  # noqa: E731
    assert abs(torch.func.jvp(slope, (x,), (v,))[1] - 6) > 0.1


@pytest.mark.filterwarnings("ignore::sciml.calculus.fallback.FallbackWarning")
@pytest.mark.parametrize("name", ["det", "slogdet", "logdet", "solve", "instance_norm"])
def test_functions_with_wrong_second_derivatives_are_refused(name: str):
    x = torch.tensor([[0.5, 1.0, -0.3]], dtype=torch.float64)
    functions = {
        "det": lambda x: torch.linalg.det(torch.diag_embed(1 + x * x)),
        "slogdet": lambda x: torch.linalg.slogdet(torch.diag_embed(1 + x * x))[1],
        "logdet": lambda x: torch.logdet(torch.diag_embed(1 + x * x)),
        "solve": lambda x: torch.linalg.solve(torch.diag_embed(1 + x * x), x[..., None])[..., 0],
        "instance_norm": lambda x: torch.nn.functional.instance_norm(x[:, None])[:, 0] ** 3,
    }
    v = torch.ones_like(x)
    expected = torch.func.jvp(functions[name], (x,), (v,))[1]
    assert torch.allclose(jet(functions[name], x, v[None], 1).derivative(1)[0], expected)
    with pytest.raises(NotImplementedError, match="gives wrong numbers"):
        jet(functions[name], x, v[None], 2)
