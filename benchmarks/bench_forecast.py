"""Forecasts of randomly stirred flows, beside the flow itself with other noise, which nothing can beat.

"navier_stokes" is the example ``navier_stokes_forecast``: the vorticity on 32 x 32 points, a unit of time ahead;
"burgers" the same for Burgers' equation on 64 points, a quarter ahead. The seed is that of weights and batches.

``crps`` is the continuous ranked probability score over all points of 200 test states, in units of the fields, of 8
forecasts each: of "interpolant", the example's; of "deterministic", an FNO of the same size, trained for as many steps
on the squared error, which is one forecast; of "dressed", that with noise on top whose power at each wavenumber is that
of its own errors in validation, the classic remedy; of "itself", the equation from the same state on other paths;
"climate" are as many states of the training part, "persistence" the state as it is. ``mse`` is the squared error of the
mean forecast, ``spread`` what it would be if the truth were one more of the forecasts: the two are equal where
probabilities are right. ``small scales`` is the power of forecasts from half of the resolved wavenumbers on, over that
of the truth. The interpolant is drawn by 16 steps of ShARK that grow shorter, 32 evaluations; "equal" are 16 equal
ones, "EulerMaruyama(n)" n of another method. CPU seconds are those of the training; ``ms`` is the CPU time of one
forecast among 1600.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor, nn

from sciml import Grid, Solver
from sciml.data import OperatorData
from sciml.models import FNO
from sciml.problems import Burgers, NavierStokes, RandomlyForced
from sciml.solvers import EulerMaruyama, ShARK
from sciml.training import OperatorModule, crps, spread
from sciml.training.load import build_module
from sciml.training.trainer_cli import quiet
from trained import fitted

CONFIG = Path(__file__).parents[1] / "examples" / "navier_stokes_forecast" / "config.yaml"
MEMBERS, EULER = 8, (32, 100)
FLOW = NavierStokes(points=32, nu=1e-2, drag=0.1, dt=0.02, t1=3.0)
WAVE = Burgers(points=64, nu=0.02, dt=0.005, t1=1.25)
TASKS: dict[str, dict[str, Any]] = {
    "navier_stokes": {"problem": RandomlyForced(FLOW, strength=2.0, forced=(2, 4)), "start": 2.0},
    "burgers": {"problem": RandomlyForced(WAVE, strength=0.5), "start": 1.0},
}
NETS = {"navier_stokes": {"modes": [10, 10], "width": 24}, "burgers": {"modes": [12], "width": 32}}


def cases() -> list[str]:
    return list(TASKS)


def run(case: str, seed: int) -> dict[str, float | str]:
    config = yaml.safe_load(CONFIG.read_text())
    options = config["data"]["init_args"]
    sizes = {name: options[name] for name in ("train", "val", "test", "batch_size")}
    config["model"]["init_args"]["interpolant"]["init_args"]["net"]["init_args"] |= NETS[case]
    data = OperatorData(**TASKS[case], **sizes)
    with quiet():
        lightning.seed_everything(seed, verbose=False)
        ours: Any = build_module(config["model"]).eval()
        trainer = config["trainer"] | {"limit_val_batches": 0}
        _, seconds = fitted(ours, data, trainer)
        lightning.seed_everything(seed, verbose=False)
        scheduler = config["model"]["init_args"]["scheduler"]["init_args"]
        plain = OperatorModule(
            FNO(1, 1, **NETS[case]),
            nn.MSELoss(),
            lambda p: torch.optim.Adam(p, lr=scheduler["max_lr"]),
            lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, **scheduler),
            "step",
        ).eval()
        _, plain_seconds = fitted(plain, data, trainer)
    later = data.part("test")[1]
    row: dict[str, float | str] = {"interpolant CPU s": seconds, "deterministic CPU s": plain_seconds}
    with torch.no_grad():
        for name, members in forecasts(ours, plain, data, seed, row).items():
            row |= {f"{name} {key}": value for key, value in judged(members, later).items()}
    return row


def forecasts(ours: Any, plain: Any, data: Any, seed: int, row: dict[str, float | str]) -> dict[str, Tensor]:
    """The members (m, n, c, *x) of each way; notes the time of ours."""
    state = data.part("test")[0]
    began = time.process_time()
    found = {"interpolant": ours.forecaster.forecast(state, MEMBERS, seed)}
    row["interpolant ms"] = 1e3 * (time.process_time() - began) / (MEMBERS * len(state))
    found["itself"] = itself(data.problem, state, data.t - data.start)
    found["deterministic"] = plain(state)[None]
    before, after = data.part("val")
    found["dressed"] = plain(state) + like(after - plain(before), MEMBERS, len(state), seed)
    found["climate"] = data.part("train")[1][:MEMBERS, None].expand(-1, len(state), *state.shape[1:])
    found["persistence"] = state[None]
    ours.forecaster.interpolant.solver = Solver(ShARK(), Grid(n=16))
    found["equal"] = ours.forecaster.forecast(state, MEMBERS, seed)
    for n in EULER:
        ours.forecaster.interpolant.solver = Solver(EulerMaruyama(), Grid(n=n))
        found[f"EulerMaruyama({n})"] = ours.forecaster.forecast(state, MEMBERS, seed)
    return found


def itself(problem: RandomlyForced, state: Tensor, ahead: float) -> Tensor:
    """The equation from each state on paths that the data have not."""
    again = [replace(problem, problem=replace(problem.problem, t1=ahead), noise_seed=k) for k in range(1, MEMBERS + 1)]
    return torch.stack([p.evolve(state, torch.tensor([ahead], dtype=torch.float64))[:, 0] for p in again])


def like(errors: Tensor, members: int, count: int, seed: int) -> Tensor:
    """Normal fields (m, n, c, *x) with the mean power of errors (k, c, *x) at each wavenumber."""
    space = tuple(range(2 - errors.ndim, 0))
    power = torch.fft.fftn(errors, dim=space, norm="ortho").abs().square().mean(0)
    drawn = torch.randn(members, count, *errors.shape[1:], generator=torch.Generator().manual_seed(seed))
    return torch.fft.ifftn(torch.fft.fftn(drawn, dim=space) * power.sqrt(), dim=space).real


def judged(members: Tensor, later: Tensor) -> dict[str, float]:
    """Scores of members (m, n, c, *x) for later states (n, c, *x)."""
    found = {
        "crps": crps(members, later).mean().item(),
        "mse": (members.mean(0) - later).square().mean().item(),
        "small scales": (small(members.flatten(0, 1)) / small(later)).item(),
    }
    return found | ({"spread": spread(members).mean().item()} if len(members) > 1 else {})


def small(fields: Tensor) -> Tensor:
    """The mean power of fields (n, c, *x) from half of the resolved wavenumbers, a third of the points, on."""
    space = tuple(range(2, fields.ndim))
    power = torch.fft.fftn(fields, dim=space, norm="forward").abs().square().mean((0, 1))
    n = power.shape[0]
    waves = torch.meshgrid(*(torch.fft.fftfreq(n, 1 / n) for _ in space), indexing="ij")
    k = torch.stack(waves).square().sum(0).sqrt()
    return power[(k >= n / 6) & (k <= n / 3)].sum()
