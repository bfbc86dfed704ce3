import pytest
import torch
from torch.testing import assert_close

from sciml.models.mlp import ACTIVATIONS, MLP


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_its_formula(activation):
    torch.manual_seed(0)
    net = MLP(3, 2, width=5, depth=2, activation=activation).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    s = ACTIVATIONS[activation]
    a, b, c = net.layers
    expected = s(s(x @ a.weight.T + a.bias) @ b.weight.T + b.bias) @ c.weight.T + c.bias
    assert_close(net(x), expected, rtol=1e-13, atol=1e-13)  # the same float64 sums, fused or not


def test_mlp_of_depth_zero_is_affine():
    net = MLP(3, 2, depth=0)
    x, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert_close(net(x + y) + net(torch.zeros(4, 3)), net(x) + net(y))  # defaults: float32 round-off


def test_mlp_starts_with_kept_variance():
    """The mean of 512 squares of variance two is within 10 % of its expectation but for one draw in ten."""
    torch.manual_seed(0)
    net = MLP(512, 512, width=512, depth=0)
    y = net(torch.randn(64, 512, generator=torch.Generator().manual_seed(1)))
    assert abs(y.var().item() - 1) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"depth": -1}, "depth: expected"),
        ({"activation": "tanhh"}, "activation: expected one of .*tanh"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MLP(**{"in_features": 1, "out_features": 1, **change})
