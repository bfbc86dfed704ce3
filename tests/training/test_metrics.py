import pytest

from sciml.training import MetricsLogger
from sciml.training.drawing import draw_metrics


@pytest.fixture
def logger(tmp_path):
    return MetricsLogger(tmp_path / "metrics.csv")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def log(logger, *steps):
    for step in steps:
        logger.log_metrics({"epoch": 0, "loss": step / 10}, step)


def test_rows_have_a_cell_for_every_metric_logged_so_far(logger, clock):
    log(logger, 0, 1)
    logger.log_metrics({"epoch": 0, "error": 0.5}, 1)
    log(logger, 2)
    lines = ("epoch,step,seconds,loss,error", "0,0,0.000,0.0,", "0,1,0.000,0.1,", "0,1,0.000,,0.5", "0,2,0.000,0.2,")
    assert logger.path.read_text().splitlines() == list(lines)


def test_seconds_of_a_resumed_run_go_on_from_its_last_row(logger, clock):
    logger.log_graph()
    for step in range(3):
        clock[0] += 2.5
        log(logger, step)
    clock[0] += 1000
    resumed = MetricsLogger(logger.path)
    resumed.log_graph()
    clock[0] += 3
    resumed.rewind(2)
    clock[0] += 0.25
    log(resumed, 2)
    assert [row["seconds"] for row in logger.rows()] == ["2.500", "5.000", "5.250"]


def test_a_run_without_seconds_is_resumed_and_drawn(logger, clock):
    """One of an older version."""
    logger.path.write_text("epoch,step,val_loss\n0,0,3.0\n0,1,2.0\n")
    logger.rewind(2)
    clock[0] += 2
    logger.log_metrics({"epoch": 0, "val_loss": 1.0}, 2)
    rows = logger.rows()
    assert [row["seconds"] for row in rows] == ["", "", "2.000"]
    (panel,) = draw_metrics(rows, "val_loss").axes
    assert panel.get_xlabel() == "step"


def test_numbers_are_kept_to_the_last_bit(logger):
    logger.log_metrics({"loss": 0.1 + 0.2}, 0)
    assert float(logger.rows()[0]["loss"]) == 0.1 + 0.2


def test_a_new_run_replaces_the_file(logger):
    log(logger, 0, 1, 2)
    log(MetricsLogger(logger.path), 0)
    assert [row["step"] for row in logger.rows()] == ["0"]


def test_a_resumed_run_keeps_what_lies_before_its_step(logger):
    log(logger, 0, 1, 2, 3)
    resumed = MetricsLogger(logger.path)
    resumed.rewind(2)
    log(resumed, 2)
    assert [row["step"] for row in logger.rows()] == ["0", "1", "2"]


def test_a_line_cut_off_by_a_kill_is_no_row(logger):
    log(logger, 0, 1)
    with logger.path.open("a") as file:
        file.write("0,2,0.")
    resumed = MetricsLogger(logger.path)
    resumed.rewind(3)
    log(resumed, 2)
    assert [row["loss"] for row in logger.rows()] == ["0.0", "0.1", "0.2"]


def test_resuming_without_rows_starts_a_file(logger):
    logger.rewind(5)
    assert logger.rows() == []
    log(logger, 5)
    assert len(logger.rows()) == 1
