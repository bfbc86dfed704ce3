"""What a physics-informed network is trained on: an equation in a domain, with conditions on its boundary."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn

from sciml.calculus import Expression
from sciml.calculus.expression import computed

Function = Callable[[Tensor], Tensor]


class Condition(NamedTuple):
    """A condition on a part of the boundary, as a loss."""

    residual: Expression  # zero where it holds
    sample: Callable[[int, Generator], Tensor]  # so many random points (n, d) of that part, on the generator's device


class Landmark(NamedTuple):
    """A single point at which the error is told apart."""

    point: Tensor  # (1, d)
    value: Tensor | None = None  # the solution (1, c) there, where `Equation.exact` does not know it


class Plane(NamedTuple):
    """A grid of points on a plane, another surface or a line, to draw a solution on."""

    points: Tensor  # (n * m, d), the second axis of the grid is the faster one
    axes: tuple[Tensor, ...]  # (n) and (m)
    labels: tuple[str, ...]

    @classmethod
    def spanned(
        cls,
        origin: Tensor,
        directions: Tensor,
        first: tuple[float, float],
        second: tuple[float, float],
        labels: Sequence[str],
        count: int = 101,
    ) -> "Plane":
        """The points origin + s_1 v_1 + s_2 v_2 with directions v (2, d) and s in two ranges."""
        axes = torch.linspace(*first, count), torch.linspace(*second, count)
        return cls(origin + torch.cartesian_prod(*axes) @ directions, axes, tuple(labels))


class Equation(nn.Module, ABC):
    """A partial differential equation, residual = 0 in a domain of points (b, d).

    Its parts of the boundary are named in ``boundary``. Each of them has to be met: by the output (`hard`), or by a
    condition among the losses (`conditions`). Further equations of a system are conditions too, at points of `sample`.

    Attributes:
        boundary: names of the boundary's parts.
        names: names of the coordinates; by default x0, x1, ..
    """

    boundary: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number d of coordinates."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the coordinates."""
        return tuple(f"x{i}" for i in range(self.dim))

    @abstractmethod
    def residual(self) -> Expression:
        """What is zero in the domain."""

    @abstractmethod
    def sample(self, count: int, generator: Generator) -> Tensor:
        """So many random points (n, d) of the domain, on the generator's device, in torch's default dtype."""

    @abstractmethod
    def inside(self, x: Tensor) -> Tensor:
        """Which of some points (b, d) lie in the domain, (b)."""

    def hard(self) -> tuple[str, ...]:
        """The parts of the boundary whose conditions `output` meets."""
        return ()

    def output(self, x: Tensor, raw: Tensor) -> Tensor:
        """The solution's ansatz (b, c) from the net's output (b, c) at points (b, d), in functions that jets know."""
        return raw

    def conditions(self) -> dict[str, Condition]:
        """The conditions of parts of the boundary, by their names."""
        return {}

    def exact(self, x: Tensor) -> Tensor | None:
        """The solution (b, c) where it is known."""
        return None

    def landmarks(self) -> dict[str, Landmark]:
        """Single points by name, at which errors are told apart."""
        return {}

    @abstractmethod
    def plane(self, count: int = 101) -> Plane:
        """A grid of so many points along two axes, to draw the solution on."""

    def check(self, x: Tensor) -> None:
        """Refuse points that the equation does not hold at.

        Raises:
            ValueError: naming the first of them.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"points: expected (b, {self.dim}) for {type(self).__name__}, got {tuple(x.shape)}")
        outside = (~self.inside(x)).nonzero().reshape(-1).tolist()
        if outside:
            first = ", ".join(f"{v:g}" for v in x[outside[0]][:6].tolist()) + (", .." if self.dim > 6 else "")
            raise ValueError(
                f"points: {len(outside)} of {len(x)} lie outside of the domain of {type(self).__name__}, "
                f"the first is point {outside[0]}, ({first})"
            )


class Ansatz(nn.Module):
    """A net as the solution of an equation.

    Args:
        equation: the equation.
        net: (b, d) -> (b, c).
        hard: let the equation's `output` meet the conditions that it can meet.

    Raises:
        ValueError: if a part of the boundary is met neither by the output nor by a condition, or what the equation
            gives is no expression or no condition.
    """

    def __init__(self, equation: Equation, net: nn.Module, hard: bool = True):
        super().__init__()
        self.equation, self.net, self.hard = equation, net, hard
        met = set(equation.hard() if hard else ())
        self.soft = {name: each for name, each in equation.conditions().items() if name not in met}
        _check(equation, self.soft)
        missing = [name for name in equation.boundary if name not in met and name not in self.soft]
        if missing:
            remedy = " or hard=True" if not hard and set(missing) <= set(equation.hard()) else ""
            raise ValueError(
                f"equation: {type(equation).__name__} has no condition on {', '.join(missing)}; "
                f"expected one of the losses (`conditions`) or an output that meets it (`hard`){remedy}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """The solution (b, c) at points (b, d)."""
        raw = self.net(x)
        return self.equation.output(x, raw) if self.hard else raw


def _check(equation: Equation, conditions: dict[str, Condition]) -> None:
    """Refuse a residual that is no expression or holds computed numbers, and a condition likewise."""
    wanted, kind = "an expression, as dt(u) - dxx(u)", type(equation).__name__
    given: dict[str, Any] = {f"{wanted} from {kind}.residual()": equation.residual()}
    wanted = "Condition(residual, sample) with an expression"
    for name, each in conditions.items():
        found = each.residual if isinstance(each, Condition) else each
        given[f"{wanted} from {kind}.conditions()[{name!r}]"] = found
    for expected, value in given.items():
        if not isinstance(value, Expression):
            remedy = "; the further ones of a system are conditions" if isinstance(value, list | tuple) else ""
            raise ValueError(f"equation: expected {expected}, got a {type(value).__name__}{remedy}")
        if any(True for _ in computed(value)):
            raise ValueError(
                f"equation: expected {expected}, whose unknown numbers are parameters or functions of the points, as "
                "lambda x: 2 * self.k; got a number computed from parameters, which would not change with them"
            )


def uniform_ball(count: int, dim: int, generator: Generator, radial: bool) -> Tensor:
    """Random points (n, d) of the unit ball: with a radius uniform in [0, 1], or uniform in volume."""
    device = generator.device
    x = torch.randn(count, dim, generator=generator, device=device)
    radius = torch.rand(count, 1, generator=generator, device=device)
    if not radial:
        radius = radius ** (1 / dim)
    return x.mul_(radius / torch.linalg.vector_norm(x, dim=1, keepdim=True))
