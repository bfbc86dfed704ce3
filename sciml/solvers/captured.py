"""Compiled code whose kernels are launched all at once: recorded as a CUDA graph and replayed.

A small field's step is some hundred kernels of a few microseconds each, and launching one from Python takes longer
than running it. A graph reads and writes fixed addresses, so it is known by those of all its inputs, the weights among
them: what lies elsewhere is recorded anew, and nothing is ever copied in.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICES = {"cuda"}  # the kinds that have graphs
GRAPHS = 16  # of one piece of code, the oldest dropped first
SEEN = 256  # sets of addresses that were met once


class Captured:
    """Code that takes tensors and numbers and gives tensors, recorded when its inputs come a second time.

    It may write to its inputs, and must not read a number from the device. What it gives is overwritten by the next
    call.

    Args:
        run: the code; it has run before, so that nothing is left to load.
    """

    def __init__(self, run: Callable[..., Any]):
        self.run = run
        self.graphs: dict[tuple[Any, ...], tuple[Callable[[], None], Any]] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.fails = False

    def __call__(self, *inputs: Any) -> Any:
        """What the code gives."""
        if self.fails:
            return self.run(*inputs)
        where = tuple(x.data_ptr() if isinstance(x, Tensor) else x for x in inputs)
        found = self.graphs.get(where)
        if found is None:
            found = self._recorded(where, inputs)
        if found is None:
            return self.run(*inputs)
        replay, outputs = found
        replay()
        return outputs

    def _recorded(self, where: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Callable[[], None], Any] | None:
        """A graph, from the second time on."""
        if where not in self.seen:
            if len(self.seen) == SEEN:
                self.seen.clear()
            self.seen.add(where)
            return None
        try:
            found = record(self.run, inputs)
        except RuntimeError as error:
            self.fails = not isinstance(error, torch.OutOfMemoryError)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"compile: kernels are launched one by one, not as a CUDA graph: {reason}", stacklevel=7)
            return None
        if len(self.graphs) == GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        self.graphs[where] = found
        return found


def stream(device: torch.device) -> int:
    """What work on a device waits for in order."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def capturable(inputs: tuple[Any, ...]) -> bool:
    """Whether all tensors lie on one device that has graphs: a number read from the host would be fixed."""
    devices = {x.device for x in inputs if isinstance(x, Tensor)}
    return len(devices) == 1 and devices.pop().type in DEVICES


def record(run: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
    """What replays the code on these tensors, and the tensors that it then fills; nothing has run yet.

    Raises:
        RuntimeError: the code waits for the device.
    """
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    graph = torch.cuda.CUDAGraph()
    # Threads that load data may allocate meanwhile.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run(*inputs)
    return graph.replay, outputs
