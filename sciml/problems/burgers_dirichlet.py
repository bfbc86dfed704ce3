"""The viscous Burgers equation between two walls, the first benchmark of physics-informed networks."""

import math

import torch
from torch import Generator, Tensor

from sciml.calculus import Expression, Partial, Unknown
from sciml.problems.equation import Condition, Equation, Plane

REACH, NODES = 12.0, 1201  # of the trapezoidal rule in z; exp(-cos / (2 pi nu) - z^2) is below round-off beyond
BLOCK = 2000  # points at a time


class BurgersDirichlet(Equation):
    """u_t + u u_x = nu u_xx for 0 < t < 1 and -1 < x < 1, from -sin(pi x), and zero at both walls.

    Points are (t, x). With nu = .01 / pi the shock at x = 0 is some .01 wide.

    Args:
        nu: viscosity, .002 or more.

    Reference:
        M. Raissi, P. Perdikaris, G. E. Karniadakis, J. Comput. Phys. 378 (2019), doi:10.1016/j.jcp.2018.10.045, 3.1.1.
        The solution: C. Basdevant et al., Computers & Fluids 14 (1986), doi:10.1016/0045-7930(86)90036-8.
    """

    boundary = ("initial", "left", "right")

    def __init__(self, nu: float = 0.01 / math.pi):
        super().__init__()
        if not nu >= 0.002:
            raise ValueError(f"nu: expected .002 or more, where the solution's integrals are exact, got {nu}")
        self.nu = nu

    @property
    def dim(self) -> int:
        """Two, t and x."""
        return 2

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the coordinates."""
        return "t", "x"

    def residual(self) -> Expression:
        """u_t + u u_x - nu u_xx."""
        u, dt, dx, dxx = Unknown(), Partial(0), Partial(1), Partial(1, 1)
        return dt(u) + u * dx(u) - self.nu * dxx(u)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Uniform points."""
        x = torch.rand(count, 2, generator=generator, device=generator.device)
        return x * x.new_tensor([1.0, 2.0]) - x.new_tensor([0.0, 1.0])

    def inside(self, x: Tensor) -> Tensor:
        """Which points lie in the rectangle, its sides included."""
        return (x[:, 0] >= 0) & (x[:, 0] <= 1) & (x[:, 1].abs() <= 1)

    def hard(self) -> tuple[str, ...]:
        """All of them."""
        return self.boundary

    def output(self, x: Tensor, raw: Tensor) -> Tensor:
        """-sin(pi x) + t (1 - x^2) times the net."""
        t, s = x[:, :1], x[:, 1:]
        return t * (1 - s * s) * raw - torch.sin(math.pi * s)

    def conditions(self) -> dict[str, Condition]:
        """Those at t = 0 and at both walls."""
        u = Unknown()
        sides = {"initial": (0, 0.0), "left": (1, -1.0), "right": (1, 1.0)}
        residuals = {"initial": u + (lambda x: torch.sin(math.pi * x[:, 1])), "left": u, "right": u}
        return {name: Condition(residuals[name], _Side(self, *side)) for name, side in sides.items()}

    def plane(self, count: int = 101) -> Plane:
        """The whole rectangle."""
        return Plane.spanned(torch.zeros(2), torch.eye(2), (0.0, 1.0), (-1.0, 1.0), ("t", "x"), count)

    def exact(self, x: Tensor) -> Tensor:
        """The solution (b, 1) by the Cole-Hopf transformation, found in float64."""
        return torch.cat([self._exact(block) for block in x.double().split(BLOCK)])[:, None].to(x.dtype)

    def _exact(self, x: Tensor) -> Tensor:
        t, s = x[:, :1], x[:, 1:]
        z = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64, device=x.device)
        there = s - (4 * self.nu * t).sqrt() * z
        weight = torch.softmax(-torch.cos(math.pi * there) / (2 * math.pi * self.nu) - z.square(), 1)
        return -(torch.sin(math.pi * there) * weight).sum(1)


class _Side:
    """Random points of a side, where one coordinate has a value."""

    def __init__(self, equation: Equation, coordinate: int, value: float):
        self.equation, self.coordinate, self.value = equation, coordinate, value

    def __call__(self, count: int, generator: Generator) -> Tensor:
        x = self.equation.sample(count, generator)
        x[:, self.coordinate] = self.value
        return x
