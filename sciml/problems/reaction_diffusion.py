"""Reactions and diffusion in many dimensions, solved for one place."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Generator, Tensor

from sciml.calculus import Expression, Laplacian, Partial, Unknown
from sciml.problems.equation import Condition, Equation, Landmark, Plane

T1 = 0.3


class ReactionDiffusion(Equation):
    """u_t = lap u + f(u) from u(0, x) = g(x), for 0 < t < .3 and all x of d dimensions.

    Wanted is u at (.3, 0), the landmark ``centre``. That is the mean of g, and of f(u) over time, at places X of the
    diffusion that gets there (Feynman and Kac), X ~ N(0, 2 (.3 - t) I). So points (t, x) are drawn from it, t uniform
    (the text of the STDE paper has half of that variance).

    Args:
        space: the number d of dimensions of space.

    Raises:
        ValueError: if there is none.

    Reference:
        C. Beck, W. E, A. Jentzen, J. Nonlinear Sci. 29 (2019), doi:10.1007/s00332-018-9525-3; Z. Shi et al.,
        Stochastic Taylor derivative estimator, NeurIPS 2024, arXiv:2412.00088.
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

    @abstractmethod
    def reaction(self, u: Any) -> Any:
        """The reaction f, of a tensor or of the unknown."""

    @abstractmethod
    def initial(self, x: Tensor) -> Tensor:
        """The initial values g (b) at points (b, 1 + d), whatever their t."""

    def residual(self) -> Expression:
        """The difference of both sides."""
        u = Unknown()
        return Partial(0)(u) - Laplacian(start=1)(u) - self.reaction(u)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Times, and places where a diffusion is that gets to the centre at t = .3."""
        x = torch.randn(count, self.dim, generator=generator, device=generator.device)
        t = T1 * torch.rand(count, 1, generator=generator, device=generator.device)
        return torch.cat([t, (2 * (T1 - t)).sqrt() * x[:, 1:]], 1)

    def inside(self, x: Tensor) -> Tensor:
        """Which points lie between t = 0 and .3."""
        return (x[:, 0] >= 0) & (x[:, 0] <= T1 * (1 + 1e-6))  # the end in float32

    def conditions(self) -> dict[str, Condition]:
        """The initial values as a loss, at places where that diffusion starts."""
        return {"initial": Condition(Unknown() - self.initial, self._start)}

    def landmarks(self) -> dict[str, Landmark]:
        """The centre at the end."""
        return {"centre": Landmark(torch.tensor([[T1, *[0.0] * self.space]]))}

    def plane(self, count: int = 101) -> Plane:
        """Time, and the angle on a circle of places that are as likely as others where that diffusion is."""
        t, angle = torch.linspace(0, T1, count), torch.linspace(0, 2 * torch.pi, count)
        z = torch.randn(2, self.space, generator=torch.Generator().manual_seed(0), device="cpu")
        circle = angle.cos()[:, None] * z[0] + angle.sin()[:, None] * z[1]  # (m, d)
        x = (2 * (T1 - t)).sqrt()[:, None, None] * circle  # (n, m, d)
        points = torch.cat([t[:, None, None].expand(count, count, 1), x], 2)
        return Plane(points.flatten(0, 1), (t, angle), ("t", "angle"))

    def _start(self, count: int, generator: Generator) -> Tensor:
        x = torch.randn(count, self.dim, generator=generator, device=generator.device)
        return torch.cat([0 * x[:, :1], (2 * T1) ** 0.5 * x[:, 1:]], 1)
