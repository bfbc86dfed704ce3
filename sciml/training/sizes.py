"""From torch's account of sizes that do not fit to the argument that gives them, what it is and what would be right."""

import re
from collections.abc import Callable, Iterator
from functools import wraps
from types import FrameType
from typing import Any

from torch import Tensor, nn

TAKES = {"in_features": -1, "in_channels": 1, "input_size": -1}  # attributes, and the input's axis they mean
ABOUT_SIZES = re.compile("shape|size|channel|dimension|expected")
STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class SizeError(ValueError):
    """A model and the data do not fit together.

    Args:
        owner: the module whose argument is wrong.
        where: its name within what is trained.
        key: the argument.
        message: what was expected, and got.
    """

    def __init__(self, owner: nn.Module, where: str, key: str, message: str):
        super().__init__(f"{where}.{key}: {message} (of {type(owner).__name__})")
        self.owner, self.key, self.message = owner, key, message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a plain error: a module may not cross process borders."""
        return ValueError, (str(self),)


def told(step: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a module that raises a `SizeError` where the sizes of a net and its input do not fit."""

    @wraps(step)
    def wrapped(self: nn.Module, *args: Any, **options: Any) -> Any:
        try:
            return step(self, *args, **options)
        except (RuntimeError, ValueError) as error:
            if (found := misfit(error, self)) is None:
                raise
            raise found from error

    return wrapped


def misfit(error: Exception, root: nn.Module) -> SizeError | None:
    """What the modules that an error passed through say of their inputs and outputs, the outermost first.

    A module says what it takes by the attributes `in_features`, `in_channels` or `input_size`, with `modes` how many
    axes of space, and what it gives by `out_features` or `out_channels`; or it raises itself a `ValueError` that begins
    with the name of such an attribute and a colon.

    Args:
        error: as caught, with its traceback.
        root: what was called; modules are named from it.

    Returns:
        The error to raise instead; None where all sizes fit.
    """
    if isinstance(error, SizeError) or not ABOUT_SIZES.search(str(error)):
        return None
    names = {module: name for name, module in root.named_modules() if name}
    passed = [frame for frame in frames(error) if isinstance(frame.f_locals.get("self"), nn.Module)]
    for frame in passed:
        module, given = frame.f_locals["self"], first_tensor(frame)
        if module not in names or given is None or frame.f_code.co_name != "forward":
            continue
        if (wrong := wrong_input(module, given)) is not None:
            return SizeError(module, names[module], *wrong)
    key, colon, message = str(error).partition(": ")
    if colon and passed and (module := passed[-1].f_locals["self"]) in names and key in vars(module):
        return SizeError(module, names[module], key, message)
    return wrong_output(str(error), root)


def frames(error: Exception) -> Iterator[FrameType]:
    """Those that an error passed through, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def first_tensor(frame: FrameType) -> Tensor | None:
    """The first tensor among the arguments of a method's call."""
    code, values = frame.f_code, frame.f_locals
    arguments = (values.get(name) for name in code.co_varnames[1 : code.co_argcount])
    return next((value for value in arguments if isinstance(value, Tensor)), None)


def wrong_input(module: nn.Module, given: Tensor) -> tuple[str, str] | None:
    """The argument of a module that does not fit what it was given, and how."""
    shape = tuple(given.shape)
    modes = getattr(module, "modes", None)
    if isinstance(modes, tuple) and len(modes) != given.ndim - 2:
        counts = f"{given.ndim - 2} count{'s' * (given.ndim != 3)}"
        return "modes", f"expected {counts}, one per axis of space of an input {shape}, got {list(modes)}"
    for key, axis in TAKES.items():
        size = getattr(module, key, None)
        if type(size) is not int or given.ndim < 2:
            continue
        if key == "in_channels" and isinstance(module, nn.modules.conv._ConvNd):
            axis = given.ndim - len(module.kernel_size) - 1  # without a batch the first
            if axis not in (0, 1):
                return "kernel_size", f"expected one of {given.ndim - 2} axes for an input {shape}"
        if shape[axis] != size:
            return key, f"expected {shape[axis]} for an input {shape}, got {size}"
    return None


def wrong_output(message: str, root: nn.Module) -> SizeError | None:
    """The argument behind a message about the shape of what came out."""
    if not (found := re.match(r"(term: expected a drift|prediction: expected) .*\((.+)\), got \((.+)\)$", message)):
        return None
    expected, got = ([int(size) for size in re.findall(r"\d+", shape)] for shape in found.group(2, 3))
    key, axis = ("out_features", -1) if message.startswith("term") else ("out_channels", 1)
    if len(expected) != len(got) or len(got) < 2 or expected[axis] == got[axis]:
        return None
    for name, module in root.named_modules():
        if getattr(module, key, None) == got[axis]:
            told = f"expected {expected[axis]} for an output {tuple(expected)}, got {got[axis]}"
            return SizeError(module, name, key, told)
    return None
