"""Layers one after the other, for configurations."""

from torch import nn


class Chain(nn.Sequential):
    """`torch.nn.Sequential` of a list, which a configuration can write.

    Args:
        layers: the modules, in the order in which they are applied.
    """

    def __init__(self, layers: list[nn.Module]):
        super().__init__(*layers)
