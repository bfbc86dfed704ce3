"""Classifiers and regressors with a neural ODE or SDE in them."""

import h5py
import pytest
import torch
from torch.testing import assert_close

import sciml as library
from sciml import PID, Grid, Solver
from sciml.data.split import SplitData
from sciml.models import (
    MLP,
    Autonomous,
    Chain,
    CoordinateDiffusion,
    DiagonalSDE,
    MatrixField,
    NeuralCDE,
    NeuralODE,
    NeuralSDE,
    SolverRegularizer,
)
from sciml.solvers import RK4, SRIW1
from sciml.training import ODEClassifierModule, ODERegressorModule
from tests.training.running import train


class Signs(SplitData):
    """Points in the plane, by the sign of their first coordinate."""

    def __init__(self, batch_size=64):
        super().__init__(batch_size)

    def part(self, name):
        x = torch.randn(256, 2, generator=torch.Generator().manual_seed(len(name)))
        return x, (x[:, 0] > 0).long()


class Sums(Signs):
    """Points in the plane, and far from 0 the product and the sum of their coordinates in large units."""

    def part(self, name):
        x, _ = super().part(name)
        return 5 + x, 1000 * torch.stack([3 + x.prod(1), x.sum(1)], 1)


class Walks(SplitData):
    """Walks of a few steps in large units, a third of them not seen, by whether they end above their mean."""

    def __init__(self, batch_size=64, numbers=False):
        super().__init__(batch_size)
        self.numbers = numbers

    def part(self, name):
        draw = torch.Generator().manual_seed(len(name))
        ts, steps = torch.rand(256, 8, generator=draw).cumsum(1), torch.randn(256, 8, generator=draw)
        walks = 100 * steps.cumsum(1)
        rise = walks[:, -1] - walks[:, 0]
        seen = torch.rand(256, 8, generator=draw) > 1 / 3
        seen[:, [0, -1]] = True
        series = torch.stack([1000 + ts, walks.where(seen, torch.nan)], -1)
        return series, torch.stack([rise, -rise], 1) if self.numbers else (rise > 0).long()


def cde(controller=None, **options):
    field, initial = MatrixField(MLP(4, 8, width=16), 2), MLP(2, 4, depth=0)
    return NeuralCDE(field, initial, Solver(RK4(), controller or Grid(n=7)), **options)


def driven(kind, **options):
    torch.manual_seed(0)
    optimizer = lambda p: torch.optim.Adam(p, lr=3e-2)  # noqa: E731
    return kind(torch.nn.Identity(), cde(), torch.nn.Linear(4, 2), optimizer=optimizer, **options)


def ode():
    return NeuralODE(Autonomous(MLP(2, 2, width=16)), Solver(RK4(), Grid(n=8)))


def sde(controller=None, **options):
    field = DiagonalSDE(Autonomous(MLP(2, 2, width=16)), CoordinateDiffusion(2))
    return NeuralSDE(field, Solver(SRIW1(), controller or Grid(n=4)), **options)


def module(flow, kind=ODEClassifierModule, **options):
    torch.manual_seed(0)
    encoder, head = Chain([torch.nn.Linear(2, 2)]), torch.nn.Linear(2, 2)
    return kind(encoder, flow(), head, optimizer=lambda p: torch.optim.Adam(p, lr=3e-2), **options)


def exported(model, data):
    """The predictor as a program, whatever the batch."""
    shapes = ({0: torch.export.Dim.AUTO},)
    return torch.export.export(model.predictor().eval(), model.example_inputs(data), dynamic_shapes=shapes).module()


@pytest.mark.parametrize("flow", [ode, sde])
def test_classifier_learns(tmp_path, flow):
    model = module(flow)
    metrics, rows = train(model, Signs(), tmp_path, epochs=15)
    first, *_, last = (float(row["train_loss"]) for row in rows if row.get("train_loss"))
    assert last < 0.6 * first
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test_accepted"] == (8 if flow is ode else 4)
    assert [name for name, _ in model.pictures(Signs())] == ["confusion"]
    x, y = Signs().part("test")
    assert model.predict_step((x, y), 0)["logits"].shape == (256, 2)


def test_export_of_a_classifier_is_its_prediction():
    model, (x, _) = module(ode), Signs().part("test")
    with torch.no_grad():
        assert_close(exported(model, Signs())(x), model.eval()(x), rtol=1e-6, atol=1e-6)  # float32 round-off
    with pytest.raises(NotImplementedError, match="there is no export of a NeuralSDE"):
        module(sde).example_inputs(Signs())


