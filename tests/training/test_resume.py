import json
import signal
from pathlib import Path

import pytest
import torch

from sciml.training import MetricsLogger, RunFolder
from tests.training.running import logged

PINN = Path(__file__).parent / "tiny" / "pinn.yaml"
STEPS = 15  # of the tiny configuration: 3 epochs of 5 batches
PLATEAU = "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val_relative_l2, patience: 0}}"
ONE_CYCLE = "{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.02, total_steps: 15}}"
VARIANTS = {
    "plain": (),
    "workers": ("--data.workers=2",),
    "step scheduler": (f"--model.scheduler={ONE_CYCLE}", "--model.scheduler_interval=step"),
    "plateau": (f"--model.scheduler={PLATEAU}", "--model.optimizer.lr=0.5"),
    "accumulated": ("--trainer.accumulate_grad_batches=2",),
    "validates within epochs": ("--trainer.val_check_interval=2",),
    "limited": ("--trainer.limit_train_batches=3", "--trainer.max_epochs=5"),
    "by steps": ("--trainer.max_steps=13", "--trainer.max_epochs=-1"),
    "logs rarely": ("--trainer.log_every_n_steps=4",),
    "validates across epochs": ("--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"),
    "validates while accumulating": (
        "--trainer.accumulate_grad_batches=4",
        "--trainer.val_check_interval=3",
        "--trainer.max_epochs=5",
    ),
    "clipped": ("--trainer.gradient_clip_val=0.01",),
    "overfits": ("--trainer.overfit_batches=3", "--trainer.max_epochs=5"),
    "double": ("--trainer.precision=64-true",),
}


def state(run):
    """What has to be the same bit by bit: weights, optimiser, schedulers, and the metrics' rows."""
    folder = RunFolder(run)
    last, best = (torch.load(path, weights_only=True) for path in (folder.last, folder.best))
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "callbacks", "sciml")
    return {name: last[name] for name in names}, best["state_dict"], logged(folder.metrics)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


def stop_at(step, name=None):
    stop = {"class_path": "tiny.Stop", "init_args": {"step": step, "signal": name}}
    return f"--trainer.callbacks={json.dumps([stop])}"


def interrupted(sciml, fit, run, step, name, overrides=()):
    """Stop a run after a step, and finish it."""
    if name is None:
        with pytest.raises(RuntimeError, match="stopped"):
            fit(run, stop_at(step), *overrides)
    else:
        fit(run, stop_at(step, name), *overrides, code=128 + getattr(signal, name))
    sciml("fit", "--resume", run, "--trainer.callbacks=null")


def assert_same_run(run, reference):
    for got, expected in zip(state(run), state(reference), strict=True):
        assert equal(got, expected)
    assert not list(Path(run).rglob("*.partial*"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_an_uninterrupted_one(sciml, fit, variant):
    fit("reference", *VARIANTS[variant])
    interrupted(sciml, fit, "run", 7, None, VARIANTS[variant])
    assert_same_run("run", "reference")


def test_resumed_run_of_two_optimisers_equals_an_uninterrupted_one(sciml, fit):
    overrides = ("--model=tiny.Adversaries", "--checkpoint.every_n_steps=6")
    fit("reference", *overrides)
    interrupted(sciml, fit, "run", 10, None, overrides)  # both count: 5 batches, of which the checkpoint has 3
    assert_same_run("run", "reference")


LBFGS = (
    "--model.optimizer=torch.optim.LBFGS",
    "--model.optimizer.line_search_fn=strong_wolfe",
    "--model.optimizer.max_iter=4",
)


@pytest.mark.parametrize("variant", [(), LBFGS, ("--model.candidates=1",)])
def test_resumed_run_of_a_pinn_equals_an_uninterrupted_one(sciml, fit, variant):
    """Stopped within a block of points that are held for several steps, and were chosen at its start."""
    fit("reference", *variant, config=PINN)
    fit("run", stop_at(7, "SIGTERM"), *variant, config=PINN, code=128 + signal.SIGTERM)
    sciml("fit", "--resume", "run", "--trainer.callbacks=null")
    assert_same_run("run", "reference")


@pytest.mark.parametrize("every", [3, 5])
def test_gradients_that_were_accumulated_when_a_run_ended_are_made_again(sciml, fit, every):
    overrides = (
        "--trainer.accumulate_grad_batches=2",
        "--trainer.max_epochs=2",
        f"--trainer.val_check_interval={every}",
    )
    fit("reference", *overrides)
    fit("run", *overrides, "--trainer.callbacks=[{class_path: tiny.End, init_args: {batch: 3}}]")
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
    sciml("fit", "--resume", "run", "--trainer.max_epochs=2", "--trainer.callbacks=null")
    assert_same_run("run", "reference")


def test_any_step_may_be_the_last_before_a_signal(sciml, fit):
    fit("reference")
    for step in (1, 4, 5, 6, 9, 10, STEPS - 1):  # the first and the last of a run, and around the ends of epochs
        interrupted(sciml, fit, f"run{step}", step, "SIGTERM" if step % 2 else "SIGINT")
        assert_same_run(f"run{step}", "reference")


def test_signal_after_the_last_step_lets_the_run_finish(fit):
    fit("reference")
    fit("run", stop_at(STEPS, "SIGTERM"))
    assert equal(state("run")[0]["state_dict"], state("reference")[0]["state_dict"])


def test_run_stopped_before_its_first_checkpoint_starts_anew(sciml, fit):
    fit("reference")
    interrupted(sciml, fit, "run", 2, None, ("--checkpoint.every_n_steps=100",))
    for got, expected in zip(state("run")[1:], state("reference")[1:], strict=True):
        assert equal(got, expected)


def test_finished_run_trains_nothing_and_goes_on_when_asked(sciml, fit):
    fit("reference")
    fit("run", "--trainer.max_epochs=2")
    before = state("run")
    assert "finished" in sciml("fit", "--resume", "run")
    assert equal(state("run"), before)
    sciml("fit", "--resume", "run", "--trainer.max_epochs=3")
    assert_same_run("run", "reference")
    assert [path.name for path in RunFolder("run").configs] == ["config.yaml", "config.resume1.yaml"]


def test_a_run_stopped_by_a_limit_of_steps_goes_on_within_its_epoch(sciml, fit):
    steps = "--trainer.max_steps={}".format
    fit("reference", steps(13))
    fit("run", steps(7))
    sciml("fit", "--resume", "run", steps(13))
    assert_same_run("run", "reference")


def test_metrics_are_complete(fit):
    fit("run")
    rows = MetricsLogger(Path("run/metrics.csv")).rows()
    assert [int(row["step"]) for row in rows if row["train_loss"]] == list(range(STEPS))
    assert [int(row["step"]) for row in rows if row["val_relative_l2"]] == [4, 9, 14]


def test_weights_of_another_model_are_refused_and_leave_the_run_as_it_is(sciml, fit):
    fit("run")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    wider = ("--model.net.init_args.width=8", "--trainer.max_epochs=4")
    for command in (("fit", "--resume", "run"), ("test", "run"), ("predict", "run"), ("plot", "run")):
        told = sciml(*command, *wider[: 2 if "fit" in command else 1], code=2)
        assert told.startswith("sciml: model: the checkpoint is of another one: ")
        assert "torch.Size([4, 1, 3]) from checkpoint" in told
        assert told.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    assert "test_relative_l2" in sciml("test", "run")
