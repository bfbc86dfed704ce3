import math

import pytest
import torch

from sciml.problems import Burgers, BurgersDirichlet


def test_solution_is_that_of_the_spectral_solver():
    """-sin(pi x) is odd and of period 2, so that the walls change nothing."""
    equation = BurgersDirichlet()
    periodic = Burgers(points=2048, length=2.0, nu=equation.nu, dt=1e-3, t1=0.5)
    grid = periodic.coordinates()[0].double()
    ts = torch.tensor([0.2, 0.5], dtype=torch.float64)
    spectral = periodic.evolve(-torch.sin(math.pi * grid)[None, None], ts)[0, :, 0]
    for t, field in zip(ts, spectral, strict=True):
        x = torch.stack([t.expand(len(grid)), torch.where(grid > 1, grid - 2, grid)], 1)
        assert (equation.exact(x)[:, 0] - field).abs().max() < 1e-7  # of the solver at this dt


def test_solution_meets_the_conditions_and_so_does_the_output():
    equation = BurgersDirichlet()
    generator = torch.Generator().manual_seed(0)
    for name, condition in equation.conditions().items():
        x = condition.sample(50, generator).double()
        assert x[:, 0].min() >= 0, name
        assert condition.residual(equation.exact, x).abs().max() < 1e-12, name
        net = lambda x: equation.output(x, torch.cos(7 * x.sum(1, keepdim=True)))  # noqa: E731
        assert condition.residual(net, x).abs().max() < 1e-14, name


def test_residual_of_the_solution_vanishes():
    """Through the quadrature, in float64: second derivatives of the shock are some 1e4."""
    equation = BurgersDirichlet(nu=0.02)
    x = equation.sample(40, torch.Generator().manual_seed(3)).double()
    x[:, 0] = 0.05 + 0.9 * x[:, 0]
    assert equation.residual()(lambda x: equation._exact(x), x).abs().max() < 1e-9


def test_points_fill_the_rectangle():
    x = BurgersDirichlet().sample(4000, torch.Generator().manual_seed(0))
    assert (x.amin(0) - torch.tensor([0.0, -1.0])).abs().max() < 0.01
    assert (x.amax(0) - 1).abs().max() < 0.01
    assert BurgersDirichlet().inside(x).all()


def test_viscosity_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"nu: expected \.002 or more"):
        BurgersDirichlet(nu=1e-4)
