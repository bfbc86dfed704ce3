"""Generating Burgers data beside exponax: 1024 points, 32 trajectories, 500 steps of ETDRK4, float32, CPU time.

Both start from the same fields and keep the last one. exponax is compiled by jax.jit before it is timed. The error is
against the Cole-Hopf solution, relative L2, mean over the samples. Needs `pip install exponax`.
"""

import os

import torch

from sciml.problems import Burgers
from timing import interleaved

REPEATS = 10


def cases() -> list[str]:
    return ["1024 points, 32 trajectories"]


def run(case: str, seed: int) -> dict[str, float | str]:
    if torch.get_num_threads() == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import exponax
    import jax
    import jax.numpy as jnp
    import numpy as np

    problem = Burgers(points=1024, nu=0.01, dt=2e-3)
    u0 = problem.initial(32, torch.Generator().manual_seed(seed))
    ts = torch.tensor([1.0], dtype=torch.float64)
    stepper = exponax.stepper.Burgers(1, 1.0, 1024, problem.dt, diffusivity=problem.nu, order=4)
    march = jax.jit(jax.vmap(exponax.repeat(stepper, 500)))
    u0_jax = jnp.asarray(u0.numpy())

    def ours() -> torch.Tensor:
        with torch.no_grad():
            return problem.evolve(u0, ts)[:, 0]

    def peer() -> np.ndarray:
        return np.asarray(march(u0_jax).block_until_ready())

    exact = problem.exact(u0, ts)[:, 0]
    times = interleaved({"sciml": ours, "exponax": peer}, REPEATS, warmup=2)
    row: dict[str, float | str] = {}
    for name, result in (("sciml", ours()), ("exponax", torch.from_numpy(peer().copy()))):
        difference = (result.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        row[f"{name} CPU s"], row[f"{name} wall s"] = times[name].cpu.median, times[name].wall.median
        row[f"{name} error"] = difference.mean().item()
    row["CPU ratio"] = times["exponax"].cpu.median / times["sciml"].cpu.median
    row["wall ratio"] = times["exponax"].wall.median / times["sciml"].wall.median
    return row