def test_classifier_of_series_learns(tmp_path):
    """They are normalised with what is seen; what a run logs, predicts and exports is that of other classifiers."""
    data, model = Walks(), driven(ODEClassifierModule)
    metrics, _ = train(model, data, tmp_path, epochs=6)
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test_accepted"] == 7
    series, labels = data.part("train")
    assert_close(model.inputs.mean, torch.stack([series[..., 0].mean(), series[..., 1].nanmean()]))
    normalized = model.inputs(series)
    assert_close(normalized[..., 0].std(correction=0), torch.tensor(1.0), rtol=1e-3, atol=0)  # float32 of 1000 + t
    series, labels = data.part("test")
    logits = model.predict_step((series, labels), 0)["logits"]
    assert_close(logits, model.head(model.ode(model.inputs(series))))
    with torch.no_grad():
        assert_close(exported(model, data)(series), logits, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in model.pictures(data)] == ["confusion"]


def test_regressor_of_series_learns_in_own_units(tmp_path):
    data, model = Walks(numbers=True), driven(ODERegressorModule)
    metrics, _ = train(model, data, tmp_path, epochs=6)
    _, targets = data.part("test")
    assert metrics["test_mae"] < 0.3 * float(targets.abs().mean())
    assert_close(model.inputs.mean[1], data.part("train")[0][..., 1].nanmean())


def test_penalty_of_series_is_in_the_loss():
    torch.manual_seed(0)
    flow = NeuralCDE(MatrixField(MLP(4, 8), 2), MLP(2, 4), regularizer=SolverRegularizer(weight=10.0))
    model = ODEClassifierModule(torch.nn.Identity(), flow, torch.nn.Linear(4, 2))
    data, logged = Walks(), {}
    model.fit_to(data)
    model.log_dict = lambda values, **options: logged.update(values)
    loss = model.training_step(data.part("train"), 0)
    assert_close(loss, logged["train_loss"] + logged["train_penalty"])
    assert logged["train_penalty"] > 0


@pytest.mark.parametrize("flow", [ode, sde])
def test_regressor_learns_in_own_units(tmp_path, flow):
    model = module(flow, ODERegressorModule)
    metrics, _ = train(model, Sums(), tmp_path, epochs=15)
    x, y = Sums().part("test")
    with torch.no_grad():
        found = model.eval().predict_step((x, y), 0)["predictions"]
    assert_close(metrics["test_mae"], float((found - y).abs().mean()), rtol=1e-4, atol=0)  # float32
    assert metrics["test_mae"] < 0.5 * float((y - Sums().part("train")[1].mean(0)).abs().mean())
    normalized = (found - y) / Sums().part("train")[1].std(0, correction=0)
    assert_close(metrics["test_loss"], float(normalized.square().mean()), rtol=1e-4, atol=0)
    assert [name for name, _ in model.pictures(Sums())] == ["regression"]
    if flow is ode:
        assert_close(exported(model, Sums())(x), found, rtol=1e-5, atol=1e-2)  # of thousands, in float32


def test_evaluation_is_the_mean_over_paths_of_each_inputs_own():
    model, (x, _) = module(sde, draws=3).eval(), Signs().part("test")
    x, seeds = x[:5], torch.arange(10, 15)
    with torch.no_grad():
        found = model(x, seeds)
        states = model.encoder(x)
        paths = [model.head(model.ode(states, seed=3 * seeds + i)) for i in range(3)]
        assert_close(found, torch.stack(paths).mean(0), rtol=1e-5, atol=1e-6)  # float32
        assert_close(model(x[2:], seeds[2:]), found[2:], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(paths[0], paths[1], atol=1e-3)


def test_training_has_one_new_path_of_each_input_at_every_step():
    model, seen = module(sde, draws=3), []
    model.log_dict = lambda *args, **options: None
    model.ode.register_forward_pre_hook(lambda _, args, options: seen.append((len(args[0]), options)), with_kwargs=True)
    x, y = Signs().part("train")
    losses = [float(model.training_step((x, y), 0).detach()) for _ in range(2)]
    assert [count for count, _ in seen] == [256, 256]
    assert losses[0] != losses[1]


def test_penalty_of_a_stochastic_equation_is_a_part_of_the_loss(tmp_path):
    regularized = lambda: sde(PID(1e-2, 1e-2), regularizer=SolverRegularizer(form="biased", weight=0.1))  # noqa: E731
    metrics, rows = train(module(regularized), Signs(), tmp_path)
    assert all(float(row["train_penalty"]) > 0 for row in rows if row["train_loss"])
    assert metrics["test_nfe"] > 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="head: expected logits of at least 4 classes, got 2"):
        module(torch.nn.Identity).training_step((torch.zeros(3, 2), torch.tensor([0, 3, 1])), 0)
    with pytest.raises(ValueError, match=r"head: expected outputs of the targets' shape \(3, 1\), got \(3, 2\)"):
        module(torch.nn.Identity, ODERegressorModule).training_step((torch.zeros(3, 2), torch.zeros(3, 1)), 0)
    with pytest.raises(ValueError, match=r"data: expected targets \(n, k\), got shape \(256,\)"):
        module(ode, ODERegressorModule).fit_to(Signs())
    with pytest.raises(ValueError, match="draws: expected a number of paths, 1 or more, got 0"):
        module(sde, draws=0)


