from functools import partial
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from sciml.solvers import interop
from tests.solvers.test_interop import DTYPE, LIBRARIES, field, start, times


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(DTYPE)
        self.other = nn.Parameter(torch.tensor(0.1, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y) * torch.cos(t) + self.other


def gradients(odeint, method: str, **kwargs) -> list[Tensor]:
    net, y0, ts = Net(), start().requires_grad_(), times(4).requires_grad_()
    ys = odeint(net, y0, ts, method=method, **kwargs)
    loss = (ys * torch.linspace(-1, 2, ys.numel(), dtype=DTYPE).reshape(ys.shape)).sum()
    return list(torch.autograd.grad(loss, [y0, ts, *net.parameters()]))


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "tsit5", "kvaerno5", "gl4"])
def test_gradients_agree(name: str, method: str):
    """On the same steps to round-off, else to the tolerance times the number of steps."""
    tight = {"rtol": 1e-10, "atol": 1e-10}
    same = method in ("euler", "rk4")
    small = {} if same else {"options": {"max_step": 0.03}}  # torchdiffeq's dense output is less exact than its steps
    theirs = gradients(torchdiffeq.odeint, method if same else "dopri5", **tight, **small)
    if method == "gl4":
        tight["options"] = {"step_size": 0.02, "interp": "cubic"}
    ours = gradients(getattr(interop, name), method, **tight)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < (1e-12 if same else 1e-6)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_gradients_flow_through_interpolation(interp: str):
    options = {"step_size": 0.17, "interp": interp}
    found = [gradients(each.odeint, "rk4", options=options) for each in LIBRARIES]
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-12
    continuous = gradients(interop.odeint_adjoint, "rk4", options=options)
    for a, b in zip(found[0], continuous, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_adjoint_params_restrict_the_gradient():
    for each in LIBRARIES:
        net = Net()
        each.odeint_adjoint(net, start(), times(3), adjoint_params=(net.other,)).sum().backward()
        assert net.other.grad is not None
        assert all(p.grad is None for p in net.layers.parameters())
    found = []
    for each in LIBRARIES:  # a tensor with a history of its own, read as it is
        scale = torch.tensor(0.3, dtype=DTYPE, requires_grad=True)
        rate = scale.exp()
        ys = each.odeint_adjoint(lambda t, y, rate=rate: rate * y, start(), times(3), adjoint_params=(rate,))
        found.append(torch.autograd.grad(ys.sum(), scale)[0])
    assert (found[0] - found[1]).abs() < 1e-4
    net, y0 = Net(), start().requires_grad_()
    interop.odeint_adjoint(net, y0, times(3), adjoint_params=()).sum().backward()
    assert y0.grad is not None
    assert all(p.grad is None for p in net.parameters())


def test_a_tensor_that_is_not_declared_gets_its_gradient_too():
    scale = torch.tensor(-0.3, dtype=DTYPE, requires_grad=True)

    class Scaled(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return scale * y

    (right,) = torch.autograd.grad(interop.odeint(Scaled(), start(), times(3)).sum(), scale)
    with pytest.warns(UserWarning, match="no parameter of func"):
        (found,) = torch.autograd.grad(interop.odeint_adjoint(Scaled(), start(), times(3)).sum(), scale)
    span = times(3) - times(3)[0]
    expected = (start().sum() * span * torch.exp(-0.3 * span)).sum()
    assert abs(right - expected) < 1e-5
    assert abs(found - expected) < 1e-5


def test_backpropagation_can_be_differentiated_again_the_adjoint_refuses():
    for odeint, works in ((interop.odeint, True), (interop.odeint_adjoint, False)):
        net, y0 = Net(), start().requires_grad_()
        (grad,) = torch.autograd.grad(odeint(net, y0, times(3), method="rk4").sum(), y0, create_graph=True)
        if works:
            grad.square().sum().backward()
        else:
            with pytest.raises(RuntimeError):
                grad.square().sum().backward()


class Ball(nn.Module):
    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.8, dtype=DTYPE))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        height, speed = y
        return speed, -self.gravity * torch.ones_like(height)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize(
    "how",
    [{}, {"method": "dopri8"}, {"method": "rk4", "options": {"step_size": 0.013}}, {"method": "kvaerno5"}],
    ids=str,
)
def test_event_times_and_their_gradients_are_exact(name: str, how: dict):
    """A stone thrown up from height h at speed v lands after (v + sqrt(v^2 + 2 g h)) / g."""
    stone, t0 = Ball(), torch.tensor(0.3, dtype=DTYPE, requires_grad=True)
    y0 = tuple(torch.tensor(x, dtype=DTYPE, requires_grad=True) for x in (10.0, 7.0))
    t, (height, speed) = interop.odeint_event(
        stone, y0, t0, event_fn=lambda t, y: y[0], odeint_interface=getattr(interop, name), **how
    )
    right = t0 + (y0[1] + torch.sqrt(y0[1] ** 2 + 2 * stone.gravity * y0[0])) / stone.gravity
    assert t.shape == ()
    assert height.shape == (2,)
    assert abs(t - right) < 1e-8
    inputs = [*y0, t0, stone.gravity]
    for ours, expected in ((t, right), (speed[1], -torch.sqrt(y0[1] ** 2 + 2 * stone.gravity * y0[0]))):
        wanted = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True, retain_graph=True)
        for a, b in zip(torch.autograd.grad(ours, inputs, retain_graph=True), wanted, strict=True):
            assert abs(a - b) < 1e-6
    theirs, _ = torchdiffeq.odeint_event(stone, y0, t0, event_fn=lambda t, y: y[0], atol=1e-10)
    assert abs(t - theirs) < 1e-8


