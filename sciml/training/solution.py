"""Solving a configuration's problem: its solution as a file, pictures and, where it is known, the error."""

import math
from typing import Any

import h5py
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from sciml.data.atomic import replacing
from sciml.data.seeding import generator
from sciml.problems import Problem
from sciml.problems.problem import Curves
from sciml.training.losses import relative_l2
from sciml.training.run_folder import RunFolder

SAVED = 100  # times, beside the start
SAMPLES = 4
FRAMES = 51


def solve_problem(problem: Problem, run: RunFolder, seed: int) -> dict[str, float]:
    """Integrate random initial conditions in float64; writes `solution.h5` and figures.

    The figures show the first sample: the fields, in two dimensions an animation too, and the problem's `curves`.

    Returns:
        The problem's `residuals`, and the errors against the exact solution, where the problem knows it.
    """
    ts = problem.times(SAVED)
    u0 = problem.start(SAMPLES, generator(seed, "initial conditions"), torch.float64)
    with torch.no_grad():
        fields = problem.evolve(u0, ts, progress=True)  # (b, t, c, *x)
    exact = problem.exact(u0, ts)
    errors = None if exact is None else (fields - exact).abs().flatten(2).amax(2)  # (b, t)
    with replacing(run.path / "solution.h5") as path, h5py.File(path, "w") as file:
        file["t"], file["fields"] = ts.numpy(), fields.numpy()
        for axis, x in enumerate(problem.coordinates()):
            file[f"x{axis}"] = x.numpy()
        if (points := problem.mesh_points()) is not None:
            file["points"] = points.numpy()
        if exact is not None:
            file["exact"] = exact.numpy()
    figures = {"solution": draw_solution(problem, ts, fields[0])}
    figures |= {name: draw_curves(curves) for name, curves in problem.curves(ts, fields[0]).items()}
    if errors is not None:
        figures["error"] = draw_errors(ts, errors)
    for name, figure in figures.items():
        with replacing(run.figures / f"{name}.png") as path:
            figure.savefig(path, format="png", dpi=150)
    if fields.ndim == 5:
        with replacing(run.figures / "solution.gif") as path:
            animate(problem, ts, fields[0]).save(path, PillowWriter(fps=10))
    residuals = problem.residuals(ts, fields)
    if exact is None or errors is None:
        return residuals
    final = relative_l2(fields[:, -1], exact[:, -1]).mean()
    return residuals | {
        "max_error": errors.max().item(),
        "final_max_error": errors[:, -1].max().item(),
        "final_relative_l2": final.item(),
    }


def draw_solution(problem: Problem, ts: Tensor, fields: Tensor) -> Figure:
    """One solution (t, c, *x): over space and time in one dimension, snapshots in two, curves of a system."""
    points = problem.mesh_points()
    space = fields.ndim - 2 if points is None else points.shape[1]
    figure = Figure(figsize=(9, 4 if space < 2 else 2.8), layout="constrained")
    if space == 0:
        axes = figure.subplots()
        for name, curve in zip(problem.channels, fields.unbind(1), strict=True):
            axes.plot(ts, curve, label=name)
        axes.set_xlabel("t")
        axes.legend()
    elif space == 1:
        _draw_line(figure, problem, ts, fields[:, 0])
    else:
        chosen = torch.linspace(0, len(ts) - 1, 4).long()
        limit = fields[:, 0].abs().max().item()
        panels = figure.subplots(1, 4, sharey=True)
        for axes, i in zip(panels, chosen.tolist(), strict=True):
            image = _draw_plane(axes, problem, fields[i, 0], limit)
            axes.set(title=f"t = {ts[i]:.3g}", xlabel="x")
        panels[0].set_ylabel("y")
        figure.colorbar(image, ax=panels, label=problem.channels[0], shrink=0.6)
    return figure


def _draw_line(figure: Any, problem: Problem, ts: Tensor, field: Tensor) -> None:
    (x,) = problem.coordinates()
    left, right = figure.subplots(1, 2)
    image = left.pcolormesh(x.numpy(), ts.numpy(), field.numpy(), shading="nearest", cmap="RdBu_r")
    left.set(xlabel="x", ylabel="t")
    figure.colorbar(image, ax=left, label=problem.channels[0])
    for i in torch.linspace(0, len(ts) - 1, 5).long().tolist():
        right.plot(x, field[i], label=f"t = {ts[i]:.3g}")
    right.set(xlabel="x", ylabel=problem.channels[0])
    right.legend()


def _around(points: Tensor) -> tuple[float, float]:
    """The ends of cells: around points in the middle of those from 0 on, else from points at their beginning on."""
    first, width = points[0].item(), (points[1] - points[0]).item()
    start = 0.0 if math.isclose(first, width / 2, rel_tol=1e-5) else first
    return start, start + width * len(points)


def _draw_plane(axes: Any, problem: Problem, field: Tensor, limit: float) -> Any:
    """A field (x, y), of (x, y, z) the middle plane, or (n) on a mesh, with colours from -limit to limit."""
    if (points := problem.mesh_points()) is not None:
        return _draw_mesh(axes, points, field, limit)
    x, y, *_ = problem.coordinates()
    field = field if field.ndim == 2 else field[..., field.shape[2] // 2]
    extent = tuple(end for a in (x, y) for end in _around(a))
    return axes.imshow(field.T.numpy(), origin="lower", extent=extent, cmap="RdBu_r", vmin=-limit, vmax=limit)


def _draw_mesh(axes: Any, points: Tensor, field: Tensor, limit: float) -> Any:
    """A field (n) on points (n, d); in three dimensions of those near the middle plane."""
    if points.shape[1] == 3:
        near = (points[:, 2] - 0.5).abs() < len(points) ** (-1 / 3)
        points, field = points[near], field[near]
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    x, y = points[:, :2].unbind(1)
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    if len(points) < 3:  # no triangle
        return axes.scatter(x, y, c=field, **colours)
    return axes.tripcolor(x, y, field, shading="gouraud", **colours)


def animate(problem: Problem, ts: Tensor, fields: Tensor) -> FuncAnimation:
    """The first component of a solution (t, c, x, y)."""
    figure = Figure(figsize=(2.4, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    chosen = torch.linspace(0, len(ts) - 1, min(FRAMES, len(ts))).long().tolist()
    image = _draw_plane(axes, problem, fields[0, 0], fields[:, 0].abs().max().item())

    def show(i: int) -> list[Any]:
        image.set_data(fields[i, 0].T.numpy())
        return [image, axes.set_title(f"t = {ts[i]:.3g}")]

    return FuncAnimation(figure, show, frames=chosen)


def draw_curves(drawn: Curves) -> Figure:
    """Curves over one axis; on logarithmic axes those are left out that are not positive somewhere."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in drawn.curves.items():
        if not drawn.log or bool((curve > 0).all()):
            axes.plot(drawn.x, curve, label=name)
    if drawn.log:
        axes.set(xscale="log", yscale="log")
    axes.set_xlabel(drawn.xlabel)
    axes.legend()
    return figure


def draw_errors(ts: Tensor, errors: Tensor) -> Figure:
    """The largest error of each sample (b, t) over time."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for error in errors:
        axes.semilogy(ts[1:], error[1:])
    axes.set(xlabel="t", ylabel="max |u - exact|")
    return figure
