"""Levy areas of pairs of entries, which a path draws for single steps: their law, and equations that read them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import PID, Brownian, Grid, LogODE, MatrixDiffusive, StratonovichHeun, interop
from tests.solvers.systems import DTYPE

COUNT, END = 40_000, 2.0


class Area(MatrixDiffusive):
    """dx = dW1, dy = dW2, da = (x dW2 - y dW1) / 2, whose last entry is the Levy area of the whole span."""

    noise_type, calculus = "general", "stratonovich"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0 * y

    def diffusion(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        x, y = y[:, 0], y[:, 1]
        one, none = torch.ones_like(x), torch.zeros_like(x)
        return torch.stack([torch.stack(row, -1) for row in ((one, none), (none, one), (-0.5 * y, 0.5 * x))], 1)


def end(steps: int, stepper: object = None, lanes: str = "joint", count: int = COUNT) -> Tensor:
    solver = Solver(stepper or LogODE(), Grid(n=steps), lanes=lanes)
    path = Brownian((count, 2), seed=5, cells=8, dtype=DTYPE)
    return solve(Area(), torch.zeros(count, 3, dtype=DTYPE), 0.0, END, solver, path=path).ys


@pytest.mark.parametrize("steps", [1, 4])
def test_area_of_the_span_has_its_law_however_few_the_steps(steps: int):
    """Levy: variance T^2 / 4, given W (T^2 + T |W|^2) / 12; without areas a quarter and more of it is missing."""
    x, y, a = end(steps).unbind(1)
    for moment, right in ((a, 0.0), (a**2, END**2 / 4), (a**2 * (x**2 + y**2), 5 / 6 * END**3)):
        assert abs(float(moment.mean()) - right) < 4 * float(moment.std()) / COUNT**0.5
    without = end(steps, StratonovichHeun())[:, 2]
    assert float((without**2).mean()) < (1 - 0.8 / steps) * END**2 / 4


def test_kurtosis_of_the_area_tends_to_that_of_its_law():
    """E A^4 = 5 (E A^2)^2, which sums of steps have but for the law within steps, of a sixteenth of the weight."""
    a = end(4)[:, 2]
    kurtosis = float((a**4).mean() / (a**2).mean() ** 2)
    assert abs(kurtosis - 5) < 0.4


def test_a_step_has_one_area_whoever_asks():
    found = end(4, count=7)
    assert torch.equal(end(4, count=7), found)
    assert torch.allclose(end(4, lanes="each", count=7), found, rtol=1e-12, atol=1e-14)
    assert torch.allclose(end(4, count=20)[:7], found, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(end(8, count=7)[:, 2], found[:, 2], atol=1e-3)


def test_gradients_agree_among_adjoints():
    grads = []
    for adjoint in (Discrete(), Discrete("all"), Discrete("every", 2)):
        y0, t1 = torch.ones(5, 3, dtype=DTYPE, requires_grad=True), torch.tensor(END, dtype=DTYPE, requires_grad=True)
        solver = Solver(LogODE(), Grid(n=4), adjoint)
        solve(Area(), y0, 0.0, t1, solver, path=Brownian(shape=(5, 2), seed=1)).ys.square().sum().backward()
        grads.append(torch.cat([y0.grad.reshape(-1), t1.grad.reshape(-1)]))
    for other in grads[1:]:
        assert torch.allclose(other, grads[0], rtol=1e-12)


def test_areas_of_adaptive_steps_and_of_other_shapes_are_refused():
    solver = Solver(LogODE(), Grid(n=4))
    with pytest.raises(ValueError, match="LogODE reads areas of steps of a grid"):
        solve(Area(), torch.zeros(3, 3), 0.0, 1.0, solver, path=Brownian((3, 1, 2)))
    with pytest.raises(ValueError, match="LogODE has no error estimate"):
        Solver(LogODE(), PID())


def test_log_ode_of_the_drop_in_draws_them_too():
    """At times that are no multiple of the step; the variance of the area of the span as above."""

    class Disk:
        noise_type, sde_type = "general", "stratonovich"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return 0 * y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return Area().diffusion(t, y, ())

    np.random.seed(1)  # noqa: NPY002 - the seeds are drawn as torchsde's are
    ys = interop.sdeint(Disk(), torch.zeros(COUNT, 3, dtype=DTYPE), [0.0, 0.7, END], dt=0.5, method="log_ode")
    a = ys[-1, :, 2] ** 2
    assert abs(float(a.mean()) - END**2 / 4) < 4 * float(a.std()) / COUNT**0.5
