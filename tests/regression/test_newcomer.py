"""What somebody does who has the wheel and nothing else: from installation to a trained, exported model."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "docs" / "quickstart.md"

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

COUNT = """
import sys, sciml

print(sum(p.numel() for p in sciml.load(sys.argv[1], trust=True).parameters()))
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

    def copy(self, name: str) -> None:
        """Write down a file of the quickstart: a block that begins with its name."""
        (text,) = re.findall(
            rf"^```\w+\n(# {re.escape(name)}\n.*?)^```", QUICKSTART.read_text(), re.DOTALL | re.MULTILINE
        )
        assert not name.endswith(".py") or len(text.splitlines()) <= 20
        self.write(name, text)

    def error(self, run: str) -> float:
        """What `sciml test` says in its last line."""
        what, _, number = self.sciml("test", run).splitlines()[-1].rpartition(": ")
        assert what == "test relative L2"
        return float(number)


def oscillations() -> str:
    """A table of 20 oscillations, in which every seventh speed is missing."""
    rows = ["run,time,x,v"]
    for run in range(20):
        amplitude, phase = 1 + run / 20, 0.3 * run
        for step in range(31):
            t = step / 10
            x, v = amplitude * math.cos(t + phase), -amplitude * math.sin(t + phase)
            rows.append(f"{run},{t},{x:.4f}," + ("" if step % 7 == 1 else f"{v:.4f}"))
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    return Newcomer(tmp_path_factory.mktemp("newcomer"))


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_gets_from_the_wheel_to_an_exported_operator(newcomer):
    everything = newcomer.sciml("list")
    assert all(name in everything for name in ("burgers_fno", "Tsit5", "Burgers", "FNO"))
    assert "burgers_fno" in newcomer.sciml("list", "examples")
    assert "final_max_error" in newcomer.sciml("solve", "burgers_fno", "--run", "solved")
    assert (newcomer.folder / "solved" / "figures" / "solution.png").is_file()
    assert Path(newcomer.sciml("data", "generate", "burgers_fno").strip()).is_file()

    config = yaml.safe_load(newcomer.sciml("show", "burgers_fno"))
    config["data"]["init_args"] |= {"train": 40, "val": 10, "test": 10}
    config["data"]["init_args"]["problem"]["init_args"]["points"] = 64
    config["model"]["init_args"]["scheduler"]["init_args"]["total_steps"] = 12
    config["trainer"]["max_epochs"] = 3
    newcomer.write("my.yaml", yaml.safe_dump(config))
    newcomer.sciml("fit", "--config", "my.yaml")
    run = "runs/my/1"
    assert newcomer.error(run) < 1  # 1 is the error of predicting zero
    for command in ("validate", "predict", "plot", "export"):
        newcomer.sciml(command, run)
    assert (newcomer.folder / run / "figures" / "prediction.png").is_file()
    assert float(newcomer.python(COMPARE, run)) <= 1e-6
    assert float(newcomer.python(LOAD, run)) <= 1e-6


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_trains_a_vector_field_of_their_own(newcomer):
    newcomer.copy("my_field.py")
    field = ("--model.init_args.ode.init_args.field", "my_field.Cubic")
    newcomer.sciml("fit", "--config", "spiral_node", "--run", "runs/cubic", *field, "--trainer.max_epochs", "20")
    assert newcomer.error("runs/cubic") < 0.06  # measured .037, and .035 after all 200 epochs
    assert int(newcomer.python(COUNT, "runs/cubic")) == 6


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_trains_on_a_table_of_their_own(newcomer):
    newcomer.write("my.csv", oscillations())
    newcomer.copy("my_csv.yaml")
    newcomer.sciml("fit", "--config", "my_csv.yaml")
    assert newcomer.error("runs/my_csv/1") < 0.1  # measured .04


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_trains_an_operator_on_a_pde_of_their_own(newcomer):
    newcomer.copy("my_pde.py")
    problem = "{class_path: my_pde.KuramotoSivashinsky, init_args: {points: 128, length: 32.0, t1: 2.0, dt: 0.02}}"
    steps = "--model.init_args.scheduler.init_args.total_steps=100"
    few = ("--data.init_args.train=100", "--trainer.max_epochs=10", steps)
    replaced = ("--data.init_args.problem", problem)
    newcomer.sciml("fit", "--config", "burgers_fno", "--run", "runs/ks", *replaced, *few)
    assert newcomer.error("runs/ks") < 0.4  # measured .20, and .029 with all data and steps


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_trains_an_operator_on_fields_of_their_own(newcomer):
    newcomer.copy("my_fields.py")
    inputs = np.random.default_rng(0).normal(size=(60, 1, 32)).cumsum(-1)
    np.savez(newcomer.folder / "my.npz", inputs=inputs, targets=np.roll(inputs, 3, -1))
    data = "{class_path: my_fields.Fields, init_args: {path: my.npz, train: 40, val: 10, test: 10}}"
    few = ("--trainer.max_epochs=1", "--run", "runs/fields")
    newcomer.sciml("fit", "--config", "burgers_fno", "--data", data, *few)
    assert newcomer.error("runs/fields") < 2


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_trains_a_network_on_an_equation_of_their_own(newcomer):
    newcomer.copy("my_equation.py")
    newcomer.copy("my_pinn.yaml")
    newcomer.sciml("fit", "--config", "my_pinn.yaml")
    metrics = dict(line.split(": ") for line in newcomer.sciml("test", "runs/my_pinn/1").splitlines())
    assert {"test_residual", "test_start", "test_left", "test_right"} <= set(metrics)
    assert float(metrics["test_loss"]) < 2e-3  # measured .0011


@pytest.mark.slow
@pytest.mark.regression
def test_newcomer_is_told_the_nearest_right_name(newcomer):
    assert "max_epochs" in newcomer.mistake("fit", "--config", "burgers_fno", "--trainer.max_epoch", "3")
    assert "burgers_fno" in newcomer.mistake("fit", "--config", "burger_fno")
    wrong_class = "--model.init_args.net.class_path=sciml.models.FN0"
    assert "FNO" in newcomer.mistake("fit", "--config", "burgers_fno", wrong_class)
