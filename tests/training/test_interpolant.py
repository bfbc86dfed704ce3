import pytest
import torch

from sciml import Grid, Solver
from sciml.data import Moons
from sciml.models import MLP, StochasticInterpolant, TimeDependent
from sciml.solvers import RK4
from sciml.training import InterpolantModule
from tests.training.running import train


def module(**options):
    torch.manual_seed(0)
    field = TimeDependent(MLP(3, 2, width=32, depth=3, activation="gelu"))
    flow = StochasticInterpolant(field, 2, solver=Solver(RK4(), Grid(n=8)), **options)
    return InterpolantModule(flow, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))


@pytest.mark.parametrize("coupling", ["independent", "optimal"])
def test_training_gets_below_a_normal_distribution_and_solves_nothing(tmp_path, coupling):
    data = Moons(train=512, val=64, test=512, batch_size=128)
    metrics, rows = train(module(coupling=coupling), data, tmp_path, epochs=20)
    assert metrics["test_nll"] < metrics["test_gaussian"] - 0.2  # with three seeds .29 to .38
    assert "train_nfe" not in rows[0]
    assert metrics["test_nfe"] == 4 * 8


def test_noise_is_a_function_of_the_step():
    model = module()
    model.log = model.log_dict = lambda *args, **kwargs: None
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    losses = [model.training_step([x], step).item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_validation_has_the_same_noise_in_every_epoch(tmp_path):
    model = module()
    model.make_optimizer = lambda p: torch.optim.SGD(p, lr=0.0)
    _, rows = train(model, Moons(train=8, val=64, test=8), tmp_path, epochs=2)
    losses = [row["val_loss"] for row in rows if row.get("val_loss")]
    assert len(losses) == 2
    assert losses[0] == losses[1]
