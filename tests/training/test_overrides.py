"""What `--key value` does to a configuration."""

import sys
from pathlib import Path

import pytest

from sciml.training import RunFolder
from sciml.training.config import find_config
from sciml.training.trainer_cli import RunCLI
from tests.training.conftest import TINY

OTHERS = """
import tiny
from sciml.problems import Burgers


class Net(tiny.Net):
    def __init__(self, width: int = 7, dropout: float = 0.1):
        super().__init__(width, dropout)


class Data(tiny.Data):
    def __init__(self, train: int = 5, net: tiny.Net | None = None):
        super().__init__(train)


class Heat(Burgers):
    def __init__(self, points: int = 64, t1: float = 0.1, dt: float = 0.01):
        super().__init__(points=points, t1=t1, dt=dt)
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The `init_args` that a configuration and overrides give, by the class's key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(TINY.parent)])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.delitem(sys.modules, "others", raising=False)
    Path("others.py").write_text(OTHERS)

    def read(config, key, *overrides):
        found = RunCLI(find_config(str(config)), overrides, RunFolder("run")).settings()
        for name in key.split("."):
            found = found[int(name)] if name.isdecimal() else found.get("init_args", found)[name]
        return found["init_args"]

    return read


NET, HEAT = {"width": 7, "dropout": 0.1}, {"points": 64, "t1": 0.1, "dt": 0.01}


@pytest.mark.parametrize(
    ("config", "key", "overrides", "expected"),
    [
        ("burgers_fno", "data.problem", ["--data.problem=others.Heat"], HEAT),
        (
            "burgers_fno",
            "data.problem",
            ["--data.problem.points=32", "--data.problem=others.Heat"],
            HEAT | {"points": 32},
        ),
        ("burgers_fno", "data.problem", ["--data.problem=others.Heat", "--data.problem.dt=0.1"], HEAT | {"dt": 0.1}),
        ("full", "model.net", ["--model.net.class_path=others.Net"], NET),
        ("full", "model.net", ["--model.net={class_path: others.Net, init_args: {}}"], NET),
        ("full", "model.net", ["--model.net=others.Net", "--model.net=tiny.Net"], {"width": 9, "dropout": 0.5}),
        ("full", "data", ["--data={class_path: others.Data, init_args: {net: others.Net}}"], {"train": 5}),
        ("full", "model.optimizer", ["--model.optimizer=SGD"], {"lr": 1e-3, "weight_decay": 0}),
        ("full", "trainer.callbacks.0", ["--trainer.callbacks=[ModelCheckpoint]"], {"verbose": False}),
    ],
)
def test_class_in_the_place_of_another_gets_none_of_its_arguments(settings, config, key, overrides, expected):
    text = TINY.read_text().replace(
        "{class_path: tiny.Net}", "{class_path: tiny.Net, init_args: {width: 9, dropout: 0.5}}"
    )
    text = text.replace("lr: 1e-2", "lr: 1e-2, weight_decay: 0.1").replace(
        "tiny.Data\n", "tiny.Data\n  init_args: {train: 8}\n"
    )
    early = "callbacks: [{class_path: EarlyStopping, init_args: {monitor: val_relative_l2, verbose: true}}], "
    Path("full.yaml").write_text(text.replace("trainer: {", "trainer: {" + early))
    found = settings(f"{config}.yaml" if config == "full" else config, key, *overrides)
    assert {name: found[name] for name in expected} == expected
