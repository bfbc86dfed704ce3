"""Linear algebra: operators, direct solves for small systems, Krylov methods and preconditioners for large ones."""

from importlib import import_module
from typing import Any

_HOMES = {
    "aggregation": ("Aggregation",),
    "approximate_inverse": ("FSAI",),
    "blocks": ("BlockSystems",),
    "chebyshev": ("Chebyshev",),
    "conjugate_gradient": ("CG", "pcg"),
    "free": ("FunctionOperator", "StencilOperator"),
    "incomplete": ("SSOR", "IncompleteCholesky"),
    "krylov": ("GMRES", "gmres"),
    "learned_omega": ("LearnedOmega",),
    "multigrid": ("AlgebraicMultigrid", "ThresholdCholesky"),
    "operator": ("DenseOperator", "LinearOperator", "ShiftedOperator", "jacobian"),
    "preconditioner": ("Jacobi", "Preconditioner", "Prepared", "Single"),
    "relaxation": ("sor", "young_omega"),
    "solution": ("LinearSolution", "LinearStatus"),
    "solve": ("Dense", "LinearSolver"),
    "sparse": ("SparseOperator",),
    "unrolled": ("History", "Unrolled", "UnrolledJacobi", "UnrolledSOR", "jacobi_radii", "young"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
