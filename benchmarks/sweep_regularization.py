"""What weights of regularisers cost and save, on a part of the training data that is held out, as a picture.

``python benchmarks/sweep_regularization.py [TASK]`` trains every case of `bench_regularization` with its weight times
each of some factors, seeds 100 and on, prints means of accuracy, evaluations and seconds of training, and draws
``regularization_TASK.png``: accuracy against evaluations, a line for each regulariser. The test part is not looked at.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from bench_regularization import METHODS, TASKS, judge, train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
PLAIN = "unregularised"
Curve = list[tuple[float, float, float, float]]  # factor, accuracy in %, evaluations, seconds


def swept(task: str, seeds: list[int]) -> dict[str, Curve]:
    """The curves of every method that has a weight."""
    jobs = [(PLAIN, 1.0), *((name, factor) for name in METHODS if name not in (PLAIN, "STEER") for factor in FACTORS)]
    curves = defaultdict(list)
    for name, factor in tqdm(jobs):
        rows = []
        for seed in seeds:
            trained = train(task, METHODS[name], name, seed, factor, validation=True)
            found = judge(task, trained, validation=True)
            rows.append((found["accuracy %"], found["NFE"], trained.cpu))
        accuracy, nfe, cpu = np.mean(rows, axis=0)
        curves[name].append((factor, accuracy, nfe, cpu))
        tqdm.write(f"{name}, {factor:g}: accuracy {accuracy:.2f} %, NFE {nfe:.1f}, training {cpu:.1f} s")
    return curves


def draw(curves: dict[str, Curve], file: Path) -> None:
    """Accuracy against evaluations."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, curve in curves.items():
        _, accuracy, nfe, _ = np.array(curve).T
        axes.plot(nfe, accuracy, "k*" if name == PLAIN else ".-", ms=12 if name == PLAIN else 6, label=name)
    axes.set(xlabel="evaluations per prediction", ylabel="accuracy on held-out training data, %")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Sweep and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="digits", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    curves = swept(given.task, list(range(100, 100 + given.seeds)))
    draw(curves, Path(__file__).with_name(f"regularization_{given.task}.png"))


if __name__ == "__main__":
    main()
