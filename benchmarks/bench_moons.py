"""The density of two moons, learned by maximum likelihood and by regression of velocities.

"likelihood" is the example ``moons_cnf``, "interpolant" ``moons_interpolant``; "linear" is the latter with straight
paths (flow matching), "optimal" with these and noise and data of a batch paired at the least distance, in batches of
250 for 1000 and so with four times as many steps, since pairing takes the cube of a batch's size. The seed is that of
weights and batches; the test points are 10,000 others. ``nll`` is the mean of -log p there in nats, by 100 steps of RK4
and the exact divergence, whatever the model was trained with; ``gaussian`` that of a normal distribution with mean and
covariance of the training points, ``exact`` that of the density itself. ``distance`` is the energy distance, times
1000, of 4,000 samples to as many test points, of "data" that of two halves of the test points; with "noise" samples are
drawn by the stochastic equation with epsilon = 1. ``length`` is that of the paths of samples over that of straight
lines between their ends.
CPU seconds are those of the training without validation.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor

from sciml import Grid, Solver, solve
from sciml.data import Moons
from sciml.solvers import RK4
from sciml.training.load import build_module
from sciml.training.trainer_cli import quiet
from trained import fitted

EXAMPLES = Path(__file__).parents[1] / "examples"
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "likelihood": ("moons_cnf", {}),
    "interpolant": ("moons_interpolant", {}),
    "linear": ("moons_interpolant", {"schedule": "linear"}),
    "optimal": ("moons_interpolant", {"schedule": "linear", "coupling": "optimal"}),
}
FINE, COUNT = Solver(RK4(), Grid(n=100)), 4000


def cases() -> list[str]:
    return list(CASES)


def run(case: str, seed: int) -> dict[str, float | str]:
    example, options = CASES[case]
    config: dict[str, Any] = yaml.safe_load((EXAMPLES / example / "config.yaml").read_text())
    config["model"]["init_args"]["flow"]["init_args"] |= options
    with quiet():
        lightning.seed_everything(seed, verbose=False)
        module: Any = build_module(config["model"])
        if case == "optimal":
            config["data"]["init_args"]["batch_size"] = 250
        data = Moons(**config["data"]["init_args"])
        _, seconds = fitted(module, data, config["trainer"] | {"limit_val_batches": 0})
    module.eval()
    (x,) = data.part("test")
    density, flow = module.density, module.density.flow
    flow.solver = FINE
    with torch.no_grad():
        row: dict[str, float | str] = {
            "nll": -density(x).mean().item(),
            "exact": exact(x, data.noise),
            "gaussian": -module.gaussian(x).mean().item(),
            "distance": distance(density.sample(COUNT, torch.Generator().manual_seed(seed)), x[:COUNT]),
            "data distance": distance(x[COUNT : 2 * COUNT], x[:COUNT]),
        }
        if case in ("interpolant", "linear"):
            flow.diffusion = 1.0
            noisy = density.sample(COUNT, torch.Generator().manual_seed(seed))
            row["distance, noise"] = distance(noisy, x[:COUNT])
        row["length"] = length(flow, torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(seed)))
    return row | {"CPU s": seconds}


def exact(x: Tensor, noise: float) -> float:
    """The mean of -log p of the moons themselves at points (n, 2), by sums over 2,000 places on each half circle."""
    angle = torch.linspace(0, torch.pi, 2000)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    centres = torch.cat([outer, torch.tensor([1.0, 0.5]) - outer])
    inside = -torch.cdist(x, centres).square() / (2 * noise**2)
    log_prob = inside.logsumexp(1) - torch.tensor(len(centres) * 2 * torch.pi * noise**2).log()
    return -log_prob.mean().item()


def distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, times 1000."""
    within = sum(torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return 1000 * (2 * torch.cdist(x, y).mean() - within).item()


def length(flow: Any, z: Tensor) -> float:
    """Lengths of paths from z over those of straight lines."""
    paths = solve(flow.field, z, 0.0, 1.0, FINE, save_at=torch.linspace(0, 1, 101)).ys
    steps = paths.diff(dim=0).norm(dim=-1).sum(0)
    return (steps.sum() / (paths[-1] - paths[0]).norm(dim=-1).sum()).item()
