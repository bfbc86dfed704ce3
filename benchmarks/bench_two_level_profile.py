"""What the set-up of a learned two-level preconditioner spends, by part, at some 100,000 unknowns.

The network and the systems are those of `bench_two_level`. CPU milliseconds, each the least of some calls: pairs of
pairs along strong couplings where the grid has no blocks; the pattern of strong FSAI and its entries; the coarse
vectors before their step down the energy; that step with the network's features of couplings, unknowns and pairs; the
network with its corrections; the coarse matrix and its factor. "inference" is features and network, what learning adds
to the classic preconditioner that it begins from.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from bench_two_level import FAMILIES, TOTALS, system
from sciml.models.learned_two_level import compiled_entries
from sciml.models.matrix_features import DAMPING, matrix_features
from sciml.solvers.linear.aggregation import Coarse, soft
from sciml.solvers.linear.approximate_inverse import approximate_inverse, strongest
from trained import trained

UNKNOWNS, REPEATS = 10**5, 15


def cases() -> list[str]:
    return list(TOTALS)


@torch.no_grad()
def run(case: str, seed: int) -> dict[str, float | str]:
    torch.set_num_threads(1)
    operator, _, blocks, unknowns = system(FAMILIES[case], UNKNOWNS, 1)
    model, _ = trained("diffusion_preconditioner", seed)
    a = operator.compressed
    aggregates = model.aggregate(operator) if blocks is None else blocks
    seen = model.look(operator, aggregates)
    _, z = compiled_entries(model, seen)
    parts = {
        "pattern": least(lambda: strongest(a)),
        "G": least(lambda: approximate_inverse(a, strong=True)),
        "Z": least(lambda: soft(a, aggregates, DAMPING)),
        "features": least(lambda: matrix_features(operator, aggregates)),
        "network": least(lambda: compiled_entries(model, seen)),
        "coarse": least(lambda: Coarse(a, z)),
    }
    parts["features"] -= parts["G"] + parts["Z"]
    parts["G"] -= parts["pattern"]
    found = 0.0 if blocks is not None else least(lambda: model.aggregate(operator))
    return {
        "unknowns": unknowns,
        "entries": a.nnz / unknowns,
        "aggregates ms": found,
        **{f"{name} ms": value for name, value in parts.items()},
        "inference ms": parts["features"] + parts["network"],
    }


def least(function: Callable[[], Any]) -> float:
    """CPU milliseconds of the quickest of some calls."""
    spent = []
    for _ in range(REPEATS + 1):
        begun = time.process_time()
        function()
        spent.append(time.process_time() - begun)
    return 1e3 * min(spent[1:])
