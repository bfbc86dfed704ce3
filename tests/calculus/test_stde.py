from collections.abc import Callable
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

from sciml.calculus import (
    Biharmonic,
    Dense,
    Derivative,
    Draw,
    Expression,
    Laplacian,
    Partial,
    PowerSum,
    Sparse,
    Trace,
    Unknown,
)
from sciml.calculus.stde import Estimator, subset
from sciml.models.mlp import MLP

ROWS, BLOCKS = 1000, 100  # 1e5 draws


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(d: int) -> nn.Module:
    torch.manual_seed(d)
    f = MLP(d, 1, width=6, depth=1)
    with torch.no_grad():  # derivatives of order one that do not cancel
        f.layers[0].weight.copy_(0.5 + torch.rand_like(f.layers[0].weight))
        f.layers[1].weight.abs_()
        f.layers[0].bias.fill_(-0.3)
    return f


def kdv(u: Unknown) -> Expression:
    """KdV-2D for any number of space coordinates: x and y range over all of them."""
    one, two = PowerSum(1, start=1)(u), PowerSum(1, 1, start=1)(u)
    products = 3 * (two * one + one * Laplacian(start=1)(u))
    return Derivative((0,), (1,), (1, None))(u) + PowerSum(3, 1, start=1)(u) + products + Laplacian(start=1)(u)


def factor(x: Tensor) -> Tensor:
    """A matrix (b, d, 2 d) at each point."""
    rows, columns = (torch.arange(n, dtype=x.dtype, device=x.device) for n in (x.shape[1], 2 * x.shape[1]))
    return (1 + x[:, :, None]) * (1 + torch.cos((1 + rows[:, None]) * columns) / 2)


OPERATORS: dict[str, tuple[Callable[[Unknown], Expression], list[Estimator]]] = {
    "laplacian": (Laplacian(), [Sparse(2), Dense(8), Dense(8, law="gaussian")]),
    "biharmonic": (Biharmonic(), [Sparse(8), Dense(16, law="gaussian")]),
    "u_xxy": (PowerSum(2, 1), [Sparse(8)]),
    "kdv": (kdv, [Sparse(1), Sparse(3)]),
    "trace": (Trace(factor), [Sparse(4), Dense(4), Dense(4, law="gaussian")]),
    "diagonal trace": (Trace(lambda x: 1 + x), [Sparse(2), Dense(8)]),
}
CASES = [(name, est, d) for name, (_, ests) in OPERATORS.items() for est in ests for d in (3, 5, 8)]


def means(expression: Expression, f: nn.Module, x: Tensor, estimator: Estimator, seed: int = 0) -> Tensor:
    """Means of blocks of independent estimates at one point."""
    generator, rows = torch.Generator().manual_seed(seed), x.expand(ROWS, -1)
    with torch.no_grad():
        return torch.stack(
            [expression(f, rows, estimator.draw(expression, rows, generator)).mean() for _ in range(BLOCKS)]
        )


@pytest.mark.parametrize(("name", "estimator", "d"), CASES)
def test_estimates_are_unbiased(name: str, estimator: Estimator, d: int):
    """1e5 draws: the standard error is at most 1 %, and the mean lies within four of them (one case in 16,000 not)."""
    f, x, expression = net(d), torch.full((1, d), 0.1), OPERATORS[name][0](Unknown())
    blocks, exact = means(expression, f, x, estimator), expression(f, x)
    assert estimator.draw(expression, x).random(x)  # else nothing is estimated
    error = blocks.std() / BLOCKS**0.5
    assert error <= 0.01 * exact.abs()
    assert (blocks.mean() - exact).abs() <= 4 * error


def gradients(f: nn.Module, x: Tensor, draws: int) -> Tensor:
    """Gradients (blocks, parameters) of squared residuals from one draw or from two independent ones."""
    residual, estimator = Laplacian()(Unknown()) + 1.0, Sparse(2)
    generator, rows, found = torch.Generator().manual_seed(3), x.expand(ROWS, -1), []
    for _ in range(BLOCKS):
        estimates = [residual(f, rows, estimator.draw(residual, rows, generator)) for _ in range(draws)]
        loss = (estimates[0] * estimates[-1]).mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(f.parameters())[:3])]))
    return torch.stack(found)


def test_two_draws_make_the_gradient_of_a_square_unbiased_and_one_does_not():
    d = 8
    f, x = net(d), torch.full((1, d), 0.1)
    exact = torch.autograd.grad((Laplacian()(Unknown()) + 1.0)(f, x).square().mean(), list(f.parameters())[:3])
    exact = torch.cat([g.flatten() for g in exact])
    off = {}
    for draws in (1, 2):
        blocks = gradients(f, x, draws)
        off[draws] = ((blocks.mean(0) - exact) / (blocks.std(0) / BLOCKS**0.5)).abs().max()
    assert off[2] < 4.5  # the largest of 60 correlated normal deviations
    assert off[1] > 20  # the gradient of the estimate's variance is in it


