import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sciml.calculus import divergence, hutchinson, probes, value_and_divergence
from sciml.models.mlp import MLP

ROUND_OFF = 1e-12  # sums of tens of terms of order one in float64
SIZES = [1, 2, 4, 5, 17]  # on both sides of where coordinates take the place of directions


class Gated(nn.Module):
    """A field whose first operation is not an affine map."""

    def __init__(self, d: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * d, 9), nn.SiLU(), nn.Linear(9, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x.sin(), x * x], -1)) * x.tanh()


def perceptron(d: int) -> nn.Module:
    return MLP(d, d, width=12, depth=2, activation="tanh")


def made(kind, d: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(d).double()


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def jacobian(f: nn.Module, x: Tensor) -> Tensor:
    """(b, d, d), a row for each component."""
    y = f(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, create_graph=True)[0] for i in range(x.shape[1])]
    return torch.stack(rows, 1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=ROUND_OFF, atol=ROUND_OFF)


@pytest.mark.parametrize("kind", [perceptron, Gated])
@pytest.mark.parametrize("d", SIZES)
def test_exact_divergence_and_its_gradients_are_autograds(kind, d):
    f, x = made(kind, d), points(6, d).requires_grad_()
    value, found = value_and_divergence(f, x)
    expected = jacobian(f, x).diagonal(0, 1, 2).sum(-1)
    close(value, f(x))
    close(found, expected)
    inputs = [x, *f.parameters()]
    losses = ((value * value).sum() + found.exp().sum(), (f(x) ** 2).sum() + expected.exp().sum())
    for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)  # exp makes the terms large


@pytest.mark.parametrize("kind", [perceptron, Gated])
@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (3, 6, 5)])
def test_estimate_and_its_gradients_are_those_of_v_j_v(kind, shape):
    f, x, v = made(kind, 5), points(6, 5).requires_grad_(), points(*shape, seed=1)
    found = hutchinson(f, x, v)
    expected = torch.einsum("kbi,bij,kbj->kb", v.reshape(-1, 6, 5), jacobian(f, x), v.reshape(-1, 6, 5)).mean(0)
    close(found, expected)
    inputs = [x, *f.parameters()]
    losses = ((y**2).sum() + f(x).sum() for y in (found, expected))  # the last bias is in the value alone
    for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)  # squares of sums over 25 products


@pytest.mark.parametrize("d", [2, 6])
def test_gradients_pass_gradcheck(d):
    f, x = made(Gated, d), points(2, d).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value_and_divergence(f, x), x)
    assert torch.autograd.gradcheck(lambda x: hutchinson(f, x, points(2, 2, d, seed=3)), x)


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_estimate_is_unbiased(law):
    f, x, count = made(perceptron, 3), points(2, 3), 40_000
    v = probes((count, 2, 3), x, law, torch.Generator().manual_seed(5))
    samples = torch.stack([hutchinson(f, x, some) for some in v.split(400)])  # means of 400 each
    error = (samples.mean(0) - divergence(f, x)).abs()
    assert (error < 4 * samples.std(0) / len(samples) ** 0.5).all()


def test_signs_are_exact_where_the_jacobian_is_diagonal():
    x = points(4, 7)
    v = probes((4, 7), x, generator=torch.Generator().manual_seed(0))
    close(hutchinson(torch.sin, x, v), divergence(torch.sin, x))


def test_probes_are_a_function_of_the_generator_and_have_unit_moments():
    like = torch.zeros((), dtype=torch.float64)
    for law in ("rademacher", "gaussian"):
        first, again, other = (
            probes((50_000, 2), like, law, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        moments = first.T @ first / len(first)
        assert (moments - torch.eye(2, dtype=torch.float64)).abs().max() < 0.03  # 4.7 standard errors, 2^.5 / 50,000^.5
    assert set(probes((9, 9), like).unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("d", [3, 8])
def test_a_step_compiles_without_a_break(d):
    f, counter = made(perceptron, d), CompileCounterWithBackend("aot_eager")
    step = torch.compile(lambda x, v: (divergence(f, x), hutchinson(f, x, v)), fullgraph=True, backend=counter)
    x, v = points(5, d).requires_grad_(), points(5, d, seed=1)
    for found, expected in zip(step(x, v), (divergence(f, x), hutchinson(f, x, v)), strict=True):
        close(found, expected)
    gradients = [torch.autograd.grad(sum(y.sum() for y in ys), list(f.parameters()), allow_unused=True)
                 for ys in (step(x, v), (divergence(f, x), hutchinson(f, x, v)))]  # fmt: skip
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)
    assert counter.frame_count == 1


def test_no_points_have_no_divergence():
    x = points(0, 6)
    assert divergence(torch.sin, x).shape == hutchinson(torch.sin, x, x).shape == (0,)
    with pytest.raises(ValueError, match="v: expected directions"):
        hutchinson(torch.sin, points(2, 6), points(0, 2, 6))


def test_constant_field_has_none():
    x = points(3, 2)
    assert torch.equal(divergence(torch.ones_like, x), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(hutchinson(torch.ones_like, x, x), torch.zeros(3, dtype=torch.float64))


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: divergence(torch.sin, [1.0]), TypeError, "x: expected a tensor of points"),
        (lambda: divergence(torch.sin, torch.zeros(3)), ValueError, r"x: expected real points \(b, d\), got .*\(3,\)"),
        (lambda: divergence(torch.sin, X.long()), ValueError, "x: expected real points .*int64"),
        (lambda: divergence(lambda x: x[:, :1], X), ValueError, r"f: expected vectors .*\(3, 2\), got \(3, 1\)"),
        (lambda: divergence(lambda x: (x, x), X), TypeError, "f: expected a function to one tensor, got one to tuple"),
        (lambda: divergence(torch.sign, X), ValueError, "f: it jumps"),
        (lambda: hutchinson(torch.sin, X, None), TypeError, "v: expected a tensor of directions, got NoneType"),
        (lambda: hutchinson(torch.sin, X, X[:2]), ValueError, r"v: expected directions \(3, 2\) or .*got \(2, 2\)"),
        (lambda: hutchinson(torch.sin, X, X.double()), TypeError, "v: expected the dtype of x"),
        (lambda: probes((2,), X, "uniform"), ValueError, "law: expected 'rademacher' or 'gaussian', got 'uniform'"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
