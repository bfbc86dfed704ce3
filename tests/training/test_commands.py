import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import pytest
import torch
import yaml
from PIL import Image

from sciml import load
from sciml.data.generate import content
from sciml.training import MetricsLogger, RunFolder
from sciml.training.load import trusted
from sciml.training.trainer_cli import RunCLI
from tests.training.conftest import TINY
from tests.training.running import logged

LOAD_WITHOUT_SCIML = """
import sys, torch
sys.modules["sciml"] = None
model = torch.export.load("run/model.pt2").module()
inputs = torch.load("inputs.pt")
torch.save([model(inputs), model(inputs[:1])], "outputs.pt")
"""


QUICKSTART = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()


@pytest.fixture
def trained(fit):
    fit("run")
    return RunFolder("run")


def test_run_folder_holds_what_it_says(trained):
    names = {str(path.relative_to(trained.path)) for path in trained.path.rglob("*") if path.is_file()}
    figures = {"figures/learning_curve.png", "figures/prediction.png"}
    assert names == {"config.yaml", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", *figures}
    config = yaml.safe_load(trained.configs[0].read_text())
    assert config["trainer"]["max_epochs"] == 3
    assert config["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0.01  # a default, resolved


def test_checkpoint_is_plain_data_with_the_configuration(trained):
    checkpoint = torch.load(trained.last, weights_only=True)
    assert checkpoint["sciml"]["finished"]
    assert checkpoint["sciml"]["config"] == yaml.safe_load(trained.configs[0].read_text())


def test_new_runs_are_numbered(sciml):
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.max_steps=1")
    for number in (1, 2):
        assert f"runs/tiny/{number}" in sciml("fit", "--config", TINY, *quiet)


def test_fit_refuses_a_folder_with_a_checkpoint_and_takes_one_without(trained, fit):
    assert "sciml fit --resume run" in fit("run", code=2)
    trained.last.unlink()
    fit("run", "--trainer.max_epochs=1")
    assert len(trained.metrics.read_text().splitlines()) == 1 + 5 + 1


def test_metrics_of_the_evaluation_commands(trained, sciml):
    rows = trained.metrics.read_text().splitlines()
    before = trained.metrics.read_bytes()
    assert sciml("validate", "run").strip() == f"val_relative_l2: {float(rows[-1].split(',')[-1]):.6g}"
    *_, last = sciml("test", "run").splitlines()
    assert last.startswith("test relative L2: ")
    assert 0 < float(last.split()[-1]) < 2
    assert trained.metrics.read_bytes() == before


def test_predictions_load_and_export_agree(trained, sciml, caplog):
    assert sciml("predict", "run").strip() == "run/predictions.h5"
    with h5py.File(trained.predictions) as file:
        assert set(file) == {"inputs", "targets", "predictions"}
        inputs, predictions = (torch.from_numpy(file[name][...]) for name in ("inputs", "predictions"))
    assert torch.equal(load("run", trust=True)(inputs), predictions)

    assert sciml("export", "run").splitlines() == [
        "run/model.pt2",
        "torch.export.load('run/model.pt2').module()(fields)",
        "  fields: torch.float32 (n, 1, m)",
    ]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    torch.save(inputs, "inputs.pt")
    subprocess.run([sys.executable, "-c", LOAD_WITHOUT_SCIML], check=True)
    whole, single = torch.load("outputs.pt")
    torch.testing.assert_close(whole, predictions, rtol=0, atol=1e-6)  # round-off of float32
    torch.testing.assert_close(single, predictions[:1], rtol=0, atol=1e-6)


FNO = "--model.net={class_path: sciml.models.FNO, init_args: {in_channels: 1, out_channels: 1, modes: [5], width: 4}}"


def test_exported_operator_takes_other_resolutions(fit, sciml):
    fit("run", FNO, "--trainer.max_epochs=1")
    assert "fields: torch.float32 (n, 1, m)" in sciml("export", "run")
    program, model = torch.export.load("run/model.pt2").module(), load("run", trust=True)
    for points in (9, 16, 31):
        fields = torch.randn(3, 1, points, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(program(fields), model(fields), rtol=0, atol=1e-6)  # round-off of float32


def test_plot_draws_the_figures_anew(trained, sciml):
    for path in trained.figures.iterdir():
        path.unlink()
    printed = sciml("plot", "run").split()
    assert sorted(printed) == sorted(map(str, trained.figures.iterdir()))
    assert len(printed) == 2
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in printed)


def test_load_imports_only_what_is_trusted(trained):
    with pytest.raises(ValueError, match=r"classes from elsewhere: tiny.Net; pass trust=True"):
        load("run")
    model = load(trained.last, trust=True)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nowhere'"):
        load("nowhere")


def test_module_that_is_no_training_module_is_loaded_as_it_is(fit):
    fit("run", "--model=tiny.Adversaries", "--trainer.max_epochs=1")
    module = load("run", trust=True)
    assert type(module).__name__ == "Adversaries"
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    expected = torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_commands_before_the_first_checkpoint_name_the_remedy(trained, sciml):
    trained.last.unlink()
    trained.best.unlink()
    assert "run has no checkpoint yet; train it by `sciml fit --resume run`" in sciml("test", "run", code=2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sciml.models.FNO", True),
        ("torch.nn.functional.gelu", True),
        ("tiny.Net", False),
        ("scimlike.Net", False),
        ("os.system", False),
        ("sciml.training.load.os.system", False),  # what a module of sciml has imported
    ],
)
def test_only_what_sciml_is_built_on_is_trusted(name, expected):
    assert trusted(name) is expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--trainer.max_epoch=3", "trainer.max_epoch: there is no such key; did you mean 'trainer.max_epochs'?"),
        ("--trainr.max_epochs=3", "trainr.max_epochs: there is no such key; did you mean 'trainer.max_epochs'?"),
        ("--optimizer=SGD", "optimizer: there is no such key; it is one of the model: 'model.init_args.optimizer'"),
        (
            "--lr_scheduler.gamma=1",
            "lr_scheduler: there is no such key; it is one of the model: 'model.init_args.schedul",
        ),
        ("--trainer.max_epochs=many", "trainer.max_epochs: expected int or None, got 'many'"),
        ("--model.compil=true", "model.compil: OperatorModule has no such key; did you mean 'compile'?"),
        ("--model.net.widt=3", "model.net.widt: Net has no such key; did you mean 'width'?"),
        ("--model.net.width=wide", "model.net.width: expected int, got 'wide'"),
        ("--model.net=tiny.Nett", "model.net: tiny has no 'Nett'; did you mean 'Net'?"),
        ("--model.net=tinny.Net", "model.net: no module 'tinny'; own modules are found in the configuration's folder"),
        ("--model.optimizer.lrr=3", "model.optimizer.lrr: AdamW has no such key; did you mean 'lr'?"),
        ("--model.optimizer.lr=fast", "model.optimizer.lr: expected float, got 'fast'"),
        ("--model.optimizer=AdamX", "as torch.nn.Tanh, got 'AdamX'; did you mean 'Adam"),
        ("--model.optimizer=torch.optim.AdamX", "model.optimizer: torch.optim has no 'AdamX'; did you mean 'Adam"),
        ("--model=sciml.training.OperatorModul", "sciml.training has no 'OperatorModul'; did you mean 'OperatorModule"),
        ("--checkpoint.every_n_step=3", "did you mean 'checkpoint.every_n_steps'?"),
        ("--model.scheduler_interval=day", "model.scheduler_interval: expected 'epoch' or 'step', got 'day'"),
        ("--trainer.accelerator=cpuu", "cpuu"),
        ("--data.class_path=sciml.data.OperatorData", "data: missing problem"),
    ],
)
def test_mistakes_in_a_configuration_are_told_in_a_line(fit, override, expected):
    message = fit("run", override, code=2)
    assert message.startswith("sciml: ")
    assert message.count("\n") == 1, message
    assert expected in message
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("model:", "modle:"), "modle: there is no such key; did you mean 'model'?"),
        (("model:", "optimizer: {lr: 1}\nmodel:"), "optimizer: there is no such key; it is one of the model"),
        (("train: 8", "train: 0"), "train: expected at least 1 samples, got 0"),
        (("train: 8", "train: 8, batch_size: 0"), "batch_size: expected at least 1, got 0"),
    ],
)
def test_mistakes_in_a_file_are_told_in_a_line(fit, tmp_path, change, expected):
    problem = "problem: {class_path: sciml.problems.Burgers}"
    data = f"data: {{class_path: sciml.data.OperatorData, init_args: {{{problem}, train: 8}}}}"
    model = "model:\n  class_path: sciml.training.OperatorModule\n  init_args:\n    net: {class_path: tiny.Net}"
    (tmp_path / "my.yaml").write_text(f"{data}\n{model}\n".replace(*change))
    message = fit("run", config="my.yaml", code=2)
    assert message.startswith("sciml: ")
    assert message.count("\n") == 1, message
    assert expected in message
    assert not Path("run").exists()


