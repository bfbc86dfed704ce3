"""Training: Lightning modules for each kind of model, and what makes a run resumable."""

from importlib import import_module
from typing import Any

_WHERE = {
    "AccelerationModule": "acceleration",
    "AfterIterations": "iteration_loss",
    "AtomicCheckpointIO": "checkpoint",
    "Checkpoints": "checkpoint",
    "DensityModule": "density",
    "Figures": "callbacks",
    "ForecastModule": "forecast",
    "Frobenius": "preconditioner_losses",
    "InterpolantModule": "interpolant",
    "IterationCount": "iteration_loss",
    "LatentODEModule": "latent_ode",
    "LatentSDEModule": "latent_sde",
    "LatentVideoModule": "latent_video",
    "LevenbergMarquardt": "levenberg_marquardt",
    "MetricsLogger": "metrics",
    "NeuralODEModule": "neural_ode",
    "NeuralSDEModule": "neural_sde",
    "ODEClassifierModule": "heads",
    "ODERegressorModule": "heads",
    "OperatorModule": "operator",
    "Muon": "muon",
    "PINNModule": "pinn",
    "PreconditionerLoss": "preconditioner_losses",
    "PreconditionerModule": "preconditioner",
    "RelativeL2": "losses",
    "RelaxationModule": "relaxation",
    "RunFolder": "run_folder",
    "SizeError": "sizes",
    "SolutionWeighted": "preconditioner_losses",
    "TrainedPreconditioner": "trained_preconditioner",
    "TrainingModule": "module",
    "UnrolledPCG": "preconditioner_losses",
    "crps": "ensembles",
    "relative_l2": "losses",
    "spread": "ensembles",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
