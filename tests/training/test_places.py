"""Mistakes that are found behind the configuration: they are told with its keys."""

import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from sciml.data import Trajectories
from sciml.models import MLP
from sciml.training.mistakes import explain
from sciml.training.places import keyed, place
from tests.training.conftest import TINY

CONFIG = {"class_path": "sciml.models.MLP", "init_args": {"in_features": 3}}


def test_place_needs_one_key():
    assert place({"model": CONFIG}, MLP, "in_features", 3) == "model.init_args.in_features"
    assert place({"model": CONFIG}, MLP, "in_features") == "model.init_args.in_features"
    assert place({"model": CONFIG}, MLP, "in_features", torch.ones(2)) == "model.init_args.in_features"
    assert place({"a": CONFIG, "b": CONFIG}, MLP, "in_features", 3) is None
    other = CONFIG | {"init_args": {"in_features": 2}}
    assert place({"a": CONFIG, "b": other}, MLP, "in_features", 3) == "a.init_args.in_features"
    assert place({"a": [other, {"b": CONFIG}]}, MLP, "in_features", 3) == "a.1.b.init_args.in_features"


def raised(call):
    with pytest.raises(ValueError, match=": expected") as caught:
        call()
    return caught.value


def test_messages_get_the_key_of_the_object_that_they_are_about():
    config = {
        "data": {
            "class_path": "sciml.data.Trajectories",
            "init_args": {"path": "my.npz", "val": 0.5, "test": 0.5, "batch_size": 0},
        }
    }
    error = raised(lambda: Trajectories("my.npz", batch_size=0))  # from the constructor of a base
    assert keyed(error, config) == "data.init_args.batch_size: expected at least 1, got 0"
    error = raised(lambda: Trajectories("my.npz", val=0.5, test=0.5))
    assert keyed(error, config).startswith("data.init_args: test, val: expected positive shares")
    assert keyed(error, {"data": CONFIG}) == str(error)


@pytest.fixture
def mine(sciml, fit):
    """Trains on trajectories of one's own into the folder `run`; further keys override the configuration's."""
    text = TINY.with_name("ode.yaml").read_text()
    own = "sciml.data.Trajectories, init_args: {path: my.csv, id: id, y: [x, v], "
    Path("my.yaml").write_text(text.replace("tiny.Rotations, init_args: {", own))
    Path("my.csv").write_text("id,t,x,v\n" + "".join(f"{i},{t},1,2\n" for i in range(4) for t in range(3)))
    return lambda *keys, code=0: fit("run", *keys, config="my.yaml", code=code)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("path", "no.csv", "path: there is no file 'no.csv'"),
        ("path", "my.mat", "path: expected a file that ends in .csv, .npz, .h5, .hdf5, got 'my.mat'"),
        ("t", "time", "t: my.csv: no column 'time'; it has id, t, x, v"),
        ("y", "[x, w]", "y: my.csv: no column 'w'; it has id, t, x, v"),
        ("piece", "9", "piece: expected a number of steps from 1 to 2, got 9"),
        ("batch_size", "0", "batch_size: expected at least 1, got 0"),
        ("workers", "-1", "workers: expected 0 or more processes, got -1"),
    ],
)
def test_mistake_about_ones_own_data_is_told_with_its_key(mine, key, value, told):
    error = mine(f"--data.init_args.{key}={value}", code=2)
    assert error.splitlines()[-1] == f"sciml: data.init_args.{told}"
    assert "Traceback" not in error
    assert not Path("run").exists()


def test_data_that_went_away_are_told_by_every_command(sciml, mine):
    mine("--trainer.max_epochs=1")
    Path("my.csv").unlink()
    for command in ("test", "predict", "plot", "export"):
        error = sciml(command, "run", code=2)
        assert error.splitlines()[-1] == "sciml: data.init_args.path: there is no file 'my.csv'"


def test_times_of_their_own_are_told_with_the_key_of_the_solver(mine):
    rows = (f"{i},{t + i / 10 * (t > 0)},1,2\n" for i in range(4) for t in range(3))
    Path("my.csv").write_text("id,t,x,v\n" + "".join(rows))
    error = mine(code=2)
    told = "model.init_args.ode.init_args.solver: expected lanes='each' for times (1, 3) of each sample's own"
    assert error.splitlines()[-1].startswith(f"sciml: {told}")


EARLY, STOP = "class_path: EarlyStopping, init_args: {monitor: a, %s}", "class_path: tiny.Stop, init_args: {step: %s}"


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (EARLY % "mode: x", "trainer.callbacks.1.init_args: `mode` can be min, max, got x"),
        (STOP % "-1", "trainer.callbacks.1.init_args.step: expected 0 or more, got -1"),
        (STOP % "x", "trainer.callbacks.step: expected int, got 'x'"),
        (EARLY % "stric: x", "trainer.callbacks.stric: EarlyStopping has no such key; did you mean 'strict'?"),
        ("class_path: EarlyStop", "trainer.callbacks: expected a class with its module, as torch.nn.Tanh, got 'EarlyS"),
        ("class_path: torch.nn.Tanh", "trainer.callbacks: expected a Callback, got torch.nn.Tanh"),
        (EARLY % "mode: min", "Early stopping conditioned on metric `a` which is not available."),
    ],
)
def test_mistake_about_a_callback_is_one_line(fit, callback, told):
    error = fit(
        "run", f"--trainer.callbacks=[{{class_path: tiny.Stop, init_args: {{step: 90}}}}, {{{callback}}}]", code=2
    )
    assert error.splitlines()[-1].startswith(f"sciml: {told}")
    assert "Traceback" not in error


