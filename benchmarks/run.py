"""Run one benchmark and append its rows to RESULTS.md, which nothing else writes.

``benchmarks/bench_<name>.py`` has two functions: ``cases() -> list[str]`` and ``run(case: str, seed: int) -> Row``, the
measures of one case. A row is one case at one commit, with one seed, on one machine. It is written when its case ends,
and a case that has its row is skipped, so that a run that was stopped goes on. Rows of a dirty tree are marked
``+dirty`` and never count as had, since the mark does not say which tree it was.
"""

import argparse
import importlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

Row = dict[str, float | str]
Tables = dict[str, list[dict[str, str]]]  # by benchmark, in the order of the file

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
HEAD = "# Results\n\nWritten by `benchmarks/run.py` (`make bench NAME=...`) only.\n"
PROVENANCE = ("command", "commit", "seed", "machine", "date")
KEY = ("case", "commit", "seed", "machine")


def parse(text: str) -> Tables:
    """The tables of RESULTS.md."""
    tables: Tables = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, *lines = section.splitlines()
        columns, _, *rows = [line[2:-2].split(" | ") for line in lines if line]
        tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]
    return tables


def render(tables: Tables) -> str:
    """RESULTS.md as text; each table has the columns of all its rows."""
    return HEAD + "".join(f"\n## {name}\n\n{_table(rows)}" for name, rows in tables.items())


def _table(rows: list[dict[str, str]]) -> str:
    own = dict.fromkeys(column for row in rows for column in row if column not in PROVENANCE)
    columns = [*own, *PROVENANCE]
    lines = [columns, ["---"] * len(columns), *([row.get(column, "-") for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def append(name: str, row: dict[str, str]) -> None:
    """Add a row to the table of a benchmark; whenever the process dies, the file is the old one or the new one."""
    tables = _read()
    tables.setdefault(name, []).append(row)
    part = RESULTS.with_suffix(".part")
    with part.open("w") as file:
        file.write(render(tables))
        file.flush()
        os.fsync(file.fileno())
    part.replace(RESULTS)


def _read() -> Tables:
    return parse(RESULTS.read_text()) if RESULTS.exists() else {}


def cell(value: float | str) -> str:
    """A value as it stands in a table: one line, floats to four digits, ``|`` escaped as Markdown wants it."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", r"\|")


def commit() -> str:
    """The short hash of HEAD, with ``+dirty`` if anything but RESULTS.md differs from it."""
    short = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--", ":/", f":(exclude){RESULTS}")
    return f"{short}+dirty" if changes else short


def _git(*args: str) -> str:
    return subprocess.check_output(["git", *args], cwd=HERE, text=True).strip()


def machine() -> str:
    """What the figures depend on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    cpu = model[1].strip() if model else platform.processor() or platform.machine()
    parts = [cpu, f"{os.cpu_count()} cores", f"{torch.get_num_threads()} torch threads", f"torch {torch.__version__}"]
    return ", ".join([*parts, torch.cuda.get_device_name()] if torch.cuda.is_available() else parts)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description="Append the rows of one benchmark to RESULTS.md.")
    parser.add_argument("name", choices=names)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--cases", default="", help="only those whose name holds this")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    bench = importlib.import_module(f"bench_{args.name}")
    command = f"`python benchmarks/run.py {args.name} --seed {args.seed} --threads {args.threads}`"
    origin = {"command": command, "commit": commit(), "seed": str(args.seed), "machine": machine()}
    done = [tuple(row[column] for column in KEY) for row in _read().get(args.name, [])]

    for case in (case for case in bench.cases() if args.cases in case):
        row = {"case": cell(case), **origin}
        if not origin["commit"].endswith("+dirty") and tuple(row[column] for column in KEY) in done:
            print(f"{case}: has its row")
            continue
        measures = {cell(name): cell(value) for name, value in bench.run(case, args.seed).items()}
        append(args.name, {**row, **measures, "date": date.today().isoformat()})
        print(f"{case}: {', '.join(f'{name} {value}' for name, value in measures.items())}", flush=True)


if __name__ == "__main__":
    main()
