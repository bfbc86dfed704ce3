"""Data as curves in time: what drives a controlled differential equation."""

from typing import NamedTuple

import torch
from torch import Tensor


class Spline(NamedTuple):
    r"""A curve X(t) of c channels for each sample, a polynomial between neighbouring knots; a tuple of tensors.

    Between knots i and i + 1 it is :math:`\sum_k a_{ik} u^k` with u from 0 to 1; the first and the last polynomial go
    on outside. `linear`, `hermite` and `rectilinear` make it from data, NaN where a value is missing, with derivatives.

    Attributes:
        ts: the knots, (n) for all samples or (b, n); they do not decrease.
        coefficients: a, (b, n - 1, c, degree + 1).

    Reference:
        J. Morrill, P. Kidger, L. Yang, T. Lyons, Neural controlled differential equations for online prediction tasks
        (2021), arXiv:2106.11028.

    Example:
        >>> import torch
        >>> from sciml.solvers import Spline
        >>> x = Spline.linear(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([[[0.0], [torch.nan], [6.0]]]))
        >>> x(torch.tensor(1.5)), x.derivative(torch.tensor(1.5))
        (tensor([[3.]]), tensor([[2.]]))
    """

    ts: Tensor
    coefficients: Tensor

    @classmethod
    def linear(cls, ts: Tensor, values: Tensor) -> "Spline":
        """Straight lines between values; continuous.

        Up to a time it depends on the values until then, and the next one of each channel.

        Args:
            ts: times (n), or (b, n) of each sample's own; they do not decrease.
            values: (b, n, c), NaN where missing, see `filled`.

        Raises:
            ValueError: if the shapes do not fit, or there are fewer than two times.
        """
        x = filled(ts, values)
        return cls(ts, torch.stack([x[:, :-1], x.diff(dim=1)], -1))

    @classmethod
    def hermite(cls, ts: Tensor, values: Tensor) -> "Spline":
        """Cubics whose slope at a knot is that of the line from the knot before, at the first that of the line after.

        They are once continuously differentiable. Behind a gap that is short beside the next one they swing out far, so
        that they are for times that lie evenly. Where nothing is missing, the curve up to a knot
        depends on the values until then alone (Morrill et al. 2021).

        Args:
            ts: times (n), or (b, n) of each sample's own; they do not decrease.
            values: (b, n, c), NaN where missing, see `filled`.

        Raises:
            ValueError: if the shapes do not fit, or there are fewer than two times.
        """
        x, gaps = filled(ts, values), ts.diff()[..., None]
        rise = x.diff(dim=1)
        before, after = gaps[..., :-1, :], gaps[..., 1:, :]
        ratio = torch.where(before > 0, after / torch.where(before > 0, before, 1), 0).to(x)
        start = torch.cat([rise[:, :1], ratio * rise[:, :-1]], 1)  # the slope at u = 0; at u = 1 it is the rise
        bend = rise - start
        return cls(ts, torch.stack([x[:, :-1], start, 2 * bend, -bend], -1))

    @classmethod
    def rectilinear(cls, ts: Tensor, values: Tensor) -> "Spline":
        """Time and values in turns: time goes on while the values stand still, then they go to the next ones.

        At no place does it depend on what is seen later: a missing value is as the last one, before the first it is 0.

        Args:
            ts: times (n), or (b, n) of each sample's own; they do not decrease.
            values: (b, n, c), NaN where missing.

        Returns:
            A curve of c + 1 channels, time and values, over the knots 0, 1, .., 2 n - 2; observation i is at 2 i.

        Raises:
            ValueError: if the shapes do not fit, or there are fewer than two times.
        """
        times = _times(ts, values).to(values)
        held = _neighbours(values)[0]
        turns = torch.cat(
            [times.repeat_interleave(2, 1)[:, 1:, :1], _at(values, held).repeat_interleave(2, 1)[:, :-1]], -1
        )
        return cls.linear(torch.arange(turns.shape[1], device=ts.device, dtype=ts.dtype), turns)

    def by_index(self) -> "Spline":
        """The same curve with knots 0, 1, .., n - 1.

        What it drives comes to the same states at the knots, so that samples with knots of their own can be one system.
        """
        count = self.ts.shape[-1]
        return self._replace(ts=torch.arange(count, device=self.ts.device, dtype=self.ts.dtype))

    def __call__(self, t: Tensor) -> Tensor:
        """X(t).

        Args:
            t: a time, 0-d or as fields see it with lanes "each", (b, 1, .., 1); or times (m) for all samples.

        Returns:
            Values (b, c), at times (m) values (b, m, c).
        """
        a, u, _ = self._pieces(t)
        return _shaped(_horner(a.unbind(-1), u), t)

    def derivative(self, t: Tensor) -> Tensor:
        """dX/dt, as X(t); at a knot that of the polynomial after it."""
        a, u, gap = self._pieces(t)
        return _shaped(_horner([k * each for k, each in enumerate(a.unbind(-1))][1:], u) / gap, t)

    def _pieces(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (b, m, c, k), u and the gap (.., m, 1) of the pieces in which times lie."""
        ts, a = self.ts, self.coefficients
        times = t.reshape(t.shape[0], 1) if t.ndim > 1 else t.reshape(-1)  # (b, 1) or (m)
        if ts.ndim > 1:
            times = times.expand(ts.shape[0], times.shape[-1])
        times = times.to(ts).contiguous()
        i = torch.searchsorted(ts[..., 1:-1].detach().contiguous(), times.detach(), right=True)
        if ts.ndim > 1:
            start, end = ts.gather(-1, i), ts.gather(-1, i + 1)
        else:
            start, end = (ts.index_select(0, j.reshape(-1)).reshape(i.shape) for j in (i, i + 1))
        a = a.index_select(1, i) if i.ndim == 1 else a.gather(1, i[..., None, None].expand(-1, -1, *a.shape[2:]))
        gap = end - start
        gap = torch.where(gap > 0, gap, 1)
        return a, ((times - start) / gap)[..., None].to(a), gap[..., None].to(a)


def filled(ts: Tensor, values: Tensor) -> Tensor:
    """Values (b, n, c) with the missing ones put in: on the line between the neighbours of their channel.

    Before the first of them they are as the first, after the last as the last; a channel that is never seen is 0.

    Args:
        ts: times (n) or (b, n); they do not decrease.
        values: NaN where missing.

    Raises:
        ValueError: if the shapes do not fit, or there are fewer than two times.
    """
    times = _times(ts, values)
    before, after = _neighbours(values)
    before, after = torch.where(before < 0, after, before), torch.where(after < 0, before, after)
    start, end = (times.gather(1, place.clamp_min(0)) for place in (before, after))
    between = end > start
    share = torch.where(between, (times - start) / torch.where(between, end - start, 1), 0).to(values)
    left, right = _at(values, before), _at(values, after)
    return left + share * (right - left)


def _times(ts: Tensor, values: Tensor) -> Tensor:
    """The times of values (b, n, c), in their shape."""
    if values.ndim != 3 or ts.ndim not in (1, 2) or ts.shape != values.shape[2 - ts.ndim : 2]:
        expected = "values (b, n, c) with times (n) or (b, n)"
        raise ValueError(f"ts, values: expected {expected}, got {tuple(values.shape)} with {tuple(ts.shape)}")
    if values.shape[1] < 2:
        raise ValueError(f"values: expected at least two times, got {values.shape[1]}")
    return ts[..., None].expand(values.shape)


def _neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    """Where each channel is seen last before or at a place, and first at or after it; -1 for nowhere."""
    seen, count = ~values.isnan(), values.shape[1]
    place = torch.arange(count, device=values.device)[:, None].expand(values.shape)
    before = torch.where(seen, place, -1).cummax(1).values
    after = torch.where(seen, place, count).flip(1).cummin(1).values.flip(1)
    return before, torch.where(after < count, after, -1)


def _at(values: Tensor, place: Tensor) -> Tensor:
    """The values at places where they are seen; 0 for nowhere."""
    return torch.where(place < 0, 0, values.gather(1, place.clamp_min(0)))


def _horner(a: list[Tensor] | tuple[Tensor, ...], u: Tensor) -> Tensor:
    """The polynomial of coefficients from the lowest on."""
    value = a[-1]
    for each in a[-2::-1]:
        value = each + u * value
    return value


def _shaped(values: Tensor, t: Tensor) -> Tensor:
    """Values (b, m, c) without m where there is one time for each sample."""
    return values if t.ndim == 1 else values.squeeze(1)
