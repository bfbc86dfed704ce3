"""Work and precision: CPU time against measured error, beside torchdiffeq, torchode and diffrax.

Three problems: the network of bench_ode_compiled (float32, joint lanes, final state), its 256 Van der Pol oscillators
(float32, lanes "each", 50 saves) and Lotka-Volterra (float64, one system, final state). All solve at the same five
tolerances, rtol = atol, with Tsit5 (torchdiffeq, which lacks it, with dopri5) and the controllers they have by default,
torchode with its integral one. Lanes are the same but for torchdiffeq, which steps jointly on Van der Pol too, having
nothing else; torchode, which steps per sample, gets the network's batch as one sample. torchode runs eagerly, since
torch 2.13 fails to script it. ``loop`` is ours compiled, with fast_math in float32. All calls are timed in turn, each
right after one that is not timed.

Of each curve a row has the median time at three errors (root mean square against a tight float64 reference),
interpolated log-log, nan where the curve does not reach; ``loop vs`` are a peer's times over loop's. Compilation is
apart: ``first s`` is the wall time of the first call. The picture ``work_precision_<problem>.png`` has the curves;
points whose solve failed are missing. Needs `pip install torchode diffrax`.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench_ode_compiled import (
    COMPILED,
    TASKS,
    Task,
    diffrax_call,
    error,
    one_core,
    ours,
    reference,
    van_der_pol,
    with_torchdiffeq,
)
from timing import interleaved

REPEATS = 15
PEERS = ("torchdiffeq", "torchode", "diffrax")
COLORS = {"torchdiffeq": "C7", "torchode": "C2", "diffrax": "C0", "eager": "C1", "loop": "C3"}
LEVELS = ("loose", "middle", "tight")
HERE = Path(__file__).resolve().parent


class Problem(NamedTuple):
    """What is solved, how tightly, and the errors that a row compares at."""

    title: str
    make: Callable[[int], Task]
    tolerances: tuple[float, ...]
    errors: tuple[float, float, float]  # one for each of LEVELS


class Curve(NamedTuple):
    """One library on one problem, a point for each tolerance, loosest first."""

    errors: list[float]
    seconds: list[float]

    def at(self, level: float) -> float:
        """Seconds at an error, of the points that are more exact than all looser ones; nan beyond them."""
        falling: list[tuple[float, float]] = []
        for point in zip(*self, strict=True):
            if point[0] < min(falling, default=(np.inf,))[0]:  # not where the solve failed, its error being nan
                falling.append(point)
        x, y = np.log(falling[::-1]).T
        return float(np.exp(np.interp(np.log(level), x, y, left=np.nan, right=np.nan)))


class LotkaVolterra(nn.Module):
    """x' = 1.5 x - x y, y' = x y - 3 y."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        prey, predators = y.unbind(-1)
        met = prey * predators
        return torch.stack([1.5 * prey - met, met - 3.0 * predators], -1)


def lotka_volterra(seed: int) -> Task:
    import jax.numpy as jnp

    def peer(t: Any, y: Any, args: Any) -> Any:
        met = y[..., 0] * y[..., 1]
        return jnp.stack([1.5 * y[..., 0] - met, met - 3.0 * y[..., 1]], -1)

    return Task(LotkaVolterra(), torch.ones(1, 2, dtype=torch.float64), None, 10.0, peer, None)


SINGLE = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
DOUBLE = (1e-3, 1e-5, 1e-7, 1e-9, 1e-11)
PROBLEMS = {
    "network": Problem("2-64-64-2, batch 128, float32", TASKS["2-64-64-2, batch 128"], SINGLE, (1e-3, 1e-4, 1e-5)),
    "van_der_pol": Problem(
        "Van der Pol, 256 lanes, 50 saves, float32", van_der_pol, (1e-3, 3e-4, 1e-4, 1e-5, 1e-6), (5e-3, 1e-3, 1e-4)
    ),
    "lotka_volterra": Problem("Lotka-Volterra, float64", lotka_volterra, DOUBLE, (1e-4, 1e-6, 1e-8)),
}


