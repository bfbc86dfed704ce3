"""A learned two-level preconditioner beside FSAI with plain and with smoothed aggregates, which has as many entries.

"strong" is the best classic one of as many entries: smoothed aggregates with the strong FSAI that the learned one
begins from.

The network is that of the example ``diffusion_preconditioner``, trained by its configuration (`sciml fit`) once for
each state of the code that it depends on, into the cache. It was trained on systems of these families of at most 2000
unknowns, with contrasts from 2 to 3000 and of two phases up to 1e6, but not on "3D elements, jumps"; all systems here
have other seeds. Aggregates are 4 x 4 or 3 x 3 x 3 cells of a grid, or pairs of pairs along strong couplings ("pairs",
and meshes), some 16 unknowns in the plane and 64 in space.

A row has a system of about so many unknowns: the mean iterations of four right-hand sides of white noise to a residual
of 1e-8, "uncorrected" those of what the network's corrections begin from; "learned / ..." are of iterations with
fractions, between the two residuals around 1e-8; entries that an application multiplies by, per unknown; CPU seconds of
set-up, and of the solve per right-hand side. "inference" is what the learned set-up takes longer than the smoothed one:
features and network. "fell back" are right-hand sides of the learned one that its fallback had to finish, "failed"
those that were not solved at all. Rows "total" solve for ten right-hand sides one by one, set-up included; "pays after"
is the number of such matrices after which the CPU seconds of training are won back against the fastest of the others,
where they are.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.models import LearnedTwoLevel
from sciml.problems import Diffusion, FiniteElements, Lognormal, TwoPhase
from sciml.problems.linear_systems import Space
from sciml.solvers.linear import FSAI, Aggregation, LinearSolution, SparseOperator, pcg
from timing import interleaved
from trained import trained

ROUGH, JUMPS = Lognormal(contrast=1e3, correlation=0.08), TwoPhase(contrast=1e3, correlation=0.06)
COUNT, MANY, SEED, RTOL = 4, 10, 777, 1e-8


class Family(NamedTuple):
    space: Space
    edge: int | None  # of a block of aggregates in cells
    unknowns: tuple[int, ...]


GRID = (10**3, 10**4, 10**5, 10**6)
TOTALS = ("Poisson", "lognormal", "jumps", "elements", "3D lognormal", "3D elements")
FAMILIES = {
    "Poisson": Family(Diffusion(), 4, GRID),
    "lognormal": Family(Diffusion(coefficient=ROUGH), 4, GRID),
    "jumps": Family(Diffusion(coefficient=JUMPS), 4, GRID),
    "jumps 1e6": Family(Diffusion(coefficient=TwoPhase(contrast=1e6, correlation=0.06)), 4, (10**5,)),
    "jumps, pairs": Family(Diffusion(coefficient=JUMPS), None, (10**5,)),
    "anisotropic": Family(Diffusion(anisotropy=(1.0, 0.1)), 4, (10**5,)),
    "anisotropic, pairs": Family(Diffusion(anisotropy=(1.0, 0.1)), None, (10**5,)),
    "3D Poisson": Family(Diffusion(dimension=3), 3, (10**4, 10**5)),
    "3D lognormal": Family(Diffusion(dimension=3, coefficient=ROUGH), 3, (10**5,)),
    "3D jumps": Family(Diffusion(dimension=3, coefficient=JUMPS), 3, (10**5,)),
    "elements": Family(FiniteElements(coefficient=ROUGH), None, (10**3, 10**4, 10**5)),
    "elements, jumps": Family(FiniteElements(coefficient=JUMPS), None, (10**5,)),
    "3D elements": Family(FiniteElements(dimension=3, coefficient=ROUGH), None, (10**4, 10**5)),
    "3D elements, jumps": Family(FiniteElements(dimension=3, coefficient=JUMPS), None, (10**4, 10**5)),
}


def cases() -> list[str]:
    single = [f"{name}, n = {n:.0e}" for name, family in FAMILIES.items() for n in family.unknowns]
    return [*single, *(f"{name}, total" for name in TOTALS)]


def run(case: str, seed: int) -> dict[str, float | str]:
    name, _, what = case.rpartition(", ")
    torch.set_num_threads(1)
    total = what == "total"
    n = 10**5 if total else int(float(what[4:]))
    operator, b, aggregates, unknowns = system(FAMILIES[name], n, MANY if total else COUNT)
    model, seconds = trained("diffusion_preconditioner", seed)
    strong = Aggregation(FSAI(strong=True), aggregates, model.doublings, damping=2 / 3)
    kinds: dict[str, Any] = {**model.classic(aggregates), "strong": strong, "learned": model.on(aggregates)}
    if total:
        return totals(operator, b, kinds, seconds)
    prepared = {kind: m.setup(operator) for kind, m in kinds.items()}
    solved = {kind: pcg(operator, b, prepared[kind], rtol=RTOL, throw=False) for kind in kinds}
    begun = pcg(operator, b, uncorrected(model).on(aggregates).setup(operator), rtol=RTOL, throw=False)
    safe = pcg(operator, b, kinds["learned"], rtol=RTOL, throw=False)
    repeats = 5 if n < 10**6 else 2
    setup = cpu({kind: lambda m=m: m.setup(operator) for kind, m in kinds.items()}, repeats)
    solve = cpu({k: lambda p=p: pcg(operator, b[:1], p, rtol=RTOL, throw=False) for k, p in prepared.items()}, repeats)
    counts = {kind: solution.iterations.double().mean().item() for kind, solution in solved.items()}
    return {
        "unknowns": unknowns,
        **{f"{kind} iterations": count for kind, count in counts.items()},
        "uncorrected iterations": begun.iterations.double().mean().item(),
        **{
            f"learned / {kind}": fractional(solved["learned"], b) / fractional(solved[kind], b)
            for kind in ("smoothed", "strong")
        },
        **{f"{kind} entries": prepared[kind].nnz / unknowns for kind in kinds},
        **{f"{kind} set-up s": setup[kind] for kind in kinds},
        "inference s": setup["learned"] - setup["smoothed"],
        **{f"{kind} solve s": solve[kind] for kind in kinds},
        "fell back": int(safe.fell_back.sum()),
        "failed": int((~safe.converged).sum()),
    }


def fractional(solution: LinearSolution, b: Tensor) -> float:
    """The mean place where residuals pass the tolerance, on straight lines between their logarithms."""
    size = torch.log(solution.history / b.norm(dim=1) / RTOL)
    last = solution.iterations[None]
    before, after = size.gather(0, last - 1), size.gather(0, last)
    return (last - after / (after - before)).mean().item()


def uncorrected(model: LearnedTwoLevel) -> LearnedTwoLevel:
    """What the network's corrections begin from."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for last in (other.network.ends.weight[-1:], other.network.edge_out.weight, other.pair_out.weight):
            last.zero_()
    return other


