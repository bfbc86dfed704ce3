"""From a name or a path to a configuration, and from a mistake in it to one readable line."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


class UsageError(Exception):
    """A mistake in what was asked for; the CLI prints it as one line and exits with code 2."""


def examples() -> dict[str, Path]:
    """The configurations that come with the package, by name.

    The wheel carries them as `sciml/examples`; in a checkout they are the folder `examples` at the root.
    """
    packaged = PACKAGE / "examples"
    folder = packaged if packaged.is_dir() else PACKAGE.parent / "examples"
    return {path.parent.name: path for path in sorted(folder.glob("*/config.yaml"))}


def find_config(name_or_path: str) -> Path:
    """The configuration file meant by a path or by the name of an example; a path goes before a name.

    Raises:
        UsageError: there is neither; the message names the nearest example.
    """
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.yaml"
    if path.is_file():
        return path
    known = examples()
    if name_or_path not in known:
        raise UsageError(f"no configuration {name_or_path!r}: it is neither a file nor {among(name_or_path, known)}")
    return known[name_or_path]


def config_name(path: Path) -> str:
    """What runs of a configuration are called: the file's name, or the folder's where that is `config.yaml`."""
    return path.stem if path.stem != "config" else path.resolve().parent.name


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a mistyped word most likely meant."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return matches[0] if matches else None


def among(word: str, choices: Iterable[str]) -> str:
    """The end of a message about a word that is none of the choices."""
    choices = list(choices)
    if guess := nearest(word, choices):
        return f"one of {len(choices)} known names; did you mean {guess!r}?"
    return f"one of {', '.join(sorted(choices)) or '(none)'}"
