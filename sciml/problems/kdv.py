"""The Korteweg-de Vries equation in two dimensions, whose residual needs a mixed derivative of fourth order."""

import torch
from torch import Tensor

from sciml.calculus import Expression, Partial, Unknown
from sciml.problems.box import Box
from sciml.problems.equation import Condition


class KdV2D(Box):
    """u_ty + u_xxxy + 3 (u_y u_x)_x - u_xx + 2 u_yy = 0 for (t, x, y) in [0, 1] x [-3, 3]^2.

    Solved by the kink u = 2 k tanh(k x + l y - w t) with w = (4 k^3 l - k^2 + 2 l^2) / l, whose slope is a soliton. Its
    values at t = 0 (which the output can meet) and at the walls are given, at those of x also its slope.

    Args:
        k: wave number in x.
        l: wave number in y.

    Reference:
        Z. Shi et al., Stochastic Taylor derivative estimator, NeurIPS 2024, arXiv:2412.00088, appendix.
    """

    boundary = ("initial", "west", "east", "south", "north")

    def __init__(self, k: float = 0.8, l: float = 0.6):  # noqa: E741
        if not l:
            raise ValueError(f"l: expected a wave number that is not zero, got {l}")
        super().__init__((0.0, -3.0, -3.0), (1.0, 3.0, 3.0), ("t", "x", "y"))
        self.k, self.l, self.w = k, l, (4 * k**3 * l - k**2 + 2 * l**2) / l

    def residual(self) -> Expression:
        """The equation."""
        u, dt, dx, dy = Unknown(), Partial(0), Partial(1), Partial(2)
        return dt(dy(u)) + Partial(1, 1, 1, 2)(u) + 3 * dx(dy(u) * dx(u)) - Partial(1, 1)(u) + 2 * Partial(2, 2)(u)

    def hard(self) -> tuple[str, ...]:
        """The initial values."""
        return ("initial",)

    def output(self, x: Tensor, raw: Tensor) -> Tensor:
        """The initial values + t times the net."""
        return 2 * self.k * torch.tanh(self.k * x[:, 1:2] + self.l * x[:, 2:3]) + x[:, :1] * raw

    def conditions(self) -> dict[str, Condition]:
        """The kink at t = 0 and at the walls, and its slope at those of x."""
        u = Unknown()
        value, slope = u - self._kink, Partial(1)(u) - self._slope
        sides = {"initial": (0, 0), "west": (1, 0), "east": (1, 1), "south": (2, 0), "north": (2, 1)}
        found = {name: Condition(value, self.side(*side)) for name, side in sides.items()}
        return found | {f"{name}_slope": Condition(slope, self.side(*sides[name])) for name in ("west", "east")}

    def exact(self, x: Tensor) -> Tensor:
        """The kink (b, 1)."""
        return self._kink(x)[:, None]

    def _kink(self, x: Tensor) -> Tensor:
        return 2 * self.k * torch.tanh(self.k * x[:, 1] + self.l * x[:, 2] - self.w * x[:, 0])

    def _slope(self, x: Tensor) -> Tensor:
        return 2 * self.k**2 * (1 - torch.tanh(self.k * x[:, 1] + self.l * x[:, 2] - self.w * x[:, 0]).square())
