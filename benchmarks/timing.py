"""Timing on a machine that does other things too."""

import time
from collections.abc import Callable, Mapping
from statistics import quantiles
from typing import Any, NamedTuple


class Quartiles(NamedTuple):
    """Seconds per call."""

    lower: float
    median: float
    upper: float


class Timing(NamedTuple):
    """What calls of one function cost."""

    cpu: Quartiles  # of all threads of the process
    wall: Quartiles


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1, lead: int = 0
) -> dict[str, Timing]:
    """Time functions in turn, A B A B .., so that a slow spell of the machine meets all of them alike.

    A function that works on a GPU has to synchronise before it returns. The number of threads is the caller's
    (``--threads`` of run.py).

    Args:
        functions: what to time, by name.
        repeats: timed calls of each, at least two.
        warmup: calls of each before that, not timed.
        lead: calls right before each timed one, not timed, which find the caches as another function has left them.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            for _ in range(lead):
                function()
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn >= warmup:
                times[name].append((cpu, wall))
    return {name: Timing(*(_quartiles(column) for column in zip(*rows, strict=True))) for name, rows in times.items()}


def _quartiles(seconds: tuple[float, ...]) -> Quartiles:
    return Quartiles(*quantiles(seconds, n=4, method="inclusive"))
