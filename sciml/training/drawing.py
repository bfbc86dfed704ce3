"""Pictures of metrics, fields, trajectories and classes."""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy import ndarray
from torch import Tensor

from sciml.problems.equation import Plane

STAGES = {"train": "C0", "val": "C1", "test": "C2"}  # prefixes of metrics, with the colours of their curves

FLOOR = 1e-8  # of the largest power, below which spectra are not drawn


def draw_metrics(rows: Sequence[dict[str, str]], monitor: str = "") -> Figure:
    """Metrics against the step: a panel for each kind, with a curve for training, validation and test.

    A baseline is drawn beside the relative error, dashed. An axis is logarithmic where its values are positive and more
    than a factor of ten apart.

    Args:
        rows: of metrics.csv.
        monitor: the metric of validation that is also drawn against the seconds of training.
    """
    panels: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for name in rows[0]:
        kept = [row for row in rows if row[name]]
        if name in ("epoch", "step", "seconds") or not kept:
            continue
        kind = re.sub(f"^({'|'.join(STAGES)})_", "", name)
        kind = "relative_l2" if kind == "baseline" and name.replace(kind, "relative_l2") in rows[0] else kind
        values = [float(row[name]) for row in kept]
        steps = [int(row["step"]) + 1 for row in kept]
        panels.setdefault((kind, "step"), {})[name] = list(zip(steps, values, strict=True))
        timed = [float(row["seconds"]) for row in kept if row.get("seconds")]
        if name in (monitor, monitor.replace("relative_l2", "baseline")) and len(timed) == len(kept):
            panels.setdefault((kind, "seconds"), {})[name] = list(zip(timed, values, strict=True))
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(1 + 4 * columns, 1 + 2.5 * lines), layout="constrained")
    for number, ((kind, axis), curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, number)
        for name, points in curves.items():
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=STAGES.get(name.partition("_")[0]),
                linestyle="--" if name.endswith("baseline") else "-",
                marker="." if len(points) < 50 else "",
            )
        values = [value for points in curves.values() for _, value in points if math.isfinite(value)]
        if values and 0 < 10 * min(values) < max(values):
            axes.set_yscale("log")
        axes.set(xlabel=axis, ylabel=kind)
        axes.legend()
    return figure


