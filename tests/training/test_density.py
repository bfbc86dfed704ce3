import h5py
import pytest
import torch
from torch.testing import assert_close

from sciml import Grid, Solver, load
from sciml.data import Moons
from sciml.models import CNF, MLP, TimeDependent
from sciml.solvers import RK4
from sciml.training import DensityModule, density
from tests.training.running import train


def module(**options):
    torch.manual_seed(0)
    field = TimeDependent(MLP(3, 2, width=32, depth=3, activation="tanh"))
    flow = CNF(field, 2, Solver(RK4(), Grid(n=4)), **options)
    return DensityModule(flow, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_training_gets_below_a_normal_distribution_and_logs_its_work(tmp_path, divergence):
    data = Moons(train=512, val=64, test=512, batch_size=128)
    metrics, rows = train(module(divergence=divergence), data, tmp_path, epochs=20)
    assert metrics["test_loss"] < metrics["test_gaussian"] - 0.2  # with this seed 0.4
    steps = [row for row in rows if row["train_nfe"]]
    assert {(float(row["train_accepted"]), float(row["train_rejected"])) for row in steps} == {(4, 0)}
    assert metrics["test_nfe"] == 4 * 4


def test_normal_distribution_has_the_density_of_its_maximum_likelihood(tmp_path):
    data, model = Moons(train=200, val=8, test=300), module()
    metrics, _ = train(model, data, tmp_path)
    (x,), (tests,) = data.part("train"), data.part("test")
    normal = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.t(), correction=0))
    assert metrics["test_gaussian"] == pytest.approx(-normal.log_prob(tests).mean().item(), rel=1e-5)


def test_densities_are_of_the_points_own_units(tmp_path):
    data, model = Moons(train=200, val=8, test=8), module()
    train(model, data, tmp_path)
    cells = torch.cartesian_prod(torch.linspace(-5, 6, 221), torch.linspace(-4, 5, 181))  # .05 wide
    with torch.no_grad():
        shares = model(cells).exp() * 0.05**2
        samples = model.density.sample(4000, torch.Generator().manual_seed(0))
    assert shares.sum().item() == pytest.approx(1, abs=2e-3)  # four steps of RK4
    error = (samples.mean(0) - shares @ cells).abs()
    assert (error < 4 * samples.std(0) / 4000**0.5 + 5e-3).all()  # standard errors, and what the integral may miss


def test_noise_of_a_step_is_a_function_of_the_step():
    model, losses = module(divergence="hutchinson"), []
    model.log = model.log_dict = lambda *args, **kwargs: None
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    for step in (0, 0, 1):
        torch.randn(3)  # the global generator has no say
        losses.append(model.training_step([x], step).item())
    assert losses[0] == losses[1] != losses[2]


def test_points_of_another_dimension_are_refused(tmp_path):
    torch.manual_seed(0)
    model = DensityModule(CNF(TimeDependent(MLP(4, 3)), 3))
    with pytest.raises(ValueError, match=r"dim: expected that of the data's points \(2,\), got 3"):
        train(model, Moons(train=8, val=8, test=8), tmp_path)


CONFIG = """
data:
  class_path: sciml.data.Moons
  init_args: {train: 256, val: 32, test: 48, batch_size: 128}
model:
  class_path: sciml.training.DensityModule
  init_args:
    flow:
      class_path: sciml.models.CNF
      init_args:
        field:
          class_path: sciml.models.TimeDependent
          init_args:
            net:
              class_path: sciml.models.MLP
              init_args: {in_features: 3, out_features: 2, width: 8, activation: tanh}
        dim: 2
        divergence: hutchinson
        solver:
          stepper: {class_path: sciml.solvers.RK4}
          controller: {class_path: sciml.solvers.Grid, init_args: {n: 2}}
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


INTERPOLANT = CONFIG.replace("DensityModule", "InterpolantModule").replace("models.CNF", "models.StochasticInterpolant")


@pytest.mark.parametrize("config", [CONFIG, INTERPOLANT], ids=["likelihood", "interpolant"])
def test_density_goes_through_the_command_line(sciml, tmp_path, monkeypatch, config):
    monkeypatch.setattr(density, "CELLS", 10)
    (tmp_path / "my.yaml").write_text(config)
    sciml("fit", "--config", "my.yaml", "--run", "run")
    for command, part in (("validate", "val"), ("test", "test")):
        told = sciml(command, "run")
        assert f"{part}_loss: " in told
        assert f"{part}_gaussian: " in told
    for command in ("predict", "plot", "export"):
        sciml(command, "run")
    assert (tmp_path / "run" / "figures" / "density.png").is_file()
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        points, expected, samples = (torch.from_numpy(file[name][...]) for name in ("points", "log_prob", "samples"))
    assert samples.shape == points.shape == (48, 2)
    program = torch.export.load(tmp_path / "run" / "model.pt2").module()
    assert_close(program(points), expected, rtol=1e-5, atol=1e-5)  # float32 round-off
    assert_close(load("run")(points), expected, rtol=1e-5, atol=1e-5)
