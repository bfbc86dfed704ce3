import h5py
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import sciml as library
from sciml import Grid, Solver
from sciml.data import Observed
from sciml.models import LatentODE, LatentSDE
from sciml.solvers import RK4
from sciml.training import LatentODEModule, LatentSDEModule
from sciml.training.latent import interpolated, shown
from tests.training.conftest import TINY
from tests.training.running import logged, train
from tests.training.tiny.tiny import Rotations

CONFIG = TINY.with_name("latent_ode.yaml")


def observed(b=40, t=20):
    generator = torch.Generator().manual_seed(0)
    ys = torch.randn(b, t, 2, generator=generator)
    mask = torch.rand(ys.shape, generator=generator) < 0.8
    return Observed(torch.linspace(3, 5, t, dtype=torch.float64), ys.where(mask, 0), mask)


def module(task="interpolation", share=0.5, model=LatentODE, **options):
    torch.manual_seed(0)
    kind = LatentODEModule if model is LatentODE else LatentSDEModule
    return kind(model(2, latent=2, width=16, **options), task=task, share=share)


def test_commands_run_and_name_what_they_found(fit, sciml, tmp_path):
    fit("run", config=CONFIG)
    row = logged(tmp_path / "run" / "metrics.csv")[-1]
    assert {"train_penalty", "train_nfe", "val_stiffness", "val_mse"} <= set(row)
    printed = sciml("test", "run")
    names = ("loss", "kl", "nfe", "stiffness", "mse", "mean_mse", "linear_mse", "course_mse", "x_error", "y_error")
    assert all(f"test_{name}: " in printed for name in names)
    sciml("predict", "run")
    with h5py.File(tmp_path / "run" / "predictions.h5") as file:
        assert file["predictions"].shape == file["shown"].shape == (4, 9, 2)
        assert 0 < file["shown"][...].sum() < file["mask"][...].sum()
    sciml("plot", "run")
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"posterior", "samples", "learning_curve"} <= figures
    smoother = library.load(tmp_path / "run")
    assert smoother(torch.linspace(0, 2, 9).double(), torch.randn(3, 9, 2)).shape == (3, 9, 2)
    error = sciml("export", "run", code=2)
    assert "an export needs a fixed number of steps" in error
    assert "a key given to `sciml export` overrides the run's" in error


def test_resumed_run_is_the_uninterrupted_one(fit, sciml, tmp_path):
    """What is hidden, starts and penalties are drawn as functions of seed and step."""
    fit("whole", config=CONFIG)
    fit("half", "--trainer.callbacks=[{class_path: tiny.End, init_args: {batch: 1}}]", config=CONFIG)
    sciml("fit", "--resume", "half", "--trainer.callbacks=null", "--trainer.enable_progress_bar=false")
    whole, half = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "half")
    )
    assert list(whole) == list(half)
    assert all(torch.equal(whole[name], half[name]) for name in whole)


@pytest.mark.parametrize("model", [LatentODE, LatentSDE])
@pytest.mark.parametrize("task", ["interpolation", "extrapolation"])
def test_predictions_see_what_is_shown_and_nothing_else(task, model):
    latent, batch = module(task, model=model), observed()
    latent.log_dict = latent.log = lambda *args, **kwargs: None
    batches = [latent.predict_step(batch._replace(ys=ys), 0) for ys in (batch.ys, batch.ys + 3)]
    seen = batches[0]["shown"]
    hidden = latent.predict_step(batch._replace(ys=batch.ys.where(seen, 9.0)), 0)
    assert torch.equal(hidden["predictions"], batches[0]["predictions"])
    assert not torch.equal(batches[1]["predictions"], batches[0]["predictions"])


def test_share_of_the_times_is_shown():
    batch = observed()
    some, other = (shown(batch, "interpolation", 0.3, seed) for seed in (1, 2))
    whole = batch._replace(mask=torch.ones_like(batch.mask))
    assert (shown(whole, "interpolation", 0.3, 1)[..., 0].sum(1) == 6).all()
    assert torch.equal(some, shown(batch, "interpolation", 0.3, 1))
    assert not torch.equal(some, other)
    assert not bool((some & ~batch.mask).any())
    assert len(some.any(-1).unique(dim=0)) > 30  # other times for every trajectory
    early = shown(whole, "extrapolation", 0.5, 1)
    assert torch.equal(early[0, :, 0], torch.arange(20) < 10)
    own = whole._replace(ts=torch.stack([whole.ts] * 39 + [2 * whole.ts]))
    assert torch.equal(shown(own, "extrapolation", 0.5, 1), early)


