from pathlib import Path

import h5py
import pytest
import torch
import yaml
from torch.testing import assert_close

from sciml import Grid, Solver, solve
from sciml.data import Observed, Trajectories
from sciml.models import MLP, Autonomous, Chain, NeuralODE, SolverRegularizer, TaylorRegularizer
from sciml.solvers import RK4, Stiffness
from sciml.training import MetricsLogger, NeuralODEModule
from sciml.training.neural_ode import regularized
from sciml.training.trainer_cli import quiet
from tests.training.conftest import TINY
from tests.training.running import train, trainer
from tests.training.tiny.tiny import Rotations


def small(lanes="joint", controller=None):
    return NeuralODE(Autonomous(MLP(2, 2, width=16)), Solver(RK4(), controller or Grid(n=8), lanes=lanes))


def module(**options):
    torch.manual_seed(0)
    return NeuralODEModule(small(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), **options)


def test_training_learns_a_rotation_and_logs_its_work(tmp_path):
    metrics, rows = train(module(), Rotations(), tmp_path, epochs=100)
    first, *_, last = (float(row["train_loss"]) for row in rows if row.get("train_loss"))
    assert last < 0.01 * first
    assert metrics["test_relative_l2"] < 0.2  # without any motion it is about 1, with this seed 0.1
    steps = [row for row in rows if row["train_nfe"]]
    assert {(float(row["train_accepted"]), float(row["train_rejected"])) for row in steps} == {(8, 0)}
    assert metrics["test_nfe"] == float(steps[0]["train_nfe"]) >= 4 * 8
    assert not any("stiffness" in name for name in rows[0])  # of a grid's last step it would take an evaluation


def test_evaluations_log_how_stiff_the_equation_is_for_nothing(tmp_path):
    data, model = Rotations(batch_size=24), NeuralODEModule(NeuralODE(Autonomous(MLP(2, 2, width=16))))
    metrics, rows = train(model, data, tmp_path)
    assert any(row["val_stiffness"] for row in rows)
    assert "train_stiffness" not in rows[0]
    (ts, ys, _), flow = data.part("test"), model.flow
    times, y0 = flow.time(ts), flow.state(ys[:, 0])
    with torch.no_grad():
        solution = solve(flow.ode.field, y0, times[0], times[-1], flow.ode.solver, folds={"x": Stiffness()})
        model.predict_step(data.part("test"), 0)
    assert_close(metrics["test_stiffness"], float(solution.folds["x"]), rtol=1e-5, atol=0)  # float32
    assert flow.ode.stiffness is None
    assert metrics["test_nfe"] == float(flow.ode.stats.nfe)


def test_missing_values_take_no_part_whatever_stands_there():
    data = Rotations(holes=True)
    data.setup("fit")
    ts, ys, mask = data.part("train")
    model = module()
    model.log = model.log_dict = lambda *args, **kwargs: None
    losses = []
    for filler in (0.0, 7.0):
        model.zero_grad()
        batch = Observed(ts, ys.where(mask, filler), mask)
        loss = model.training_step(batch, 0)
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


class Sparse(Rotations):
    """Of every second trajectory only the first three times are observed."""

    def read(self):
        return {name: part._replace(mask=self.cut(part.mask)) for name, part in super().read().items()}

    @staticmethod
    def cut(mask):
        mask = mask.clone()
        mask[::2, 3:] = False
        return mask


def test_losses_of_trajectories_with_gaps_do_not_depend_on_the_batches(tmp_path):
    model, data = module(), Sparse()
    train(model, data, tmp_path)
    (ts, ys, mask), state = data.part("test"), model.flow.state
    with torch.no_grad():
        loss = (state(model(ys[:, 0], ts)) - state(ys))[mask].square().mean()
    for size in (1, 3, 4):
        with quiet():
            (metrics,) = trainer(tmp_path).test(model, Sparse(batch_size=size), verbose=False)
        assert_close(metrics["test_loss"], float(loss), rtol=1e-5, atol=0)  # sums in another order


def test_normalisers_see_the_observed_values_only(tmp_path):
    data, model = Rotations(holes=True), module()
    train(model, data, tmp_path)
    _, ys, mask = data.part("train")
    for c in range(2):
        std, mean = torch.std_mean(ys[..., c][mask[..., c]], correction=0)
        assert_close(model.flow.state.mean[c], mean)
        assert_close(model.flow.state.std[c], std)


