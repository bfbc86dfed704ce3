"""Relaxation parameters learned over sequences of linear systems, beside fixed, random and computed ones.

Sequences, to relative residuals of 1e-8: ``shifts`` is the experiment of Khodak et al. (2024), 2000 five-point
Laplacians of 100 unknowns with the shift -.15 + .6 Beta(.5, 1.5) of the diagonal, by SOR from 0. ``heat, SOR`` (1000
steps, 24 x 24 cells) and ``heat, SSOR-CG`` (600, 48 x 48) are implicit steps of a heat equation with a lognormal
coefficient of contrast 1000 and log-uniform time steps from 1e-4 to 1e-1 and from 1e-5 to 1, each from the last
solution; in ``drift, SSOR-CG`` (600) the step is .01 and the coefficient turns to another one, by .02 in a step.
Contexts are the shift and log dt.

The iterations of all 20 omegas from 1 to 1.95 are counted once for a sequence, so that policies by chance can be
played 20 times for nothing. Columns are mean iterations of all solves and of those after 200; what the latter are
above those of the best omega of the grid for each system, and above those of the best fixed one; and the power of the
number of solves by which the mean regret so far falls, against the best fixed omega without a context and the best
for each system with one. The constants of ``regression`` were chosen on sequences of seed 0. ``ridge, greedy`` is a
series for each omega with chance that dies out. The picture ``relaxation.png`` has the regret so far.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy import ndarray
from numpy.polynomial.chebyshev import chebvander

from sciml.problems import Diffusion, Heat, Lognormal
from sciml.solvers.linear import SSOR, LearnedOmega, SparseOperator, pcg, sor, young_omega

GRID = np.linspace(1, 1.95, 20)
PLAYS, LATE, SKIPPED = 20, 200, 20
SEQUENCES = ["shifts", "heat, SOR", "heat, SSOR-CG", "drift, SSOR-CG"]
POLICIES = ["best for each", "best fixed", "omega = 1", "random", "Young"]
FREE = ["tsallis-inf", "regression"]
CONTEXTUAL = ["chebcb", "ridge, greedy", "regression, context"]
PICTURE = Path(__file__).resolve().parent / "relaxation.png"


class Sequence(NamedTuple):
    """Iterations (t, d) of every omega and (t) of Young's, and contexts (t) between bounds, None if there are none."""

    counts: ndarray
    young: ndarray
    contexts: ndarray
    bounds: tuple[float, float] | None


def cases() -> list[str]:
    return [
        f"{sequence}: {policy}"
        for sequence in SEQUENCES
        for policy in POLICIES + FREE + (CONTEXTUAL if sequence != "drift, SSOR-CG" else [])
    ] + ["picture"]


def run(case: str, seed: int) -> dict[str, float | str]:
    if case == "picture":
        return draw(seed)
    name, policy = case.split(": ")
    counts = sequence(name, seed).counts
    found, best = played(name, policy, seed), counts.min(1)
    fixed = counts[:, counts.mean(0).argmin()]
    late = found[:, LATE:].mean()
    row: dict[str, float | str] = {
        "its": float(found.mean()),
        "its after 200": float(late),
        "above best for each %": 100 * float(late / best[LATE:].mean() - 1),
        "above best fixed %": 100 * float(late / fixed[LATE:].mean() - 1),
        "power": power(regret(name, policy, seed)) if policy in FREE + CONTEXTUAL else "-",
    }
    return row


@cache
def sequence(name: str, seed: int) -> Sequence:
    """Count the iterations of all omegas."""
    if name == "shifts":
        return _shifts(seed)
    method = name.split(", ")[1]
    lognormal, bounds = Lognormal(), {"heat, SOR": (1e-4, 1e-1), "heat, SSOR-CG": (1e-5, 1.0)}.get(name)
    space = Diffusion(24 if method == "SOR" else 48, coefficient=lognormal)
    heat = Heat(space, dt=bounds or 0.01, drift=0.02 if name.startswith("drift") else 0.0)
    counts, young, dts, last = [], [], [], None
    for system in heat.steps(seed, 1000 if method == "SOR" else 600):
        if system.matrix is not last:
            last, a = system.matrix, SparseOperator.from_scipy(system.matrix)
            speed = young_omega(a)
        b, x0 = torch.from_numpy(system.b), torch.from_numpy(system.x0)
        row = [_count(method, a, b, x0, omega) for omega in [*GRID, speed]]
        counts.append(row[:-1])
        young.append(row[-1])
        dts.append(system.dt)
    logs = (math.log(bounds[0]), math.log(bounds[1])) if bounds else None
    return Sequence(np.array(counts), np.array(young), np.log(dts), logs)


