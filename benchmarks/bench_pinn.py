"""Training steps of physics-informed networks on the Sine-Gordon equation in the ball, with estimated derivatives.

A step draws 100 points, estimates the Laplacian from 16 coordinates of each point, evaluates the right-hand side and
takes a step of Adam (fused) with an MLP d-128-128-128-1 of tanh, in float32, under Lightning's trainer.

In a million dimensions a fresh process takes a few steps, plain or with a first layer that shares its weights over
blocks of 50 coordinates: the peak of its resident memory, and CPU seconds of the last step.

"gPINN" trains in 100 dimensions with .1 |grad r|^2 in the loss, compiled, beside plain training with as many steps and
with twice as many, which take a little more time: steps per CPU second without compilation, and the relative L2 error
at 20,000 points. The learning rate falls linearly from 1e-3 to 0.
"""

import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from sciml.calculus import Sparse
from sciml.data import Collocation
from sciml.models import MLP, SharedInput
from sciml.problems import SineGordon
from sciml.training import PINNModule
from sciml.training.trainer_cli import quiet

STEPS, DIM = 3, 1_000_000
GRADIENT = "gPINN, d 100, 2000 steps"
BLOCKS = {f"step, d {DIM}": 1, f"step, d {DIM}, block 50": 50}


def cases() -> list[str]:
    return [*BLOCKS, GRADIENT]


def run(case: str, seed: int) -> dict[str, float | str]:
    return gradient(seed) if case == GRADIENT else memory(case, seed)


def memory(case: str, seed: int) -> dict[str, float | str]:
    command = [sys.executable, __file__, str(BLOCKS[case]), str(seed)]
    peak, seconds = subprocess.check_output(command, text=True).split()
    return {"peak GiB": float(peak) / 2**20, "step CPU s": float(seconds)}


def module(dim: int, block: int = 1, **options: Any) -> PINNModule:
    net = MLP(-(-dim // block), 1, width=128, depth=3)
    net = net if block == 1 else nn.Sequential(SharedInput(block), net)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True)  # noqa: E731
    return PINNModule(SineGordon(dim, seed=1000), net, estimator=Sparse(16), optimizer=adam, **options)


def trainer(**options: Any) -> lightning.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(accelerator="cpu", devices=1, num_sanity_val_steps=0, **off, **options)


class Clock(Callback):
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.process_time() - self.began)


def steps(block: int, seed: int) -> None:
    """Print the peak of the resident memory in KiB, and the seconds of the last of a few steps."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    clock = Clock()
    with quiet():
        trainer(max_epochs=1, limit_val_batches=0, callbacks=[clock]).fit(module(DIM, block), Collocation(steps=STEPS))
    print(peak_kib(), clock.seconds[-1])


def gradient(seed: int) -> dict[str, float | str]:
    row: dict[str, float | str] = {}
    for name, steps, weight in (("gPINN", 2000, 0.1), ("plain", 2000, 0.0), ("plain twice", 4000, 0.0)):
        lightning.seed_everything(seed, verbose=False)
        torch._dynamo.reset()
        clock, data = Clock(), Collocation(steps=steps)
        falling = partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=steps)
        with quiet():
            run = trainer(max_epochs=1, limit_val_batches=0, callbacks=[clock])
            run.fit(module(100, gradient_weight=weight, compile=True, scheduler=falling), data)
            (metrics,) = run.test(run.model, data, verbose=False)
        row |= {f"{name} steps/s": 1 / median(clock.seconds), f"{name} error": metrics["test_relative_l2"]}
        row["best constant"] = metrics["test_baseline"]
    return row


def peak_kib() -> int:
    """The peak of this process's resident memory; getrusage would count its parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1])


if __name__ == "__main__":
    steps(*map(int, sys.argv[1:]))
