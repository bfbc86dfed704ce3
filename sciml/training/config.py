"""From a name or a path to a configuration, and from a mistake in it to one readable line."""

import difflib
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
        raise UsageError(f"no file and no example {name_or_path!r}{hint(name_or_path, known)}")
    return known[name_or_path]


def config_name(path: Path) -> str:
    """What runs of a configuration are called: the file's name, or the folder's where that is `config.yaml`."""
    return path.stem if path.stem != "config" else path.resolve().parent.name


def hint(word: str, choices: Iterable[str]) -> str:
    """What a message about an unknown word ends with: the word most likely meant, or all if they are few."""
    choices = sorted(choices)
    if near := difflib.get_close_matches(word, choices, n=1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    return f"; there is {', '.join(choices)}" if 0 < len(choices) <= 20 else ""
