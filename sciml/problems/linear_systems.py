"""Sparse linear systems, and what a family of random ones is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_matrix

from sciml.problems.coefficients import GaussianField, Places, generator


class Discretisation(NamedTuple):
    """-div(a grad u) on a mesh, with u = 0 on its boundary.

    Attributes:
        stiffness: K (n, n), symmetric positive definite, with K u = M f.
        mass: M (n, n).
        points: where the unknowns are (n, d).
        shape: cells along each axis of a grid, None for a mesh.
    """

    stiffness: csr_matrix
    mass: csr_matrix
    points: ndarray
    shape: tuple[int, ...] | None

    @property
    def places(self) -> Places:
        """The points, by their axes where they are a grid."""
        return self.points if self.shape is None else tuple((np.arange(m) + 0.5) / m for m in self.shape)

    def smooth(self, correlation: float, *seed: int, turn: float = 0.0) -> ndarray:
        """A Gaussian random field at the points (n)."""
        return GaussianField(self.points.shape[1], correlation, seed, turn).at(self.places).ravel()


@dataclass(frozen=True, eq=False)
class LinearSystem:
    """A x = b with a symmetric positive definite matrix.

    Attributes:
        matrix: A (n, n), float64, with sorted int32 indices.
        b: right-hand side (n).
        space: the discretisation that it came from, with the points of the unknowns.
        x0: a first guess (n): the last solution of a sequence.
        dt: step of a sequence in time, None where there is no time.
    """

    matrix: csr_matrix
    b: ndarray
    space: Discretisation
    x0: ndarray | None = None
    dt: float | None = None

    @property
    def points(self) -> ndarray:
        """Where the unknowns are (n, d)."""
        return self.space.points

    def draw(self, count: int, seed: int = 0, correlation: float | None = None) -> ndarray:
        """Right-hand sides (count, n).

        Args:
            count: number of them.
            seed: of the draw.
            correlation: length of the Gaussian fields f whose M f they are; without it, white noise.
        """
        if correlation is None:
            return generator(2, seed).standard_normal((count, len(self.b)))
        fields = [self.space.mass @ self.space.smooth(correlation, 2, seed, i) for i in range(count)]
        return np.array(fields).reshape(count, len(self.b))

    def aggregates(self, edge: int) -> ndarray:
        """The number of each unknown's block (n) of edge cells along each axis; what is left over joins the last one.

        Raises:
            ValueError: if the unknowns are no grid.
        """
        if self.space.shape is None:
            raise ValueError("aggregates: expected a system on a grid, got one on a mesh; aggregate by its matrix")
        if edge < 1:
            raise ValueError(f"edge: expected a positive number of cells, got {edge}")
        blocks = [np.minimum(np.arange(m) // edge, max(m // edge, 1) - 1) for m in self.space.shape]
        open_grid = np.meshgrid(*blocks, indexing="ij", sparse=True)
        return np.ravel_multi_index(np.broadcast_arrays(*open_grid), [int(b[-1]) + 1 for b in blocks]).ravel()


class Family(ABC):
    """Random linear systems of one kind, by seed."""

    @abstractmethod
    def system(self, seed: int, cells: int | None = None) -> LinearSystem:
        """One of them.

        Args:
            seed: its number; the coefficient is the same function for any number of cells.
            cells: along an edge, in place of the family's own.
        """


class Space(Family):
    """A discretisation of -div(a grad u) = f in the unit cube, u = 0 on its boundary."""

    if TYPE_CHECKING:

        @property
        def cells(self) -> int:
            """Cells along an edge; a dataclass field of the spaces."""
            ...

    @abstractmethod
    def discretise(self, seed: int, cells: int | None = None, turn: float = 0.0) -> Discretisation:
        """The matrices.

        Args:
            seed: of the coefficient.
            cells: along an edge, in place of ``self.cells``.
            turn: angle by which the coefficient has turned to another one.
        """

    def system(self, seed: int, cells: int | None = None) -> LinearSystem:
        """K u = b with white noise b."""
        space = self.discretise(seed, cells)
        return LinearSystem(space.stiffness, generator(3, seed).standard_normal(len(space.points)), space)


def csr(matrix: Any) -> csr_matrix:
    """The matrix in rows, with sorted int32 indices and without duplicates."""
    rows = csr_matrix(matrix, dtype=np.float64)
    rows.sum_duplicates()
    rows.indices, rows.indptr = rows.indices.astype(np.int32), rows.indptr.astype(np.int32)
    return rows


def check_cells(cells: int) -> int:
    """A number of cells along an edge."""
    if cells < 2:
        raise ValueError(f"cells: expected at least 2 along an edge, got {cells}")
    return cells