def totals(operator: SparseOperator, b: Tensor, kinds: dict[str, Any], seconds: float) -> dict[str, float | str]:
    def whole(m: Any) -> None:
        prepared = m.setup(operator)
        for row in b:
            pcg(operator, row, prepared, rtol=RTOL)

    spent = cpu({kind: lambda m=m: whole(m) for kind, m in kinds.items()}, 5)
    won = min(value for kind, value in spent.items() if kind != "learned") - spent["learned"]
    return {
        "unknowns": len(b[0]),
        **{f"{kind} total s": value for kind, value in spent.items()},
        "training s": seconds,
        "pays after": float(seconds / won) if won > 0 else "never",
    }


def cpu(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    return {name: timing.cpu.median for name, timing in interleaved(functions, repeats, warmup=1).items()}


def system(family: Family, n: int, count: int) -> tuple[SparseOperator, Tensor, Tensor | None, int]:
    space: Any = family.space
    per_cell = 2 if isinstance(space, FiniteElements) and space.dimension == 3 else 1
    found = space.system(SEED, round((n / per_cell) ** (1 / space.dimension)))
    aggregates = None if family.edge is None else torch.from_numpy(found.aggregates(family.edge))
    return SparseOperator.from_scipy(found.matrix), torch.from_numpy(found.draw(count, 5)), aggregates, len(found.b)
