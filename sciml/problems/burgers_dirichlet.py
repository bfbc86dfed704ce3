"""The viscous Burgers equation between two walls, the first benchmark of physics-informed networks."""

import math

import torch
from torch import Tensor

from sciml.calculus import Expression, Partial, Unknown
from sciml.problems.box import Box
from sciml.problems.equation import Condition

REACH, NODES = 12.0, 1201  # of the trapezoidal rule in z; exp(-cos / (2 pi nu) - z^2) is below round-off beyond
BLOCK = 2000  # points at a time


class BurgersDirichlet(Box):
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
        if not nu >= 0.002:
            raise ValueError(f"nu: expected .002 or more, where the solution's integrals are exact, got {nu}")
        super().__init__((0.0, -1.0), (1.0, 1.0), ("t", "x"))
        self.nu = nu

    def residual(self) -> Expression:
        """u_t + u u_x - nu u_xx."""
        u, dt, dx, dxx = Unknown(), Partial(0), Partial(1), Partial(1, 1)
        return dt(u) + u * dx(u) - self.nu * dxx(u)

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
        sides = {"initial": (0, 0), "left": (1, 0), "right": (1, 1)}
        residuals = {"initial": u + (lambda x: torch.sin(math.pi * x[:, 1])), "left": u, "right": u}
        return {name: Condition(residuals[name], self.side(*side)) for name, side in sides.items()}

    def exact(self, x: Tensor) -> Tensor:
        """The solution (b, 1) by the Cole-Hopf transformation, found in float64."""
        return torch.cat([self._exact(block) for block in x.double().split(BLOCK)])[:, None].to(x.dtype)

    def _exact(self, x: Tensor) -> Tensor:
        t, s = x[:, :1], x[:, 1:]
        z = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64, device=x.device)
        there = s - (4 * self.nu * t).sqrt() * z
        weight = torch.softmax(-torch.cos(math.pi * there) / (2 * math.pi * self.nu) - z.square(), 1)
        return -(torch.sin(math.pi * there) * weight).sum(1)
