"""Relaxation parameters learned over a sequence of linear systems from the numbers of iterations alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy import ndarray
from numpy.polynomial.chebyshev import chebvander
from scipy.optimize import lsq_linear
from torch import Tensor

from sciml.solvers.linear.arguments import as_operator
from sciml.solvers.linear.conjugate_gradient import pcg
from sciml.solvers.linear.incomplete import SSOR
from sciml.solvers.linear.relaxation import sor
from sciml.solvers.linear.solution import LinearSolution, throw_failed

NEWTON = 50  # iterations for the weights of Tsallis-INF; some ten are needed
DECAY = 0.5  # of the variance from one polynomial to the next
LENGTH = 1.0  # in log(2 - omega), within which costs are alike
FORGET = 1e-4  # share of the prior variance that comes back with every solve, since systems drift
SCARCE = 20  # observations that the first guess of the noise is worth
NARROW, WIDE = 0.5, 3.0  # confidence bounds, in standard deviations, with a context and without one


class LearnedOmega:
    """Chooses the relaxation parameter of each linear system of a sequence; learns from the iterations that it took.

    Methods, of which the last one is the default:

    - ``"tsallis-inf"``: the bandit of Zimmert and Seldin (2021), with which Khodak et al. (2024, section 2.2) come near
      the best fixed omega of the grid, whatever the sequence; it takes no context.
    - ``"chebcb"``: the contextual bandit of Khodak et al. (2024, section 3): for each omega of the grid a Chebyshev
      series in a number that is known of each system, as a shift of its diagonal, and inverse gap weighting.
    - ``"regression"``: one Gaussian model for all of the grid, in which omegas that are near have like costs: of the
      logarithm of the iterations, a Chebyshev series in the context, or of mean iterations where there is none. The
      omega with the least lower confidence bound is chosen (Srinivas et al. 2010), without chance. It needs several
      times fewer systems than the others; it has no guarantee for adversarial sequences. Its constants were chosen on
      sequences other than those of the benchmark.

    Args:
        method: as above.
        grid: omegas in (0, 2) to choose from, rising; 20 from 1 to 1.95 without it.
        context: the least and the largest number that tells of a system, such as the logarithm of its time step;
            numbers beyond are taken for these. None where there is none.
        seed: of the choices.

    Example:
        >>> omega = LearnedOmega(context=(-1.0, 1.0))
        >>> for shift in [0.3, -0.2, 0.1]:
        ...     w = omega.choose(shift)
        ...     omega.observe(iterations=20 + 100 * abs(w - 1.5 + 0.3 * shift))
        >>> len(omega.iterations), 1 <= omega.choose(0.0) < 2
        (3, True)

    Reference:
        M. Khodak, E. Chow, M.-F. Balcan, A. Talwalkar, Learning to relax: setting solver parameters across a sequence
        of linear system instances, ICLR 2024, arXiv:2310.02246; J. Zimmert, Y. Seldin, Tsallis-INF, JMLR 22 (2021),
        arXiv:1807.07623; N. Srinivas, A. Krause, S. Kakade, M. Seeger, Gaussian process optimization in the bandit
        setting, ICML 2010, arXiv:0912.3995.
    """

    def __init__(
        self,
        method: Literal["regression", "chebcb", "tsallis-inf"] = "regression",
        grid: Sequence[float] | None = None,
        context: tuple[float, float] | None = None,
        seed: int = 0,
    ):
        omegas = np.linspace(1, 1.95, 20) if grid is None else np.asarray(grid, dtype=float)
        if len(omegas) < 2 or not (omegas[0] > 0 and omegas[-1] < 2 and (np.diff(omegas) > 0).all()):
            raise ValueError(f"grid: expected at least two rising numbers in (0, 2), got {grid}")
        if context is not None and not context[0] < context[1]:
            raise ValueError(f"context: expected the least and the largest number, got {context}")
        if seed < 0:
            raise ValueError(f"seed: expected a number that is not negative, got {seed}")
        regression = Averages if context is None else Regression
        policies = {"regression": regression, "chebcb": ChebCB, "tsallis-inf": TsallisINF}
        if method not in policies:
            raise ValueError(f"method: expected one of {', '.join(policies)}, got {method!r}")
        if (method == "tsallis-inf" and context) or (method == "chebcb" and not context):
            raise ValueError(f"context: expected {'one' if context is None else 'none'} with {method}, got {context}")
        self.method, self.grid, self.context, self.seed = method, omegas, context, seed
        terms = {"regression": 8, "chebcb": 6, "tsallis-inf": 1}[method]  # 6 in the authors' experiments
        self.policy: Policy = policies[method](omegas, 1 if context is None else terms)
        self.contexts: list[float] = []
        self.arms: list[int] = []
        self.iterations: list[float] = []

    def choose(self, context: float | None = None) -> float:
        """The omega for the next system.

        Args:
            context: the number that tells of it.

        Raises:
            ValueError: a context where there should be none, or none where there should be one.
            RuntimeError: what the last choice cost has not been told.
        """
        if len(self.arms) > len(self.iterations):
            raise RuntimeError("choose: tell the iterations of the last system by observe() first")
        number = self._number(context)
        weights = self.policy.weights(self._features(number))
        share = np.random.default_rng([self.seed, len(self.arms)]).random()
        arm = int(np.searchsorted(weights.cumsum(), share * weights.sum(), side="right"))
        self.contexts.append(number)
        self.arms.append(min(arm, len(self.grid) - 1))
        return float(self.grid[self.arms[-1]])

    def best(self, context: float | None = None) -> float:
        """The omega that has the least cost as far as is known, without a choice to learn from.

        Args:
            context: the number that tells of the system.

        Raises:
            ValueError: a context where there should be none, or none where there should be one.
        """
        return float(self.grid[self.policy.best(self._features(self._number(context)))])

    def observe(self, iterations: float) -> None:
        """What the system of the last choice took.

        Args:
            iterations: their number, from 0 on; of a solve that failed, at least the number that was allowed.

        Raises:
            ValueError: a number that is none.
            RuntimeError: nothing has been chosen.
        """
        if not 0 <= iterations < float("inf"):
            raise ValueError(f"iterations: expected a number from 0 on, got {iterations}")
        if len(self.arms) == len(self.iterations):
            raise RuntimeError("observe: choose() an omega first")
        self.iterations.append(float(iterations))
        self.policy.learn(self.arms[-1], max(float(iterations), 1.0))

    def solve(
        self,
        A: Any,
        b: Tensor,
        x0: Tensor | None = None,
        *,
        context: float | None = None,
        sweeps: Literal["ssor-cg", "sor"] = "ssor-cg",
        throw: bool = True,
        **options: Any,
    ) -> LinearSolution:
        """Choose, solve one system, and observe.

        Args:
            A: the matrix, as `pcg` takes it.
            b: (n), or several right-hand sides as rows (m, n), whose mean number of iterations counts.
            x0: first guess, of b's shape; None is 0.
            context: the number that tells of the system.
            sweeps: ``"ssor-cg"`` for conjugate gradients preconditioned by symmetric over-relaxation, or ``"sor"``.
            throw: whether a system that was not solved is an error, after it was learned from.
            options: of `pcg` or `sor`.

        Returns:
            The solution.

        Raises:
            LinearSolveError: the system was not solved, and ``throw``.
        """
        if sweeps not in ("ssor-cg", "sor"):
            raise ValueError(f"sweeps: expected 'ssor-cg' or 'sor', got {sweeps!r}")
        operator, omega = as_operator(A), self.choose(context)
        try:
            if sweeps == "sor":
                solution = sor(operator, b, omega, x0, throw=False, **options)
            else:
                solution = pcg(operator, b, SSOR(omega), x0, throw=False, **options)
        except BaseException:  # an interrupt too
            del self.arms[-1], self.contexts[-1]
            raise
        self.observe(solution.iterations.double().mean().item() if len(solution.iterations) else 0.0)
        if throw:
            throw_failed(solution, options.get("max_iter", 10_000))
        return solution

    def state_dict(self) -> dict[str, Any]:
        """All that it has seen, of which its choices are a function: plain lists."""
        seen = slice(len(self.iterations))
        return {"contexts": self.contexts[seen], "arms": self.arms[seen], "iterations": self.iterations.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another one with the same arguments has seen, by learning it again."""
        self.policy = type(self.policy)(self.grid, self.policy.terms)
        self.contexts, self.arms, self.iterations = (list(state[k]) for k in ("contexts", "arms", "iterations"))
        for context, arm, iterations in zip(self.contexts, self.arms, self.iterations, strict=True):
            self.policy.weights(self._features(context))
            self.policy.learn(arm, max(iterations, 1.0))

    def _number(self, context: float | None) -> float:
        if (context is None) != (self.context is None) or context != context:
            raise ValueError(f"context: expected {'none' if self.context is None else 'a number'}, got {context}")
        return 0.0 if context is None else float(context)

    def _features(self, context: float) -> ndarray:
        if self.context is None:
            return np.ones(1)
        low, high = self.context
        return chebvander(min(max(2 * (context - low) / (high - low) - 1, -1.0), 1.0), self.policy.terms - 1)[0]


