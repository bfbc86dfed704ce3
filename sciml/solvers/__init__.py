"""Integrators of differential equations.

A *stepper* advances a *term* by one step, a *controller* chooses the steps, *folds* read them, an *adjoint*
differentiates; `sciml.solve` puts them together.
"""

from importlib import import_module
from typing import Any

if __name__ != "sciml.solvers":
    raise ImportError(f"import sciml.solvers, not {__name__}: the folder at the root is only a link to it")

_HOMES = {
    "solve": ("Solution", "Solver"),
    "adjoint": ("Discrete",),
    "auto": ("Auto",),
    "backsolve": ("Backsolve",),
    "brownian": ("Brownian",),
    "cde": ("CDE",),
    "control": ("PID", "Controller", "Grid"),
    "controlled": ("Controlled",),
    "conversion": ("Converted",),
    "diffusion": ("MatrixDiffusive",),
    "doubled": ("Doubled",),
    "event": ("Crossings", "Event"),
    "explicit": (
        "RK4",
        "Bosh3",
        "Dopri5",
        "Dopri8",
        "Euler",
        "Fehlberg2",
        "Heun",
        "Heun3",
        "Midpoint",
        "Ralston",
        "Tsit5",
    ),
    "exponential": ("ETDRK2", "ETDRK4"),
    "exponential_stochastic": ("StochasticETDRK4",),
    "fold": ("Final", "Fold", "Quadrature", "SaveAt", "Starts", "Stats", "Steps"),
    "fractional": ("Fractional", "FractionalHeun"),
    "fractional_noise": ("FractionalNoise",),
    "given": ("Given",),
    "heuristics": ("ErrorEstimate", "Heuristic", "MaxStiffness", "StepCount", "Stiffness"),
    "implicit": (
        "SDIRK2",
        "TRBDF2",
        "GaussLegendre4",
        "GaussLegendre6",
        "ImplicitEuler",
        "ImplicitMidpoint",
        "KenCarp4",
        "Kvaerno3",
        "Kvaerno5",
        "RadauIIA3",
        "RadauIIA5",
        "Trapezoid",
    ),
    "jump": ("Jump",),
    "linear": ("CG", "GMRES", "Dense", "LinearOperator", "LinearSolver", "pcg"),
    "log_ode": ("LogODE",),
    "local": ("local_heuristic",),
    "low_storage": ("CarpenterKennedy4",),
    "mesh": ("Mesh",),
    "multistep": ("AdamsBashforth4", "AdamsBashforthMoulton4", "AdamsBashforthMoulton6"),
    "path": ("Levy", "Path"),
    "reversible": ("ReversibleHeun",),
    "rosenbrock": ("Rodas5P",),
    "spline": ("Spline",),
    "srk": ("SRK",),
    "stepper": ("Stepper",),
    "stochastic": ("EulerHeun", "EulerMaruyama", "Milstein", "StratonovichHeun"),
    "stochastic_runge_kutta": ("SOSRI2", "SRA1", "SRIW1", "ShARK"),
    "stratonovich": ("StratonovichMidpoint", "StratonovichMilstein", "StratonovichReversibleHeun"),
    "symplectic": ("VelocityVerlet", "Yoshida4"),
    "taylor": ("Taylor",),
    "term": ("Diffusive", "Semilinear", "Separable", "Term"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