UNFIT = """--model={class_path: sciml.training.NeuralODEModule, init_args: {ode: {class_path: sciml.models.NeuralODE,
init_args: {field: {class_path: tiny.Net}, solver: {
stepper: {class_path: sciml.solvers.RK4}, controller: {class_path: sciml.solvers.PID}}}}}}"""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--data={class_path: sciml.data.Digits, init_args: {test: 2.0}}", "test, val: expected positive shares"),
        (UNFIT, "controller: RK4 has no error estimate, expected Grid(...)"),
    ],
)
def test_what_a_class_objects_to_is_told_in_a_line(fit, override, expected):
    message = fit("run", override, code=2)
    assert expected in message
    assert len(message) < 120
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("--model.ode.solver.compile=null", "compile"),
        ('--model.ode.solver={"compile": null}', "compile"),
        ("--model.ode.solver.controller=null", "controller"),
        ("--model.ode.solver={controller: {class_path: sciml.solvers.PID, init_args: {dt0: null}}}", "controller.dt0"),
        ("--model.ode.solver.controller.ts=null", "controller.ts"),
        ("--model.ode.solver=null", ""),
    ],
)
def test_a_null_reaches_a_key_of_a_nested_class(monkeypatch, override, key):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    found = RunCLI(TINY.with_name("ode.yaml"), [override], RunFolder("run")).settings()
    found = found["model"]["init_args"]["ode"]["init_args"]["solver"]
    for name in filter(None, key.split(".")):
        found = found.get("init_args", found)[name]
    assert found is None