def test_export_of_the_predictor_is_the_prediction(tmp_path):
    data, model = Rotations(), module()
    train(model, data, tmp_path)
    predictor = model.predictor().eval()
    program = torch.export.export(
        predictor, model.example_inputs(data), dynamic_shapes=({0: torch.export.Dim.AUTO},) * 2
    )
    torch.export.save(program, tmp_path / "model.pt2")
    ts, ys, _ = data.part("test")
    with torch.no_grad():
        expected = predictor(ys[:, 0], ts)
        assert_close(torch.export.load(tmp_path / "model.pt2").module()(ys[:, 0], ts), expected, rtol=1e-6, atol=1e-6)


def test_pictures_are_drawn(tmp_path):
    data = Rotations()
    data.setup("test")
    pictures = dict(module().pictures(data))
    assert list(pictures) == ["trajectories", "phase_plane"]
    for name, figure in pictures.items():
        figure.savefig(tmp_path / name)


def write_doses(path):
    """Twelve exponential decays at random times, each with a missing value."""
    generator = torch.Generator().manual_seed(0)
    lines = ["run,hours,dose"]
    for run in range(12):
        ts = torch.rand(6 + run % 3, generator=generator).sort().values.tolist()
        lines += [f"{run},{t},{'' if i == 2 else 2.0**-t}" for i, t in enumerate(ts)]
    path.write_text("\n".join(lines))


