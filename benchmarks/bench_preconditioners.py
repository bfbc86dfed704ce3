"""Classic preconditioners of conjugate gradients side by side: iterations, set-up and solve apart, CPU time.

One system of each family and size, one white right-hand side, the residual reduced by 1e-8, float64. ``ms`` are medians
of interleaved runs; ``best`` names the one with the least total of set-up and solve (of ours: pyamg's and the native
multigrid are not), ``best / ruge stuben`` is that total by pyamg's Ruge-Stuben's. Two levels take blocks of 4 x 4 cells
of a grid (5 x 5 where the name says so) or 3 x 3 x 3, and on meshes aggregates found by pairwise matching. Those that
are "single" are in float32 inside the same solve. Of large systems the slowest ones are left out. The native multigrid
is that of AMGCL where pyamgcl is installed (it builds with pybind11 and Boost's headers), with its own conjugate
gradients. Needs `pip install 'sciml-torch[amg]'`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.problems.coefficients import Lognormal, TwoPhase
from sciml.problems.finite_elements import FiniteElements
from sciml.problems.finite_volumes import Diffusion
from sciml.problems.implicit_steps import Heat
from sciml.problems.linear_systems import Family, LinearSystem
from sciml.solvers.linear import (
    FSAI,
    SSOR,
    Aggregation,
    AlgebraicMultigrid,
    Chebyshev,
    IncompleteCholesky,
    Jacobi,
    Preconditioner,
    Single,
    SparseOperator,
    ThresholdCholesky,
    pcg,
)
from timing import interleaved

RTOL = 1e-8
LOG, JUMP = Lognormal(contrast=1e3, correlation=0.08), TwoPhase(contrast=1e3, correlation=0.06)
FAMILIES: dict[str, tuple[Family, tuple[int, ...]]] = {  # with numbers of cells along an edge
    "poisson 2d": (Diffusion(), (100, 320, 1000)),
    "lognormal 2d": (Diffusion(coefficient=LOG), (100, 320, 1000)),
    "two-phase 2d": (Diffusion(coefficient=JUMP), (100, 320, 1000)),
    "anisotropic 2d": (Diffusion(anisotropy=(1.0, 0.1)), (100, 320)),
    "heat 2d": (Heat(space=Diffusion(coefficient=LOG)), (100, 320)),
    "poisson 3d": (Diffusion(dimension=3), (22, 46)),
    "lognormal 3d": (Diffusion(dimension=3, coefficient=LOG), (22, 46)),
    "mesh 2d": (FiniteElements(coefficient=LOG), (100, 320)),
    "mesh 3d": (FiniteElements(dimension=3, coefficient=LOG), (17, 36)),
}
OMEGAS = (1.0, 1.4, 1.6, 1.8, 1.9, 1.95)
LARGE, HUGE = 20_000, 500_000  # unknowns from which slow ones are left out
PEERS = ("ruge stuben", "smoothed aggregation", "amgcl")


def cases() -> list[str]:
    return [f"{name}, {cells} cells" for name, (_, sizes) in FAMILIES.items() for cells in sizes]


def run(case: str, seed: int) -> dict[str, float | str]:
    name, cells = case.removesuffix(" cells").split(", ")
    system = FAMILIES[name][0].system(seed, int(cells))
    n = len(system.b)
    b = torch.from_numpy(system.draw(1, seed)[0])
    make = preconditioners(system, n)
    small = Diffusion(cells=8, dimension=2).system(0)
    counts: dict[str, int] = {}

    def solver(label: str, preconditioner: Preconditioner) -> dict[str, Callable[[], None]]:
        state: dict[str, Any] = {}

        def setup() -> None:
            state["ready"] = preconditioner.setup(SparseOperator.from_scipy(system.matrix))

        def solve() -> None:
            found = pcg(SparseOperator.from_scipy(system.matrix), b, state["ready"], rtol=RTOL, max_iter=20_000)
            counts[label] = int(found.iterations)

        return {f"{label} set-up": setup, f"{label} solve": solve}

    for label, preconditioner in make.items():  # compile
        if "aggregates" not in label:
            pcg(SparseOperator.from_scipy(small.matrix), torch.from_numpy(small.b), preconditioner)
    work = {k: f for label, p in make.items() for k, f in solver(label, p).items()}
    if find_spec("pyamgcl"):
        work |= native(system.matrix, b, counts)
    timings = interleaved(work, 3 if n < HUGE else 2, warmup=0)
    row: dict[str, float | str] = {"n": n}
    totals = {}
    for label in counts:
        row[f"{label} its"] = counts[label]
        setup, solve = (1e3 * timings[f"{label} {part}"].cpu.median for part in ("set-up", "solve"))
        row[f"{label} set-up ms"], row[f"{label} solve ms"] = setup, solve
        totals[label] = setup + solve
    best = min((label for label in totals if label not in PEERS), key=totals.__getitem__)
    row["best"] = best
    row["best / ruge stuben"] = totals[best] / totals["ruge stuben"]
    return row


def preconditioners(system: LinearSystem, n: int) -> dict[str, Preconditioner]:
    """By name; the best omega of SSOR is found before."""
    grid = system.space.shape
    blocks = lambda edge: None if grid is None else torch.from_numpy(system.aggregates(edge))  # noqa: E731
    edge = 4 if grid is None or len(grid) == 2 else 3
    found: dict[str, Preconditioner] = {}
    if n < LARGE:
        found |= {"jacobi": Jacobi(), "ict": ThresholdCholesky(15, 1e-3)}
    if n < HUGE:
        found |= {"ic": IncompleteCholesky(), "fsai": FSAI(), "ssor best omega": SSOR(_best_omega(system))}
    found |= {
        "mic .99": IncompleteCholesky(0.99),
        "fsai + aggregates": Aggregation(FSAI(), blocks(edge)),
        "fsai + smoothed aggregates": Aggregation(FSAI(), blocks(edge), damping=0.66),
        "ic + aggregates": Aggregation(IncompleteCholesky(), blocks(edge)),
        "chebyshev + aggregates": Aggregation(Chebyshev(), blocks(edge)),
        "chebyshev + smoothed aggregates": Aggregation(Chebyshev(3, 20.0), blocks(edge), damping=0.66),
        "ruge stuben": AlgebraicMultigrid(),
        "smoothed aggregation": AlgebraicMultigrid("smoothed_aggregation"),
    }
    if grid is not None and len(grid) == 2:
        found["chebyshev + aggregates of 5 x 5"] = Aggregation(Chebyshev(), blocks(5))
    single = ("mic .99", "chebyshev + aggregates", "chebyshev + aggregates of 5 x 5")
    found |= {f"single {name}": Single(found[name]) for name in single if name in found}
    return found


def _best_omega(system: LinearSystem) -> float:
    """Of a few, by iterations."""
    a, b = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b)
    return min(OMEGAS, key=lambda omega: int(pcg(a, b, SSOR(omega), rtol=RTOL, max_iter=20_000).iterations))


def native(matrix: Any, b: Tensor, counts: dict[str, int]) -> dict[str, Callable[[], None]]:
    """AMGCL's smoothed aggregation with its conjugate gradients."""
    import pyamgcl  # pyrefly: ignore[missing-import]

    state: dict[str, Any] = {}

    def setup() -> None:
        state["solver"] = pyamgcl.solver(pyamgcl.amg(matrix), {"type": "cg", "tol": RTOL, "maxiter": 1000})

    def solve() -> None:
        x = state["solver"](b.numpy())
        left = np.linalg.norm(b.numpy() - matrix @ x) / np.linalg.norm(b.numpy())
        counts["amgcl"] = state["solver"].iters
        assert left <= 2 * RTOL, f"amgcl left {left}"

    return {"amgcl set-up": setup, "amgcl solve": solve}