def test_share_is_of_the_times_that_have_values():
    """Not of those that fill up a shorter trajectory, nor of any at which nothing was observed."""
    whole = observed()
    counts = torch.randint(1, 21, (40, 1), generator=torch.Generator().manual_seed(1))
    ends = whole.ts[counts - 1]
    ts, mask = whole.ts.expand(40, 20).minimum(ends), (torch.arange(20) < counts)[..., None].expand(40, 20, 2)
    right = (0.3 * counts[:, 0].double()).round().clamp_min(1)
    for seed in range(3):
        seen = shown(whole._replace(ts=ts, mask=mask), "interpolation", 0.3, seed)
        assert torch.equal(seen[..., 0].sum(1).double(), right)


def test_lines_are_those_of_numpy_and_constant_beyond():
    batch = observed()
    seen = shown(batch, "interpolation", 0.3, 0)
    lines = interpolated(batch, seen)
    for n in range(40):
        for c in range(2):
            there = seen[n, :, c].numpy()
            right = np.interp(batch.ts, batch.ts[there], batch.ys[n, there, c]) if there.any() else np.zeros(20)
            assert_close(lines[n, :, c], torch.from_numpy(np.asarray(right)).float(), rtol=1e-5, atol=1e-5)


def test_losses_are_means_over_the_values_of_all_batches(tmp_path):
    """Against the bounds one by one, with a last batch that is smaller, and emptier."""
    data, model = Rotations(batch_size=3), module(share=1, solver=Solver(RK4(), Grid(n=4)))
    data.setup("fit")
    data.part("test").mask[3:, 1:] = False
    metrics, _ = train(model, data, tmp_path)
    with torch.no_grad():
        fits = [model.latent.posterior(data.part("test"), torch.arange(4))]
    total = sum(fit.elbo.sum() for fit in fits) / data.part("test").mask.sum()
    assert_close(metrics["test_loss"], -float(total), rtol=1e-5, atol=0)  # sums in another order
    assert_close(metrics["test_kl"], float(torch.cat([fit.kl for fit in fits]).mean()), rtol=1e-5, atol=0)


def test_errors_are_of_hidden_values_in_their_units(tmp_path):
    """Against predictions one by one, with a last batch that is smaller."""
    data, model = Rotations(holes=True, batch_size=3), module(solver=Solver(RK4(), Grid(n=4)))
    metrics, _ = train(model, data, tmp_path)
    with torch.no_grad():
        parts = [model.predict_step(batch, i) for i, batch in enumerate(data.predict_dataloader())]
    ys, mask, seen, found = (
        torch.cat([x[name] for x in parts]) for name in ("targets", "mask", "shown", "predictions")
    )
    hidden, std = mask & ~seen, model.latent.state.std
    assert_close(metrics["test_mse"], float(((found - ys) / std).square()[hidden].mean()), rtol=1e-5, atol=0)
    for c, name in enumerate(data.names):
        error = (found - ys)[..., c].abs()[hidden[..., c]].mean()
        assert_close(metrics[f"test_{name}_error"], float(error), rtol=1e-5, atol=0)
    mean = ((model.latent.state.mean - ys) / std).square()[hidden].mean()
    assert_close(metrics["test_mean_mse"], float(mean), rtol=1e-5, atol=0)
    _, train_ys, there = data.part("train")
    usual = torch.where(there, train_ys, torch.nan).nanmean(0)
    lines = usual + interpolated(Observed(data.part("test").ts, ys - usual, mask), seen)
    assert_close(metrics["test_course_mse"], float(((lines - ys) / std).square()[hidden].mean()), rtol=1e-5, atol=0)


def test_export_is_the_prediction(tmp_path):
    data, model = Rotations(holes=True), module(solver=Solver(RK4(), Grid(n=4)))
    train(model, data, tmp_path)
    predictor, auto = model.predictor().eval(), torch.export.Dim.AUTO
    program = torch.export.export(predictor, model.example_inputs(data), dynamic_shapes=({0: auto}, {0: auto})).module()
    ts, ys, mask = data.part("test")
    with torch.no_grad():
        expected = predictor(ts, ys, mask)
        assert_close(program(ts, ys.where(mask, torch.nan)), expected, rtol=1e-5, atol=1e-5)  # float32 round-off


def test_module_learns_to_continue_a_rotation(tmp_path):
    """Of which the last value, or the mean, is a bad prediction."""
    data, model = Rotations(holes=True), module("extrapolation")
    model.make_optimizer = lambda p: torch.optim.Adam(p, lr=2e-2)
    metrics, rows = train(model, data, tmp_path, epochs=80)
    assert metrics["test_mse"] < 0.2 * min(metrics["test_mean_mse"], metrics["test_linear_mse"])
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert losses[-1] < losses[0] - 1


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="share: expected a number above 0 and at most 1, got 0"):
        module(share=0)
    with pytest.raises(ValueError, match="task: expected one of interpolation, extrapolation, got 'forecast'"):
        module(task="forecast")
    with pytest.raises(ValueError, match="warm_up: expected a number of epochs"):
        LatentODEModule(LatentODE(2), warm_up=-1)