def test_mistakes_in_the_file_are_told_in_a_line(sciml):
    config = yaml.safe_load(TINY.read_text()) | {"code_path": str(TINY.parent)}
    config["trainer"]["max_epoch"] = 1
    Path("my.yaml").write_text(yaml.safe_dump(config))
    assert "did you mean 'trainer.max_epochs'?" in sciml("fit", "--config", "my.yaml", code=2)
    Path("my.yaml").write_text("model: [1\n")
    assert "my.yaml" in sciml("fit", "--config", "my.yaml", code=2)
    Path("my.yaml").write_text("model\n")
    assert "my.yaml: expected keys and values" in sciml("fit", "--config", "my.yaml", code=2)


def test_help_all_names_every_key(sciml):
    output = sciml("fit", "--help=all")
    assert all(key in output for key in ("--trainer.max_epochs", "--checkpoint.every_n_steps", "--seed_everything"))


@pytest.mark.parametrize("with_config", [False, True])
def test_help_of_a_class_names_its_keys(sciml, with_config):
    config = ["--config", TINY] if with_config else []
    assert "--model.net NET" in sciml("fit", *config, "--model.help", "sciml.training.OperatorModule")
    assert "--data.batch_size" in sciml("fit", *config, "--data.help=sciml.data.Trajectories")


def test_help_of_what_is_no_class_there_is_one_line(sciml):
    assert "is not a subclass of LightningModule\n" in sciml("fit", "--model.help", "sciml.models.FNO", code=2)


def test_modules_beside_the_configuration_and_in_the_working_directory_are_found(sciml, tmp_path):
    (tmp_path / "here.py").write_text("from tiny import Net\n\n\nclass Own(Net):\n    pass\n")
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.max_epochs=1")
    sciml("fit", "--config", TINY, "--run", "run", "--model.net=here.Own", *quiet)
    assert sciml("test", "run").startswith("test_relative_l2")