def test_an_event_function_may_read_a_parameter():
    """The stone above reaches the height h at the time at which its speed is -sqrt(49 + 2 g (10 - h))."""
    floor = torch.tensor(1.0, dtype=DTYPE, requires_grad=True)
    y0, t0 = tuple(torch.tensor(x, dtype=DTYPE) for x in (10.0, 7.0)), torch.tensor(0.0, dtype=DTYPE)
    above = lambda t, y: y[0] - floor  # noqa: E731
    right = -1 / (49 + 2 * 9.8 * 9) ** 0.5
    found = [interop.odeint_event(Ball(), y0, t0, event_fn=above)[0]]
    with pytest.warns(UserWarning, match="no parameter of func"):
        found.append(interop.odeint_event(Ball(), y0, t0, event_fn=above, odeint_interface=interop.odeint_adjoint)[0])
    said = partial(interop.odeint_adjoint, adjoint_params=(floor,))
    found.append(interop.odeint_event(Ball(), y0, t0, event_fn=above, odeint_interface=said)[0])
    for t in found:
        assert abs(torch.autograd.grad(t, floor)[0] - right) < 1e-9
    stone = Ball()
    other = partial(interop.odeint_adjoint, adjoint_params=(stone.gravity,))
    t, _ = interop.odeint_event(stone, y0, t0, event_fn=above, odeint_interface=other)
    assert torch.autograd.grad(t, floor, allow_unused=True) == (None,)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_first_component_of_an_event_counts_in_both_directions_of_time(reverse: bool):
    swing = lambda t, y: torch.stack([y[1], -y[0]])  # noqa: E731
    several = lambda t, y: torch.stack([y[0] - 0.2, 0.9 + y[1], y[0] + 7])  # noqa: E731
    y0, t0 = torch.tensor([1.0, 0.0], dtype=DTYPE), torch.tensor([0.5], dtype=DTYPE)
    ours, theirs = (
        each.odeint_event(swing, y0, t0, event_fn=several, reverse_time=reverse, atol=1e-9) for each in LIBRARIES
    )
    assert abs(ours[0] - theirs[0]) < 1e-6
    assert (ours[1] - theirs[1]).abs().max() < 1e-6
    assert ours[0].dtype == theirs[0].dtype
    late = lambda t, y: torch.as_tensor((t - 0.5).abs() - 300.0)  # noqa: E731, far beyond the first look
    t, _ = interop.odeint_event(swing, y0, t0, event_fn=late, reverse_time=reverse)
    assert abs(abs(t - 0.5) - 300) < 1e-9


