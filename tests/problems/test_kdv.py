import pytest
import torch

from sciml.problems import Box, KdV2D


@pytest.mark.parametrize(("k", "l"), [(0.8, 0.6), (1.2, -0.5)])
def test_kink_solves_the_equation(k, l):  # noqa: E741
    equation = KdV2D(k, l)
    x = equation.sample(50, torch.Generator().manual_seed(0)).double()
    assert equation.residual()(equation.exact, x).abs().max() < 1e-12  # of terms of order ten


def test_conditions_are_those_of_the_kink_and_the_output_meets_the_first():
    equation = KdV2D()
    generator = torch.Generator().manual_seed(0)
    for name, condition in equation.conditions().items():
        x = condition.sample(40, generator).double()
        equation.check(x)
        assert condition.residual(equation.exact, x).abs().max() < 1e-14, name
    x = equation.conditions()["initial"].sample(40, generator).double()
    output = equation.output(x, torch.randn(40, 1, dtype=x.dtype))
    torch.testing.assert_close(output, equation.exact(x), rtol=1e-14, atol=1e-14)


def test_sides_and_planes_of_a_box():
    equation = KdV2D()
    x = equation.side(1, 1)(10, torch.Generator().manual_seed(0))
    assert (x[:, 1] == 3).all()
    plane = equation.plane(11)
    assert plane.labels == ("x", "y")
    assert equation.inside(plane.points).all()
    assert (plane.points[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KdV2D(l=0.0), "l: expected a wave number that is not zero, got 0"),
        (lambda: Box.__init__(KdV2D(), (0.0,), (0.0,), ("t",)), "lower, upper: expected lower < upper"),
        (lambda: Box.__init__(KdV2D(), (0.0,), (1.0, 2.0), ("t",)), "lower, upper, names: expected as many of each"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
