import csv

import h5py
import numpy as np
import pytest
import torch

from sciml.data import Series, Spirals
from sciml.errors import DataError

NAN = np.nan


def ready(data):
    data.setup("fit")
    return data


def test_spirals_turn_by_their_class_and_are_seen_by_chance():
    series, labels = ready(Spirals(train=2000, points=40, missing=0.3, noise=0.0)).part("train")
    assert series.shape == (2000, 40, 3)
    assert series.dtype == torch.float32
    ts, x, y = series.unbind(-1)
    assert (ts.diff(dim=1) >= 0).all()
    assert ts.min() >= 0
    assert ts.max() <= 1
    for values in (x, y):
        share = values.isnan().float().mean()
        assert abs(share - 0.3) < 5 * (0.3 * 0.7 / values.numel()) ** 0.5  # five standard deviations
    assert abs(labels.float().mean() - 0.5) < 5 * 0.5 / 2000**0.5
    both = ~(x.isnan() | y.isnan())
    assert torch.allclose((x.square() + y.square())[both], torch.exp(-2 * ts)[both], atol=1e-5)
    pairs = both[:, 1:] & both[:, :-1]
    area = (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).where(pairs, 0).sum(1)  # anticlockwise where positive
    assert ((area > 0) == (labels == 1)).float().mean() > 0.99  # few turn by half a circle between two of them


def test_parts_of_spirals_are_functions_of_seed_and_name():
    first, again, other = (ready(Spirals(train=20, val=5, test=5, data_seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.part("train")[0].nan_to_num(9), again.part("train")[0].nan_to_num(9))
    assert not torch.equal(first.part("train")[0].nan_to_num(9), other.part("train")[0].nan_to_num(9))
    assert not torch.equal(first.part("train")[0][:5].nan_to_num(9), first.part("val")[0].nan_to_num(9))


def table(count=10):
    """Series of two or three times with a gap, of two classes, and what is to be read of them."""
    rows, whole = [], np.full((count, 3, 3), NAN)
    for n in range(count):
        for k in range(2 + n % 2):
            cell = "" if k == 1 else f"{n + k}"
            rows.append([f"s{n}", 0.5 * k, cell, 10.0 * n, n % 2])
            whole[n, k] = 0.5 * k, NAN if k == 1 else n + k, 10.0 * n
    return rows, whole


def written(path, rows, header=("who", "time", "a", "b", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def together(data):
    """All series in the order of their numbers, and their classes."""
    series, labels = (torch.cat(x) for x in zip(*map(data.part, ("train", "val", "test")), strict=True))
    order = series[:, 0, 2].argsort()
    return series[order], labels[order]


def test_a_table_is_read(tmp_path):
    rows, whole = table()
    path = written(tmp_path / "my.csv", rows)
    for y in (None, ["a", "b"]):
        data = ready(Series(path, t="time", id="who", y=y))
        series, labels = together(data)
        np.testing.assert_array_equal(series, whole.astype("float32"))
        assert labels.tolist() == [0, 1] * 5
        assert data.names == ("a", "b")
    assert ready(Series(path, t="time", id="who", y=["b"])).part("test")[0].shape[-1] == 2


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_arrays_are_read(tmp_path, suffix):
    _, whole = table()
    arrays = {"t": whole[..., 0], "x": whole[..., 1:], "label": np.arange(10) % 2}
    path = tmp_path / f"my{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value
    series, labels = together(ready(Series(str(path))))
    np.testing.assert_array_equal(series, whole.astype("float32"))
    assert labels.tolist() == [0, 1] * 5


def test_every_part_has_its_share_of_each_class(tmp_path):
    labels = np.array([0] * 40 + [1] * 20)
    np.savez(tmp_path / "my.npz", t=np.arange(3.0), x=np.arange(180.0).reshape(60, 3), label=labels)
    data = ready(Series(str(tmp_path / "my.npz"), val=0.1, test=0.2))
    counts = {name: data.part(name)[1].bincount().tolist() for name in ("train", "val", "test")}
    assert counts == {"train": [28, 14], "val": [4, 2], "test": [8, 4]}
    firsts = torch.cat([data.part(name)[0][:, 0, 1] for name in counts])
    assert firsts.sort().values.tolist() == list(range(0, 180, 3))


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda rows: rows, {"id": None}, "id: .*expected the name of a column"),
        (lambda rows: rows, {"label": "class"}, "label: .*no column 'class'"),
        (lambda rows: rows, {"y": ["a", "c"]}, "y: .*no column 'c'"),
        (lambda rows: [*rows[:1], [*rows[1][:4], 1], *rows[2:]], {}, "label: .*series s0: expected one class"),
        (lambda rows: [[*row[:4], row[4] + 0.5] for row in rows], {}, "label: .*expected whole numbers from 0 on"),
        (lambda rows: [[*row[:4], ""] for row in rows], {}, "label: .*expected"),
        (lambda rows: [[*row[:1], 1.0, *row[2:]] for row in rows], {}, "path: .*expected increasing times"),
        (lambda rows: rows[:4], {}, "path: .*expected at least 3 series"),
    ],
)
def test_mistakes_in_a_table_are_told(tmp_path, change, options, said):
    rows, _ = table()
    path = written(tmp_path / "my.csv", change(rows))
    with pytest.raises(DataError, match=said):
        Series(path, **{"t": "time", "id": "who", **options}).setup("fit")


def test_mistakes_in_arrays_are_told(tmp_path):
    for arrays, said in (
        ({"label": np.zeros(3)}, r"label: .*expected numbers \(2\), got float64 \(3,\)"),
        ({"label": np.array(["a", "b"])}, r"label: .*expected numbers \(2\)"),
        ({}, "label: .*no array 'label'; it has t, x"),
    ):
        np.savez(tmp_path / "my.npz", t=np.arange(3.0), x=np.zeros((2, 3)), **arrays)
        with pytest.raises(DataError, match=said):
            Series(str(tmp_path / "my.npz")).setup("fit")


def test_sizes_and_shares_that_leave_nothing_are_refused():
    for wrong, said in (
        ({"train": 0}, "train: expected at least 1"),
        ({"points": 1}, "points: expected at least 2 times"),
        ({"missing": 1.0}, "missing, noise: expected a share below 1"),
        ({"noise": -1.0}, "missing, noise: expected"),
    ):
        with pytest.raises(ValueError, match=said):
            Spirals(**wrong)
    with pytest.raises(ValueError, match="test, val: expected positive shares"):
        Series("my.csv", val=0.5, test=0.5)
