"""Differential-algebraic systems: constraints at saved times and at the start."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciml import Grid, Solver, solve
from sciml.solvers import PID, KenCarp4, Kvaerno3, Kvaerno5, Rodas5P, Term
from sciml.solvers.linear import DenseOperator, LinearOperator
from tests.solvers.systems import DTYPE

ONE = torch.diag(torch.tensor([1.0, 0.0], dtype=DTYPE))


class Power(Term):
    """x' = -z, 0 = z - x^3, solved by x = (1 + 2 t)^(-1/2); ``matrix`` in the place of the mass."""

    def __init__(self, matrix: Any = ONE):
        self.matrix = matrix

    def mass(self, args: tuple[Tensor, ...]) -> Tensor | LinearOperator:
        return self.matrix

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        x, z = y.unbind(-1)
        return torch.stack([-z, z - x**3], -1)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize(("stepper", "order"), [(Kvaerno3, 3), (Kvaerno5, 4), (KenCarp4, 4), (Rodas5P, 4)])
def test_unknowns_without_a_slope_are_between_steps_of_their_order(stepper: type, order: int, lanes: Any):
    y0 = torch.ones(2 if lanes == "joint" else (1, 2), dtype=DTYPE)
    errors = []
    for n in (32, 64):
        ts = torch.linspace(0, 1, 4 * n + 1, dtype=DTYPE)
        found = solve(Power(), y0, 0.0, 1.0, Solver(stepper(), Grid(n=n), lanes=lanes), save_at=ts).ys
        errors.append((found[..., 1].reshape(-1) - (1 + 2 * ts) ** -1.5).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.3


def test_samples_with_masses_of_their_own_are_as_alone():
    y0, ts = torch.ones(2, 2, dtype=DTYPE), torch.linspace(0, 1, 41, dtype=DTYPE)
    solver = Solver(Kvaerno5(), Grid(n=8), lanes="each")
    both = solve(Power(torch.stack([ONE, torch.eye(2, dtype=DTYPE)])), y0, 0.0, 1.0, solver, save_at=ts).ys
    alone = [solve(Power(m), y0[:1], 0.0, 1.0, solver, save_at=ts).ys[0] for m in (ONE, torch.eye(2, dtype=DTYPE))]
    assert torch.allclose(both, torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("stepper", [Kvaerno5, Rodas5P])
@pytest.mark.parametrize("mass", [ONE, DenseOperator(ONE, 1)], ids=["tensor", "operator"])
def test_start_that_is_far_from_the_constraints_is_refused(stepper: type, mass: Any, lanes: Any):
    y0 = torch.tensor([1.0, 50.0], dtype=DTYPE) if lanes == "joint" else torch.tensor([[1, 1], [1.0, 50.0]]).to(DTYPE)
    sample = "" if lanes == "joint" else " of sample 1"
    expected = f"y0: 50 in component 1{sample} does not meet .* gives 49, expected 0; about 1 meets it"
    for controller in (PID(1e-6, 1e-8), Grid(n=4)):
        with pytest.raises(ValueError, match=expected):
            solve(Power(mass), y0, 0.0, 1.0, Solver(stepper(), controller, lanes=lanes))


def test_start_within_tolerances_of_the_constraints_goes_on():
    for z, controller in ((1 + 1e-5, PID(1e-6, 1e-8)), (1 + 1e-3, PID())):
        found = solve(Power(), torch.tensor([1.0, z], dtype=DTYPE), 0.0, 1.0, Solver(Rodas5P(), controller))
        assert (found.ys - torch.tensor([3**-0.5, 3**-1.5], dtype=DTYPE)).abs().max() < 1e-3


@pytest.mark.parametrize("mass", [ONE, None])
def test_mass_that_is_no_method_is_told(mass: Any):
    class Wrong(Power):
        pass

    Wrong.mass = mass if mass is not None else lambda self: ONE  # pyrefly: ignore[bad-assignment]
    with pytest.raises(TypeError, match=r"term: expected a method mass\(args\)"):
        solve(Wrong(), torch.ones(2, dtype=DTYPE), 0.0, 1.0, Solver(Rodas5P()))
