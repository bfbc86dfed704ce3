"""Solving a configuration's problem: its solution as a file, pictures and, where it is known, the error."""

from typing import Any

import h5py
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sciml.data.atomic import replacing
from sciml.data.seeding import generator
from sciml.problems import Problem
from sciml.training.losses import relative_l2
from sciml.training.run_folder import RunFolder

SAVED = 100  # times, beside the start
SAMPLES = 4


def solve_problem(problem: Problem, run: RunFolder, seed: int) -> dict[str, float]:
    """Integrate random initial conditions in float64; writes `solution.h5` and figures.

    Returns:
        The errors against the exact solution, where the problem knows it.
    """
    ts = problem.times(SAVED)
    u0 = problem.initial(SAMPLES, generator(seed, "initial conditions"), torch.float64)
    with torch.no_grad():
        fields = problem.evolve(u0, ts, progress=True)  # (b, t, c, *x)
    exact = problem.exact(u0, ts)
    errors = None if exact is None else (fields - exact).abs().flatten(2).amax(2)  # (b, t)
    with replacing(run.path / "solution.h5") as path, h5py.File(path, "w") as file:
        file["t"], file["fields"] = ts.numpy(), fields.numpy()
        for axis, x in enumerate(problem.coordinates()):
            file[f"x{axis}"] = x.numpy()
        if exact is not None:
            file["exact"] = exact.numpy()
    figures = {"solution": draw_solution(problem, ts, fields[0])}
    if errors is not None:
        figures["error"] = draw_errors(ts, errors)
    for name, figure in figures.items():
        with replacing(run.figures / f"{name}.png") as path:
            figure.savefig(path, format="png", dpi=150)
    if exact is None or errors is None:
        return {}
    final = relative_l2(fields[:, -1], exact[:, -1]).mean()
    return {
        "max_error": errors.max().item(),
        "final_max_error": errors[:, -1].max().item(),
        "final_relative_l2": final.item(),
    }


def draw_solution(problem: Problem, ts: Tensor, fields: Tensor) -> Figure:
    """One solution (t, c, *x): over space and time in one dimension, snapshots in two, curves of a system."""
    space = fields.ndim - 2
    figure = Figure(figsize=(9, 4), layout="constrained")
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
        for axes, i in zip(figure.subplots(1, 4), chosen.tolist(), strict=True):
            axes.imshow(fields[i, 0].T, origin="lower")
            axes.set_title(f"t = {ts[i]:.3g}")
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


def draw_errors(ts: Tensor, errors: Tensor) -> Figure:
    """The largest error of each sample (b, t) over time."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for error in errors:
        axes.semilogy(ts[1:], error[1:])
    axes.set(xlabel="t", ylabel="max |u - exact|")
    return figure
