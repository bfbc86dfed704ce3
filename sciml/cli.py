"""The command line's front: it reads the command, and imports what is heavy only where a command needs it."""

import argparse
import ast
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sciml.training.config import PACKAGE, UsageError, config_name, examples, find_config, hint
from sciml.training.run_folder import RunFolder

HELP = """
A configuration is a YAML file or the name of an example (`sciml list examples`).
Any of its keys can be given on the command line as well: --trainer.max_epochs 3
"""


def fit(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train from the start, or from where a run stands."""
    configs = args.config or []
    if not configs and any(re.match(r"--[\w.]+\.help(=|$)", word) for word in overrides):
        from sciml.training import trainer_cli

        trainer_cli.print_help(overrides)
    if (not configs) == (args.resume is None):
        raise UsageError("fit: expected --config NAME_OR_PATH for a new run, or --resume RUN to go on with one")
    if args.config is not None and len(args.config) > 1:
        raise UsageError(
            f"fit: expected one --config, got {' and '.join(args.config)}; give what differs by --key value"
        )
    if args.resume is not None:
        if args.run is not None:
            raise UsageError("fit: --resume RUN goes on in RUN itself; leave --run away")
        run = find_run(args.resume)
        from sciml.training import trainer_cli

        return trainer_cli.resume(run, overrides)
    config = find_config(configs[0])
    run = new_run(args.run, config_name(config))
    from sciml.training import trainer_cli

    trainer_cli.fit(config, run, overrides)


def on_run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Run the command's namesake on a trained run."""
    run = find_run(args.run, trained=True)
    from sciml.training import trainer_cli

    getattr(trainer_cli, args.command)(run, overrides)


def predict(args: argparse.Namespace, overrides: list[str]) -> None:
    """Write what a trained run predicts for its test data, or for a file."""
    run = find_run(args.run, trained=True)
    if args.input is not None and not Path(args.input).is_file():
        raise UsageError(f"predict: there is no file {args.input!r} for --input")
    from sciml.training import trainer_cli

    trainer_cli.predict(run, None if args.input is None else Path(args.input), overrides)


def export(args: argparse.Namespace, overrides: list[str]) -> None:
    """Write a trained run's model to a file."""
    run = find_run(args.run, trained=True)
    from sciml.training import trainer_cli

    trainer_cli.export(run, Path(args.output) if args.output else run.path / "model.pt2", overrides)


def solve(args: argparse.Namespace, overrides: list[str]) -> None:
    """Integrate a configuration's problem."""
    config = find_config(args.config)
    run = new_run(args.run, f"{config_name(config)}_solve")
    from sciml.training import trainer_cli

    trainer_cli.solve(config, run, overrides)


def data(args: argparse.Namespace, overrides: list[str]) -> None:
    """Fill the cache with a configuration's data."""
    config = find_config(args.config)
    from sciml.training import trainer_cli

    trainer_cli.generate(config, overrides)


def show_list(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print names with a summary each."""
    lines = []
    for kind in [args.kind] if args.kind else LISTS:
        if not args.kind:
            lines.append(f"{kind}:")
        names = LISTS[kind]()
        width = max(map(len, names), default=0)
        lines += [f"{'' if args.kind else '  '}{name:{width}}  {summary}".rstrip() for name, summary in names.items()]
    tell("\n".join(lines))


def show(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print an example's configuration."""
    tell(find_config(args.name).read_text().rstrip("\n"))


def tell(text: str) -> None:
    """Print to a reader who may have seen enough before the end, as `head` has."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:  # for what is left to be written at exit
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "examples": lambda: {name: first_comment(path) for name, path in examples().items()},
    "steppers": lambda: exported("solvers", "Stepper"),
    "problems": lambda: exported("problems", "Problem", "Equation"),
    "models": lambda: exported("models", "Module", "Sequential"),
    "modules": lambda: exported("training", "TrainingModule"),
}

Argument = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **options: Any) -> Argument:
    """An argument as `ArgumentParser.add_argument` takes it."""
    return names, options


class Command(NamedTuple):
    """A line in the table of commands: what to run, its help, its arguments, and whether it takes `--key value`."""

    run: Callable[[argparse.Namespace, list[str]], None]
    summary: str
    arguments: tuple[Argument, ...]
    overrides: bool = True


CONFIG = argument("config", metavar="NAME_OR_PATH", help="an example or a file")
RUN = argument("run", metavar="RUN", help="run folder")
COMMANDS = {
    "fit": Command(
        fit,
        "Train a configuration, or go on with a run that was interrupted.",
        (
            argument("--config", action="append", metavar="NAME_OR_PATH", help="configuration to train"),
            argument("--run", metavar="DIR", help="run folder (default: runs/NAME/1, or the next free number)"),
            argument("--resume", metavar="RUN", help="go on with this run, from its last checkpoint"),
        ),
    ),
    "validate": Command(on_run, "Print a run's metrics on the validation data.", (RUN,)),
    "test": Command(on_run, "Print a run's metrics on the test data.", (RUN,)),
    "predict": Command(
        predict,
        "Write a run's predictions for the test data, or for all samples of a file, to RUN/predictions.h5.",
        (
            RUN,
            argument(
                "--input",
                metavar="FILE",
                help="fields or trajectories to predict for instead, into RUN/predictions_NAME.h5 of the file's name",
            ),
        ),
    ),
    "plot": Command(on_run, "Draw a run's figures into RUN/figures.", (RUN,)),
    "export": Command(
        export,
        "Write a run's model to a file that torch.export.load reads, without sciml.",
        (RUN, argument("-o", "--output", metavar="FILE", help="file to write (default: RUN/model.pt2)")),
    ),
    "solve": Command(
        solve,
        "Integrate a configuration's problem; writes the solution, figures and errors into a folder.",
        (
            CONFIG,
            argument("--run", metavar="DIR", help="folder (default: runs/NAME_solve/1, or the next free number)"),
        ),
    ),
    "data": Command(
        data,
        "Fill the cache with a configuration's data.",
        (argument("action", choices=["generate"], help="what to do"), CONFIG),
    ),
    "list": Command(
        show_list,
        "List the examples, steppers, problems, models and training modules that there are.",
        (argument("kind", nargs="?", choices=list(LISTS), help="which (default: all)"),),
        overrides=False,
    ),
    "show": Command(
        show,
        "Print an example's configuration: a complete one to start from.",
        (argument("name", metavar="NAME", help="an example"),),
        overrides=False,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 for a mistake in the command or the configuration."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "--help=all" in argv:
            from sciml.training import trainer_cli

            trainer_cli.print_help(["--help"])
        args, overrides = parser().parse_known_args(argv)
        command = COMMANDS[args.command]
        if overrides and not command.overrides:
            raise UsageError(f"{args.command}: unexpected {' '.join(overrides)}")
        command.run(args, overrides)
    except UsageError as error:
        print(f"sciml: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and reports a mistake as a `UsageError`."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints in one line."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", found[2])
            message = f"no {found[1]!r}{hint(found[1], choices)}"
        raise UsageError(f"{self.prog.removeprefix('sciml').strip()}: {message}".removeprefix(": "))


def parser() -> Parser:
    """The parser of all commands."""
    main_parser = Parser(prog="sciml", description="Scientific machine learning: solve, train, evaluate.", epilog=HELP)
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        epilog = (
            HELP + "All keys: sciml fit --help=all\nThose of a class: sciml fit --model.help CLASS\n"
            if command.overrides
            else None
        )
        sub = commands.add_parser(name, help=command.summary, description=command.summary, epilog=epilog)
        for names, options in command.arguments:
            sub.add_argument(*names, **options)
    return main_parser


def new_run(path: str | None, name: str) -> RunFolder:
    """The folder asked for, or the next free one; Lightning starts this program again for each further device."""
    if path is not None:
        run = RunFolder(path)
        if run.last.is_file():
            raise UsageError(f"{path} holds a run already; go on with it by `sciml fit --resume {path}`")
        return run
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ["SCIML_RUN"] = str(RunFolder.next(name).path)
    return RunFolder(os.environ["SCIML_RUN"])


def find_run(path: str, trained: bool = False) -> RunFolder:
    """An existing run folder; with `trained` one that has a checkpoint."""
    run = RunFolder(path)
    if not run.configs:
        runs = [str(config.parent) for config in Path("runs").glob("*/*/config.yaml")]
        raise UsageError(f"no run folder {path!r}: it has no config.yaml{hint(path, runs)}")
    if trained and not run.checkpoint.is_file():
        raise UsageError(f"{path} has no checkpoint yet; train it by `sciml fit --resume {path}`")
    return run


def exported(package: str, *bases: str) -> dict[str, str]:
    """The public classes of a subpackage that derive from one of these, each with its docstring's first line.

    They are read from the source: importing their modules would import torch, which takes longer than a list may.
    """
    folder = PACKAGE / package
    classes = {
        node.name: node
        for path in sorted(folder.glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }

    def derives(name: str) -> bool:
        parents = [ast.unparse(node).rpartition(".")[2] for node in classes[name].bases]
        return any(parent in bases or (parent in classes and parent != name and derives(parent)) for parent in parents)

    public = import_module(f"sciml.{package}").__all__
    return {
        name: (ast.get_docstring(node) or "").partition("\n")[0]
        for name, node in classes.items()
        if name in public and derives(name)
    }


def first_comment(path: Path) -> str:
    """The comment that a configuration starts with."""
    line = path.read_text().partition("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""
