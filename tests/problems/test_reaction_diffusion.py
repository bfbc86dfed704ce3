import pytest
import torch

from sciml.problems import AllenCahnHeat, SemilinearHeat
from sciml.problems.reaction_diffusion import T1

KINDS = (SemilinearHeat, AllenCahnHeat)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_is_the_equation(kind):
    """Against autograd, of some function of the points."""
    equation = kind(3)
    x = equation.sample(20, torch.Generator().manual_seed(0)).double()
    u = lambda x: torch.sin(x[..., 0] * x[..., 1]) + x[..., 2] ** 2 * x[..., 3] * x[..., 0]  # noqa: E731
    slope = torch.func.vmap(torch.func.grad(u))(x)
    laplacian = torch.func.vmap(torch.func.hessian(u))(x).diagonal(dim1=1, dim2=2)[:, 1:].sum(1)
    reaction = {SemilinearHeat: (1 - u(x) ** 2) / (1 + u(x) ** 2), AllenCahnHeat: u(x) * (1 - u(x) ** 2)}[kind]
    torch.testing.assert_close(equation.residual()(u, x), slope[:, 0] - laplacian - reaction)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_values_are_those_of_the_papers(kind):
    x = torch.tensor([[7.0, 1.0, -2.0], [0.0, -3.0, -0.5]])
    expected = {SemilinearHeat: [5 / 20, 5 / 28.5], AllenCahnHeat: [torch.pi / 4, -0.46364761]}[kind]
    torch.testing.assert_close(kind(2).initial(x), torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_those_of_a_diffusion_that_gets_to_the_centre(kind):
    """Variances of 2 (T - t), within five standard errors of 4e4 squares."""
    equation, generator = kind(10), torch.Generator().manual_seed(0)
    inner, start = equation.sample(4000, generator), equation.conditions()["initial"].sample(4000, generator)
    for x in (inner, start):
        equation.check(x)
        variance = 2 * (T1 - x[:, :1])
        assert abs((x[:, 1:].square() / variance).mean() - 1) < 5 * (2 / 4e4) ** 0.5
    assert not start[:, 0].any()
    assert abs(inner[:, 0].mean() - T1 / 2) < 5 * T1 / (12 * 4000) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_picture_is_of_places_where_points_are(kind):
    """|x|^2 / (2 (T - t)) is that of 100 normal numbers, within five standard deviations, but for t = T."""
    equation = kind(100)
    points = equation.plane(11).points
    equation.check(points)
    assert not points[-11:, 1:].any()
    scaled = points[:-11, 1:].square().sum(1) / (2 * (T1 - points[:-11, 0]))
    assert (scaled - 100).abs().max() < 5 * 200**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_named(kind):
    with pytest.raises(ValueError, match="space: expected at least one dimension, got 0"):
        kind(0)
    with pytest.raises(ValueError, match=f"1 of 1 lie outside of the domain of {kind.__name__}"):
        kind(2).check(torch.tensor([[0.31, 0.0, 0.0]]))
