"""Values of a path within compiled marches on the host: an operator that the compiler does not look into.

What is compiled knows nothing but a place's ends and must draw every number on the way there; a path that remembers
the last way draws the few that are new.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_paths: WeakValueDictionary[int, Any] = WeakValueDictionary()
_failures: list[BaseException] = []  # of the operator, since compiled code tells that it failed and not why
_library = torch.library.Library("sciml", "FRAGMENT")
_library.define(
    "increment(Tensor streams, Tensor ticket, Tensor theta0, Tensor theta1, SymInt[] size, ScalarType dtype) -> Tensor"
)


def ticket(path: Any) -> Tensor:
    """A number that stands for a path as long as it lives, 0-d int64: a constant would be compiled in."""
    _paths[id(path)] = path
    return torch.tensor(id(path))


def increment(
    streams: Tensor, ticket: Tensor, theta0: Tensor, theta1: Tensor, size: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """What the path says of a step (its ``remembered``), of a size and dtype."""
    return torch.ops.sciml.increment(streams, ticket, theta0, theta1, size, dtype)


@contextmanager
def telling() -> Iterator[None]:
    """Raise what failed within compiled code, an interruption above all."""
    _failures.clear()
    try:
        yield
    except RuntimeError:
        if _failures:
            raise _failures.pop() from None
        raise


def _increment(streams: Tensor, ticket: Tensor, theta0: Tensor, theta1: Tensor, size: Any, dtype: Any) -> Tensor:
    try:
        found = _paths[ticket.item()].remembered(streams, theta0, theta1)  # pyrefly: ignore[bad-index]
        return found.contiguous()  # as `_fake` says
    except BaseException as error:
        _failures.append(error)
        raise


def _fake(streams: Tensor, ticket: Tensor, theta0: Tensor, theta1: Tensor, size: Any, dtype: Any) -> Tensor:
    return streams.new_empty(size, dtype=dtype)


_library.impl("increment", _increment, "CPU")
torch.library.register_fake("sciml::increment", _fake, lib=_library)
