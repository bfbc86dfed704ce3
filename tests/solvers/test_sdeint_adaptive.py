"""Adaptive steps of torchsde's interface on the core, beside torchsde's own."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor, nn

from sciml.solvers import interop
from tests.solvers.test_sdeint import CALCULI, DTYPE, LIBRARIES, NOISES, TIMES, Net, called, motion, named, start


class Growth(nn.Module):
    """dy = 0.4 y dt + 0.8 y dW, whose solution is known; every row of the state is a path."""

    def __init__(self, noise: str, calculus: str):
        super().__init__()
        self.noise_type, self.sde_type, self.s = noise, calculus, nn.Parameter(torch.tensor(0.8, dtype=DTYPE))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.4 * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.s * y if self.noise_type == "diagonal" else (self.s * y)[..., None]

    def exact(self, t: float, w: Tensor) -> Tensor:
        return ((0.4 - (0.32 if self.sde_type == "ito" else 0)) * t + 0.8 * w).exp()


ADAPTIVE = {"milstein": CALCULI, "milstein without derivatives": CALCULI, "srk": ["ito"]}
ADAPTIVE |= {name: ["stratonovich"] for name in ("midpoint", "heun", "euler_heun", "reversible_heun", "log_ode")}


@pytest.mark.parametrize("call", ADAPTIVE)
def test_adaptive_states_come_near_the_solution_as_torchsdes_do(call: str):
    """On one motion, for each of 200 paths; save times are ends of steps, which torchsde interpolates."""
    levy = {"srk": "space-time", "log_ode": "foster"}.get(call, "none")
    for calculus in ADAPTIVE[call]:
        net, ts, y0, errors = Growth("diagonal", calculus), [0.0, 0.3, 1.0], torch.ones(200, 1, dtype=DTYPE), {}
        for library, tolerance in itertools.product(LIBRARIES, (3e-2, 1e-3)):
            bm = torchsde.BrownianInterval(0.0, 1.0, (200, 1), DTYPE, entropy=3, levy_area_approximation=levy)
            options = {"bm": bm, "dt": 0.1, "adaptive": True, "rtol": 0.0, "atol": tolerance, **named(call)}
            with torch.no_grad():
                ys = library.sdeint(net, y0, ts, **options)
            off = [(y - net.exact(t, bm(0.0, t))).abs() for y, t in zip(ys[1:], ts[1:], strict=True)]
            errors[library, tolerance] = float(off[1].mean()), float(off[1].std()) / math.sqrt(200)
            # the errors of steps, each up to its tolerance, add up at random: some 10 and some 100 of them
            most = 4 if tolerance > 0.01 else 12
            assert float(off[1].mean()) + 4 * errors[library, tolerance][1] < most * tolerance
            if library is interop:
                assert float(off[0].mean()) < most * tolerance
        (loose, bar), (tight, other) = (errors[interop, tolerance] for tolerance in (3e-2, 1e-3))
        assert loose - 4 * bar > 2 * (tight + 4 * other), errors


@pytest.mark.parametrize("noise", ["scalar", "additive", "general"])
def test_adaptive_states_of_other_noise_come_near_fine_steps(noise: str):
    for calculus, method in (("ito", "srk"), ("stratonovich", "heun")):
        if noise == "general" and calculus == "ito":
            continue
        bm, net = motion(noise, levy="space-time"), Net(noise, calculus)
        options = {"bm": bm, "method": method}
        with torch.no_grad():
            right = interop.sdeint(net, start(), TIMES, dt=1 / 512, **options)
            found = interop.sdeint(net, start(), TIMES, dt=0.3, adaptive=True, rtol=1e-3, atol=1e-3, **options)
            theirs = torchsde.sdeint(net, start(), TIMES, dt=0.3, adaptive=True, rtol=1e-3, atol=1e-3, **options)
        assert torch.equal(found[0], start())
        near = 0.15 if noise == "general" else 0.03  # of order 1/2, as are the fine steps
        assert float((found - right).abs().max()) < near
        assert float((theirs[-1] - right[-1]).abs().max()) < near


def test_rejections_of_sdeint_do_not_bias_the_noise():
    """Of y' = y dW and W itself, as one batch: at every time the variance of W is t and y = exp(W - t / 2)."""

    class Driven:
        noise_type, sde_type = "scalar", "ito"
        calls = 0

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            Driven.calls += 1
            return 0 * y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.stack([y[:, 0], torch.ones_like(y[:, 1])], -1)[..., None]

    y0, ts, count = torch.tensor([[1.0, 0.0]]).repeat(10_000, 1).to(DTYPE), [0.0, 0.3, 0.61, 1.0], 10_000
    for tolerance in (2e-2, 4e-3):
        np.random.seed(5)  # noqa: NPY002 - torchsde's seeds are from there
        with torch.no_grad():
            ys = interop.sdeint(Driven(), y0, ts, adaptive=True, method="srk", dt=0.3, rtol=0.0, atol=tolerance)
        for t, state in zip(ts[1:], ys[1:], strict=True):
            y, w = state.unbind(-1)
            assert abs(float(w.var()) / t - 1) < 3 * math.sqrt(2 / count)
            assert abs(float(w.mean())) < 3 * math.sqrt(t / count)
            assert float((y - (w - 0.5 * t).exp()).abs().mean()) < 5 * tolerance


