import pytest
from jsonargparse import ArgumentParser
from pytorch_optimizer import ScheduleFreeAdamW
from torch import nn

from sciml.data import Collocation
from sciml.problems import BurgersDirichlet
from sciml.training import MetricsLogger, Muon
from sciml.training.mistakes import explain
from tests.training.test_pinn import fit as fit_module
from tests.training.test_pinn import module
from tests.training.test_resume import PINN, assert_same_run, stop_at

OPTIMIZERS: dict[str, float | None] = {
    "pytorch_optimizer.AdaBelief": 1e-2,
    "pytorch_optimizer.AdaFactor": 1e-2,
    "pytorch_optimizer.AdaHessian": 1e-1,
    "pytorch_optimizer.Adan": 1e-2,
    "pytorch_optimizer.DiffGrad": 1e-2,
    "pytorch_optimizer.Kron": 1e-2,  # PSGD
    "pytorch_optimizer.SOAP": 1e-2,
    "pytorch_optimizer.Shampoo": 1e-2,
    "pytorch_optimizer.SophiaH": 1e-2,
    "sciml.training.Muon": 1e-2,
    "torch.optim.LBFGS": None,
}
SEARCH = ("--model.optimizer.line_search_fn=strong_wolfe", "--model.optimizer.max_iter=4")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_the_loss_from_the_command_line(fit, name):
    lr = OPTIMIZERS[name]
    options = (f"--model.optimizer.lr={lr}",) if lr else SEARCH
    fit("run", f"--model.optimizer={name}", *options, "--data.steps=20", config=PINN)
    losses = [float(row["train_loss"]) for row in MetricsLogger("run/metrics.csv").rows() if row["train_loss"]]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:3]) * 10 / 3


def test_curvature_estimates_are_resumed_bit_by_bit(sciml, fit):
    variant = ("--model.optimizer=pytorch_optimizer.AdaHessian", "--model.optimizer.lr=0.1")
    fit("reference", *variant, config=PINN)
    fit("run", stop_at(7, "SIGTERM"), *variant, config=PINN, code=128 + 15)
    sciml("fit", "--resume", "run", "--trainer.callbacks=null")
    assert_same_run("run", "reference")


def test_muon_takes_the_matrices_and_adamw_the_rest():
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    matrices, others = Muon(net.parameters()).param_groups
    assert [tuple(p.shape) for p in matrices["params"]] == [(8, 3)]
    assert len(others["params"]) == 5
    assert (matrices["use_muon"], others["use_muon"]) == (True, False)


def test_optimisers_with_modes_validate_in_theirs(tmp_path):
    modes = []
    model = module(BurgersDirichlet(), optimizer=lambda p: ScheduleFreeAdamW(p, lr=1e-2))
    inner = model.validation_step

    def validation_step(batch, batch_idx):
        modes.append(model.trainer.optimizers[0].param_groups[0]["train_mode"])
        inner(batch, batch_idx)

    model.validation_step = validation_step
    fit_module(model, tmp_path, Collocation(points=20, steps=3, val=10, test=10))
    assert modes == [False]


def test_best_checkpoint_of_an_optimiser_with_modes_holds_the_weights_that_were_validated(sciml, fit):
    variant = ("--model.optimizer=pytorch_optimizer.ScheduleFreeAdamW", "--model.optimizer.lr=0.01")
    printed = fit("run", *variant, "--data.steps=30", config=PINN)
    best = float(printed.partition("best val_relative_l2: ")[2].split()[0])
    validated = sciml("validate", "run")
    assert float(validated.partition("val_relative_l2: ")[2].split()[0]) == pytest.approx(best, rel=1e-5)


def test_missing_packages_are_named_with_what_brings_them():
    message = explain("No module named 'pytorch_optimizer'", ArgumentParser())
    assert message == 'pytorch_optimizer is not installed: pip install "sciml-torch[optim]" brings it'
