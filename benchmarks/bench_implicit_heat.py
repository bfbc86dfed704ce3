"""Implicit steps of the heat equation on a mesh of finite elements, with one preconditioner or another inside.

Kvaerno5 at rtol = 1e-4 from a smooth initial state to t = .05, lognormal coefficient of contrast 1e3, about 4,000
unknowns, CPU time of one solve (median of three, interleaved). ``error`` is the largest difference to a solution at
rtol = 1e-7 over that solution's largest value at the start; with ``difference`` that to the first preconditioner's
solution. A set-up serves all stages of a trial; ``iterations`` are those of a linear solve on average.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

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
)
from timing import interleaved

RTOL, T1, CELLS = 1e-4, 0.05, 64
PRECONDITIONERS: dict[str, Callable[[], Preconditioner]] = {
    "jacobi": Jacobi,
    "fsai": FSAI,
    "ic": IncompleteCholesky,
    "mic .9": lambda: IncompleteCholesky(0.9),
    "chebyshev": lambda: Chebyshev(3, 60.0),
    "fsai + aggregates": Aggregation,
    "ruge stuben": AlgebraicMultigrid,
}


@dataclass(frozen=True)
class Counting(CG):
    """Conjugate gradients that count solves, iterations and set-ups."""

    counts: dict[str, int] = field(default_factory=lambda: {"solves": 0, "iterations": 0, "set-ups": 0})

    def _prepared(self, operator: LinearOperator):
        self.counts["set-ups"] += isinstance(self.preconditioner, Preconditioner)
        return super()._prepared(operator)

    def solve(self, operator: LinearOperator, b: Tensor, x: Tensor) -> LinearSolution:
        solution = super().solve(operator, b, x)
        self.counts["solves"] += len(b)
        self.counts["iterations"] += int(solution.iterations.sum())
        return solution


def cases() -> list[str]:
    return ["mesh 2d"]


def run(case: str, seed: int) -> dict[str, float | str]:
    space = FiniteElements(cells=CELLS, coefficient=Lognormal(contrast=1e3, correlation=0.08)).discretise(seed)
    term = Conduction(space)
    y0 = torch.from_numpy(np.sin(np.pi * space.points).prod(1) + 0.3 * np.sin(3 * np.pi * space.points).prod(1))

    def end(linear: CG, rtol: float = RTOL) -> Tensor:
        return solve(term, y0, 0.0, T1, Solver(Kvaerno5(linear=linear), PID(rtol=rtol, atol=1e-2 * rtol))).ys

    reference = end(CG(IncompleteCholesky(), rtol=1e-11), 1e-7)
    scale = y0.abs().max()
    row: dict[str, float | str] = {"n": len(y0)}
    timings = interleaved({name: lambda make=make: end(CG(make())) for name, make in PRECONDITIONERS.items()}, 3)
    first: Tensor | None = None
    for name, make in PRECONDITIONERS.items():
        counting = Counting(make())
        found = end(counting)
        first = found if first is None else first
        counts = counting.counts
        row[f"{name} s"] = timings[name].cpu.median
        row[f"{name} iterations"] = counts["iterations"] / counts["solves"]
        row[f"{name} solves per set-up"] = counts["solves"] / counts["set-ups"]
        row[f"{name} error / rtol"] = float((found - reference).abs().max() / scale) / RTOL
        row[f"{name} difference / rtol"] = float((found - first).abs().max() / scale) / RTOL
    return row
