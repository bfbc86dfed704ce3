"""A semilinear heat equation in many dimensions, whose solution is found in one."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.problems.reaction_diffusion import T1, ReactionDiffusion

SCALE = 5.0  # the initial values are .5 SCALE / (SCALE + |x|^2)
NODES, TIMES = 49, 33  # of Chebyshev's polynomials of the radial solution, for an error of 1e-9 up to d = 100


class SemilinearHeat(ReactionDiffusion):
    """u_t = lap u + (1 - u^2) / (1 + u^2) from u(0, x) = 5 / (10 + 2 |x|^2), for 0 < t < .3 and all x of d dimensions.

    The output is 5 / (10 + 2 (|x|^2 + 2 d t)) + t times the net: in the initial values |x|^2 is replaced by its mean
    after the diffusion of time t, which in many dimensions is almost what diffusion alone makes of them. The initial
    values themselves have a peak at x = 0 that the net would have to take away again.

    The solution depends on t and |x| only and is computed once, in these, by collocation.

    Args:
        space: the number d of dimensions of space.

    Raises:
        ValueError: if there is none.

    Reference:
        as of `ReactionDiffusion`.
    """

    def reaction(self, u: Any) -> Any:
        """(1 - u^2) / (1 + u^2)."""
        return (1 - u**2) / (1 + u**2)

    def initial(self, x: Tensor) -> Tensor:
        """5 / (10 + 2 |x|^2)."""
        return 0.5 * SCALE / (SCALE + x[:, 1:].square().sum(1))

    def hard(self) -> tuple[str, ...]:
        """The initial values."""
        return ("initial",)

    def output(self, x: Tensor, raw: Tensor) -> Tensor:
        """The initial values, of the mean of |x|^2 under the diffusion, + t times the net."""
        t, y = x[:, :1], x[:, 1:]
        return 0.5 * SCALE / (SCALE + (y * y).sum(-1, keepdim=True) + 2 * self.space * t) + t * raw

    def exact(self, x: Tensor) -> Tensor:
        """The solution (b, 1), found in float64."""
        y = x.double()
        square = y[:, 1:].square().sum(1)
        basis = _chebyshev(y[:, 0] / T1, TIMES), _chebyshev(square / (square + SCALE), NODES)
        coefficients = torch.from_numpy(radial(self.space)).to(x.device)
        return ((basis[0] @ coefficients) * basis[1]).sum(1, keepdim=True).to(x.dtype)


def _chebyshev(x: Tensor, count: int) -> Tensor:
    """Chebyshev's polynomials on [0, 1] at points (b), (b, count)."""
    angle = torch.arccos((2 * x - 1).clamp(-1, 1))
    return torch.cos(angle[:, None] * torch.arange(count, device=x.device))


@cache
def radial(space: int) -> np.ndarray:
    """Coefficients (TIMES, NODES) of the solution in Chebyshev's polynomials of t / .3 and z = r^2 / (r^2 + SCALE).

    In z the equation is u_t = 4 / SCALE (z (1 - z)^3 u_zz - 2 z (1 - z)^2 u_z) + 2 d / SCALE (1 - z)^2 u_z + f(u). Both
    ends are singular points of it and want no conditions, and u(0) = (1 - z) / 2.
    """
    from numpy.polynomial import chebyshev
    from scipy.integrate import solve_ivp

    z = (1 - np.cos(np.pi * np.arange(NODES) / (NODES - 1))) / 2
    values = chebyshev.chebvander(2 * z - 1, NODES - 1)
    once, twice = (
        np.stack([2**n * chebyshev.chebval(2 * z - 1, chebyshev.chebder(row, n)) for row in np.eye(NODES)], 1)
        for n in (1, 2)
    )
    to_values = np.linalg.inv(values)
    first, second = once @ to_values, twice @ to_values
    slope = (2 * space * (1 - z) ** 2 - 8 * z * (1 - z) ** 2) / SCALE
    linear = slope[:, None] * first + (4 / SCALE * z * (1 - z) ** 3)[:, None] * second
    times = T1 * (1 - np.cos(np.pi * np.arange(TIMES) / (TIMES - 1))) / 2
    solved = solve_ivp(
        lambda t, u: linear @ u + (1 - u**2) / (1 + u**2),
        (0.0, T1),
        (1 - z) / 2,
        method="Radau",
        t_eval=times,
        jac=lambda t, u: linear + np.diag(-4 * u / (1 + u**2) ** 2),
        rtol=1e-11,
        atol=1e-12,
    )
    in_time = np.linalg.inv(chebyshev.chebvander(2 * times / T1 - 1, TIMES - 1))
    return in_time @ (to_values @ solved.y).T
