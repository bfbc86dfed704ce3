"""Implicit steps of the heat equation on a mesh of finite elements, with one preconditioner or another inside.

Kvaerno5 at rtol = 1e-4 from a smooth initial state to t = .05, lognormal coefficient of contrast 1e3, about 4,000 or
16,000 unknowns in the plane or 5,000 in the cube, CPU time of one solve (median of three, interleaved). ``error`` is
the largest difference to a solution at rtol = 1e-7 over that solution's largest value at the start; with ``difference``
that to the first preconditioner's solution. A set-up serves all stages of a trial; ``iterations`` are those of a linear
solve on average, ``set-up`` is the CPU time of one (median over the trials).

"learned" is the two-level preconditioner of the example ``fem_preconditioner``, trained once for each state of the code
that it depends on, into the cache, on meshes of at most 1,000 unknowns and steps from 1e-5 to .1. It starts from FSAI
with smoothed aggregates, "smoothed", which has as many entries; ``inference`` is what its set-up takes longer than
theirs, ``fell back`` counts solves that its fallback had to finish.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml import PID, Solver, solve
from sciml.problems import Conduction, FiniteElements, Lognormal
from sciml.solvers import CG, Kvaerno5
from sciml.solvers.linear import (
    FSAI,
    Aggregation,
    AlgebraicMultigrid,
    Chebyshev,
    IncompleteCholesky,
    Jacobi,
    LinearOperator,
    LinearSolution,
    Preconditioner,
    Prepared,
)
from timing import interleaved
from trained import trained

RTOL, T1 = 1e-4, 0.05
ROUGH = Lognormal(contrast=1e3, correlation=0.08)
MESHES = {"mesh 2d": (64, 2), "mesh 2d, fine": (128, 2), "mesh 3d": (14, 3)}  # cells along an edge, dimension
CLASSIC: dict[str, Callable[[], Preconditioner]] = {
    "jacobi": Jacobi,
    "fsai": FSAI,
    "ic": IncompleteCholesky,
    "mic .9": lambda: IncompleteCholesky(0.9),
    "chebyshev": lambda: Chebyshev(3, 60.0),
    "fsai + aggregates": Aggregation,
    "smoothed": lambda: Aggregation(damping=2 / 3),
    "ruge stuben": AlgebraicMultigrid,
}


@dataclass(frozen=True)
class Counting(CG):
    """Conjugate gradients that count solves, iterations and fallbacks."""

    counts: dict[str, int] = field(default_factory=lambda: {"solves": 0, "iterations": 0, "fell back": 0})

    def solve(self, operator: LinearOperator, b: Tensor, x: Tensor) -> LinearSolution:
        solution = super().solve(operator, b, x)
        self.counts["solves"] += len(b)
        self.counts["iterations"] += int(solution.iterations.sum())
        self.counts["fell back"] += int(solution.fell_back.sum())
        return solution


class Timed(Preconditioner):
    """Notes the seconds of its set-ups."""

    def __init__(self, given: Preconditioner):
        self.given, self.fallback = given, given.fallback
        self.seconds: list[float] = []

    def setup(self, operator: LinearOperator) -> Prepared:
        start = time.process_time()
        prepared = self.given.setup(operator)
        self.seconds.append(time.process_time() - start)
        return prepared


def cases() -> list[str]:
    return list(MESHES)


def run(case: str, seed: int) -> dict[str, float | str]:
    cells, dimension = MESHES[case]
    space = FiniteElements(cells=cells, dimension=dimension, coefficient=ROUGH).discretise(seed)
    term = Conduction(space)
    y0 = torch.from_numpy(np.sin(np.pi * space.points).prod(1) + 0.3 * np.sin(3 * np.pi * space.points).prod(1))
    model, seconds = trained("fem_preconditioner", seed)
    kinds: dict[str, Any] = {**{name: make() for name, make in CLASSIC.items()}, "learned": model}

    def end(linear: CG, rtol: float = RTOL) -> Tensor:
        return solve(term, y0, 0.0, T1, Solver(Kvaerno5(linear=linear), PID(rtol=rtol, atol=1e-2 * rtol))).ys

    reference = end(CG(IncompleteCholesky(), rtol=1e-11), 1e-7)
    scale = y0.abs().max()
    row: dict[str, float | str] = {"n": len(y0)}
    timings = interleaved({name: lambda m=m: end(CG(m)) for name, m in kinds.items()}, 3)
    first: Tensor | None = None
    for name, m in kinds.items():
        timed = Timed(m)
        counting = Counting(timed)
        found = end(counting)
        first = found if first is None else first
        counts, setups = counting.counts, timed.seconds
        row[f"{name} s"] = timings[name].cpu.median
        row[f"{name} iterations"] = counts["iterations"] / counts["solves"]
        row[f"{name} solves per set-up"] = counts["solves"] / len(setups)
        row[f"{name} set-up ms"] = 1e3 * median(setups)
        row[f"{name} error / rtol"] = float((found - reference).abs().max() / scale) / RTOL
        row[f"{name} difference / rtol"] = float((found - first).abs().max() / scale) / RTOL
    row["inference ms"] = float(row["learned set-up ms"]) - float(row["smoothed set-up ms"])
    row["fell back"] = counts["fell back"]  # of the last one, which is learned
    row["training s"] = seconds
    return row
