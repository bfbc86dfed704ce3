"""The Allen-Cahn equation as an initial value problem in many dimensions, and its solution at one point."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from sciml.problems.equation import Landmark
from sciml.problems.reaction_diffusion import T1, ReactionDiffusion

RATE = 2.0  # of branching, that of the decay in w_t = lap w - 2 w - ..
GENERATIONS = 12
BLOCK = 2**21  # coordinates of the trees that are grown at a time


class Estimate(NamedTuple):
    """A mean of samples."""

    mean: float
    error: float  # its standard error


class AllenCahnHeat(ReactionDiffusion):
    """u_t = lap u + u - u^3 from u(0, x) = arctan(max_i x_i), for 0 < t < .3 and all x of d dimensions.

    The initial values have kinks, so they are a loss and not built into the output. The solution is known at the centre
    only, for d = 10 and 100, by `estimate`.

    Args:
        space: the number d of dimensions of space.

    Raises:
        ValueError: if there is none.

    Reference:
        as of `ReactionDiffusion`.
    """

    centres: ClassVar[dict[int, Estimate]] = {  # by d, of 2^22 trees with seed 0
        10: Estimate(0.890460, 9.1e-5),
        100: Estimate(1.044207, 3.4e-5),
    }

    def reaction(self, u: Any) -> Any:
        """The reaction u - u^3."""
        return u - u**3

    def initial(self, x: Tensor) -> Tensor:
        """arctan(max_i x_i)."""
        return x[:, 1:].amax(1).atan()

    def landmarks(self) -> dict[str, Landmark]:
        """The centre at the end, with the solution where it is known."""
        landmarks, known = super().landmarks(), self.centres.get(self.space)
        value = None if known is None else torch.tensor([[known.mean]])
        return {name: each._replace(value=value) for name, each in landmarks.items()}

    def estimate(self, trees: int, generator: Generator) -> Estimate:
        """The solution at the centre from branching diffusions (Skorokhod 1964, McKean 1975).

        w = u - 1 obeys w_t = lap w - 2 w - 3 w^2 - w^3. So it is the mean of (-2)^k times the product of w(0, X) over
        the leaves X of a random tree with k nodes: particles diffuse as of lap, live for a time of rate 2, and leave
        two others in their place with probability 3/4, else three. A tree with a 12th generation counts as zero; less
        than one in 2e7 gets that far.

        Where all coordinates are negative, w < -1, products explode. Such places are common in one or two dimensions,
        where estimates are of no use; in 10 the largest product of 2e6 is 14 and their standard deviation .19.

        Args:
            trees: how many, at least 2.
            generator: of the random numbers, on the CPU.

        Raises:
            ValueError: if there are fewer.

        Reference:
            P. Henry-Labordere et al., Branching diffusion representation of semilinear PDEs and Monte Carlo
            approximation, Ann. Inst. H. Poincare 55 (2019), doi:10.1214/17-AIHP880.
        """
        if trees < 2:
            raise ValueError(f"trees: expected at least 2, got {trees}")
        block = max(1, BLOCK // self.space)
        sizes = [min(block, trees - first) for first in range(0, trees, block)]
        values = torch.cat([self._grow(size, generator) for size in sizes])
        return Estimate(1 + values.mean().item(), values.std().item() / math.sqrt(trees))

    def _grow(self, count: int, generator: Generator) -> Tensor:
        """What each of some trees says of w at the centre (count)."""
        product = torch.ones(count, dtype=torch.float64)
        tree, x, left = torch.arange(count), torch.zeros(count, self.dim), torch.full((count,), T1)
        for _ in range(GENERATIONS):
            life = torch.empty_like(left).exponential_(RATE, generator=generator)
            leaf, spread = life >= left, (2 * torch.minimum(life, left)).sqrt()
            x[:, 1:] += spread[:, None] * torch.randn(len(x), self.space, generator=generator)
            product.scatter_reduce_(0, tree[leaf], self.initial(x[leaf]).double() - 1, "prod")
            tree, x, left = tree[~leaf], x[~leaf], (left - life)[~leaf]
            product.scatter_reduce_(0, tree, torch.full(tree.shape, -2.0, dtype=torch.float64), "prod")
            children = torch.where(torch.rand(len(tree), generator=generator) < 0.75, 2, 3)
            tree, x, left = (each.repeat_interleave(children, 0) for each in (tree, x, left))
        product[tree] = 0
        return product
