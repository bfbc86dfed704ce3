"""What steppers of Stratonovich equations are besides convergent (`test_stochastic`): second order, reversible."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    Brownian,
    Diffusive,
    Final,
    Grid,
    Steps,
    StratonovichHeun,
    StratonovichMidpoint,
    StratonovichReversibleHeun,
)
from sciml.solvers.stochastic import Stochastic
from tests.solvers.systems import DTYPE
from tests.solvers.test_stochastic import ARGS, END, NOISES, STEPS, Linear, name


@pytest.mark.parametrize("stepper", [StratonovichHeun(), StratonovichMidpoint()], ids=name)
def test_second_order_without_noise(stepper: Stochastic):
    """y' = y cos t, the diffusion zero."""

    class Still(Diffusive):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return y * torch.cos(t)

        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return 0 * dw

    term = Still()
    term.calculus = "stratonovich"
    y0, missed = torch.ones(1, 1, dtype=DTYPE), []
    for n in STEPS:
        end = solve(term, y0, 0.0, END, Solver(stepper, Grid(n=n)), path=Brownian(seed=0)).ys
        missed.append(abs(float(end) - math.exp(math.sin(END))))
    assert 1.9 < -np.polyfit(np.log(STEPS), np.log(missed), 1)[0] < 2.1


@pytest.mark.parametrize(("saves", "kind"), [(None, "joint"), ([0.75, END, 0.0], "joint"), ([0.75, END, 0.0], "each")])
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE], ids=str)
@pytest.mark.parametrize("noise", NOISES)
def test_inverted_gradient_is_that_of_backpropagation(
    noise: str, dtype: torch.dtype, saves: list[float] | None, kind: str
):
    """To 20 units in the last place times the root of the number of steps, relative to the whole gradient."""
    count, steps, grads = 16, 400 if kind == "joint" else 40, []
    path = Brownian((count, 1 if noise == "scalar" else 2), 3)
    folds = None if saves is None else {"steps": Steps(), "final": Final()}
    for adjoint in (Discrete(), Discrete("invert")):
        args = tuple(x.to(dtype, copy=True).requires_grad_() for x in ARGS)
        y0 = torch.ones(count, 2, dtype=dtype, requires_grad=True)
        solver = Solver(StratonovichReversibleHeun(), Grid(n=steps), adjoint, lanes=kind)
        term = Linear(noise, "stratonovich")
        s = solve(term, y0, 0.0, END, solver, args=args, path=path, save_at=saves, folds=folds)
        loss = s.ys.square().mean()
        if saves is not None:
            loss = loss + s.folds["steps"].ys.square().mean() + s.folds["final"].square().mean()
        grads.append(torch.cat([x.reshape(-1) for x in torch.autograd.grad(loss, [y0, *args])]))
    missed = (grads[1] - grads[0]).norm() / grads[0].norm()
    assert float(missed) < 20 * torch.finfo(dtype).eps * math.sqrt(steps)
