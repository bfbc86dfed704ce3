"""Solves of states on another device than the host, against those on the host, by the same kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sciml import solve
from sciml.solvers import (
    PID,
    SOSRI2,
    SRA1,
    SRIW1,
    SRK,
    Auto,
    Backsolve,
    Brownian,
    Crossings,
    Discrete,
    Doubled,
    ErrorEstimate,
    EulerHeun,
    EulerMaruyama,
    Event,
    Grid,
    LogODE,
    MatrixDiffusive,
    Milstein,
    Quadrature,
    ReversibleHeun,
    ShARK,
    Solver,
    Stats,
    StepCount,
    Stepper,
    Stiffness,
    StratonovichHeun,
    StratonovichMidpoint,
    StratonovichMilstein,
    StratonovichReversibleHeun,
    Tsit5,
)
from sciml.solvers.interop import BrownianInterval, odeint, odeint_adjoint, odeint_event, sdeint
from tests.elsewhere import DEVICE, agree, differentiated, elsewhere, reads, states
from tests.solvers.registry import EXPONENTIAL, STEPPERS, SYMPLECTIC, Case
from tests.solvers.systems import DTYPE, Linked, Net, Oscillators

KINDS = ["joint", "each"]


def test_device_refuses_what_another_one_would():
    with elsewhere() as device:
        x = torch.ones(3, device=device)
        assert x.device == torch.arange(3, device=device).device == torch.tensor([1.0], device=device).device == DEVICE
        assert (x + torch.tensor(1.0)).tolist() == [2.0] * 3
        for wrong in (lambda: x + torch.ones(3), lambda: torch.stack([x, torch.ones(3)])):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="to numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device, generator=torch.Generator())
        reads.clear()
        assert x.sum().item() == 3
        assert bool((x > 0).all())
        assert torch.equal(x.cpu(), torch.ones(3))
        assert len(reads) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*STEPPERS, *SYMPLECTIC, Case(Auto(), (1,))], ids=str)
def test_every_stepper_steps_elsewhere(case: Case, kind: str):
    semilinear, symplectic = case in EXPONENTIAL, case in SYMPLECTIC
    adaptive = case.stepper.adaptive or isinstance(case.stepper, Auto)
    controller = PID(rtol=1e-2, atol=1e-3) if adaptive else Grid(n=4 if semilinear else 2)

    def make(device: torch.device) -> tuple[Any, ...]:
        y0 = states(device, 3, 6 if symplectic else 2)
        args: tuple[Tensor, ...] = ()
        net: Any = Net().to(device)
        inputs: tuple[Tensor, ...] = (y0, *net.parameters())
        if semilinear or symplectic:
            args = tuple(states(device, y0.shape[1] // (1 + symplectic)) for _ in range(2))
            net, inputs = Linked() if semilinear else Oscillators(), (y0, *args)
        solver = Solver(case.stepper, controller, lanes=kind)
        solution = solve(net, y0, 0.0, 1.0, solver, args=args, save_at=[0.25, 1.0])
        return *differentiated(solution.ys, *inputs), solution.stats.accepted

    agree(make)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "adjoint",
    [Discrete("graph"), Discrete("all"), Discrete("every", 2), Discrete("invert"), Backsolve()],
    ids=lambda a: getattr(a, "store", "backsolve"),
)
def test_every_adjoint_goes_back_elsewhere(adjoint: Any, kind: str):
    def make(device: torch.device) -> tuple[Any, ...]:
        inverted = getattr(adjoint, "store", "") == "invert"
        y0, net, ts = states(device, 3, 2), Net().to(device), torch.linspace(0, 1, 4, dtype=DTYPE).to(device)
        stepper = ReversibleHeun() if inverted else Tsit5()
        folds = {"error": ErrorEstimate(), **({} if inverted else {"stiff": Stiffness()})}
        folds = {} if isinstance(adjoint, Backsolve) else folds
        t0, t1 = ts[0].clone().requires_grad_(), ts[-1].clone().requires_grad_()
        solution = solve(net, y0, t0, t1, Solver(stepper, PID(), adjoint, lanes=kind), save_at=ts, folds=folds)
        out = torch.cat([solution.ys.flatten(), *(solution.folds[name].flatten() for name in folds)])
        return differentiated(out, y0, t0, t1, *net.parameters())

    agree(make)


@pytest.mark.parametrize("kind", KINDS)
def test_events_jumps_and_folds_elsewhere(kind: str):
    def make(device: torch.device) -> tuple[Any, ...]:
        y0 = states(device, 3, 2)
        low = Event(lambda t, y, args: y[..., 0].mean(-1) - 0.4 if kind == "joint" else y[:, 0] - 0.4, -1)
        jump = lambda t, y, key, args: (y * 1.01, torch.ones_like(torch.as_tensor(key), dtype=torch.bool))  # noqa: E731
        folds = {"stats": Stats(), "count": StepCount(), "work": Quadrature(lambda t, y, args: y.square())}
        solver = Solver(Tsit5(), PID(jump_ts=(0.25,)), lanes=kind)
        solution = solve(
            lambda t, y: -y, y0, 0.0, 3.0, solver, events=low, jumps=[jump], folds=folds, save_at=[0.1, 0.2, 3.0]
        )
        t = solution.events.t if isinstance(solution.events, Crossings) else solution.ts
        return *differentiated(solution.folds["work"], y0), t

    agree(make)


class Noisy(torch.nn.Module, MatrixDiffusive):
    """A drift and a diffusion with weights; y is (b, 2)."""

    def __init__(self, noise: str, calculus: str):
        super().__init__()
        self.noise_type, self.calculus, self.net = noise, calculus, Net()
        self.strength = torch.nn.Parameter(torch.tensor([[0.3, 0.1, 0.2], [0.2, 0.4, 0.1]], dtype=DTYPE))

    def drift(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return self.net(t, y)

    def diffusion(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        if self.noise_type == "diagonal":
            return self.strength[:, 0] * y.sin()
        return (y * 0 + 1 if self.noise_type == "additive" else y.sin())[..., None] * self.strength


STOCHASTIC = [
    *((stepper, "diagonal") for stepper in (EulerMaruyama(), Milstein(), SRIW1(), SOSRI2(), SRK(), EulerHeun())),
    *((s, "diagonal") for s in (StratonovichHeun(), StratonovichMidpoint(), StratonovichMilstein())),
    *((s, "general") for s in (EulerMaruyama(), StratonovichReversibleHeun(), LogODE(), StratonovichHeun())),
    *((s, "additive") for s in (SRA1(), ShARK(), SRK(), EulerMaruyama(), Doubled(EulerMaruyama()))),
]


@pytest.mark.parametrize(
    ("kind", "by"), [("joint", "step"), ("each", "hash"), ("joint", "adaptive"), ("each", "adaptive")]
)
@pytest.mark.parametrize(("stepper", "noise"), STOCHASTIC, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_every_stochastic_stepper_steps_elsewhere(stepper: Stepper, noise: str, kind: str, by: str):
    if (by == "adaptive") not in ({True} if isinstance(stepper, Doubled) else {stepper.adaptive, False}):
        pytest.skip("steps of an error estimate need one")

    def make(device: torch.device) -> tuple[Any, ...]:
        calculus = getattr(stepper, "calculus", None) or "ito"
        term = Noisy(noise, calculus if isinstance(calculus, str) else "ito").to(device)
        y0 = states(device, 3, 2)
        path = Brownian((3, 2 if noise == "diagonal" else 3), 3, **({"by": "step", "cells": 4} if by == "step" else {}))
        controller = PID(rtol=1e-1, atol=1e-2) if by == "adaptive" else Grid(n=4)
        solver = Solver(stepper, controller, lanes=kind)
        solution = solve(term, y0, 0.0, 1.0, solver, path=path, save_at=[0.25, 0.5, 1.0])
        return *differentiated(solution.ys, y0, *term.parameters()), solution.stats.accepted

    agree(make)


def test_device_is_read_at_most_once_for_a_trial():
    with elsewhere() as device:
        net, y0 = Net().to(device), states(device, 3, 2)
        counts = []
        for rtol in (1e-3, 1e-9):
            reads.clear()
            with torch.no_grad():
                stats = solve(net, y0, 0.0, 3.0, Solver(Tsit5(), PID(rtol=rtol, atol=1e-2 * rtol))).stats
            counts.append((len(reads), int(stats.accepted + stats.rejected)))
    (few, short), (many, long) = counts
    assert long > short + 5
    assert many - few <= long - short


def test_interop_solves_elsewhere():
    def make(device: torch.device) -> tuple[Any, ...]:
        y0, net, ts = states(device, 3, 2), Net().to(device), torch.linspace(0, 1, 4, dtype=DTYPE).to(device)
        parameters = tuple(net.parameters())
        out: list[Tensor] = []
        for method in ("dopri5", "rk4", "implicit_adams", "scipy_solver", "radauIIA5"):
            options = {"scipy_solver": {"solver": "LSODA"}, "implicit_adams": {"step_size": 0.05}}.get(method)
            out.append(odeint(net, y0.detach(), ts, method=method, options=options).detach())
        out += differentiated(odeint(net, y0, ts, method="dopri5"), y0, *parameters)
        out += differentiated(odeint_adjoint(net, y0, ts, method="dopri5"), y0, *parameters)
        t, y = odeint_event(net, y0, ts[0], event_fn=lambda t, y: y.mean() - 0.9, method="dopri5")
        return *out, t, y

    agree(make)


@pytest.mark.parametrize("method", ["milstein", "srk"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_interop_solves_stochastic_equations_elsewhere(method: str, adaptive: bool):
    class Scripted(Noisy):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(t, y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return self.strength[:, 0] * y.sin()

    def make(device: torch.device) -> tuple[Any, ...]:
        y0, sde = states(device, 3, 2), Scripted("diagonal", "ito").to(device)
        ts = torch.linspace(0, 1, 3, dtype=DTYPE).to(device)
        bm = BrownianInterval(
            0.0, 1.0, (3, 2), dtype=DTYPE, device=device, entropy=1, levy_area_approximation="space-time"
        )
        ys = sdeint(sde, y0, ts, bm=bm, method=method, adaptive=adaptive, dt=0.1, rtol=1e-1, atol=1e-2)
        return differentiated(ys, y0, *sde.parameters())

    agree(make)
