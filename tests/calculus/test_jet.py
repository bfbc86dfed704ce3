import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sciml.calculus.algebra import downset, univariate
from sciml.calculus.jet import coordinate_jet, jet, seed
from tests.calculus.nested import along, mixed, worst
from tests.calculus.nets import Ball, Features, Periodic, net, points

NETS = [Ball, Features, Periodic]
ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "softplus": nn.Softplus(),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
}
TIGHT = 1e-11  # round-off of a network of a few hundred operations, and of nested autograd's sums


@settings(max_examples=15)
@given(
    d=st.integers(1, 4),
    width=st.integers(1, 5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    order=st.integers(1, 4),
    count=st.integers(1, 3),
    number=st.integers(0, 2**16),
)
def test_network_along_random_directions(d, width, activation, order, count, number):
    u = net(Ball, d, width, ACTIVATIONS[activation])
    x, v = points(3, d, seed=number), points(count, d, seed=number + 1)
    y, summed = jet(u, x, v, order), jet(u, x, v, order, collapsed=True)
    torch.testing.assert_close(y.primal, u(x), rtol=TIGHT, atol=TIGHT)
    for k in range(1, order + 1):
        assert worst(y.derivative(k), torch.stack([along(u, x, row, k) for row in v])) < TIGHT
    assert worst(summed.derivative(order), y.derivative(order).sum(0)) < TIGHT


@settings(max_examples=8)
@given(
    tops=st.lists(st.tuples(*[st.integers(0, 2)] * 3).filter(lambda a: 0 < sum(a) <= 4), min_size=1, max_size=3),
    number=st.integers(0, 2**16),
)
def test_mixed_partials_of_random_downsets(tops, number):
    u, x = net(Periodic, 4), points(2, 4, seed=number)
    vs = [points(1, 4, seed=number + 1 + i) for i in range(3)]
    algebra = downset(*tops)
    y = jet(u, x, vs, algebra)
    for index in {*tops, algebra.indices[1]}:
        expected = mixed(u, x, [v[0] for v, n in zip(vs, index, strict=True) for _ in range(n)])
        assert worst(y.derivative(index)[0], expected) < TIGHT


def test_korteweg_de_vries_in_two_dimensions_needs_one_pass():
    u, x = net(Ball, 3), points(5, 3)
    e = torch.eye(3, dtype=torch.float64)
    y = jet(u, x, [e[i : i + 1] for i in range(3)], downset((3, 1, 0), (0, 2, 0), (0, 1, 1)))
    for index in [(3, 1, 0), (2, 0, 0), (0, 2, 0), (0, 1, 1)]:
        expected = mixed(u, x, [e[i] for i, n in enumerate(index) for _ in range(n)])
        assert worst(y.derivative(index)[0], expected) < TIGHT


@pytest.mark.parametrize("kind", NETS)
def test_jax_gives_the_same(kind):
    jax = pytest.importorskip("jax")
    jets = pytest.importorskip("jax.experimental.jet")
    u, x, v = net(kind, 3), points(2, 3), points(1, 3, seed=1)
    with jax.enable_x64(True):
        _, series = jets.jet(in_jax(jax.numpy, u), (x.numpy(),), ([v.expand(2, 3).numpy(), *[0 * x.numpy()] * 4],))
        expected = [torch.from_numpy(jax.device_get(c).copy()) for c in series]
    y = jet(u, x, v, 5)
    for order, c in enumerate(expected, 1):
        assert worst(y.derivative(order)[0], c) < TIGHT


def in_jax(np, u):
    """The same network in JAX's functions."""
    p = {name: np.asarray(value.detach().numpy()) for name, value in u.named_parameters()}

    def affine(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def gelu(x):
        from jax.scipy.special import erf

        return x * (1 + erf(x / np.sqrt(2.0))) / 2

    def ball(x):
        y = np.tanh(affine("net.2", np.tanh(affine("net.0", x))))
        return (1 - (x * x).sum(-1)) * affine("net.4", y)[..., 0]

    def features(x):
        place = (x * p["scale"])[..., :-1]
        phase = affine("waves", place)
        y = np.concatenate([np.sin(phase), np.cos(phase)], -1)
        y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * p["norm.weight"] + p["norm.bias"]
        return affine("out", np.exp(y))[..., 0] * np.exp(-x[..., -1]) + (place[..., 1:] ** 3).mean(-1)

    def periodic(x):
        return affine("net.2", gelu(affine("net.0", np.concatenate([np.sin(x), np.cos(x)], -1))))[..., 0]

    return {Ball: ball, Features: features, Periodic: periodic}[type(u)]


def test_directions_of_each_point():
    u, x = net(Ball, 3), points(4, 3)
    v = points(2, 4, 3, seed=1)
    y = jet(u, x, v, 2).derivative(2)
    assert worst(y, torch.stack([along(u, x, row, 2) for row in v])) < TIGHT


def test_curve_that_is_no_line():
    u, x, v, w = net(Ball, 3), points(4, 3), points(1, 3, seed=1), points(1, 3, seed=2)
    y = jet(u, x, {(1,): v, (2,): w}, univariate(2)).derivative(2)[0]
    expected = along(u, x, v[0], 2) + 2 * along(u, x, w[0], 1)
    assert worst(y, expected) < TIGHT


def test_many_directions_at_once_are_each_alone():
    u, x, v = net(Ball, 3), points(4, 3), points(9, 3, seed=1)
    many = jet(u, x, v, 5)
    for r in range(9):
        assert worst(many.derivative(5)[r], jet(u, x, v[r : r + 1], 5).derivative(5)[0]) < TIGHT
    assert worst(jet(u, x, v, 5, collapsed=True).derivative(5), many.derivative(5).sum(0)) < TIGHT


def test_first_order_may_be_collapsed():
    u, x, v = net(Ball, 3), points(4, 3), points(5, 3, seed=1)
    summed = jet(u, x, v, 1, collapsed=True).derivative(1)
    assert worst(summed, along(u, x, v.sum(0), 1)) < TIGHT


def test_one_point_without_a_batch():
    u, x, v = net(Ball, 3), points(3), points(2, 3, seed=1)
    assert worst(jet(u, x, v, 2).derivative(2), torch.stack([along(u, x, row, 2) for row in v])) < TIGHT


def test_results_may_be_trees_and_constants():
    x, v = points(4, 3), points(2, 3)
    y = jet(lambda x: {"a": x.sin(), "b": (x.sum(-1), torch.ones(2))}, x, v, 2)
    assert y["a"].derivative(2).shape == (2, 4, 3)
    assert y["b"][0].derivative(2).shape == (2, 4)
    assert torch.equal(y["b"][0].derivative(2), torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(y["b"][1], torch.ones(2))


def test_gradients_agree_with_finite_differences():
    u, x, v = net(Ball, 2, 3), points(2, 2).requires_grad_(), points(2, 2, seed=1)
    names, weights = zip(*u.named_parameters(), strict=True)

    def third(x, *weights):
        at = dict(zip(names, weights, strict=True))
        y = jet(lambda x: torch.func.functional_call(u, at, (x,)), x, v, 3, collapsed=True)
        return y.derivative(2), y.derivative(3)

    assert torch.autograd.gradcheck(third, (x, *weights))


def test_gradients_of_parameters_agree_with_nested_autograd():
    u, x, v = net(Periodic, 3), points(4, 3).requires_grad_(), points(1, 3, seed=1)
    wanted = (x, *u.parameters())
    got = torch.autograd.grad(jet(u, x, v, 2).derivative(2).square().sum(), wanted, materialize_grads=True)
    expected = torch.autograd.grad(hessian_form(u, x, v[0]).square().sum(), wanted, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        assert worst(a, b) < TIGHT


def hessian_form(u, x, v):
    """v^T H v by reverse mode twice."""
    (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad((slope * v).sum(), x, create_graph=True)
    return (curved * v).sum(-1)


def test_vmap_and_functional_gradients():
    u, x, v = net(Ball, 3), points(2, 4, 3), points(2, 3, seed=1)

    def loss(x):
        return jet(u, x, v, 2, collapsed=True).derivative(2).square().sum()

    many = torch.vmap(torch.func.grad(loss))(x)
    for one, rows in zip(many, x, strict=True):
        rows = rows.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(rows), rows)
        assert worst(one, expected) < TIGHT


def test_compiled_with_its_gradients():
    u, x, v = net(Ball, 3), points(4, 3).requires_grad_(), points(2, 3, seed=1)
    algebra = downset((1, 1), (0, 2), collapsed=[(1, 1)])

    def loss(x):
        y = jet(u, x, (v, v.flip(0)), algebra)
        return y.derivative((1, 1)).square().sum() + y.derivative((0, 2)).square().sum()

    wanted = (x, *u.parameters())
    got = torch.compile(loss, fullgraph=True)(x)
    expected = loss(x)
    assert worst(got, expected) < TIGHT
    for a, b in zip(
        torch.autograd.grad(got, wanted), torch.autograd.grad(expected, wanted, materialize_grads=True), strict=True
    ):
        assert worst(a, b) < TIGHT


SQUARE = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
OPERATORS = {
    "minus": lambda x: x - SQUARE,
    "from": lambda x: SQUARE - x,
    "over": lambda x: SQUARE / x + x / SQUARE,
    "power": lambda x: (x * x) ** SQUARE + SQUARE.exp() ** x,
    "above": lambda x: (x > SQUARE) * x + (x <= SQUARE) * x.sin(),
    "product": lambda x: torch.matmul(x, SQUARE) + torch.matmul(SQUARE, x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_jets_and_tensors_are_traced_in_order(name):
    x, v = points(3, 3), points(1, 3, seed=1)

    def second(x):
        return jet(OPERATORS[name], x, v, 2).derivative(2)

    torch.compiler.reset()
    assert torch.equal(torch.compile(second, fullgraph=True, backend="eager")(x), second(x))


def test_infix_product_of_jet_and_tensor_is_refused_by_a_compiler():
    """A trap of torch 2.13, which traces ``jet @ tensor`` as ``tensor @ jet``; when this fails, the rule may go."""
    x, v = points(3, 3), points(1, 3, seed=1)
    torch.compiler.reset()
    with pytest.raises(Exception, match=re.escape("write torch.matmul")):
        torch.compile(lambda x: jet(lambda x: x @ SQUARE, x, v, 1).derivative(1), fullgraph=True, backend="eager")(x)


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (TypeError, lambda x, v: jet(torch.sin, x.tolist(), v, 2), "x: expected a tensor of points, got list"),
        (TypeError, lambda x, v: jet(torch.sin, x.long(), v, 2), "x: expected points of a floating or complex dtype"),
        (TypeError, lambda x, v: jet(torch.sin, x, v.float(), 2), "directions: expected the dtype of x, torch.float64"),
        (
            TypeError,
            lambda x, v: jet(torch.sin, x, v.long(), 2),
            "directions: expected a floating tensor, got torch.int64",
        ),
        (ValueError, lambda x, v: jet(torch.sin, x, v[0], 2), r"directions: expected \(R, 3\) or \(R, 4, 3\) for"),
        (ValueError, lambda x, v: jet(torch.sin, x, v[:, :2], 2), r"points \(4, 3\), got \(2, 2\)"),
        (ValueError, lambda x, v: jet(torch.sin, x[0], v[0], 2), r"directions: expected \(R, 3\) for points \(3,\)"),
        (ValueError, lambda x, v: jet(torch.sin, x, (v, v), 2), "expected one tensor for each of 1 variables, got 2"),
        (ValueError, lambda x, v: jet(torch.sin, x, (v, v[:1]), downset((1, 1))), "the same number of them for each"),
        (
            ValueError,
            lambda x, v: jet(torch.sin, x, {(3,): v}, univariate(2)),
            "directions: expected multi-indices among",
        ),
        (ValueError, lambda x, v: jet(torch.sin, x, v, 0), "order: expected a whole number, 1 or more, got 0"),
        (ValueError, lambda x, v: jet(torch.sin, x, v, univariate(2), collapsed=True), "collapsed: an algebra says"),
        (ValueError, lambda x, v: jet(torch.sin, x, v, 2).derivative(3), "index: expected one of"),
        (TypeError, lambda x, v: coordinate_jet(torch.sin, x, v, 2), "coordinates: expected tensors of whole numbers"),
        (ValueError, lambda x, v: coordinate_jet(torch.sin, x, v[:, :2].long(), 2), "coordinates: expected shapes"),
        (
            ValueError,
            lambda x, v: coordinate_jet(lambda x: x[:, -1], x, torch.tensor([1, -1]), 2),
            r"coordinates: expected numbers from 0 to \d, got -1 to 1",
        ),
        (ValueError, lambda x, v: coordinate_jet(torch.sin, x, torch.tensor([9]), 2), r"got 9 to 9"),
        (
            ValueError,
            lambda x, v: coordinate_jet(torch.sin, x, [torch.tensor([0])] * 2, 2),
            "coordinates: expected one tensor",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(kind, call, message):
    with pytest.raises(kind, match=message):
        call(points(4, 3), points(2, 3))


def test_seed_is_the_jet_of_the_points():
    x, v = points(4, 3), points(2, 3)
    y = seed(x, v, univariate(2))
    assert y.shape == x.shape
    assert len(y) == 4
    assert torch.equal(y.derivative(1), v[:, None].expand(2, 4, 3))
    assert torch.equal(y.derivative(2), torch.zeros(2, 4, 3, dtype=torch.float64))
    assert y.detach() is not x
    assert isinstance(y.detach(), torch.Tensor)


@pytest.mark.parametrize("count", [2, 4, 5, 9])
def test_last_affine_map_is_taken_when_its_derivatives_are_asked_for(count):
    torch.manual_seed(0)
    u = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3, bias=count % 2 == 0)).double()
    x, v = points(6, 3), points(count, 6, 3, seed=1)
    y, whole = jet(u, x, v, 1), jet(u, x, v, 2)
    torch.testing.assert_close(y.primal, u(x), rtol=TIGHT, atol=TIGHT)
    for _ in range(2):  # the second time they are known
        torch.testing.assert_close(y.derivative(1), whole.derivative(1), rtol=TIGHT, atol=TIGHT)
    further = jet(lambda x: (u(x) * x).sum(-1), x, v, 1)
    by_hand = (whole.derivative(1) * x + u(x) * v).sum(-1)
    torch.testing.assert_close(further.derivative(1), by_hand, rtol=TIGHT, atol=TIGHT)
