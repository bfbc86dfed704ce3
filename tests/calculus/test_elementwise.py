"""Every function of one variable along a random curve of order 6, with mpmath as the judge."""

from itertools import product

import mpmath
import pytest
import torch
from torch.nn import functional

from sciml.calculus import elementwise
from sciml.calculus.algebra import compose, univariate
from sciml.calculus.elementwise import ELEMENTWISE
from sciml.calculus.jet import jet
from tests.calculus.nested import along, worst

ORDER = 6
mp = mpmath.mp.clone()
mp.dps = 50


def softplus(x):
    return mp.log(1 + mp.exp(x))


def tanh_gelu(x):
    return x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)))


JUDGED = {
    "exp": (torch.exp, mp.exp),
    "expm1": (torch.expm1, mp.expm1),
    "tanh": (torch.tanh, mp.tanh),
    "tan": (torch.tan, mp.tan),
    "sin": (torch.sin, mp.sin),
    "cos": (torch.cos, mp.cos),
    "sinh": (torch.sinh, mp.sinh),
    "cosh": (torch.cosh, mp.cosh),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mp.exp(-x))),
    "erf": (torch.erf, mp.erf),
    "erfc": (torch.special.erfc, mp.erfc),
    "atan": (torch.atan, mp.atan),
    "softplus": (functional.softplus, softplus),
    "softplus, beta": (lambda x: functional.softplus(x, 2.5), lambda x: softplus(mp.mpf(2.5) * x) / mp.mpf(2.5)),
    "logsigmoid": (functional.logsigmoid, lambda x: -softplus(-x)),
    "silu": (functional.silu, lambda x: x / (1 + mp.exp(-x))),
    "mish": (functional.mish, lambda x: x * mp.tanh(softplus(x))),
    "gelu": (functional.gelu, lambda x: x * mp.ncdf(x)),
    "gelu, tanh": (lambda x: functional.gelu(x, approximate="tanh"), tanh_gelu),
    "reciprocal": (torch.reciprocal, lambda x: 1 / x),
    "pow": (lambda x: x**5, lambda x: x**5),
    "pow, negative": (lambda x: x**-2, lambda x: x**-2),
    "square": (torch.square, lambda x: x * x),
    "elu": (functional.elu, lambda x: x if x > 0 else mp.expm1(x)),
    "celu": (lambda x: functional.celu(x, 0.5), lambda x: x if x > 0 else mp.expm1(2 * x) / 2),
    "selu": (
        functional.selu,
        lambda x: mp.mpf(1.0507009873554805) * (x if x > 0 else mp.mpf(1.6732632423543772) * mp.expm1(x)),
    ),
}
POSITIVE = {
    "log": (torch.log, mp.log),
    "log1p": (torch.log1p, lambda x: mp.log(1 + x)),
    "log2": (torch.log2, lambda x: mp.log(x, 2)),
    "log10": (torch.log10, mp.log10),
    "sqrt": (torch.sqrt, mp.sqrt),
    "rsqrt": (torch.rsqrt, lambda x: 1 / mp.sqrt(x)),
    "pow, broken": (lambda x: x**2.5, lambda x: x ** mp.mpf(2.5)),
}
KINKED = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.3),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.6, 0.4),
    "hardtanh": lambda x: functional.hardtanh(x, -0.5, 0.7),
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
}
CASES = [(name, *pair, (-1.3, 0.4)) for name, pair in JUDGED.items()]
CASES += [(name, *pair, (0.3, 2.1)) for name, pair in POSITIVE.items()]


def test_every_rule_is_judged():
    names = {name.split(",")[0] for name in (*JUDGED, *POSITIVE, *KINKED)}
    assert names == set(ELEMENTWISE)


def judge(f, curve: list[float]) -> tuple[list[float], list[float]]:
    """The coefficients of f along a curve, and the sums of absolute values of the terms of Faa di Bruno's formula."""
    series = mp.taylor(f, mp.mpf(curve[0]), ORDER)
    series[0] = f(mp.mpf(curve[0]))
    algebra = univariate(ORDER)
    exact = compose(algebra, series, [mp.mpf(c) for c in curve])
    sizes = compose(algebra, [abs(c) for c in series], [abs(mp.mpf(c)) for c in curve])
    return exact, sizes


