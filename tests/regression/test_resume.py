"""Runs that are killed at random moments and resumed; `SCIML_RESUME_TRIALS=20` for the full count."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sciml.training import MetricsLogger, RunFolder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "training" / "tiny" / "config.yaml"
TRIALS = int(os.environ.get("SCIML_RESUME_TRIALS", "3"))
STEPS = 216  # 12 epochs of 18 batches
SETTINGS = ("--trainer.max_epochs=12", "--data.batch_size=1", "--checkpoint.every_n_steps=7")
# the second where the signal comes before or after the training itself, so that there is nothing to save
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,)}


def sciml(folder, *arguments):
    """A training process."""
    return subprocess.Popen(
        [sys.executable, "-m", "sciml", "fit", *map(str, arguments), "--trainer.enable_progress_bar=false"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def new(folder, workers):
    return sciml(folder, "--config", TINY, "--run", "run", f"--data.workers={workers}", *SETTINGS)


def finish(process):
    _, error = process.communicate()
    assert process.returncode == 0, error


def wait_for(process, run, rows):
    """Wait until a run has logged so many rows."""
    while process.poll() is None and len(MetricsLogger(run.metrics).rows()) < rows:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Uninterrupted runs with 0 and 2 workers."""
    runs = {workers: tmp_path_factory.mktemp("reference") for workers in (0, 2)}
    for workers, folder in runs.items():
        finish(new(folder, workers))
    return {workers: RunFolder(folder / "run") for workers, folder in runs.items()}


@pytest.mark.slow
@pytest.mark.regression
@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_run_resumes_to_the_same_bits(references, trial, tmp_path):
    workers, number, chance = 2 * (trial % 2), list(CODES)[trial % 3], random.Random(trial)
    run, reference = RunFolder(tmp_path / "run"), references[workers]
    process = new(tmp_path, workers)
    wait_for(process, run, chance.randrange(STEPS - 20))
    time.sleep(chance.uniform(0, 0.1))
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode in CODES[number], error

    stood = torch.load(run.last, weights_only=True)["global_step"] if run.last.is_file() else 0
    logged = len(MetricsLogger(run.metrics).rows())
    print(f"trial {trial}: {number.name}, {workers} workers, {logged} rows, checkpoint of step {stood}")
    finish(sciml(tmp_path, "--resume", "run"))
    for got, expected in ((run.last, reference.last), (run.best, reference.best)):
        got, expected = (torch.load(path, weights_only=True) for path in (got, expected))
        assert got["global_step"] == expected["global_step"]
        for name, weight in expected["state_dict"].items():
            assert torch.equal(got["state_dict"][name], weight), name
    assert run.metrics.read_text() == reference.metrics.read_text()
    assert not list(run.path.rglob("*.partial"))
