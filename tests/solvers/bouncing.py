"""Systems with events: a ball that bounces, and a driven pendulum that is kicked."""

from typing import Any

import torch
from torch import Tensor, nn

from sciml import Discrete, Solver, solve
from sciml.solvers import PID, Event, Quadrature, Steps, Tsit5
from tests.solvers.systems import DTYPE

KINDS = ["joint", "each"]
ADJOINTS = [Discrete("graph"), Discrete("all"), Discrete("every", 3)]
FINE = PID(1e-9, 1e-11)
GRAVITY = 9.81


def row(*numbers: float, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


def name(adjoint: Discrete) -> str:
    return adjoint.store + (str(adjoint.every) if adjoint.every else "")


def started(kind: str, *numbers: float) -> Tensor:
    """One system: a vector, or a batch of one."""
    return row(*numbers)[None] if kind == "each" else row(*numbers)


def falling(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], torch.full_like(y[..., 1], -GRAVITY)], -1)


def height(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    return y[..., 0]


def bouncing(e: float) -> Event:
    return Event(height, -1, reset=lambda t, y, args: y * torch.tensor([1.0, -e], dtype=y.dtype))


class Level(nn.Module):
    """A moving level with a weight: g = x - w cos(t) - a."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(row(0.3).squeeze())

    def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y[..., 0] - self.w * t.reshape(y.shape[:-1]).cos() - args[1]


class Kick(nn.Module):
    """A reset with a weight, of state and time."""

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(row(0.8).squeeze())

    def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        t = t.reshape(y.shape[:-1])
        return torch.stack([y[..., 0] - 0.1 * t.sin() ** 2, -self.v * y[..., 1] + args[0] * 0.1 * t], -1)


def driven(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    x, v = y.unbind(-1)
    return torch.stack([v, -args[0] * x.sin() - 0.1 * v + 0.3 * (2 * t).cos().reshape(x.shape)], -1)


def problem(kind: str):
    """Inputs of `driven` with a reset, a recorded and a terminating event; the latter in one sample of two."""
    y0 = row(1.0, 0.3) if kind == "joint" else torch.stack([row(1.0, 0.3), row(1.4, -0.2)])
    t0, t1 = (row(0.1, 0.2), row(7.0, 6.0)) if kind == "each" else (row(0.1)[0], row(7.0)[0])
    w2, a = row(1.3)[0], row(-0.1)[0]
    level, kick = Level(), Kick()
    inputs = [x.requires_grad_() for x in (y0, t0, t1, w2, a)] + [level.w, kick.v]
    events = {
        "kick": Event(level, -1, reset=kick),
        "turn": Event(lambda t, y, args: y[..., 1] - 0.2 * args[1], terminate=False),
        "end": Event(lambda t, y, args: t.reshape(y.shape[:-1]) + 0.5 * y[..., 0] - 5.5),
    }
    return inputs, events


def results(kind: str, events: Any, controller: Any, adjoint: Discrete, y0, t0, t1, w2, a, *weights, mesh=None):
    """Everything that a solve gives, with the padding left out."""
    solver = Solver(Tsit5(), controller, adjoint, lanes=kind)
    folds = {"q": Quadrature(lambda t, y, args: y.square() * args[0]), "nodes": Steps()}
    ts = torch.linspace(0.5, 5.9, 7, dtype=DTYPE)
    s = solve(driven, y0, t0, t1, solver, args=(w2, a), events=events, save_at=ts, folds=folds, mesh=mesh)
    met = [x[~x.isnan()] for crossings in s.events.values() for x in (crossings.ts, crossings.ys)]
    return s, (s.ys, s.folds["q"], s.folds["nodes"].ys, s._y, s._t, *met)
