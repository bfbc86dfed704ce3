"""Generating 2-D Navier-Stokes data beside exponax: 64 x 64 points, 32 fields, 100 steps of ETDRK4, float32, CPU time.

Decaying turbulence from random vorticity of rms velocity 1 with wavenumbers up to 4, nu = 0.01, from t = 0 to 1. Both
start from the same fields, take the same steps and keep the last field; we solve in the chunks in which data sets are
generated. exponax is compiled by jax.jit before it is timed. The error is relative L2, mean over the first samples,
against our solution in float64 with twice the points along each axis and a quarter of the step; test_navier_stokes.py
checks it against exponax itself. Needs `pip install exponax`.
"""

import os
from dataclasses import replace

import torch
from torch import Tensor

from sciml.problems import NavierStokes
from timing import interleaved

REPEATS = 10
SAMPLES, STEPS = 32, 100
CHECKED, FINER = 8, 4  # samples compared with a reference of so many times the steps


def cases() -> list[str]:
    return ["64 x 64 points, 32 fields"]


def run(case: str, seed: int) -> dict[str, float | str]:
    if torch.get_num_threads() == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import exponax
    import jax
    import jax.numpy as jnp
    import numpy as np

    problem = NavierStokes(points=64, nu=1e-2, t1=1.0, dt=1 / STEPS)
    u0 = problem.initial(SAMPLES, torch.Generator().manual_seed(seed))
    end = torch.tensor([problem.t1], dtype=torch.float64)

    def evolve(problem: NavierStokes, u0: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([problem.evolve(part, end)[:, 0] for part in u0.split(problem.chunk)])

    stepper = exponax.stepper.NavierStokesVorticity(
        2, problem.length, 64, problem.dt, diffusivity=problem.nu, vorticity_convection_scale=-1.0, order=4
    )  # its vorticity is u_y - v_x
    march = jax.jit(jax.vmap(exponax.repeat(stepper, STEPS)))
    u0_jax = jnp.asarray(u0.numpy())

    def ours() -> Tensor:
        return evolve(problem, u0)

    def peer() -> np.ndarray:
        return np.asarray(march(u0_jax).block_until_ready())

    times = interleaved({"sciml": ours, "exponax": peer}, REPEATS, warmup=2)
    results = {"sciml": ours(), "exponax": torch.from_numpy(peer().copy())}
    finer = replace(problem, points=128, dt=problem.dt / FINER)
    start = finer.initial(SAMPLES, torch.Generator().manual_seed(seed), torch.float64)[:CHECKED]
    expected = evolve(finer, start)[..., ::2, ::2]
    row: dict[str, float | str] = {}
    for name, result in results.items():
        row[f"{name} CPU s"], row[f"{name} wall s"] = times[name].cpu.median, times[name].wall.median
        difference = (result[:CHECKED].double() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        row[f"{name} error"] = difference.mean().item()
    row["CPU ratio"] = times["exponax"].cpu.median / times["sciml"].cpu.median
    row["wall ratio"] = times["exponax"].wall.median / times["sciml"].wall.median
    return row
