import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sciml.calculus import Biharmonic, Laplacian, Partial, PowerSum, Unknown
from sciml.calculus.evaluate import terms
from sciml.models.mlp import MLP

ROUND_OFF = 1e-12  # sums of tens of terms of order one in float64


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(d: int, out: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(d, out, width=12, depth=2)


def points(b: int, d: int, seed: int = 1) -> Tensor:
    return torch.rand(b, d, generator=torch.Generator().manual_seed(seed))


def nested(f: nn.Module, x: Tensor, *coordinates: int) -> Tensor:
    """A partial derivative by reverse mode over reverse mode."""
    x = x.detach().requires_grad_()
    found = f(x).reshape(len(x))
    for c in coordinates:
        (grad,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        found = grad[:, c]
    return found


def test_burgers_residual_is_that_of_nested_autograd():
    f, x, u = net(2), points(7, 2), Unknown()
    dt, dx, dxx = Partial(0), Partial(1), Partial(1, 1)
    residual = dt(u) + u * dx(u) - 0.01 * dxx(u)
    by_hand = nested(f, x, 0) + f(x)[:, 0] * nested(f, x, 1) - 0.01 * nested(f, x, 1, 1)
    torch.testing.assert_close(residual(f, x), by_hand, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_kdv_in_two_dimensions_with_a_product_rule():
    f, x, u = net(3), points(5, 3), Unknown()
    t, dx, dy = Partial(0), Partial(1), Partial(2)
    residual = t(dy(u)) + Partial(1, 1, 1, 2)(u) + 3 * dx(dy(u) * dx(u)) - dx(dx(u)) + 2 * dy(dy(u))
    ux, uy, uxx, uxy = (nested(f, x, *c) for c in ((1,), (2,), (1, 1), (1, 2)))
    by_hand = nested(f, x, 0, 2) + nested(f, x, 1, 1, 1, 2) + 3 * (uxy * ux + uy * uxx) - uxx + 2 * nested(f, x, 2, 2)
    torch.testing.assert_close(residual(f, x), by_hand, rtol=ROUND_OFF, atol=10 * ROUND_OFF)


@pytest.mark.parametrize("orders", [(2,), (3,), (2, 2), (2, 1), (1, 1), (3, 1), (1, 1, 1), (2, 1, 1)])
def test_sums_over_coordinates_have_all_their_terms(orders: tuple[int, ...]):
    f, x = net(3), points(4, 3)
    everything = torch.cartesian_prod(*[torch.arange(3)] * len(orders)).reshape(-1, len(orders)).tolist()
    by_hand = sum(nested(f, x, *[i for i, n in zip(c, orders, strict=True) for _ in range(n)]) for c in everything)
    torch.testing.assert_close(PowerSum(*orders)(Unknown())(f, x), by_hand, rtol=ROUND_OFF, atol=10 * ROUND_OFF)


@pytest.mark.parametrize("orders", [(2,), (2, 2), (2, 1), (1, 1, 1), (2, 2, 1), (2, 1, 1, 1)])
def test_terms_are_counted_once_each(orders: tuple[int, ...]):
    assert sum(times * len(tuples) for _, times, tuples in terms(orders, range(5))) == 5 ** len(orders)


def test_sums_may_leave_coordinates_out_and_be_differentiated():
    f, x, u = net(4), points(4, 4), Unknown()
    found = Partial(0)(Laplacian(start=1)(u))
    by_hand = sum(nested(f, x, 0, i, i) for i in (1, 2, 3))
    torch.testing.assert_close(found(f, x), by_hand, rtol=ROUND_OFF, atol=ROUND_OFF)
    twice = Laplacian()(Laplacian()(u))
    torch.testing.assert_close(twice(f, x), Biharmonic()(u)(f, x), rtol=0, atol=0)


def test_algebra_of_expressions():
    f, x, u = net(2), points(6, 2), Unknown()
    value, ux, uxx = f(x)[:, 0], nested(f, x, 1), nested(f, x, 1, 1)
    dx = Partial(1)
    cases = {
        2.0 - u / 3: 2 - value / 3,
        1 / (2 + u): 1 / (2 + value),
        torch.sin(u) * dx(u): value.sin() * ux,
        dx(u**3): 3 * value**2 * ux,
        dx(dx(u * u)): 2 * (ux**2 + value * uxx),
        (lambda x: x[:, 0]) * u: x[:, 0] * value,
        dx((lambda x: x[:, 0] * x[:, 1] ** 2) * u): 2 * x[:, 0] * x[:, 1] * value + x[:, 0] * x[:, 1] ** 2 * ux,
        u + torch.arange(6.0): value + torch.arange(6.0),
        torch.tensor(0.5) * dx(u) - torch.tensor(2.0): 0.5 * ux - 2,
        dx(torch.tensor(0.5) * u): 0.5 * ux,
        dx((lambda x: torch.ones(len(x))) * u): ux,
        dx(dx((lambda x: x[:, 1] ** 2) * u)): 2 * value + 4 * x[:, 1] * ux + x[:, 1] ** 2 * uxx,
        Laplacian(start=1)(-u / 2): -uxx / 2,
        Laplacian(start=1)(2 * u - u): uxx,
    }
    for expression, by_hand in cases.items():
        torch.testing.assert_close(expression(f, x), by_hand, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_systems_are_read_by_component():
    f, x, u = net(2, out=2), points(5, 2), Unknown()
    divergence = Partial(0)(u[0]) + Partial(1)(u[1])
    jacobian = torch.func.vmap(torch.func.jacrev(f))(x)
    torch.testing.assert_close(
        divergence(f, x), jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=ROUND_OFF, atol=ROUND_OFF
    )


def test_components_and_derivatives_may_be_taken_in_any_order():
    u = Unknown()
    assert Partial(0)(u)[1] == Partial(0)(u[1])
    assert Laplacian()(u)[1] != u[1]


def test_powers_have_derivatives_where_their_base_vanishes():
    x, u = torch.tensor([[0.0], [1.0]]), Unknown()
    f = lambda x: x[:, 0] * (1 - x[:, 0])  # noqa: E731
    dx = Partial(0)
    torch.testing.assert_close(dx(dx(dx(u**2)))(f, x), torch.tensor([-12.0, 12.0]))
    torch.testing.assert_close(dx(dx(u**1))(f, x), torch.tensor([-2.0, -2.0]))
    torch.testing.assert_close((u + dx(u**0))(f, x), torch.zeros(2))


def test_gradient_of_a_residual_to_parameters():
    f, x, u = net(2), points(5, 2), Unknown()
    residual = Partial(0)(u) - Laplacian(start=1)(u) + u**2
    own = torch.autograd.grad(residual(f, x).square().sum(), list(f.parameters()), allow_unused=True)
    by_hand = nested(f, x, 0) - nested(f, x, 1, 1) + f(x)[:, 0] ** 2
    for a, b in zip(own, torch.autograd.grad(by_hand.square().sum(), list(f.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)  # sums over points, layers and orders


def test_compiled_residual_is_the_eager_one_and_compiles_once():
    f, u = net(2), Unknown()
    residual = Partial(0)(u) + u * Partial(1)(u) - 0.1 * Laplacian(start=1)(u)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: residual(f, x), fullgraph=True, backend=counter)
    for seed in (1, 2, 3):
        x = points(8, 2, seed)
        torch.testing.assert_close(compiled(x), residual(f, x), rtol=ROUND_OFF, atol=ROUND_OFF)
    assert counter.frame_count == 1


def mistakes() -> dict[str, tuple[object, str]]:
    u, f = Unknown(), net(2)
    relu = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    return {
        "relu": (lambda: Laplacian()(u)(relu, points(3, 2)), r"u: a derivative of order 2 .* tanh"),
        "few coordinates": (lambda: Partial(2)(u)(f, points(3, 2)), r"x: expected points of at least 3 coordinates"),
        "points": (lambda: u(f, points(3, 2)[0]), r"x: expected points \(b, d\), got \(2,\)"),
        "components": (lambda: Partial(0)(u)(net(2, 2), points(3, 2)), r"u: it has 2 components; expected u\[0\]"),
        "no such component": (lambda: Partial(0)(u[2])(net(2, 2), points(3, 2)), r"u\[2\]: expected values of more"),
        "not per point": (lambda: Partial(0)(u)(lambda x: f(x).sum(), points(3, 2)), r"u: expected values \(3\)"),
        "chain rule": (lambda: Partial(0)(torch.sin(u)), r"sin\(\.\.\) .* chain rule"),
        "sum of a product": (lambda: Laplacian()(u * u), r"expected a linear combination; write it out"),
        "two ranges": (lambda: Laplacian()(Laplacian(start=1)(u)), r"expected the same ones"),
        "component of a component": (lambda: u[0][1], r"component: expected one number, 0 or more"),
        "no coordinate": (lambda: Partial(), r"coordinates: expected at least one"),
        "negative": (lambda: Partial(-1), r"coordinates: expected whole numbers, 0 or more"),
        "no order": (lambda: PowerSum(0), r"orders: expected whole numbers, 1 or more"),
        "empty range": (lambda: Laplacian(2, 2), r"coordinates: expected first and last but one"),
        "coefficient": (
            lambda: (u * (lambda x: x))(f, points(3, 2)),
            r"coefficient: expected values \(3,\), got \(3, 2\)",
        ),
        "tensor": (lambda: (u * torch.ones(3, 3))(f, points(3, 2)), r"tensor: expected one number or values \(3\)"),
        "other batch": (lambda: (u * torch.ones(3))(f, points(1, 2)), r"tensor: expected one number or values \(1\)"),
        "not pointwise": (lambda: torch.sum(u)(f, points(3, 2)), r"sum: expected a function of each value by itself"),
    }


@pytest.mark.parametrize("case", list(mistakes()))
def test_mistakes_are_named(case: str):
    call, message = mistakes()[case]
    with pytest.raises(ValueError, match=message):
        call()
    for call in (lambda: Unknown() + "x", lambda: np.ones(3) * Unknown()):
        with pytest.raises(TypeError, match="expected an expression, a number"):
            call()
    with pytest.raises(TypeError, match="exponent: expected a number, got Unknown"):
        Unknown() ** Unknown()


@pytest.mark.parametrize("shape", [(), (5,), (5, 1)])
def test_coefficient_is_a_number_or_one_per_point(shape: tuple[int, ...]):
    f, x, u, k = net(2), points(5, 2), Unknown(), torch.tensor(3.0, requires_grad=True)
    found = (Partial(0)(u) + (lambda x: k.expand(shape)) * u)(f, x)
    assert torch.allclose(found, nested(f, x, 0) + 3 * f(x)[:, 0], atol=ROUND_OFF)
    assert torch.autograd.grad(found.sum(), k)[0].isclose(f(x).sum())
    assert torch.allclose(Partial(0)((lambda x: k.expand(shape)) * u)(f, x), 3 * nested(f, x, 0), atol=ROUND_OFF)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5,), (5, 1)])
def test_tensor_is_a_number_or_one_per_point(shape: tuple[int, ...]):
    """A target (b, 1) beside values (b) is no matrix (b, b) of all differences."""
    f, x, u, target = net(2), points(5, 2), Unknown(), torch.rand(shape)
    found = (Laplacian()(u) - target * u)(f, x)
    assert torch.allclose(found, Laplacian()(u)(f, x) - target.flatten() * f(x)[:, 0], atol=ROUND_OFF)
    assert found.shape == (5,)
    assert torch.equal((np.float64(2) * u)(f, x), 2 * f(x)[:, 0])
