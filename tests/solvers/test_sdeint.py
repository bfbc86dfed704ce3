"""torchsde's interface on the core beside torchsde itself."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor, nn

from sciml import SolveError
from sciml.solvers import interop
from sciml.solvers.interop.sde_methods import METHODS
from tests.solvers.test_gradients import saved_bytes

DTYPE = torch.float64
LIBRARIES = [interop, torchsde]
NOISES = {"diagonal": 2, "scalar": 1, "additive": 3, "general": 3}  # and how many channels
CALCULI = ["ito", "stratonovich"]
CALLS = ["euler", "milstein", "milstein without derivatives", "srk", "midpoint", "heun", "euler_heun"]
CALLS += ["reversible_heun", "log_ode"]
TIMES = torch.tensor([0.2, 0.5, 0.77, 1.7], dtype=DTYPE)  # the third is no end of a step
# The same operations in another order: some thirty roundings of numbers of size one.
SAME = 1e-13


class Net(nn.Module):
    """Weights in drift and diffusion, which depend on time; diagonal noise acts entry by entry."""

    def __init__(self, noise: str, calculus: str, dtype: torch.dtype = DTYPE):
        super().__init__()
        self.noise_type, self.sde_type, self.channels = noise, calculus, NOISES[noise]
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=DTYPE).to(dtype))  # noqa: E731
        self.a, self.b, self.c = draw(2, 2), draw(2, 2 * self.channels), draw(2)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return (y @ self.a + t).tanh()

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        if self.noise_type == "diagonal":
            return 0.5 + 0.3 * (y * self.c + t).cos()
        if self.noise_type == "additive":
            y = torch.ones_like(y)
        return 0.5 * (y @ self.b - t).cos().reshape(len(y), 2, self.channels)


def start(dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.linspace(-1, 1, 10, dtype=DTYPE).reshape(5, 2).to(dtype)


def motion(noise: str, more: int = 0, levy: str = "foster", dtype: torch.dtype = DTYPE) -> Any:
    size = (5, NOISES[noise] + more)
    return torchsde.BrownianInterval(0.0, 2.0, size, dtype, entropy=3, levy_area_approximation=levy)


def named(call: str) -> dict[str, Any]:
    return {"method": call.split()[0], "options": {"grad_free": True} if " " in call else None}


def quietly(function: Any, *args: Any, **options: Any) -> Any:
    """The value of a call, or the type of what it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **options)
        except Exception as error:
            return type(error)


def differentiated(library: Any, name: str, call: str, noise: str, calculus: str, logqp: bool) -> Any:
    """States, log ratios and gradients."""
    net, y0 = Net(noise, calculus), start().requires_grad_()
    bm = motion(noise, more=int(logqp and noise == "diagonal"))
    found = getattr(library, name)(net, y0, TIMES, bm=bm, dt=0.1, logqp=logqp, **named(call))
    ys, ratio = found if logqp else (found, torch.zeros(()))
    loss = (ys * torch.linspace(-1, 2, ys.numel(), dtype=DTYPE).reshape(ys.shape)).sum() + 0.1 * ratio.sum()
    inputs = [y0, *net.parameters()]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    grads = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True)]
    return ys.detach(), ratio.detach(), torch.cat([grad.reshape(-1) for grad in grads])


@pytest.mark.parametrize("logqp", [False, True], ids=["states", "logqp"])
@pytest.mark.parametrize("call", CALLS)
def test_every_method_is_torchsdes_on_the_same_motion(call: str, logqp: bool):
    """States, log ratios and the gradients of backpropagation to round-off; what is refused is refused alike."""
    taken = 0
    for calculus, noise, name in itertools.product(CALCULI, NOISES, ("sdeint", "sdeint_adjoint")):
        right = quietly(differentiated, torchsde, "sdeint", call, noise, calculus, logqp)
        found = quietly(differentiated, interop, name, call, noise, calculus, logqp)
        if isinstance(right, type):
            assert found is right, (calculus, noise, name)
            continue
        taken += 1
        for a, b in zip(found, right, strict=True):
            # of general noise with logqp the pseudoinverse of g is large in places
            assert float((a - b).abs().max()) < SAME * (1 + float(b.abs().max())) * (100 if logqp else 1)
    assert taken >= 6