def test_trajectories_of_a_csv_with_times_of_their_own(tmp_path):
    path = tmp_path / "my.csv"
    write_doses(path)
    data = Trajectories(str(path), t="hours", id="run", batch_size=5)
    torch.manual_seed(0)
    ode = NeuralODE(Autonomous(MLP(1, 1, width=8)), Solver(lanes="each"))
    model = NeuralODEModule(ode, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    _, rows = train(model, data, tmp_path, epochs=10)
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert losses[-1] < losses[0]
    (batch,) = (model.predict_step(batch, 0) for batch in data.predict_dataloader())
    assert batch["ts"].shape == batch["predictions"].shape[:2]
    assert len(list(model.pictures(data))) == 1


CONFIG = """
data:
  class_path: sciml.data.Trajectories
  init_args: {path: my.csv, t: hours, id: run, batch_size: 5}
model:
  class_path: sciml.training.NeuralODEModule
  init_args:
    ode:
      class_path: sciml.models.NeuralODE
      init_args:
        field:
          class_path: sciml.models.TimeDependent
          init_args:
            net: {class_path: sciml.models.MLP, init_args: {in_features: 2, out_features: 1, width: 8}}
        solver:
          stepper: {class_path: sciml.solvers.RK4}
          controller: {class_path: sciml.solvers.Grid, init_args: {n: 4}}
          lanes: each
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_csv_goes_through_the_command_line(sciml, tmp_path):
    write_doses(tmp_path / "my.csv")
    (tmp_path / "my.yaml").write_text(CONFIG)
    sciml("fit", "--config", "my.yaml", "--run", "run")
    assert "test relative L2: " in sciml("test", "run")
    for command in ("predict", "plot", "export"):
        sciml(command, "run")
    program = torch.export.load(tmp_path / "run" / "model.pt2").module()
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        ts, ys, expected = (torch.from_numpy(file[name][...]) for name in ("ts", "targets", "predictions"))
    assert_close(program(ys[:, 0], ts), expected, rtol=1e-6, atol=1e-6)  # float32 round-off


def test_regularized_training_from_the_command_line(fit):
    integrals = []
    for weight in (1e-9, 1.0):
        regularizer = f"{{class_path: sciml.models.TaylorRegularizer, init_args: {{order: 2, weight: {weight}}}}}"
        fit(f"run{weight}", f"--model.ode.regularizer={regularizer}", config=TINY.with_name("ode.yaml"))
        rows = MetricsLogger(Path(f"run{weight}/metrics.csv")).rows()
        integrals.append([float(row["train_penalty"]) / weight for row in rows if row["train_penalty"]])
        assert "val_penalty" not in rows[0]
    (first, *_, free), (again, *_, small) = integrals
    assert_close(again, first, rtol=1e-5, atol=0)  # float32
    assert 0 < small < 0.5 * free


REGULARIZERS = {
    "global": "SolverRegularizer, init_args: {weight: 0.01, final_weight: 0.001}",
    "unbiased": "SolverRegularizer, init_args: {form: unbiased, heuristic: {class_path: sciml.solvers.StepCount}}",
}


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_regularizers_are_a_slot_of_the_configuration(fit, kind):
    run = f"run-{kind}"
    regularizer = f"{{class_path: sciml.models.{REGULARIZERS[kind]}}}"
    controller = "{class_path: sciml.solvers.PID}"
    options = f"--model.ode.solver.controller={controller}", f"--model.ode.regularizer={regularizer}"
    fit(run, *options, config=TINY.with_name("ode.yaml"))
    rows = MetricsLogger(Path(run, "metrics.csv")).rows()
    assert all(float(row["train_penalty"]) > 0 for row in rows if row["train_loss"])
    assert all(float(row["train_nfe"]) > 0 for row in rows if row["train_loss"])
    shown = yaml.safe_load(Path(run, "config.yaml").read_text())["model"]["init_args"]["ode"]["init_args"][
        "regularizer"
    ]
    assert shown["class_path"].startswith("sciml.models")


def test_weights_change_over_the_training(tmp_path):
    weights = []

    class Watched(SolverRegularizer):
        def weight_at(self, progress):
            weights.append(super().weight_at(progress))
            return weights[-1]

    ode = NeuralODE(Autonomous(MLP(2, 2, width=8)), regularizer=Watched(weight=10.0, final_weight=0.1))
    train(NeuralODEModule(ode), Rotations(), tmp_path, epochs=3)
    steps = len(weights)
    assert steps > 3
    assert_close(weights, [10.0 * 0.01 ** (i / steps) for i in range(steps)])


def test_what_is_drawn_is_a_function_of_seed_and_step(tmp_path):
    """So that a resumed run draws what it would have drawn."""
    penalties = []
    for start in (0, 5):
        torch.manual_seed(start)  # wherever the global generator stands
        ode = NeuralODE(Autonomous(MLP(2, 2, width=8)), regularizer=SolverRegularizer(form="unbiased"))
        model = NeuralODEModule(ode, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        with torch.no_grad():
            for weights in model.parameters():
                weights.fill_(0.1)
        _, rows = train(model, Rotations(), tmp_path / str(start))
        penalties.append([row["train_penalty"] for row in rows if row["train_loss"]])
    assert penalties[0] == penalties[1]
    assert len(set(penalties[0])) > 1


def test_every_neural_ode_of_a_module_takes_part_in_the_loss():
    odes = [NeuralODE(Autonomous(MLP(2, 2)), regularizer=TaylorRegularizer(2, 100.0)) for _ in range(2)]
    Chain([odes[0], torch.nn.Sequential(odes[1])])(torch.randn(4, 2))
    first, second = (ode.penalty for ode in odes)
    assert first > 1e-3 < second
    total, metrics = regularized("train", torch.ones(()), Chain(odes))
    assert_close(total, 1.0 + first + second)
    assert set(metrics) == {"train_loss", "train_penalty"}
    assert regularized("train", total, Chain(odes))[0] is total


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("id: run", "id: patient"), "my.csv: no column 'patient'; it has run, hours, dose"),
        (("id: run, ", "y: [dose], "), "my.csv: trajectory 0: expected increasing times"),
        (("my.csv", "my.txt"), "path: expected a file that ends in .csv, .npz, .h5, .hdf5, got 'my.txt'"),
    ],
)
def test_mistake_in_a_file_of_data_is_told_in_one_line(sciml, tmp_path, wrong, message):
    write_doses(tmp_path / "my.csv")
    (tmp_path / "my.yaml").write_text(CONFIG.replace(*wrong))
    told = sciml("fit", "--config", "my.yaml", "--run", "run", code=2)
    assert message in told
    assert len(told.strip().splitlines()) == 1


def test_training_in_mixed_precision_solves_in_single_precision(fit):
    fit("run", "--trainer.precision=bf16-mixed", config=TINY.with_name("ode.yaml"))
    rows = MetricsLogger(Path("run/metrics.csv")).rows()
    assert all(0 < float(row["train_loss"]) < 10 for row in rows if row["train_loss"])


@pytest.mark.parametrize("form", ["unbiased", "biased", "reuse"])
def test_local_penalties_in_mixed_precision_are_in_single_precision(fit, form):
    regularizer = f"{{class_path: sciml.models.SolverRegularizer, init_args: {{form: {form}, weight: 0.1}}}}"
    options = "--model.ode.solver.controller={class_path: sciml.solvers.PID}", f"--model.ode.regularizer={regularizer}"
    fit("run", "--trainer.precision=bf16-mixed", *options, config=TINY.with_name("ode.yaml"))
    rows = MetricsLogger(Path("run/metrics.csv")).rows()
    assert all(0 < float(row["train_penalty"]) < 1 for row in rows if row["train_loss"])
