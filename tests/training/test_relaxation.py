import json

import h5py
import pytest
import torch

from sciml import load
from sciml.data import SystemSequence
from sciml.problems import Diffusion, Heat, Wave
from sciml.solvers.linear import LearnedOmega
from sciml.training import RelaxationModule
from tests.training.running import train

CONFIG = """
data:
  class_path: sciml.data.SystemSequence
  init_args:
    family:
      class_path: sciml.problems.Heat
      init_args:
        space: {class_path: sciml.problems.Diffusion, init_args: {cells: 8}}
        dt: [1.0e-3, 1.0]
    train: 12
    val: 3
    test: 4
model:
  class_path: sciml.training.RelaxationModule
  init_args:
    sweeps: sor
    omega:
      class_path: sciml.solvers.linear.LearnedOmega
      init_args: {context: [-7.0, 0.0]}
trainer:
  {max_epochs: 2, log_every_n_steps: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_steps_are_solved_in_their_order_and_learned_from(tmp_path):
    """With contexts at most 10 % above the best of the grid for each of the later systems, and below the best fixed."""
    data = SystemSequence(Heat(Diffusion(cells=10), dt=(1e-3, 1.0)), train=60, val=3, test=20)
    module = RelaxationModule(LearnedOmega(context=(-7.0, 0.0)), sweeps="sor")
    metrics, rows = train(module, data, tmp_path)
    assert metrics["test_iterations"] < 1.1 * metrics["test_best_for_each"]
    assert metrics["test_iterations"] < metrics["test_best_fixed"] < metrics["test_first"]
    steps = [row for row in rows if row["train_iterations"]]
    assert [float(row["train_iterations"]) for row in steps] == module.omega.iterations
    assert len(steps) == 60
    dts = [system.dt for part in ("train", "val", "test") for system in data.part(part)]
    assert dts == [system.dt for system in data.family.steps(0, 83)]


def test_systems_without_contexts(tmp_path):
    data = SystemSequence(Wave(Diffusion(cells=8), dt=0.3), train=8, val=2, test=2)
    metrics, _ = train(RelaxationModule(LearnedOmega("tsallis-inf")), data, tmp_path)
    assert metrics["test_best_for_each"] <= metrics["test_best_fixed"] <= metrics["test_iterations"]
    with pytest.raises(ValueError, match="train: expected at least 1"):
        SystemSequence(Wave(), train=0)


def test_relaxation_goes_through_the_command_line_and_resumes(sciml, tmp_path):
    """Stopped in the middle of an epoch and resumed, it is as if it had not been."""
    (tmp_path / "my.yaml").write_text(CONFIG)
    sciml("fit", "--config", "my.yaml", "--run", "run")
    stop = json.dumps([{"class_path": "tests.training.tiny.tiny.Stop", "init_args": {"step": 17, "signal": "SIGTERM"}}])
    sciml("fit", "--config", "my.yaml", "--run", "stopped", f"--trainer.callbacks={stop}", code=143)
    sciml("fit", "--resume", "stopped", "--trainer.callbacks=[]")
    whole, resumed = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("run", "stopped"))
    assert len(whole["state_dict"]["_extra_state"]["iterations"]) == 24
    assert whole["state_dict"] == resumed["state_dict"]
    assert "test_best_for_each: " in sciml("test", "run")
    for command in ("predict", "plot", "export"):
        sciml(command, "run")
    assert (tmp_path / "run" / "figures" / "relaxation.png").is_file()
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        dt, omega = (torch.from_numpy(file[name][...]).double() for name in ("dt", "omega"))
    program = torch.export.load(tmp_path / "run" / "model.pt2").module()
    assert torch.equal(program(dt.log()), load("run")(dt.log()))
    assert (program(dt.log()) - omega).abs().max() < 0.06  # a neighbour of the grid, at the border between two
