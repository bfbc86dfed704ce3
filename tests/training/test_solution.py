import pytest
import torch

from sciml.problems import NavierStokes
from sciml.training.solution import draw_solution


class Shifted(NavierStokes):
    """Its square is [-2, 2]^2."""

    def coordinates(self):
        return (torch.arange(-2, 2, 4 / self.points),) * 2


def test_planes_are_drawn_where_their_coordinates_lie():
    problem = Shifted(points=16, t1=1.0)
    figure = draw_solution(problem, problem.times(3), torch.zeros(4, 1, 16, 16))
    for axes in figure.axes[:4]:
        assert axes.images[0].get_extent() == pytest.approx([-2, 2, -2, 2])
