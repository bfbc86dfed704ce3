"""Data for training: in-memory fields, their generation, and a loader whose position can be saved."""

from importlib import import_module
from typing import Any

_WHERE = {
    "Collocation": "collocation",
    "Digits": "digits",
    "FieldData": "fields",
    "LinearSystems": "linear_systems",
    "LabelledSeries": "series",
    "Loader": "loader",
    "MNIST5k": "digits",
    "Moons": "moons",
    "MovingDigits": "moving_digits",
    "Observed": "trajectories",
    "OperatorData": "generate",
    "Series": "series",
    "Source": "linear_systems",
    "Spirals": "series",
    "RandomSystems": "random_systems",
    "SplitData": "split",
    "SystemSequence": "system_sequence",
    "TensorFields": "fields",
    "Trajectories": "trajectories",
    "TrajectoryData": "trajectories",
    "Weather": "weather",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