class Policy(ABC):
    """Weighs the omegas of a grid (d) given Chebyshev polynomials (k) of a context, and learns from costs from 1 on."""

    def __init__(self, grid: ndarray, terms: int):
        self.grid, self.terms = grid, terms

    @abstractmethod
    def weights(self, features: ndarray) -> ndarray:
        """The probability (d) of each."""

    @abstractmethod
    def learn(self, arm: int, cost: float) -> None:
        """From the cost of one of them in the context of the last weights."""

    @abstractmethod
    def best(self, features: ndarray) -> int:
        """Which has the least cost as far as is known."""


class TsallisINF(Policy):
    """Online mirror descent with Tsallis entropy 1/2, rate 2 / sqrt(t) and variance-reduced importance weights.

    Costs are less 1, over their mean so far. Weights are 4 / (eta (L - x))^2 with x found by Newton's method from where
    it converges monotonically (Zimmert and Seldin, sections 3 and 4).
    """

    def __init__(self, grid: ndarray, terms: int):
        super().__init__(grid, terms)
        self.losses, self.total, self.t = np.zeros(len(grid)), 0.0, 0

    def weights(self, features: ndarray) -> ndarray:
        """By the losses so far."""
        self.rate = 2 / np.sqrt(self.t + 1)
        losses = self.losses / max(self.total / max(self.t, 1), 1e-9)
        x = losses.min() - 2 / self.rate
        for _ in range(NEWTON):
            p = 4 / (self.rate * (losses - x)) ** 2
            step = (p.sum() - 1) / (self.rate * (p**1.5).sum())
            x -= step
            if abs(step) <= 1e-12 * abs(x):
                break
        self.p = p / p.sum()
        return self.p

    def learn(self, arm: int, cost: float) -> None:
        """An unbiased estimate of all losses."""
        self.total, self.t = self.total + cost - 1, self.t + 1
        base = (self.p >= self.rate**2) * self.total / self.t / 2
        self.losses += base
        self.losses[arm] += (cost - 1 - base[arm]) / self.p[arm]

    def best(self, features: ndarray) -> int:
        """The one of the largest weight."""
        return int(self.weights(features).argmax())


