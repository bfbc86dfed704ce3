"""Rodas5P in one compiled loop beside diffrax's Kvaerno5 (jit), at equal measured error, CPU time, float64.

Van der Pol's oscillator at mu = 1000 to t = 2000 and Robertson's reaction to 1e5, one sample, and 64 samples that step
by themselves beside diffrax under vmap. diffrax runs at rtol = 1e-6 under an I and two PI controllers, and ratios are
taken against the quickest of them; ours takes the loosest of a ladder of tolerances at which its error is no larger
than that of the most exact of them. Errors are the largest, relative to the solution and 1e-6, against Rodas5P at a
tight tolerance, which scipy's Radau has to confirm. An untimed call comes before each timed one.
``first s`` is the first call's wall time, ``break-even`` the number of calls after which it has paid against eager
calls. With two threads CPU time counts both, and ``wall`` is what a caller waits. Needs `pip install diffrax`.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from bench_ode_compiled import one_core
from sciml import PID, Solver, solve
from sciml.solvers import Rodas5P
from timing import interleaved

REPEATS = 11
PEER = 1e-6
LADDER = [10 ** (-5 - 0.25 * i) for i in range(24)]
PEERS = {"I": (0.0, 1.0), "PI .3 .4": (0.3, 0.4), "PI .4 .3": (0.4, 0.3)}  # pcoeff and icoeff
CONFIRMED = 1e-5  # how far Radau may be from the reference


class Task(NamedTuple):
    """One problem for torch, jax and numpy."""

    rates: Callable[..., list[Any]]  # of the components and the parameter
    parameter: Tensor  # () or (b)
    y0: Tensor  # (n) or (b, n)
    t1: float
    ratio: float  # atol / rtol


class Field(nn.Module):
    """The rates for torch."""

    def __init__(self, task: Task):
        super().__init__()
        self.rates = task.rates
        self.register_buffer("parameter", task.parameter)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack(self.rates(*y.unbind(-1), self.parameter), -1)


def van_der_pol(x: Any, v: Any, mu: Any) -> list[Any]:
    return [v, mu * (1 - x * x) * v - x]


def robertson(a: Any, b: Any, c: Any, rate: Any) -> list[Any]:
    slow, back, fast = rate * a, 1e4 * b * c, 3e7 * b * b
    return [back - slow, slow - back - fast, fast]


def task(name: str, samples: int) -> Task:
    one = samples == 1
    spread = lambda low, high: torch.linspace(low, high, samples, dtype=torch.float64)  # noqa: E731
    if name == "Van der Pol":
        parameter = torch.tensor(1e3, dtype=torch.float64) if one else spread(500, 1500)
        rates, y0, t1, ratio = van_der_pol, [2.0, 0.0], 2e3, 1e-2
    else:
        parameter = torch.tensor(0.04, dtype=torch.float64) if one else spread(0.02, 0.08)
        rates, y0, t1, ratio = robertson, [1.0, 0.0, 0.0], 1e5, 1e-4
    start = torch.tensor(y0, dtype=torch.float64)
    return Task(rates, parameter, start if one else start.repeat(samples, 1), t1, ratio)


CASES = {
    f"{name}, {samples} sample{'s' * (samples > 1)}": (name, samples)
    for name in ("Van der Pol", "Robertson")
    for samples in (1, 64)
}


def cases() -> list[str]:
    return list(CASES)


def run(case: str, seed: int) -> dict[str, float | str]:
    one_core()
    problem = task(*CASES[case])
    field = Field(problem)
    exact = reference(problem, field)
    calls: dict[str, Callable[[], Any]] = {name: diffrax_call(problem, *pair) for name, pair in PEERS.items()}
    errors = {name: error(call(), exact) for name, call in calls.items()}
    allowed = min(errors.values())
    tolerance = next(tol for tol in LADDER if error(ours(problem, field, tol, "loop"), exact) <= allowed)
    torch.compiler.reset()
    forget()
    calls["loop"] = partial(ours, problem, field, tolerance, "loop")
    start = time.perf_counter()
    found = calls["loop"]()
    first = time.perf_counter() - start
    start = time.perf_counter()
    ours(problem, field, tolerance, None)
    eager = time.perf_counter() - start
    times = interleaved(calls, REPEATS, warmup=2, lead=1)
    best = min(PEERS, key=lambda name: times[name].cpu.median)
    own = times["loop"]
    row: dict[str, float | str] = {f"diffrax {name} ms": 1e3 * times[name].cpu.median for name in PEERS}
    row |= {f"diffrax {name} error": errors[name] for name in PEERS}
    return row | {
        "best": best,
        "own rtol": tolerance,
        "loop ms": 1e3 * own.cpu.median,
        "loop error": error(found, exact),
        "loop vs best": times[best].cpu.median / own.cpu.median,
        "loop vs best, wall": times[best].wall.median / own.wall.median,
        "eager ms": 1e3 * eager,
        "loop first s": first,
        "loop break-even": first / max(eager - own.wall.median, 1e-9),
    }


def forget() -> None:
    """Drop what is compiled, so that the next call is a first one."""
    from sciml.solvers import compiled

    compiled.forget()


def diffrax_call(problem: Task, pcoeff: float, icoeff: float) -> Callable[[], Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import diffrax
    import jax.numpy as jnp

    term = diffrax.ODETerm(lambda t, y, parameter: jnp.stack(problem.rates(*y, parameter)))
    tolerances = {"rtol": PEER, "atol": PEER * problem.ratio}
    controller = diffrax.PIDController(**tolerances, pcoeff=pcoeff, icoeff=icoeff)

    def one(y: Any, parameter: Any) -> Any:
        kwargs = {"args": parameter, "stepsize_controller": controller, "max_steps": 100_000}
        saves = diffrax.SaveAt(t1=True)
        return diffrax.diffeqsolve(term, diffrax.Kvaerno5(), 0.0, problem.t1, 1e-6, y, saveat=saves, **kwargs).ys[0]

    call = jax.jit(jax.vmap(one) if problem.y0.ndim == 2 else one)
    y0, parameter = jnp.asarray(problem.y0.numpy()), jnp.asarray(problem.parameter.numpy())
    return lambda: jax.block_until_ready(call(y0, parameter))


@torch.no_grad()
def ours(problem: Task, field: Field, tol: float, mode: Any) -> Tensor:
    controller = PID(tol, tol * problem.ratio)
    lanes = "joint" if problem.y0.ndim == 1 else "each"
    solver = Solver(Rodas5P(), controller, lanes=lanes, compile=mode, max_steps=100_000)
    return solve(field, problem.y0, 0.0, problem.t1, solver).ys


def reference(problem: Task, field: Field) -> np.ndarray:
    """The solution at a tight tolerance, whose first and last samples Radau has to confirm."""
    exact = ours(problem, field, 1e-11, "loop").numpy()
    rows, starts = np.atleast_2d(exact), np.atleast_2d(problem.y0.numpy())
    parameters = np.atleast_1d(problem.parameter.numpy())
    for i in {0, len(rows) - 1}:
        f = lambda t, y, p=parameters[i]: np.array(problem.rates(*y, p))  # noqa: E731
        s = solve_ivp(f, (0.0, problem.t1), starts[i], method="Radau", rtol=1e-10, atol=1e-14)
        if error(s.y[:, -1], rows[i]) > CONFIRMED:
            raise RuntimeError(f"sample {i}: Radau finds {s.y[:, -1]}, the reference is {rows[i]}")
    return exact


def error(found: Any, exact: np.ndarray) -> float:
    """The largest, relative to the solution and 1e-6."""
    return float((np.abs(np.asarray(found) - exact) / (np.abs(exact) + 1e-6)).max())
