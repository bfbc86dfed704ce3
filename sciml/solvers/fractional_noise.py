"""Fractional Brownian motion as a weighted sum of Ornstein-Uhlenbeck processes of one Brownian motion."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.brownian import Brownian
from sciml.solvers.expect import expect

RANGES = {"I": (1e-4, 100.0), "II": (0.02, 100.0)}  # of rates times horizon
SPLIT = 4.0  # of rates times horizon: incomplete gamma functions by series below, by a continued fraction above
TERMS, LEVELS = 40, 40  # of these; both are then exact to round-off
WORST = 1e15  # condition of the equations for the weights; beyond, their residuals are round-off
SALT = 0x5851F42D4C957F2D  # makes another seed out of that of a driving path


@dataclass(frozen=True)
class FractionalNoise:
    r"""The Markov approximation of fractional Brownian motion with Hurst index H in (0, 1), for times in [0, T].

    Y_1, .., Y_K are Ornstein-Uhlenbeck processes of one Brownian motion, :math:`dY_k = -\gamma_k Y_k\,dt + dW`, with
    rates spaced geometrically. Weights :math:`\omega(H)` make the mean squared error, integrated over [0, T], as small
    as possible: they solve :math:`A \omega = b`, A the Gram matrix of the processes and b their products with
    fractional Brownian motion, both in closed form.

    - Kind ``"I"`` has stationary increments and unit variance at time 1: the variance of B(t) - B(s) is
      :math:`|t-s|^{2H}`. It is approximated by :math:`\sum_k \omega_k (Y_k(t) - Y_k(0))` with stationary Y. (The
      reference leaves out the factor :math:`\sqrt{\Gamma(2H+1) \sin \pi H}` that makes the variance 1.)
    - Kind ``"II"``, that of Riemann and Liouville, starts anew at 0,
      :math:`B(t) = \Gamma(H+\frac12)^{-1} \int_0^t (t-s)^{H-1/2}\,dW(s)`, with variance
      :math:`t^{2H} / (2H\,\Gamma(H+\frac12)^2)`. It is approximated by :math:`\sum_k \omega_k Y_k(t)` with Y(0) = 0.

    For H = 1/2 both are Brownian motion. With the default rates and five terms covariances of kind II are good to
    0.2 % from H = 0.3 on. Kind I remembers all of the past, which takes slow processes where H is large: there its
    covariances miss 0.6 % at H = 0.7 and far more above, and want more terms over a wider range.

    Args:
        kind: ``"I"`` or ``"II"``.
        horizon: T.
        terms: K.
        slowest: the smallest rate times T; None takes 0.02 for kind II and 1e-4 for kind I.
        fastest: the largest rate times T; None takes 100. A step h resolves rates up to about 1 / h.

    References:
        R. Daems, M. Opper, G. Crevecoeur, T. Birdal, Variational inference for SDEs driven by fractional noise
        (ICLR 2024), arXiv:2310.12975, section 3; P. Carmona, L. Coutin, Fractional Brownian motion and the Markov
        property (1998), doi:10.1214/ECP.v3-998.

    Example:
        >>> from sciml.solvers import FractionalNoise
        >>> noise = FractionalNoise("II", horizon=2.0)
        >>> noise.weights(0.7).shape
        torch.Size([5])
        >>> round(float(noise.covariance(0.5, [1.5])), 3)  # that of Brownian motion
        1.5
    """

    kind: Literal["I", "II"] = "II"
    horizon: float = 1.0
    terms: int = 5
    slowest: float | None = None
    fastest: float | None = None
    rates: Tensor = field(init=False, repr=False, compare=False)
    _gram: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find what does not depend on the Hurst index."""
        if self.kind not in RANGES:
            raise ValueError(f"kind: expected 'I' (stationary increments) or 'II' (from 0 on), got {self.kind!r}")
        expect("terms", self.terms, Integral, "a whole number")
        if self.terms < 1:
            raise ValueError(f"terms: expected at least one, got {self.terms}")
        for name in ("horizon", "slowest", "fastest"):
            given = getattr(self, name)
            if given is None and name != "horizon":
                continue
            expect(name, given, Real, "a number")
            if not 0 < given < np.inf:
                raise ValueError(f"{name}: expected a positive number, got {given}")
        low, high = (
            given or usual for given, usual in zip((self.slowest, self.fastest), RANGES[self.kind], strict=True)
        )
        if low > high or (low == high and self.terms > 1):
            raise ValueError(f"slowest: expected less than the fastest rate {high:g}, got {low:g}")
        x = np.geomspace(low, high, self.terms) if self.terms > 1 else np.array([np.sqrt(low * high)])
        total = x[:, None] + x
        part = _rest(x)
        gram = (part[:, None] + part if self.kind == "I" else _rest(total)) * self.horizon**2 / total
        if np.linalg.cond(gram) > WORST:
            raise ValueError(
                f"terms: {self.terms} rates between {low:g} and {high:g} over the horizon lie too close together for "
                "double precision; expected fewer, or a wider range"
            )
        object.__setattr__(self, "rates", torch.from_numpy(x / self.horizon))
        object.__setattr__(self, "_gram", torch.from_numpy(gram))

    def weights(self, hurst: Tensor | float) -> Tensor:
        """The optimal weights (..., K), float64, as a differentiable function of Hurst indices (...).

        Raises:
            ValueError: a Hurst index outside of (0, 1).
        """
        expect("hurst", hurst, Real | Tensor, "a number or a tensor")
        hurst = torch.as_tensor(hurst, dtype=torch.float64)
        if not bool(((hurst > 0) & (hurst < 1)).all()):
            raise ValueError(f"hurst: expected numbers between 0 and 1, got {hurst.detach().tolist()}")
        a = hurst[..., None] + 0.5
        x = self.rates.to(hurst.device) * self.horizon
        right = _product(self.kind, x, a) * (self.horizon / x) ** (a + 1)
        if self.kind == "I":
            right = right * ((2 * a).lgamma().exp() * (torch.pi * (a - 0.5)).sin()).sqrt()
        return torch.linalg.solve(self._gram.to(hurst.device).expand(*right.shape, -1), right)

    def coefficients(self, hurst: Tensor | float, like: Tensor | None = None) -> Tensor:
        """Weights and rates (2, ..., K): what a `Fractional` term takes as its first argument.

        Args:
            hurst: Hurst index; or several of them, with a shape that broadcasts against that of a sample's noise.
            like: a tensor whose dtype and device they shall have.
        """
        weights = self.weights(hurst)
        both = torch.stack([weights, self.rates.to(weights.device).expand_as(weights)])
        return both if like is None else both.to(like)

    def covariance(self, hurst: Tensor | float, ts: Tensor | Sequence[float]) -> Tensor:
        """The covariance of the approximation between all times ts (n): (..., n, n), float64, differentiable."""
        w = self.weights(hurst)
        t = torch.as_tensor(ts, dtype=w.dtype, device=w.device)
        rates = self.rates.to(w.device)
        at = lambda s, t: self._products(rates, s, t)  # noqa: E731
        s, zero = t[:, None], torch.zeros_like(t)
        pairs = at(s, t)
        if self.kind == "I":
            pairs = pairs - at(s, zero) - at(zero[:, None], t) + at(zero[:, None], zero)
        return torch.einsum("...i,...j,stij->...st", w, w, pairs)

    def _products(self, rates: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The mean of Y_i(s) Y_j(t), (*s, K, K)."""
        s, t = (x[..., None, None] for x in torch.broadcast_tensors(s, t))
        i, j, shared = rates[:, None], rates, torch.minimum(s, t)
        found = (-i * (s - shared) - j * (t - shared)).exp()
        return (found if self.kind == "I" else found * -torch.expm1(-(i + j) * shared)) / (i + j)

    def start(self, shape: Sequence[int], seed: int = 0, *, samples: Tensor | Sequence[int] | None = None) -> Tensor:
        """Y(0) for noise W of a shape: (*shape, K), float64; zeros, or for kind I a draw from the stationary law.

        Args:
            shape: of W, its first axis the samples.
            seed: may be that of the driving path, whose numbers are others.
            samples: a whole number for each sample, as in `Brownian`.
        """
        shape = (*shape, self.terms)
        if self.kind == "II":
            return torch.zeros(shape, dtype=torch.float64)
        path = Brownian(shape, seed ^ SALT, samples=samples, cells=1, dtype=torch.float64)
        return path(0.0, 1.0) @ self._root().T

    def _root(self) -> Tensor:
        """The Cholesky factor of the stationary covariance 1 / (rate_i + rate_j), a Cauchy matrix, to round-off."""
        rates = self.rates
        factor = torch.zeros(self.terms, self.terms, dtype=torch.float64)
        left = torch.ones_like(rates)
        for j, rate in enumerate(rates):
            factor[j:, j] = (left * (2 * rate).sqrt() / (rates + rate))[j:]
            left = left * (rates - rate) / (rates + rate)
        return factor


def _rest(x: np.ndarray) -> np.ndarray:
    """(x - 1 + exp(-x)) / x, without loss where x is small."""
    n = np.arange(1, 20)
    small = np.minimum(x, 1.0)[..., None]
    series = (-((-small) ** n) / np.cumprod(n + 1.0)).sum(-1)
    return np.where(x < 1, series, 1 + np.expm1(-x) / x)


def _product(kind: str, x: Tensor, a: Tensor) -> Tensor:
    r"""Integrals over [0, T] of the mean of Y_k B, times :math:`\gamma^{a+1}`, at x = gamma T with a = H + 1/2.

    With P and Q the regularised incomplete gamma functions they are
    :math:`(x - a) P(a, x) + x^a e^{-x} / \Gamma(a)` of kind II and
    :math:`2 x + e^{-x} - e^x Q(a, x) - x^a / \Gamma(a + 1)` of kind I.
    """
    low, high, n = x.clamp_max(SPLIT), x.clamp_min(SPLIT), torch.arange(1, TERMS + 1).to(x)
    terms = (low.log()[:, None] * (a[..., None] + n) - (a[..., None] + n + 1).lgamma()).exp()  # (..., K, n)
    power, fraction = (high.log() * a - a.lgamma()).exp(), torch.zeros_like(high)
    for m in range(LEVELS, 0, -1):
        fraction = m * (m - a) / (high + 2 * m + 1 - a - fraction)
    tail = power / (high + 1 - a - fraction)  # e^x Q
    if kind == "I":
        odd = n[2::2]
        even = 2 * (low.log()[:, None] * odd - (odd + 1).lgamma()).exp().sum(-1)  # 2 (sinh x - x)
        small, large = terms.sum(-1) - even, 2 * high + (-high).exp() - tail - power / a
    else:
        small = (-low).exp() * (n * terms).sum(-1)
        large = (high - a) * (1 - (-high).exp() * tail) + (-high).exp() * power
    return torch.where(x < SPLIT, small, large)