@pytest.mark.parametrize("composed", [0, ORDER], ids=["recurrence", "series"])
@pytest.mark.parametrize(("name", "f", "exact", "points"), CASES, ids=[case[0] for case in CASES])
def test_function_is_exact_along_a_curve(monkeypatch, name, f, exact, points, composed):
    monkeypatch.setattr(elementwise, "COMPOSED", composed)
    curve = torch.randn(ORDER, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(points, dtype=torch.float64)[:, None]  # (b, 1)
    y = jet(f, x, {(k,): curve[k - 1] for k in range(1, ORDER + 1)}, univariate(ORDER))
    for b, point in enumerate(points):
        truth, sizes = judge(exact, [point, *curve[:, 0, 0].tolist()])
        for k in range(ORDER + 1):
            got = y.coefficient(k).reshape(-1)[b].item()
            # torch's own functions are good to some 1e-16, and a recurrence adds a few dozen terms
            assert abs(got - truth[k]) <= 1e-13 * max(sizes[k], 1e-300), (point, k)


@pytest.mark.parametrize("name", KINKED)
def test_piecewise_function_has_the_derivatives_of_its_piece(name):
    f = KINKED[name]
    x = torch.tensor([[-1.7, -0.45, 0.3, 0.9, 6.3]], dtype=torch.float64)
    v = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = jet(lambda x: (f(x) * x).sin(), x, v, 4)
    for order in range(1, 5):
        # round-off of a few operations in float64
        assert worst(y.derivative(order)[0], along(lambda x: (f(x) * x).sin(), x, v, order)) < 1e-12
    assert y.smoothness == ELEMENTWISE[name].smoothness <= 0


@pytest.mark.parametrize("composed", [0, ORDER], ids=["recurrence", "series"])
def test_softplus_has_the_derivatives_of_its_values_above_its_threshold(monkeypatch, composed):
    monkeypatch.setattr(elementwise, "COMPOSED", composed)
    x = torch.tensor([[-0.7, 0.3, 0.49, 0.51, 2.0, 900.0]], dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = lambda x: functional.softplus(x, beta=3, threshold=1.5)  # noqa: E731
    for order in range(1, 5):
        y = jet(f, x, v, order).derivative(order)[0]
        assert worst(y, along(f, x, v, order)) < 1e-12  # round-off
        assert worst(*(torch.autograd.grad(each.sum(), x)[0] for each in (y, along(f, x, v, order)))) < 1e-12
    assert y[0, 3:].tolist() == [0.0, 0.0, 0.0]


def test_smoothness_is_that_of_the_least_smooth_part():
    x, v = torch.ones(1, 2), torch.ones(1, 2)
    assert jet(lambda x: x.tanh() + x, x, v, 2).smoothness == torch.inf
    assert jet(lambda x: x.tanh() + functional.celu(x), x, v, 2).smoothness == 1
    assert jet(lambda x: torch.maximum(x, x.sin()) * x, x, v, 2).smoothness == 0


@pytest.mark.parametrize(("exponent", "order"), list(product([2.5, 3, 3.0, 1, 0], [1, 2, 3])))
def test_power_at_zero_has_its_derivatives(exponent, order):
    y = jet(lambda x: x**exponent, torch.zeros(1, 1), torch.ones(1, 1), order).derivative(order)
    if exponent == 2.5 and order == 3:
        assert y.item() == torch.inf
    else:
        assert y.item() == {(3, 3): 6.0, (1, 1): 1.0}.get((int(exponent), order), 0.0)


def test_exponential_pieces_stay_finite_far_away():
    x = torch.tensor([[1000.0]], requires_grad=True)
    y = jet(functional.elu, x, torch.ones(1, 1), 2)
    assert y.derivative(1).item() == 1
    (grad,) = torch.autograd.grad(y.derivative(2).sum(), x)
    assert grad.item() == 0


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_power_at_zero_with_exponents_of_each_entry(order):
    x = torch.tensor([[0.0, 0.0, 0.0, 0.7]], dtype=torch.float64)
    p = torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = jet(lambda x: x**p, x, v, order).derivative(order)[0]
    by_hand = lambda x: torch.stack([x[:, 0], x[:, 1] ** 2, x[:, 2] ** 3, x[:, 3] ** 2], 1)  # noqa: E731
    assert worst(y, along(by_hand, x, v, order)) < 1e-14  # round-off
    (slope,) = torch.autograd.grad(y[0, 3], p)
    factor = torch.stack([p[3] - m for m in range(order)]).prod()
    (expected,) = torch.autograd.grad(factor * x[0, 3] ** (p[3] - order) * v[0, 3] ** order, p)
    assert slope[3].isclose(expected[3])
