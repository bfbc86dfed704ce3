"""Elliptic equations in the unit ball of many dimensions, with solutions that are made up (Hu et al. 2024)."""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from sciml.calculus import Expression, Laplacian, Unknown
from sciml.problems.equation import Equation, Plane, uniform_ball

ENTRIES = 2**24  # of points whose solution is found at a time, in some fifteen arrays as large
SIZED = 2**20  # entries of the points that tell how large a solution is


class BallEquation(Equation):
    """lap u + g(u) = f in the unit ball, u = 0 on the sphere, with f such that u is known.

    u(x) = (1 - |x|^2) sum_i c_i h_i(s x), with c_i ~ N(0, 1) by seed and h_i = sin(x_i + cos x_{i+1} + x_{i+1} cos x_i)
    or exp(x_i x_{i+1} x_{i+2}). With s = 1, as in the papers, a coordinate is of the size of 1 / sqrt(d) and u hardly
    varies but for its first factor, the more so the larger d: compare any error with what a constant net reaches.
    ``varied`` takes s = sqrt(d), and c_i / i so that it can be learned.

    Args:
        dim: the number d of coordinates.
        family: ``"two_body"`` or ``"three_body"``.
        seed: of c, by numpy's default generator. What errors relative to u are worth depends on it.
        varied: whether u is to vary at every d.
        radial: whether points have a radius uniform in [0, 1], as in the papers, or are uniform in volume.

    Reference:
        Z. Hu, K. Shukla, G. E. Karniadakis, K. Kawaguchi, Tackling the curse of dimensionality with physics-informed
        neural networks, Neural Networks 176 (2024), doi:10.1016/j.neunet.2024.106369; Z. Shi et al., Stochastic Taylor
        derivative estimator, NeurIPS 2024, arXiv:2412.00088, appendix.
    """

    boundary = ("sphere",)
    c: Tensor
    size: Tensor  # of the net whose output is the solution; in checkpoints, which are of no use with another one

    def __init__(
        self,
        dim: int,
        family: Literal["two_body", "three_body"] = "two_body",
        seed: int = 0,
        varied: bool = False,
        radial: bool = True,
    ):
        super().__init__()
        bodies = {"two_body": 2, "three_body": 3}
        if family not in bodies:
            raise ValueError(f"family: expected 'two_body' or 'three_body', got {family!r}")
        if dim < bodies[family]:
            raise ValueError(f"dim: expected at least {bodies[family]} for {family}, got {dim}")
        self._dim, self.family, self.radial = dim, family, radial
        self.scale = dim**0.5 if varied else 1.0
        normal = np.random.default_rng(seed).standard_normal(dim)[: dim - bodies[family] + 1]
        c = torch.from_numpy(normal.astype(np.float32))
        decaying = c / torch.arange(1, len(c) + 1, device="cpu")
        self.register_buffer("c", decaying if varied else c, persistent=False)
        self.register_buffer("size", self._size())

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return self._dim

    @abstractmethod
    def g(self, u: Any) -> Any:
        """What stands beside the Laplacian, of a tensor or of the unknown."""

    def residual(self) -> Expression:
        """The Laplacian of u + g(u) - f."""
        u = Unknown()
        return Laplacian()(u) + self.g(u) - self.forcing

    def forcing(self, x: Tensor) -> Tensor:
        """The right-hand side f (b) at points (b, d)."""
        u, laplacian = self.solution(x)
        return laplacian + self.g(u)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Random points of the ball."""
        return uniform_ball(count, self.dim, generator, self.radial)

    def inside(self, x: Tensor) -> Tensor:
        """Which points lie in the ball."""
        return x.square().sum(1) <= 1 + 1e-6  # points of radius 1 in float32

    def hard(self) -> tuple[str, ...]:
        """The sphere."""
        return ("sphere",)

    def output(self, x: Tensor, raw: Tensor) -> Tensor:
        """(1 - |x|^2) times the net, in units of ``size``.

        On the sphere u = 0, so that the equation tells lap u, which for u = (1 - |x|^2) N is -2 d N - 4 x . grad N
        there. So it tells how large N is: of the size sqrt(d), which a net would need thousands of steps to reach.
        """
        return (1 - (x * x).sum(-1, keepdim=True)) * (raw * self.size)

    def _size(self) -> Tensor:
        """The root mean square of lap u / (2 d) on the sphere."""
        if self.family == "three_body" and self.scale > 1:
            return torch.ones((), device="cpu")  # few places with huge exponentials would tell
        count, generator = min(1000, max(4, SIZED // self.dim)), Generator().manual_seed(0)
        x = torch.randn(count, self.dim, generator=generator, device="cpu")
        laplacian = self.solution(x / torch.linalg.vector_norm(x, dim=1, keepdim=True))[1]
        return laplacian.square().mean().sqrt() / (2 * self.dim)

    def plane(self, count: int = 101) -> Plane:
        """The unit square around the centre along two random directions."""
        directions = torch.linalg.qr(torch.randn(self.dim, 2, generator=torch.Generator().manual_seed(0))).Q
        return Plane.spanned(torch.zeros(self.dim), 1.05 * directions.mT, (-1.0, 1.0), (-1.0, 1.0), ("s1", "s2"), count)

    def exact(self, x: Tensor) -> Tensor:
        """The solution (b, 1)."""
        return self.solution(x)[0][:, None]

    def solution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The solution (b) at points (b, d), and its Laplacian."""
        rows = max(1, ENTRIES // self.dim)
        if len(x) <= rows:
            return self._solution(x)
        values, laplacians = zip(*map(self._solution, x.split(rows)), strict=True)
        return torch.cat(values), torch.cat(laplacians)

    def _solution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, laplacian = self._two_body(x) if self.family == "two_body" else self._three_body(x)
        factor = 1 - x.square().sum(1)
        return factor * value, factor * laplacian - 4 * slope - 2 * self.dim * value

    def _two_body(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum h (b), x . grad h, and lap h."""
        y, c = self.scale * x, self.c.to(x.dtype)
        a, b = y[:, :-1], y[:, 1:]
        cos_a, sin_a, cos_b, sin_b = a.cos(), a.sin(), b.cos(), b.sin()
        angle = a + cos_b + b * cos_a
        sine, cosine = c * angle.sin(), c * angle.cos()
        along_a, along_b = 1 - b * sin_a, cos_a - sin_b
        curved = -sine * (along_a.square() + along_b.square()) - cosine * (b * cos_a + cos_b)
        return sine.sum(1), (cosine * (along_a * a + along_b * b)).sum(1), self.scale**2 * curved.sum(1)

    def _three_body(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum h (b), x . grad h, and lap h."""
        y, c = self.scale * x, self.c.to(x.dtype)
        p, q, r = y[:, :-2], y[:, 1:-1], y[:, 2:]
        product = p * q * r
        value = c * product.exp()
        curved = value * ((q * r).square() + (p * r).square() + (p * q).square())
        return value.sum(1), (3 * product * value).sum(1), self.scale**2 * curved.sum(1)


class Poisson(BallEquation):
    """lap u = f."""

    def g(self, u: Any) -> Any:
        """Nothing."""
        return 0.0


class AllenCahn(BallEquation):
    """lap u + u - u^3 = f."""

    def g(self, u: Any) -> Any:
        """The reaction u - u^3."""
        return u - u**3


class SineGordon(BallEquation):
    """lap u + sin u = f."""

    def g(self, u: Any) -> Any:
        """The sine of u."""
        return torch.sin(u)