class ChebCB(Policy):
    """SquareCB with a Chebyshev series of bounded coefficients for each omega (Khodak et al., section 3, ChebCB).

    Bounds come from the range and the largest slope of the costs so far; the rate of the inverse gap weights grows with
    the number of solves, as in the authors' experiments.
    """

    def __init__(self, grid: ndarray, terms: int):
        super().__init__(grid, terms)
        d = len(grid)
        self.theta, self.rate, self.scale = np.zeros((d, terms)), 0.0, 0.0
        self.rows: list[list[ndarray]] = [[] for _ in range(d)]
        self.costs: list[list[float]] = [[] for _ in range(d)]
        self.predicted: list[float] = []
        self.seen: list[float] = []

    def weights(self, features: ndarray) -> ndarray:
        """Inverse gaps to the least predicted cost."""
        self.features, self.predictions = features, self.theta @ features
        best = self.predictions.argmin()
        p = 1 / (len(self.grid) + self.rate * (self.predictions - self.predictions[best]))
        p[best] += 1 - p.sum()
        return p

    def learn(self, arm: int, cost: float) -> None:
        """Fit the series of what was chosen, and all of them where the scale is new."""
        self.rows[arm].append(self.features)
        self.costs[arm].append(cost)
        self.predicted.append(float(self.predictions[arm]))
        self.seen.append(cost)
        d, m, t = len(self.grid), self.terms, len(self.seen)
        largest, spread = max(self.seen), max(self.seen) - min(self.seen)  # the context's range, 2, times the slope
        n = 2 + 4 * spread / largest * (1 + np.log(m))
        new, self.scale = self.scale != largest * n, largest * n
        bounds = np.append(1 / n, 2 * spread / self.scale / np.arange(1, m))
        for i in range(d) if new else [arm]:
            if self.rows[i]:
                self.theta[i] = _bounded(np.array(self.rows[i]), (np.array(self.costs[i]) - 1) / self.scale, bounds)
        alpha = (np.pi + 2 / np.pi * np.log(2 * m + 1)) / (2 * self.scale * (m + 1)) * spread
        regret = ((np.array(self.predicted) - np.array(self.seen) / self.scale) ** 2).sum()
        self.rate = 2 * t * np.sqrt(d * t / (regret + 2 * alpha**2 * t + 1e-12))

    def best(self, features: ndarray) -> int:
        """The one of the least predicted cost."""
        return int((self.theta @ features).argmin())


