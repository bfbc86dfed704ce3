"""DETEST, classes A to E: the worst error at the end of 25 problems in units of rtol, and what it took.

float64, joint lanes, eager, atol = rtol / 100, error max |y - exact| / (.01 + |exact|). ``over scipy`` is the largest
ratio of our error to that of scipy's method of the same class, of those problems on which ours exceeds 300 rtol (0: of
none). ``nfe`` are evaluations over all problems, beside torchdiffeq's method of the same name (dopri5 for tsit5) and
scipy's. The picture ``detest.png`` has the evaluations against the median error.
"""

from collections.abc import Callable
from math import log10
from pathlib import Path
from statistics import median

import torch
import torchdiffeq

from tests.solvers.detest import END, PROBLEMS, RTOLS, Outcome, exact, ours, peer
from tests.solvers.stiff import scaled_error

NAMES = {"dopri5": "dopri5", "tsit5": "dopri5", "dopri8": "dopri8", "bosh3": "bosh3"}  # torchdiffeq's
PICTURE = Path(__file__).resolve().parent / "detest.png"


@torch.no_grad()
def with_torchdiffeq(name: str, method: str, rtol: float) -> Outcome:
    problem, count = PROBLEMS[name], 0

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return problem.field(t, y)

    ts = torch.tensor([0.0, END], dtype=torch.float64)
    y = torchdiffeq.odeint(field, problem.y0, ts, rtol=rtol, atol=rtol / 100, method=NAMES[method])[-1]
    return Outcome(scaled_error(y, exact(name)), count)


SOLVERS: dict[str, Callable[[str, str, float], Outcome]] = {
    "ours": ours,
    "torchdiffeq": with_torchdiffeq,
    "scipy": peer,
}


def cases() -> list[str]:
    return [f"{method} rtol {rtol:g}" for method, rtols in RTOLS.items() for rtol in rtols] + ["picture"]


def run(case: str, seed: int) -> dict[str, float | str]:
    if case == "picture":
        return draw()
    method, _, rtol = case.split()
    row, tolerance = {}, float(rtol)
    found = {who: [solver(name, method, tolerance) for name in PROBLEMS] for who, solver in SOLVERS.items()}
    over = [a.error / b.error for a, b in zip(found["ours"], found["scipy"], strict=True) if a.error > 300 * tolerance]
    row["over scipy"] = max(over, default=0.0)
    for who, outcomes in found.items():
        row[f"worst / rtol, {who}"] = max(x.error for x in outcomes) / tolerance
    for who, outcomes in found.items():
        row[f"nfe, {who}"] = str(sum(x.nfe for x in outcomes))
    return row


def draw() -> dict[str, float | str]:
    """Work and precision of every method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    for axes, (method, rtols) in zip(figure.subplots(1, len(RTOLS), sharey=True), RTOLS.items(), strict=True):
        first, last = (round(-2 * log10(rtol)) for rtol in (rtols[0], rtols[-1]))
        ladder = [10 ** (-i / 2) for i in range(first, last + 1)]
        for who, solver in SOLVERS.items():
            points = [[solver(name, method, rtol) for name in PROBLEMS] for rtol in ladder]
            errors = [median(x.error for x in outcomes) for outcomes in points]
            axes.loglog(errors, [sum(x.nfe for x in outcomes) for outcomes in points], "o-", ms=3, label=who)
        axes.set(title=method, xlabel="median error")
    figure.axes[0].set_ylabel("evaluations, 25 problems")
    figure.axes[0].legend()
    figure.savefig(PICTURE, dpi=120)
    return {"picture": PICTURE.name}
