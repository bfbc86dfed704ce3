"""Runs that are killed at random moments and resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sciml.training import MetricsLogger, RunFolder
from tests.training.running import logged

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "training" / "tiny" / "config.yaml"
STEPS = 216  # 12 epochs of 18 batches
SETTINGS = ("--trainer.max_epochs=12", "--data.batch_size=1", "--checkpoint.every_n_steps=7")
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")
TRIALS = [0, *(pytest.param(trial, marks=pytest.mark.slow) for trial in range(1, 21))]


def sciml(folder, *arguments):
    """A training process."""
    return subprocess.Popen(
        [sys.executable, "-m", "sciml", "fit", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(folder, workers):
    return sciml(folder, "--config", TINY, "--run", "run", f"--data.workers={workers}", *SETTINGS)


def finish(process, code=0):
    _, error = process.communicate()
    assert process.returncode == code, error


def wait_for(process, run, rows):
    """Wait until a run has logged so many rows."""
    while process.poll() is None and len(MetricsLogger(run.metrics).rows()) < rows:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Makes an uninterrupted run with so many workers, once."""

    @cache
    def run(workers):
        folder = tmp_path_factory.mktemp("reference")
        finish(start(folder, workers))
        return RunFolder(folder / "run")

    return run


@pytest.mark.regression
@pytest.mark.parametrize("trial", TRIALS)
def test_killed_run_resumes_to_the_same_bits(reference, trial, tmp_path):
    workers, number, chance = 2 * (trial % 2), list(CODES)[trial % 3], random.Random(trial)
    run, whole = RunFolder(tmp_path / "run"), reference(workers)
    process = start(tmp_path, workers)
    wait_for(process, run, chance.randrange(1, STEPS - 40))
    time.sleep(chance.uniform(0, 0.05))
    process.send_signal(number)
    finish(process, CODES[number])

    stood = torch.load(run.last, weights_only=True)["global_step"] if run.last.is_file() else 0
    rows = len(MetricsLogger(run.metrics).rows())
    print(f"trial {trial}: {number.name}, {workers} workers, {rows} rows, checkpoint of step {stood}")
    finish(sciml(tmp_path, "--resume", "run"))
    for got, expected in ((run.last, whole.last), (run.best, whole.best)):
        got, expected = (torch.load(path, weights_only=True) for path in (got, expected))
        assert_close([got[name] for name in STATES], [expected[name] for name in STATES], rtol=0, atol=0)
    assert logged(run.metrics) == logged(whole.metrics)
    assert not list(run.path.rglob("*.partial*"))