@pytest.mark.parametrize("call", ["milstein", "reversible_heun"])
def test_adaptive_gradients(call: str, monkeypatch: pytest.MonkeyPatch):
    """Of `sdeint` against differences on the frozen mesh, of `sdeint_adjoint` against those of `sdeint`."""
    calculus = "ito" if call == "milstein" else "stratonovich"
    meshes: list[Any] = []
    original = interop.sde.solve

    def frozen(*args: Any, **options: Any) -> Any:
        found = original(*args, **options, mesh=meshes[0] if meshes else None)
        meshes[:] = [found.mesh]
        return found

    monkeypatch.setattr(interop.sde, "solve", frozen)
    found, bm = [], motion("diagonal", 1)  # another one would tell other values where it is asked in another order
    for name in ("sdeint", "sdeint_adjoint"):
        net, y0 = Net("diagonal", calculus), start().requires_grad_()
        options = {"bm": bm, "dt": 0.3, "adaptive": True, "rtol": 1e-2, "atol": 1e-2, "logqp": True, **named(call)}
        loss = lambda y0, net=net, name=name, options=options: sum(  # noqa: E731
            x.square().sum() for x in getattr(interop, name)(net, y0, TIMES, **options)
        )
        inputs = [y0, net.a, net.c]
        found.append(torch.autograd.grad(loss(y0), inputs))
        if name == "sdeint":
            assert int(meshes[0].count) > 8
            for x, grad in zip(inputs, found[0], strict=True):
                way = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
                with torch.no_grad():
                    ends = []
                    for sign in (1, -2, 1):
                        x.add_(sign * 1e-6 * way)
                        ends.append(float(loss(y0)))
                slope = (ends[0] - ends[1]) / 2e-6
                # central differences in float64: round-off 1e-10 times the sum, third derivatives times 1e-12
                assert abs(float((grad * way).sum()) - slope) < 1e-6 * max(1, abs(ends[0]))
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max()) < 1e-9 * (1 + float(b.abs().max()))


def test_least_steps_state_that_is_carried_and_warnings():
    class Rough(Growth):
        calls = 0

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            Rough.calls += 1
            return 30 * (300 * y).sin()

    loose = {"adaptive": True, "rtol": 0.1, "atol": 0.1}
    for library in LIBRARIES:
        Rough.calls = 0
        options = {"adaptive": True, "dt": 0.5, "dt_min": 0.02, "rtol": 1e-6, "atol": 1e-6, "method": "milstein"}
        with pytest.warns(UserWarning, match="Hitting minimum allowed step size"):
            ys = library.sdeint(Rough("diagonal", "ito"), torch.ones(5, 1, dtype=DTYPE), [0.0, 1.0], **options)
        assert bool(ys.isfinite().all())
        assert Rough.calls < 3 * 100  # at most 50 steps and some trials
        with pytest.warns(UserWarning, match="Numerical solution is not guaranteed to converge"):
            called(method="euler", **loose)(library)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(sde=Net("additive", "ito"), bm=motion("additive"), method="euler", **loose)(interop)
    options = {"method": "reversible_heun", "dt": 0.1, "adaptive": True, "extra": True, "rtol": 3e-3, "atol": 3e-3}
    for noise in NOISES:
        net, bm = Net(noise, "stratonovich"), motion(noise)
        with torch.no_grad():
            ys, extra = interop.sdeint(net, start(), [0.2, 0.9], bm=bm, **options)
            more, last = interop.sdeint(net, ys[-1], [0.9, 1.7], bm=bm, extra_solver_state=extra, **options)
            theirs, right = torchsde.sdeint(net, start(), torch.tensor([0.2, 0.9, 1.7], dtype=DTYPE), bm=bm, **options)
        assert [x.shape for x in last] == [x.shape for x in right]
        assert float((more[-1] - theirs[-1]).abs().max()) < 0.2  # general noise: order 1/2
