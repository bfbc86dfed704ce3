import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sciml.models.fno import FNO, SpectralConv, Transform

F64 = {"rtol": 1e-12, "atol": 1e-12}  # sums of at most a few thousand terms of size one in float64


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(b, n, cutoff=6, seed=0, dtype=torch.float64):
    """Random fields (b, 1, n) of the wavenumbers below the cutoff: the same functions for every n."""
    a = draw(b, 2, cutoff, seed=seed)
    angle = 2 * torch.pi / n * torch.outer(torch.arange(cutoff), torch.arange(n)).double()
    return (a[:, :1] @ angle.cos() + a[:, 1:] @ angle.sin()).to(dtype)


def convolve(layer, x):
    """The layer on fields (b, c, *x)."""
    v = x.movedim((0, 1), (-2, -1))
    return layer(v, Transform.of(layer.modes, v.shape[:-2], v)).movedim((-2, -1), (0, 1))


def by_fft(layer, x):
    """What the layer computes, by the FFT of all wavenumbers and one matrix for each."""
    *heads, last = x.shape[2:]
    dims = tuple(range(2, x.ndim))
    weight = torch.view_as_complex(layer.weight.movedim(-2, -1).contiguous())
    spectrum = torch.fft.rfftn(x, dim=dims)
    out = spectrum.new_zeros(x.shape[0], weight.shape[-1], *spectrum.shape[2:])
    waves = [torch.fft.fftfreq(n, 1 / n).round().int().tolist() for n in heads]
    waves.append(list(range(last // 2 + 1)))
    for place in torch.cartesian_prod(*(torch.arange(len(w)) for w in waves)).reshape(-1, len(waves)).tolist():
        k = [w[i] for w, i in zip(waves, place, strict=True)]
        if all(abs(k) < m and 2 * abs(k) < n for k, m, n in zip(k, layer.modes, x.shape[2:], strict=True)):
            stored = [k + m - 1 for k, m in zip(k[:-1], layer.modes, strict=False)] + k[-1:]
            out[:, :, *place] = spectrum[:, :, *place] @ weight[*stored]
    return torch.fft.irfftn(out, s=x.shape[2:], dim=dims)


@given(n=st.integers(1, 40), modes=st.integers(1, 24))
@settings(max_examples=40)
def test_convolution_is_the_fft_one_in_one_dimension(n, modes):
    layer = SpectralConv(2, 3, [modes]).double()
    x = draw(2, 2, n, seed=n)
    assert_close(convolve(layer, x), by_fft(layer, x), **F64)


@pytest.mark.parametrize("sizes", [(8, 8), (9, 7), (12, 5), (3, 16), (1, 6), (6, 1), (2, 2)])
def test_convolution_is_the_fft_one_in_two_dimensions(sizes):
    layer = SpectralConv(2, 3, [4, 3]).double()
    x = draw(2, 2, *sizes)
    assert_close(convolve(layer, x), by_fft(layer, x), **F64)


def test_convolution_is_the_fft_one_in_three_dimensions():
    layer = SpectralConv(2, 1, [2, 3, 2]).double()
    x = draw(1, 2, 5, 6, 4)
    assert_close(convolve(layer, x), by_fft(layer, x), **F64)


@pytest.mark.parametrize("n", [13, 16, 31, 64, 255])
def test_convolution_of_a_band_limited_field_does_not_depend_on_the_grid(n):
    """Twelve points resolve the six wavenumbers of the field: all these grids hold the whole of it."""
    layer = SpectralConv(1, 1, [9]).double()
    coefficients = [torch.fft.rfft(convolve(layer, smooth(3, size)), norm="forward")[..., :6] for size in (n, 100)]
    assert_close(*coefficients, **F64)


def test_convolution_ignores_the_nyquist_wave():
    layer = SpectralConv(1, 1, [20]).double()
    x = draw(1, 1, 16)
    zigzag = torch.tensor([1.0, -1.0], dtype=x.dtype).repeat(8)
    assert_close(convolve(layer, x + zigzag), convolve(layer, x), **F64)


@pytest.mark.parametrize("sizes", [(7,), (8,), (5, 6)])
def test_convolution_gradients(sizes):
    layer = SpectralConv(2, 2, [3] * len(sizes)).double()
    x = draw(1, 2, *sizes).requires_grad_()

    def f(x, weight):
        return torch.func.functional_call(Boundary(layer), {"layer.weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (x, layer.weight))
    assert torch.autograd.gradgradcheck(f, (x, layer.weight))  # physics-informed losses differentiate twice


class Boundary(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return convolve(self.layer, x)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("n", [128, 255, 257])
def test_net_agrees_with_its_resampled_self(n, grid):
    """Both grids resolve the products of the GELUs to beyond float32, whose round-off over four layers is left."""
    torch.manual_seed(0)
    net = FNO(1, 1, modes=[16], width=24, grid=grid)
    coarse, fine = (torch.fft.rfft(net(smooth(4, size, dtype=torch.float32)), norm="forward") for size in (n, 512))
    assert_close(coarse[..., :40], fine[..., :40], rtol=0.0, atol=1e-5 * fine.abs().max().item())


def test_net_on_a_coarse_grid_leaves_out_what_it_cannot_resolve():
    torch.manual_seed(0)
    net, small = FNO(1, 1, modes=[24], width=8).double(), FNO(1, 1, modes=[8], width=8).double()
    state = {k: v[:8] if k.startswith("convolutions") else v for k, v in net.state_dict().items()}
    small.load_state_dict(state)
    x = smooth(2, 16)
    assert_close(net(x), small(x), **F64)


@pytest.mark.parametrize("sizes", [(15,), (6, 9)])
def test_net_without_grid_commutes_with_translations(sizes):
    torch.manual_seed(0)
    x = draw(2, 3, *sizes)
    dims = tuple(range(2, x.ndim))
    shift = (2,) * len(sizes)
    net = FNO(3, 2, modes=[4] * len(sizes), width=8).double()
    assert_close(net(x.roll(shift, dims)), net(x).roll(shift, dims), **F64)
    net = FNO(3, 2, modes=[4] * len(sizes), width=8, grid=True).double()
    assert (net(x.roll(shift, dims)) - net(x).roll(shift, dims)).abs().max() > 1e-3


def test_weights_are_real_and_state_holds_nothing_else():
    net = FNO(1, 1, modes=[4, 4], width=8, grid=True)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    net(torch.zeros(1, 1, 8, 8))
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


def test_net_follows_dtype_and_copies():
    """A float64 pass after a float32 one, at the same size, has float64's accuracy."""
    torch.manual_seed(0)
    net = FNO(1, 1, modes=[5], width=8)
    x = smooth(2, 20)
    single = net(x.float())
    double = copy.deepcopy(net).double()(x)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert_close(single.double(), double, rtol=1e-5, atol=1e-6)  # round-off of float32 through four layers
    fresh = FNO(1, 1, modes=[5], width=8).double()
    fresh.load_state_dict(net.state_dict())
    assert_close(fresh(x), double, **F64)


def test_net_of_an_empty_batch():
    assert FNO(2, 3, modes=[4], width=8)(torch.zeros(0, 2, 9)).shape == (0, 3, 9)


@pytest.mark.gpu
def test_net_on_cuda():
    torch.manual_seed(0)
    net = FNO(1, 1, modes=[6, 6], width=8, grid=True).double()
    x = draw(2, 1, 15, 16)
    expected = net(x)
    assert_close(net.cuda()(x.cuda()).cpu(), expected, **F64)


def test_net_compiles_as_one_graph():
    torch.manual_seed(0)
    net = FNO(1, 1, modes=[4], width=8, layers=2)
    x = smooth(2, 16, dtype=torch.float32)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)  # the same float32 sums in another order


def test_net_exports_with_free_batch_and_grid():
    torch.manual_seed(0)
    net = FNO(1, 1, modes=[4], width=8, grid=True)
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("n", min=8)}
    program = torch.export.export(net, (smooth(2, 16, dtype=torch.float32),), dynamic_shapes=(free,))
    for x in (smooth(3, 33, dtype=torch.float32), smooth(5, 16, dtype=torch.float32)):
        assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modes": []}, "modes: expected"),
        ({"modes": [4, 0]}, "modes: expected"),
        ({"modes": 4}, "modes: expected"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"in_channels": 0}, "in_channels: expected at least 1, got 0"),
    ],
)
def test_wrong_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        FNO(**{"in_channels": 1, "out_channels": 1, "modes": [4], **change})


@pytest.mark.parametrize("shape", [(2, 8), (2, 3, 8), (2, 1, 8, 8)])
def test_wrong_fields_are_named(shape):
    with pytest.raises(ValueError, match=r"x: expected shape \(b, 1, n\), got"):
        FNO(1, 1, modes=[4], width=8)(torch.zeros(shape))


@pytest.mark.parametrize(("weights", "fields"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_fields_of_another_precision_than_the_weights_are_named(weights, fields):
    with pytest.raises(TypeError, match=f"x: expected {weights}, as the weights are, got {fields}"):
        FNO(1, 1, [3]).to(weights)(torch.ones(2, 1, 8, dtype=fields))