def cases() -> list[str]:
    return list(PROBLEMS)


def run(case: str, seed: int) -> dict[str, float | str]:
    one_core()
    import jax

    problem, row = PROBLEMS[case], {}
    task = problem.make(seed)
    with jax.enable_x64(task.y0.dtype == torch.float64):
        curves, first = measure(task, problem.tolerances)
    for level, allowed in zip(LEVELS, problem.errors, strict=True):
        times = {name: curve.at(allowed) for name, curve in curves.items()}
        row[f"error, {level}"] = allowed
        row |= {f"{name} ms, {level}": 1e3 * seconds for name, seconds in times.items()}
        row |= {f"loop vs {peer}, {level}": times[peer] / times["loop"] for peer in PEERS}
    return row | {f"{name} first s": first[name] for name in ("diffrax", "loop")} | {"picture": draw(case, curves)}


def measure(task: Task, tolerances: tuple[float, ...]) -> tuple[dict[str, Curve], dict[str, float]]:
    """The curves, and the wall time of each library's first call."""
    exact, calls, errors, first = reference(task, rtol=1e-13), {}, {}, {}
    for name, solver in solvers(task).items():
        for tol in tolerances:
            call = calls[f"{name} {tol:g}"] = solver(tol)
            start = time.perf_counter()
            found = call()
            first.setdefault(name, time.perf_counter() - start)
            errors.setdefault(name, []).append(error(found, exact))
    times = interleaved(calls, REPEATS, warmup=0, lead=1)
    seconds = {name: [times[f"{name} {tol:g}"].cpu.median for tol in tolerances] for name in errors}
    return {name: Curve(errors[name], seconds[name]) for name in errors}, first


def solvers(task: Task) -> dict[str, Callable[[float], Callable[[], Any]]]:
    """Calls by tolerance, by library."""
    compiled = COMPILED["fast_math" if task.y0.dtype == torch.float32 else "loop"]
    return {
        "torchdiffeq": lambda tol: partial(with_torchdiffeq, task, tol),
        "torchode": lambda tol: partial(with_torchode, task, tol),
        "diffrax": lambda tol: diffrax_call(task, "forward", tol),
        "eager": lambda tol: partial(ours, task, tol, {}),
        "loop": lambda tol: partial(ours, task, tol, compiled),
    }


@torch.no_grad()
def with_torchode(task: Task, tol: float) -> Tensor:
    import torchode

    shape = task.y0.shape
    if task.lanes == "joint":
        y0, field = task.y0.reshape(1, -1), lambda t, y: task.field(t, y.view(shape)).view(1, -1)
    else:
        y0, field = task.y0, task.field
    term = torchode.ODETerm(field, with_stats=False)
    adjoint = torchode.AutoDiffAdjoint(torchode.Tsit5(term), torchode.IntegralController(tol, tol, term=term))
    t0 = y0.new_zeros(len(y0))
    ts = None if task.ts is None else task.ts.expand(len(y0), -1)
    found = adjoint.solve(torchode.InitialValueProblem(y0, t0, torch.full_like(t0, task.t1), ts))
    if found.status.any():  # it stops all samples where one fails
        return torch.full_like(found.ys, torch.nan)
    return found.ys[:, -1].view(shape) if ts is None else found.ys


def draw(case: str, curves: Mapping[str, Curve]) -> str:
    """The curves as a picture; its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        own = name not in PEERS
        label, style = (f"ours, {name}", "o-") if own else (name, "s--")
        milliseconds = [1e3 * seconds for seconds in curve.seconds]
        axes.loglog(curve.errors, milliseconds, style, ms=4, color=COLORS[name], label=label)
    axes.set(
        title=PROBLEMS[case].title,
        xlabel="root mean square error (units of the state)",
        ylabel="CPU time of a solve (ms)",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    picture = HERE / f"work_precision_{case}.png"
    figure.savefig(picture, dpi=120)
    return picture.name
