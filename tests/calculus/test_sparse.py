import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.calculus.algebra import downset, univariate
from sciml.calculus.jet import coordinate_jet, jet, seed_coordinates
from sciml.calculus.sparse import SparseJet
from tests.calculus.nested import worst
from tests.calculus.nets import Ball, Features, Periodic, net, points

ROUND_OFF = 1e-12  # the same terms as in the dense jet, summed in another order
MIXED = downset((2, 1), (0, 2), collapsed=[(2, 1)])


def one_hot(coordinates, d):
    """The directions of some coordinates: (R, d), or (R, b, d) where each point has its own."""
    return torch.nn.functional.one_hot(coordinates, d).double()


@settings(max_examples=25)
@given(
    kind=st.sampled_from([Ball, Features, Periodic]),
    shared=st.booleans(),
    order=st.integers(1, 4),
    collapsed=st.booleans(),
    number=st.integers(0, 2**16),
)
def test_coordinates_are_one_hot_directions(kind, shared, order, collapsed, number):
    d, u, x = 5, net(kind, 5), points(4, 5, seed=number)
    generator = torch.Generator().manual_seed(number)
    coordinates = torch.randint(d, (3,) if shared else (3, 4), generator=generator)
    got = coordinate_jet(u, x, coordinates, order, collapsed=collapsed)
    expected = jet(u, x, one_hot(coordinates, d), order, collapsed=collapsed)
    for k in range(order + 1):
        assert worst(got.derivative(k), expected.derivative(k)) < ROUND_OFF


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "each"])
@pytest.mark.parametrize("kind", [Ball, Features, Periodic])
def test_several_variables_that_may_move_the_same_coordinate(kind, shared):
    d, u, x = 5, net(kind, 5), points(4, 5).requires_grad_()
    i, j = torch.tensor([0, 3, 2, 4]), torch.tensor([1, 3, 4, 4])
    if not shared:
        i, j = (torch.stack([c, c.flip(0), c, (c + 1) % d], 1) for c in (i, j))
    got = coordinate_jet(u, x, (i, j), MIXED)
    expected = jet(u, x, (one_hot(i, d), one_hot(j, d)), MIXED)
    for index in MIXED.indices:
        assert worst(got.derivative(index), expected.derivative(index)) < ROUND_OFF
    wanted = (x, *u.parameters())
    both = [torch.autograd.grad(loss(y), wanted) for y in (got, expected)]
    for a, b in zip(*both, strict=True):
        assert worst(a, b) < ROUND_OFF


def loss(y):
    return sum(y.derivative(index).square().sum() for index in MIXED.indices)


KEPT = {
    "functions": lambda x: x.sin().exp().tanh() ** 2,
    "constants": lambda x: 1 - 2 * x / torch.arange(1.0, 7).double() + torch.ones(3, 1).double(),
    "products": lambda x: x * x.cos() / (2 + x * x) - x,
    "slices": lambda x: x[..., 1:4].sin()[:, -2:].exp()[..., :],
    "copies": lambda x: -x.clone().double().contiguous(),
    "joins": lambda x: torch.cat([x.sin(), torch.ones(3, 2).double(), x[:, 2:], -x], -1),
}
DENSE = {
    "sums": lambda x: x.sin().sum(-1) * x.mean(-1, keepdim=True) + x.square().sum(dim=-1) ** 0.5,
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "coordinates": lambda x: x[:, 2] * x[..., -1].sin(),
    "all sums": lambda x: x.sin().sum(),
    "first axis": lambda x: x[1].sin(),
    "slices that differ": lambda x: x[:, :-1] * x[:, 1:].sin(),
    "reshapes": lambda x: x.sin().reshape(2, 9),
    "product": lambda x: x.sin() @ torch.ones(6, 2).double(),
    "stack": lambda x: torch.stack([x, x.cos()]),
    "more axes": lambda x: x * torch.ones(2, 3, 6).double(),
    "dense partner": lambda x: x / x.square().sum(-1, keepdim=True),
}


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
@pytest.mark.parametrize("name", KEPT | DENSE)
def test_function_of_a_sparse_jet(name, each):
    u, x = (KEPT | DENSE)[name], points(3, 6)
    i, j = torch.tensor([0, 2, 5]), torch.tensor([3, 2, 1])
    if each:
        i, j = torch.stack([i, j, i], 1), torch.stack([j, j, i], 1)
    got = u(seed_coordinates(x, (i, j), MIXED))
    assert isinstance(got, SparseJet) == (name in KEPT)
    expected = jet(u, x, (one_hot(i, 6), one_hot(j, 6)), MIXED)
    for index in MIXED.indices:
        assert worst(got.derivative(index), expected.derivative(index)) < ROUND_OFF


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_first_layer_has_the_gradients_of_its_formula(by_columns, bias, many):
    weight = points(5, 7)
    weight = (weight.t().contiguous().t() if by_columns else weight).requires_grad_()
    shift = points(5, seed=1).requires_grad_() if bias else None
    x = points(3, 7, seed=2).requires_grad_()
    coordinates = torch.tensor([1, 6, 1])  # one of them twice: its columns add up
    if many:  # as many columns as there are, or more
        coordinates = torch.cat([coordinates, torch.arange(7)])

    def second(x, weight, *shift):
        y = coordinate_jet(lambda x: torch.nn.functional.linear(x, weight, *shift).tanh(), x, coordinates, 2)
        return y.primal, y.derivative(2)

    inputs = (x, weight, shift) if bias else (x, weight)
    assert torch.autograd.gradcheck(second, inputs)
    assert torch.autograd.gradgradcheck(second, inputs)
    grad = torch.autograd.grad(second(*inputs)[1].sum(), weight)[0]
    assert grad.stride() == weight.stride()


