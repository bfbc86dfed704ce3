"""The folder that holds everything about one training run."""

import os
from pathlib import Path

from sciml.data.atomic import replacing


class RunFolder:
    """Names for the files of a run.

    ```
    config.yaml            the resolved configuration; config.resume1.yaml, ... of each time the run was resumed
    metrics.csv            one row per logged step
    checkpoints/last.ckpt  from which training goes on; best.ckpt has the best validation metric
    figures/               pictures
    predictions.h5         what `sciml predict` writes; predictions_NAME.h5 for the file NAME
    ```

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.metrics = self.path / "metrics.csv"
        self.figures = self.path / "figures"
        self.predictions = self.path / "predictions.h5"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "checkpoints" / "best.ckpt"

    @classmethod
    def next(cls, name: str, parent: str | os.PathLike[str] = "runs") -> "RunFolder":
        """The next free one of `parent/name/1`, `parent/name/2`, ..."""
        folder = Path(parent) / name
        taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        return cls(folder / str(max(taken, default=0) + 1))

    @property
    def configs(self) -> list[Path]:
        """The configurations of the first start and of every resumption, oldest first."""
        first = self.path / "config.yaml"
        resumed = []
        while (path := self.path / f"config.resume{len(resumed) + 1}.yaml").is_file():
            resumed.append(path)
        return [first, *resumed] if first.is_file() else []

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to evaluate: the best one, or the last where none was better than another."""
        return self.best if self.best.is_file() else self.last

    def write_config(self, text: str, resumed: bool = False) -> Path:
        """Record a resolved configuration, beside those already there if the run is resumed; where it is."""
        name = f"config.resume{len(self.configs)}.yaml" if resumed and self.configs else "config.yaml"
        with replacing(self.path / name) as path:
            path.write_text(text)
        return self.path / name
