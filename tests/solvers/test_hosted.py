"""Brownian motion that compiled marches ask the host for: the numbers of eager ones, bit by bit."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
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
    Discrete,
    EulerMaruyama,
    Grid,
    Milstein,
    Solver,
    compiled,
    hosted,
    ways,
)
from sciml.solvers import brownian as module
from tests.solvers.systems import DTYPE, Growth

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
# The same float64 operations in another order, some units in the last place a step.
ROUND_OFF = 1e-11


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
        pytest.param("joint", "tree", False, marks=pytest.mark.slow),
        ("joint", "step", False),
        ("joint", "adaptive", False),
        ("each", "step", False),
        pytest.param("each", "tree", False, marks=pytest.mark.slow),
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


def path_of(lanes: int) -> Brownian:
    times = torch.zeros(lanes, dtype=DTYPE), torch.ones(lanes, dtype=DTYPE)
    return Brownian(seed=5).within(SRIW1(), PID(), *times, torch.ones(lanes, 3, dtype=DTYPE), "each")


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "numpy"])
def test_an_interruption_leaves_nothing_half_made(numba: bool, monkeypatch: pytest.MonkeyPatch):
    if numba:
        pytest.importorskip("numba")
    monkeypatch.setattr(module, "available", lambda: numba)
    path, ends = path_of(9), steps(np.random.default_rng(1), 9)
    streams, *_ = path.hosted(path.tensors())
    expected = path.remembered(streams, *ends)
    path.remembered(streams, *steps(np.random.default_rng(2), 9))

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for place in (module, ways):
            patch.setattr(place, "halved_normals", interrupted)
        with pytest.raises(KeyboardInterrupt):
            path.remembered(streams, *ends)
    assert torch.equal(path.remembered(streams, *ends), expected)


def test_threads_may_ask_one_path():
    path, generator = path_of(500), np.random.default_rng(3)
    streams, *_ = path.hosted(path.tensors())
    asked = [steps(generator, 500) for _ in range(40)]
    expected = [path.remembered(streams, *ends) for ends in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ends: path.remembered(streams, *ends), asked * 5))
    assert all(torch.equal(x, y) for x, y in zip(found, expected * 5, strict=True))


class Scaled(Brownian):
    """With a tensor more."""

    def tensors(self) -> tuple[Tensor, ...]:
        return *super().tensors(), torch.tensor(2.0, dtype=DTYPE)

    def increment(self, tensors: tuple[Tensor, ...], theta0: Any, theta1: Any, span: Tensor) -> Any:
        return tensors[3] * super().increment(tensors[:3], theta0, theta1, span)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("kind", "entries"), [(Scaled, 2), (Brownian, 0)], ids=["more tensors", "no entries"])
def test_other_paths_are_compiled_too(kind: type[Brownian], entries: int):
    ys = []
    for mode in (None, "loop"):
        solver = Solver(EulerMaruyama(), Grid(n=8), lanes="each", compile=mode)
        y0 = torch.ones(3, entries, dtype=DTYPE)
        with torch.no_grad():
            ys.append(solve(Growth(), y0, 0.0, 1.0, solver, args=(torch.ones(1, dtype=DTYPE),), path=kind(seed=1)).ys)
    assert torch.allclose(*ys, ROUND_OFF, ROUND_OFF)


def test_a_path_that_was_asked_is_copied_and_pickled():
    path, ends = path_of(9), steps(np.random.default_rng(1), 9)
    streams, *_ = path.hosted(path.tensors())
    expected = path.remembered(streams, *ends)
    for other in (deepcopy(path), pickle.loads(pickle.dumps(path))):
        streams, *_ = other.hosted(other.tensors())
        assert torch.equal(other.remembered(streams, *ends), expected)


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
