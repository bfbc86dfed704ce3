import torch

from sciml import PID, Solver, solve
from sciml.problems import Conduction, Diffusion, FiniteElements, HeatConduction, Lognormal
from sciml.solvers import CG, Dense, Kvaerno5
from sciml.solvers.linear import FSAI, Jacobi
from sciml.training.solution import draw_solution

DTYPE = torch.float64


def test_solution_falls_as_the_eigenvector_does():
    """On a grid without a coefficient sines are eigenvectors, of (4 / h^2) sum sin^2(k pi h / 2)."""
    problem = HeatConduction(Diffusion(cells=12), t1=0.1, rtol=1e-7)
    x, y = problem.coordinates()
    wave = ((2 * torch.pi * x).sin()[:, None] * (torch.pi * y).sin())[None, None]
    ts = torch.tensor([0.0, 0.04, 0.1], dtype=DTYPE)
    rates = torch.tensor([2.0, 1.0], dtype=DTYPE)
    rate = 4 * 12**2 * (rates * torch.pi / 24).sin().square().sum()
    exact = (-rate * ts).exp()[None, :, None, None, None] * wave[:, None]
    assert (problem.evolve(wave, ts) - exact).abs().max() < 1e-6  # ten tolerances


def test_grids_are_drawn_on_the_unit_square_and_in_the_cube_by_their_middle_plane():
    for dimension in (2, 3):
        problem = HeatConduction(Diffusion(cells=5, dimension=dimension))
        field = problem.initial(1, torch.Generator().manual_seed(0), DTYPE)
        image = draw_solution(problem, torch.linspace(0, 0.05, 4), field.expand(4, *field.shape[1:])).axes[0].images[0]
        expected = field[0, 0] if dimension == 2 else field[0, 0, :, :, 2]
        assert torch.from_numpy(image.get_array().data).equal(expected.T)
        torch.testing.assert_close(torch.tensor(image.get_extent()), torch.tensor([0.0, 1.0, 0.0, 1.0]))


def test_a_mesh_without_triangles_is_drawn_point_by_point():
    problem = HeatConduction(FiniteElements(cells=2))
    field = torch.tensor([1.0, 0.5, 0.25, 0.125]).reshape(4, 1, 1)
    figure = draw_solution(problem, torch.linspace(0, 0.05, 4), field)
    panels = [axes.collections[0] for axes in figure.axes[:4]]
    assert [panel.get_array().tolist() for panel in panels] == [[1.0], [0.5], [0.25], [0.125]]
    assert torch.from_numpy(panels[0].get_offsets().data).equal(problem.mesh_points())


def test_solution_on_a_mesh_is_of_second_order_and_drawn_over_its_points():
    ts = torch.tensor([0.0, 0.05], dtype=DTYPE)
    errors = []
    for cells in (8, 16):
        problem = HeatConduction(FiniteElements(cells=cells), rtol=1e-6)
        points = problem.mesh_points()
        exact = (torch.pi * points).sin().prod(1) * (-2 * torch.pi**2 * ts).exp()[:, None]  # (t, n)
        found = problem.evolve(exact[None, :1], ts)[0, :, 0]
        errors.append((found - exact)[1].norm() / exact[1].norm())
    assert 3 < errors[0] / errors[1] < 5.5  # 4, but for other meshes
    assert errors[1] < 0.02
    figure = draw_solution(problem, torch.linspace(0, 0.05, 4), found[[0, 0, 1, 1], None])
    panels = [axes.collections[0].get_array() for axes in figure.axes[:4]]
    assert all(panel.tolist() == field.tolist() for panel, field in zip(panels, found[[0, 0, 1, 1]], strict=True))
    generator = torch.Generator().manual_seed(0)
    one, other = (
        HeatConduction(space).initial(2, generator.manual_seed(0), DTYPE) for space in (Diffusion(), problem.space)
    )
    assert other.shape == (2, 1, 225)
    centres = torch.cartesian_prod(*HeatConduction().coordinates())
    nearest = torch.cdist(points, centres).argmin(1)
    assert (other - one.flatten(2)[..., nearest]).abs().mean() < 0.05 * one.abs().max()  # the same functions


def test_samples_are_solved_together_as_alone_and_by_any_linear_solver():
    space = Diffusion(cells=10, coefficient=Lognormal(contrast=50.0))
    generator = torch.Generator().manual_seed(0)
    u0 = HeatConduction(space).initial(3, generator, DTYPE)
    assert u0.shape == (3, 1, 10, 10)
    ts = torch.tensor([0.05], dtype=DTYPE)
    evolved = [HeatConduction(space, linear=linear).evolve(u0, ts) for linear in (None, CG(FSAI()), Dense())]
    for other in evolved[1:]:
        assert (other - evolved[0]).abs().max() < 1e-4 * u0.abs().max()  # the tolerance
    alone = HeatConduction(space).evolve(u0[1:2], ts)
    assert (alone - evolved[0][1:2]).abs().max() < 1e-4 * u0.abs().max()


def test_gradient_to_the_stiffness_is_that_of_differences():
    space = Diffusion(cells=4).discretise(0)
    term, y0 = Conduction(space), torch.sin(torch.arange(16, dtype=DTYPE))
    solver = Solver(Kvaerno5(linear=CG(Jacobi(), rtol=1e-13), rtol=1e-11, atol=1e-13), PID(rtol=1e-4, atol=1e-6))
    values = term.stiffness.compressed.values.clone().requires_grad_()
    mesh = solve(term, y0, 0.0, 0.02, solver, args=(values.detach(),)).mesh
    up = term.stiffness.compressed.turned[2]
    end = lambda v: solve(term, y0, 0.0, 0.02, solver, args=((v + v[up]) / 2,), mesh=mesh).ys  # noqa: E731
    (gradient,) = torch.autograd.grad(end(values).square().sum(), values)
    way = torch.cos(torch.arange(len(values), dtype=DTYPE))
    step = 1e-5
    with torch.no_grad():
        ends = [end(values + sign * step * way).square().sum() for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * step)
    assert abs(float(gradient @ way - difference)) < 1e-6 * abs(float(difference))  # of the second order in the step
