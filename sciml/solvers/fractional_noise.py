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

SLOWEST = {"fitted": 0.02, "stationary": 1e-4}  # rate times horizon
FASTEST, WIDER = 100.0, 10 ** (1 / 3)  # of five terms, and for each one more
SPLIT = 4.0  # of rates times horizon: incomplete gamma functions by series below, by a continued fraction above
TERMS, LEVELS = 40, 40  # of these; both are then exact to round-off
WORST = 1e12  # condition of the equations for the weights; beyond, large ones of both signs cancel
NODES = 80  # Gauss-Legendre nodes over the horizon; twice as many over the logarithm of the past
EARLIEST, LATEST = 1e6, 1e-25  # times ago, over the horizon: before, the past is a straight line; after, nothing
RIDGE = 1e-10  # keeps what processes remember small where their rates lie close together
SALT = 0x5851F42D4C957F2D  # makes another seed out of that of a driving path


@dataclass(frozen=True)
class FractionalNoise:
    r"""The Markov approximation of fractional Brownian motion B with Hurst index H in (0, 1), for times in [0, T].

    .. math:: B(t) = \sum_k (Z_k(t) - Z_k(0)), \qquad dZ_k = -\gamma_k Z_k\,dt + \omega_k\,dW:

    Ornstein-Uhlenbeck processes of one Brownian motion, with rates spaced geometrically. Their weights
    :math:`\omega(H)` make the mean squared error, integrated over [0, T], as small as possible: they solve
    :math:`A \omega = b`, A the Gram matrix of the processes and b their products with B, both in closed form.

    - Kind ``"II"``, that of Riemann and Liouville, starts at 0 without a past, Z(0) = 0:
      :math:`B(t) = \Gamma(H+\frac12)^{-1} \int_0^t (t-s)^{H-1/2}\,dW(s)`, of variance
      :math:`t^{2H} / (2H\,\Gamma(H+\frac12)^2)`.
    - Kind ``"I"`` has stationary increments, the variance of B(t) - B(s) is :math:`|t-s|^{2H}`. It is kind II times
      :math:`c = \sqrt{\Gamma(2H+1) \sin \pi H}` and what the past adds,
      :math:`c\,\Gamma(H+\frac12)^{-1} \int_{-\infty}^0 ((t-s)^{H-1/2} - (-s)^{H-1/2})\,dW(s)`, which Z(0) tells.
      With the past ``"fitted"`` that is its projection in mean square to the span of
      :math:`e^{-\gamma_k t} - 1`. With ``"stationary"``, the reference's way, Y is in its stationary law and the
      weights are those of both parts together; five terms then tell little of a long memory.

    For H = 1/2 both kinds are Brownian motion. With five terms covariances are good to 0.2 % at
    H = 0.3 and to 0.05 % for H from 0.6 to 0.9; with the stationary past they miss 1.3 % at 0.3 and 18 % at 0.9.

    Args:
        kind: ``"I"`` or ``"II"``.
        horizon: T.
        terms: K.
        slowest: the smallest rate times T; None takes 0.02, and 1e-4 with a stationary past.
        fastest: the largest rate times T; None takes 100 for five terms, and ten times more for every three terms more.
        past: ``"fitted"`` or ``"stationary"``, for kind I.

    References:
        R. Daems, M. Opper, G. Crevecoeur, T. Birdal, Variational inference for SDEs driven by fractional noise
        (ICLR 2024), arXiv:2310.12975, section 3, which leaves c out and has the stationary past only; P. Carmona,
        L. Coutin, Fractional Brownian motion and the Markov property (1998), doi:10.1214/ECP.v3-998.

    Example:
        >>> from sciml.solvers import FractionalNoise
        >>> noise = FractionalNoise("I", horizon=2.0)
        >>> noise.weights(0.7).shape
        torch.Size([5])
        >>> round(float(noise.covariance(0.7, [1.5])), 2), round(1.5**1.4, 2)
        (1.76, 1.76)
    """

    kind: Literal["I", "II"] = "I"
    horizon: float = 1.0
    terms: int = 5
    slowest: float | None = None
    fastest: float | None = None
    past: Literal["fitted", "stationary"] = "fitted"
    rates: Tensor = field(init=False, repr=False, compare=False)
    _gram: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find what does not depend on the Hurst index."""
        if self.kind not in ("I", "II"):
            raise ValueError(f"kind: expected 'I' (stationary increments) or 'II' (from 0 on), got {self.kind!r}")
        if self.past not in SLOWEST or (self.past, self.kind) == ("stationary", "II"):
            raise ValueError(f"past: expected 'fitted', or for kind I 'stationary', got {self.past!r}")
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
        usual = SLOWEST[self.past], FASTEST * WIDER ** (self.terms - 5)
        low, high = (given or other for given, other in zip((self.slowest, self.fastest), usual, strict=True))
        if low > high or (low == high and self.terms > 1):
            raise ValueError(f"slowest: expected less than the fastest rate {high:g}, got {low:g}")
        x = np.geomspace(low, high, self.terms) if self.terms > 1 else np.array([np.sqrt(low * high)])
        total = x[:, None] + x
        part = _rest(x)
        gram = (part[:, None] + part if self._stationary else _rest(total)) * self.horizon**2 / total
        if np.linalg.cond(gram) > WORST:
            raise ValueError(
                f"terms: {self.terms} rates between {low:g} and {high:g} over the horizon lie too close together for "
                "double precision; expected fewer, or a wider range"
            )
        object.__setattr__(self, "rates", torch.from_numpy(x / self.horizon))
        object.__setattr__(self, "_gram", torch.from_numpy(gram))

    @property
    def _stationary(self) -> bool:
        return self.past == "stationary"

    def weights(self, hurst: Tensor | float) -> Tensor:
        """The optimal weights (..., K), float64, as a differentiable function of Hurst indices (...).

        Raises:
            ValueError: a Hurst index outside of (0, 1).
        """
        hurst = self._checked(hurst)
        a = hurst[..., None] + 0.5
        x = self.rates.to(hurst.device) * self.horizon
        right = _product(self._stationary, x, a) * (self.horizon / x) ** (a + 1)
        right = right * self._unit(hurst)[..., None]
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

    def start(
        self,
        shape: Sequence[int],
        hurst: Tensor | float,
        seed: int = 0,
        *,
        samples: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Z(0) for noise W of a shape: (*shape, K), float64; zeros, or for kind I a draw of what the past tells.

        Args:
            shape: of W, its first axis the samples.
            hurst: as for `coefficients`; the draw is a differentiable function of it.
            seed: may be that of the driving path, whose numbers are others.
            samples: a whole number for each sample, as in `Brownian`.
        """
        root = self.root(hurst)
        if self.kind == "II":
            return torch.zeros(*shape, self.terms, dtype=torch.float64, device=root.device)
        path = Brownian((*shape, self.terms), seed ^ SALT, samples=samples, cells=1, dtype=torch.float64)
        return (root @ path(0.0, 1.0).to(root.device)[..., None])[..., 0]

    def root(self, hurst: Tensor | float) -> Tensor:
        """L (..., K, K), float64, such that Z(0) = L n with normal numbers n; differentiable."""
        if self.kind == "II":
            hurst = self._checked(hurst)
            return torch.zeros(*hurst.shape, self.terms, self.terms, dtype=torch.float64, device=hurst.device)
        if self._stationary:
            weights = self.weights(hurst)
            return weights[..., None] * _cauchy(self.rates).to(weights.device)
        hurst = self._checked(hurst)
        root = _past(self.rates.numpy() * self.horizon, hurst)
        return root * (self._unit(hurst) * self.horizon**hurst)[..., None, None]

    def covariance(self, hurst: Tensor | float, ts: Tensor | Sequence[float]) -> Tensor:
        """The covariance of the approximation between all times ts (n): (..., n, n), float64, differentiable."""
        w, root = self.weights(hurst), self.root(hurst)
        rates, t = self.rates.to(w.device), torch.as_tensor(ts, dtype=w.dtype, device=w.device)
        i, j, s, u = rates[:, None], rates, t[:, None, None, None], t[:, None, None]
        shared = torch.minimum(s, u)
        pairs = -(-i * (s - shared) - j * (u - shared)).exp() * torch.expm1(-(i + j) * shared) / (i + j)
        told = torch.expm1(-rates * t[:, None]) @ root
        return torch.einsum("...i,...j,stij->...st", w, w, pairs) + told @ told.mT

    def _checked(self, hurst: Tensor | float) -> Tensor:
        expect("hurst", hurst, Real | Tensor, "a number or a tensor")
        hurst = torch.as_tensor(hurst, dtype=torch.float64)
        if not bool(((hurst > 0) & (hurst < 1)).all()):
            raise ValueError(f"hurst: expected numbers between 0 and 1, got {hurst.detach().tolist()}")
        return hurst

    def _unit(self, hurst: Tensor) -> Tensor:
        """What kind I is multiplied with to have unit variance at time 1."""
        if self.kind == "II":
            return torch.ones_like(hurst)
        return ((2 * hurst + 1).lgamma().exp() * (torch.pi * hurst).sin()).sqrt()


