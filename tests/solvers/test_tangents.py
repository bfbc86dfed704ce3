"""Forward-mode differentiation: tangents of the discrete solution flow through eager steps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml import Solver, solve
from sciml.solvers import PID, Grid, Kvaerno5, Rodas5P, Tsit5
from sciml.solvers.linear import GMRES
from tests.solvers.registry import STEPPERS, Case
from tests.solvers.systems import DTYPE, Net

STEADY = [c for c in STEPPERS if c.stepper.dense and not isinstance(c.stepper, Rodas5P)]
Y0 = torch.tensor([[0.3, -0.8], [1.1, 0.4]], dtype=DTYPE)
WAY = torch.tensor([[0.2, 0.5], [-0.7, 0.1]], dtype=DTYPE)
WEIGHTS = torch.tensor([[1.0, -0.6], [0.3, 0.9]], dtype=DTYPE)
# Both ways run the same float64 operations. Iterated stages take their tangents from the iteration, which ends at a
# hundredth of the step's tolerance.
SAME, ITERATED = 1e-12, 1e-5


def tangent(solver: Solver, field: Any, gradients: bool = True) -> Tensor:
    with torch.set_grad_enabled(gradients), forward_ad.dual_level():
        ys = solve(field, forward_ad.make_dual(Y0, WAY), 0.0, 0.7, solver).ys
        return forward_ad.unpack_dual(ys).tangent


def transposed(solver: Solver, field: Any) -> Tensor:
    """The same derivative along the weights, backward."""
    y0 = Y0.clone().requires_grad_()
    ys = solve(field, y0, 0.0, 0.7, solver).ys
    return (torch.autograd.grad((ys * WEIGHTS).sum(), y0)[0] * WAY).sum()


def agree(solver: Solver, field: Any, gradients: bool = True) -> None:
    found, right = tangent(solver, field, gradients).detach(), transposed(solver, field)
    close = ITERATED if hasattr(solver.stepper, "iterations") else SAME
    assert abs(float((found * WEIGHTS).sum() - right)) <= close


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("case", STEADY, ids=str)
def test_tangents_are_those_of_the_backward_pass(case: Case, gradients: bool):
    field = (lambda t, y: torch.stack([y[..., 1], -(y[..., 0] + t).sin()], -1)) if "V" in str(case) else Net()
    agree(Solver(case.stepper, Grid(n=7), lanes="each"), field, gradients)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("stepper", [Tsit5(), Kvaerno5()], ids=lambda s: type(s).__name__)
def test_tangents_are_those_of_frozen_steps(stepper: Any, lanes: Any):
    agree(Solver(stepper, PID(1e-6, 1e-6), lanes=lanes), lambda t, y: -y - 0.1 * y.sin())


@pytest.mark.parametrize("stepper", [Rodas5P(), Kvaerno5(linear=GMRES())], ids=lambda s: type(s).__name__)
def test_steps_that_use_tangents_themselves_say_that_there_are_no_others(stepper: Any):
    with pytest.raises(RuntimeError, match="forward mode AD is not supported"):
        tangent(Solver(stepper, PID()), Net())


@pytest.mark.parametrize("compile", ["chunks", "loop"])
def test_compiled_solves_are_eager_where_there_are_tangents(compile: Any):
    frozen = Net().requires_grad_(requires_grad=False)
    found, right = (tangent(Solver(None, PID(), compile=c), frozen) for c in (compile, None))
    assert torch.equal(found, right)


@pytest.mark.parametrize("compile", ["chunks", "loop"])
def test_compiled_solves_of_modules_with_weights_have_tangents(compile: Any):
    found, right = (tangent(Solver(None, PID(), compile=c), Net()).detach() for c in (compile, None))
    assert torch.allclose(found, right, rtol=1e-12)


def test_iterated_stages_refuse_derivatives_of_tangents():
    with forward_ad.dual_level():
        y0 = Y0.clone().requires_grad_()
        ys = solve(Net(), forward_ad.make_dual(y0, WAY), 0.0, 0.7, Solver(Kvaerno5(), Grid(n=5))).ys
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(forward_ad.unpack_dual(ys).tangent.sum(), y0)
