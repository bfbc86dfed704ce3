import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sciml.calculus import Biharmonic, Directional, Laplacian, Partial, Sparse, Trace, Unknown
from sciml.calculus.expression import computed
from tests.calculus.nested import along, mixed, worst
from tests.calculus.nets import Ball, net, points

D, M = 5, 3
MATRIX = points(D, M, seed=1)
V, W = points(D, seed=2), points(D, seed=3)
U = Unknown()


def wave(x: Tensor) -> Tensor:
    return x.cos()


def each(x: Tensor) -> Tensor:
    return x[:, :, None].sin() * MATRIX + 1


FACTORS = {
    "matrix": (MATRIX, lambda x: MATRIX.expand(len(x), D, M)),
    "diagonal": (V, lambda x: V.diag().expand(len(x), D, D)),
    "matrix of each point": (each, each),
    "diagonal of each point": (wave, lambda x: wave(x).diag_embed()),
    "function to one matrix": (lambda x: MATRIX[None], lambda x: MATRIX.expand(len(x), D, M)),
}


def columns(f: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """The second derivative along each column of sigma (b, d, m) by nested autograd, summed."""
    return torch.stack([along(f, x, c, 2) for c in sigma.unbind(2)]).sum(0)


@pytest.mark.parametrize("name", FACTORS)
def test_traces_are_those_of_nested_autograd(name: str):
    given, sigma = FACTORS[name]
    f, x = net(Ball, D), points(7, D)
    residual = Partial(0)(U) + 0.5 * Trace(given)(U) - U
    by_hand = mixed(f, x, [torch.eye(D, dtype=x.dtype)[0]]) + 0.5 * columns(f, x, sigma(x)) - f(x)
    assert worst(residual(f, x), by_hand) < 1e-12  # round-off
    every = Sparse(D)
    assert worst(residual(f, x, every.draw(residual, x)), by_hand) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_along_vectors_are_those_of_nested_autograd(order: int):
    f, x = net(Ball, D), points(7, D)
    for v in (V, wave):
        fixed = v if isinstance(v, Tensor) else v(x)
        assert worst(Directional(v, order)(U)(f, x), along(f, x, fixed, order)) < 1e-10


def test_derivatives_along_several_vectors_and_coordinates_come_from_one_jet():
    f, x, seen = net(Ball, D), points(7, D), []
    unit = torch.eye(D, dtype=x.dtype)
    first = mixed(f, x, [V]) * mixed(f, x, [wave(x)]) + along(f, x, V, 2) + mixed(f, x, [V, W])
    by_hand = first + mixed(f, x, [unit[1], wave(x)]) + mixed(f, x, [unit[0], unit[0], W])
    expression = Directional(V)(U) * Directional(wave)(U) + Directional(V, 2)(U) + Directional(W)(Directional(V)(U))
    expression = expression + Directional(wave)(Partial(1)(U)) + Partial(0, 0)(Directional(W)(U))
    assert worst(expression(lambda x: seen.append(x) or f(x), x), by_hand) < 1e-12
    assert len(seen) == 1
    wide, points_wide = net(Ball, 12), points(7, 12)  # more coordinates than directions are as cheap as
    found = (Directional(wave)(U) + Partial(11)(U))(wide, points_wide)
    unit = torch.eye(12, dtype=x.dtype)
    assert worst(found, mixed(wide, points_wide, [wave(points_wide)]) + mixed(wide, points_wide, [unit[11]])) < 1e-12


def test_vectors_that_are_coordinates_are_not_counted_twice():
    f, x = net(Ball, D), points(7, D)
    unit = torch.eye(D, dtype=x.dtype)
    both = Directional(unit[1])(Partial(1)(U)) + Directional(unit[1], 2)(U)
    assert worst(both(f, x), 2 * Partial(1, 1)(U)(f, x)) < 1e-12
    assert worst(Trace(unit)(U)(f, x), Laplacian()(U)(f, x)) < 1e-12
    bilaplacian = Trace(unit)(Trace(unit)(U))
    assert worst(bilaplacian(f, x), Biharmonic()(U)(f, x)) < 1e-12


def test_product_rule_along_vectors():
    f, x = net(Ball, D), points(7, D)
    c = lambda x: x[:, 0] * x[:, 1] ** 2  # noqa: E731
    found = Directional(wave)(c * U**2) + Directional(V)(Directional(W)(c * U))
    slope = lambda f, *directions: mixed(f, x, list(directions))  # noqa: E731
    by_hand = slope(lambda x: c(x) * f(x) ** 2, wave(x)) + slope(lambda x: c(x) * f(x), V, W)
    assert worst(found(f, x), by_hand) < 1e-12


def test_first_coordinates_may_be_left_out():
    f, x = net(Ball, D), points(7, D)
    rest = lambda x: wave(x)[:, 2:]  # noqa: E731
    filled = lambda x: torch.cat([0 * x[:, :2], rest(x)], 1)  # noqa: E731
    assert worst(Directional(rest, 2, start=2)(U)(f, x), along(f, x, filled(x), 2)) < 1e-12
    assert worst(Trace(rest, start=2)(U)(f, x), columns(f, x, filled(x).diag_embed())) < 1e-12
    assert worst(Trace(MATRIX[:3], start=2)(U)(f, x), Trace(torch.cat([0 * MATRIX[:2], MATRIX[:3]]))(U)(f, x)) < 1e-12
    some = Sparse(2).draw(Trace(rest, start=2)(U), x)
    assert next(iter(some.samples.values())).max() < 3  # of its three columns


def basket(x: Tensor, volatility: Tensor, correlation: Tensor, rate: float, strike: float) -> Tensor:
    """The price at (t, prices) of a call at t = 1 on the geometric mean of prices, which is lognormal.

    Kemna and Vorst (1990), J. Bank. Finance 14, doi:10.1016/0378-4266(90)90039-5.
    """
    left, share = 1 - x[:, 0], 1 / len(volatility)
    spread = share * (volatility @ correlation @ volatility).sqrt()
    loss = (volatility.square().mean() - spread**2) / 2
    mean = x[:, 1:].log().mean(1)
    first = (mean - torch.tensor(strike).log() + (rate - loss + spread**2 / 2) * left) / (spread * left.sqrt())
    normal = lambda z: (1 + torch.erf(z / 2**0.5)) / 2  # noqa: E731
    second = first - spread * left.sqrt()
    return (mean - loss * left).exp() * normal(first) - strike * (-rate * left).exp() * normal(second)


def test_correlated_black_scholes_equation_holds_for_its_solution():
    d, rate = 4, 0.05
    volatility = torch.linspace(0.1, 0.4, d, dtype=torch.float64)
    correlation = 0.3 + 0.7 * torch.eye(d, dtype=torch.float64)
    root = torch.linalg.cholesky(correlation)
    u = lambda x: basket(x, volatility, correlation, rate, 1.0)  # noqa: E731
    t = 0.9 * torch.rand(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([t, 1 + points(50, d).abs()], 1)
    growth = Directional(lambda x: rate * x[:, 1:], start=1)
    diffusion = Trace(lambda x: (volatility * x[:, 1:])[:, :, None] * root, start=1)
    equation = Partial(0)(U) + growth(U) + 0.5 * diffusion(U) - rate * U
    assert equation(u, x).abs().max() < 1e-13  # round-off of terms of .1
    assert diffusion(U)(u, x).abs().max() > 0.05
    uncorrelated = Partial(0)(U) + growth(U) + 0.5 * Trace(lambda x: volatility * x[:, 1:], start=1)(U) - rate * U
    assert uncorrelated(u, x).abs().max() > 1e-2


def test_gradients_reach_what_the_vectors_are_made_of():
    f, x = net(Ball, D), points(7, D)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    expression = Directional(lambda x: scale * x)(U) + Trace(lambda x: scale * x)(U)
    terms = along(f, x, x, 1).sum(), columns(f, x, x.diag_embed()).sum()
    (slope,) = torch.autograd.grad(expression(f, x).sum(), scale)
    assert worst(slope, terms[0] + 2 * 1.5 * terms[1]) < 1e-12


def test_gradients_to_points_move_the_vectors():
    f, x = net(Ball, D), points(7, D).requires_grad_()
    expression = Directional(wave)(U) + Trace(each)(U)
    total = (mixed(f, x, [wave(x)]) + columns(f, x, each(x))).sum()
    found, by_hand = (torch.autograd.grad(y, x)[0] for y in (expression(f, x).sum(), total))
    assert worst(found, by_hand) < 1e-12


@pytest.mark.parametrize("estimator", [None, Sparse(2)])
def test_compiled_expressions_are_the_eager_ones_and_compile_once(estimator):
    f = net(Ball, D)
    expression = Partial(0)(U) + Directional(wave)(U) + Trace(each)(U) * Trace(V)(U)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda x, draw: expression(f, x, draw), fullgraph=True, backend=counter)
    for seed in (1, 2):
        x = points(7, D, seed=seed)
        draw = None if estimator is None else estimator.draw(expression, x, torch.Generator().manual_seed(seed))
        assert worst(compiled(x, draw), expression(f, x, draw)) < 1e-12
    assert counter.frame_count == 1


def test_numbers_computed_from_parameters_are_found():
    p = nn.Parameter(torch.ones(D))
    assert len(list(computed(Trace(2 * p)(U) + 3 * Directional(2 * p)(U)))) == 2
    assert not list(computed(Trace(p)(U) + Directional(lambda x: 2 * p)(U)))


def test_dtype_is_that_of_the_points():
    found = (Directional(V)(U) + Trace(MATRIX)(U))(net(Ball, D).float(), points(7, D).float())
    assert found.dtype == torch.float32


X = points(2, D)
MISTAKES = {
    "vector of a matrix": (lambda: Directional(MATRIX), r"v: expected \(d,\), got \(5, 3\)"),
    "short vector": (lambda: Directional(V[:4])(U)(net(Ball, D), X), r"v: expected \(5,\) for the 5 coordinates"),
    "shared function": (
        lambda: Directional(lambda x: V)(U)(net(Ball, D), X),
        r"v: expected \(2, 5\) for the 5 coordinates from 0 on of points \(2, 5\), got \(5,\)",
    ),
    "no start": (lambda: Trace(MATRIX[1:])(U)(net(Ball, D), X), r"sigma: expected \(5,\) or \(5, m\) .*, got \(4, 3\)"),
    "other points": (
        lambda: Trace(lambda x: each(x)[:1].expand(3, D, M))(U)(net(Ball, D), X),
        r"sigma: expected \(2, 5\) or \(2, 5, m\) .*, got \(3, 5, 3\)",
    ),
    "other points of a draw": (
        lambda: Sparse(2).draw(Trace(lambda x: x[:, 1:])(U), X),
        r"sigma: expected \(2, 5\) or \(2, 5, m\) .*, got \(2, 4\)",
    ),
    "axes": (lambda: Trace(torch.zeros(2, 2, 2)), r"sigma: expected \(d,\) or \(d, m\), got \(2, 2, 2\)"),
    "start": (lambda: Trace(V, start=-1), "start: expected a coordinate, 0 or more, got -1"),
    "order": (lambda: Directional(V, 0), "order: expected a whole number, 1 or more, got 0"),
    "derivative of a function": (lambda: Partial(0)(Trace(wave)(U)), "whose vectors depend on the points"),
    "twice along a function": (
        lambda: Directional(wave)(Directional(wave)(U)),
        "whose vectors depend on the points: expected constant ones",
    ),
    "coefficient": (lambda: Directional(wave, 2)(wave * U), "whose vectors depend on the points"),
    "beside a sum": (lambda: Directional(V)(Laplacian()(U)), "expected no vectors beside a sum over coordinates"),
    "sum of columns": (lambda: Partial(0)(Trace(V)(U)), "and nothing beside one over columns"),
    "two factors": (lambda: Trace(V)(Trace(W)(U)), "a sum over sigma of one over sigma: expected the same ones"),
    "other sum": (lambda: Trace(V)(Laplacian()(U)), r"a sum over sigma of one over coordinates \(0, None\)"),
    "rough": (lambda: Directional(V, 2)(U)(net(Ball, D, 8, nn.ReLU()), X), "u: a derivative of order 2 was asked for"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case: str):
    call, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_are_no_vectors_is_named():
    with pytest.raises(TypeError, match=r"v: expected a tensor or a function of points, got \[1, 2\]"):
        Directional([1, 2])
    with pytest.raises(TypeError, match="sigma: expected a function that returns a tensor, got float"):
        Trace(lambda x: 1.0)(U)(net(Ball, D), X)
