"""Every name under which a rule is found: the less frequent ones here, the others in the tests of the rules."""

import pytest
import torch
from torch.nn import functional

from sciml.calculus.dispatch import FALLBACK, RULES, Jet
from sciml.calculus.jet import jet
from tests.calculus import test_elementwise as elementwise
from tests.calculus import test_rules as rules
from tests.calculus.nested import along, worst

ORDER = 6
W, W2, drawn = rules.W, rules.W2, rules.drawn
PLACES = torch.tensor([[0, 3, 1, 1], [2, 2, 0, 3], [1, 0, 3, 2]])
IMAGE, VOLUME = drawn(2, 1, 2, 2), drawn(2, 1, 1, 2, 2)


def image(x):
    """Images (b, 1, 2, 2) of points (b, 4)."""
    return x.sin().unflatten(-1, (1, 2, 2))


def phases(x):
    return torch.complex(x.sin(), x)


LINEAR = {
    "addmv": lambda x: torch.addmv(x[:, 0], x.sin(), W[0], beta=2, alpha=3),
    "avg_pool1d": lambda x: functional.avg_pool1d(x.sin()[:, None], 2, 1),
    "avg_pool2d": lambda x: functional.avg_pool2d(image(x), (2, 1)),
    "interpolate": lambda x: functional.interpolate(image(x), scale_factor=2, mode="bilinear"),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x.sin()[..., None, None], 2),
    "conv2d": lambda x: functional.conv2d(image(x), IMAGE, W[0, :2], padding=1),
    "conv3d": lambda x: functional.conv3d(image(x)[:, None], VOLUME, padding=1),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(image(x), IMAGE.transpose(0, 1), W[0, :2]),
    "conv_transpose3d": lambda x: functional.conv_transpose3d(image(x)[:, None], VOLUME.transpose(0, 1)),
    "trace": lambda x: torch.trace(x.sin()) * x,
    "__rmatmul__": lambda x: x.sin() @ W if isinstance(x, torch.Tensor) else x.sin().mT.__rmatmul__(W.mT).mT,
}
PLACED = {
    "broadcast_to": lambda x: torch.broadcast_to(x.sin(), (2, 3, 4)),
    "concat": lambda x: torch.concat([x.sin(), x]) * torch.concatenate([x, x], 0),
    "expand_as": lambda x: x[:1].sin().expand_as(W2[0].new_ones(3, 4)) * x[:1].expand_as(x),
    "hstack": lambda x: torch.hstack([x.sin(), x[:, :1]]),
    "vstack": lambda x: torch.vstack([x.sin(), x[:1], W]),
    "moveaxis": lambda x: torch.moveaxis(x.sin(), 0, 1) * x.swapaxes(0, 1),
    "ravel": lambda x: x.sin().ravel(),
    "repeat": lambda x: x.sin().repeat(2, 1) * torch.tile(x, (2, 1)),
    "repeat_interleave": lambda x: x.sin().repeat_interleave(2, 1),
    "reshape_as": lambda x: x.sin().reshape_as(W2.new_ones(4, 3)) * x.view_as(W2.new_ones(4, 3)),
    "select": lambda x: x.sin().select(1, -2),
    "take_along_dim": lambda x: torch.take_along_dim(x.sin(), PLACES, 1),
    "tensor_split": lambda x: x.sin().tensor_split(3, dim=1)[0],
    "triu": lambda x: x.sin().triu(1),
    "unfold": lambda x: x.sin().unfold(1, 2, 1),
    "unfold of images": lambda x: functional.unfold(image(x), (1, 2)),
    "type_as": lambda x: x.sin().type_as(W) * x.float().to(torch.float64).to(W) ** 0,
    "cpu": lambda x: x.sin().cpu() * x.to("cpu"),
}
SYNONYMS = {
    "abs": lambda x: abs(x.sin()) * torch.absolute(x) * x.cos().abs(),
    "arctan": lambda x: torch.arctan(x) * torch.special.expit(x),
    "clip": lambda x: x.sin().clip(-0.3, 0.4) * x,
    "float_power": lambda x: torch.float_power(x + 5, 1.5),
    "fmax": lambda x: torch.fmax(x.sin(), x) * torch.fmin(x, x.cos()),
    "inverse": lambda x: torch.inverse(W[:3, :3] + 4 * torch.eye(3).double() + 0 * x[:1, :3]) @ x.sin(),
    "multiply": lambda x: torch.multiply(x.sin(), x) - torch.subtract(x, torch.negative(x)),
    "neg": lambda x: torch.neg(x.sin()) * torch.positive(x),
    "divide": lambda x: torch.divide(x.sin(), x + 5) * torch.true_divide(x, 3) * (2 / (x + 5)),
}
COMPLEX = {
    "conj_physical": lambda x: torch.conj_physical(phases(x)).resolve_conj().imag,
    "fft": lambda x: torch.fft.ifftshift(torch.fft.fftshift(torch.fft.fft(x.sin()))).imag,
    "ifft": lambda x: torch.fft.ifft(phases(x)).abs(),
    "fft2": lambda x: torch.fft.ifft2(torch.fft.fft2(x.sin()) * 1j).imag,
    "fftn": lambda x: torch.fft.ifftn(torch.fft.fftn(x.sin()) * 1j).imag,
    "rfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x.sin()) * 1j, s=(3, 4)),
    "rfftn": lambda x: torch.fft.irfftn(torch.fft.rfftn(x.sin()) * 1j, s=(3, 4)),
    "view_as_complex": lambda x: torch.view_as_complex(x.sin().unflatten(-1, (2, 2))).abs(),
}
CASES = LINEAR | PLACED | SYNONYMS | COMPLEX

