"""Equations in the other calculus: drifts against closed forms, solutions against the exact ones."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciml import Solver, solve
from sciml.solvers import Converted, Diffusive, Grid, MatrixDiffusive, StratonovichHeun
from tests.solvers.systems import DTYPE
from tests.solvers.test_stochastic import ARGS, END, Linear, noise_of

Y = torch.tensor([[0.3, -0.8], [1.1, 0.4], [-0.5, 0.9]], dtype=DTYPE)
T = torch.tensor(0.7, dtype=DTYPE)


def entries(t: Tensor, y: Tensor) -> Tensor:
    """A matrix (.., 2, 3) whose columns do not commute."""
    a, b = y.unbind(-1)
    return torch.stack([a * b, b.sin(), t + 0 * a, a**2, a + b, b.exp()], -1).unflatten(-1, (2, 3))


class Products(Diffusive):
    noise_type = "general"

    def __init__(self, calculus: Any):
        self.calculus = calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return t * y.cos()

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return (entries(t, y) @ dw[..., None])[..., 0]


class Matrix(Products, MatrixDiffusive):
    def diffusion(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return entries(t, y)


@pytest.mark.parametrize("kind", [Products, Matrix])
@pytest.mark.parametrize(("origin", "sign"), [("ito", -0.5), ("stratonovich", 0.5)])
def test_correction_of_general_noise_is_that_of_the_jacobian(kind: Any, origin: str, sign: float):
    other = "stratonovich" if origin == "ito" else "ito"
    term = Converted(kind(origin), other, channels=3)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: entries(T, y)))(Y)  # (b, i, l, j)
    right = T * Y.cos() + sign * torch.einsum("bilj,bjl->bi", jacobian, entries(T, Y))
    assert torch.allclose(term.drift(T, Y, ()), right, rtol=1e-14, atol=1e-15)
    back = Converted(term, origin, channels=3)
    assert torch.allclose(back.drift(T, Y, ()), T * Y.cos(), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda y: term.drift(T, y, ()), Y.clone().requires_grad_())


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive", "general"])
def test_correction_of_linear_noise_and_the_solution(noise: str):
    """Half the square of the strength; the solution is that of the Ito equation on the same path."""
    term, strengths = Linear(noise, "ito"), ARGS[1]
    other = Converted(term, "stratonovich", channels=2)
    squares = {
        "diagonal": strengths.diagonal() ** 2,
        "scalar": strengths[:, 0] ** 2,
        "additive": torch.zeros(2, dtype=DTYPE),
        "general": (strengths**2).sum(1),
    }[noise]
    assert torch.allclose(other.drift(T, Y, ARGS), (ARGS[0] - squares / 2) * Y, rtol=1e-14, atol=1e-15)
    y0, path = torch.ones(50, 2, dtype=DTYPE), noise_of(noise, 50)
    right = term.exact(y0, path, ARGS)
    found = solve(other, y0, 0.0, END, Solver(StratonovichHeun(), Grid(n=256)), args=ARGS, path=path).ys
    # an error of order h = 1 / 170 at strengths of 0.5
    assert float((found - right).norm(dim=1).mean()) < 3e-3


def test_conversion_says_what_it_expects():
    with pytest.raises(TypeError, match="term: expected a Diffusive term"):
        Converted(lambda t, y: -y, "ito")  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ValueError, match="to: expected 'ito' or 'stratonovich', got 'strat'"):
        Converted(Linear("diagonal", "ito"), "strat")  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ValueError, match="channels: expected the number of columns"):
        Converted(Products("ito"), "stratonovich")
    same = Converted(Products("ito"), "ito")
    assert torch.equal(same.drift(T, Y, ()), T * Y.cos())
    assert not same.drift(T, Y, ()).requires_grad
    assert math.isfinite(float(same.diffuse(T, Y, torch.ones(3, 3, dtype=DTYPE), ()).sum()))