def test_nothing_but_points_and_weight_is_as_large_as_the_space():
    d, u = 2000, net(Ball, 2000)
    x, largest = points(2, d), []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        y = coordinate_jet(u, x, torch.arange(64), 2, collapsed=True)
        torch.autograd.backward(y.derivative(2).sum())
    assert max(largest) == 8 * d  # of directions times coordinates there would be 64 d and more
    assert sum(n == 8 * d for n in largest) < 10  # views of the weight, and one buffer of its gradient


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_space(each):
    kept = [kept_bytes(d, torch.randint(d, (16, 2) if each else (16,))) for d in (20, 2000)]
    assert kept[0] == kept[1]


def kept_bytes(d, coordinates):
    """Bytes that autograd keeps of a step, but for the points and the weights themselves."""
    u, x, kept = net(Ball, d), points(2, d), {}
    given = {v.untyped_storage().data_ptr() for v in (x, *u.parameters())}

    def keep(v):
        storage = v.untyped_storage()
        kept[storage.data_ptr()] = 0 if storage.data_ptr() in given else storage.nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
        loss = coordinate_jet(u, x, coordinates, 2, collapsed=True).derivative(2).square().sum()
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(("d", "slopes"), [(12, False), (5, False), (5, True)], ids=["few", "many", "slopes"])
def test_compiled_with_its_gradients(d, slopes):
    u, x = net(Ball, d), points(4, d)
    coordinates = torch.tensor([[0, 2, 4, 1], [3, 3, 0, 1]])

    def value(x, coordinates):
        return coordinate_jet(u, x, coordinates, 2, collapsed=True).derivative(2).square().sum()

    f = (lambda *inputs: torch.func.grad(value)(*inputs).square().sum()) if slopes else value
    got, expected = torch.compile(f, fullgraph=True)(x, coordinates), f(x, coordinates)
    assert worst(got, expected) < ROUND_OFF
    gradients = [torch.autograd.grad(y, list(u.parameters())[:-1]) for y in (got, expected)]
    for a, b in zip(*gradients, strict=True):
        assert worst(a, b) < ROUND_OFF


@pytest.mark.parametrize("slopes", [False, True], ids=["values", "slopes"])
def test_compiled_gradients_of_the_first_weight_fill_one_buffer_where_torch_keeps_them(slopes):
    u, x = net(Ball, 5), points(4, 5)

    def value(x):
        return coordinate_jet(u, x, torch.tensor([0, 2]), 2, collapsed=True).derivative(2).square().sum()

    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for module in graph.modules() for node in module.graph.nodes)
        return graph

    torch.compile(torch.func.grad(value) if slopes else value, backend=backend, fullgraph=True)(x)
    assert any("autograd_function_apply" in target for target in targets) != slopes


class Times(torch.autograd.Function):
    """A product whose backward pass is written out."""

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * w, grad * x


