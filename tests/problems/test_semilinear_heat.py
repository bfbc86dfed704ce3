import pytest
import torch

from sciml.problems import SemilinearHeat, semilinear_heat
from sciml.problems.reaction_diffusion import T1


@pytest.mark.parametrize("space", [1, 3, 10])
def test_solution_solves_the_equation(space):
    """Through its expansion, whose second derivatives have some 1e-9 times 49^2 of its error."""
    equation = SemilinearHeat(space)
    x = equation.sample(30, torch.Generator().manual_seed(0)).double()
    x[:, 0] = 0.02 + 0.9 * x[:, 0]
    u = lambda x: equation.exact(x)  # noqa: E731
    by_autograd = torch.func.vmap(torch.func.hessian(lambda x: u(x[None])[0, 0]))(x)
    slope = torch.func.vmap(torch.func.grad(lambda x: u(x[None])[0, 0]))(x)
    laplacian = by_autograd.diagonal(dim1=1, dim2=2)[:, 1:].sum(1)
    assert (slope[:, 0] - laplacian - equation.reaction(u(x)[:, 0])).abs().max() < 1e-5


@pytest.mark.parametrize("space", [2, 10, 100])
def test_solution_is_that_of_duhamels_formula(space):
    """u(T, 0) = E g(sqrt(2 T) Z) + int E f(u(T - s, sqrt(2 s) Z)) ds, by 2e5 samples: five standard errors."""
    equation, count = SemilinearHeat(space), 200_000
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, space, generator=generator, dtype=torch.float64)
    s = T1 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    points = torch.cat([T1 - s, (2 * s).sqrt() * z], 1)
    start = equation.initial(torch.cat([0 * s, (2 * T1) ** 0.5 * z], 1))
    samples = start + T1 * equation.reaction(equation.exact(points)[:, 0])
    found = equation.exact(equation.landmarks()["centre"].point.double()).item()
    error = samples.std() / count**0.5
    assert error < 3e-4 * found
    assert abs(samples.mean() - found) < 5 * error


@pytest.mark.parametrize("space", [1, 10, 100])
def test_solution_is_resolved(space, monkeypatch):
    equation = SemilinearHeat(space)
    x = equation.sample(1000, torch.Generator().manual_seed(0)).double()
    coarse = equation.exact(x)
    monkeypatch.setattr(semilinear_heat, "NODES", 65)
    monkeypatch.setattr(semilinear_heat, "TIMES", 49)
    monkeypatch.setattr(semilinear_heat, "radial", semilinear_heat.radial.__wrapped__)
    assert (equation.exact(x) - coarse).abs().max() < 1e-9


def test_solution_starts_at_the_initial_values_and_so_does_the_output():
    equation = SemilinearHeat(5)
    condition = equation.conditions()["initial"]
    x = condition.sample(40, torch.Generator().manual_seed(0)).double()
    equation.check(x)
    assert condition.residual(equation.exact, x).abs().max() < 1e-9
    net = lambda x: equation.output(x, x.sum(1, keepdim=True))  # noqa: E731
    assert condition.residual(net, x).abs().max() < 1e-15


@pytest.mark.parametrize("space", [10, 100])
def test_output_is_close_to_the_solution_but_for_a_constant(space):
    """Where the points are. From the bare initial values it would be 9 % and 31 % of the solution away."""
    equation = SemilinearHeat(space)
    x = equation.sample(5000, torch.Generator().manual_seed(0))
    exact, t = equation.exact(x), x[:, :1]
    difference = exact - equation.output(x, 0 * t)
    constant = (difference * t).sum() / t.square().sum()
    assert (difference - constant * t).norm() < 0.02 * exact.norm()
