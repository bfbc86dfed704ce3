"""Brownian motion that compiled marches ask the host for: the numbers of eager ones, bit by bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml import solve
from sciml.solvers import (
    PID,
    SRIW1,
    Brownian,
    Diffusive,
    Discrete,
    EulerMaruyama,
    Grid,
    Milstein,
    Solver,
    compiled,
    hosted,
)
from sciml.solvers import brownian as module
from tests.solvers.systems import DTYPE

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
# The same float64 operations in another order, some units in the last place a step.
ROUND_OFF = 1e-11


class Growth(Diffusive):
    noise_type = "diagonal"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0.1 * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * y * dw


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but the last stage of compilation, which takes most of the time: graphs run as they are."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: real(f, fullgraph=True, backend="aot_eager"))
    yield
    compiled.forget()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ends were asked for at a time."""
    found: list[int] = []
    real = Brownian.remembered

    def remembered(self: Brownian, streams: Tensor, theta0: Tensor, theta1: Tensor) -> Tensor:
        found.append(theta0.numel())
        return real(self, streams, theta0, theta1)

    monkeypatch.setattr(Brownian, "remembered", remembered)
    return found


def steps(generator: np.random.Generator, lanes: int) -> tuple[Tensor, Tensor]:
    """Nodes of any level, and some steps that are none, and some of no length."""
    level, what = generator.integers(0, 20, lanes), generator.random(lanes)
    start = np.floor(generator.random(lanes) * 2.0**level) * 2.0**-level
    end = start + 2.0**-level
    start = np.where(what < 0.1, 0.5 * generator.random(lanes), start)
    end = np.where(what < 0.1, start + 0.3 * generator.random(lanes), end)
    return torch.from_numpy(start), torch.from_numpy(np.where(what > 0.9, start, end))


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("stepper", [EulerMaruyama(), SRIW1()], ids=lambda s: type(s).__name__)
def test_compiled_loops_over_lanes_give_the_same_numbers(stepper: Any, dtype: torch.dtype):
    pytest.importorskip("numba")
    y0, generator = torch.ones(64, 3, dtype=dtype), np.random.default_rng(0)
    times = torch.zeros(64, dtype=DTYPE), torch.ones(64, dtype=DTYPE)
    eager, quick = (Brownian(seed=5).within(stepper, PID(), *times, y0, "each") for _ in range(2))
    streams, *_ = quick.hosted(quick.tensors())
    for _ in range(100):
        ends = steps(generator, 64)
        expected = torch.stack(eager._in_lanes(eager.tensors(), *ends))
        told = hosted.increment(streams, hosted.ticket(quick), *ends, (1 + quick.areas, 64, 3), dtype)
        assert torch.equal(told, expected)
        assert told.is_contiguous()  # which compiled code relies on
    assert quick._quick is not None


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("lanes", "by", "numba"),
    [
        ("joint", "tree", False),
        ("joint", "step", False),
        ("joint", "adaptive", False),
        ("each", "step", False),
        ("each", "tree", False),
        ("each", "adaptive", True),
    ],
)
def test_compiled_marches_ask_the_host(
    lanes: Any, by: Any, numba: bool, asked: list[int], monkeypatch: pytest.MonkeyPatch
):
    if numba:
        pytest.importorskip("numba")
    monkeypatch.setattr(module, "available", lambda: numba)
    stepper, controller = (SRIW1(), PID(1e-2, 1e-2)) if by == "adaptive" else (Milstein(), Grid(n=5))
    path = Brownian(seed=1) if by == "adaptive" else Brownian(seed=1, cells=5, by=by)
    found = []
    for mode in (None, "loop"):
        asked.clear()
        y0 = torch.linspace(0.5, 1.5, 6, dtype=DTYPE).reshape(3, 2).requires_grad_()
        strength = torch.full((3, 1), 0.5, dtype=DTYPE, requires_grad=True)
        solver = Solver(stepper, controller, Discrete("all"), lanes=lanes, compile=mode)
        solution = solve(Growth(), y0, 0.0, 1.0, solver, args=(strength,), path=path)
        found.append((solution.ys, *torch.autograd.grad(solution.ys.square().sum(), [y0, strength])))
    trials = int((solution.stats.accepted + solution.stats.rejected).max())
    assert len(asked) == trials + int(solution.stats.accepted.max())  # forward and back
    assert set(asked) == {3 if lanes == "each" else 1}
    assert all(torch.allclose(a, b, ROUND_OFF, ROUND_OFF) for a, b in zip(*found, strict=True))


def test_what_fails_on_the_host_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch):
    """Compiled code makes an error without a reason of it."""
    compiled.forget()
    solver, calls = Solver(EulerMaruyama(), Grid(n=8), compile="loop"), []
    go = lambda: solve(Growth(), torch.ones(2, 2), 0.0, 1.0, solver, args=(torch.ones(1),), path=Brownian(seed=1)).ys  # noqa: E731
    real = Brownian.remembered

    def interrupted(self: Brownian, *args: Any) -> Any:
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt("by the user")
        return real(self, *args)

    with torch.no_grad():
        expected = go()
        monkeypatch.setattr(Brownian, "remembered", interrupted)
        with pytest.raises(KeyboardInterrupt, match="by the user"):
            go()
        assert torch.equal(go(), expected)
    compiled.forget()
