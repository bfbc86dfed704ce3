"""The heat equation on grids and meshes: a stiff system with sparse matrices."""

from dataclasses import dataclass
from functools import cached_property
from math import pi

import torch
from torch import Generator, Tensor

from sciml.problems.finite_volumes import Diffusion
from sciml.problems.linear_systems import Discretisation, Space
from sciml.problems.problem import Problem
from sciml.solvers.control import PID
from sciml.solvers.implicit import Kvaerno5
from sciml.solvers.linear.chebyshev import Chebyshev
from sciml.solvers.linear.conjugate_gradient import CG
from sciml.solvers.linear.solve import LinearSolver
from sciml.solvers.linear.sparse import SparseOperator
from sciml.solvers.solve import Solver
from sciml.solvers.term import Term
from sciml.typing import Args

MODES = 6  # waves along an axis of initial states


class Conduction(Term):
    """M du/dt = -K u with the stored matrices of a discretisation; ``args`` may hold K's entries (nnz), symmetric.

    States are (n), or (b, n) for steppers with ``rows=True``.

    Args:
        space: the discretisation.
        dtype: of the matrices.

    Example:
        >>> import torch
        >>> from sciml import Solver, solve
        >>> from sciml.problems import Conduction, Diffusion
        >>> from sciml.solvers import CG, Kvaerno5
        >>> from sciml.solvers.linear import FSAI
        >>> term = Conduction(Diffusion(cells=8).discretise(seed=0))
        >>> y0 = torch.ones(64, dtype=torch.float64)
        >>> solve(term, y0, 0.0, 0.1, Solver(Kvaerno5(linear=CG(FSAI())))).ys.shape
        torch.Size([64])
    """

    def __init__(self, space: Discretisation, dtype: torch.dtype = torch.float64):
        self.stiffness = SparseOperator.from_scipy(space.stiffness, dtype)
        self.inertia = SparseOperator.from_scipy(space.mass, dtype)

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The product -K u."""
        return -self._stiffness(args).matvec(y.reshape(-1, y.shape[-1])).reshape(y.shape)

    def mass(self, args: Args) -> SparseOperator:
        """M."""
        return self.inertia

    def jacobian(self, t: Tensor, y: Tensor, args: Args) -> SparseOperator:
        """The matrix -K."""
        stiffness = self._stiffness(args)
        return stiffness.with_values(-stiffness.compressed.values)

    def _stiffness(self, args: Args) -> SparseOperator:
        return self.stiffness.with_values(args[0]) if args else self.stiffness


@dataclass(frozen=True)
class HeatConduction(Problem):
    """u_t = div(a grad u) in the unit square or cube, u = 0 on its boundary, by implicit steps.

    The fields are (b, 1, *x), on a mesh of n points inside (b, 1, n). Initial states are sums of sines with random
    weights.

    Args:
        space: the discretisation, on a grid or a mesh; `Diffusion` without one.
        seed: of its coefficient, and of a mesh.
        t1: final time.
        rtol: relative tolerance of the steps.
        linear: solves the systems of a step; conjugate gradients with `Chebyshev` without one.
    """

    space: Space | None = None
    seed: int = 0
    t1: float = 0.05
    rtol: float = 1e-4
    linear: LinearSolver | None = None

    @cached_property
    def discretised(self) -> Discretisation:
        """The matrices, and where the unknowns are."""
        return (self.space or Diffusion()).discretise(self.seed)

    def term(self) -> Conduction:
        """The system of the cells or points."""
        return Conduction(self.discretised)

    def solver(self) -> Solver:
        """Kvaerno5, which takes each sample's system apart."""
        linear = self.linear or CG(Chebyshev(ratio=60.0))
        return Solver(Kvaerno5(rows=True, linear=linear), PID(rtol=self.rtol, atol=1e-2 * self.rtol))

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Sines with normal weights that fall with the square of the wave number (count, 1, *x)."""
        dimension = self.discretised.points.shape[1]
        waves = torch.arange(1, MODES + 1, dtype=torch.float64)
        grids = torch.meshgrid(*[waves**2] * dimension, indexing="ij")
        weights = torch.randn(count, *grids[0].shape, generator=generator, dtype=torch.float64)
        return self._sum(2 * weights / sum(grids))[:, None].to(dtype)

    def coordinates(self) -> tuple[Tensor, ...]:
        """Centres of the cells along each axis; none of a mesh."""
        places = self.discretised.places
        return tuple(map(torch.from_numpy, places)) if isinstance(places, tuple) else ()

    def mesh_points(self) -> Tensor | None:
        """The points of a mesh (n, d)."""
        places = self.discretised.places
        return None if isinstance(places, tuple) else torch.from_numpy(places)

    def encode(self, u: Tensor) -> Tensor:
        """States (b, n) of fields (b, 1, *x)."""
        return u.double().flatten(1)

    def decode(self, y: Tensor) -> Tensor:
        """Fields (.., 1, *x) of states (.., n)."""
        return y.unflatten(-1, (1, *(self.discretised.shape or y.shape[-1:])))

    def _sum(self, weights: Tensor) -> Tensor:
        """Sums (b, *x) of sines with weights (b, k, ..)."""
        points = self.mesh_points()
        axes = self.coordinates() if points is None else points.unbind(1)
        waves = torch.arange(1, MODES + 1)
        sines = [(pi * x[:, None] * waves).sin() for x in axes]  # (m, k) each
        of, at = "ijk"[: len(axes)], "xyz"[: len(axes)] if points is None else "n" * len(axes)
        factors = ",".join(f"{x}{wave}" for x, wave in zip(at, of, strict=True))
        return torch.einsum(f"b{of},{factors}->b{at if points is None else 'n'}", weights, *sines)