def test_an_event_at_the_start_is_met_there():
    for each in LIBRARIES:
        t, ys = each.odeint_event(field, start(), torch.tensor(1.0), event_fn=lambda t, y: y[0, 0] - 1)
        assert t == 1
        assert torch.equal(ys[1], start())


def test_an_event_that_never_comes_is_an_error():
    with pytest.raises(interop.OdeintError, match="event_fn"):
        interop.odeint_event(lambda t, y: 0 * y, start(), torch.tensor(0.0), event_fn=lambda t, y: y[0, 0] + 1)


def test_other_interfaces_can_be_chosen():
    stone, y0, t0 = Ball(), tuple(torch.tensor(x, dtype=DTYPE) for x in (10.0, 7.0)), torch.tensor(0.0, dtype=DTYPE)
    found = [
        interop.odeint_event(stone, y0, t0, event_fn=lambda t, y: y[0], atol=1e-10, **how)[0]
        for how in (
            {},
            {"odeint_interface": torchdiffeq.odeint},
            {"odeint_interface": partial(interop.odeint_adjoint, adjoint_params=(stone.gravity,))},
            {"backend": "torchdiffeq"},
            {"method": "fehlberg2"},
        )
    ]
    for t in found:
        assert abs(t - found[0]) < 1e-5
        (grad,) = torch.autograd.grad(t, stone.gravity)
        assert grad < 0
    same = [
        interop.odeint(field, start(), times(), backend="torchdiffeq"),
        torchdiffeq.odeint(field, start(), times()),
        interop.odeint_adjoint(field, start(), times(), backend="torchdiffeq", adjoint_params=()),
    ]
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])
    with pytest.raises(ValueError, match="backend"):
        interop.odeint(field, start(), times(), backend="jax")


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd, torch.func.hessian])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4", "dopri5", "bosh3"])
def test_transforms_of_torch_func_go_through_explicit_steps(method: str, transform: Any):
    def end(module: Any, y0: Tensor) -> Tensor:
        field = lambda t, y: torch.stack([y[1], -y[0].sin()])  # noqa: E731
        return module.odeint(field, y0, times(4), method=method, rtol=1e-4, atol=1e-4)[-1]

    y0 = torch.tensor([1.0, 0.5], dtype=DTYPE)
    if method not in ("dopri5", "bosh3"):  # torchdiffeq's adaptive methods have no transforms
        assert torch.allclose(transform(partial(end, interop))(y0), transform(partial(end, torchdiffeq))(y0), 1e-12)
    mapped = torch.func.vmap(transform(partial(end, interop)))(torch.stack([y0, y0]))
    by_autograd = torch.autograd.functional.jacobian(partial(end, interop), y0)
    assert torch.allclose(transform(partial(end, interop))(y0), mapped[0], 1e-12)
    assert transform is torch.func.hessian or torch.allclose(mapped[1], by_autograd, 1e-12)


def test_slope_of_another_size_is_refused_where_torchdiffeq_does():
    y0 = torch.ones(3, 2, dtype=DTYPE)
    for module in (interop, torchdiffeq):
        for method in ("dopri5", "bosh3", "adaptive_heun"):
            with pytest.raises(RuntimeError, match="3, 2"):
                module.odeint(lambda t, y: -y[:1], y0, times(4), method=method)
    rows = [module.odeint(lambda t, y: -y[:1], y0, times(4), method="rk4") for module in (interop, torchdiffeq)]
    assert torch.allclose(*rows)