def _cauchy(rates: Tensor) -> Tensor:
    """The Cholesky factor of the Cauchy matrix 1 / (rate_i + rate_j), Y's stationary covariance, to round-off."""
    factor, left = torch.zeros(len(rates), len(rates), dtype=rates.dtype), torch.ones_like(rates)
    for j, rate in enumerate(rates):
        factor[j:, j] = (left * (2 * rate).sqrt() / (rates + rate))[j:]
        left = left * (rates - rate) / (rates + rate)
    return factor


def _past(x: np.ndarray, hurst: Tensor) -> Tensor:
    r"""The root (..., K, K) of the covariance of the past's coefficients, over a horizon of 1.

    They project :math:`((t+v)^a - v^a) / \Gamma(a+1)`, a = H - 1/2, for every v > 0 to the span of
    :math:`e^{-x_k t} - 1`, t in [0, 1], by Gauss-Legendre nodes in the root of t and in log v. The factor a is left
    out until the end, so that H = 1/2 is nothing special.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    t, weights = ((nodes + 1) / 2) ** 2, weights * (nodes + 1) / 2
    basis = np.expm1(-x * t[:, None])
    gram = (basis.T * weights) @ basis
    project = np.linalg.solve(gram + RIDGE * np.trace(gram) * np.eye(len(x)), basis.T * weights)
    nodes, weights = np.polynomial.legendre.leggauss(2 * NODES)
    low, high = np.log(LATEST), np.log(EARLIEST)
    v, weights = np.exp((nodes + 1) / 2 * (high - low) + low), weights * (high - low) / 2
    project, t, v, weights = (torch.from_numpy(array).to(hurst.device) for array in (project, t, v, weights))
    a = hurst[..., None, None] - 0.5
    rise = torch.log1p(t[:, None] / v)
    small = (a * rise).abs() < 0.01  # the next term of the series is then 1e-14 of all
    safe = torch.where(small, 1.0, a * rise)
    z = torch.where(small, a * rise, 0.0)
    slope = torch.where(small, 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5))), torch.expm1(safe) / safe)
    known = v**a * rise * slope * (weights * v).sqrt()
    before = t[:, None] * EARLIEST ** (a - 0.5) / (1 - 2 * a).sqrt()
    both = project @ torch.cat([known, before.expand(*known.shape[:-1], 1)], -1)
    root = torch.linalg.qr(both.mT).R.mT
    root = root * root.detach().diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return root * a / (a + 1).lgamma().exp()


def _rest(x: np.ndarray) -> np.ndarray:
    """(x - 1 + exp(-x)) / x, without loss where x is small."""
    n = np.arange(1, 20)
    small = np.minimum(x, 1.0)[..., None]
    series = (-((-small) ** n) / np.cumprod(n + 1.0)).sum(-1)
    return np.where(x < 1, series, 1 + np.expm1(-x) / x)


def _product(stationary: bool, x: Tensor, a: Tensor) -> Tensor:
    r"""Integrals over [0, T] of the mean of Y_k B / c, times :math:`\gamma^{a+1}`, at x = gamma T with a = H + 1/2.

    With P and Q the regularised incomplete gamma functions they are
    :math:`(x - a) P(a, x) + x^a e^{-x} / \Gamma(a)` without the past and
    :math:`2 x + e^{-x} - e^x Q(a, x) - x^a / \Gamma(a + 1)` with a stationary one.
    """
    low, high, n = x.clamp_max(SPLIT), x.clamp_min(SPLIT), torch.arange(1, TERMS + 1).to(x)
    terms = (low.log()[:, None] * (a[..., None] + n) - (a[..., None] + n + 1).lgamma()).exp()  # (..., K, n)
    power, fraction = (high.log() * a - a.lgamma()).exp(), torch.zeros_like(high)
    for m in range(LEVELS, 0, -1):
        fraction = m * (m - a) / (high + 2 * m + 1 - a - fraction)
    tail = power / (high + 1 - a - fraction)  # e^x Q
    if stationary:
        odd = n[2::2]
        even = 2 * (low.log()[:, None] * odd - (odd + 1).lgamma()).exp().sum(-1)  # 2 (sinh x - x)
        small, large = terms.sum(-1) - even, 2 * high + (-high).exp() - tail - power / a
    else:
        small = (-low).exp() * (n * terms).sum(-1)
        large = (high - a) * (1 - (-high).exp() * tail) + (-high).exp() * power
    return torch.where(x < SPLIT, small, large)
