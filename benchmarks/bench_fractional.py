"""Fractional noise by Ornstein-Uhlenbeck processes: covariances, bounds on the evidence, Hurst indices.

"covariance": relative error (Frobenius norm, 100 times, horizon 1) of the covariance of fractional Brownian motion, in
percent: the optimal weights with a fitted and, for kind I, with a stationary past, over the default ranges, and over
the best of 63 ranges; for kind II also weights by geometric quadrature over the best of them. Nothing is drawn.

"evidence": a fractional Ornstein-Uhlenbeck process, dX = -1.5 X dt + 0.8 dB of kind II, with five noisy observations of
a path. The bound on the evidence of 20,000 controlled paths, beside the exact evidence of the approximation: under the
control that Bellman's recursion finds, which also makes the noise of a step narrower ("bound"), and under its drift
alone; and under `sciml.models.latent_dynamics.Control`, of a context of each observation, both trained on the bound
with Adam and gradients clipped to norm 10 ("learned"): one batch whose paths explode, and early ones may, leaves in
Adam's second moments a number that stops it for good.

"Hurst": the index from 128 paths of the true process dX = -1.5 X dt + 0.8 dB (kind II drawn exactly at 1000 times), at
20 times with noise, by ascent of the bound: its gradient to H with the best control for the present H; beside it the
maximum of the approximation's exact evidence. A control that is a drift alone loses, in proportion to the step and more
the smaller H is, that it cannot make the noise narrower, which pushes the index up: "drift alone", on the same steps.
"""

import math
import time
from typing import Any

import numpy as np
import torch
from scipy.linalg import expm
from scipy.optimize import minimize_scalar
from scipy.special import gamma, hyp2f1
from torch import Tensor, nn

from sciml import Solver, solve
from sciml.models.latent_dynamics import Control
from sciml.solvers import Brownian, Controlled, Diffusive, Fractional, FractionalHeun, FractionalNoise, Grid

RATE, SIGMA, TERMS, HURSTS = 1.5, 0.8, (3, 5, 8), (0.3, 0.5, 0.7)
RANGES = [(low, high) for low in np.geomspace(1e-4, 1, 9) for high in np.geomspace(3, 3000, 7)]


def cases() -> list[str]:
    covariances = [f"covariance, {kind}, H {hurst}" for kind in ("I", "II") for hurst in (0.1, 0.3, 0.7, 0.8, 0.9)]
    bounds = [f"evidence, {steps}, H {hurst}" for steps in ("64 steps", "256 steps", "learned") for hurst in HURSTS]
    return [*covariances, *bounds, *(f"Hurst, {kind}, H {h}" for kind in ("bound", "drift alone") for h in HURSTS)]


def run(case: str, seed: int) -> dict[str, float | str]:
    kind, *middle, last = case.split(", ")
    hurst = float(last.split()[1])
    if kind == "covariance":
        return covariances(middle[0], hurst)
    if kind == "Hurst":
        return indices(hurst, middle[0] == "bound", seed)
    return learned(hurst, seed) if middle[0] == "learned" else bounds(hurst, int(middle[0].split()[0]), seed)


def exact(kind: str, hurst: float, ts: np.ndarray) -> np.ndarray:
    """The covariance of fractional Brownian motion."""
    t, s, a = np.maximum(ts[:, None], ts), np.minimum(ts[:, None], ts), hurst - 0.5
    if kind == "I":
        return (t ** (2 * hurst) + s ** (2 * hurst) - (t - s) ** (2 * hurst)) / 2
    return s ** (a + 1) * t**a / (a + 1) * hyp2f1(-a, 1, a + 2, s / t) / gamma(a + 1) ** 2


def covariances(kind: str, hurst: float) -> dict[str, float | str]:
    ts = np.arange(1, 101) / 100
    right, found = exact(kind, hurst, ts), {}

    def missed(covariance: Any) -> float:
        return 100 * float(np.linalg.norm(np.asarray(covariance) - right) / np.linalg.norm(right))

    for terms in TERMS:
        for past in ("fitted", "stationary")[: 2 if kind == "I" else 1]:
            best = []
            for low, high in [*RANGES, (None, None)]:
                try:
                    best.append(missed(FractionalNoise(kind, 1.0, terms, low, high, past).covariance(hurst, ts)))
                except ValueError:  # rates too close together
                    best.append(math.inf)
            found |= {f"{past} K{terms} %": best[-1] if best[-1] < math.inf else "refused"}
            found |= {f"{past}, best range K{terms} %": min(best)}
        if kind == "II":
            rates = [np.geomspace(low, high, terms) for low, high in RANGES]
            found[f"quadrature, best range K{terms} %"] = min(missed(quadrature(x, hurst, ts)) for x in rates)
    return found