BURGERS = "--data.problem={class_path: sciml.problems.Burgers, init_args: {points: 32, nu: 0.05, dt: 0.02, t1: 0.2}}"


def test_solve_writes_the_solution_and_its_error(sciml):
    assert sciml("solve", "burgers_fno", BURGERS).splitlines()[-1] == "solution: runs/burgers_fno_solve/1"
    run = RunFolder("runs/burgers_fno_solve/1")
    with h5py.File(run.path / "solution.h5") as file:
        assert file["fields"].shape == file["exact"].shape == (4, 11, 1, 32)
        assert abs(file["fields"][...] - file["exact"][...]).max() < 0.05  # of a coarse grid
    assert {path.name for path in run.figures.iterdir()} == {"solution.png", "error.png"}
    assert "Data has no problem to solve" in sciml("solve", TINY, code=2)


def test_solve_draws_a_flow_and_prints_its_budgets(sciml):
    problem = "--data.init_args.problem.init_args"
    quick = [f"{problem}.points=32", f"{problem}.t1=0.2"]
    lines = sciml("solve", "navier_stokes_kolmogorov", "--run", "flow", *quick).splitlines()
    printed = dict(line.split(": ") for line in lines)
    assert float(printed["energy_budget_residual"]) < 1e-6  # 20 saved times, .01 apart, and splines of order 4
    assert float(printed["enstrophy_budget_residual"]) < 1e-6
    with h5py.File("flow/solution.h5") as file:
        assert file["fields"].shape == (4, 21, 1, 32, 32)
        assert file["x0"].shape == file["x1"].shape == (32,)
    names = {"solution.png", "solution.gif", "spectrum.png", "energy_budget.png", "enstrophy_budget.png"}
    assert {path.name for path in RunFolder("flow").figures.iterdir()} == names
    with Image.open("flow/figures/solution.gif") as animation:
        assert animation.n_frames == 21


def test_data_are_generated_into_the_cache(sciml, tmp_path, monkeypatch):
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    file = Path(sciml("data", "generate", "burgers_fno", BURGERS).strip())
    assert file.parent == tmp_path / "cache"
    assert sciml("data", "generate", "burgers_fno", BURGERS).strip() == str(file)
    assert "Data generates nothing" in sciml("data", "generate", TINY, code=2)


def test_solving_and_generating_need_no_model(sciml, tmp_path, monkeypatch):
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    problem = BURGERS.removeprefix("--data.problem=")
    Path("pde.yaml").write_text(f"data: {{class_path: sciml.data.OperatorData, init_args: {{problem: {problem}}}}}\n")
    assert sciml("solve", "pde.yaml").splitlines()[-1] == "solution: runs/pde_solve/1"
    assert "model: null" in Path("runs/pde_solve/1/config.yaml").read_text()
    assert sciml("data", "generate", "pde.yaml", "--data.train=2", "--data.val=1", "--data.test=1").endswith(".h5\n")
    assert sciml("fit", "--config", "pde.yaml", code=2) == "sciml: missing model\n"


GENERATED = {
    "OperatorData": ("burgers_fno", BURGERS, "--model.net.width=4"),
    "TrajectoryData": ("spiral_node", "--data.points=10"),
}


@pytest.mark.parametrize("data", GENERATED)
def test_a_run_notices_when_it_goes_on_with_other_generated_data(sciml, tmp_path, monkeypatch, data):
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    config, *overrides = GENERATED[data]
    small = ("--data.train=4", "--data.val=2", "--data.test=2", "--data.batch_size=2", "--trainer.max_epochs=1")
    sciml("fit", "--config", config, "--run", "run", *overrides, *small)
    (file,) = (tmp_path / "cache").glob("*.h5")
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)[data] == {"content": content(file)}
    sciml("fit", "--resume", "run", "--trainer.max_epochs=2")  # a warning is an error here
    sciml("test", "run", "--data.data_seed=1")
    with pytest.warns(UserWarning, match="data: other ones than this run was trained on before"):
        sciml("fit", "--resume", "run", "--trainer.max_epochs=3", "--data.data_seed=1")


