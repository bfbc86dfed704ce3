import torch

from sciml import PID, Solver, solve
from sciml.problems import Conduction, Diffusion, HeatConduction, Lognormal
from sciml.solvers import CG, Dense, Kvaerno5
from sciml.solvers.linear import FSAI, Jacobi

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
