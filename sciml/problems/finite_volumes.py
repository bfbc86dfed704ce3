"""Diffusion on grids by finite volumes."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.sparse import coo_matrix, csr_matrix, diags

from sciml.problems.coefficients import Coefficient
from sciml.problems.linear_systems import Discretisation, Space, check_cells, csr


@dataclass(frozen=True)
class Diffusion(Space):
    """-div(a E grad u) = f in the unit cube, u = 0 on its boundary, by finite volumes.

    Unknowns are at the centres of cells. The flux between two cells has the harmonic mean of their coefficients, and
    that to a wall half a cell's distance. Equations are those of cells over h^(d - 2): K has entries of the size of a,
    and M = h^2.

    Args:
        cells: along an edge.
        dimension: d, 1 to 3.
        coefficient: a; 1 without one.
        anisotropy: the diagonal of E, one number per axis; 1 without it.

    Example:
        >>> system = Diffusion(cells=4, dimension=2).system(seed=0)
        >>> system.matrix.shape, system.matrix.diagonal()[:2].tolist(), system.draw(3).shape
        ((16, 16), [6.0, 5.0], (3, 16))
    """

    cells: int = 32
    dimension: int = 2
    coefficient: Coefficient | None = None
    anisotropy: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no grid."""
        if self.dimension not in (1, 2, 3):
            raise ValueError(f"dimension: expected 1, 2 or 3, got {self.dimension}")
        check_cells(self.cells)
        factors = self.anisotropy
        if factors is not None and (len(factors) != self.dimension or not min(factors) > 0):
            raise ValueError(f"anisotropy: expected {self.dimension} positive numbers, got {factors}")

    def discretise(self, seed: int, cells: int | None = None, turn: float = 0.0) -> Discretisation:
        """The matrices."""
        m = check_cells(self.cells if cells is None else cells)
        axes, shape = ((np.arange(m) + 0.5) / m,) * self.dimension, (m,) * self.dimension
        a = np.ones(shape) if self.coefficient is None else self.coefficient.values(axes, self.dimension, seed, turn)
        stiffness = finite_volumes(a, self.anisotropy or (1.0,) * self.dimension)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.dimension)
        return Discretisation(stiffness, csr(diags(np.full(a.size, 1 / m**2))), points, shape)


def finite_volumes(a: ndarray, factors: tuple[float, ...]) -> csr_matrix:
    """The matrix (n, n) of a coefficient on cells (m, ...), by axis times a factor."""
    number = np.arange(a.size, dtype=np.int32).reshape(a.shape)
    diagonal = np.zeros(a.shape)
    rows, columns, values = [], [], []
    for axis, factor in enumerate(factors):
        a_, number_, diagonal_ = (np.moveaxis(x, axis, 0) for x in (factor * a, number, diagonal))  # views
        flux = 2 * a_[:-1] * a_[1:] / (a_[:-1] + a_[1:])
        diagonal_[:-1] += flux
        diagonal_[1:] += flux
        diagonal_[0] += 2 * a_[0]
        diagonal_[-1] += 2 * a_[-1]
        rows.append(number_[:-1].ravel())
        columns.append(number_[1:].ravel())
        values.append(-flux.ravel())
    lower = coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (a.size, a.size))
    return csr(lower + lower.T + diags(diagonal.ravel()))
