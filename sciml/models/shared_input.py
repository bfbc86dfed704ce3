"""One small kernel for all parts of a wide input, where a first layer would have too many weights."""

import torch
from torch import Tensor, nn

from sciml.calculus.blocks import block_product


class SharedInput(nn.Module):
    """Blocks of the input, each multiplied by the same weights: (..., d) -> (..., ceil(d / block)).

    Before an `MLP` of as many input features it divides the number of weights by ``block``. Derivatives along
    coordinates pass it at a cost that does not depend on d.

    Args:
        block: how many inputs share the weights.

    Raises:
        ValueError: if the block is empty.

    Reference:
        Z. Shi et al., Stochastic Taylor derivative estimator, NeurIPS 2024, arXiv:2412.00088, appendix ("weight
        sharing").
    """

    def __init__(self, block: int):
        super().__init__()
        if block < 1:
            raise ValueError(f"block: expected at least 1, got {block}")
        self.weight = nn.Parameter(torch.randn(block) / block**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Blocks (..., ceil(d / block)) of inputs (..., d)."""
        return block_product(x, self.weight)