@pytest.mark.parametrize(("stop", "code"), [("KeyboardInterrupt", 130), ("SIGTERMException", 143)])
def test_run_that_is_stopped_while_its_data_are_made_says_so(sciml, stop, code, monkeypatch):
    told = []
    monkeypatch.setattr("sys.stderr.write", told.append)
    Path("slow.py").write_text(
        "from lightning.pytorch.utilities.exceptions import SIGTERMException\nimport tiny\n\n"
        f"class Data(tiny.Data):\n    def prepare_data(self):\n        raise {stop}\n"
    )
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    sciml("fit", "--config", TINY, "--run", "run", "--data.class_path=slow.Data", code=code)
    assert "nothing is saved; the same command starts anew" in "".join(told)
    assert not Path("run").exists()


OWN_DATA = """
import tiny


class Few(tiny.Data):
    def __init__(self, count: int = 100):
        super().__init__(train=count)


class Bare(tiny.Data):
    def __init__(self, path: str = "my.npz"):
        self.path = path


class BareTrajectories(tiny.Rotations):
    def __init__(self, path: str = "my.npz"):
        self.path = path
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Few", "train + val + test: expected at most the 32 samples there are, got 100 + 4 + 4"),
        ("Bare", "data: expected Bare.__init__ to call super().__init__(...); it does not"),
        (
            "BareTrajectories",
            "data: expected BareTrajectories.__init__ to call super().__init__(...); it",
        ),
    ],
)
def test_mistake_in_a_data_module_of_ones_own_is_one_line(fit, monkeypatch, name, told):
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    Path("own_data.py").write_text(OWN_DATA)
    error = fit("run", f"--data=own_data.{name}", code=2)
    assert error.splitlines()[-1].startswith(f"sciml: {told}")
    assert "Traceback" not in error
    assert not Path("run").exists()


def test_what_the_trainer_objects_to_is_one_line(mine):
    error = mine("--trainer.val_check_interval=50", code=2)
    assert error.splitlines()[-1].startswith("sciml: `val_check_interval` (50) must be less than or equal to")
    assert "Traceback" not in error
    assert not Path("run").exists()


CYCLE = "{{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {{max_lr: 0.1, total_steps: {}}}}}"


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'. 'epoch'")
@pytest.mark.parametrize(("interval", "steps"), [("step", 25), ("epoch", 5)])
def test_scheduler_that_ends_before_the_training_is_told_at_its_start(fit, interval, steps):
    options = (f"--model.scheduler={CYCLE.format(steps - 1)}", f"--model.scheduler_interval={interval}")
    error = fit("run", "--trainer.max_epochs=5", *options, code=2)
    told = f"expected total_steps of {steps} or more, the {interval}s of this training, got {steps - 1}"
    assert error.splitlines()[-1] == f"sciml: model.init_args.scheduler: {told}"
    assert not Path("run").exists()


def test_run_goes_on_past_its_scheduler_without_one(fit, sciml):
    fit("run", "--trainer.max_epochs=5", f"--model.scheduler={CYCLE.format(25)}", "--model.scheduler_interval=step")
    more = ("fit", "--resume", "run", "--trainer.max_epochs=6", "--trainer.enable_progress_bar=false")
    for total in (25, 30):  # the scheduler's state, its total with it, comes from the checkpoint
        error = sciml(*more, f"--model.scheduler.init_args.total_steps={total}", code=2)
        assert "expected total_steps of 30 or more, the steps of this training, got 25; a run that goes on" in error
    assert "run folder: run" in sciml(*more, "--model.scheduler=null")


def test_solve_of_a_start_in_another_shape_is_one_line_and_leaves_no_folder(sciml, monkeypatch):
    Path("flat.py").write_text(
        "from sciml.problems import Burgers\n\n\nclass Flat(Burgers):\n"
        "    def initial(self, *arguments):\n        return super().initial(*arguments)[:, 0]\n"
    )
    monkeypatch.delitem(sys.modules, "flat", raising=False)
    error = sciml("solve", "burgers_fno", "--data.init_args.problem.class_path=flat.Flat", code=2)
    assert error.splitlines()[-1].startswith("sciml: problem: expected (4, 1, 256) from Flat.initial")
    assert not Path("runs").exists()


def test_mistake_within_one_of_two_classes_is_not_taken_for_the_other_class():
    """What jsonargparse says of them."""
    message = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'sciml.models.LatentSDE':
        Parser key "compile":
          Does not validate against any of the Union subtypes
          Subtypes: [typing.Literal['loop', 'chunks'], <class 'NoneType'>]
          Errors:
            - Expected a typing.Literal['loop', 'chunks']
            - Expected a <class 'NoneType'>
          Given value type: <class 'str'>
          Given value: None
    - Import path sciml.models.LatentSDE does not correspond to a subclass of LatentFSDE
  Given value: NestedArg(key='solver.compile', val='None')"""
    assert explain(message, ArgumentParser()) == "model.compile: expected 'loop' or 'chunks' or None, got 'None'"


def test_words_like_those_of_a_missing_name_are_no_module():
    assert explain("No mesh attribute in the file x", ArgumentParser()) == "No mesh attribute in the file x"
    message = explain("No sciml.models attribute FNOO", ArgumentParser())
    assert message.startswith("sciml.models has no 'FNOO'; did you mean 'FNO'")
