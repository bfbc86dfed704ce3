import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "benchmarks" / "run.py"
TOY = """
ran = []
def cases():
    return ["first", "second|half"]
def run(case, seed):
    ran.append(case)
    if (seed, case) == (13, "second|half"):
        raise KeyboardInterrupt
    return {"error": 0.0123456, "steps": 123456, "remark": "one\\n two"}
"""


def git(folder, *args):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """run.py in a repository of its own, with one benchmark, and its thread count undone afterwards."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    shutil.copy(SOURCE, folder)
    (folder / "bench_toy.py").write_text(TOY)
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "toy")
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("toy_run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("bench_toy", None)


def rows(runner):
    return runner.parse(runner.RESULTS.read_text())["toy"]


def ran():
    return sys.modules["bench_toy"].ran


def test_row_has_measures_and_provenance(runner, capsys):
    runner.main(["toy", "--seed", "3"])
    first, second = rows(runner)
    assert list(first) == ["case", "error", "steps", "remark", *runner.PROVENANCE]
    assert (first["case"], first["error"], first["steps"], first["remark"]) == ("first", "0.01235", "123456", "one two")
    assert second["case"] == r"second\|half"
    assert first["command"] == "`python benchmarks/run.py toy --seed 3 --threads 1`"
    assert first["commit"] == git(runner.HERE, "rev-parse", "--short", "HEAD").strip()
    assert "1 torch threads" in first["machine"]
    assert f"torch {torch.__version__}" in first["machine"]
    assert capsys.readouterr().out.startswith("first: error 0.01235, steps 123456, remark one two\n")


def test_stopped_run_keeps_finished_cases_and_goes_on(runner):
    with pytest.raises(KeyboardInterrupt):
        runner.main(["toy", "--seed", "13"])
    assert [row["case"] for row in rows(runner)] == ["first"]
    sys.modules["bench_toy"].run = lambda case, seed: {"error": 1.0}
    ran().clear()
    runner.main(["toy", "--seed", "13"])
    assert [row["error"] for row in rows(runner)] == ["0.01235", "1"]


def test_same_commit_and_seed_run_once(runner, capsys):
    runner.main(["toy"])
    runner.main(["toy"])
    assert len(ran()) == len(rows(runner)) == 2
    assert "first: has its row" in capsys.readouterr().out
    runner.main(["toy", "--seed", "1"])
    git(runner.HERE, "commit", "-q", "--allow-empty", "-m", "next")
    runner.main(["toy"])
    assert len(ran()) == len(rows(runner)) == 6


def test_some_cases_may_be_run_alone(runner):
    runner.main(["toy", "--cases", "half"])
    assert [row["case"] for row in rows(runner)] == [r"second\|half"]


@pytest.mark.parametrize("change", ["bench_toy.py", "new.py"])
def test_dirty_tree_is_marked_and_never_skipped(runner, change):
    path = runner.HERE / change
    path.write_text(TOY)
    with path.open("a") as file:
        file.write("# changed\n")
    runner.main(["toy"])
    runner.main(["toy"])
    assert len(rows(runner)) == 4
    assert all(row["commit"].endswith("+dirty") for row in rows(runner))


def test_results_alone_leave_the_tree_clean(runner):
    runner.main(["toy"])
    git(runner.HERE, "add", ".")
    assert "+dirty" not in runner.commit()


def test_tables_survive_reading_and_writing(runner):
    tables = {
        "b": [{"case": "1", "x": r"\|u\|", **dict.fromkeys(runner.PROVENANCE, "p")}],
        "a": [{"case": c, c: "", **dict.fromkeys(runner.PROVENANCE, "p")} for c in "yz"],
    }
    text = runner.render(tables)
    assert runner.render(runner.parse(text)) == text
    assert runner.parse(text)["b"] == tables["b"]
    assert [row["y"] for row in runner.parse(text)["a"]] == ["", "-"]


def test_failed_write_leaves_the_old_results(runner, monkeypatch):
    runner.main(["toy"])
    before = runner.RESULTS.read_text()
    monkeypatch.setattr(runner.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runner.main(["toy", "--seed", "1"])
    assert runner.RESULTS.read_text() == before


def test_unknown_name_lists_the_benchmarks(runner, capsys):
    with pytest.raises(SystemExit):
        runner.main(["toi"])
    assert "toy" in capsys.readouterr().err
