"""Preconditioners that examples train, once for each state of the code that they depend on, into the cache."""

import hashlib
import os
import resource
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from torch import nn

from sciml import load
from sciml.data.generate import cache_folder

ROOT = Path(__file__).parents[1]
SOURCES = (
    "solvers/linear/aggregation",
    "problems/finite_elements",
    "problems/implicit_steps",
    "models/learned_two_level",
    "models/matrix_features",
    "models/matrix_network",
    "models/network_kernels",
    "models/two_level_kernels",
    "data/linear_systems",
    "training/preconditioner_losses",
)


@cache
def trained(example: str, seed: int) -> tuple[nn.Module, float]:
    """The network of an example of preconditioners, and the CPU seconds of its training."""
    config = ROOT / "examples" / example / "config.yaml"
    files = [config, *(ROOT / "sciml" / f"{name}.py" for name in SOURCES)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    folder = cache_folder() / f"{example}-{digest}-{seed}"
    done = folder / "seconds.txt"
    if not done.is_file():
        options = ["--run", str(folder), "--seed_everything", str(seed), "--trainer.enable_progress_bar=false"]
        if (folder / "checkpoints").is_dir():
            folder.rename(folder.with_name(f"{folder.name}-{time.time_ns()}"))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "sciml", "fit", "--config", str(config), *options]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        done.write_text(str(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return load(folder), float(done.read_text())
