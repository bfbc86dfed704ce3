"""The continuous adjoint of stochastic equations against exact gradients and that of the discrete solution."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    PID,
    SRA1,
    SRIW1,
    Backsolve,
    Brownian,
    Diffusive,
    Doubled,
    EulerHeun,
    EulerMaruyama,
    Final,
    Given,
    Grid,
    MatrixDiffusive,
    Milstein,
    Stats,
    StratonovichHeun,
    StratonovichMidpoint,
    StratonovichReversibleHeun,
)
from sciml.solvers.stochastic import Stochastic
from tests.solvers.systems import DTYPE
from tests.solvers.test_given import motion
from tests.solvers.test_gradients import saved_bytes
from tests.solvers.test_stochastic import ARGS, END, KINDS, Linear, name

STEPS, PATHS = np.array([16, 32, 64, 128]), 400
PAIRS = [(StratonovichHeun(), None), (StratonovichMidpoint(), None), (EulerHeun(), StratonovichMidpoint())]
PAIRS += [(Milstein(), None), (SRIW1(), None), (StratonovichReversibleHeun(), None)]


@pytest.mark.parametrize(("stepper", "back"), PAIRS, ids=name)
def test_gradient_converges_to_that_of_the_equation_with_order_one(stepper: Stochastic, back: Any):
    """y = y0 exp((r - c) T + s W): of each path by y0, of their sum by r and s, Ito (c = s^2 / 2) and Stratonovich."""
    term, ito = Linear("diagonal", stepper.calculus), stepper.calculus == "ito"
    path = Brownian((PATHS, 2), 3, cells=128, areas=stepper.levy, dtype=DTYPE)
    w = (path(0.0, 1.0).w if stepper.levy else path(0.0, 1.0)) * math.sqrt(END)
    rates, s = ARGS[0], ARGS[1].diagonal()
    y = ((rates - 0.5 * s**2 * ito) * END + s * w).exp()
    right = [y, END * y, (w - s * END * ito) * y]
    errors = []
    for n in STEPS:
        y0 = torch.ones(PATHS, 2, dtype=DTYPE, requires_grad=True)
        args = tuple(x.clone().expand(PATHS, *x.shape).clone().requires_grad_() for x in (rates, s))
        each = _Own(term.calculus)  # an argument for each path, so that every path's gradient is seen
        found = solve(each, y0, 0.0, END, Solver(stepper, Grid(n=n), Backsolve(back)), args=args, path=path).ys
        grads = torch.autograd.grad(found.sum(), [y0, *args])
        errors.append([float((a - b).norm(dim=1).mean()) for a, b in zip(grads, right, strict=True)])
    slopes = [-np.polyfit(np.log(STEPS), np.log(e), 1)[0] for e in zip(*errors, strict=True)]
    assert all(0.8 <= slope <= 1.5 for slope in slopes), (slopes, errors[-1])


class _Own(Diffusive):
    """Rates and strengths of every path."""

    noise_type = "diagonal"

    def __init__(self, calculus: Any):
        self.calculus = calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * y * dw


class Coupled(nn.Module, MatrixDiffusive):
    """Weights in a drift and in a diffusion that depend on time; the noise does not commute."""

    noise_type = "general"

    def __init__(self, calculus: Any):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=DTYPE))  # noqa: E731
        self.a, self.b, self.calculus = draw(2, 2), draw(2, 6), calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * (y @ self.a + t).tanh()

    def diffusion(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0.4 * (y @ self.b - t).cos().reshape(len(y), 2, 3)


def gradients(term: Coupled, solver: Solver, path: Any, ts: list[float]) -> list[Tensor]:
    """Of save times in any order, twice the same among them, and of the end."""
    y0 = torch.linspace(-1, 1, 10, dtype=DTYPE).reshape(5, 2).requires_grad_()
    k = torch.tensor(1.3, dtype=DTYPE, requires_grad=True)
    s = solve(term, y0, 0.1, 1.1, solver, args=(k,), path=path, save_at=ts, folds={"end": Final()})
    weights = torch.linspace(0.5, 2, s.ys.numel(), dtype=DTYPE).reshape(s.ys.shape)
    loss = (weights * s.ys**2).sum() + (s.folds["end"] ** 3).sum()
    return list(torch.autograd.grad(loss, [y0, k, *term.parameters()]))


def apart(found: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize(("calculus", "kind"), [("ito", "joint"), ("stratonovich", "each")])
def test_gradient_of_general_noise_converges_to_that_of_the_solve(calculus: Any, kind: str):
    """With save times and at their ends; of order 1/2, so that a factor of 64 in the steps makes one of 8."""
    term, ts = Coupled(calculus), [0.85, 0.35, 0.1, 0.85, 1.1]
    stepper, path = (EulerMaruyama() if calculus == "ito" else StratonovichHeun()), Brownian((5, 3), 2, cells=1024)
    off = []
    for n in (16, 1024):
        grids = [Solver(stepper, Grid(n=n), a, lanes=kind, max_steps=n) for a in (Backsolve(), Discrete("all"))]
        found, right = (gradients(term, grid, path, ts) for grid in grids)
        assert [x.shape for x in found] == [x.shape for x in right]
        off.append(apart(found, right))
    assert off[1] < 0.06
    assert off[0] > 3 * off[1]


@pytest.mark.parametrize("kind", KINDS)
def test_adaptive_steps_are_gone_back_over(kind: str):
    """The steps of a solve of two save times that are no nodes of the tree."""
    path, off = Brownian((5, 3), 2, cells=2**20), []
    for tolerance in (1e-2, 3e-4):
        controller, term = PID(rtol=tolerance, atol=tolerance), Coupled("stratonovich")
        solvers = [
            Solver(Doubled(StratonovichMidpoint()), controller, adjoint, lanes=kind)
            for adjoint in (Backsolve(), Discrete("all"))
        ]
        found, right = (gradients(term, solver, path, [0.2, 0.77]) for solver in solvers)
        off.append(apart(found, right))
    assert off[1] < 0.03
    assert off[0] > 2 * off[1]


def test_motion_that_is_given_and_additive_noise():
    args = tuple(x.clone().requires_grad_() for x in ARGS)
    for term, stepper in ((Linear("additive", "ito"), SRA1()), (Linear("scalar", "ito"), Milstein())):
        path = Given(motion(5, 1 if term.noise_type == "scalar" else 2, "space-time", END))
        grads = []
        for adjoint in (Backsolve(), Discrete("all")):
            y0 = torch.ones(5, 2, dtype=DTYPE, requires_grad=True)
            ys = solve(term, y0, 0.0, END, Solver(stepper, Grid(n=256), adjoint), args=args, path=path).ys
            grads.append(torch.autograd.grad(ys.square().sum(), [y0, *args]))
        # both of order one in steps of 1/170; of additive noise the adjoint has none
        assert apart(*map(list, grads)) < (1e-3 if term.noise_type == "additive" else 0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_steps(kind: str):
    y0 = torch.ones(500, 2, dtype=DTYPE)
    args, state = tuple(x.clone().requires_grad_() for x in ARGS), y0.untyped_storage().nbytes()

    def kept(n: int) -> float:
        solver = Solver(Milstein(), Grid(n=n), Backsolve(), lanes=kind)
        return saved_bytes(
            lambda: solve(Linear("diagonal", "ito"), y0, 0.0, 1.0, solver, args=args, path=Brownian()).ys
        )

    assert kept(256) - kept(16) < 0.1 * state


def test_a_failed_sample_has_no_part_and_a_state_that_does_not_come_back_is_warned_of():
    class Pole(_Own):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return args[0] * y * torch.where(y > 2, torch.inf, 1.0)

    y0 = torch.tensor([[1.0, 1.0], [3.0, 1.0]], dtype=DTYPE, requires_grad=True)
    args = tuple(0.1 * torch.ones(2, dtype=DTYPE, requires_grad=True) for _ in range(2))
    solver = Solver(StratonovichHeun(), Grid(n=8), Backsolve(), lanes="each")
    found = solve(Pole("stratonovich"), y0, 0.0, 1.0, solver, args=args, path=Brownian(), throw=False)
    grads = torch.autograd.grad(found.ys.sum(), [y0, *args])
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not bool(grads[0][1].any())
    assert bool(grads[0][0].all())

    class Damped(_Own):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return -args[0] * y.sin()

    solver, y0 = Solver(StratonovichHeun(), Grid(n=400), Backsolve()), y0.detach().requires_grad_()
    args = torch.tensor(30.0, dtype=DTYPE, requires_grad=True), torch.tensor(0.1, dtype=DTYPE)
    ys = solve(Damped("stratonovich"), y0, 0.0, 5.0, solver, args=args, path=Brownian()).ys
    with pytest.warns(RuntimeWarning, match="the state misses the one it came from"):
        ys.sum().backward()


def test_what_has_no_continuous_adjoint_is_refused():
    y0, args = torch.ones(3, 2, dtype=DTYPE, requires_grad=True), tuple(x.clone() for x in ARGS)
    term, heun = Linear("diagonal", "stratonovich"), StratonovichHeun()
    t1 = torch.tensor(1.0, dtype=DTYPE, requires_grad=True)

    def call(adjoint: Backsolve | None = None, controller: Any = None, t1: Any = 1.0, **options: Any) -> Any:
        solver = Solver(options.pop("stepper", heun), controller or Grid(n=4), adjoint or Backsolve())
        return solve(term, y0, 0.0, t1, solver, args=args, path=Brownian(), **options)

    for match, options in (
        ("Backsolve of a stochastic equation has no derivative in time; use Discrete", {"t1": t1}),
        (
            "goes back over the steps of the solve, expected controller=None, got Grid",
            {"adjoint": Backsolve(None, Grid(n=3))},
        ),
        (r"Milstein cannot go back; expected StratonovichHeun\(\)", {"adjoint": Backsolve(Milstein())}),
        ("folds: Backsolve differentiates save times only, got Stats", {"folds": {"s": Stats()}}),
        ("jumps: Backsolve knows smooth", {"jumps": (lambda t, y, k, a: (y, k < 0),)}),
        ("jump_ts: Backsolve of a stochastic equation cannot", {"controller": PID(jump_ts=[0.5])}),
    ):
        with pytest.raises(ValueError, match=match):
            call(**options)
    ys = call().ys
    (grad,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_a_sample_that_fails_spoils_no_gradient():
    """Also where there are save times, at which it holds a state whose drift is infinite."""

    class Burst(torch.nn.Module, Diffusive):
        noise_type, calculus = "diagonal", "stratonovich"

        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return self.rate * y**5

        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return 0.1 * y * dw

    grads, y0 = [], torch.tensor([[0.1], [3.0], [0.2]], dtype=torch.float64)
    for adjoint in (Discrete(), Backsolve()):
        term, solver = Burst(), Solver(StratonovichHeun(), Grid(n=80), adjoint, lanes="each")
        found = solve(term, y0, 0.0, 1.0, solver, path=Brownian(seed=1), save_at=[0.5, 1.0], throw=False)
        assert found.status.tolist()[1] != 0
        found.ys[[0, 2]].sum().backward()
        grads.append(float(term.rate.grad))
    assert abs(grads[1] - grads[0]) < 0.02 * abs(grads[0])