def _shifts(seed: int) -> Sequence:
    rng, line = np.random.default_rng(seed), sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(10, 10))
    laplace, shifts = sp.kronsum(line, line), -0.15 + 0.6 * rng.beta(0.5, 1.5, 2000)
    rows = []
    for shift in shifts:
        a, b = SparseOperator.from_scipy(laplace + shift * sp.identity(100)), torch.from_numpy(rng.standard_normal(100))
        rows.append([_count("SOR", a, b, torch.zeros_like(b), omega) for omega in [*GRID, young_omega(a)]])
    counts = np.array(rows)
    return Sequence(counts[:, :-1], counts[:, -1], shifts, (-0.15, 0.45))


def _count(method: str, a: SparseOperator, b: torch.Tensor, x0: torch.Tensor, omega: float) -> int:
    solution = sor(a, b, omega, x0) if method == "SOR" else pcg(a, b, SSOR(omega), x0)
    return int(solution.iterations)


@cache
def played(name: str, policy: str, seed: int) -> ndarray:
    """Iterations (plays, t) of a policy."""
    counts, young, contexts, bounds = sequence(name, seed)
    t = np.arange(len(counts))
    fixed: dict[str, Callable[[], ndarray]] = {
        "best for each": lambda: counts.min(1),
        "best fixed": lambda: counts[:, counts.mean(0).argmin()],
        "omega = 1": lambda: counts[:, 0],
        "Young": lambda: young,
    }
    if policy in fixed:
        return fixed[policy]()[None]
    if policy == "random":
        return np.array([counts[t, np.random.default_rng(i).integers(len(GRID), size=len(t))] for i in range(PLAYS)])
    if policy == "ridge, greedy":
        assert bounds is not None
        return np.array(
            [_ridge(counts, 2 * (contexts - bounds[0]) / (bounds[1] - bounds[0]) - 1, i) for i in range(PLAYS)]
        )
    plays = []
    for i in range(1 if policy.startswith("regression") else PLAYS):
        learned = LearnedOmega(policy.split(",")[0], GRID, bounds if policy in CONTEXTUAL else None, seed=i)
        for count, context in zip(counts, contexts, strict=True):
            learned.choose(float(context) if learned.context else None)
            learned.observe(float(count[learned.arms[-1]]))
        plays.append(learned.iterations)
    return np.array(plays)


def _ridge(counts: ndarray, x: ndarray, seed: int) -> ndarray:
    """A ridge regression of log counts on four Chebyshev polynomials for each omega, or chance, ever less."""
    rng, features, (t, d) = np.random.default_rng(seed), chebvander(x, 3), counts.shape
    gram, moments, weights = np.tile(0.05 * np.eye(4), (d, 1, 1)), np.zeros((d, 4)), np.zeros((d, 4))
    tried, found = np.zeros(d), np.zeros(t)
    for i in range(t):
        arm = int(np.where(tried > 2, weights @ features[i], 0).argmin())
        if rng.random() < 18 / (i + 1) ** 1.1:
            arm = int(rng.integers(d))
        found[i] = counts[i, arm]
        gram[arm] += np.outer(features[i], features[i])
        moments[arm] += features[i] * math.log(found[i])
        weights[arm] = np.linalg.solve(gram[arm], moments[arm])
        tried[arm] += 1
    return found


def regret(name: str, policy: str, seed: int) -> ndarray:
    """The mean regret of solves so far (t), over the mean cost of the comparator, mean of plays."""
    counts = sequence(name, seed).counts
    base = counts.min(1) if policy in CONTEXTUAL else counts[:, counts.mean(0).argmin()]
    return (played(name, policy, seed).mean(0) - base).cumsum() / base.cumsum()


def power(regret: ndarray) -> float | str:
    """The slope of log regret in log solves, after some; none if it is negative somewhere."""
    t = np.arange(1, len(regret) + 1)[SKIPPED:]
    late = regret[SKIPPED:]
    even = np.unique(np.geomspace(1, len(t), 50).astype(int)) - 1
    return float(np.polyfit(np.log(t[even]), np.log(late[even]), 1)[0]) if (late > 0).all() else "-"


def draw(seed: int) -> dict[str, float | str]:
    """The regret of every policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(SEQUENCES), 7), layout="constrained")
    axes = figure.subplots(2, len(SEQUENCES), sharex="col", sharey=True)
    for column, name in zip(axes.T, SEQUENCES, strict=True):
        for axis, policies in zip(column, (["random", *FREE], CONTEXTUAL), strict=True):
            for policy in policies if sequence(name, seed).bounds or policies[0] == "random" else []:
                values = regret(name, policy, seed)
                axis.loglog(np.arange(1, len(values) + 1), np.maximum(values, 1e-4), label=policy)
            axis.grid(alpha=0.3)
        column[0].set_title(name)
        column[1].set_xlabel("solves")
    for row, text in zip(axes, ("against the best fixed omega", "against the best for each system"), strict=True):
        row[0].set_ylabel(f"mean regret {text}")
        row[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=100)
    return {"picture": PICTURE.name}
