import math
from functools import partial

import pytest
import torch
from torch import nn

from sciml.calculus import Partial, Unknown
from sciml.data import Collocation
from sciml.models import MLP
from sciml.problems import Box, measured
from sciml.problems.measurements import Measurements
from sciml.training import PINNModule
from tests.training.test_pinn import fit

u, dt = Unknown(), Partial(0)


def test_measurements_are_known_at_their_points_and_drawn_alike():
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[7] = points[3] + 1e-6  # apart in single precision too
    points[9] = points[8]  # measured twice
    values = torch.arange(50, dtype=torch.float64)
    table = Measurements(points, values)
    right = values.clone()
    right[8:10] = 8.5
    for x in (points, points.float()):
        assert torch.equal(table(x), right.to(x))
    drawn = table.sample(120, torch.Generator().manual_seed(1))
    counts = torch.bincount(table(drawn).mul(2).long())
    assert {2, 3} <= {*counts.tolist()} - {0} <= {2, 3, 4, 5, 6}
    assert counts[17] in (4, 5, 6)  # of the point that was measured twice
    assert not torch.equal(drawn, table.sample(120, torch.Generator().manual_seed(2)))


def test_points_that_single_precision_does_not_tell_apart_are_one():
    points = torch.tensor([[0.1], [0.1 + 1e-9], [0.5]], dtype=torch.float64)
    table = Measurements(points, torch.tensor([1.0, 3.0, 7.0]))
    assert table(table.sample(9, torch.Generator())).sort().values.tolist() == [2.0] * 6 + [7.0] * 3


class Decay(Box):
    """u' = -k u on (0, 2), measured at twenty times."""

    def __init__(self) -> None:
        super().__init__([0.0], [2.0], ["t"])
        self.k = nn.Parameter(torch.tensor(0.3))

    def residual(self):
        return dt(u) + self.k * u

    def conditions(self):
        ts = torch.linspace(0.05, 1.9, 20)[:, None]
        return {"data": measured(u, ts, 1.5 * torch.exp(-1.2 * ts[:, 0]))}


def test_unknown_number_is_found_from_measurements(tmp_path):
    torch.manual_seed(0)
    search = partial(torch.optim.LBFGS, lr=1.0, max_iter=30, line_search_fn="strong_wolfe")
    model = PINNModule(Decay(), MLP(1, 1, width=8, depth=2), optimizer=search)
    data = Collocation(points=30, boundary=20, steps=20, hold=20, val=20, test=20)
    fit(model, tmp_path, data, precision="64-true")
    assert model.equation.k.item() == pytest.approx(1.2, abs=1e-3)  # it began at .3; the data are exact


@pytest.mark.parametrize(
    ("points", "values", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"points: expected \(n, d\) with at least one, got \(3,\)"),
        (torch.zeros(0, 2), torch.zeros(0), r"points: expected \(n, d\) with at least one, got \(0, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, 1), r"values: expected \(3,\), one for each point, got \(3, 1\)"),
        (torch.zeros(3, 2), torch.full((3,), math.nan), "values: expected finite numbers"),
    ],
)
def test_mistakes_are_named(points, values, message):
    with pytest.raises(TypeError, match="values: expected a tensor, got list"):
        measured(u, torch.zeros(1, 2), [0.0])
    with pytest.raises(ValueError, match=message):
        measured(u, points, values)
