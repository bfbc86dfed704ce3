"""Predictions for a file that no run was trained on."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sciml import load
from tests.training.conftest import TINY

QUICK = "--trainer.max_epochs=1"


def results(path):
    with h5py.File(path) as file:
        return {name: values[...] for name, values in file.items()}


@pytest.fixture
def trajectories(fit):
    """A run on a table of one's own, in the folder `run`."""
    rows = (f"{i},{t},{i + 1},{t}\n" for i in range(5) for t in range(3))
    Path("my.csv").write_text("id,t,x,v\n" + "".join(rows))
    own = "sciml.data.Trajectories, init_args: {path: my.csv, id: id, y: [x, v], "
    Path("my.yaml").write_text(TINY.with_name("ode.yaml").read_text().replace("tiny.Rotations, init_args: {", own))
    fit("run", QUICK, config="my.yaml")


NEW = """v,id,t,x
.5,late,0,1
,late,1,
,late,2,
0,early,0,2
1,early,1,
,early,2,4
"""


def test_all_trajectories_of_a_new_file_are_predicted_with_their_names(trajectories, sciml):
    Path("my.csv").unlink()  # what was trained on need not be there
    Path("new.csv").write_text(NEW)
    assert sciml("predict", "run", "--input", "new.csv").strip() == "run/predictions_new.h5"
    got = results("run/predictions_new.h5")
    assert got["id"].tolist() == [b"late", b"early"]
    start = torch.tensor([[1.0, 0.5], [2, 0]])
    assert np.array_equal(got["predictions"], load("run")(start, torch.arange(3).double()).numpy())
    assert got["mask"].tolist()[1] == [[True, True], [False, True], [True, False]]
    assert not Path("run/predictions.h5").exists()


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("id,t,x\n1,0,1\n1,1,2\n", [], "data.init_args.y: new.csv: no column 'v'; it has id, t, x"),
        (NEW.replace(".5", "a"), [], "input: new.csv: row 2, column 'v': expected a number, got 'a'"),
        (NEW, ["--data.y=null"], "data.init_args.y: expected names of the components"),
    ],
)
def test_mistake_in_new_trajectories_is_told_in_a_line(trajectories, sciml, text, overrides, told):
    Path("new.csv").write_text(text)
    message = sciml("predict", "run", "--input", "new.csv", *overrides, code=2)
    assert message.startswith(f"sciml: {told}")
    assert message.count("\n") == 1


def test_all_fields_of_a_new_file_are_predicted_with_or_without_targets(fit, sciml):
    fit("run", QUICK)
    inputs = np.random.default_rng(0).normal(size=(7, 1, 16))
    np.save("new.npy", inputs)
    np.savez("pairs.npz", inputs=inputs, targets=inputs[:, :, ::-1])
    with h5py.File("pairs.h5", "w") as file:
        file["inputs"] = inputs
    expected = load("run", trust=True)(torch.from_numpy(inputs).float()).numpy()
    for name, keys in {"new.npy": set(), "pairs.npz": {"targets"}, "pairs.h5": set()}.items():
        sciml("predict", "run", "--input", name)
        got = results(f"run/predictions_{Path(name).stem}.h5")
        assert got.keys() == {"inputs", "predictions"} | keys
        assert np.allclose(got["predictions"], expected, rtol=0, atol=1e-6)  # round-off of float32 in other batches
    assert "there is no file 'no.npy' for --input" in sciml("predict", "run", "--input", "no.npy", code=2)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"u": np.ones((2, 1, 16))}, "input: new.npz: expected an array 'inputs', got u"),
        ({"inputs": np.ones((2, 16), "S1")}, "input: new.npz: inputs: expected real numbers, got |S1"),
        ({"inputs": np.ones(16)}, "input: new.npz: inputs: expected (n, c, *x), got (16,)"),
        (
            {"inputs": np.ones((2, 1, 16)), "targets": np.ones((1, 1, 16))},
            "targets: expected as many samples as inputs, 2",
        ),
    ],
)
def test_mistake_in_new_fields_is_told(tmp_path, monkeypatch, arrays, told):
    from sciml.data import TensorFields
    from sciml.errors import DataError

    monkeypatch.chdir(tmp_path)
    np.savez("new.npz", **arrays)
    with pytest.raises(DataError) as caught:
        TensorFields(torch.ones(2, 1, 4), torch.ones(2, 1, 4), 1, 1, 0).new(Path("new.npz"))
    assert told in str(caught.value)


def test_data_that_read_no_files_say_so(fit, sciml):
    fit("run", QUICK, config=TINY.with_name("ode.yaml"))
    Path("new.csv").write_text(NEW)
    told = "sciml: predict: data of Rotations read no --input, as those of Trajectories and FieldData do"
    assert sciml("predict", "run", "--input", "new.csv", code=2).startswith(told)