def quadrature(rates: np.ndarray, hurst: float, ts: np.ndarray) -> np.ndarray:
    r"""The covariance with weights from u^{H-1/2} = c \int e^{-x u} x^{-H-1/2} dx, cell by cell between rates.

    Above 1/2 the integrand is (1 - e^{-x u}), with the slowest process in place of 1.
    """
    a, middle = hurst + 0.5, np.sqrt(rates[1:] * rates[:-1])
    last = rates[-1] ** 1.5 / rates[-2] ** 0.5 if hurst < 0.5 else np.inf
    ends = np.array([0.0 if hurst < 0.5 else middle[0] ** 2 / middle[1], *middle, last])
    with np.errstate(divide="ignore"):
        w = np.diff(ends ** (1 - a)) / (1 - a) / (gamma(a) * abs(gamma(1 - a)))
    w = np.array([w[1:].sum(), *-w[1:]]) if hurst > 0.5 else w
    s, t, i = ts[:, None, None, None], ts[:, None, None], rates[:, None]
    shared = np.minimum(s, t)
    pairs = np.exp(-i * (s - shared) - rates * (t - shared)) * -np.expm1(-(i + rates) * shared) / (i + rates)
    return np.einsum("i,j,stij->st", w, w, pairs)


class Relaxing(Diffusive):
    noise_type = "additive"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -RATE * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return SIGMA * dw


