"""Sizes that do not fit: which argument is wrong, what it is and what would be right."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sciml.models import FNO, MLP, Autonomous, LatentSDE, NeuralODE
from sciml.training import SizeError
from sciml.training.sizes import misfit, told
from tests.training.conftest import TINY

ODE = "model.init_args.ode.init_args.field.init_args.net.init_args"
OBSERVED = torch.zeros(4, 6, 2)


class Step(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    @told
    def forward(self, *inputs):
        return self.net(*inputs)


@pytest.mark.parametrize(
    ("config", "key", "given", "expected"),
    [
        ("ode", f"{ODE}.in_features", 3, "expected 2 for an input (4, 2), got 3"),
        ("ode", f"{ODE}.out_features", 1, "expected 2 for an output (4, 2), got 1"),
        ("pinn", "model.init_args.net.init_args.in_features", 3, "expected 2 for an input (4, 2), got 3"),
        ("latent_sde", "model.init_args.model.init_args.channels", 3, "expected 1 for observations (4, 6, 1), got 3"),
        ("latent_ode", "model.init_args.model.init_args.channels", 3, "expected 2 for observations"),
        (
            "latent_video",
            "model.init_args.model.init_args.size",
            16,
            "expected 12 for frames of 12 x 12 pixels, got 16",
        ),
    ],
)
def test_size_that_does_not_fit_is_one_line_and_leaves_no_folder(sciml, fit, config, key, given, expected):
    error = fit("runs/mine/1", f"--{key}={given}", config=TINY.with_name(f"{config}.yaml"), code=2)
    assert error.splitlines()[-1].startswith(f"sciml: {key}: {expected}")
    assert "Traceback" not in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("net", "inputs", "expected"),
    [
        (
            FNO(2, 1, [4], width=4),
            (torch.zeros(2, 1, 8),),
            r"net.in_channels: expected 1 for an input \(2, 1, 8\), got 2",
        ),
        (FNO(1, 1, [4, 4], width=4), (torch.zeros(2, 1, 8),), r"net.modes: expected 1 count, .*, got \[4, 4\]"),
        (
            nn.Sequential(nn.Linear(3, 2)),
            (torch.zeros(5, 2),),
            r"net.0.in_features: expected 2 .*, got 3 \(of Linear\)",
        ),
        (nn.Conv2d(3, 2, 1), (torch.zeros(5, 1, 4, 4),), r"net.in_channels: expected 1 for .*, got 3"),
        (nn.GRU(3, 2), (torch.zeros(5, 1, 4),), r"net.input_size: expected 4 for .*, got 3"),
        (NeuralODE(Autonomous(MLP(2, 1))), (torch.zeros(5, 2),), r"net.field.net"),
    ],
)
def test_misfit_names_the_argument_of_any_net(net, inputs, expected):
    with pytest.raises(SizeError, match=expected) as caught:
        Step(net)(*inputs)
    assert isinstance(caught.value.__cause__, RuntimeError | ValueError)


def test_other_errors_pass_as_they_are():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("expected the unexpected")

    with pytest.raises(RuntimeError, match="the unexpected"):
        Step(Broken())(torch.zeros(2))
    assert misfit(ValueError("x: expected 3, got 4"), Step(MLP(2, 2))) is None


def test_latent_model_refuses_other_channels():
    with pytest.raises(ValueError, match=r"channels: expected 2 for observations \(4, 6, 2\), got 3"):
        LatentSDE(channels=3, latent=2).posterior(torch.linspace(0, 1, 6), OBSERVED, torch.ones_like(OBSERVED).bool())


def test_undone_start_leaves_what_was_there(sciml, fit):
    fit("run")
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    before = Path("run/config.yaml").read_text()
    fit("run", f"--{ODE}.in_features=3", config=TINY.with_name("ode.yaml"), code=2)
    assert Path("run/config.yaml").read_text() == before
    assert Path("run/metrics.csv").is_file()


def test_missing_data_leave_no_folder(sciml, fit):
    Path("my.yaml").write_text(
        TINY.with_name("ode.yaml")
        .read_text()
        .replace(
            "tiny.Rotations, init_args: {batch_size: 4}",
            "sciml.data.Trajectories, init_args: {path: nowhere.csv, y: [x, v]}",
        )
    )
    error = fit("runs/my/1", config="my.yaml", code=2)
    assert error.splitlines()[-1] == "sciml: data.init_args.path: there is no file 'nowhere.csv'"
    assert not Path("runs").exists()


def test_solve_without_a_problem_leaves_no_folder(sciml):
    error = sciml("solve", TINY.with_name("ode.yaml"), code=2)
    assert "has no problem to solve, as those of OperatorData and TrajectoryData; a model is trained by" in error
    assert not Path("runs").exists()


def test_field_of_the_wrong_arguments_is_one_line(sciml, fit):
    Path("mine.py").write_text("from torch import nn\n\nclass One(nn.Linear):\n    pass\n")
    Path("my.yaml").write_text(
        TINY.with_name("ode.yaml").read_text().replace("tiny.Rotations", "sciml.data.Trajectories")
    )
    arguments = "{class_path: mine.One, init_args: {in_features: 2, out_features: 2}}"
    table = "id,t,x,v\n" + "".join(f"{i},{t},1,2\n" for i in range(4) for t in range(3))
    Path("my.csv").write_text(table)
    more = ["--data.init_args.path=my.csv", "--data.init_args.id=id", "--data.init_args.y=[x, v]"]
    error = fit("run", f"--model.init_args.ode.init_args.field={arguments}", *more, config="my.yaml", code=2)
    assert error.splitlines()[-1].startswith("sciml: term: expected a callable f(t, y)")
    assert not Path("run").exists()
