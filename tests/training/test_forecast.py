import math

import pytest
import torch
from torch.testing import assert_close

from sciml import Grid, Solver
from sciml.data import OperatorData, TensorFields
from sciml.models import FNO, MLP, ForecastInterpolant
from sciml.problems import Burgers, RandomlyForced
from sciml.solvers import EulerMaruyama
from sciml.training import ForecastModule, crps, spread
from tests.training.running import train


def module(net=None, steps=16, **options):
    torch.manual_seed(0)
    net = MLP(3, 1, width=32, depth=2, activation="gelu") if net is None else net
    return ForecastModule(
        ForecastInterpolant(net, steps=steps), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), **options
    )


def pairs(train=512, test=512):
    """x1 = x0 / 2 + 3 + .4 z, in units of their own."""
    generator = torch.Generator().manual_seed(0)
    count = train + test + 8
    state = 2 + torch.randn(count, 1, generator=generator)
    later = state / 2 + 3 + 0.4 * torch.randn(count, 1, generator=generator)
    return TensorFields(state, later, train=train, val=8, test=test, batch_size=128)


def test_scores_are_their_definitions():
    """CRPS as an integral over steps of the empirical distribution, less its bias; of one member the distance."""
    generator = torch.Generator().manual_seed(0)
    members, target = torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.zeros(3)
    apart = (members[:, None] - members).abs().sum((0, 1))
    expected = members.abs().mean(0) - apart / (2 * 5 * 4)
    assert_close(crps(members, target), expected)
    assert_close(crps(members[:1], target), members[0].abs())
    assert_close(spread(members), 1.2 * members.var(0))


@pytest.mark.parametrize("count", [2, 8])
def test_scores_of_right_forecasts_are_the_same_for_any_number_of_them(count):
    """Of a normal distribution against itself the CRPS is 1 / sqrt(pi), within 4 standard errors of .0013."""
    drawn = torch.randn(count + 1, 200_000, generator=torch.Generator().manual_seed(1))
    assert abs(float(crps(drawn[1:], drawn[0]).mean()) - 1 / math.sqrt(math.pi)) < 0.006
    assert float((drawn[1:].mean(0) - drawn[0]).square().mean() / spread(drawn[1:]).mean()) == pytest.approx(
        1, abs=0.02
    )


def test_forecasts_are_as_good_as_can_be(tmp_path):
    """The best CRPS is .4 / sqrt(pi) = .2257, the best squared error .16, and .17 of a mean of 16."""
    model = module(MLP(3, 1, width=64, depth=3, activation="gelu"))
    model.make_scheduler = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    metrics, rows = train(model, pairs(2048), tmp_path, epochs=40)
    assert 0.2 < metrics["test_crps"] < 0.24
    assert metrics["test_mse"] == pytest.approx(0.17, rel=0.12)  # of 512 states, within 2 standard errors
    assert metrics["test_spread"] == pytest.approx(0.17, rel=0.12)
    assert 0.3 < metrics["test_crps_climate"] < 0.45
    assert metrics["test_persistence"] == pytest.approx(2.0, rel=0.1)
    assert set(rows[0]) == {"epoch", "step", "seconds", "train_loss", "val_loss", *metrics}


def test_fields_of_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path))
    problem = RandomlyForced(Burgers(points=32, nu=0.05, dt=0.05, t1=0.4))
    data = OperatorData(problem, start=0.2, train=16, val=8, test=8, batch_size=8)
    model = module(FNO(3, 1, [6], width=8, layers=2), steps=3, members=3)
    metrics, _ = train(model, data, tmp_path, epochs=2)
    assert set(metrics) == {f"test_{name}" for name in ("loss", "crps", "persistence", "mse", "spread", "crps_climate")}
    found = model.predict_step(data.part("test"), 0)
    assert found["forecasts"].shape == (8, 3, 1, 32)
    assert [name for name, _ in model.pictures(data)] == ["forecasts", "spectrum"]
    states, normal = model.example_inputs(data)
    free = [{axis: torch.export.Dim.AUTO for axis in range(x.ndim) if axis != 1} for x in (states, normal)]
    exported = torch.export.export(model.predictor().eval(), (states, normal), dynamic_shapes=tuple(free)).module()
    for points in (32, 25):
        normal = torch.randn(5, 3, 2, 1, points, generator=torch.Generator().manual_seed(0))
        states = data.inputs[:5, :, :points]
        assert_close(exported(states, normal), model.predictor()(states, normal))


def test_noise_is_a_function_of_the_step(monkeypatch):
    model = module()
    model.log = model.log_dict = lambda *args, **kwargs: None
    batch = pairs().fields()
    losses = [model.training_step(batch, step).item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    monkeypatch.setattr(ForecastModule, "current_epoch", 1)
    assert model.training_step(batch, 0).item() not in losses


def test_exports_draw_by_the_steps_of_the_model():
    data = pairs()
    data.setup("fit")
    assert module().example_inputs(data)[1].shape == (2, 16, 2, 1)
    model = ForecastModule(ForecastInterpolant(MLP(3, 1), steps=7))
    assert model.example_inputs(data)[1].shape == (2, 7, 2, 1)
    own = ForecastInterpolant(MLP(3, 1), solver=Solver(EulerMaruyama(), Grid(n=9)))
    with pytest.raises(ValueError, match="solver: an export draws by the interpolant's own steps, expected None"):
        ForecastModule(own).example_inputs(data)
    assert not list(model.pictures(data))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"members: expected \(m, ..\) for a target \(6,\), of real numbers"):
        crps(torch.randn(4, 6, 1), torch.randn(6))
    with pytest.raises(ValueError, match="members: expected at least 2, got 1"):
        spread(torch.randn(1, 6))
    with pytest.raises(ValueError, match="members: expected at least 2, got 1"):
        module(members=1)
    data = TensorFields(torch.zeros(8, 1, 4), torch.zeros(8, 2, 4), train=6, val=1, test=1)
    with pytest.raises(ValueError, match=r"data: expected later states of the states' shape \(1, 4\), got \(2, 4\)"):
        train(module(), data, tmp_path)
