"""From an object's argument to the key of the configuration that gave it."""

import re
from collections.abc import Iterator
from importlib import import_module
from traceback import walk_tb
from typing import Any

MISSING = object()


def place(config: Any, kind: type, key: str, value: Any = MISSING) -> str | None:
    """The key of a configuration that gave an argument; None where there is no such key, or more than one.

    Args:
        config: keys and values, resolved: with all defaults.
        kind: the class that has the argument.
        key: the argument.
        value: what it is, which decides between several objects of the class.
    """
    found = [key for key, given in placed(config, kind, key) if same(given, value)]
    if not found:
        found = [key for key, _ in placed(config, kind, key)]
    return found[0] if len(found) == 1 else None


def same(given: Any, value: Any) -> bool:
    """Whether an object has what a configuration gave; of arrays made of that it is not known."""
    try:
        return bool(given == value)
    except (RuntimeError, ValueError):
        return False


def placed(config: Any, kind: type, key: str, at: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a configuration that are arguments of a class by that name, and their values."""
    if isinstance(config, list):
        config = dict(enumerate(config))
    if not isinstance(config, dict):
        return
    arguments = config.get("init_args")
    if isinstance(arguments, dict) and key in arguments and is_class(config.get("class_path"), kind):
        value = arguments[key]
        yield f"{at}init_args.{key}", tuple(value) if isinstance(value, list) else value
    for name, value in config.items():
        yield from placed(value, kind, key, f"{at}{name}.")


def is_class(path: Any, kind: type) -> bool:
    """Whether a class path is that of a class."""
    if not isinstance(path, str) or "." not in path:
        return False
    package, _, name = path.rpartition(".")
    return getattr(import_module(package), name, None) is kind


def keyed(error: Exception, config: Any) -> str:
    """An error's message; an argument of an object that a configuration made, with which it begins, gets its key.

    Lightning begins with an argument in backticks; before this stands the key of its object.

    Of the objects whose methods the error went through the innermost one with such an argument counts. Where the
    message names several arguments, "a, b: ...", the key is that of their object. An error that was raised from such a
    one, as jsonargparse does, has the message of that.
    """
    cause: BaseException | None = error
    while cause is not None:
        message = str(cause)
        if found := re.match(r"[a-z]\w*(?:(?:, | \+ )[a-z]\w*)*(?=: )|`[a-z]\w*`(?= )", message):
            names = re.findall(r"\w+", found[0])
            if (owner := owner_of(names, cause, config)) is not None:
                return f"{owner}.{message}" if found[0] == names[0] else f"{owner}: {message}"
        cause = cause.__cause__
    return str(error)


def owner_of(names: list[str], error: BaseException, config: Any) -> str | None:
    """The key under which a configuration gives all these arguments of an object that an error went through."""
    known = [frame.f_locals for frame, _ in walk_tb(error.__traceback__) if "self" in frame.f_locals]
    for variables in reversed(known):
        owner = variables["self"]
        values = [getattr(owner, name, variables.get(name, MISSING)) for name in names]  # in __init__ of its own yet
        places = [place(config, type(owner), name, value) for name, value in zip(names, values, strict=True)]
        if places[0] is not None and None not in places:
            return places[0].removesuffix(f".{names[0]}")
    return None
