"""Two processes on the CPU: each takes its part of every batch."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sciml.training.trainer_cli import quiet
from tests.training.conftest import TINY
from tests.training.running import logged
from tests.training.tiny.videos import judged

ROOT = Path(__file__).parents[2]
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.enable_model_summary=false")
UNEVEN = ("--data.val=5", "--data.test=5", "--model.net.dropout=0")  # each process would draw its own dropout
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32: gradients of parts are summed in another order


def start(*arguments, code=0):
    """A Python program that trains in two processes: Lightning starts it again for the second one."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def fit_in_two(run, *overrides, code=0):
    return start(
        "-m", "sciml", "fit", "--config", TINY, "--run", run, *TWO, "--data.batch_size=2", *overrides, code=code
    )


def checkpoint(run):
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)


def validation(run, metric="val_relative_l2"):
    with open(f"{run}/metrics.csv") as file:
        errors = [row[metric] for row in csv.DictReader(file)]
    return torch.tensor([float(error) for error in errors if error], dtype=torch.float64)


def test_two_processes_train_as_one_does(sciml, fit):
    fit("one", "--data.batch_size=4", *UNEVEN)
    assert fit_in_two("two", *UNEVEN).count("run folder: two") == 2  # at the start and at the end, by the first process
    assert_close(checkpoint("two")["state_dict"], checkpoint("one")["state_dict"], **ROUNDING)
    assert_close(validation("two"), validation("one"), **ROUNDING)  # of parts of different lengths
    *_, two = sciml("test", "two").split()
    *_, one = sciml("test", "one").split()
    assert_close(float(two), float(one), **ROUNDING)
    sciml("predict", "two")


ODE = TINY.with_name("ode.yaml")
RTOL = 1e-3
PID = f"--model.ode.solver.controller={{class_path: sciml.solvers.PID, init_args: {{rtol: {RTOL}, atol: 1e-4}}}}"
EXACT = (0, 1e-9)  # float64: gradients of parts are summed in another order
ODES = {  # overrides; the difference expected, between two bounds
    "grid": ((), EXACT),
    "each": ((PID, "--model.ode.solver.lanes=each"), EXACT),
    "joint": ((PID,), (1e-9, 10 * RTOL)),  # each process chooses the steps for its half of the batch
}


PINN_CONFIG = TINY.with_name("pinn.yaml")
PINN = (  # small enough, its Laplacian estimated, with a condition among the losses
    "--model.equation={class_path: tiny.Ball, init_args: {dim: 6}}",
    "--model.net.init_args.in_features=6",
    "--model.estimator={class_path: sciml.calculus.Sparse, init_args: {samples: 2}}",
    "--model.optimizer={class_path: torch.optim.Adam, init_args: {lr: 0.01}}",
    "--model.candidates=1",
    "--trainer.callbacks=[{class_path: tiny.Weights}]",
)


def weights(run):
    return torch.cat([x.flatten() for name, x in checkpoint(run)["state_dict"].items() if "ode" in name])


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    """A folder with what two processes have come to, all in one program: most of the time goes into its start."""
    folder = tmp_path_factory.mktemp("two")
    odes = ("--config", ODE, *TWO, "--trainer.precision=64-true", "--data.batch_size=2")
    commands = [["fit", "--run", folder / name, *odes, *overrides] for name, (overrides, _) in ODES.items()]
    commands.append(["fit", "--run", folder / "pinn", "--config", PINN_CONFIG, *TWO, *PINN])
    start(TINY.with_name("in_two.py"), folder / "videos.json", json.dumps(commands, default=str))
    return folder


def test_two_processes_train_a_neural_ode_as_one_does(fit, in_two):
    fit("untrained", "--trainer.precision=64-true", "--model.optimizer.lr=0", config=ODE)
    for name, (overrides, _) in ODES.items():
        fit(name, "--trainer.precision=64-true", *overrides, config=ODE)
        one, two = weights(name), weights(in_two / name)
        least, most = ODES[name][1]
        assert one.dtype == torch.float64
        assert least <= (two - one).norm() / (one - weights("untrained")).norm() <= most, name
        assert_close(validation(in_two / name), validation(name), rtol=most, atol=0)


def test_two_processes_judge_videos_as_one_does(in_two):
    two = json.loads((in_two / "videos.json").read_text())
    with quiet():
        one = judged(1)
    assert {"test_loss", "test_blank_mse"} <= set(one)
    assert_close(two, one, **ROUNDING)


@pytest.mark.slow
def test_two_processes_judge_moments_of_paths_as_one_does(fit):
    config = TINY.with_name("neural_sde.yaml")
    solver = "{stepper: sciml.solvers.SRIW1, controller: {class_path: sciml.solvers.Grid, init_args: {n: 8}}}"
    still = ("--data.val=5", "--trainer.max_epochs=1", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0")
    still = (*still, f"--model.sde.solver={solver}")
    start("-m", "sciml", "fit", "--config", config, "--run", "two", *TWO, "--data.batch_size=1", *still)
    fit("one", *still, config=config)
    assert_close(*(validation(run, "val_loss") for run in ("two", "one")), **ROUNDING)


def net(path):
    return torch.cat([x.flatten() for x in torch.load(path, weights_only=True).values()])


def test_two_processes_train_a_pinn_as_one_with_the_points_of_both(fit, in_two):
    assert_points_of_both(fit, in_two / "pinn", PINN)


@pytest.mark.slow
def test_two_processes_train_a_compiled_pinn_as_one_with_the_points_of_both(fit):
    both = (*PINN, "--model.compile=true")
    start("-m", "sciml", "fit", "--config", PINN_CONFIG, "--run", "two", *TWO, *both)
    assert_points_of_both(fit, "two", both)


def assert_points_of_both(fit, run, both):
    text = PINN_CONFIG.read_text().replace("sciml.training.PINNModule", "tiny.Both")
    Path("both.yaml").write_text(f"{text}\ncode_path: {TINY.parent}\n")
    fit("one", *both, config="both.yaml")
    fit("first", *both, config=PINN_CONFIG)
    two, second, one, first = (
        net(f"{path}.pt") for path in (f"{run}/weights0", f"{run}/weights1", "one/weights0", "first/weights0")
    )
    assert torch.equal(two, second)
    assert_close(two, one, rtol=1e-9, atol=1e-12)  # float64: gradients of parts are summed in another order
    assert (first - one).norm() > 1e-3 * one.norm()  # the points of the first process alone
    assert_close(validation(run), validation("one"), rtol=1e-9, atol=0)


@pytest.mark.slow
def test_two_processes_go_on_after_a_signal_as_if_there_had_been_none(sciml):
    fit_in_two("reference")
    fit_in_two("run", "--trainer.callbacks=[{class_path: tiny.Stop, init_args: {step: 7, signal: SIGTERM}}]", code=143)
    assert checkpoint("run")["global_step"] == 7
    start("-m", "sciml", "fit", "--resume", "run", "--trainer.callbacks=null")
    got, expected = checkpoint("run"), checkpoint("reference")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_close(got[part], expected[part], rtol=0, atol=0)
    assert logged("run/metrics.csv") == logged("reference/metrics.csv")
