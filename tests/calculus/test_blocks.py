import pytest
import torch
from torch import nn

from sciml.calculus import Biharmonic, Laplacian, PowerSum, Sparse, Unknown
from sciml.calculus.algebra import downset
from sciml.calculus.jet import coordinate_jet, jet
from sciml.models import MLP, SharedInput

D, B = 11, 3  # the last block is not full


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(block: int = B) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SharedInput(block), nn.Tanh(), MLP(-(-D // block), 1, width=8, depth=1))


def points(b: int = 4) -> torch.Tensor:
    return torch.rand(b, D, generator=torch.Generator().manual_seed(1))


def test_blocks_are_a_strided_convolution():
    x, layer = points(), SharedInput(B)
    padded = nn.functional.pad(x, (0, 1))[:, None]
    by_torch = nn.functional.conv1d(padded, layer.weight[None, None], stride=B)[:, 0]
    torch.testing.assert_close(layer(x), by_torch, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("orders", [(3,), (2, 1), (2, 2)])
def test_jets_along_coordinates_are_those_along_unit_vectors(orders, shared):
    """Pairs of coordinates lie in one block, in different ones, or are the same one."""
    f, x, algebra = net(), points(), downset(orders)
    first, second = torch.tensor([0, 0, 4, 10, 7]), torch.tensor([1, 9, 4, 9, 2])
    if not shared:
        first, second = (torch.stack([(c + shift) % D for shift in range(4)], 1) for c in (first, second))
    along = [first, second][: len(orders)]
    found = coordinate_jet(f, x, along, algebra).derivative(orders)
    units = torch.eye(D)
    vectors = [units[c] if c.ndim == 2 else units[c][:, None] for c in along]
    torch.testing.assert_close(found, jet(f, x, vectors, algebra).derivative(orders), rtol=1e-11, atol=1e-11)


def test_operators_and_estimates_pass_the_layer():
    f, x, u = net(), points(), Unknown()
    hessian = torch.func.vmap(torch.func.hessian(lambda x: f(x)[0]))(x)
    laplacian = hessian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(Laplacian()(u)(f, x), laplacian, rtol=1e-11, atol=1e-11)
    e = Biharmonic()(u) + PowerSum(2, 1)(u)
    draw = Sparse(D * D).draw(e, x)
    torch.testing.assert_close(e(f, x, draw), e(f, x), rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_shared_weights():
    f, x = net(), points()
    own = torch.autograd.grad(Laplacian()(Unknown())(f, x).square().sum(), f[0].weight)[0]
    hessian = torch.func.vmap(torch.func.hessian(lambda x: f(x)[0]))(x)
    by_hessian = hessian.diagonal(dim1=1, dim2=2).sum(1).square().sum()
    torch.testing.assert_close(own, torch.autograd.grad(by_hessian, f[0].weight)[0], rtol=1e-10, atol=1e-11)


def test_empty_blocks_are_refused():
    with pytest.raises(ValueError, match="block: expected at least 1, got 0"):
        SharedInput(0)
