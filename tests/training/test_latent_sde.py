import csv
import json

import h5py
import pytest
import torch

import sciml as library
from sciml.data import Observed, TrajectoryData
from sciml.models import LatentDynamics, LatentFSDE, LatentSDE
from sciml.problems import FractionalOrnsteinUhlenbeck, OrnsteinUhlenbeck
from sciml.solvers import PID, SRIW1
from sciml.solvers.solve import Solver
from sciml.training import LatentSDEModule
from tests.training.conftest import TINY
from tests.training.running import train

CONFIG = TINY.with_name("latent_sde.yaml")


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_commands_run_and_name_what_they_found(fit, sciml, tmp_path):
    fit("run", config=CONFIG)
    printed = sciml("test", "run")
    assert all(name in printed for name in ("test_loss", "test_kl", "test_mean_error", "test_std_error"))
    sciml("predict", "run")
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        assert file["predictions"].shape == (4, 6, 1)
    sciml("plot", "run")
    error = sciml("export", "run", code=2)
    assert error.splitlines()[-1].startswith("sciml: there is no export of LatentSDEModule; `sciml.load` gives the")
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"posterior", "samples", "learning_curve"} <= figures
    smoother = library.load(tmp_path / "run")
    ts = torch.linspace(0, 4, 6, dtype=torch.float64)
    assert smoother(ts, torch.randn(3, 6, 1)).shape == smoother.sample(3, ts).shape == (3, 6, 1)
    work = [row for row in rows(tmp_path / "run") if row["train_nfe"]]
    assert all(float(row["train_accepted"]) >= 5 for row in work)  # a step at least to each time


def test_resumed_run_is_the_uninterrupted_one(fit, sciml, tmp_path):
    """Noise is drawn as a function of seed and step."""
    fit("whole", config=CONFIG)
    fit("half", "--trainer.max_epochs=1", config=CONFIG)
    sciml("fit", "--resume", "half", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "half")
    ]
    assert json.dumps(sorted(states[0])) == json.dumps(sorted(states[1]))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_loss_in_training_weighs_the_divergence_by_the_epoch():
    torch.manual_seed(0)
    module = LatentSDEModule(LatentSDE(1, latent=1, context=2, width=4), warm_up=4)
    module.log = lambda *args, **kwargs: None
    ys = torch.randn(3, 4, 1)
    batch = Observed(torch.linspace(0, 1, 4), ys, torch.ones_like(ys, dtype=torch.bool))
    fit = module.latent.posterior(batch, 7)
    for weight in (0.25, 1.0):
        right = (weight * fit.kl - fit.log_likelihood).sum() / 12
        assert torch.equal(module._step("val", batch, 7, weight), right)


def test_times_may_lie_anywhere():
    torch.manual_seed(0)
    module = LatentSDEModule(LatentSDE(1, latent=1, context=2, width=4))
    ys = torch.randn(3, 4, 1)
    ts, mask = torch.linspace(0, 1, 4, dtype=torch.float64), torch.ones_like(ys, dtype=torch.bool)
    right = module.latent(ts, ys)
    for start, length in ((-4.0, 4.0), (-9.0, 2.0), (100.0, 0.5)):
        module.latent.fit(Observed(start + length * ts, ys, mask))
        module.latent.state.mean.zero_()
        module.latent.state.std.fill_(1)
        assert torch.allclose(module.latent(start + length * ts, ys), right, atol=1e-5)


def test_fractional_equation_is_told_beside_the_law_of_the_process(tmp_path):
    torch.manual_seed(0)
    module = LatentSDEModule(LatentFSDE(1, LatentDynamics(1, 4, 8, steps=1), width=8))
    problem = FractionalOrnsteinUhlenbeck(hurst=0.8)
    data = TrajectoryData(problem, points=5, train=40, val=4, test=30, batch_size=40)
    metrics, _ = train(module, data, tmp_path)
    assert metrics["test_hurst"] == pytest.approx(0.5, abs=0.01)  # after one step
    ts, ys, _ = data.part("test")
    units = module.latent.state
    right = -problem.log_evidence(ts, ys).mean() / 6 - units.std.log().mean()
    assert metrics["test_least_loss"] == pytest.approx(float(right), rel=1e-5)
    assert metrics["test_least_loss"] < metrics["test_loss"]


@pytest.mark.slow
def test_module_learns_the_law_of_a_process(tmp_path):
    torch.manual_seed(0)
    solver = Solver(SRIW1(), PID(rtol=5e-2, atol=5e-2))
    model = LatentSDE(1, latent=2, context=16, width=32, diffusion=3.0, solver=solver)
    module = LatentSDEModule(model, warm_up=10, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    data = TrajectoryData(OrnsteinUhlenbeck(t1=2.0), points=10, train=500, val=20, test=1000, batch_size=250)
    metrics, _ = train(module, data, tmp_path, epochs=300)
    assert metrics["test_mean_error"] < 0.25  # .09 to .11 for three seeds
    assert metrics["test_std_error"] < 0.25  # .07 to .13
