"""Multilayer perceptron: the vector field of a neural ODE, the ansatz of a physics-informed network."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "relu", "silu", "sin", "softplus", "tanh"]

ACTIVATIONS = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "sin": torch.sin,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}


class MLP(nn.Module):
    """Affine maps with an activation after each but the last: x -> A_depth s(A_{depth-1} ... s(A_0 x)).

    The weights start as Xavier normal, the biases at zero (Glorot and Bengio 2010), so that the variance of a signal
    and of its gradient is kept through layers of equal width. Where derivatives of the output in x enter a loss, take
    a smooth activation: ``"relu"`` has no second derivative.

    Args:
        in_features: size of the last axis of the input.
        out_features: size of the last axis of the output.
        width: size of the hidden layers.
        depth: number of hidden layers; 0 gives one affine map.
        activation: what stands between the layers.

    Raises:
        ValueError: if a size is too small or the activation is unknown.

    Example:
        >>> import torch
        >>> from sciml.models.mlp import MLP
        >>> MLP(2, 1, width=32, depth=3)(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, in_features: int, out_features: int, width: int = 64, depth: int = 2, activation: Activation = "tanh"
    ):
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "width": width}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if depth < 0:
            raise ValueError(f"depth: expected the number of hidden layers, 0 or more, got {depth}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.layers = nn.ModuleList(affine(a, b) for a, b in pairwise([in_features, *[width] * depth, out_features]))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the net to the last axis.

        Args:
            x: features (..., in_features).

        Returns:
            Features (..., out_features).
        """
        act = ACTIVATIONS[self.activation]
        *hidden, last = self.layers
        for layer in hidden:
            x = act(layer(x))
        return last(x)


def affine(in_features: int, out_features: int) -> nn.Linear:
    """An affine map with Xavier normal weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