class Model:
    """The process z = (X, Z), dz = F z dt + G dW, in equal steps, with observations (paths, n) after some of them."""

    def __init__(self, noise: FractionalNoise, hurst: float, steps: int, data: np.ndarray, spread: float):
        self.steps, self.data, self.spread = steps, data, spread
        w, rates = noise.weights(hurst).numpy(), noise.rates.numpy()
        f, g = np.diag(np.concatenate([[-RATE], -rates])), np.concatenate([[SIGMA * w.sum()], w])
        f[0, 1:] = -SIGMA * rates
        n = len(f)
        block, wide = np.zeros((2 * n, 2 * n)), np.zeros((n + 1, n + 1))
        block[:n, :n], block[:n, n:], block[n:, n:] = -f, np.outer(g, g), f.T
        wide[:n, :n], wide[:n, n] = f / steps, g
        found = expm(block / steps)  # Van Loan's method
        self.move, self.push = found[n:, n:].T, expm(wide)[:n, n]
        self.gained = self.move @ found[:n, n:]
        self.every = steps // data.shape[1]

    def evidence(self) -> float:
        """Log-density of the data, from X = 0, by Kalman filters."""
        mean, cov, total = np.zeros((len(self.data), len(self.move))), np.zeros_like(self.move), 0.0
        for j in range(1, self.steps + 1):
            mean, cov = mean @ self.move.T, self.move @ cov @ self.move.T + self.gained
            if j % self.every == 0:
                miss, variance = self.data[:, j // self.every - 1] - mean[:, 0], cov[0, 0] + self.spread**2
                total -= 0.5 * float((miss**2 / variance + math.log(2 * math.pi * variance)).sum())
                mean = mean + np.outer(miss / variance, cov[0])
                cov = cov - np.outer(cov[0], cov[0]) / variance
        return total

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best control, offset - gain z and c, by Bellman's recursion: (steps, n), (steps, paths) and (steps)."""
        h, push, move = 1 / self.steps, self.push, self.move
        p, q, gains, offsets, narrowing = np.zeros_like(move), np.zeros((len(self.data), len(move))), [], [], []
        for j in range(self.steps, 0, -1):
            if j % self.every == 0:
                p[0, 0] += 1 / self.spread**2
                q[:, 0] += self.data[:, j // self.every - 1] / self.spread**2
            narrowing.append(push @ p @ push)
            scale = 1 / (1 + h * narrowing[-1])
            gains.append(scale * push @ p @ move)
            offsets.append(scale * q @ push)
            q = (q - h * np.outer(offsets[-1], p @ push)) @ move
            p = move.T @ (p - h * scale * np.outer(p @ push, push @ p)) @ move
        gains, offsets, narrowing = (np.stack(values[::-1]) for values in (gains, offsets, narrowing))
        return torch.from_numpy(gains), torch.from_numpy(offsets), torch.from_numpy(narrowing)

    def feedback(self, copies: int, narrows: bool = True) -> Any:
        """The best control of every path's copies, as a function (t, y, args); its drift alone unless it narrows."""
        gains, offsets, narrowing = self.best()
        offsets = offsets.repeat_interleave(copies, 1)

        def control(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Any:
            j = (t * self.steps).round().long()
            u = (offsets[j] - y @ gains[j])[:, None]
            return (u * (1 + narrowing[j] / self.steps), narrowing[j].expand_as(u)) if narrows else u

        return control

    def bound(
        self, noise: FractionalNoise, hurst: Any, control: Any, copies: int, seed: int, narrows: bool = True, *args: Any
    ) -> Tensor:
        """The bound for every copy of every path (paths, copies)."""
        fractional = Fractional(Relaxing(), (1,), (1,))
        term, x0 = (
            Controlled(fractional, control, narrows=narrows),
            torch.zeros(len(self.data) * copies, 1, dtype=torch.float64),
        )
        ts = [(j + 1) / self.data.shape[1] for j in range(self.data.shape[1])]
        states = solve(
            term,
            term.start(fractional.start(x0, noise, 0.5)),
            0.0,
            1.0,
            Solver(FractionalHeun(), Grid(n=self.steps)),
            args=(noise.coefficients(hurst), *args),
            path=Brownian(x0.shape, seed),
            save_at=ts,
        ).ys
        y, divergence = term.split(states)
        data = torch.from_numpy(self.data).repeat_interleave(copies, 0).T
        terms = -0.5 * ((data - y[..., 0]) / self.spread) ** 2 - math.log(self.spread * math.sqrt(2 * math.pi))
        return (terms.sum(0) - divergence[-1]).reshape(len(self.data), copies)


def observed(hurst: float, paths: int, times: int, spread: float, seed: int) -> np.ndarray:
    """The true process at equal times, with noise."""
    rng, n = np.random.default_rng(seed), 1000
    ts = np.arange(1, n + 1) / n
    b = rng.standard_normal((paths, n)) @ np.linalg.cholesky(exact("II", hurst, ts) + 1e-12 * np.eye(n)).T
    x, previous, states = np.zeros(paths), np.zeros(paths), []
    decay = math.exp(-RATE / n)
    for j in range(n):  # exact for noise that is straight within a step
        x, previous = decay * x + SIGMA * (b[:, j] - previous) * (1 - decay) / (RATE / n), b[:, j]
        states.append(x)
    found = np.stack(states[n // times - 1 :: n // times], 1)
    return found + spread * rng.standard_normal(found.shape)


def bounds(hurst: float, steps: int, seed: int) -> dict[str, float | str]:
    noise, data = FractionalNoise("II"), observed(hurst, 1, 4, 0.2, seed)
    model = Model(noise, hurst, steps, data, 0.2)
    found = compared(model.evidence(), model.bound(noise, hurst, model.feedback(20_000), 20_000, seed))
    drift = model.bound(noise, hurst, model.feedback(20_000, False), 20_000, seed, False)
    return {**found, "drift alone, below evidence %": compared(model.evidence(), drift)["below evidence %"]}


def compared(evidence: float, value: Tensor) -> dict[str, float | str]:
    mean, error = float(value.mean()), float(value.std()) / math.sqrt(value.numel())
    below = 100 * (evidence - mean) / abs(evidence)
    return {"evidence": evidence, "bound": mean, "standard error": error, "below evidence %": below}


def learned(hurst: float, seed: int) -> dict[str, float | str]:
    """The control of latent models, 1000 steps of Adam on 64 paths each of 32 steps."""
    noise, data, steps = FractionalNoise("II"), observed(hurst, 1, 4, 0.2, seed), 1000
    model, ts = Model(noise, hurst, 32, data, 0.2), torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.manual_seed(seed)
    control = Control(1, noise.terms, 8, 64).double()
    contexts = nn.Parameter(torch.randn(1, 5, 8, dtype=torch.float64))

    def bound(copies: int, seed: int) -> Tensor:
        return model.bound(noise, hurst, control, copies, seed, True, ts, contexts.expand(copies, -1, -1))

    began, weights = time.process_time(), [*control.parameters(), contexts]
    optimiser = torch.optim.Adam(weights, 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        optimiser.zero_grad()
        (-bound(64, seed * steps + step).mean()).backward()
        nn.utils.clip_grad_norm_(weights, 10.0, error_if_nonfinite=True)
        optimiser.step()
        schedule.step()
    seconds = time.process_time() - began
    with torch.no_grad():
        value = bound(20_000, -1 - seed)
    best = model.bound(noise, hurst, model.feedback(20_000), 20_000, -1 - seed).mean()
    return {**compared(model.evidence(), value), "bound, best": float(best), "CPU s": seconds}


SPREADS, STEPS = {0.3: 0.3, 0.5: 0.2, 0.7: 0.1}, 200  # noise of the observations, and steps


def indices(hurst: float, narrows: bool, seed: int) -> dict[str, float | str]:
    spread, steps, noise, last = SPREADS[hurst], STEPS, FractionalNoise("II"), []
    data = observed(hurst, 128, 20, spread, seed)
    began, raw = time.process_time(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([raw], 0.1, betas=(0.5, 0.9))
    for step in range(40):
        optimiser.param_groups[0]["lr"] = 0.1 * min(1.0, 10 / (step + 1))
        index = raw.sigmoid()
        model = Model(noise, index.item(), steps, data, spread)
        optimiser.zero_grad()
        value = model.bound(noise, index, model.feedback(2, narrows), 2, 1000 * seed + step, narrows)
        (-value.mean(1).sum()).backward()
        optimiser.step()
        last.append(raw.detach().sigmoid().item())
    seconds, found = time.process_time() - began, float(np.mean(last[-10:]))
    evidence = lambda h: -Model(noise, h, steps, data, spread).evidence()  # noqa: E731
    right = float(minimize_scalar(evidence, bounds=(0.05, 0.95), method="bounded").x)
    return {"H, bound": found, "H, evidence": right, "error": abs(found - hurst), "CPU s": seconds}