def test_every_validation_meets_all_samples(fit):
    small = ("--data.val=8", "--data.batch_size=2", "--trainer.max_epochs=1")
    for checks in (0, 2):
        fit(f"run{checks}", f"--trainer.num_sanity_val_steps={checks}", *small)
    assert logged("run0/metrics.csv") == logged("run2/metrics.csv")


def test_fit_ends_with_the_best_metric_and_the_folder(fit):
    best, folder = fit("run").splitlines()[-2:]
    values = [
        float(row["val_relative_l2"]) for row in MetricsLogger("run/metrics.csv").rows() if row["val_relative_l2"]
    ]
    assert best == f"best val_relative_l2: {min(values):.6g}"
    assert folder == "run folder: run"


def test_best_checkpoint_is_what_was_validated_also_between_two_steps(fit, sciml):
    overrides = ("--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=3", "--trainer.max_epochs=4")
    best, _ = fit("run", *overrides).splitlines()[-2:]
    assert best == f"best {sciml('validate', 'run').strip()}"


def test_a_run_in_double_precision_is_loaded_in_single(fit, sciml):
    fit("run", "--trainer.precision=64-true")
    sciml("predict", "run")
    sciml("plot", "run")
    with h5py.File("run/predictions.h5") as file:
        inputs, predictions = (torch.from_numpy(file[name][...]) for name in ("inputs", "predictions"))
    assert predictions.dtype == torch.float64
    single = load("run", trust=True)(inputs.float())
    torch.testing.assert_close(single, predictions.float(), rtol=0, atol=1e-6)  # round-off of float32


def test_a_run_in_half_precision_is_drawn_and_predicts(fit, sciml):
    fit("run", "--trainer.precision=bf16-true")
    assert Path("run/figures/prediction.png").is_file()
    sciml("predict", "run")
    with h5py.File("run/predictions.h5") as file:
        assert file["predictions"].dtype == "f4"


def test_a_run_without_test_data_ends_with_its_learning_curve(fit, sciml):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Total length of `Loader` across ranks is zero")
        fit("run", "--data.test=0")
        assert sciml("predict", "run", code=2) == "sciml: data: expected samples to test on, got none\n"
    assert [path.name for path in Path("run/figures").iterdir()] == ["learning_curve.png"]
    assert sciml("plot", "run").split() == ["run/figures/learning_curve.png"]


def test_a_callback_and_a_plugin_by_themselves_need_no_list(fit):
    fit(
        "run",
        "--trainer.callbacks={class_path: tiny.End, init_args: {batch: 1}}",
        "--trainer.plugins=lightning.pytorch.plugins.environments.LightningEnvironment",
    )
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


def test_a_plateau_is_looked_for_when_there_was_a_validation(fit):
    plateau = "{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {patience: 0, threshold: 1.0e+9}}"
    fit("run", f"--model.scheduler={plateau}", "--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=5")
    (state,) = torch.load("run/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"]
    assert state["last_epoch"] == 2  # validations


def test_settings_of_the_quickstart_work(fit, sciml, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_callbacks", raising=False)
    Path("my_callbacks.py").write_text(
        "from lightning import Callback\n\nclass Told(Callback):\n    def __init__(self, every: int):\n"
        "        self.every = every\n\n    def on_fit_end(self, trainer, module):\n        print('told', self.every)\n"
    )
    (text,) = re.findall(r"^```yaml\n(# settings.yaml\n.*?)^```", QUICKSTART, re.DOTALL | re.MULTILINE)
    given = yaml.safe_load(text)
    config = yaml.safe_load(TINY.read_text()) | {"code_path": str(TINY.parent)}
    config["trainer"] |= given["trainer"]
    config["model"]["init_args"] |= given["model"]["init_args"]
    Path("my.yaml").write_text(yaml.safe_dump(config))
    assert "told 10" in fit("run", config="my.yaml")
    assert list(Path("logs").rglob("metrics.csv"))
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert any(name.startswith("EarlyStopping") for name in checkpoint["callbacks"])
    assert checkpoint["lr_schedulers"][0]["T_max"] == 40


def test_solve_refuses_the_folder_of_a_trained_run(trained, sciml):
    assert "holds a run already" in sciml("solve", "burgers_fno", "--run", "run", code=2)


def test_fast_dev_run(fit):
    fit("run", "--trainer.fast_dev_run=true")
