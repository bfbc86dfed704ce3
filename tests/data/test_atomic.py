import pytest

from sciml.data.atomic import replacing


def test_content_is_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with replacing(path) as partial:
        assert partial.suffix == ".txt"  # some writers ask for an ending
        partial.write_text("first")
        assert not path.exists()
    with replacing(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def fail(path):
    with replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError("stopped")


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stopped"):
        fail(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as partial:
        name = partial
        partial.write_text("mine")
    name.write_text("a half-written file of another process")
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