def test_torch_still_loses_gradients_of_gradients_of_such_functions_when_it_compiles():
    w = torch.tensor(3.0, requires_grad=True)

    def slope(x):  # w
        return torch.func.grad(lambda x: Times.apply(x, w))(x)

    assert slope(torch.tensor(2.0)).requires_grad
    assert not torch.compile(slope, fullgraph=True, backend="aot_eager")(torch.tensor(2.0)).requires_grad


def test_ensemble_of_weights_under_vmap():
    u, x, coordinates = net(Ball, 5), points(4, 5), torch.tensor([0, 3])
    weights = {name: torch.stack([w, 2 * w]).detach() for name, w in u.named_parameters()}

    def value(weights):
        y = coordinate_jet(lambda x: torch.func.functional_call(u, weights, (x,)), x, coordinates, 2, collapsed=True)
        return y.derivative(2).square().sum()

    many = torch.vmap(torch.func.grad(value))(weights)
    alone = torch.func.grad(value)({name: w[1] for name, w in weights.items()})
    for name, w in alone.items():
        assert worst(many[name][1], w) < ROUND_OFF


def test_one_point_and_many_axes():
    u, coordinates = net(Ball, 5), torch.tensor([0, 3])
    x = points(2, 3, 5)
    one = coordinate_jet(u, x[0, 0], coordinates, 2).derivative(2)
    many = coordinate_jet(u, x, coordinates, 2).derivative(2)
    assert many.shape == (2, 2, 3)
    assert worst(many[:, 0, 0], one) < ROUND_OFF


def test_identity_gives_an_ordinary_jet():
    y = coordinate_jet(lambda x: x, points(2, 3), torch.tensor([1]), univariate(1))
    assert not isinstance(y, SparseJet)
    assert torch.equal(y.derivative(1), torch.tensor([0.0, 1.0, 0.0]).double().expand(1, 2, 3))


def test_first_layer_has_complex_gradients():
    """Those of a loss to complex numbers take the conjugates of what they are multiplied by."""
    weight = torch.complex(points(5, 7), points(5, 7, seed=1)).requires_grad_()
    x = points(3, 7, seed=2).requires_grad_()
    u = lambda x: torch.nn.functional.linear((1j * x).exp(), weight).abs()  # noqa: E731
    eye = torch.eye(7).double()
    got = coordinate_jet(u, x, torch.arange(7), 2).derivative(2).square().sum()
    expected = jet(u, x, eye, 2).derivative(2).square().sum()
    both = [torch.autograd.grad(loss, (weight, x)) for loss in (got, expected)]
    for a, b in zip(*both, strict=True):
        assert (a - b).abs().max() < ROUND_OFF * b.abs().max()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_mixed_precision_reaches_the_first_weight(compiled):
    u, x = net(Ball, 12).float(), points(4, 12).float()

    def second(x):
        return coordinate_jet(u, x, torch.arange(12), 2, collapsed=True).derivative(2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(second, fullgraph=True, backend="aot_eager")(x) if compiled else second(x)
        assert y.dtype == second(x).dtype
    y.square().mean().backward()
    low = [p.grad.clone() for p in u.parameters()]
    u.zero_grad()
    second(x).square().mean().backward()
    for a, p in zip(low, u.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert (a - p.grad).norm() < 0.05 * p.grad.norm() + 1e-6  # bfloat16 has three digits


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
def test_no_points_have_no_derivatives(each):
    u, x = net(Ball, 12), points(0, 12)
    coordinates = torch.zeros((2, 0) if each else 2, dtype=torch.int64)
    assert coordinate_jet(u, x, coordinates, 2).derivative(2).shape == (2, 0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by torch's own rules
def test_forward_derivatives_of_a_residual_are_the_backward_ones():
    u, x = net(Ball, 5, 3), points(2, 5)
    weights = {name: p.detach() for name, p in u.named_parameters()}

    def loss(weights):
        y = coordinate_jet(lambda x: torch.func.functional_call(u, weights, (x,)), x, torch.arange(5), 2)
        return y.derivative(2).square().sum()

    forward, backward = torch.func.hessian(loss)(weights), torch.func.jacrev(torch.func.jacrev(loss))(weights)
    for a in weights:
        for b in weights:
            assert worst(forward[a][b], backward[a][b]) < ROUND_OFF
