"""Names for the types that cross module borders."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Generator, Tensor

Lanes = Literal["joint", "each"]
"""``"joint"``: the whole state is one system; ``"each"``: every sample of the first axis steps by itself."""

Number = Any
"""A tensor (l) over the lanes, or a plain number where joint lanes are marched on the host."""

NoiseType = Literal["diagonal", "additive", "scalar", "general"]
"""How the diffusion of a stochastic equation acts on the noise."""

Calculus = Literal["ito", "stratonovich"]
"""Whose integral a stochastic equation means."""

Seed = int | Tensor
"""Of all draws of a batch; or whole numbers (b), one for each sample, of which its draws are a function."""

Draws = Generator | Tensor | None
"""A generator on the device of what is drawn, None for torch's; or whole numbers (b), one for each sample, as above."""

Args = tuple[Tensor, ...]
Time = float | Tensor
State = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
VectorField = Callable[..., Any]
