"""What somebody does who has the wheel and nothing else: from installation to a trained, exported model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

OWN_PDE = """
from dataclasses import dataclass

from sciml.problems import PeriodicPDE


@dataclass(frozen=True)
class KuramotoSivashinsky(PeriodicPDE):
    def symbol(self, k):
        return k**2 - k**4

    def nonlinear(self, y):
        return (-0.5j * self.wave(y)).to(y.dtype) * self.encode(self.decode(y).square())
"""

COMPARE = """
import sys

sys.modules["sciml"] = None  # an import of it would fail

import h5py, torch

run = sys.argv[1]
program = torch.export.load(f"{run}/model.pt2").module()
with h5py.File(f"{run}/predictions.h5") as file:
    inputs, predictions = (torch.from_numpy(file[name][...]) for name in ("inputs", "predictions"))
print(float((program(inputs) - predictions).abs().max()))
"""

LOAD = """
import h5py, sys, torch, sciml

run = sys.argv[1]
model = sciml.load(run)
with h5py.File(f"{run}/predictions.h5") as file, torch.no_grad():
    inputs, predictions = (torch.from_numpy(file[name][...]) for name in ("inputs", "predictions"))
    print(float((model(inputs) - predictions).abs().max()))
"""


class Newcomer:
    """A fresh environment with the wheel, and an empty folder."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder / "empty", folder / "venv" / "bin"
        self.folder.mkdir()
        hidden = {"PYTHONPATH", "VIRTUAL_ENV", "SCIML_CACHE"}
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden} | {
            "SCIML_CACHE": str(folder / "cache"),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }
        python = sys.executable
        self._call(python, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT))
        self._call(python, "-m", "venv", str(folder / "venv"))
        (wheel,) = folder.glob("*.whl")
        self._call(
            str(self.bin / "python"), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)
        )

    def _call(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def sciml(self, *arguments: str) -> str:
        return self._call("sciml", *arguments).stdout

    def mistake(self, *arguments: str) -> str:
        message = self._call("sciml", *arguments, code=2).stderr
        assert len(message.splitlines()) == 1, message
        return message

    def python(self, script: str, *arguments: str) -> str:
        return self._call("python", "-c", script, *arguments).stdout

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    return Newcomer(tmp_path_factory.mktemp("newcomer"))


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_gets_from_the_wheel_to_an_exported_operator(newcomer):
    assert "burgers_fno" in newcomer.sciml("list", "examples")
    for kind, known in (("steppers", "Tsit5"), ("problems", "Burgers"), ("models", "FNO")):
        assert known in newcomer.sciml("list", kind)
    assert "final_max_error" in newcomer.sciml("solve", "burgers_fno", "--run", "solved")
    assert (newcomer.folder / "solved" / "figures" / "solution.png").is_file()

    config = yaml.safe_load(newcomer.sciml("show", "burgers_fno"))
    config["data"]["init_args"] |= {"train": 40, "val": 10, "test": 10}
    config["data"]["init_args"]["problem"]["init_args"]["points"] = 64
    config["model"]["init_args"]["scheduler"]["init_args"]["total_steps"] = 12
    config["trainer"]["max_epochs"] = 3
    newcomer.write("my.yaml", yaml.safe_dump(config))
    assert Path(newcomer.sciml("data", "generate", "my.yaml").strip()).is_file()
    newcomer.sciml("fit", "--config", "my.yaml")
    run = "runs/my/1"
    assert newcomer.sciml("test", run).splitlines()[-1].startswith("test relative L2: ")
    for command in ("validate", "predict", "plot", "export"):
        newcomer.sciml(command, run)
    assert (newcomer.folder / run / "figures" / "prediction.png").is_file()
    assert float(newcomer.python(COMPARE, run)) <= 1e-6
    assert float(newcomer.python(LOAD, run)) <= 1e-6


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_trains_an_operator_on_a_pde_of_their_own(newcomer):
    newcomer.write("my_pde.py", OWN_PDE)
    config = yaml.safe_load(newcomer.sciml("show", "burgers_fno"))
    config["data"]["init_args"] |= {"train": 20, "val": 10, "test": 10}
    config["data"]["init_args"]["problem"] = {
        "class_path": "my_pde.KuramotoSivashinsky",
        "init_args": {"points": 64, "length": 32.0, "t1": 5.0, "dt": 0.1},
    }
    config["model"]["init_args"]["scheduler"]["init_args"]["total_steps"] = 4
    config["trainer"]["max_epochs"] = 2
    newcomer.write("ks.yaml", yaml.safe_dump(config))
    newcomer.sciml("fit", "--config", "ks.yaml")
    assert "test relative L2" in newcomer.sciml("test", "runs/ks/1")


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_is_told_the_nearest_right_name(newcomer):
    assert "max_epochs" in newcomer.mistake("fit", "--config", "burgers_fno", "--trainer.max_epoch", "3")
    assert "burgers_fno" in newcomer.mistake("fit", "--config", "burger_fno")
    wrong_class = "--model.init_args.net.class_path=sciml.models.FN0"
    assert "FNO" in newcomer.mistake("fit", "--config", "burgers_fno", wrong_class)
