"""Equations in a box of few coordinates."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sciml.problems.equation import Equation, Plane


class Box(Equation):
    """An equation in a box, its points uniform.

    Args:
        lower: lower ends of the coordinates.
        upper: upper ends.
        names: of the coordinates.

    Raises:
        ValueError: if they do not fit together.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, lower: Sequence[float], upper: Sequence[float], names: Sequence[str]):
        super().__init__()
        if not len(lower) == len(upper) == len(names):
            raise ValueError(f"lower, upper, names: expected as many of each, got {lower}, {upper}, {names}")
        if not all(a < b for a, b in zip(lower, upper, strict=True)):
            raise ValueError(f"lower, upper: expected lower < upper, got {lower}, {upper}")
        self._names = tuple(names)
        self.register_buffer("lower", torch.tensor(lower), persistent=False)
        self.register_buffer("upper", torch.tensor(upper), persistent=False)

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the coordinates."""
        return self._names

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Uniform points."""
        x = torch.rand(count, self.dim, generator=generator, device=generator.device)
        lower, upper = self.lower.to(x), self.upper.to(x)
        return (lower + (upper - lower) * x).clamp(lower, upper)

    def inside(self, x: Tensor) -> Tensor:
        """Which points lie in the box, its sides included."""
        return ((x >= self.lower.to(x)) & (x <= self.upper.to(x))).all(1)

    def side(self, coordinate: int, end: int) -> "Side":
        """Points of the side where a coordinate is at its lower (0) or upper (1) end."""
        return Side(self, coordinate, end)

    def plane(self, count: int = 101) -> Plane:
        """The last two coordinates, where the others are at their upper ends; a line where there is one only."""
        if self.dim == 1:
            line = torch.linspace(self.lower.item(), self.upper.item(), count)
            return Plane(line[:, None], (line,), self._names)
        lower, upper = self.lower.tolist(), self.upper.tolist()
        origin = torch.cat([self.upper[:-2].cpu(), torch.zeros(2)])
        first, second = zip(lower[-2:], upper[-2:], strict=True)
        return Plane.spanned(origin, torch.eye(self.dim)[-2:], first, second, self._names[-2:], count)


class Side:
    """Draws points of a side of a box."""

    def __init__(self, box: Box, coordinate: int, end: int):
        self.box, self.coordinate, self.end = box, coordinate, end

    def __call__(self, count: int, generator: Generator) -> Tensor:
        """So many of them."""
        x = self.box.sample(count, generator)
        x[:, self.coordinate] = (self.box.lower, self.box.upper)[self.end][self.coordinate].to(x)
        return x
