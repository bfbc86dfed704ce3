"""The viscous Burgers equation u_t + u u_x = nu u_xx on a periodic interval."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sciml.problems.cole_hopf import cole_hopf
from sciml.problems.periodic import PeriodicPDE


@dataclass(frozen=True)
class Burgers(PeriodicPDE):
    """u_t + u u_x = nu u_xx, with fields u (b, 1, x).

    Args:
        points: points of the grid.
        length: period.
        t1: final time.
        dt: step size in time; divides ``t1`` and all save times.
        nu: viscosity. Shocks are about 4 nu / max |u| wide and want several points.
    """

    nu: float = 0.01

    def symbol(self, k: Tensor) -> Tensor:
        """-nu k^2."""
        return -self.nu * k**2

    def nonlinear(self, y: Tensor) -> Tensor:
        """-(u^2 / 2)_x, without aliasing."""
        return (-0.5j * self.wave(y)).to(y.dtype) * self.encode(self.decode(y).square())

    def exact(self, u0: Tensor, ts: Tensor) -> Tensor:
        """The solution (b, t, 1, x) by the Cole-Hopf transformation, in float64."""
        return torch.stack([cole_hopf(u0, self.nu, t, self.length) for t in ts.tolist()], 1)
