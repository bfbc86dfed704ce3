"""Values of a path within compiled marches on the host: an operator that the compiler does not look into.

What is compiled knows nothing but a place's ends and must draw every number on the way there; a path that remembers
the last way draws the few that are new.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import local
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_paths: WeakValueDictionary[int, Any] = WeakValueDictionary()
_tickets = count()
_failed = local()  # with the error of the operator, since compiled code tells that it failed and not why
_library = torch.library.Library("sciml", "FRAGMENT")
_library.define(
    "increment(Tensor streams, Tensor ticket, Tensor theta0, Tensor theta1, SymInt[] size, ScalarType dtype) -> Tensor"
)


def ticket(path: Any) -> Tensor:
    """A number that stands for a path as long as it lives, 0-d int64: a constant would be compiled in."""
    number = next(_tickets)
    _paths[number] = path
    return torch.tensor(number, device="cpu")


def increment(
    streams: Tensor, ticket: Tensor, theta0: Tensor, theta1: Tensor, size: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """What the path says of a step (its ``remembered``), of a size and dtype."""
    return torch.ops.sciml.increment(streams, ticket, theta0, theta1, size, dtype)


@contextmanager
def telling() -> Iterator[None]:
    """Raise what failed within compiled code, an interruption above all."""
    _failed.error = None
    try:
        yield
    except RuntimeError:
        if _failed.error is not None:
            raise _failed.error from None
        raise
    finally:
        _failed.error = None


def _increment(streams: Tensor, ticket: Tensor, theta0: Tensor, theta1: Tensor, size: Any, dtype: Any) -> Tensor:
    try:
        found = _paths[ticket.item()].remembered(streams, theta0, theta1)  # pyrefly: ignore[bad-index]
        return found.contiguous()  # as `_fake` says
    except BaseException as error:
        _failed.error = error
        raise


def _fake(streams: Tensor, ticket: Tensor, theta0: Tensor, theta1: Tensor, size: Any, dtype: Any) -> Tensor:
    return streams.new_empty(size, dtype=dtype)


_library.impl("increment", _increment, "CPU")
torch.library.register_fake("sciml::increment", _fake, lib=_library)
