"""What a GPU is for: solves as replayed chunks beside eager ones, a million dimensions, a million unknowns.

Solves are those of ode_compiled, float32, at rtol = atol = 1e-5; "eager", "chunks" (replayed as CUDA graphs) and
torchdiffeq's dopri5 in turn, wall milliseconds to the end of the device's work. "waits" is whether a chunk waits for
the device: one runs under `torch.cuda.set_sync_debug_mode("error")`. "chunks vs eager" is eager's time over that of
chunks, "difference" the root mean square between the two.

A million dimensions and five: the Sine-Gordon equation in the ball as in `bench_pinn`, compiled, 10,000 steps, wall
seconds without compilation, peak memory of the device, relative L2 error at 20,000 points and that of the best
constant.

"pcg" has 10^6 unknowns in the plane with jumps of 10^3: iterations and wall seconds of a solve to 1e-8, set-up apart,
of Jacobi, of FSAI with aggregates and of the learned preconditioner (the network is `trained` where it is not in the
cache).
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import lightning
import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from bench_ode_compiled import Network, VanDerPol
from bench_pinn import module
from bench_two_level import FAMILIES, system
from sciml import PID, Solver, Tsit5, solve
from sciml.data import Collocation
from sciml.solvers import compiled
from sciml.solvers.linear import Jacobi, pcg
from sciml.training.trainer_cli import quiet
from timing import interleaved
from trained import trained

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = {
    "2-64-64-2, batch 128": ([2, 64, 64, 2], 128, 2.0),
    "2-64-64-2, batch 65536": ([2, 64, 64, 2], 65536, 2.0),
    "64-256-256-64, batch 512": ([64, 256, 256, 64], 512, 1.5),
}
OSCILLATORS = "Van der Pol, 256 lanes"
DIMENSIONS = {"1,000,000 dimensions": (10**6, 1), "5,000,000 dimensions, block 50": (5 * 10**6, 50)}
TOLERANCE, REPEATS, STEPS = 1e-5, 21, 10_000


def cases() -> list[str]:
    return [*SIZES, OSCILLATORS, *DIMENSIONS, "pcg"]


def run(case: str, seed: int) -> dict[str, float | str]:
    if case in DIMENSIONS:
        return dimensions(*DIMENSIONS[case], seed)
    return unknowns(seed) if case == "pcg" else march(case, seed)


def march(case: str, seed: int) -> dict[str, float | str]:
    field, y0, t1, lanes = task(case, seed)
    solvers = {kind: Solver(Tsit5(), PID(TOLERANCE, TOLERANCE), lanes=lanes, compile=kind) for kind in (None, "chunks")}

    @torch.no_grad()
    def ours(kind: Any) -> Tensor:
        return solve(field, y0, 0.0, t1, solvers[kind]).ys

    @torch.no_grad()
    def peer() -> Tensor:
        ts = torch.tensor([0.0, t1], device=DEVICE)
        return torchdiffeq.odeint(field, y0, ts, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")[-1]

    compiled.forget()
    began = time.perf_counter()
    done(partial(ours, "chunks"))()
    first = time.perf_counter() - began
    calls = {"eager": partial(ours, None), "chunks": partial(ours, "chunks"), "torchdiffeq": peer}
    times = {name: t.wall.median for name, t in interleaved({k: done(f) for k, f in calls.items()}, REPEATS, 3).items()}
    return {
        **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
        "chunks vs eager": times["eager"] / times["chunks"],
        "eager vs torchdiffeq": times["torchdiffeq"] / times["eager"],
        "difference": float((ours("chunks") - ours(None)).square().mean().sqrt()),
        "first s": first,
        "waits": watched(partial(ours, "chunks")),
    }


def task(case: str, seed: int) -> tuple[nn.Module, Tensor, float, Any]:
    """Field, initial state, end and lanes."""
    if case == OSCILLATORS:
        y0 = torch.tensor([2.0, 0.0]).repeat(256, 1)
        return VanDerPol(torch.linspace(2, 10, 256)).to(DEVICE), y0.to(DEVICE), 10.0, "each"
    sizes, batch, gain = SIZES[case]
    generator = np.random.default_rng(seed)
    field, y0 = Network(sizes, gain, generator), generator.standard_normal((batch, sizes[0]))
    return field.to(DEVICE), torch.from_numpy(y0).float().to(DEVICE), 1.0, "joint"


def done(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same, to the end of the device's work."""

    def call() -> Any:
        found = function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return found

    return call


def watched(function: Callable[[], Any]) -> str:
    """Whether a chunk waits for the device."""
    if DEVICE.type != "cuda":
        return "-"
    (program,) = (made for made in compiled._programs.values() if made is not None)
    forward = program.forward

    def call(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return forward(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    program.forward = call
    try:
        function()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        program.forward = forward
    return "no"


class Clock(lightning.Callback):
    """Wall seconds of groups of a hundred steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 100 == 0:
            done(lambda: None)()
            self.seconds.append(time.perf_counter())


def dimensions(dim: int, block: int, seed: int) -> dict[str, float | str]:
    lightning.seed_everything(seed, verbose=False)
    torch._dynamo.reset()
    clock, data = Clock(), Collocation(steps=STEPS)
    falling = partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=STEPS)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with quiet():
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            num_sanity_val_steps=0,
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[clock],
            **off,
        )
        trainer.fit(module(dim, block, compile=True, scheduler=falling), data)
        (metrics,) = trainer.test(trainer.model, data, verbose=False)
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else float("nan")
    return {
        "training s": STEPS / 100 * median(np.diff(clock.seconds).tolist()),
        "peak GiB": peak / 2**30,
        "error": metrics["test_relative_l2"],
        "best constant": metrics["test_baseline"],
    }


def unknowns(seed: int) -> dict[str, float | str]:
    operator, b, aggregates, _ = system(FAMILIES["jumps"], 10**6, 1)
    model, _ = trained("diffusion_preconditioner", seed)
    model = model.to(DEVICE)
    kinds = {"Jacobi": Jacobi(), **model.classic(aggregates), "learned": model.on(aggregates)}
    operator, b = operator.to(DEVICE), b.to(DEVICE)
    prepared = {kind: m.setup(operator) for kind, m in kinds.items()}
    calls = {kind: partial(pcg, operator, b, m, rtol=1e-8, throw=False) for kind, m in prepared.items()}
    times = interleaved({kind: done(call) for kind, call in calls.items()}, 5)
    row: dict[str, float | str] = {f"{kind} iterations": int(call().iterations[0]) for kind, call in calls.items()}
    row |= {f"{kind} s": timing.wall.median for kind, timing in times.items()}
    return row | {"learned / Jacobi": times["learned"].wall.median / times["Jacobi"].wall.median}