def test_sparse_samples_differ_by_point_unless_shared():
    u, x = Unknown(), torch.zeros(5, 1000)
    generator = torch.Generator().manual_seed(0)
    (own,) = Sparse(4).draw(Laplacian()(u), x, generator).samples.values()
    (shared,) = Sparse(4, shared=True).draw(Laplacian()(u), x, generator).samples.values()
    assert own.shape == (4, 5)
    assert shared.shape == (4,)
    assert len(own.unique()) > 4


def test_shared_and_own_samples_give_the_same_where_they_are_the_same():
    f, x, e = net(5), torch.rand(3, 5), Laplacian()(Unknown())
    shared = Sparse(2, shared=True).draw(e, x, torch.Generator().manual_seed(0))
    own = shared._replace(samples={k: v[:, None].expand(-1, 3) for k, v in shared.samples.items()})
    torch.testing.assert_close(e(f, x, shared), e(f, x, own), rtol=1e-12, atol=1e-12)


def test_all_terms_are_taken_where_samples_suffice():
    f, x, e = net(4), torch.rand(3, 4), Biharmonic()(Unknown())
    torch.testing.assert_close(e(f, x, Sparse(16).draw(e, x)), e(f, x), rtol=1e-11, atol=1e-11)


def test_factors_of_a_product_are_sampled_apart():
    u = Unknown()
    e = Laplacian()(u) ** 2 + u * Laplacian()(u) + Partial(0)(u)
    draw = Sparse(2).draw(e, torch.zeros(1, 9), torch.Generator().manual_seed(0))
    assert [group for _, group in draw.samples] == [0, 1]


def test_samples_serve_every_expression_of_the_same_sums():
    f, x, u = net(9), torch.rand(3, 9), Unknown()
    draw = Sparse(2).draw(Laplacian()(u), x)
    torch.testing.assert_close((Laplacian()(u) + u**2)(f, x, draw), Laplacian()(u)(f, x, draw) + f(x)[:, 0] ** 2)
    with pytest.raises(ValueError, match=r"draw: it has no samples for .* group 1"):
        (Laplacian()(u) ** 2)(f, x, draw)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_subsets_are_uniform(k: int):
    """Each of the numbers, and each pair, is as frequent as any other: four standard errors of binomial counts."""
    n, rows = 6, 60_000
    found = subset(n, k, (rows,), torch.device("cpu"), torch.Generator().manual_seed(k))
    assert (found.sort(0).values.diff(dim=0) > 0).all()
    held = torch.zeros(rows, n).scatter_(1, found.T, 1.0)
    share, pair = k / n, k * (k - 1) / (n * (n - 1))
    assert ((held.mean(0) - share).abs() <= 4 * (share * (1 - share) / rows) ** 0.5).all()
    together = (held.T @ held / rows)[~torch.eye(n, dtype=torch.bool)]
    assert ((together - pair).abs() <= 4.5 * (pair * (1 - pair) / rows) ** 0.5 + 1e-12).all()


def test_draws_do_not_depend_on_the_global_state():
    x, e = torch.zeros(3, 50), Laplacian()(Unknown())
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(next(iter(Sparse(4).draw(e, x, torch.Generator().manual_seed(7)).samples.values())))
    assert torch.equal(*found)


def quadratic(a: Tensor) -> Callable[[Tensor], Tensor]:
    """x . a x / 2, with the Hessian a."""
    return lambda x: ((x @ a) * x).sum(1) / 2


def symmetric(d: int) -> Tensor:
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(d))
    return a + a.T


def every_draw(estimator: Estimator, choices: list[tuple]) -> Draw:
    """Each of some samples of a Laplacian at a point of its own."""
    return Draw(estimator, {(Laplacian(), 0): torch.tensor(choices).transpose(0, 1)})