VALUES = {
    **{name: (lambda x, name=name: getattr(torch, name)(x, 0.1)) for name in ("eq", "ge", "gt", "le", "lt", "ne")},
    **{name: (lambda x, name=name: getattr(torch, name)(x, 0.1)) for name in ("greater", "less")},
    **{f"__{name}__": (lambda x, name=name: getattr(x, f"__{name}__")(0.1)) for name in ("eq", "ge", "le", "lt", "ne")},
    **{name: (lambda x, name=name: getattr(torch, name)(x)) for name in ("isnan", "isinf", "isfinite", "signbit")},
    **{name: (lambda x, name=name: getattr(x, name)()) for name in ("argmax", "argmin", "argsort", "logical_not")},
    **{name: (lambda x, name=name: getattr(x, name)()) for name in ("all", "any", "bool", "int", "long", "nonzero")},
    **{name: (lambda x, name=name: getattr(x, name)(x)) for name in ("allclose", "equal", "isclose")},
    **{name: (lambda x, name=name: getattr(x, name)()) for name in ("is_contiguous", "stride", "get_device")},
    **{name: (lambda x, name=name: getattr(torch, name)(x)) for name in ("is_complex", "is_floating_point", "numel")},
    "result_type": lambda x: torch.result_type(x, 1),
    "zeros_like": lambda x: torch.zeros_like(x) + torch.full_like(x, 2.0) + 0 * torch.randint_like(x, 3),
    "new_full": lambda x: x.new_full((2,), 3.0) + x.new_ones(2) + x.new_tensor(4.0),
    "detach": lambda x: torch.detach(x),
}


@pytest.mark.parametrize("name", CASES)
def test_less_frequent_rule_agrees_with_nested_autograd(name):
    u, x, v = CASES[name], drawn(3, 4), drawn(2, 4)
    y = jet(u, x, v, ORDER)
    torch.testing.assert_close(y.primal, u(x), rtol=1e-13, atol=1e-13)  # the same operations
    for order in range(1, ORDER + 1):
        rows = v if order <= 3 else v[:1]
        expected = torch.stack([along(u, x, row, order) for row in rows])
        # nested autograd cancels terms up to 1000 times the sum
        assert worst(y.derivative(order)[: len(rows)], expected) < 1e-10
    collapsed = jet(u, x, v, 3, collapsed=True).derivative(3)
    assert worst(collapsed, y.derivative(3).sum(0)) < 1e-12  # round-off


@pytest.mark.parametrize("name", VALUES)
def test_what_looks_at_values_sees_them(name):
    found, x = [], drawn(3, 4)
    jet(lambda x: found.append(VALUES[name](x)) or x, x, drawn(1, 4), 2)
    expected = VALUES[name](x)
    assert not isinstance(found[0], Jet)
    assert torch.equal(found[0], expected) if isinstance(expected, torch.Tensor) else found[0] == expected


ELSEWHERE = {  # of which no numbers can be compared, or which stand for another name that is tested
    *("cuda", "data_ptr", "empty_like", "new_empty", "rand_like", "randn_like", "is_tensor", "__bool__", FALLBACK),
    *("__div__", "__rdiv__", "__rtruediv__", "__floordiv__", "floor_divide", "instance_norm"),
}


def test_every_name_of_a_rule_is_tested(monkeypatch):
    met = set(ELSEWHERE)

    def heard(name, rule):
        return lambda *args, **kwargs: (met.add(name), rule(*args, **kwargs))[1]

    for name, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, name, heard(name, rule))
    x, v = drawn(3, 4), drawn(1, 4)
    judged = {**elementwise.JUDGED, **elementwise.POSITIVE}
    functions = [*rules.RULES.values(), *CASES.values(), *elementwise.KINKED.values()]
    functions += [u for u, *_ in (*rules.MATRICES.values(), *judged.values())]
    functions += [lambda x: functional.layer_norm(x, (4,)), lambda x: functional.group_norm(x, 2)]
    for u in functions:
        jet(u, x, v, 1)
    for u in VALUES.values():
        jet(lambda x: u(x) is not None and x, x, v, 1)  # noqa: B023
    assert set(RULES) - met == set()
