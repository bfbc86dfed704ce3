"""Lightning's averages of the weights, of modules that take scales from the data."""

import json
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import nn
from torch.testing import assert_close

from sciml import load
from sciml.data import TensorFields
from sciml.models import FNO
from sciml.training import OperatorModule, RunFolder
from tests.training.conftest import TINY
from tests.training.running import logged, trainer

DECAY = 0.5
ODE, LATENT_ODE, PINN = (TINY.with_name(f"{name}.yaml") for name in ("ode", "latent_ode", "pinn"))

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # Lightning's own
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback"),  # and one on sharded modules
]


def averaging(*more, **arguments):
    ema = {"class_path": "EMAWeightAveraging", "init_args": {"decay": DECAY, **arguments}}
    return f"--trainer.callbacks={json.dumps([ema, *more])}"


def checkpoint(run, name="last"):
    return torch.load(getattr(RunFolder(run), name), weights_only=True)


def validation(run):
    return [{name: x for name, x in row.items() if name.startswith("val_")} for row in logged(RunFolder(run).metrics)]


@pytest.mark.parametrize("config", [TINY, PINN], ids=lambda config: config.stem)
def test_a_resumed_run_with_averages_equals_an_uninterrupted_one(sciml, fit, config):
    short = "--trainer.max_epochs=2"
    fit("reference", averaging(), short, config=config)
    stop = {"class_path": "tiny.Stop", "init_args": {"step": 2, "signal": "SIGTERM"}}
    fit("run", averaging(stop), short, config=config, code=128 + signal.SIGTERM)
    sciml("fit", "--resume", "run", averaging())
    got, expected = checkpoint("run"), checkpoint("reference")
    for name in ("state_dict", "current_model_state", "averaging_state"):
        assert_close(got[name], expected[name], rtol=0, atol=0)
    assert logged("run/metrics.csv") == logged("reference/metrics.csv")
    assert any(not torch.equal(got["state_dict"][name], x) for name, x in got["current_model_state"].items())
    assert "test_" in sciml("test", "run")
    sciml("predict", "run")


@pytest.mark.parametrize("config", [TINY, ODE, LATENT_ODE], ids=lambda config: config.stem)
def test_an_average_that_has_not_begun_knows_the_scales(fit, config):
    """It is then the untrained model, which a learning rate of 0 keeps."""
    short = "--trainer.max_epochs=1"
    at_rest = "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.0}}"
    fit("untrained", short, at_rest, config=config)
    fit("run", short, averaging(update_starting_at_step=10**6), config=config)
    assert validation("run")[-1] == validation("untrained")[-1] != {}


class Weights(Callback):
    """Keeps those of every step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, *args):
        self.steps.append(module.operator.net.weight.detach().clone())


def fields():
    inputs = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5
    return TensorFields(inputs, inputs[:, :1] * 100, train=8, val=2, test=2, batch_size=4)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averages_are_those_of_the_formula_and_stay_in_the_module(tmp_path, use_buffers):
    module, weights = OperatorModule(nn.Conv1d(2, 1, 1)), Weights()
    ema = EMAWeightAveraging(decay=DECAY, use_buffers=use_buffers)
    trainer(tmp_path, max_epochs=3, callbacks=[ema, weights]).fit(module, fields())
    average = weights.steps[0]
    for weight in weights.steps[1:]:
        average = DECAY * average + (1 - DECAY) * weight
    assert_close(module.operator.net.weight.detach(), average)
    inputs, targets = fields().fields()[0][:8], fields().fields()[1][:8]
    assert_close(module.operator.input.mean.flatten(), inputs.mean((0, 2)))
    assert_close(module.operator.output.std.flatten(), targets.std((0, 2), correction=0))


def test_averages_of_a_module_that_learns_from_other_data_have_their_scales(tmp_path):
    module, data = OperatorModule(FNO(2, 1, modes=[2], width=4)), fields()
    for factor in (1, 10):
        other = TensorFields(data.fields()[0] * factor, data.fields()[1], train=8, val=2, test=2, batch_size=4)
        ema = EMAWeightAveraging(decay=DECAY, update_starting_at_step=10**6)
        trainer(tmp_path, max_epochs=1, callbacks=[ema]).fit(module, other)
        assert_close(module.operator.input.std.flatten(), other.part("train")[0].std((0, 2), correction=0))


def test_a_finished_run_goes_on_from_its_weights_and_not_from_their_average(sciml, fit):
    fit("reference", averaging())
    fit("run", averaging(), "--trainer.max_epochs=2")
    last, best = checkpoint("run"), checkpoint("run", "best")
    assert best["global_step"] == last["global_step"]
    assert_close(best["current_model_state"], last["current_model_state"], rtol=0, atol=0)
    sciml("fit", "--resume", "run", "--trainer.max_epochs=3")
    for name in ("state_dict", "current_model_state"):
        assert_close(checkpoint("run")[name], checkpoint("reference")[name], rtol=0, atol=0)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_best_checkpoint_is_what_was_validated(sciml, fit, epochs):
    """And not what the end of the epoch, or of the training, made of it."""
    fit("run", averaging(update_starting_at_epoch=0, update_every_n_steps=3), f"--trainer.max_epochs={epochs}")
    best = min(float(row["val_relative_l2"]) for row in validation("run") if row["val_relative_l2"])
    printed = dict(line.split(": ") for line in sciml("validate", "run").splitlines())
    assert float(printed["val_relative_l2"]) == pytest.approx(best, rel=1e-5)  # six digits are printed


def test_the_loaded_map_is_the_average(fit):
    fit("run", averaging())
    best, loaded = checkpoint("run", "best")["state_dict"], load("run", trust=True).state_dict()
    assert_close(loaded, {name.removeprefix("operator."): x for name, x in best.items()}, rtol=0, atol=0)


def test_checkpoints_load_without_a_trainer(tmp_path):
    module, data = OperatorModule(nn.Conv1d(2, 1, 1)), fields()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = OperatorModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True, net=nn.Conv1d(2, 1, 1))
    inputs, _ = data.part("test")
    assert torch.equal(again(inputs), module(inputs))
