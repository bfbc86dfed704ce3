"""CPU time of what a user waits for before anything happens: help, lists, and importing the solver beside torch."""

import resource
import subprocess
import sys
from statistics import median

REPEATS = 7
COMMANDS = {
    "sciml --help": ("-m", "sciml", "--help"),
    "sciml list": ("-m", "sciml", "list"),
    "sciml fit --help": ("-m", "sciml", "fit", "--help"),
    "import of solve, Solver, Tsit5": ("-c", "from sciml import solve, Solver, Tsit5"),
    "import of torch": ("-c", "import torch"),
}


def cases() -> list[str]:
    return list(COMMANDS)


def run(case: str, seed: int) -> dict[str, float | str]:
    own = median(seconds(COMMANDS[case]) for _ in range(REPEATS))
    torch = median(seconds(COMMANDS["import of torch"]) for _ in range(REPEATS))
    return {"CPU s": own, "of import torch": own / torch}


def seconds(arguments: tuple[str, ...]) -> float:
    """CPU time of a Python process, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
