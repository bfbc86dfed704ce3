import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

from sciml.cli import LISTS, main
from sciml.problems import Equation, Problem
from sciml.solvers import Stepper
from sciml.training import TrainingModule
from sciml.training.config import config_name, examples

LIGHT = [["--help"], ["fit", "--help"], ["list"], ["list", "steppers"], ["show", "burgers_fno"]]
HEAVY = ("torch", "lightning", "matplotlib", "numpy", "jsonargparse")


def error(capsys, *arguments):
    """The line that a mistaken command prints."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_help_and_lists_import_nothing_heavy(arguments):
    script = f"""
import sys
from sciml.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)


BASES = {
    "steppers": (Stepper,),
    "problems": (Problem, Equation),
    "models": (nn.Module,),
    "modules": (TrainingModule,),
}
PACKAGES = {"steppers": "solvers", "modules": "training"}


@pytest.mark.parametrize("kind", BASES)
def test_lists_name_the_public_classes_and_nothing_else(kind):
    package = importlib.import_module(f"sciml.{PACKAGES.get(kind, kind)}")
    public = [getattr(package, name) for name in package.__all__]
    bases = BASES[kind]
    real = {c.__name__ for c in public if inspect.isclass(c) and issubclass(c, bases) and c not in bases}
    assert set(LISTS[kind]()) == real
    assert all(LISTS[kind]().values())


def test_list_prints_all_kinds(capsys):
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    known = {"examples": "burgers_fno", "steppers": "Tsit5", "problems": "Burgers", "models": "FNO"}
    for kind, name in (known | {"modules": "ODERegressorModule"}).items():
        assert kind in output
        assert name in output


def test_output_may_be_read_in_part():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sciml", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", examples())
def test_show_prints_a_complete_configuration_with_a_summary(name, capsys):
    assert main(["show", name]) == 0
    output = capsys.readouterr().out
    assert {"model", "data", "trainer"} <= yaml.safe_load(output).keys()
    assert LISTS["examples"]()[name]


def test_a_path_beats_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("burgers_fno").mkdir()
    assert main(["show", "burgers_fno"]) == 0
    assert "FNO" in capsys.readouterr().out
    Path("burgers_fno/config.yaml").write_text("own: 1\n")
    assert main(["show", "burgers_fno"]) == 0
    assert capsys.readouterr().out == "own: 1\n"


def test_runs_are_named_after_the_file_or_its_folder():
    assert config_name(Path("my.yaml")) == "my"
    assert config_name(Path("examples/burgers_fno/config.yaml")) == "burgers_fno"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fitt"], "did you mean 'fit'?"),
        (["list", "stepper"], "did you mean 'steppers'?"),
        (["show", "burger_fno"], "no file and no example 'burger_fno'; did you mean 'burgers_fno'?"),
        (["show", "burgers_fno", "--all"], "show: unexpected --all"),
        (["fit"], "--config NAME_OR_PATH for a new run, or --resume RUN"),
        (["fit", "--config", "a.yaml", "--config", "b.yaml"], "fit: expected one --config, got a.yaml and b.yaml"),
        (["fit", "--config", "nowhere.yaml"], "no file and no example 'nowhere.yaml'"),
        (["test", "nowhere"], "no run folder 'nowhere': it has no config.yaml"),
        (["export"], "the following arguments are required: RUN"),
    ],
)
def test_mistakes_are_told_in_a_line(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error(capsys, *arguments)
