"""Networks that read observations of a trajectory from the last to the first, at times of any distance."""

import math

import torch
from torch import Tensor, nn

from sciml.models.mlp import MLP


class BackwardGRU(nn.Module):
    """A GRU over all times: it sees the observations, which of them there are, and the time since the last.

    Args:
        channels: number of components of an observation.
        width: of what it knows.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.gru = nn.GRU(2 * channels + 1, width, batch_first=True)

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What is known at each time of the observations there and later on.

        Args:
            ts: increasing times (t) or (b, t).
            ys: observations (b, t, c), 0 where there are none.
            mask: where there are some (b, t, c), bool.

        Returns:
            (b, t, width).
        """
        gaps = ts.diff(dim=-1, prepend=ts[..., :1]).to(ys)
        gaps = gaps.expand(ys.shape[:2])[..., None]
        seen = torch.cat([ys, mask.to(ys), gaps], -1)
        read, _ = self.gru(seen.flip(1))
        return read.flip(1)


class ObservedGRU(nn.Module):
    """A GRU over the times at which something is observed, and the first: few steps where observations are sparse.

    It sees the observations, which of them there are, the time since the last step, and the time itself, also as sines
    and cosines of periods 1, 1/2 and 1/4 in the unit of time, which should thus be about the span.

    Args:
        channels: number of components of an observation.
        width: of what it knows.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.gru = nn.GRU(2 * channels + 8, width, batch_first=True)

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What is known at the first time of all observations, (b, 1, width); arguments as of `BackwardGRU`."""
        index = torch.arange(ys.shape[1], device=ys.device)
        read = mask.any(-1) | (index == 0)
        count = read.sum(1)
        traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()  # without numbers of their data
        longest = ys.shape[1] if traced else int(count.max()) if len(ys) else 1
        order = torch.where(read, index, -1).topk(longest, 1).values.clamp(min=0)  # behind the first time anything
        t = ts.to(ys).expand(ys.shape[:2]).gather(1, order)[..., None]
        seen = torch.cat([ys, mask.to(ys)], -1)
        seen = seen.gather(1, order[..., None].expand(-1, -1, seen.shape[-1]))
        angles = 2 * math.pi * t * torch.tensor([1.0, 2.0, 4.0]).to(t)
        gaps = -t.diff(dim=1, prepend=t[:, :1])
        known, _ = self.gru(torch.cat([seen, gaps, t, angles.sin(), angles.cos()], -1))
        return known.gather(1, (count - 1)[:, None, None].expand(-1, 1, known.shape[-1]))


class ODERNN(nn.Module):
    """An ODE between observations, a GRU's update at them: h' = f(h) backwards in time, then h <- GRU([y, mask], h).

    Where nothing is observed of a trajectory there is no update. The ODE is solved by a step of Euler's method for each
    interval, as the paper's program does for intervals below a fiftieth of the span.

    Args:
        channels: number of components of an observation.
        width: of what it knows.
        hidden: of the net f's hidden layer; None takes the same.

    Reference:
        Y. Rubanova, R. T. Q. Chen, D. Duvenaud, Latent ODEs for irregularly-sampled time series, NeurIPS 2019,
        arXiv:1907.03907, section 3.1 and algorithm 1.
    """

    def __init__(self, channels: int, width: int, hidden: int | None = None):
        super().__init__()
        self.field = MLP(width, width, hidden or width, depth=1)
        self.update = nn.GRUCell(2 * channels, width)

    def forward(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What is known at each time of the observations there and later on; arguments as of `BackwardGRU`."""
        seen = torch.cat([ys, mask.to(ys)], -1)
        gaps = ts.diff(dim=-1).to(ys).expand(ys.shape[0], -1)[..., None]  # `len` would fix the batch of an export
        there = mask.any(-1, keepdim=True)
        h = ys.new_zeros(ys.shape[0], self.update.hidden_size)
        known = []
        for i in reversed(range(ys.shape[1])):
            if known:
                h = h + gaps[:, i] * self.field(h)
            h = torch.where(there[:, i], self.update(seen[:, i], h), h)
            known.append(h)
        return torch.stack(known[::-1], 1)
