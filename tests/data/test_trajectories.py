import h5py
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sciml.data import Observed, Trajectories, TrajectoryData
from sciml.data.generate import content
from sciml.data.trajectories import read_trajectories
from sciml.errors import DataError
from sciml.problems import Spiral

CSV = """run,t,x,y
a,0,1,2
a,0.5,3,
a,2,5,6
b,0,7,8
b,1,9,10
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="my.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_csv_with_irregular_times_and_missing_values(write):
    names, _, (ts, ys, mask) = read_trajectories(write(CSV), id="run")
    assert names == ("x", "y")
    assert_close(ts, torch.tensor([[0, 0.5, 2], [0, 1, 1]], dtype=torch.float64), rtol=0, atol=0)
    assert_close(ys, torch.tensor([[[1.0, 2], [3, 0], [5, 6]], [[7, 8], [9, 10], [0, 0]]]), rtol=0, atol=0)
    assert mask.tolist() == [[[True, True], [True, False], [True, True]], [[True, True], [True, True], [False, False]]]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_columns_may_be_set_apart_by_other_marks(write, mark):
    names, _, expected = read_trajectories(write(CSV), id="run")
    other = CSV.replace(",", mark)
    got = read_trajectories(write(other, "other.csv"), id="run")
    assert got[0] == names
    assert all(torch.equal(a, b) for a, b in zip(got[2], expected, strict=True))
    quoted = other.replace(f"x{mark}y", f'"x, m"{mark}"y, m"')
    assert read_trajectories(write(quoted, "quoted.csv"), id="run")[0] == ("x, m", "y, m")
    with pytest.raises(DataError, match="row 3, column 'x': expected a number, got '3,5'"):
        read_trajectories(write(other.replace(f"{mark}3{mark}", f"{mark}3,5{mark}")), id="run")


def test_csv_without_ids_is_one_trajectory_with_shared_times(write):
    *_, (ts, ys, mask) = read_trajectories(write("day,fish\n1,4\n2,5\n4,6\n"), t="day")
    assert (ts.tolist(), ys.tolist(), mask.all().item()) == ([1, 2, 4], [[[4], [5], [6]]], True)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CSV, {"t": "time"}, "^t: .*my.csv: no column 'time'; it has run, t, x, y"),
        (CSV, {"y": ["z"], "id": "run"}, "^y: .*my.csv: no column 'z'"),
        (CSV, {"id": "lane"}, "^id: .*my.csv: no column 'lane'"),
        (CSV, {}, "^path: .*my.csv: row 2, column 'run': expected a number, got 'a'"),
        (CSV.replace("9,10", "9,ten"), {"id": "run"}, "my.csv: row 6, column 'y': expected a number, got 'ten'"),
        (CSV.replace("9,10", "9"), {"id": "run"}, "my.csv: row 6: expected 4 cells, got 3"),
        (CSV.replace("b,1", "b,"), {"id": "run"}, "my.csv: row 6, column 't': expected a time"),
        (CSV.replace("b,0,7", "b,0,"), {"id": "run"}, "my.csv: trajectory b: expected all values .*x is missing"),
        (CSV.replace("9,10", "inf,10"), {"id": "run"}, "my.csv: trajectory b: expected finite values"),
        (CSV, {"y": ["x"]}, "my.csv: trajectory 0: expected increasing times, got 2 and then 0; .*`id`"),
        ("t,x\n0,1\n", {}, "my.csv: trajectory 0: expected at least two times"),
        ("", {}, "^path: .*my.csv: no column 't'; the file is empty"),
        (CSV.replace("0.5", "0"), {"id": "run"}, "trajectory a: expected increasing times, got 0 and then 0$"),
    ],
)
def test_mistakes_in_a_csv_are_located(write, text, options, message):
    with pytest.raises(ValueError, match=message):
        read_trajectories(write(text), **options)


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_arrays_of_components_or_of_all(tmp_path, suffix):
    t, x = np.array([0.0, 1.0, 3.0]), np.arange(6.0).reshape(2, 3)
    t_each = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, np.nan]])
    x_holes = x.copy()
    x_holes[0, 1] = np.nan

    def save(name, **arrays):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "npz":
            np.savez(path, **arrays)
        else:
            with h5py.File(path, "w") as file:
                file.update(arrays)
        return path

    names, _, (ts, ys, mask) = read_trajectories(save("apart", t=t, x=x_holes, y=-x))
    assert (names, ts.shape, ys.shape) == (("x", "y"), (3,), (2, 3, 2))
    assert (~mask).nonzero().tolist() == [[0, 1, 0]]
    names, _, (ts, ys, mask) = read_trajectories(save("whole", t=t_each, u=np.stack([x, -x], -1)))
    assert (names, ts.tolist()) == (("u0", "u1"), [[0, 1, 3], [0, 2, 2]])
    assert (~mask).nonzero().tolist() == [[1, 2, 0], [1, 2, 1]]
    with pytest.raises(ValueError, match=rf"bad.{suffix}: array 'y': expected \(2, 3\) as 'x' has, got \(3, 2\)"):
        read_trajectories(save("bad", t=t, x=x, y=x.T))
    with pytest.raises(ValueError, match=rf"worse.{suffix}: array 't': expected shape"):
        read_trajectories(save("worse", t=t[:2], x=x))
    with pytest.raises(DataError, match=rf"^y: .*absent.{suffix}: no array 'v'; it has t, x"):
        read_trajectories(save("absent", t=t, x=x), y=["x", "v"])
    with pytest.raises(DataError, match=rf"text.{suffix}: array 'x': expected real numbers"):
        read_trajectories(save("text", t=t, x=x.astype("S")))


@pytest.mark.parametrize("suffix", ["npz", "h5", "csv"])
def test_file_of_something_else_is_told(tmp_path, suffix):
    path = tmp_path / f"my.{suffix}"
    path.write_bytes(b"\xff\xfe not what it says")
    with pytest.raises(
        DataError, match=rf"^path: .*my.{suffix}: expected a .{suffix} file, got one that cannot be read"
    ):
        read_trajectories(path)


def test_arrays_of_objects_are_told(tmp_path):
    np.savez(tmp_path / "my.npz", t=np.arange(3.0), x=np.full((2, 3), None))
    with pytest.raises(DataError, match=r"my.npz: expected a .npz file, got one that cannot be read: Object arrays"):
        read_trajectories(tmp_path / "my.npz")


def test_unknown_endings_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file that ends in .csv"):
        read_trajectories(tmp_path / "my.txt")
    with pytest.raises(FileNotFoundError, match=r"no file '.*my.csv'"):
        read_trajectories(tmp_path / "my.csv")


def rows(count):
    return "n,t,x\n" + "".join(f"{n},{t},{10 * n + t}\n" for n in range(count) for t in range(5))


def test_split_is_by_trajectory_and_a_function_of_its_seed(write):
    path = str(write(rows(10)))

    def parts(seed):
        data = Trajectories(path, id="n", val=0.2, test=0.2, split_seed=seed)
        data.setup("fit")
        return [set(data.part(name).ys[:, 0, 0].tolist()) for name in ("train", "val", "test")]

    train, val, test = parts(0)
    assert (len(train), len(val), len(test)) == (6, 2, 2)
    assert train | val | test == {10.0 * n for n in range(10)}
    assert parts(0) == [train, val, test] != parts(1)
    with pytest.raises(ValueError, match="expected at least 3 trajectories"):
        Trajectories(str(write(rows(2))), id="n").setup("fit")


def test_pieces_start_where_the_one_before_ended_and_at_a_value():
    ys = torch.arange(7.0).reshape(1, 7, 1)
    whole = Observed(torch.arange(7, dtype=torch.float64), ys, torch.ones_like(ys, dtype=torch.bool))
    ts, pieces, _ = whole.cut(2)
    assert (ts.tolist(), pieces[..., 0].tolist()) == ([0, 1, 2], [[0, 1, 2], [2, 3, 4], [4, 5, 6]])
    hole = torch.arange(7).reshape(1, 7, 1) != 2
    assert whole._replace(mask=hole).cut(2).ys[..., 0].tolist() == [[0, 1, 2], [4, 5, 6]]
    uneven = whole._replace(ts=torch.tensor([0, 1, 2, 3, 5, 5, 5], dtype=torch.float64))  # the last ones fill up
    assert uneven.cut(2).ts.tolist() == [[0, 1, 2], [0, 1, 3]]
    with pytest.raises(ValueError, match="piece: expected a number of steps from 1 to 6, got 7"):
        whole.cut(7)


def test_solutions_of_a_problem_are_generated_once_and_split(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path))
    data = TrajectoryData(Spiral(t1=1.0), points=4, train=5, val=2, test=3, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    assert [data.part(name).ys.shape for name in data.sizes] == [(5, 5, 2), (2, 5, 2), (3, 5, 2)]
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, Observed)
    assert (batch.ts.shape, batch.ys.shape, batch.mask.all()) == ((5,), (4, 5, 2), True)
    assert len(list(tmp_path.glob("spiral-*.h5"))) == 1
    assert data.state_dict() == {"content": content(data.file())}
