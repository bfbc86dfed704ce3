"""Networks: maps between fields, and vector fields with weights."""

from importlib import import_module
from typing import Any

if __name__ != "sciml.models":
    raise ImportError(f"import sciml.models, not {__name__}: the folder at the root is only a link to it")

_WHERE = {
    "Autonomous": "neural_ode",
    "CNF": "cnf",
    "Chain": "chain",
    "CoordinateDiffusion": "latent_sde",
    "DiagonalSDE": "neural_sde",
    "FNO": "fno",
    "ForecastInterpolant": "forecast",
    "KineticRegularizer": "regularizers",
    "LatentDynamics": "latent_dynamics",
    "LatentFSDE": "latent_fsde",
    "LatentModel": "latent",
    "LatentODE": "latent_ode",
    "LatentSDE": "latent_sde",
    "LatentVideo": "latent_video",
    "LearnedPreconditioner": "learned_preconditioner",
    "LearnedFactor": "learned_factor",
    "LearnedTwoLevel": "learned_two_level",
    "LearnedExtrapolation": "acceleration",
    "MLP": "mlp",
    "MatrixField": "neural_cde",
    "MetaSolver": "acceleration",
    "NeuralCDE": "neural_cde",
    "NeuralODE": "neural_ode",
    "NeuralSDE": "neural_sde",
    "Regularizer": "regularizers",
    "RelaxationFactor": "acceleration",
    "STEER": "regularizers",
    "SharedInput": "shared_input",
    "SolverRegularizer": "solver_regularizer",
    "StochasticInterpolant": "interpolant",
    "TaylorRegularizer": "taylor_regularizer",
    "TimeDependent": "neural_ode",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