def draw_fields(inputs: Tensor, target: Tensor, prediction: Tensor, coordinates: Sequence[Tensor] = ()) -> Figure:
    """Input, target, prediction and error of one sample; the first channel of fields in one or two dimensions.

    Args:
        inputs: `(c, *x)`.
        target: `(c, *x)`.
        prediction: `(c, *x)`.
        coordinates: the grid along each axis of space; without them the points are numbered.
    """
    grid = coordinates or [torch.arange(size) for size in target.shape[1:]]
    error = prediction - target
    if len(grid) == 1:
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(grid[0], inputs[0], label="input", color="0.7")
        left.plot(grid[0], target[0], label="target")
        left.plot(grid[0], prediction[0], "--", label="prediction")
        left.set_xlabel("x")
        left.legend()
        right.plot(grid[0], error[0], color="C3")
        right.set(xlabel="x", title="prediction - target")
        return figure
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    panels = {"input": inputs, "target": target, "prediction": prediction, "prediction - target": error}
    for axes, (title, field) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        limits = {"vmin": target[0].min(), "vmax": target[0].max()} if title in ("target", "prediction") else {}
        image = axes.pcolormesh(*(x.numpy() for x in grid), field[0].T.numpy(), shading="nearest", **limits)
        axes.set(title=title, aspect="equal", xlabel="x", ylabel="y")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def draw_plane(plane: Plane, prediction: Tensor, exact: Tensor | None, inside: Tensor) -> Figure:
    """A solution on a plane, beside the exact one and the difference where that is known.

    Args:
        plane: the grid (n, m), or (n).
        prediction: values (n * m).
        exact: likewise, or None.
        inside: which points lie in the domain (n * m); others are left white.
    """
    panels = {"prediction": prediction}
    if exact is not None:
        panels = {"exact": exact, "prediction": prediction, "prediction - exact": prediction - exact}
    if len(plane.axes) == 1:
        figure = Figure(figsize=(5.5, 3.8), layout="constrained")
        axes = figure.add_subplot(xlabel=plane.labels[0])
        for title, values in panels.items():
            axes.plot(plane.axes[0], values, "--" if title == "prediction" else "-", label=title)
        axes.legend()
        return figure
    shown = (prediction if exact is None else exact)[inside]
    figure = Figure(figsize=(0.5 + 4.5 * len(panels), 3.8), layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, values) in zip(drawn, panels.items(), strict=True):
        grid = values.where(inside, torch.nan).reshape(len(plane.axes[0]), len(plane.axes[1]))
        limits = {} if title.endswith("- exact") else {"vmin": shown.min(), "vmax": shown.max()}
        image = axes.pcolormesh(*(x.numpy() for x in plane.axes), grid.T.numpy(), shading="nearest", **limits)
        axes.set(title=title, xlabel=plane.labels[0], ylabel=plane.labels[1])
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def draw_trajectories(
    ts: Tensor, ys: Tensor, predictions: Tensor, names: Sequence[str], given: Tensor | None = None
) -> Figure:
    """Each component over time: data as dots, predictions as lines, a colour for each trajectory.

    Args:
        ts: times (n, t).
        ys: data (n, t, c), NaN where missing.
        predictions: (n, t, c).
        names: of the components; at most six are drawn.
        given: which data the predictions know (n, t, c), bool; the others are small dots. None tells none apart.
    """
    given = torch.ones_like(ys, dtype=torch.bool) if given is None else given
    shown = min(len(names), 6)
    figure = Figure(figsize=(8, 1 + 2 * shown), layout="constrained")
    panels = figure.subplots(shown, 1, sharex=True, squeeze=False)[:, 0]
    for c, axes in enumerate(panels):
        for n, t in enumerate(ts):
            for known, size in ((given, 4), (~given, 1)):
                axes.plot(t, ys[n, :, c].where(known[n, :, c], torch.nan), ".", color=f"C{n}", markersize=size)
            axes.plot(t, predictions[n, :, c], color=f"C{n}", linewidth=1)
        axes.set_ylabel(names[c])
    hidden = "" if bool(given.all()) else ", small ones hidden"
    panels[0].set_title(f"dots: data{hidden}, lines: prediction")
    panels[-1].set_xlabel("t")
    return figure


def draw_phase_plane(ys: Tensor, predictions: Tensor, names: Sequence[str]) -> Figure:
    """The second component over the first: data (n, t, 2) as dots, predictions (n, t, 2) as lines from a ring on."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for n, (data, curve) in enumerate(zip(ys, predictions, strict=True)):
        axes.plot(*data.unbind(1), ".", color=f"C{n}", markersize=4)
        axes.plot(*curve.unbind(1), color=f"C{n}", linewidth=1)
        axes.plot(*curve[0], "o", color=f"C{n}", fillstyle="none")
    axes.set(xlabel=names[0], ylabel=names[1], title="dots: data, lines: prediction")
    return figure


def draw_confusion(confusion: Tensor) -> Figure:
    """A table (k, k): how many samples of the class of a row were taken for the class of a column."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(confusion.numpy(), cmap="Blues")
    middle = confusion.max() / 2
    for (row, column), count in zip(confusion.ne(-1).nonzero().tolist(), confusion.flatten().tolist(), strict=True):
        axes.text(column, row, count, ha="center", va="center", color="white" if count > middle else "black")
    axes.set(xlabel="predicted class", ylabel="class", xticks=range(len(confusion)), yticks=range(len(confusion)))
    return figure


def draw_regression(predictions: Tensor, targets: Tensor) -> Figure:
    """Predictions over targets, both (n, k, ..), of which the first components have a panel each."""
    count = min(targets.shape[1], 4)
    figure = Figure(figsize=(3.6 * count, 3.6), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, count, squeeze=False)[0]):
        right, found = (values[:, i].flatten() for values in (targets, predictions))
        axes.axline((float(right.mean()),) * 2, slope=1, color="black", linewidth=0.8)
        axes.plot(right, found, ".", markersize=3, alpha=0.5)
        axes.set(xlabel=f"target {i}" if count > 1 else "target", ylabel="prediction")
    return figure


