"""Training for benchmarks: modules in this process, and preconditioners of examples once, into the cache."""

import hashlib
import os
import resource
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from sciml import load
from sciml.data.generate import cache_folder

ROOT = Path(__file__).parents[1]
SOURCES = ("models", "problems", "solvers/linear", "data/linear_systems.py", "training/preconditioner*.py")


def fitted(module: Any, data: Any, options: dict[str, Any]) -> tuple[Any, float]:
    """The trainer that has trained a module by the options of a configuration, without files, and its CPU seconds."""
    import lightning

    shown = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(**options, **shown)
    began = time.process_time()
    trainer.fit(module, data)
    return trainer, time.process_time() - began


@cache
def trained(example: str, seed: int) -> tuple[nn.Module, float]:
    """The network of an example of preconditioners, and the CPU seconds of its training."""
    config = ROOT / "examples" / example / "config.yaml"
    found = (file for name in SOURCES for file in sorted((ROOT / "sciml").glob(name)))
    files = [x for file in found for x in (sorted(file.glob("*.py")) if file.is_dir() else [file])]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (config, *files))).hexdigest()[:16]
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
