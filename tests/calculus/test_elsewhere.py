"""Derivatives at points on another device than the host's, against those on the host."""

from typing import Any

import pytest
import torch

from sciml.calculus import Dense, Estimator, Sparse, Unknown, hutchinson, solution_coefficients, value_and_divergence
from tests.calculus.nets import Ball, Features, Periodic, net, points
from tests.calculus.test_stde import OPERATORS
from tests.elsewhere import agree
from tests.solvers.systems import Net


@pytest.mark.parametrize("estimator", [None, Sparse(4), Sparse(4, shared=True), Dense(4, law="gaussian")], ids=str)
@pytest.mark.parametrize("kind", [Ball, Features, Periodic])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_elsewhere(name: str, kind: type[torch.nn.Module], estimator: Estimator | None):
    if isinstance(estimator, Dense) and name in ("u_xxy", "kdv"):
        pytest.skip("dense samples are for Laplacians, their like and biharmonics")
    expression = OPERATORS[name][0](Unknown())

    def make(device: torch.device) -> tuple[Any, ...]:
        f, x = net(kind, 4).to(device), points(5, 4).to(device)
        draw = estimator and estimator.draw(expression, x, torch.Generator(device).manual_seed(0))
        found = expression(f, x, draw)
        return found, *torch.autograd.grad(found.square().mean(), list(f.parameters()), allow_unused=True)[:1]

    agree(make)


def test_divergence_and_coefficients_of_a_solution_elsewhere():
    def make(device: torch.device) -> tuple[Any, ...]:
        f, y, t = Net().to(device), points(5, 2).to(device), torch.zeros((), dtype=torch.float64, device=device)
        probes = torch.ones_like(y)
        exact = value_and_divergence(lambda y: f(t, y), y)
        return *exact, hutchinson(lambda y: f(t, y), y, probes), *solution_coefficients(f, t, y, 4)

    agree(make)