def draw_density(x: Tensor, samples: Tensor, axes: Sequence[Tensor], density: Tensor, names: Sequence[str]) -> Figure:
    """Points (n, 2) of the data, samples (m, 2) of the model, and its density (i, j) on a grid of the named plane."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, title, points in zip(panels, ("data", "samples"), (x, samples), strict=False):
        panel.plot(*points.unbind(1), ".", color="C0", markersize=1, alpha=0.5)
        panel.set(title=title, aspect="equal")
    image = panels[2].pcolormesh(*(a.numpy() for a in axes), density.T.numpy(), shading="gouraud")
    limits = [(float(a[0]), float(a[-1])) for a in axes]
    panels[2].set(title="density", aspect="equal", xlim=limits[0], ylim=limits[1])
    panels[0].set_ylabel(names[1])
    for panel in panels:
        panel.set_xlabel(names[0])
    figure.colorbar(image, ax=panels[2], shrink=0.8)
    return figure


def draw_histories(histories: dict[str, Tensor], tolerance: float) -> Figure:
    """Relative residuals (iterations, s) of systems by name: geometric mean and the range of the middle 80 %."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, norms in histories.items():
        logs = norms.log()
        low, high = logs.quantile(torch.tensor([0.1, 0.9], dtype=logs.dtype), dim=1).exp()
        (line,) = axes.semilogy(logs.mean(1).exp(), label=name)
        axes.fill_between(range(len(norms)), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(tolerance, color="k", linewidth=0.8, linestyle=":")
    axes.set(xlabel="iteration", ylabel="residual / right-hand side", ylim=(tolerance / 100, None))
    axes.legend(frameon=False)
    return figure


def draw_ensembles(ts: Tensor, ys: Tensor, samples: Tensor, names: Sequence[str]) -> Figure:
    """Each component over time of data (n, t, c), NaN where missing, and of samples (n, t, c) beside them.

    Fifty paths of either, with mean and two deviations of all.
    """
    shown = min(len(names), 6)
    figure = Figure(figsize=(9, 1 + 2 * shown), layout="constrained")
    panels = figure.subplots(shown, 2, sharex=True, sharey="row", squeeze=False)
    for c, row in enumerate(panels):
        for axes, paths in zip(row, (ys[..., c], samples[..., c]), strict=True):
            mean = paths.nanmean(0)
            std = (paths - mean).square().nanmean(0).sqrt()
            axes.plot(ts, paths[:50].T, color="C0", linewidth=0.4, alpha=0.5)
            axes.plot(ts, mean, color="black")
            for side in (-2, 2):
                axes.plot(ts, mean + side * std, "--", color="black", linewidth=1)
        row[0].set_ylabel(names[c])
    for axes, title in zip(panels[0], ("data", "samples of the model"), strict=True):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel("t")
    return figure


def draw_videos(rows: dict[str, Tensor], observed: int) -> Figure:
    """Videos (n, t, h, w) in [0, 1], a row of frames for each of several versions; the frames seen are framed."""
    some = next(iter(rows.values()))
    figure = Figure(figsize=(1 + 0.6 * some.shape[1], 0.7 * len(rows) * len(some)), layout="constrained")
    panels = figure.subplots(len(some) * len(rows), some.shape[1], squeeze=False)
    for number, line in enumerate(panels):
        (title, videos), video = list(rows.items())[number % len(rows)], number // len(rows)
        for t, axes in enumerate(line):
            axes.imshow(videos[video, t].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(visible=t < observed, color="C1", linewidth=2)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    return figure


def draw_relaxation(grid: ndarray, counts: ndarray, dts: ndarray, learned: ndarray) -> Figure:
    """Iterations over the relaxation parameter, and over the time step the best parameters beside the learned ones.

    Args:
        grid: parameters (d).
        counts: iterations (n, d) of systems.
        dts: their time steps (n).
        learned: their learned parameters (n).
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(grid, counts.mean(0), label="one for all systems")
    found = np.array([row[grid == omega][0] for row, omega in zip(counts, learned, strict=True)])
    for values, label, line in ((found, "learned", "C1-"), (counts.min(1), "best for each system", "k:")):
        left.plot(grid[[0, -1]], [values.mean()] * 2, line, label=label)
    left.set(xlabel="omega", ylabel="mean iterations")
    left.legend()
    right.plot(dts, grid[counts.argmin(1)], ".", color="0.6", label="best for each system")
    order = dts.argsort()
    right.plot(dts[order], learned[order], "C1", label="learned")
    right.set(xlabel="time step", ylabel="omega", xscale="log" if dts.min() < dts.max() else "linear")
    right.legend()
    return figure


def draw_convergence(panels: dict[str, dict[str, Tensor]]) -> Figure:
    """Norms of residuals (k) over iterations, relative to the first: a panel for each system, a curve for each name."""
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.5 + 3 * lines), layout="constrained")
    for number, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, number)
        for label, norms in curves.items():
            axes.semilogy(norms / norms[0], label=label)
        axes.set(title=title, xlabel="iteration", ylabel="|r| / |r at start|")
        axes.legend()
    return figure


def draw_forecasts(state: Tensor, later: Tensor, forecasts: Tensor, coordinates: Sequence[Tensor] = ()) -> Figure:
    """A state, the later one, and forecasts of it, with mean and deviation; fields in one or two dimensions.

    Args:
        state: `(*x)`.
        later: `(*x)`.
        forecasts: `(m, *x)`.
        coordinates: the grid along each axis of space; without them the points are numbered.
    """
    grid = coordinates or [torch.arange(size) for size in state.shape]
    mean, std = forecasts.mean(0), forecasts.std(0)
    if len(grid) == 1:
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(grid[0], mean - 2 * std, mean + 2 * std, color="C1", alpha=0.2, label="two deviations")
        axes.plot(grid[0], forecasts[:8].T, color="C1", linewidth=0.6)
        axes.plot(grid[0], mean, color="C1", label="mean of forecasts")
        axes.plot(grid[0], state, color="0.6", label="state")
        axes.plot(grid[0], later, color="black", label="later state")
        axes.set_xlabel("x")
        axes.legend()
        return figure
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = {"state": state, "later state": later, "mean of forecasts": mean, "deviation of forecasts": std}
    panels |= {f"forecast {k + 1}": field for k, field in enumerate(forecasts[:4])}
    limit = later.abs().max()
    for axes, (title, field) in zip(figure.subplots(2, -(-len(panels) // 2)).flat, panels.items(), strict=False):
        limits = {"vmin": 0} if field is std else {"vmin": -limit, "vmax": limit, "cmap": "RdBu_r"}
        image = axes.pcolormesh(*(x.numpy() for x in grid), field.T.numpy(), shading="nearest", **limits)
        axes.set(title=title, aspect="equal", xlabel="x", ylabel="y")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def draw_spectra(fields: dict[str, Tensor]) -> Figure:
    """The mean power of fields (n, *x) on periodic grids by wavenumber, in periods per length, each with its name."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for title, values in fields.items():
        space = tuple(range(1, values.ndim))
        power = torch.fft.fftn(values, dim=space, norm="forward").abs().square().mean(0)
        waves = torch.meshgrid(*(torch.fft.fftfreq(n, 1 / n) for n in power.shape), indexing="ij")
        shell = torch.stack(waves).square().sum(0).sqrt().round().long().flatten()
        sums = torch.zeros(int(shell.max()) + 1, dtype=power.dtype).index_add_(0, shell, power.flatten())
        resolved = slice(1, min(power.shape) // 2)
        axes.loglog(torch.arange(len(sums))[resolved], sums[resolved], label=title)
    top = axes.get_ylim()[1]
    axes.set(xlabel="wavenumber", title="power", ylim=(max(axes.get_ylim()[0], FLOOR * top), top))
    axes.legend()
    return figure
