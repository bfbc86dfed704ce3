import torch
from torch.testing import assert_close

from sciml.problems import Spiral


def test_spiral_without_damping_keeps_its_quartic():
    problem = Spiral(damping=0.0, t1=2.0)
    u0 = problem.initial(4, torch.Generator().manual_seed(0), torch.float64)
    u = problem.evolve(u0, problem.times(10))
    quartic = (u**4).sum(-1)
    assert_close(quartic, quartic[:, :1].expand_as(quartic), rtol=1e-4, atol=0)  # rtol 1e-6 over about 100 steps


def test_spiral_decays_and_turns_counterclockwise():
    problem = Spiral(t1=1.0)
    u0 = problem.initial(8, torch.Generator().manual_seed(0), torch.float64)
    assert u0.norm(dim=1).min() >= 1
    assert u0.norm(dim=1).max() <= 2
    u = problem.evolve(u0, problem.times(20))
    assert ((u**4).sum(-1).diff(dim=1) < 0).all()
    du = problem.drift(torch.tensor(0.0), u0, ())
    assert (u0[:, 0] * du[:, 1] - u0[:, 1] * du[:, 0] > 0).all()
