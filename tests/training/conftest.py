import signal
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sciml.cli import main

TINY = Path(__file__).parent / "tiny" / "config.yaml"


def unpainted(figure, path, **options):
    """In the place of `Figure.savefig`: an empty file."""
    Path(path).touch()


@pytest.fixture
def sciml(tmp_path, monkeypatch, capsys):
    """The command line in this process, in an empty folder; returns what a command printed.

    An argument `code=` says which exit code to expect. What a command changes in this process is put back. At the end
    of a fit, figures are made but not painted, which would take half of its time; `plot` paints them.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "SCIML_RUN"):
        monkeypatch.setenv(name, "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments, code=0):
        capsys.readouterr()
        with monkeypatch.context() as patched:
            if arguments[0] == "fit":
                patched.setattr(Figure, "savefig", unpainted)
            try:
                got = main([str(argument) for argument in arguments])
            except SystemExit as stop:
                got = stop.code
        output = capsys.readouterr()
        assert got == code, output.err
        return output.err if code == 2 else output.out

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def fit(sciml):
    """Trains the tiny configuration, or another one, into a folder, without a progress bar."""

    def run(folder, *overrides, config=TINY, code=0):
        quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
        return sciml("fit", "--config", config, "--run", folder, *quiet, *overrides, code=code)

    return run
