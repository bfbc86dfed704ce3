"""The picture of `bench_acceleration`: iterations over the k that the baseline of meta-learning was trained for.

``python benchmarks/draw_acceleration.py`` reads the last row of every case and seed in RESULTS.md and draws
``acceleration.png``: a panel for each family and kind, means over the seeds with their range.
"""

from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from run import RESULTS, parse

PREFIX = "residual after "
BESIDE = {
    "iterations": ("trained on the number of iterations", "C3-"),
    "Young 60": ("Young's omega, 58 products more", "C2--"),
    "best fixed": ("best single omega", "k:"),
    "last": ("last solution", "k:"),
    "projection": ("projection, 3 products more", "C2--"),
}
Panels = dict[str, dict[str, dict[str, float]]]  # family and kind, method, seed: iterations


def rows() -> Panels:
    """The numbers of iterations."""
    found: Panels = defaultdict(lambda: defaultdict(dict))
    for row in parse(RESULTS.read_text()).get("acceleration", []):
        family, kind, method = row["case"].split(", ", 2)
        found[f"{family}, {kind}"][method][row["seed"]] = float(row["iterations"])
    return found


def draw(axes: Axes, methods: dict[str, dict[str, float]]) -> None:
    """One panel."""
    found = [name.removeprefix(PREFIX) for name in methods if name.startswith(PREFIX)]
    ks = sorted(int(k) for k in found if k.isdigit())  # of equally many steps
    counts = [list(methods[f"{PREFIX}{k}"].values()) for k in ks]
    mean = np.array([np.mean(c) for c in counts])
    spread = [mean - [min(c) for c in counts], [max(c) for c in counts] - mean]
    axes.errorbar(
        range(len(ks)), mean, spread, fmt="C0.-", capsize=3, label="trained on the residual after k iterations"
    )
    for name, (label, line) in BESIDE.items():
        if name in methods:
            values = list(methods[name].values())
            axes.plot([0, len(ks) - 1], [np.mean(values)] * 2, line, label=label)
            axes.axhspan(min(values), max(values), color=line[:2] if line[0] == "C" else "k", alpha=0.1, linewidth=0)
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
    axes.set(xlabel="k", ylabel="iterations to 1e-4, held-out systems")
    if max(mean) > 4 * min(mean):
        axes.set_yscale("log")
    axes.legend(fontsize=7, frameon=False)


def main() -> None:
    """Draw."""
    panels = rows()
    if not panels:
        raise SystemExit("RESULTS.md has no rows of acceleration; make them with: make bench NAME=acceleration")
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(10, 3.6 * lines), layout="constrained", squeeze=False)
    for ax, (name, methods) in zip(axes.flat, panels.items(), strict=False):
        draw(ax, methods)
        ax.set_title(name, fontsize=10)
    figure.savefig(Path(__file__).with_name("acceleration.png"), dpi=110)


if __name__ == "__main__":
    main()