def test_reported_variance_is_that_over_all_draws_without_replacement():
    """N^2 S^2 / R (1 - R / N), S^2 the variance of the terms (Cochran 1977, Sampling Techniques, th. 2.2)."""
    d, r, u = 5, 2, Unknown()
    terms = torch.tensor([1.0, -2.0, 0.5, 4.0, 3.0])
    draw, x = every_draw(Sparse(r), list(combinations(range(d), r))), torch.full((10, d), 0.3)
    estimate, error = (3 * Laplacian()(u) + u).with_error(quadratic(terms.diag()), x, draw)
    exact = 9 * d**2 * terms.var() / r * (1 - r / d)
    torch.testing.assert_close(estimate, (3 * Laplacian()(u) + u)(quadratic(terms.diag()), x, draw))
    torch.testing.assert_close(estimate.var(correction=0), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(error.square().mean(), exact, rtol=1e-12, atol=0)


def test_reported_variance_is_that_over_all_signs():
    """2 sum over i != j of a_ij^2 / R."""
    d, r, a = 3, 2, symmetric(3)
    signs = list(product((-1.0, 1.0), repeat=d))
    draw = every_draw(Dense(r), list(product(signs, repeat=r)))
    estimate, error = Laplacian()(Unknown()).with_error(quadratic(a), torch.zeros(64, d), draw)
    exact = 2 * (a - a.diagonal().diag()).square().sum() / r
    torch.testing.assert_close(estimate.var(correction=0), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(error.square().mean(), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", [Sparse(3), Sparse(3, shared=True), Dense(3), Dense(3, law="gaussian")])
def test_mean_of_reported_variances_is_the_variance_of_estimates(estimator: Estimator):
    """Within four standard errors of the mean of (estimate - exact)^2 - error^2."""
    d, a, e = 8, symmetric(8), Laplacian()(Unknown())
    generator, draws = torch.Generator().manual_seed(1), 400 if estimator.shared else 1
    found = []
    for _ in range(draws):
        x = torch.zeros(1 if estimator.shared else 20_000, d)
        found.append(torch.stack(e.with_error(quadratic(a), x, estimator.draw(e, x, generator))))
    estimate, error = torch.cat(found, 1)
    off = (estimate - a.trace()).square() - error.square()
    assert off.mean().abs() <= 4 * off.std() / len(off) ** 0.5
    assert error.square().mean() > 0.5 * estimate.var()


def test_reported_variance_of_a_product_is_right_to_first_order_and_not_too_small():
    d, r = 6, 3
    a = (20 + torch.tensor([1.0, -1.0, 0.3, 0.5, -0.7, 0.0])).diag()
    u = Unknown()
    e, x = Laplacian()(u) ** 2 + (lambda x: x[:, 0]) * Laplacian()(u), torch.ones(20_000, d)
    estimate, error = e.with_error(quadratic(a), x, Sparse(r).draw(e, x, torch.Generator().manual_seed(0)))
    assert 0.95 < error.square().mean() / estimate.var() < 1.05  # both have standard errors of 1 %


def test_errors_of_components_of_powers_and_of_what_is_not_estimated():
    d, x, u = 7, torch.rand(4, 7), Unknown()
    f = lambda x: torch.stack([(x**4).sum(1), (x**3).sum(1)], 1)  # noqa: E731
    e = Laplacian()(u[0]) + PowerSum(1)(u[1]) + Partial(0)(u[1])
    draw = Sparse(3).draw(e, x, torch.Generator().manual_seed(0))
    _, error = e.with_error(f, x, draw)
    alone = [part.with_error(f, x, draw)[1] for part in (Laplacian()(u[0]), PowerSum(1)(u[1]))]
    assert (error > 0).all()
    assert (error < alone[0] + alone[1]).all()
    assert not Partial(0)(u[1]).with_error(f, x, draw)[1].any()
    many = Sparse(d)
    value, error = e.with_error(f, x, many.draw(e, x))
    torch.testing.assert_close(value, e(f, x), rtol=1e-12, atol=0)
    assert not error.any()


def test_compiled_errors_are_the_eager_ones():
    d, e = 9, Laplacian()(Unknown()) + torch.sin(Unknown())
    f, x = net(d), torch.rand(5, d)
    draw = Sparse(4).draw(e, x, torch.Generator().manual_seed(0))
    compiled = torch.compile(lambda x: e.with_error(f, x, draw), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), e.with_error(f, x, draw), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u, x: Sparse(0), "samples: expected a whole number, 1 or more, got 0"),
        (
            lambda u, x: Laplacian()(u).with_error(net(9), x, Sparse(1).draw(Laplacian()(u), x)),
            "samples: expected 2 or more for a standard error, got 1",
        ),
        (lambda u, x: Dense(2).draw(PowerSum(4)(u), x), "dense samples estimate Laplacians and biharmonics"),
        (lambda u, x: Dense(2).draw(Biharmonic()(u), x), "law: expected 'gaussian' for a biharmonic"),
        (lambda u, x: Sparse(2).draw(torch.sin(Laplacian()(u)), x), "sin of an estimate is biased"),
        (lambda u, x: Sparse(2).draw(1 / Laplacian()(u), x), "a power -1 of an estimate is biased"),
    ],
)
def test_mistakes_are_named(call: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        call(Unknown(), torch.zeros(2, 9))
