"""Metrics as a table that a resumed run goes on with."""

import csv
import time
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from sciml.data.atomic import replacing


class MetricsLogger(Logger):
    """Logs to a CSV file: `epoch`, `step` (from 0), `seconds` and a column for each metric, empty if it was not logged.

    The seconds are those since the run began, behind its set-up, validation and compilation included; a resumed run
    counts on from its last row, without what came between that and the checkpoint.

    A row is appended in one write; a new column rewrites the file, in one step. A file that is already there is
    replaced with the first row, unless `rewind` keeps a part of it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        self._began: float | None = None

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.path.stem

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    def rows(self) -> list[dict[str, str]]:
        """The rows of the file; a last line that was cut off is left out."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(line for line in file if line.endswith("\n")))

    @rank_zero_only
    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock: Lightning calls this right before its loops."""
        self._elapsed()

    def _elapsed(self) -> float:
        """Seconds since the run began, which it does when this is called first."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        return now - self._began

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        place = {"epoch": metrics.get("epoch"), "step": step, "seconds": f"{self._elapsed():.3f}"}
        row: dict[str, Any] = {**place, **metrics}
        if new := [name for name in row if name not in self._columns]:
            kept = self.rows() if self._columns else []
            self._columns += new
            self._write([*kept, row])
            return
        with self.path.open("a", newline="") as file:
            self._writer(file).writerow(row)

    @rank_zero_only
    def rewind(self, step: float) -> None:
        """Keep the file's rows before this step, and go on behind them."""
        if rows := self.rows():
            self._columns = list(rows[0])
            kept = [row for row in rows if int(row["step"]) < step]
            last = kept[-1].get("seconds") if kept else None  # an older version wrote none
            self._began = time.monotonic() - float(last or 0.0)
            self._write(kept)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in the run's config.yaml."""

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with replacing(self.path) as path, path.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: TextIO) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns, lineterminator="\n")
