"""From jsonargparse's nested account of a mistake in a configuration to one line that names the nearest right word."""

import re
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from sysconfig import get_path
from textwrap import shorten
from traceback import extract_tb

import lightning.pytorch.callbacks
import lightning.pytorch.loops
from jsonargparse import ArgumentError, ArgumentParser

from sciml.errors import SolveError
from sciml.training.config import PACKAGE, hint

TRAINER = [Path(package.__file__).parent for package in (lightning.pytorch.loops, lightning.pytorch.callbacks)]
OTHER_FORMS = re.compile(
    r"- Not a valid subclass of \w+\n\s*Subclass types expect one of:(?:\n\s*- a (?:class|dict).*)+"
)
OTHER_CLASS = re.compile(r"- Import path ([\w.]+) does not correspond to a subclass of (\w+)")
NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'|No (sciml[\w.]*) attribute (\w+)")
HOMES = (  # of the classes that configurations name most
    *(f"sciml.{name}" for name in ("data", "models", "problems", "solvers", "training")),
    *("torch.optim", "torch.optim.lr_scheduler", "lightning.pytorch.callbacks"),
)
SHOWN, WIDTH = 2, 200  # lines of a long account of weights, and characters of each
ELSEWHERE = {"optimizer": "optimizer", "scheduler": "scheduler", "lr_scheduler": "scheduler"}  # in Lightning's own CLI
EXTRAS = {"pytorch_optimizer": "optim"}  # packages that configurations may name, by the extra that brings them


def innermost(message: str) -> str:
    """What is said of the innermost key: lines that are further in than it, as other forms of outer ones follow."""
    before, _, rest = message.rpartition("Parser key ")
    margin = len(before) - len(before.rstrip(" "))
    first, *lines = rest.splitlines()
    said = takewhile(lambda line: not line.strip() or len(line) - len(line.lstrip()) > margin, lines)
    return "\n".join([first, *said])


def explain(message: str, parser: ArgumentParser) -> str:
    """Say in one line what is wrong, and where.

    jsonargparse reports a mistake once per level of nesting, with all alternatives of a union type and the whole value;
    the innermost level says what is wrong. A message of another form is returned as it is, without line breaks.
    """
    place = ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    where = f"{place}: " if place else ""
    inner = OTHER_FORMS.sub("", message.rpartition("Parser key ")[2])
    if not OTHER_CLASS.search(innermost(message)):
        inner = OTHER_CLASS.sub("", inner)
    if found := re.search(r"(?:[Oo]ption '|unrecognized arguments: --)([\w.]+)", inner):
        return unknown_key(found[1], inner, place, parser)
    if found := NO_ATTRIBUTE.search(inner):
        module, name = filter(None, found.groups())
        return f"{where}{module} has no {name!r}{hint(name, public(module))}"
    if found := re.search(r"No module named '([\w.]+)'", inner):
        if found[1] in EXTRAS:
            return f'{where}{found[1]} is not installed: pip install "sciml-torch[{EXTRAS[found[1]]}]" brings it'
        return f"{where}no module {found[1]!r}; own modules are found in the configuration's folder and in this one"
    if found := re.search(r"instantiatable class, but ([\w.]+) is abstract", inner):
        module, _, name = found[1].rpartition(".")
        missing = sorted(getattr(getattr(import_module(module), name), "__abstractmethods__", ()))
        return f"{where}{name} cannot be made: it has to define {', '.join(missing) or 'what its base leaves open'}"
    if found := re.search(r"arguments are required: ([\w., ]+)", inner):
        return f"{where}missing {found[1]}"
    if found := OTHER_CLASS.search(inner):
        return f"{where}expected a {found[2]}, got {found[1]}"
    if found := re.search(r"Expected a dot import path string: (.+)", inner):
        return where + no_class(found[1], inner)
    if found := re.search(r"^ *- (?!Does not validate|Expected a|Problem with)(.+)", inner, re.MULTILINE):
        return where + found[1]  # what a class itself says
    if found := re.search(r"Problem with given class_path '[\w.]+':\s+(?!Parser key)(.+)", inner):
        return where + found[1]  # likewise
    if found := re.search(r"(Expected a .*?)(?:Got|Given) value(?: type)?: (.*)", inner, re.DOTALL):
        choices = re.findall(r"<class '(\w+)'>|Literal\[(.+?)\]", found[1])
        types = [name.removesuffix("Type") or words.replace(", ", " or ") for name, words in choices]
        value = re.search(r"(?:Got|Given) value: (.*)", inner)
        if types and value:
            return f"{where}expected {' or '.join(types)}, got {value[1]!r}"
    return where + " ".join(inner.split())


