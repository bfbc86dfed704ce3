"""CPU time and memory of residuals by Taylor mode beside autograd's ways and jax's, in float32.

A step is the mean squared residual at 100 points and its gradient to the weights, without an optimiser. The residual of
second order is Lap u + sin u - f for u = (1 - |x|^2) MLP(x), MLP d-128-128-128-1 of tanh, the Laplacian estimated from
16 coordinates, the same for all points or ("each") of each point, or from 16 Rademacher directions ("dense"), or with
all of its terms ("exact"). All see the same samples, which are drawn outside of the step ("draw ms"), and before they
are timed they have to agree in the loss and its gradient.

Peers in torch: a vectorised Hessian-vector product by backward over backward, the same by forward over backward,
one coordinate at a time by ``autograd.grad``, eager and compiled where that compiles. In jax, jitted:
``jax.experimental.jet`` along one-hot vectors, the same from gathered columns of the first layer, the collapsed series
written by hand for this network, and folx's forward Laplacian. Higher orders stand beside nested ``autograd.grad``, and
beside nested ``torch.func.grad``, compiled. "saved" is what the backward pass keeps beside points and weights.
Needs `pip install jax folx`.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.nn import functional

from bench_ode_compiled import one_core
from sciml.calculus import Dense, Laplacian, Partial, Sparse, Unknown
from sciml.calculus.stde import Draw, Estimator
from sciml.models.mlp import MLP
from timing import interleaved

BATCH, WIDTH, SAMPLES = 100, 128, 16
REPEATS = {100: 31, 10_000: 11, 100_000: 7}
SLOW = 5.0  # seconds of a first call
AGREE = 2e-4  # relative; sums of 16 d terms in float32, and d^2 of them in the squares
ESTIMATORS: dict[str, Estimator] = {
    "shared": Sparse(SAMPLES, shared=True),
    "each": Sparse(SAMPLES),
    "dense": Dense(SAMPLES, shared=True),
}
SECOND = {f"d {d}, {kind}": (d, kind) for d in REPEATS for kind in ("shared", "each")}
SECOND |= {"d 100, dense": (100, "dense"), "d 100, exact": (100, "exact")}
HIGHER = ("Kuramoto-Sivashinsky", "KdV-2D")
SAVED, PEAK = "saved, d 100 to 100000", "peak memory, d 1000000"

u = Unknown()
SINE_GORDON = Laplacian()(u) + torch.sin(u)
Peer = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


class Ball(nn.Module):
    """(1 - |x|^2) times a network."""

    def __init__(self, d: int):
        super().__init__()
        self.net = MLP(d, 1, width=WIDTH, depth=3)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - (x * x).sum(-1)) * self.net(x)[..., 0]


def cases() -> list[str]:
    return [*SECOND, *HIGHER, SAVED, PEAK]


def run(case: str, seed: int) -> dict[str, float | str]:
    one_core()
    torch.manual_seed(seed)
    torch._dynamo.reset()
    if case == SAVED:
        return {f"saved KiB, d {d}": saved(d) / 1024 for d in REPEATS}
    if case == PEAK:
        return peak(1_000_000, seed)
    return higher_order(case) if case in HIGHER else second_order(*SECOND[case])


# --- second order


class Task(NamedTuple):
    """One residual at fixed points."""

    net: nn.Module
    x: Tensor
    rhs: Tensor
    sample: Tensor  # coordinates or directions, (R, ...) or (R, b, ...)
    draw: Draw | None


def task(d: int, kind: str) -> Task:
    """Points in the unit ball, with radii that are uniform."""
    x = functional.normalize(torch.randn(BATCH, d), dim=-1) * torch.rand(BATCH, 1)
    if kind == "exact":
        return Task(Ball(d), x, torch.randn(BATCH), torch.arange(d), None)
    draw = ESTIMATORS[kind].draw(SINE_GORDON, x)
    (sample,) = draw.samples.values()
    return Task(Ball(d), x, torch.randn(BATCH), sample, draw)


def second_order(d: int, kind: str) -> dict[str, float | str]:
    t = task(d, kind)
    steps = both("", t.net, ours, t.net, t.x, t.rhs, t.draw)
    inputs = t.net, t.x, t.rhs, t.sample
    autograd = both("bwd over bwd", t.net, residual, backward_over_backward, *inputs)
    if kind == "each":  # the others take as long as with shared coordinates
        del autograd["bwd over bwd"]
    else:
        autograd["fwd over bwd"] = Step(t.net, residual, forward_over_backward, *inputs)  # compiled, torch 2.13 raises
    if kind in ("shared", "exact"):
        autograd["loop"] = Step(t.net, residual, loop, *inputs)
    return timed({**steps, **autograd, **in_jax(t, kind)}, REPEATS[d]) | draw_time(t, kind)


def ours(net: nn.Module, x: Tensor, rhs: Tensor, draw: Draw | None) -> Tensor:
    return SINE_GORDON(net, x, draw) - rhs


def residual(peer: Peer, net: nn.Module, x: Tensor, rhs: Tensor, sample: Tensor) -> Tensor:
    """The residual from a peer's value and mean second derivative along the samples."""
    value, second = peer(net, x, sample)
    return second * (1 if sample.is_floating_point() else x.shape[1]) + torch.sin(value) - rhs