def _bounded(rows: ndarray, costs: ndarray, bounds: ndarray) -> ndarray:
    """The least-squares coefficients within the bounds."""
    found = np.linalg.lstsq(rows, costs, rcond=None)[0]
    if (np.abs(found) > bounds).any():
        bounds = np.maximum(bounds, 1e-9)
        found = lsq_linear(rows, costs, (-bounds, bounds), method="bvls").x
    return found


def alike(grid: ndarray) -> ndarray:
    """The covariance (d, d) of costs of a grid: 1 + (1 + s + s^2 / 3) e^-s, s = sqrt(5) |u - v|, u = log(2 - omega)."""
    u = np.log(2 - grid)
    s = np.sqrt(5) * np.abs(u[:, None] - u) / LENGTH
    return 1 + (1 + s + s**2 / 3) * np.exp(-s)


class Averages(Policy):
    """A Gaussian process of mean costs over the grid, relative to the mean of all so far, and lower confidence bounds.

    The noise is what costs of one omega differ by, and .3 of their mean as long as little is known.
    """

    def __init__(self, grid: ndarray, terms: int):
        super().__init__(grid, terms)
        self.prior, self.counts, self.sums, self.squares = alike(grid), *np.zeros((2, len(grid))), 0.0

    def weights(self, features: ndarray) -> ndarray:
        """All of it on the least lower bound, before anything is known on the middle of the grid."""
        arm = len(self.grid) // 2
        if self.counts.any():
            mean, variance = self.posterior()
            arm = (mean - WIDE * np.sqrt(variance)).argmin()
        return (np.arange(len(self.grid)) == arm).astype(float)

    def posterior(self) -> tuple[ndarray, ndarray]:
        """Mean and variance (d) of the mean costs."""
        seen = np.flatnonzero(self.counts)
        n, total = self.counts[seen], self.counts.sum()
        means, scale = self.sums[seen] / n, self.sums.sum() / total
        within = (self.squares - (n * means**2).sum()) / scale**2
        noise = (SCARCE * 0.3**2 + max(within, 0)) / (SCARCE + total - len(seen))
        gain = self.prior[:, seen] @ np.linalg.inv(self.prior[np.ix_(seen, seen)] + np.diag(noise / n))
        variance = self.prior.diagonal() - (gain * self.prior[:, seen]).sum(1)
        return gain @ (means / scale - 1), np.maximum(variance, 0)

    def best(self, features: ndarray) -> int:
        """The one of the least mean, before anything is known the middle of the grid."""
        return int(self.posterior()[0].argmin()) if self.counts.any() else len(self.grid) // 2

    def learn(self, arm: int, cost: float) -> None:
        """Count it."""
        self.counts[arm] += 1
        self.sums[arm] += cost
        self.squares += cost**2


class Regression(Policy):
    """A Gaussian process of log costs over the grid and Chebyshev coefficients in the context, lower confidence bounds.

    The prior variance halves with each degree. The noise is that of the past residuals.
    """

    def __init__(self, grid: ndarray, terms: int):
        super().__init__(grid, terms)
        self.prior = np.einsum("ab,nm->anbm", alike(grid), np.diag(DECAY ** np.arange(terms)))  # (d, k, d, k)
        self.spread, self.mean = self.prior.copy(), np.zeros((len(grid), terms))
        self.count, self.squares = SCARCE, SCARCE * 0.05**2
        self.first = 0.0

    def weights(self, features: ndarray) -> ndarray:
        """All of it on the least lower bound, before anything is known on the middle of the grid."""
        self.features = features
        variance = np.einsum("anam,n,m->a", self.spread, features, features)
        bound = self.mean @ features - NARROW * np.sqrt(np.maximum(variance, 0))
        arm = bound.argmin() if self.first else len(self.grid) // 2
        return (np.arange(len(self.grid)) == arm).astype(float)

    def best(self, features: ndarray) -> int:
        """The one of the least mean, before anything is known the middle of the grid."""
        return int((self.mean @ features).argmin()) if self.first else len(self.grid) // 2

    def learn(self, arm: int, cost: float) -> None:
        """Condition on the cost."""
        self.first = self.first or cost
        noise = max(self.squares / self.count, 1e-4)
        gain = self.spread[:, :, arm] @ self.features  # (d, k)
        variance = gain[arm] @ self.features + noise
        error = np.log(cost / self.first) - self.mean[arm] @ self.features
        self.mean += gain * (error / variance)
        self.spread -= np.multiply.outer(gain, gain / variance)
        self.spread += FORGET * (self.prior - self.spread)
        self.squares, self.count = self.squares + noise * error**2 / variance, self.count + 1
