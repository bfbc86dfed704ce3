from types import SimpleNamespace

import pytest
import torch

from sciml.training.callbacks import Bar, Lines, progress
from sciml.training.drawing import draw_density, draw_fields, draw_forecasts, draw_metrics


@pytest.fixture
def trainer():
    metrics = {"train_loss": 0.125, "val_loss": 2.0}
    return SimpleNamespace(current_epoch=3, global_step=20, progress_bar_metrics=metrics)


def test_bar_is_for_terminals_only(monkeypatch):
    assert isinstance(progress(), Lines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(progress(), Bar)


def test_lines_tell_the_metrics_now_and_then(trainer, capsys, monkeypatch):
    clock = iter([0.0, 4.0, 8.0, 11.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    lines = Lines(every_seconds=10.0)
    for _ in range(4):
        lines.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().out == "epoch 3, step 20: train_loss 0.125, val_loss 2\n" * 2


def test_lines_are_silent_when_disabled(trainer, capsys):
    lines = Lines()
    lines.disable()
    lines.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().out == ""


def test_learning_curves_are_those_of_all_metrics_with_a_value():
    rows = [
        {"epoch": "0", "step": "0", "train_loss": "9.0", "val_loss": "", "never": ""},
        {"epoch": "0", "step": "4", "train_loss": "0.5", "val_loss": "0.7", "never": ""},
    ]
    (axes,) = draw_metrics(rows).axes
    assert [line.get_label() for line in axes.lines] == ["train_loss", "val_loss"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 9.0], [5, 0.5]]
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("values", "scale"), [((9, 0.5), "log"), ((9, 1), "linear"), ((9, -0.5), "linear"), ((9, 0.5, "nan"), "log")]
)
def test_axis_is_logarithmic_where_values_are_positive_and_far_apart(values, scale):
    rows = [{"epoch": "0", "step": str(step), "val_loss": str(value)} for step, value in enumerate(values)]
    assert draw_metrics(rows).axes[0].get_yscale() == scale


def test_each_kind_of_metric_has_a_panel_of_its_own():
    names = ("train_loss", "train_nfe", "val_loss", "val_relative_l2", "val_nfe", "lr-Adam")
    panels = draw_metrics([{"epoch": "0", "step": "0", **dict.fromkeys(names, "1.0")}]).axes
    assert {axes.get_ylabel(): [line.get_label() for line in axes.lines] for axes in panels} == {
        "loss": ["train_loss", "val_loss"],
        "nfe": ["train_nfe", "val_nfe"],
        "relative_l2": ["val_relative_l2"],
        "lr-Adam": ["lr-Adam"],
    }


def test_the_monitored_error_stands_beside_its_baseline_and_against_the_seconds_too():
    rows = [
        {
            "epoch": "0",
            "step": step,
            "seconds": seconds,
            "val_loss": "3.0",
            "val_relative_l2": error,
            "val_baseline": "0.9",
        }
        for step, seconds, error in (("9", "2.5", "0.8"), ("19", "4.0", "0.1"))
    ]
    panels = draw_metrics(rows, "val_relative_l2").axes
    curves = {
        (axes.get_ylabel(), axes.get_xlabel()): {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in panels
    }
    assert curves == {
        ("loss", "step"): {"val_loss": [[10, 3.0], [20, 3.0]]},
        ("relative_l2", "step"): {"val_relative_l2": [[10, 0.8], [20, 0.1]], "val_baseline": [[10, 0.9], [20, 0.9]]},
        ("relative_l2", "seconds"): {
            "val_relative_l2": [[2.5, 0.8], [4.0, 0.1]],
            "val_baseline": [[2.5, 0.9], [4.0, 0.9]],
        },
    }


def test_fields_are_drawn_over_their_coordinates():
    x = torch.linspace(0, 1, 9)[:-1]
    field = torch.sin(6 * x)[None]
    left, right = draw_fields(field, field, field + 0.1, (x,)).axes
    assert [line.get_label() for line in left.lines] == ["input", "target", "prediction"]
    assert all(torch.equal(torch.from_numpy(line.get_xdata()), x) for line in (*left.lines, *right.lines))
    numbered, _ = draw_fields(field, field, field).axes
    assert numbered.lines[0].get_xdata().tolist() == list(range(8))


def test_fields_in_the_plane_have_x_to_the_right():
    x, y = torch.linspace(0, 2, 5), torch.linspace(0, 1, 3)
    field = (x[:, None] + 10 * y)[None]
    figure = draw_fields(field, field, field, (x, y))
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes[:4]} == {("x", "y")}
    mesh = figure.axes[1].collections[0]
    assert mesh.get_array().tolist() == field[0].T.tolist()
    corners = mesh.get_coordinates()
    assert corners[..., 0].max() > corners[..., 1].max()


def test_planes_of_forecasts_and_densities_have_their_axes_named():
    x, y, field = torch.linspace(0, 2, 5), torch.linspace(0, 1, 3), torch.ones(5, 3)
    forecasts = draw_forecasts(field, field, field.expand(4, 5, 3), (x, y)).axes[:8]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in forecasts} == {("x", "y")}
    density = draw_density(torch.zeros(4, 2), torch.zeros(4, 2), (x, y), field, ("angle", "speed")).axes[:3]
    assert [axes.get_xlabel() for axes in density] == ["angle"] * 3
    assert density[0].get_ylabel() == "speed"