def test_classifier_without_an_ode_logs_no_work(tmp_path):
    metrics, _ = train(module(torch.nn.Identity), Signs(), tmp_path)
    assert set(metrics) == {"test_loss", "test_accuracy"}


CLASSIFIER = """
data: {class_path: sciml.data.Digits, init_args: {batch_size: 200, test: 0.1}}
model:
  class_path: sciml.training.ODEClassifierModule
  init_args:
    encoder:
      class_path: sciml.models.Chain
      init_args:
        layers:
          - {class_path: torch.nn.Flatten}
          - {class_path: torch.nn.Linear, init_args: {in_features: 64, out_features: 8}}
    ode:
      class_path: sciml.models.NeuralSDE
      init_args:
        field:
          class_path: sciml.models.DiagonalSDE
          init_args:
            drift:
              class_path: sciml.models.Autonomous
              init_args: {net: {class_path: sciml.models.MLP, init_args: {in_features: 8, out_features: 8, width: 8}}}
            diffusion: {class_path: sciml.models.CoordinateDiffusion, init_args: {size: 8, width: 2}}
    head: {class_path: torch.nn.Linear, init_args: {in_features: 8, out_features: 10}}
    draws: 2
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""

REGRESSOR = """
data: {class_path: tests.training.test_heads.Sums}
model:
  class_path: sciml.training.ODERegressorModule
  init_args:
    encoder: {class_path: torch.nn.Identity}
    ode:
      class_path: sciml.models.NeuralODE
      init_args:
        field:
          class_path: sciml.models.Autonomous
          init_args: {net: {class_path: sciml.models.MLP, init_args: {in_features: 2, out_features: 2, width: 8}}}
        solver:
          stepper: {class_path: sciml.solvers.RK4}
          controller: {class_path: sciml.solvers.Grid, init_args: {n: 4}}
    head: {class_path: torch.nn.Linear, init_args: {in_features: 2, out_features: 2}}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_stochastic_classifier_goes_through_the_command_line(sciml, tmp_path):
    (tmp_path / "my.yaml").write_text(CLASSIFIER)
    sciml("fit", "--config", "my.yaml", "--run", "run")
    assert "test_accuracy" in sciml("test", "run")
    for command in ("validate", "predict", "plot"):
        sciml(command, "run")
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        assert file["logits"].shape == (180, 10)
    assert (tmp_path / "run" / "figures" / "confusion.png").exists()
    assert "there is no export of a NeuralSDE" in sciml("export", "run", code=2)
    assert library.load(tmp_path / "run")(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_regressor_goes_through_the_command_line(sciml, tmp_path):
    (tmp_path / "my.yaml").write_text(REGRESSOR)
    sciml("fit", "--config", "my.yaml", "--run", "run")
    assert "test_mae" in sciml("test", "run")
    for command in ("predict", "plot", "export"):
        sciml(command, "run")
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        found = torch.from_numpy(file["predictions"][...])
    x, _ = Sums().part("test")
    program = torch.export.load(tmp_path / "run" / "model.pt2").module()
    assert_close(program(x), found, rtol=1e-5, atol=1e-2)  # of thousands, in float32
    assert_close(library.load(tmp_path / "run")(x), found, rtol=1e-5, atol=1e-2)
    assert (tmp_path / "run" / "figures" / "regression.png").exists()
