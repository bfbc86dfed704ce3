"""The heat equation on grids and meshes: a stiff system with sparse matrices."""

from dataclasses import dataclass
from math import pi

import torch
from torch import Generator, Tensor

from sciml.problems.finite_volumes import Diffusion
from sciml.problems.linear_systems import Discretisation
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

    The fields are (b, 1, *x). Initial states are sums of sines with random weights.

    Args:
        space: the discretisation, on a grid; `Diffusion` without one.
        seed: of its coefficient.
        t1: final time.
        rtol: relative tolerance of the steps.
        linear: solves the systems of a step; conjugate gradients with `Chebyshev` without one.
    """

    space: Diffusion | None = None
    seed: int = 0
    t1: float = 0.05
    rtol: float = 1e-4
    linear: LinearSolver | None = None

    def term(self) -> Conduction:
        """The system of the grid's cells."""
        return Conduction((self.space or Diffusion()).discretise(self.seed))

    def solver(self) -> Solver:
        """Kvaerno5, which takes each sample's system apart."""
        linear = self.linear or CG(Chebyshev(ratio=60.0))
        return Solver(Kvaerno5(rows=True, linear=linear), PID(rtol=self.rtol, atol=1e-2 * self.rtol))

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Sines with normal weights that fall with the square of the wave number (count, 1, *x)."""
        space = self.space or Diffusion()
        waves = torch.arange(1, MODES + 1, dtype=torch.float64)
        grids = torch.meshgrid(*[waves**2] * space.dimension, indexing="ij")
        weights = torch.randn(count, *grids[0].shape, generator=generator, dtype=torch.float64)
        return self._sum(2 * weights / sum(grids))[:, None].to(dtype)

    def coordinates(self) -> tuple[Tensor, ...]:
        """Centres of the cells along each axis."""
        space = self.space or Diffusion()
        return ((torch.arange(space.cells, dtype=torch.float64) + 0.5) / space.cells,) * space.dimension

    def encode(self, u: Tensor) -> Tensor:
        """States (b, n) of fields (b, 1, *x)."""
        return u.double().flatten(1)

    def decode(self, y: Tensor) -> Tensor:
        """Fields (.., 1, *x) of states (.., n)."""
        space = self.space or Diffusion()
        return y.unflatten(-1, (1, *[space.cells] * space.dimension))

    def _sum(self, weights: Tensor) -> Tensor:
        """Sums (b, *x) of sines with weights (b, k, ..)."""
        total = weights
        for x in self.coordinates():
            sines = (pi * x[:, None] * torch.arange(1, MODES + 1)).sin()  # (m, k)
            total = torch.tensordot(total, sines, ([1], [1]))
        return total
