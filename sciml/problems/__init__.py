"""Equations: to integrate, from random initial conditions, or to train a network on; with exact solutions if known."""

from importlib import import_module
from typing import Any

_WHERE = {
    "AllenCahn": "elliptic",
    "AllenCahnHeat": "allen_cahn",
    "Box": "box",
    "Burgers": "burgers",
    "BurgersDirichlet": "burgers_dirichlet",
    "Coefficient": "coefficients",
    "Condition": "equation",
    "Conduction": "heat_conduction",
    "Diffusion": "finite_volumes",
    "Equation": "equation",
    "FiniteElements": "finite_elements",
    "FractionalOrnsteinUhlenbeck": "fractional",
    "Heat": "implicit_steps",
    "HeatConduction": "heat_conduction",
    "KdV2D": "kdv",
    "Landmark": "equation",
    "LinearSystem": "linear_systems",
    "Lognormal": "coefficients",
    "NavierStokes": "navier_stokes",
    "OrnsteinUhlenbeck": "stochastic",
    "PeriodicPDE": "periodic",
    "Poisson": "elliptic",
    "Problem": "problem",
    "RandomlyForced": "random_forcing",
    "ReactionDiffusion": "reaction_diffusion",
    "SemilinearHeat": "semilinear_heat",
    "SineGordon": "elliptic",
    "Spiral": "spiral",
    "StochasticLorenz": "stochastic",
    "StochasticSpiral": "stochastic",
    "TwoPhase": "coefficients",
    "Wave": "implicit_steps",
    "measured": "measurements",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
