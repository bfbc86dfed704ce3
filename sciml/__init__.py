"""Scientific machine learning in PyTorch: neural ODEs, operators and their kin on one integrator core."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "solve": "sciml.solvers.solve",
    "Solver": "sciml.solvers.solve",
    "Solution": "sciml.solvers.solve",
    "Discrete": "sciml.solvers.adjoint",
    "Event": "sciml.solvers.event",
    "PID": "sciml.solvers.control",
    "Grid": "sciml.solvers.control",
    "Tsit5": "sciml.solvers.explicit",
    "ETDRK4": "sciml.solvers.exponential",
    "SaveAt": "sciml.solvers.fold",
    "Semilinear": "sciml.solvers.term",
    "Term": "sciml.solvers.term",
    "SolveError": "sciml.errors",
    "Status": "sciml.errors",
    "load": "sciml.training.load",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