def test_adjoint_of_the_reversible_method_is_torchsdes():
    """Where the times are ends of steps, torchsde's is the gradient of the discrete solution too."""
    for noise in NOISES:
        grads = []
        for library in LIBRARIES:
            net, y0, ts = (
                Net(noise, "stratonovich"),
                start().requires_grad_(),
                torch.tensor([0.25, 1.0, 1.75], dtype=DTYPE),
            )
            options = {"bm": motion(noise), "dt": 0.25, "method": "reversible_heun"}
            ys = library.sdeint_adjoint(net, y0, ts, **options)
            grads.append(torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()], allow_unused=True))
        for a, b in zip(*grads, strict=True):
            assert not bool(b.any()) if a is None else float((a - b).abs().max()) < 1e-12


class Form:
    """An equation that gives only some of the methods."""

    def __init__(self, net: Net, methods: tuple[str, ...]):
        self.noise_type, self.sde_type, self.net = net.noise_type, net.sde_type, net
        for name in methods:
            setattr(self, name, getattr(net, name) if hasattr(net, name) else getattr(self, f"_{name}"))

    def product(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v if self.noise_type == "diagonal" else (g @ v[..., None])[..., 0]

    def _f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.f(t, y), self.net.g(t, y)

    def _g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self.product(self.net.g(t, y), v)

    def _f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.f(t, y), self._g_prod(t, y, v)


FORMS = [
    ("f", "g"),
    ("f_and_g",),
    ("f", "f_and_g"),
    ("f", "g_prod"),
    ("f", "g", "g_prod", "f_and_g", "f_and_g_prod"),
    ("f_and_g_prod",),
    ("f", "f_and_g_prod"),
    ("f",),
    ("g",),
    (),
]


@pytest.mark.parametrize("form", FORMS, ids="+".join)
def test_equations_may_give_what_they_have(form: tuple[str, ...]):
    for call, calculus, noise in itertools.product(CALLS, CALCULI, ("diagonal", "general")):
        right, found = (
            quietly(
                library.sdeint,
                Form(Net(noise, calculus), form),
                start(),
                TIMES,
                bm=motion(noise),
                dt=0.3,
                **named(call),
            )
            for library in (torchsde, interop)
        )
        if isinstance(right, type):
            assert found is right, (call, calculus, noise, found)
        else:
            assert float((found - right).detach().abs().max()) < SAME, (call, calculus, noise)


def test_times_step_sizes_and_dtypes():
    """Steps are added up as torchsde adds them up, so that the motion is asked at the same times."""
    for dtype, ts, dt in [
        (torch.float32, torch.linspace(0.2, 1.7, 11), 1e-2),
        (torch.float32, torch.linspace(0.2, 1.7, 4, dtype=DTYPE), torch.tensor(0.03)),
        (DTYPE, torch.linspace(0.2, 1.7, 11), 0.1),
        (DTYPE, [0.2, 0.3, 1.7], 0.07),
        (DTYPE, (0.2, 1.7), 5),
        (DTYPE, torch.tensor([0.2]), 0.1),
        (torch.float32, torch.tensor([0.2, 1.7]), torch.tensor(0.1, dtype=DTYPE)),
    ]:
        right, found = (
            library.sdeint(
                Net("diagonal", "ito", dtype), start(dtype), ts, bm=motion("diagonal", dtype=dtype), dt=dt, method="srk"
            )
            for library in (torchsde, interop)
        )
        assert (found.shape, found.dtype) == (right.shape, right.dtype)
        # torchsde computes step sizes in the dtype of the times; up to 150 steps
        eps = max(torch.finfo(x).eps for x in (dtype, torch.as_tensor(ts, dtype=getattr(ts, "dtype", dtype)).dtype))
        assert float((found - right).detach().abs().max()) < 300 * eps


def test_defaults_names_and_other_motions():
    class Named:
        noise_type, sde_type = "general", "stratonovich"
        net = Net("general", "stratonovich")

        def drift(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net.f(t, y)

        def noise(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net.g(t, y)

    names = {"drift": "drift", "diffusion": "noise"}
    right, found = (
        library.sdeint(Named(), start(), TIMES, bm=motion("general", levy="none"), dt=0.1, names=names)
        for library in (torchsde, interop)
    )
    assert float((found - right).detach().abs().max()) < SAME
    w0, ts = torch.zeros(5, 2, dtype=DTYPE), torch.tensor([0.0, 0.4, 1.0], dtype=DTYPE)
    for kind in (interop.BrownianPath, interop.BrownianTree):
        bm = kind(t0=0.0, w0=w0)
        ys = [each.sdeint(Net("diagonal", "ito"), start(), ts, bm=bm, dt=0.05, method="euler") for each in LIBRARIES]
        assert float((ys[0] - ys[1]).detach().abs().max()) < SAME


def test_state_that_a_method_carries_comes_back_and_goes_on():
    for name, noise in itertools.product(("sdeint", "sdeint_adjoint"), NOISES):
        found, ts = [], [0.2, 0.9, 1.7]
        for library in LIBRARIES:
            net, y0, bm = Net(noise, "stratonovich"), start().requires_grad_(), motion(noise)
            options = {"bm": bm, "dt": 0.1, "method": "reversible_heun", "extra": True}
            ys, extra = getattr(library, name)(net, y0, torch.tensor(ts[:2], dtype=DTYPE), **options)
            more = {"extra_solver_state": extra}
            end, last = getattr(library, name)(net, ys[-1], torch.tensor(ts[1:], dtype=DTYPE), **options, **more)
            (grad,) = torch.autograd.grad(end[-1].sum() + sum(x.sum() for x in last), y0)
            grads = [grad] if name == "sdeint" else []  # the step of round-off that ends at 0.9 spoils torchsde's
            found.append([type(extra), *(x.detach() for x in (*extra, *last, end)), *grads])
        for a, b in zip(*found, strict=True):
            assert a is b if isinstance(a, type) else a.shape == b.shape and float((a - b).abs().max()) < 1e-12
    ys, extra = interop.sdeint(Net("diagonal", "ito"), start(), TIMES, bm=motion("diagonal"), dt=0.5, extra=True)
    assert extra == ()


def test_without_a_motion_one_is_drawn_from_numpys_seed():
    """dy = 0.4 y dt + 0.3 y dW has the mean e^0.4 and the second moment e^0.89 at time one; Ito."""

    class Growth(interop.SDEIto):
        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.4 * y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.3 * y

    y0 = torch.ones(4_000, 1, dtype=DTYPE)
    for method, dt in (("milstein", 1 / 64), ("euler", 0.009), ("srk", 0.1)):
        ends = []
        for seed in (1, 1, 2):
            np.random.seed(seed)  # noqa: NPY002 - torchsde's seeds are from there
            ends.append(interop.sdeint(Growth("diagonal"), y0, [0.0, 0.5, 1.0], method=method, dt=dt)[-1])
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])
        for power, right in ((1, math.exp(0.4)), (2, math.exp(0.89))):
            values = ends[0] ** power
            # four standard errors, and the weak error of the steps
            assert abs(float(values.mean()) - right) < 4 * float(values.std()) / 4_000**0.5 + 0.3 * min(dt, 0.02)


def test_an_equation_that_reads_a_table_sees_the_ends_of_steps_themselves():
    """One unit in the last place of time is another entry."""
    nodes = torch.from_numpy(np.add.accumulate(np.concatenate([[0.2], np.full(15, 0.1)])))

    class Controlled(Net):
        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.searchsorted(nodes, t, right=True).to(y).cos() - y

    for call in ("euler", "reversible_heun", "heun"):
        calculus = "ito" if call == "euler" else "stratonovich"
        ys = [
            each.sdeint(Controlled("diagonal", calculus), start(), TIMES, bm=motion("diagonal"), dt=0.1, **named(call))
            for each in LIBRARIES
        ]
        assert float((ys[0] - ys[1]).detach().abs().max()) < SAME


def test_adjoint_params_say_what_gets_gradients():
    """An encoder's output, which is no leaf, among them."""
    found = []
    for name in ("sdeint", "sdeint_adjoint"):
        net, encoder = Net("general", "stratonovich"), torch.ones(2, dtype=DTYPE, requires_grad=True)
        context = encoder.sin()
        net.f = lambda t, y, net=net, context=context: (y @ net.a + t).tanh() * context
        more = {"adjoint_params": (context, net.b)} if name == "sdeint_adjoint" else {}
        ys = getattr(interop, name)(net, start(), TIMES, bm=motion("general"), dt=0.1, **more)
        ys.square().sum().backward()
        found.append((encoder.grad, net.b.grad, net.a.grad))
    (encoder, b, a), (same, as_b, none) = found
    assert a is not None
    assert none is None
    for one, other in ((encoder, same), (b, as_b)):
        assert float((one - other).abs().max()) < 1e-12
    net, scale = Net("diagonal", "ito"), torch.ones((), dtype=DTYPE, requires_grad=True)
    net.f = lambda t, y: scale * y
    with pytest.warns(UserWarning, match="all steps are kept in memory"):
        ys = interop.sdeint_adjoint(net, start(), TIMES, bm=motion("diagonal"), dt=0.1)
    ys.sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("method", ["reversible_heun", "midpoint"])
def test_adjoint_keeps_little(method: str):
    """The reversible method no state, the others one state per step."""
    y0 = torch.ones(500, 2, dtype=DTYPE)
    net, state = Net("diagonal", "stratonovich"), y0.untyped_storage().nbytes()

    def kept(steps: int) -> float:
        return saved_bytes(lambda: interop.sdeint_adjoint(net, y0, [0.0, 1.0], dt=1 / steps, method=method)) / state

    grown = (kept(64) - kept(16)) / 48
    assert grown < (0.1 if method == "reversible_heun" else 1.1)


class Wide(Net):
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.ones(len(y), 3, 3, dtype=DTYPE)


class Flat(Net):
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.ones(len(y), 3, dtype=DTYPE)


class Unsure(Net):
    def __init__(self, **types: str):
        super().__init__("diagonal", "ito")
        for name, value in types.items():
            setattr(self, name, value)


def called(**options: Any) -> Any:
    """A call of sdeint with other arguments."""
    given = {"sde": Net("diagonal", "ito"), "y0": start(), "ts": TIMES, "bm": motion("diagonal"), "dt": 0.5} | options
    adjoint = any(name.startswith("adjoint") for name in options)
    return lambda library: (library.sdeint_adjoint if adjoint else library.sdeint)(**given)


def backward(**options: Any) -> Any:
    return lambda library: called(**options)(library).sum().backward()


MID = {"sde": Net("general", "stratonovich"), "bm": motion("general")}
GRAD = torch.tensor(0.1, requires_grad=True)
REFUSED = {
    "no such method": called(method="rk4"),
    "a method of adjoints": called(sde=Net("diagonal", "stratonovich"), method="adjoint_reversible_heun"),
    "no such noise": called(sde=Unsure(noise_type="white")),
    "no such calculus": called(sde=Unsure(sde_type="malliavin")),
    "no noise type": called(sde=object()),
    "a state that is a list": called(y0=[[1.0]]),
    "a state that is a vector": called(y0=torch.ones(2, dtype=DTYPE)),
    "times that fall": called(ts=TIMES.flip(0)),
    "times that repeat": called(ts=[0.2, 0.2, 1.0]),
    "times of strings": called(ts=["0", "1"]),
    "times of numpy": called(ts=np.linspace(0.2, 1.7, 3)),
    "times with gradients": called(ts=TIMES.clone().requires_grad_()),
    "a step size with a gradient": called(dt=GRAD),
    "a tolerance with a gradient": called(rtol=GRAD),
    "a motion of one axis": called(bm=torchsde.BrownianInterval(0.2, 1.7, size=(5,), dtype=DTYPE)),
    "a motion of another batch": called(bm=torchsde.BrownianInterval(0.2, 1.7, size=(4, 2), dtype=DTYPE)),
    "a motion of other channels": called(bm=torchsde.BrownianInterval(0.2, 1.7, size=(5, 3), dtype=DTYPE)),
    "a motion without Levy area": called(bm=motion("diagonal", levy="none"), method="srk"),
    "a motion with half of it": called(**MID | {"bm": motion("general", levy="space-time")}, method="log_ode"),
    "a diffusion of another size": called(sde=Wide("general", "ito"), bm=None, method="euler"),
    "a diffusion of no matrix": called(sde=Flat("general", "ito"), bm=None),
    "scalar noise of three channels": called(sde=Unsure(noise_type="scalar"), bm=None),
    "no prior": called(sde=Form(Net("diagonal", "ito"), ("f", "g")), logqp=True, bm=None),
    "products alone and no motion": called(sde=Form(Net("diagonal", "ito"), ("f", "g_prod")), bm=None),
    "a function as module": called(sde=Form(Net("diagonal", "ito"), ("f", "g")), adjoint_method="euler"),
    "an adjoint by srk": backward(adjoint_method="srk"),
    "an adjoint of the other calculus": backward(adjoint_method="midpoint"),
    "an adjoint by log_ode": backward(**MID, adjoint_method="log_ode"),
    "an adjoint by Milstein of general noise": backward(**MID, adjoint_method="milstein"),
    "an adjoint without derivatives": backward(adjoint_method="milstein", adjoint_options={"grad_free": True}),
    "an adjoint by Milstein of scalar noise": backward(
        sde=Net("scalar", "ito"), bm=motion("scalar"), adjoint_method="milstein"
    ),
    "a reversible adjoint of another method": backward(**MID, adjoint_method="adjoint_reversible_heun"),
    "a reversible method as adjoint": backward(**MID, adjoint_method="reversible_heun"),
    "no such adjoint": backward(adjoint_method="rk4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torchsde_refuses_is_refused_alike(name: str):
    ours, theirs = (quietly(REFUSED[name], library) for library in LIBRARIES)
    assert isinstance(theirs, type)
    assert ours is theirs


def test_what_is_refused_beyond_torchsde():
    with pytest.raises(ValueError, match="dt: expected a positive step size"):
        called(dt=0.0)(interop)
    with pytest.raises(ValueError, match="dt: expected steps that move a time of"):
        called(ts=torch.tensor([0.2, 1.7]), dt=1e-12, bm=None)(interop)
    with pytest.raises(ValueError, match="backend: expected 'sciml' or 'torchsde'"):
        called(backend="jax")(interop)

    class Pole(Net):
        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return y.exp() ** 9

    with pytest.raises(SolveError):
        called(sde=Pole("diagonal", "ito"), dt=0.1)(interop)


def test_warnings_and_the_other_backend():
    with pytest.warns(UserWarning, match="`sdeint`: Unexpected arguments {'step': 3}"):
        called(step=3)(interop)
    strat = Net("diagonal", "stratonovich")
    with pytest.warns(UserWarning, match="method='reversible_heun', but adjoint_method"):
        called(sde=strat, method="reversible_heun", adjoint_method="midpoint")(interop)
    assert torch.equal(
        *(
            called(method="euler", **more)(library)
            for more, library in (({"backend": "torchsde"}, interop), ({}, torchsde))
        )
    )
    right = sorted(name for name in METHODS)
    assert right == torchsde.settings.METHODS.all()
