"""Sequences of linear systems: implicit steps of the heat and the wave equation."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import splu

from sciml.problems.coefficients import generator
from sciml.problems.finite_volumes import Diffusion
from sciml.problems.linear_systems import Discretisation, Family, LinearSystem, Space, csr

TURN = 0.2  # by which the forcing of a heat equation turns in a step

Solve = Callable[[LinearSystem], ndarray]


class Direct:
    """Solutions by a sparse factorisation, which is kept while the matrix is the same object."""

    def __init__(self) -> None:
        self.matrix: csr_matrix | None = None

    def __call__(self, system: LinearSystem) -> ndarray:
        """The solution (n)."""
        if system.matrix is not self.matrix:
            self.matrix = system.matrix
            self.factors = splu(system.matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        return self.factors.solve(system.b)


class State(NamedTuple):
    """Of an equation in time."""

    u: ndarray  # (n)
    velocity: ndarray  # (n)


@dataclass(frozen=True)
class Evolution(Family):
    """Implicit steps in time, each of which is a linear system.

    Args:
        space: the discretisation in space; `Diffusion` without one.
        dt: step, or the least and the largest one, between which steps are drawn log-uniform; 1 / cells without it.
        drift: angle by which the coefficient turns to another one in a step.
        correlation: length of the Gaussian random fields that start and force the solution.
    """

    space: Space | None = None
    dt: float | tuple[float, float] | None = None
    drift: float = 0.0
    correlation: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no step."""
        steps = (self.dt,) if isinstance(self.dt, float | int) else self.dt or (1.0,)
        if not 0 < steps[0] <= steps[-1]:
            raise ValueError(f"dt: expected a positive step, or the least and the largest one, got {self.dt}")

    def system(self, seed: int, cells: int | None = None) -> LinearSystem:
        """The first step."""
        return next(self.steps(seed, 1, cells))

    def steps(self, seed: int, n: int, cells: int | None = None, solve: Solve | None = None) -> Iterator[LinearSystem]:
        """The systems of n steps, each with a right-hand side from the solution of the one before.

        Where nothing of it changed, a matrix is the object that it was in the step before.

        Args:
            seed: of coefficient, steps, start and forcing.
            n: number of steps.
            cells: along an edge, in place of the space's own.
            solve: takes a system to its solution (n); a sparse factorisation without it. It is called once per system,
                when the next one is asked for.
        """
        space, solve = self.space or Diffusion(), solve or Direct()
        shares, dt, made, matrix, state = generator(4, seed), 0.0, None, None, None
        for i in range(n):
            previous, dt = dt, self._dt(space, cells, shares.random())
            if made is None or self.drift:
                made, matrix = space.discretise(seed, cells, i * self.drift), None
            if matrix is None or dt != previous:
                matrix = self._matrix(made, dt)
            if state is None:
                state = self._start(made, seed)
            system = LinearSystem(matrix, self._b(made, state, dt, (seed, i)), made, state.u, dt)
            yield system
            if i + 1 < n:
                state = self._next(state, solve(system), dt)

    def _dt(self, space: Space, cells: int | None, share: float) -> float:
        if self.dt is None:
            return 1 / (space.cells if cells is None else cells)
        if isinstance(self.dt, float | int):
            return self.dt
        low, high = self.dt
        return low * (high / low) ** share

    def _start(self, space: Discretisation, seed: int) -> State:
        """A Gaussian random field that is 0 on the boundary, at rest."""
        u = np.sin(np.pi * space.points).prod(1) * space.smooth(self.correlation, 5, seed)
        return State(u, np.zeros_like(u))

    @abstractmethod
    def _matrix(self, space: Discretisation, dt: float) -> csr_matrix:
        """The matrix of a step."""

    @abstractmethod
    def _b(self, space: Discretisation, state: State, dt: float, draw: tuple[int, int]) -> ndarray:
        """The right-hand side (n) of a step, which has a seed and a number."""

    @abstractmethod
    def _next(self, state: State, u: ndarray, dt: float) -> State:
        """The state after a step to u (n)."""


@dataclass(frozen=True)
class Heat(Evolution):
    """Steps of u_t = div(a grad u) + f by the implicit Euler method: (M + dt K) u' = M (u + dt f).

    u starts as a Gaussian random field times the first sine of the cube; f turns from one such field to another.

    Example:
        >>> heat = Heat(Diffusion(cells=8), dt=(1e-3, 1e-1))
        >>> [round(system.dt, 4) for system in heat.steps(seed=0, n=2)]
        [0.0769, 0.0105]
    """

    def _matrix(self, space: Discretisation, dt: float) -> csr_matrix:
        return csr(space.mass + dt * space.stiffness)

    def _b(self, space: Discretisation, state: State, dt: float, draw: tuple[int, int]) -> ndarray:
        seed, i = draw
        return space.mass @ (state.u + dt * space.smooth(self.correlation, 6, seed, turn=i * TURN))

    def _next(self, state: State, u: ndarray, dt: float) -> State:
        return State(u, state.velocity)


@dataclass(frozen=True)
class Wave(Evolution):
    """Steps of u_tt = div(a grad u) by the trapezoidal rule for u and v = u_t, which keeps the energy.

    (M + dt^2 K / 4) u' = M (u + dt v) - dt^2 K u / 4 and v' = 2 (u' - u) / dt - v. u starts as a Gaussian random field
    times the first sine of the cube, at rest.

    Example:
        >>> [system.b.shape for system in Wave(Diffusion(cells=8, dimension=3)).steps(seed=0, n=2)]
        [(512,), (512,)]
    """

    def _matrix(self, space: Discretisation, dt: float) -> csr_matrix:
        return csr(space.mass + dt**2 / 4 * space.stiffness)

    def _b(self, space: Discretisation, state: State, dt: float, draw: tuple[int, int]) -> ndarray:
        return space.mass @ (state.u + dt * state.velocity) - dt**2 / 4 * (space.stiffness @ state.u)

    def _next(self, state: State, u: ndarray, dt: float) -> State:
        return State(u, 2 * (u - state.u) / dt - state.velocity)
