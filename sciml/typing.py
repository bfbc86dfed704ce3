"""Names for the types that cross module borders."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

Lanes = Literal["joint", "each"]
"""``"joint"``: the whole state is one system; ``"each"``: every sample of the first axis steps by itself."""

Args = tuple[Tensor, ...]
Time = float | Tensor
State = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
VectorField = Callable[..., Any]
