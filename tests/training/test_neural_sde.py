import h5py
import lightning
import torch

import sciml as library
from tests.training.conftest import TINY
from tests.training.running import logged


def test_commands_run_and_name_what_they_found(fit, sciml, tmp_path):
    fit("run", config=TINY.with_name("neural_sde.yaml"))
    printed = sciml("test", "run")
    assert all(name in printed for name in ("test_loss", "test_mean_error", "test_std_error", "test_nfe"))
    sciml("predict", "run")
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        assert file["predictions"].shape == (4, 5, 2)
    sciml("plot", "run")
    assert {"paths.png", "learning_curve.png"} <= {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    flow = library.load(tmp_path / "run")
    ts = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert flow(torch.ones(3, 2), ts, 1).shape == (3, 5, 2)


def test_stepper_that_can_tell_how_stiff_the_drift_is_does(fit):
    controller = "--model.sde.solver.controller={class_path: sciml.solvers.PID, init_args: {rtol: 0.01, atol: 0.01}}"
    stepper = "--model.sde.solver.stepper=sciml.solvers.SOSRI2"
    fit("run", stepper, controller, config=TINY.with_name("neural_sde.yaml"))
    rows = logged("run/metrics.csv")
    assert any(float(row["val_stiffness"] or 0) > 0 for row in rows)
    assert "train_stiffness" not in rows[0]


def test_noise_is_that_of_the_step_in_every_evaluation_of_a_closure():
    module = library.training.TrainingModule()
    assert module.noise_seed(0) != module.noise_seed(0)  # in a loop of one's own
    module.trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    seeds = [module.noise_seed(batch) for batch in (0, 0, 1, 1, 0)]
    assert seeds[0] == seeds[1]
    assert seeds[2] == seeds[3]
    assert len(set(seeds)) == 3
