"""Kernels replayed as a graph. The host has none: here one is the code itself, on the tensors it was recorded with.

The tests marked ``gpu`` are the same on a device that has them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sciml import solve
from sciml.solvers import PID, Bosh3, Discrete, Quadrature, Solver, bound, captured, compiled
from sciml.solvers.captured import GRAPHS, Captured
from tests.solvers.systems import DTYPE, Net

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

# Compiled code sums in another order, 1e-16 a step; sizes of steps follow error estimates, which cancel digits.
ROUND_OFF, STEPS = (1e-9, 1e-12), (1e-7, 1e-9)


class Recorder:
    """In the place of `captured.record`."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Callable[[], None], list[Tensor]]:
        outputs: list[Tensor] = []
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            found = run(*inputs)
            if outputs:
                for place, x in zip(outputs, found, strict=True):
                    place.copy_(x)
            outputs.extend(found[len(outputs) :])

        return replay, outputs


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Graphs on the host."""
    made = Recorder()
    compiled.forget()
    captured.DEVICES.add("cpu")
    monkeypatch.setattr(captured, "record", made)
    yield made
    captured.DEVICES.remove("cpu")
    compiled.forget()


def grow(x: Tensor, n: int) -> list[Tensor]:
    x.add_(n)
    return [2 * x]


def test_code_is_recorded_when_its_inputs_come_again_and_known_by_their_addresses(recorder: Recorder):
    code, x, y = Captured(grow), torch.zeros(3), torch.ones(3)
    for i in range(1, 5):
        (found,) = code(x, 1)
        assert found.tolist() == [2.0 * i] * 3
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    assert code(y, 1)[0].tolist() == [4.0] * 3
    assert code(x, 2)[0].tolist() == [12.0] * 3
    assert recorder.recorded == 1
    assert code(x, 2)[0].tolist() == [16.0] * 3
    assert recorder.recorded == 2


def test_oldest_graphs_are_dropped(recorder: Recorder):
    code, xs = Captured(grow), [torch.zeros(1) for _ in range(GRAPHS + 1)]
    for x in xs:
        for i in range(1, 4):
            assert code(x, 1)[0].item() == 2 * i
    assert len(code.graphs) == GRAPHS
    assert code(xs[0], 1)[0].item() == 8
    assert recorder.recorded == GRAPHS + 2


def test_code_that_waits_for_the_device_goes_on_without_a_graph(monkeypatch: pytest.MonkeyPatch):
    def refuse(run: Any, inputs: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured, "record", refuse)
    code, x = Captured(grow), torch.zeros(1)
    code(x, 1)
    with pytest.warns(UserWarning, match="one by one, not as a CUDA graph: operation not permitted when stream is cap"):
        assert code(x, 1)[0].item() == 4
    assert code(x, 1)[0].item() == 6


def test_march_replays_chunks_whatever_comes(recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bound, "ROWS", 8)  # so that one march fills several blocks
    check_marches(torch.device("cpu"), lambda: (recorder.recorded, recorder.replayed))


@pytest.mark.usefixtures("recorder", "traced")
def test_blocks_of_inference_mode_serve_no_others():
    net, y0, solver = Net(), torch.ones(3, 2, dtype=DTYPE), Solver(Bosh3(), compile="chunks")
    with torch.inference_mode():
        expected = solve(net, y0, 0.0, 1.0, solver).ys
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(solve(net, y0, 0.0, 1.0, solver).ys, expected)


@pytest.mark.gpu
def test_march_replays_chunks_on_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bound, "ROWS", 8)
    recorded, real = [], captured.record

    def counted(*args: Any) -> Any:
        graph, outputs = real(*args)
        recorded.append([0])
        return (lambda: (graph(), recorded[-1].append(0))[0]), outputs

    monkeypatch.setattr(captured, "record", counted)
    compiled.forget()
    check_marches(torch.device("cuda"), lambda: (len(recorded), sum(map(len, recorded)) - len(recorded)))


def check_marches(device: torch.device, count: Callable[[], tuple[int, int]]) -> None:
    """Solves whose chunks are replayed are the eager ones; one recording serves them."""
    net, generator = Net().to(device), torch.Generator().manual_seed(0)
    kept: list[tuple[Any, Any]] = []

    def both(y0: Tensor, t1: float, rtol: float = 1e-6, keep: bool = False) -> list[Any]:
        found = []
        for mode in ("chunks", None):
            solver = Solver(Bosh3(), PID(rtol, rtol, 0.1), Discrete("all"), compile=mode)
            with torch.set_grad_enabled(keep):
                work = Quadrature(lambda t, y, args: y.square())
                found.append(solve(net, y0, 0.0, t1, solver, save_at=[0.3, 0.7], folds={"work": work}))
        return found

    for t1, rtol in ((1.0, 1e-6), (1.5, 1e-6), (2.0, 1e-8), (1.0, 1e-6)):
        kept.append(both(torch.randn(3, 2, dtype=DTYPE, generator=generator).to(device), t1, rtol))
        with torch.no_grad():
            net.inner.mul_(1.1)  # as an optimiser does
    for chunks, eager in kept:  # what came later has changed none of them
        assert torch.allclose(chunks.ys, eager.ys, *ROUND_OFF)
        assert torch.allclose(chunks.folds["work"], eager.folds["work"], *ROUND_OFF)
        assert torch.allclose(chunks.mesh.theta, eager.mesh.theta, *STEPS)
        assert torch.equal(chunks.stats.accepted, eager.stats.accepted)
    recorded, replayed = count()
    assert recorded == 2  # tolerances are tensors of a solver's
    assert replayed > 30

    before = count()[0]
    y0 = torch.randn(3, 2, dtype=DTYPE, generator=generator).to(device).requires_grad_()
    chunks, eager = (
        torch.autograd.grad(s.ys.square().sum(), [y0, *net.parameters()]) for s in both(y0, 1.0, keep=True)
    )
    assert all(torch.allclose(a, b, *STEPS) for a, b in zip(chunks, eager, strict=True))
    both(torch.randn(5, 2, dtype=DTYPE, generator=generator).to(device), 1.0)  # another batch
    assert count()[0] > before


@pytest.mark.gpu
def test_chunk_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    device, waits = torch.device("cuda"), []
    net, y0 = Net().to(device), torch.ones(3, 2, dtype=DTYPE, device=device)
    solver = Solver(Bosh3(), PID(1e-8, 1e-8, 0.1), compile="chunks")
    compiled.forget()

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return run(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits.append(0)

        return call

    with torch.no_grad():
        expected = [solve(net, y0, 0.0, 1.0, solver).ys for _ in range(3)][-1]
        (program,) = compiled._programs.values()
        monkeypatch.setattr(program, "forward", watched(program.forward))
        assert torch.equal(solve(net, y0, 0.0, 1.0, solver).ys, expected)
    assert len(waits) > 5
