"""Times that are nodes of a grid but for round-off, as the nodes."""

from bisect import bisect_left

import torch
from torch import Tensor

WITHIN = 4  # units in the last place of time


class Snap:
    """Maps a time to the node that it nearly is: a field may read a table there, or jump.

    Args:
        nodes: times, in order or the reverse; none leaves all times as they are.
    """

    def __init__(self, nodes: list[float]):
        self.nodes = sorted(nodes)
        self.slack = WITHIN * torch.finfo(torch.float64).eps * max(map(abs, nodes), default=0.0)

    def __call__(self, t: Tensor) -> Tensor:
        """The time (0-d)."""
        if not self.nodes:
            return t
        time = t.item()
        place = bisect_left(self.nodes, time - self.slack)
        node = self.nodes[place] if place < len(self.nodes) else time
        return t + (node - time) if time != node <= time + self.slack else t