def vectors(sample: Tensor, x: Tensor) -> Tensor:
    """Directions (R, d) or (R, b, d)."""
    return sample if sample.is_floating_point() else functional.one_hot(sample, x.shape[1]).to(x.dtype)


def gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (b, d) and values (b)."""

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        values = net(x)
        return values.sum(), values

    return grad(total, has_aux=True)(x)


def backward_over_backward(net: nn.Module, x: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    _, pull, values = vjp(partial(gradient, net), x, has_aux=True)
    along = vmap(lambda v: (pull(v.expand_as(x))[0] * v).sum(-1))(vectors(sample, x))
    return values, along.mean(0)


def forward_over_backward(net: nn.Module, x: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    def one(v: Tensor) -> tuple[Tensor, Tensor]:
        _, product, values = jvp(partial(gradient, net), (x,), (v.expand_as(x),), has_aux=True)
        return values, (product * v).sum(-1)

    values, along = vmap(one, out_dims=(None, 0))(vectors(sample, x))
    return values, along.mean(0)


def loop(net: nn.Module, x: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    values = net(x)
    (slopes,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    total: Any = 0
    for s in sample:
        column = s.expand(len(x))[:, None]
        (second,) = torch.autograd.grad(slopes.gather(1, column).sum(), x, create_graph=True)
        total = total + second.gather(1, column)[:, 0]
    return values, total / len(sample)


def in_jax(t: Task, kind: str) -> dict[str, Callable[[], Any]]:
    import calculus_peers

    names = {"dense": ["jax jet dense"], "exact": [*calculus_peers.SPARSE, "folx"]}.get(kind, calculus_peers.SPARSE)
    return {name: calculus_peers.step(name, t.net, t.x, t.rhs, t.sample, kind != "each") for name in names}


def draw_time(t: Task, kind: str) -> dict[str, float | str]:
    """What drawing the samples costs."""
    if kind == "exact":
        return {}
    draws = interleaved({"draw": lambda: ESTIMATORS[kind].draw(SINE_GORDON, t.x)}, 41)
    return {"draw ms": 1e3 * draws["draw"].cpu.median}


# --- higher orders


def higher_order(case: str) -> dict[str, float | str]:
    one, nested, functions = {"Kuramoto-Sivashinsky": KURAMOTO, "KdV-2D": KDV}[case]
    d = 2 if case == "Kuramoto-Sivashinsky" else 3
    net, x = MLP(d, 1, width=WIDTH, depth=3), torch.rand(BATCH, d)
    steps = both("", net, one, net, x) | both("nested functions", net, functions, net, x)
    return timed({**steps, "nested": Step(net, nested, net, x)}, REPEATS[100])


def kuramoto(u: Any, u_t: Any, u_x: Any, u_xx: Any, u_xxxx: Any) -> Any:
    return u_t + u * u_x + u_xx + u_xxxx


def kdv(u_ty: Any, u_xxxy: Any, u_x: Any, u_y: Any, u_xx: Any, u_xy: Any, u_yy: Any) -> Any:
    return u_ty + u_xxxy + 3 * (u_xy * u_x + u_y * u_xx) - u_xx + 2 * u_yy


def slopes(values: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def kuramoto_nested(net: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    value = net(x)[:, 0]
    first = slopes(value, x)
    chain = [first[:, 1]]
    for _ in range(3):
        chain.append(slopes(chain[-1], x)[:, 1])
    return kuramoto(value, first[:, 0], chain[0], chain[1], chain[3])


def kdv_nested(net: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    first = slopes(net(x)[:, 0], x)
    of_x, of_y = slopes(first[:, 1], x), slopes(first[:, 2], x)
    third = slopes(of_x[:, 1], x)[:, 1]
    return kdv(of_y[:, 0], slopes(third, x)[:, 2], first[:, 1], first[:, 2], of_x[:, 1], of_x[:, 2], of_y[:, 2])


def derivative(f: Callable[[Tensor], Tensor], coordinate: int) -> Callable[[Tensor], Tensor]:
    """A partial derivative as a function; a compiler finds what several of them have in common."""
    return lambda x: grad(lambda x: f(x).sum())(x)[:, coordinate]


def kuramoto_functions(net: nn.Module, x: Tensor) -> Tensor:
    chain = [lambda x: net(x)[:, 0]]
    for _ in range(4):
        chain.append(derivative(chain[-1], 1))
    return kuramoto(chain[0](x), derivative(chain[0], 0)(x), *(chain[n](x) for n in (1, 2, 4)))


def kdv_functions(net: nn.Module, x: Tensor) -> Tensor:
    value = lambda x: net(x)[:, 0]  # noqa: E731
    u_x, u_y = derivative(value, 1), derivative(value, 2)
    u_xx, u_yy = derivative(u_x, 1), derivative(u_y, 2)
    u_xxxy = derivative(derivative(u_xx, 1), 2)
    return kdv(*(f(x) for f in (derivative(u_y, 0), u_xxxy, u_x, u_y, u_xx, derivative(u_x, 2), u_yy)))


KURAMOTO = (kuramoto(u, Partial(0)(u), *(Partial(*[1] * n)(u) for n in (1, 2, 4))), kuramoto_nested, kuramoto_functions)
KDV = (
    kdv(*(Partial(*c)(u) for c in ((0, 2), (1, 1, 1, 2), (1,), (2,), (1, 1), (1, 2), (2, 2)))),
    kdv_nested,
    kdv_functions,
)


# --- timing


class Step:
    """The mean square of a residual and its gradient to the weights.

    Args:
        net: whose weights.
        residual: from ``inputs`` to values (b).
        inputs: points and samples.
        compiled: whether to compile, which takes ``torch.func`` for derivatives by autograd.
    """

    def __init__(self, net: nn.Module, residual: Callable[..., Tensor], *inputs: Any, compiled: bool = False):
        self.weights, self.inputs = list(net.parameters()), inputs
        self.loss: Callable[..., Tensor] = lambda *inputs: residual(*inputs).square().mean()
        if compiled:
            self.loss = torch.compile(self.loss, fullgraph=True, dynamic=False)

    def __call__(self) -> tuple[Tensor, list[Tensor]]:
        loss = self.loss(*self.inputs)
        return loss.detach(), list(torch.autograd.grad(loss, self.weights, allow_unused=True))


def both(name: str, net: nn.Module, residual: Callable[..., Tensor], *inputs: Any) -> dict[str, Step]:
    """A step, eager and compiled."""
    compiled = f"{name} compiled" if name else "compiled"
    return {
        name or "eager": Step(net, residual, *inputs),
        compiled: Step(net, residual, *inputs, compiled=True),
    }


def timed(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float | str]:
    """Milliseconds of each step, and ratios to ours, once all of them give the same; slow ones are called twice."""
    first: dict[str, float | str] = {}
    slow, expected = [], []
    for name, call in steps.items():
        start = time.perf_counter()
        loss, gradients = call()
        seconds = time.perf_counter() - start
        if "compiled" in name:
            first[f"{name} first s"] = seconds
        elif seconds > SLOW:
            slow.append(name)
        found = [torch.tensor(float(loss)), *(torch.from_numpy(np.array(g)) for g in gradients[:-1])]  # no last bias
        expected = expected or found
        off = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        if not off < AGREE:
            raise ValueError(f"{name}: expected the loss and its gradient, got them with an error of {off}")
    times = interleaved({name: call for name, call in steps.items() if name not in slow}, repeats, warmup=2)
    times |= interleaved({name: steps[name] for name in slow}, 2, warmup=0) if slow else {}
    milliseconds = {name: 1e3 * timing.cpu.median for name, timing in times.items()}
    row: dict[str, float | str] = {f"{name} ms": value for name, value in milliseconds.items()}
    for own in ("eager", "compiled"):
        peers = [name for name in milliseconds if name not in ("eager", "compiled")]
        row |= {f"{own} vs {name}": milliseconds[name] / milliseconds[own] for name in peers}
    return row | first


# --- memory


def saved(d: int) -> float:
    """Bytes that the backward pass of a step keeps beside points and weights."""
    t = task(d, "each")
    given = {v.untyped_storage().data_ptr() for v in (t.x, *t.net.parameters())}
    kept: dict[int, int] = {}

    def keep(v: Tensor) -> Tensor:
        storage = v.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
        loss = ours(t.net, t.x, t.rhs, t.draw).square().mean()
        found = float(sum(kept.values()))
    del loss
    return found


def peak(d: int, seed: int) -> dict[str, float | str]:
    """What a process takes that takes one step."""
    command = [sys.executable, __file__, str(d), str(seed)]
    rss, first, second = subprocess.check_output(command, text=True).split()
    return {"peak GiB": float(rss) / 2**20, "first step CPU s": float(first), "second step CPU s": float(second)}


def two_steps(d: int, seed: int) -> None:
    """Print the peak of the resident memory in KiB, and the seconds of two steps."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    t, seconds = task(d, "each"), []
    for _ in range(2):
        start = time.process_time()
        Step(t.net, ours, t.net, t.x, t.rhs, t.draw)()
        seconds.append(time.process_time() - start)
    print(peak_kib(), *seconds)


def peak_kib() -> int:
    """The peak of this process's resident memory; getrusage would count its parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1])


if __name__ == "__main__":
    two_steps(*map(int, sys.argv[1:]))
