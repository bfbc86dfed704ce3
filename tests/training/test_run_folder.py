import pytest

from sciml.training import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def test_next_is_behind_the_last_number(tmp_path):
    assert RunFolder.next("a", tmp_path).path == tmp_path / "a" / "1"
    for name in ("2", "10", "notes"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert RunFolder.next("a", tmp_path).path == tmp_path / "a" / "11"


def test_configs_are_kept_in_the_order_of_resumptions(run):
    assert run.configs == []
    run.write_config("first")
    for count in range(11):
        run.write_config(f"resumed {count}", resumed=True)
    texts = [path.read_text() for path in run.configs]
    assert texts == ["first", *(f"resumed {count}" for count in range(11))]
    assert run.configs[-1].name == "config.resume11.yaml"


def test_a_run_that_starts_anew_replaces_its_config(run):
    run.write_config("first")
    run.write_config("second")
    assert [path.read_text() for path in run.configs] == ["second"]


def test_the_best_checkpoint_is_evaluated_where_there_is_one(run):
    run.last.parent.mkdir(parents=True)
    run.last.touch()
    assert run.checkpoint == run.last
    run.best.touch()
    assert run.checkpoint == run.best
