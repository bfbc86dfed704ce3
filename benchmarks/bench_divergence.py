"""CPU time of a training step with the divergence of a vector field, beside autograd's loop, eager, in float32.

A step is a field's value and divergence at 256 points, the sum of their squares, and backward. The field is a
perceptron of depth 3 with 64 units. "loop" takes a backward pass for every coordinate, as the brute-force divergence of
FFJORD does; "exact" is ours; "hutchinson" is v . J v with one direction, "vjp" the same by two reverse passes.
"""

import torch
from torch import Tensor, nn

from sciml.calculus import probes, value_and_divergence
from sciml.models import MLP
from timing import interleaved

SIZES = (2, 8, 32, 64, 128, 256)
POINTS, WIDTH, REPEATS = 256, 64, 15


def cases() -> list[str]:
    return [f"d = {d}" for d in SIZES]


def run(case: str, seed: int) -> dict[str, float | str]:
    d = int(case.removeprefix("d = "))
    torch.manual_seed(seed)
    field, x = MLP(d, d, width=WIDTH, depth=3), torch.randn(POINTS, d)
    v = probes(x.shape, x)
    methods = {
        "exact": lambda: value_and_divergence(field, x),
        "loop": lambda: loop(field, x),
        "hutchinson": lambda: value_and_divergence(field, x, v),
        "vjp": lambda: vjp(field, x, v),
    }
    steps = {name: (lambda method=method: step(field, *method())) for name, method in methods.items()}
    times = {name: timing.cpu.median for name, timing in interleaved(steps, REPEATS, warmup=3).items()}
    return {
        **{f"{name} CPU ms": 1e3 * seconds for name, seconds in times.items()},
        "loop / exact": times["loop"] / times["exact"],
        "vjp / hutchinson": times["vjp"] / times["hutchinson"],
    }


def step(field: nn.Module, value: Tensor, divergence: Tensor) -> None:
    field.zero_grad()
    (value.square().sum() + divergence.square().sum()).backward()


def loop(field: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.requires_grad_()
    value, total = field(x), torch.zeros(len(x))
    for i in range(x.shape[1]):
        total = total + torch.autograd.grad(value[:, i].sum(), x, create_graph=True)[0][:, i]
    return value, total


def vjp(field: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    x = x.requires_grad_()
    value = field(x)
    (row,) = torch.autograd.grad(value, x, v, create_graph=True)
    return value, (row * v).sum(-1)
