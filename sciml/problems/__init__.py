"""Equations: a term to integrate, its domain, random initial conditions and, where there is one, an exact solution."""

from importlib import import_module
from typing import Any

_WHERE = {
    "Burgers": "burgers",
    "NavierStokes": "navier_stokes",
    "PeriodicPDE": "periodic",
    "Problem": "problem",
    "Spiral": "spiral",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
