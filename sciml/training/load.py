"""A trained model from its run folder."""

import os
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule
from torch import nn

from sciml.training.mistakes import other_weights
from sciml.training.module import TrainingModule
from sciml.training.run_folder import RunFolder

TRUSTED = ("sciml", "torch.nn", "torch.optim", "lightning.pytorch")


def load(run: str | os.PathLike[str], trust: bool = False) -> nn.Module:
    """The model of a run with its normaliser, ready to be called.

    Args:
        run: a run folder, whose best checkpoint is taken, or a checkpoint file.
        trust: import and run classes that the configuration names outside of sciml, torch and Lightning. Only for
            files from someone whose programs you would run.

    Returns:
        A module in eval mode: for an operator, from fields `(b, c, *x)` to fields; a LightningModule of your own that
        is no `TrainingModule`, as it is.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file is no checkpoint, names a class that is not trusted, or holds no configuration.
    """
    path = Path(run)
    path = RunFolder(path).checkpoint if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"run: no checkpoint {str(path)!r}; has training started?")
    if not zipfile.is_zipfile(path):  # which torch.save writes
        raise ValueError(f"run: expected a run folder or a checkpoint, {str(path)!r} is neither")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    config = checkpoint.get("sciml", {}).get("config")
    if config is None:
        raise ValueError(
            f"run: {str(path)!r} holds no configuration, as it was not made by `sciml fit`; build the "
            "module yourself and give it the checkpoint's `state_dict`"
        )
    if not trust and (strange := [name for name in class_paths(config["model"]) if not trusted(name)]):
        raise ValueError(
            f"run: {str(path)!r} names classes from elsewhere: {', '.join(strange)}; pass trust=True if "
            "you trust whoever made it"
        )
    if trust:
        add_code_path(config.get("code_path"))
    module = build_module(config["model"])
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"run: {str(path)!r}: {other_weights(error) or error}") from error
    model = module.predictor() if isinstance(module, TrainingModule) else module
    return model.eval().requires_grad_(False)


def build_module(config: dict[str, Any]) -> LightningModule:
    """The training module that a configuration's `model` describes, with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False, required=True)
    return parser.instantiate_classes(parser.parse_object({"model": config}))["model"]


def class_paths(config: Any) -> Iterator[str]:
    """All names in a configuration that may be imported: any string that reads like a module's attribute."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from class_paths(value)
    elif isinstance(config, str) and "." in config and all(part.isidentifier() for part in config.split(".")):
        yield config


def trusted(class_path: str) -> bool:
    """Whether a name is in a module of a package that sciml is built on; what such a module imports is not meant."""
    module = class_path.rpartition(".")[0]
    if not any(f"{module}.".startswith(f"{package}.") for package in TRUSTED):
        return False
    try:
        import_module(module)
    except ImportError:  # `sciml.training.load.os` is an attribute, and not a module of sciml
        return False
    return True


def add_code_path(folder: str | None) -> None:
    """Make the working directory, and the folder of a configuration, places to import from."""
    for place in (os.getcwd(), folder):
        if place and place not in sys.path:
            sys.path.insert(0, place)
