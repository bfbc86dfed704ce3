"""Derivatives of any order: jets through PyTorch functions, and the differential operators and estimators on them."""

from sciml.calculus.derivative import Biharmonic, Derivative, Directional, Laplacian, Partial, PowerSum, Trace
from sciml.calculus.divergence import divergence, hutchinson, value_and_divergence
from sciml.calculus.expression import Expression, Unknown
from sciml.calculus.jet import coordinate_jet, jet
from sciml.calculus.probes import probes
from sciml.calculus.stde import Dense, Draw, Estimator, Sparse
from sciml.calculus.taylor import solution_coefficients

__all__ = [
    "Biharmonic",
    "Dense",
    "Derivative",
    "Directional",
    "Draw",
    "Estimator",
    "Expression",
    "Laplacian",
    "Partial",
    "PowerSum",
    "Sparse",
    "Trace",
    "Unknown",
    "coordinate_jet",
    "divergence",
    "hutchinson",
    "jet",
    "probes",
    "solution_coefficients",
    "value_and_divergence",
]
