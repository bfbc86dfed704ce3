import math

import pytest
import torch

from sciml.calculus import Laplacian, Unknown
from sciml.problems import AllenCahn, Poisson, SineGordon
from sciml.problems.elliptic import BallEquation
from sciml.problems.equation import uniform_ball

KINDS = (Poisson, AllenCahn, SineGordon)


def points(equation, count=20):
    return equation.sample(count, torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("family", ["two_body", "three_body"])
def test_laplacian_of_the_solution_is_that_of_jets(family, varied):
    equation = Poisson(7, family, varied=varied)
    x = points(equation)
    by_jets = Laplacian()(Unknown())(equation.exact, x)
    torch.testing.assert_close(equation.solution(x)[1], by_jets, rtol=1e-11, atol=1e-11)  # sums of hundreds of terms


@pytest.mark.parametrize("kind", KINDS)
def test_solution_solves_the_equation_and_vanishes_on_the_sphere(kind):
    equation = kind(6, "two_body")
    x = points(equation)
    assert equation.residual()(equation.exact, x).abs().max() < 1e-11
    assert equation.exact(x / x.norm(dim=1, keepdim=True)).abs().max() < 1e-14
    assert equation.exact(x).abs().max() > 0.1


def test_plain_solutions_of_many_dimensions_hardly_vary_and_varied_ones_do():
    """What is left of u / (1 - |x|^2) when its mean is taken off."""
    left = {}
    for varied in (False, True):
        equation = SineGordon(1000, varied=varied)
        x = points(equation, 500)
        shape = equation.exact(x)[:, 0] / (1 - x.square().sum(1))
        left[varied] = (shape.std() / shape.abs().mean()).item()
    assert left[False] < 0.1
    assert left[True] > 0.5


@pytest.mark.parametrize("radial", [True, False])
def test_points_of_the_ball_have_the_radii_that_they_should(radial):
    """Deciles of 20,000 radii, within five standard errors."""
    count, dim = 20_000, 3
    radii = uniform_ball(count, dim, torch.Generator().manual_seed(0), radial).norm(dim=1)
    uniform = radii if radial else radii**dim
    share = torch.stack([(uniform <= q / 10).float().mean() for q in range(1, 10)])
    assert (share - torch.arange(1, 10) / 10).abs().max() < 5 * 0.5 / math.sqrt(count)


def test_points_outside_and_of_other_dimensions_are_refused():
    equation = Poisson(3)
    x = torch.zeros(4, 3)
    equation.check(x)
    x[2, 0] = 1.5
    with pytest.raises(ValueError, match=r"points: 1 of 4 lie outside of the domain of Poisson, the first is point 2"):
        equation.check(x)
    with pytest.raises(ValueError, match=r"points: expected \(b, 3\) for Poisson, got \(4, 2\)"):
        equation.check(x[:, :2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1,), "dim: expected at least 2 for two_body, got 1"), ((5, "one_body"), "family: expected 'two_body' or")],
)
def test_wrong_families_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Poisson(*arguments)


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("family", ["two_body", "three_body"])
def test_net_of_a_solution_is_of_the_size_one_at_every_dimension(family, varied):
    """Where it hardly varies, it is the same inside as on the sphere, but for x . grad of it; else of that order."""
    for dim in (10, 1000, 10_000):
        equation = SineGordon(dim, family, seed=1, varied=varied)
        x = points(equation, 50)
        net = equation.exact(x) / equation.output(x, torch.ones(len(x), 1))
        size = net.square().median().sqrt()
        assert (0.1 < size < 3) if varied or dim == 10 else (0.95 < size < 1.05)


def test_equations_of_ones_own_may_set_up_after_their_base_class_and_react_at_zero():
    class Own(BallEquation):
        def __init__(self, dim, k):
            super().__init__(dim)
            self.k = k

        def g(self, u):
            return self.k * torch.cos(u)

    assert Own(10, 1000.0).size == Poisson(10).size


def test_points_are_made_whatever_the_default_device():
    with torch.device("meta"):
        equation = Poisson(10, varied=True)
    assert equation.size.device.type == equation.c.device.type == "cpu"
