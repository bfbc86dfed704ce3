"""Two processes on the CPU: each takes its part of every batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.training.conftest import TINY

ROOT = Path(__file__).parents[2]
UNEVEN = ("--data.val=5", "--data.test=5", "--model.net.dropout=0")  # each process would draw its own dropout
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32: gradients of parts are summed in another order


def ddp(*arguments, code=0):
    """A command that trains in two processes."""
    done = subprocess.run(
        [sys.executable, "-m", "sciml", "fit", *map(str, arguments), "--trainer.enable_model_summary=false"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def fit_in_two(run, *overrides, code=0):
    devices = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2")
    return ddp("--config", TINY, "--run", run, *devices, *overrides, code=code)


def checkpoint(run):
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)


def validation(run):
    with open(f"{run}/metrics.csv") as file:
        return torch.tensor([float(row["val_relative_l2"]) for row in csv.DictReader(file) if row["val_relative_l2"]])


def test_two_processes_train_as_one_does(sciml, fit):
    fit("one", "--data.batch_size=4", *UNEVEN)
    assert fit_in_two("two", *UNEVEN).count("run folder: two") == 2  # at the start and at the end, by the first process
    assert_close(checkpoint("two")["state_dict"], checkpoint("one")["state_dict"], **ROUNDING)
    assert_close(validation("two"), validation("one"), **ROUNDING)  # of parts of different lengths
    *_, two = sciml("test", "two").split()
    *_, one = sciml("test", "one").split()
    assert_close(float(two), float(one), **ROUNDING)
    sciml("predict", "two")


@pytest.mark.slow
def test_two_processes_go_on_after_a_signal_as_if_there_had_been_none(sciml):
    fit_in_two("reference")
    fit_in_two("run", "--trainer.callbacks=[{class_path: tiny.Stop, init_args: {step: 7, signal: SIGTERM}}]", code=143)
    assert checkpoint("run")["global_step"] == 7
    ddp("--resume", "run", "--trainer.callbacks=null")
    got, expected = checkpoint("run"), checkpoint("reference")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_close(got[part], expected[part], rtol=0, atol=0)
    assert Path("run/metrics.csv").read_text() == Path("reference/metrics.csv").read_text()
