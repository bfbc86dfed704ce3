"""Directions that are no coordinates: vectors and matrices, constant or functions of the points."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Vectors:
    """A vector, or the columns of a matrix, at each point.

    Args:
        given: a tensor, or a function of points (b, d) with an axis for these in front.
        start: the first coordinate that its rows stand for; they reach to the last one.
        axes: how many the tensor may have; one, where there may be two, stands for a diagonal matrix.
        name: what messages call it.
    """

    given: Tensor | Function
    start: int
    axes: tuple[int, ...]
    name: str

    def __post_init__(self) -> None:
        """Refuse what can be no directions.

        Raises:
            TypeError: if it is neither a tensor nor a function.
            ValueError: if it has a wrong number of axes.
        """
        if not isinstance(self.start, int) or self.start < 0:
            raise ValueError(f"start: expected a coordinate, 0 or more, got {self.start!r}")
        if not isinstance(self.given, Tensor) and (not callable(self.given) or isinstance(self.given, type)):
            raise TypeError(f"{self.name}: expected a tensor or a function of points, got {self.given!r}")
        if isinstance(self.given, Tensor) and self.given.ndim not in self.axes:
            raise ValueError(f"{self.name}: expected {self._shapes('')}, got {tuple(self.given.shape)}")

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vectors) and self.given is other.given and self.start == other.start

    def __hash__(self) -> int:
        return hash((id(self.given), self.start))

    @property
    def varies(self) -> bool:
        """Whether it may depend on the points."""
        return not isinstance(self.given, Tensor)

    def at(self, x: Tensor) -> Tensor:
        """Its values (b or 1, ...) at points (b, d), of their dtype.

        Raises:
            TypeError: if a function returns no tensor.
            ValueError: if its shape does not fit the points, or it is on another device.
        """
        value: Any = self.given[None] if isinstance(self.given, Tensor) else self.given(x)
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name}: expected a function that returns a tensor, got {type(value).__name__}")
        rows = x.shape[1] - self.start
        if value.ndim - 1 not in self.axes or value.shape[0] not in (1, len(x)) or value.shape[1] != rows:
            got = tuple(value.shape if self.varies else value.shape[1:])
            of = f"for the {rows} coordinates from {self.start} on of points {tuple(x.shape)}"
            raise ValueError(
                f"{self.name}: expected {self._shapes(f'{len(x)}, ' if self.varies else '', rows)} {of}, got {got}"
            )
        if value.device != x.device:
            raise ValueError(f"{self.name}: expected it on the points' device {x.device}, got {value.device}")
        return value.to(x.dtype)

    def _shapes(self, batch: str, rows: Any = "d") -> str:
        shapes = {1: f"({batch}{rows}{'' if batch else ','})", 2: f"({batch}{rows}, m)"}
        return " or ".join(shapes[n] for n in self.axes)

    def direction(self, x: Tensor) -> Tensor:
        """A vector as a direction (b or 1, d), zero along the coordinates before its own."""
        return self._filled(self.at(x), x)

    def around(self, x: Tensor) -> tuple[Function, Tensor]:
        """The function y -> x + sigma y, whose coordinates are the columns of sigma, and its points, zeros (b, m)."""
        sigma = self.at(x)  # (b or 1, rows) or (b or 1, rows, m)

        def place(y: Any) -> Any:
            if sigma.ndim == 2:
                step = y * sigma
            else:
                each = len(sigma) > 1
                step = torch.matmul(sigma, y[..., None])[..., 0] if each else functional.linear(y, sigma[0])
            return x + self._filled(step, x)

        return place, x.new_zeros(len(x), sigma.shape[-1])

    def _filled(self, value: Any, x: Tensor) -> Any:
        return torch.cat([x.new_zeros(value.shape[0], self.start), value], -1) if self.start else value
