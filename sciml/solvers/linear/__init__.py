"""Linear algebra for integrators: operators, direct solves for small systems, Krylov methods for large ones."""

from sciml.solvers.linear.krylov import GMRES
from sciml.solvers.linear.operator import DenseOperator, LinearOperator, ShiftedOperator, jacobian
from sciml.solvers.linear.solve import Dense, LinearSolver

__all__ = ["GMRES", "Dense", "DenseOperator", "LinearOperator", "LinearSolver", "ShiftedOperator", "jacobian"]
