"""Compiled solves beside diffrax (jit), torchdiffeq and the eager solver, at equal measured error, CPU time, float32.

Two networks as joint lanes, forward and training, and 256 Van der Pol oscillators that step by themselves, beside
diffrax under vmap, with 50 save times. diffrax takes Tsit5 as ours does, at rtol = atol = 1e-5; ours takes the loosest
of a ladder of tolerances at which the error against a tight reference is no larger. All are called in turn, an
untimed call before each timed one; ratios are the peer's median time over ours, with compilation apart: ``first s`` is
the first call's wall time, ``break-even`` the number of calls after which it has paid against eager calls. With two
threads CPU time counts both, and ``wall`` is what a caller waits. Needs `pip install diffrax`.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn

from sciml import PID, Solver, Tsit5, solve
from sciml.solvers import Dopri8
from timing import Timing, interleaved

REPEATS = 41
PEER = 1e-5
LADDER = [10 ** (-3 - 0.05 * i) for i in range(80)]
COMPILED = {"loop": {"compile": "loop"}, "fast_math": {"compile": "loop", "fast_math": True}}


class Task(NamedTuple):
    """One problem for torch and for jax."""

    field: nn.Module
    y0: Tensor
    ts: Tensor | None  # save times, None for the final state
    t1: float
    peer: Callable[..., Any]  # the field of (t, y, args) in jax
    args: Any  # its arguments
    lanes: Any = "joint"


class Network(nn.Module):
    """Linear layers with tanh between, and the same numbers for jax."""

    def __init__(self, sizes: list[int], gain: float, generator: np.random.Generator):
        super().__init__()
        self.weights: list[tuple[np.ndarray, np.ndarray]] = []
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            weight = generator.standard_normal((inner, outer)) * gain / np.sqrt(inner)
            bias = 0.1 * generator.standard_normal(outer)
            layer = nn.Linear(inner, outer)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight.T))
                layer.bias.copy_(torch.from_numpy(bias))
            layers += [layer, nn.Tanh()]
            self.weights.append((weight, bias))
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


def network(sizes: list[int], batch: int, gain: float, seed: int) -> Task:
    import jax.numpy as jnp

    generator = np.random.default_rng(seed)
    net, y0 = Network(sizes, gain, generator), generator.standard_normal((batch, sizes[0]))

    def peer(t: Any, y: Any, args: Any) -> Any:
        for weight, bias in args[:-1]:
            y = jnp.tanh(y @ weight + bias)
        return y @ args[-1][0] + args[-1][1]

    weights = [(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in net.weights]
    return Task(net, torch.from_numpy(y0).float(), None, 1.0, peer, weights)


class VanDerPol(nn.Module):
    """x' = v, v' = mu (1 - x^2) v - x for several mu."""

    def __init__(self, mu: Tensor):
        super().__init__()
        self.register_buffer("mu", mu)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, self.mu * (1 - x * x) * v - x], -1)


def van_der_pol(seed: int) -> Task:
    import jax.numpy as jnp

    mu = torch.linspace(2, 10, 256)
    y0 = torch.tensor([2.0, 0.0]).repeat(256, 1)
    peer = lambda t, y, mu: jnp.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])  # noqa: E731
    return Task(VanDerPol(mu), y0, torch.linspace(0, 10, 50), 10.0, peer, jnp.asarray(mu.numpy()), "each")


TASKS = {
    "2-64-64-2, batch 128": partial(network, [2, 64, 64, 2], 128, 2.0),
    "64-256-256-64, batch 512": partial(network, [64, 256, 256, 64], 512, 1.5),
    "Van der Pol, 256 lanes, 50 saves": van_der_pol,
}
CASES = {
    f"{name}, {mode}": (name, mode)
    for name in TASKS
    for mode in ("forward", "training")
    if mode == "forward" or "Pol" not in name
}


def cases() -> list[str]:
    return list(CASES)


def run(case: str, seed: int) -> dict[str, float | str]:
    one_core()
    name, mode = CASES[case]
    task = TASKS[name](seed)
    exact = reference(task)
    peer = diffrax_call(task, mode)
    allowed = error(peer(forward=True), exact)
    tolerance = next(tol for tol in LADDER if error(ours(task, tol, {}), exact) <= allowed)
    calls: dict[str, Callable[[], Any]] = {"diffrax": peer}
    row: dict[str, float | str] = {"diffrax error": allowed, "own rtol": tolerance}
    if task.lanes == "each":
        calls["torchdiffeq"] = partial(with_torchdiffeq, task)
    for kind, options in {"eager": {}, **COMPILED}.items():
        calls[kind] = partial(ours if mode == "forward" else training, task, tolerance, options)
        start = time.perf_counter()
        found = calls[kind]()
        first = time.perf_counter() - start
        if kind != "eager":
            row[f"{kind} error"], row[f"{kind} first s"] = error(found, exact), first
    times = interleaved(calls, REPEATS, warmup=3, lead=1)
    return row | figures(times, {kind: float(row[f"{kind} first s"]) for kind in COMPILED})


def figures(times: Mapping[str, Timing], first: Mapping[str, float]) -> dict[str, float | str]:
    """Milliseconds, ratios and break-even points."""
    row: dict[str, float | str] = {f"{name} ms": 1e3 * timing.cpu.median for name, timing in times.items()}
    for kind, seconds in first.items():
        own = times[kind]
        for peer in (name for name in times if name not in ("eager", *first)):
            row[f"{kind} vs {peer}"] = times[peer].cpu.median / own.cpu.median
            row[f"{kind} vs {peer}, wall"] = times[peer].wall.median / own.wall.median
        row[f"{kind} break-even"] = seconds / max(times["eager"].wall.median - own.wall.median, 1e-9)
    return row


def one_core() -> None:
    """Keep jax, which has no number of threads to set, to as many cores as torch has threads."""
    threads = torch.get_num_threads()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def diffrax_call(task: Task, mode: str, tol: float = PEER) -> Callable[..., Any]:
    import diffrax
    import jax
    import jax.numpy as jnp

    controller = diffrax.PIDController(rtol=tol, atol=tol)
    saves = diffrax.SaveAt(t1=True) if task.ts is None else diffrax.SaveAt(ts=jnp.asarray(task.ts.numpy()))
    term, y0 = diffrax.ODETerm(task.peer), jnp.asarray(task.y0.numpy())

    def one(y: Any, args: Any) -> Any:
        kwargs = {"args": args, "saveat": saves, "stepsize_controller": controller}
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, task.t1, None, y, **kwargs).ys

    whole = jax.jit(jax.vmap(one) if task.lanes == "each" else lambda y, args: one(y, args)[0])
    grad = jax.jit(jax.value_and_grad(lambda pair: jnp.mean(one(*pair)[0] ** 2)))

    def call(forward: bool = mode == "forward") -> Any:
        return jax.block_until_ready(whole(y0, task.args) if forward else grad((y0, task.args)))

    return call


@torch.no_grad()
def ours(task: Task, tol: float, options: Mapping[str, Any]) -> Tensor:
    return solve(task.field, task.y0, 0.0, task.t1, solver(task, tol, options), save_at=task.ts).ys


def training(task: Task, tol: float, options: Mapping[str, Any]) -> Tensor:
    for parameter in task.field.parameters():
        parameter.grad = None
    y0 = task.y0.detach().requires_grad_()
    found = solve(task.field, y0, 0.0, task.t1, solver(task, tol, options)).ys
    found.square().mean().backward()
    return found.detach()


def solver(task: Task, tol: float, options: Mapping[str, Any]) -> Solver:
    return method(task.lanes, tol, **options)


@cache
def method(lanes: Any, tol: float, **options: Any) -> Solver:
    """Made once, as those of the peers are."""
    return Solver(Tsit5(), PID(tol, tol), lanes=lanes, **options)


@torch.no_grad()
def with_torchdiffeq(task: Task, tol: float = PEER) -> Tensor:
    ts = torch.tensor([0.0, task.t1], dtype=task.y0.dtype) if task.ts is None else task.ts
    found = torchdiffeq.odeint(task.field, task.y0, ts, rtol=tol, atol=tol, method="dopri5")
    return found[-1] if task.ts is None else found.transpose(0, 1)


@torch.no_grad()
def reference(task: Task, rtol: float = 1e-11) -> np.ndarray:
    """The solution in float64 at a tight tolerance."""
    task.field.double()
    tight = Solver(Dopri8(), PID(rtol, rtol / 10), max_steps=100_000)
    found = solve(task.field, task.y0.double(), 0.0, task.t1, tight, save_at=task.ts).ys
    task.field.to(task.y0.dtype)
    return (found if task.ts is None else found.transpose(0, 1)).numpy()


def error(found: Any, exact: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(np.asarray(found, dtype=np.float64) - exact).mean()))
