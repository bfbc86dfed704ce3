"""Preconditioners of other libraries: algebraic multigrid by pyamg and AMGCL, incomplete factors with fill by ilupp."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.linear.derivatives import symmetric
from sciml.solvers.linear.operator import LinearOperator
from sciml.solvers.linear.preconditioner import Preconditioner, Prepared, positive, stored
from sciml.solvers.linear.sparse import SparseOperator


class _Foreign(Prepared):
    """A function of numpy vectors, called for row after row."""

    def __init__(self, function: Any, nnz: int):
        self.function, self.nnz, self.dtype = function, nnz, torch.float64

    def apply(self, r: Tensor) -> Tensor:
        return symmetric(self._apply, r)

    def _apply(self, r: Tensor) -> Tensor:
        rows = [np.asarray(self.function(row)) for row in r.detach().cpu().numpy()]
        return torch.from_numpy(np.stack(rows)).to(r) if rows else r


@dataclass(frozen=True)
class AlgebraicMultigrid(Preconditioner):
    """One symmetric V-cycle: of pyamg, forward Gauss-Seidel down, backward up; or of AMGCL, which is compiled.

    Args:
        kind: "ruge_stuben" or "smoothed_aggregation", by pyamg, or "amgcl".
        options: further arguments of pyamg's solver of that name, or AMGCL's parameters.

    Reference:
        N. Bell, L. N. Olson, J. Schroder, B. Southworth, JOSS 8 (2023), doi:10.21105/joss.05495;
        D. Demidov, Lobachevskii J. Math. 40 (2019), doi:10.1134/S1995080219050056.
    """

    kind: Literal["ruge_stuben", "smoothed_aggregation", "amgcl"] = "ruge_stuben"
    options: dict[str, Any] = field(default_factory=dict)

    def setup(self, operator: LinearOperator) -> Prepared:
        """The hierarchy.

        Raises:
            ImportError: pyamg or pyamgcl is not installed.
            ValueError: there is no such kind.
        """
        a = stored(operator, "AlgebraicMultigrid")
        positive(a.diagonal(), "AlgebraicMultigrid")
        if self.kind == "amgcl":
            return self._native(a)
        try:
            import pyamg
        except ImportError as error:
            raise ImportError("AlgebraicMultigrid needs pyamg: pip install 'sciml-torch[amg]'") from error
        sweep = lambda way: ("gauss_seidel", {"sweep": way})  # noqa: E731
        options = {"presmoother": sweep("forward"), "postsmoother": sweep("backward"), **self.options}
        make = {"ruge_stuben": pyamg.ruge_stuben_solver, "smoothed_aggregation": pyamg.smoothed_aggregation_solver}
        if self.kind not in make:
            raise ValueError(f"kind: expected 'ruge_stuben', 'smoothed_aggregation' or 'amgcl', got {self.kind!r}")
        hierarchy = make[self.kind](a.to_scipy().astype(np.float64), **options)
        cycle = hierarchy.aspreconditioner("V")
        return _Foreign(cycle.matvec, int(hierarchy.cycle_complexity() * a.compressed.nnz))

    def _native(self, a: SparseOperator) -> Prepared:
        try:
            import pyamgcl  # pyrefly: ignore[missing-import]
        except ImportError as error:
            raise ImportError(
                "AlgebraicMultigrid('amgcl') needs pyamgcl, which pip builds where there are headers of Boost: "
                "pip install pybind11; pip install --no-build-isolation pyamgcl"
            ) from error
        cycle = pyamgcl.amg(a.to_scipy().astype(np.float64), self.options)
        complexity = float(str(cycle).split("Operator complexity:")[1].split()[0])
        return _Foreign(cycle, int(3 * complexity * a.compressed.nnz))  # two sweeps and a residual on every level


@dataclass(frozen=True)
class ThresholdCholesky(Preconditioner):
    """An incomplete Cholesky factor with fill by magnitude, ICT, made by ilupp.

    Args:
        fill: entries that each row may have beyond those of A's.
        threshold: entries below it, relative to their column, are dropped.

    Reference:
        J. Mayer, PAMM 7 (2007), doi:10.1002/pamm.200701019 (the library ilupp).
    """

    fill: int = 5
    threshold: float = 1e-3

    def setup(self, operator: LinearOperator) -> Prepared:
        """The factor.

        Raises:
            ImportError: ilupp is not installed.
        """
        try:
            import ilupp
        except ImportError as error:
            raise ImportError("ThresholdCholesky needs ilupp: pip install 'sciml-torch[amg]'") from error
        a = stored(operator, "ThresholdCholesky")
        positive(a.diagonal(), "ThresholdCholesky")
        made = ilupp.ICholTPreconditioner(a.to_scipy().astype(np.float64), self.fill, self.threshold)

        def apply(r: np.ndarray) -> np.ndarray:
            z = r.copy()
            made.apply(z)
            return z

        return _Foreign(apply, 2 * made.total_nnz)
