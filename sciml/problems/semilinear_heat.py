"""A semilinear heat equation in many dimensions, whose solution is found in one."""

from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor

from sciml.calculus import Expression, Laplacian, Partial, Unknown
from sciml.problems.equation import Condition, Equation, Plane

T1 = 0.3
SCALE = 5.0  # the initial values are .5 SCALE / (SCALE + |x|^2)
NODES, TIMES = 49, 33  # of Chebyshev's polynomials of the radial solution, for an error of 1e-9 up to d = 100


class SemilinearHeat(Equation):
    """u_t = lap u + (1 - u^2) / (1 + u^2) from u(0, x) = 5 / (10 + 2 |x|^2), for 0 < t < .3 and all x of d dimensions.

    Points are (t, x), t uniform and x ~ N(0, (.3 - t) I), as in the papers, whose error is that at (.3, 0): the
    landmark ``centre``. The solution depends on t and |x| only and is computed once, in these, by collocation.

    Args:
        space: the number d of dimensions of space.

    Raises:
        ValueError: if there is none.

    Reference:
        Z. Shi et al., Stochastic Taylor derivative estimator, NeurIPS 2024, arXiv:2412.00088; C. Beck et al., J.
        Nonlinear Sci. 29 (2019), doi:10.1007/s00332-018-9525-3.
    """

    boundary = ("initial",)

    def __init__(self, space: int):
        super().__init__()
        if space < 1:
            raise ValueError(f"space: expected at least one dimension, got {space}")
        self.space = space

    @property
    def dim(self) -> int:
        """Time and space."""
        return self.space + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the coordinates."""
        return "t", *(f"x{i}" for i in range(self.space))

    def residual(self) -> Expression:
        """The difference of both sides."""
        u = Unknown()
        return Partial(0)(u) - Laplacian(start=1)(u) - (1 - u**2) / (1 + u**2)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Times, and places where a diffusion is that gets to the centre at t = .3."""
        x = torch.randn(count, self.dim, generator=generator, device=generator.device)
        t = T1 * torch.rand(count, 1, generator=generator, device=generator.device)
        return torch.cat([t, (T1 - t).sqrt() * x[:, 1:]], 1)

    def inside(self, x: Tensor) -> Tensor:
        """Which points lie between t = 0 and .3."""
        return (x[:, 0] >= 0) & (x[:, 0] <= T1)

    def hard(self) -> tuple[str, ...]:
        """The initial values."""
        return ("initial",)

    def output(self, x: Tensor, raw: Tensor) -> Tensor:
        """The initial values + t times the net."""
        y = x[:, 1:]
        return 0.5 * SCALE / (SCALE + (y * y).sum(-1, keepdim=True)) + x[:, :1] * raw

    def conditions(self) -> dict[str, Condition]:
        """The initial values as a loss."""
        return {"initial": Condition(Unknown() - self._initial, self._start)}

    def landmarks(self) -> dict[str, Tensor]:
        """The centre at the end."""
        return {"centre": torch.tensor([[T1, *[0.0] * self.space]])}

    def plane(self, count: int = 101) -> Plane:
        """Time and the first coordinate of space."""
        return Plane.spanned(torch.zeros(self.dim), torch.eye(self.dim)[:2], (0.0, T1), (-3.0, 3.0), ("t", "x0"), count)

    def exact(self, x: Tensor) -> Tensor:
        """The solution (b, 1), found in float64."""
        y = x.double()
        square = y[:, 1:].square().sum(1)
        basis = _chebyshev(y[:, 0] / T1, TIMES), _chebyshev(square / (square + SCALE), NODES)
        coefficients = torch.from_numpy(radial(self.space)).to(x.device)
        return ((basis[0] @ coefficients) * basis[1]).sum(1, keepdim=True).to(x.dtype)

    def _initial(self, x: Tensor) -> Tensor:
        return 0.5 * SCALE / (SCALE + x[:, 1:].square().sum(1))

    def _start(self, count: int, generator: Generator) -> Tensor:
        x = self.sample(count, generator)
        x[:, 0] = 0
        return x


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
