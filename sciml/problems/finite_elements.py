"""Diffusion on unstructured meshes by linear finite elements, with the meshes and forms of scikit-fem."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.spatial import Delaunay

from sciml.problems.coefficients import Coefficient, generator
from sciml.problems.linear_systems import Discretisation, Space, check_cells, csr

JITTER = {2: 0.25, 3: 0.2}  # of points, in cells, by dimension; with more of it elements become too flat


@dataclass(frozen=True)
class FiniteElements(Space):
    """-div(a grad u) = f in the unit square or cube, u = 0 on its boundary, by linear elements on unstructured meshes.

    Meshes are Delaunay's of points that are moved at random from a grid, which in the cube has the centres of its cells
    too; points of the boundary stay in their face. The coefficient is that of the middle of an element. Unknowns are
    the points inside, about (cells - 1)^2 or 2 cells^3, numbered by the reverse Cuthill-McKee order.

    Args:
        cells: along an edge.
        dimension: 2 or 3.
        coefficient: a; 1 without one.

    Raises:
        ModuleNotFoundError: without scikit-fem, which ``pip install "sciml-torch[amg]"`` brings.

    Example:
        >>> system = FiniteElements(cells=8).system(seed=0)
        >>> system.matrix.shape, system.points.shape
        ((49, 49), (49, 2))

    Reference:
        T. Gustafsson, G. D. McBain, scikit-fem: A Python package for finite element assembly, Journal of Open Source
        Software 5 (2020), doi:10.21105/joss.02369.
    """

    cells: int = 32
    dimension: int = 2
    coefficient: Coefficient | None = None

    def __post_init__(self) -> None:
        """Refuse what is no mesh."""
        if self.dimension not in JITTER:
            raise ValueError(f"dimension: expected 2 or 3, got {self.dimension}")
        check_cells(self.cells)
        if find_spec("skfem") is None:
            raise ModuleNotFoundError('scikit-fem is not installed: pip install "sciml-torch[amg]" brings it')

    def discretise(self, seed: int, cells: int | None = None, turn: float = 0.0) -> Discretisation:
        """The matrices, on a mesh by seed."""
        skfem: Any = import_module("skfem")
        points, simplices = mesh(check_cells(self.cells if cells is None else cells), self.dimension, seed)
        kind, linear, constant = {
            2: (skfem.MeshTri, skfem.ElementTriP1, skfem.ElementTriP0),
            3: (skfem.MeshTet, skfem.ElementTetP1, skfem.ElementTetP0),
        }[self.dimension]
        basis = skfem.Basis(kind(points.T.copy(), simplices.T.copy()), linear())
        middles = points[simplices].mean(1)
        a = np.ones(len(middles))
        if self.coefficient is not None:
            a = self.coefficient.values(middles, self.dimension, seed, turn)
        field = basis.with_element(constant()).interpolate(a)
        laplace = skfem.BilinearForm(lambda u, v, w: w.a * (u.grad * v.grad).sum(0))
        mass = skfem.BilinearForm(lambda u, v, w: u * v)
        inside = np.flatnonzero(((points > 0) & (points < 1)).all(1))
        stiffness = part(laplace.assemble(basis, a=field), inside)
        order = reverse_cuthill_mckee(stiffness, symmetric_mode=True)
        inside = inside[order]
        return Discretisation(part(stiffness, order), part(mass.assemble(basis), inside), points[inside], None)


def part(matrix: Any, kept: ndarray) -> csr_matrix:
    """Rows and columns that are kept, without the round-off by which an assembled matrix is not symmetric."""
    matrix = matrix[kept][:, kept]
    return csr((matrix + matrix.T) / 2)


def mesh(cells: int, dimension: int, seed: int) -> tuple[ndarray, ndarray]:
    """Points (p, d) and simplices (s, d + 1) of an unstructured mesh."""
    random, jitter = generator(7, seed), JITTER[dimension] / cells
    corners = np.stack(np.meshgrid(*[np.arange(cells + 1) / cells] * dimension, indexing="ij"), -1)
    corners = corners.reshape(-1, dimension)
    free = (corners > 0) & (corners < 1)
    points = corners + free * random.uniform(-jitter, jitter, corners.shape)
    if dimension == 3:
        centres = np.stack(np.meshgrid(*[(np.arange(cells) + 0.5) / cells] * dimension, indexing="ij"), -1)
        centres = centres.reshape(-1, dimension)
        points = np.concatenate([points, centres + random.uniform(-jitter, jitter, centres.shape)])
    return points, Delaunay(points).simplices