def no_class(word: str, message: str) -> str:
    """What is wrong with a word that names no class where a class may stand, or a plain value."""
    if plain := re.findall(r"Expected a <class '(?!NoneType)(\w+)'>", message):
        return f"expected {' or '.join(dict.fromkeys(plain))}, got {word!r}"
    known = {name for home in HOMES for name in public(home) if name[0].isupper()}
    near = "" if word in known else hint(word, known)
    return f"expected a class with its module, as torch.nn.Tanh, got {word!r}{near}"


def public(module: str) -> list[str]:
    """The names that a module shows."""
    found = import_module(module)
    return [name for name in {*dir(found), *getattr(found, "__all__", ())} if not name.startswith("_")]


def is_own(error: Exception, code_path: str | None) -> bool:
    """Whether an error is the library's word on what it was given: an argument's name and a remedy, or a solve's end.

    Where it went through code of the user's own, which may be what is wrong, its traceback is wanted.
    """
    files = traced(error)
    if not files or not files[-1].is_relative_to(PACKAGE) or is_users(files, code_path):
        return False
    return isinstance(error, SolveError) or re.match(r"[a-z][\w.]*(?:(?:, | \+ )[a-z]\w*)*: ", str(error)) is not None


def slip(error: BaseException, code_path: str | None) -> BaseException | None:
    """What went wrong in the user's own code when jsonargparse called it; None where that is not why it gave up.

    A ValueError is what a class says of its arguments, and no slip.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    found = not isinstance(error, ValueError | ArgumentError | ImportError) and is_users(traced(error), code_path)
    return error if found else None


def traced(error: BaseException) -> list[Path]:
    """The files that an error passed through, that of its origin last."""
    return [Path(summary.filename) for summary in extract_tb(error.__traceback__)]


def is_users(files: list[Path], code_path: str | None) -> bool:
    """Whether any of some files is the user's own."""
    users = [Path.cwd(), *([Path(code_path).resolve()] if code_path else [])]
    installed = [PACKAGE, *(Path(get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    return any(
        any(file.is_relative_to(folder) for folder in users)
        and not any(file.is_relative_to(folder) for folder in installed)
        for file in files
    )


def is_trainers(error: Exception) -> bool:
    """Whether an error is Lightning's word on settings of the trainer, or of a callback, that do not fit the rest."""
    files = traced(error)
    plain = isinstance(error, ValueError | RuntimeError)
    return plain and bool(files) and any(files[-1].is_relative_to(folder) for folder in TRAINER)


def other_weights(error: Exception) -> str | None:
    """What torch says of a checkpoint of another model or optimiser, in one line; None of another error."""
    first, *rest = str(error).splitlines() or [""]
    if not first.startswith(("Error(s) in loading state_dict", "loaded state dict")):
        return None
    told = "; ".join(shorten(line, WIDTH) for line in (rest or [first])[:SHOWN])
    more = f"; and {len(rest) - SHOWN} more" if len(rest) > SHOWN else ""
    return f"model: the checkpoint is of another one: {told}{more}. Another model needs a run of its own"


def unknown_key(key: str, message: str, place: str, parser: ArgumentParser) -> str:
    """The message about a key that nothing accepts."""
    if found := re.search(r"class_path[ =]'([\w.]+)'", message):
        module, _, name = found[1].rpartition(".")
        choices = ArgumentParser().add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
        return f"{place}.{key}: {name} has no such key{hint(key, choices)}"
    group = re.search(r"Group '(\w+)'", message)
    full = f"{group[1]}.{key}" if group else key
    known = list(parser.get_defaults().keys())
    tops = {name.partition(".")[0] for name in known}
    first = full.partition(".")[0]
    if first in ELSEWHERE:
        return f"{first}: there is no such key; it is one of the model: 'model.init_args.{ELSEWHERE[first]}'"
    if not hint(full, known) and first not in tops:
        return f"{first}: there is no such key{hint(first, tops)}"
    return f"{full}: there is no such key{hint(full, known)}"
