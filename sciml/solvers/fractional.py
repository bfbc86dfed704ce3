"""Stochastic equations driven by fractional Brownian motion, as equations of Brownian motion on a larger state."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from sciml.solvers.controlled import Controlled, flat, narrowed, rate, shape_of_noise, time_for
from sciml.solvers.expect import expect
from sciml.solvers.fractional_noise import FractionalNoise
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic import Unjudged
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Calculus, NoiseType, Number


class Fractional(Diffusive):
    r"""dX = f(t, X) dt + g(t, X) dB with fractional Brownian motion B, from a `Diffusive` term with f and g.

    `FractionalNoise`, the sum of processes :math:`dZ_k = -\gamma_k Z_k\,dt + \omega_k\,dW`, makes it an equation of
    Brownian motion for X and Z, of which every entry of the noise has K:

    .. math:: dX = \bigl(f - g \sum_k \gamma_k Z_k\bigr)\,dt + \bigl(\sum_k \omega_k\bigr)\,g\,dW.

    States are (b, n): X flattened, then Z (b, \*noise, K) flattened; `start`, `split` and `join` go between. The first
    of the solve's ``args`` is `FractionalNoise.coefficients`, through which, and through `start`, gradients reach the
    Hurst index; the term sees the others. The path is ``Brownian((b, *noise))``.

    The integral is Stratonovich's. For the approximation Ito's differs by :math:`(\sum_k \omega_k)^2 g'g / 2\,dt`,
    which for H < 1/2 grows without bound with K, so that Ito equations have no limit; for H > 1/2 it vanishes, both
    become Young's integral. A term of Ito calculus is therefore refused, unless its noise is additive.

    `FractionalHeun` integrates Z without a limit on the step. `EulerMaruyama` (additive noise), `EulerHeun` and
    `StratonovichHeun` need steps well below one over the largest rate and blow up from twice that on.

    Args:
        term: f and g, on states (b, \*shape) and noise (b, \*noise).
        shape: of a sample of X.
        noise: of a sample of W; None takes the shape for diagonal and (1) for scalar noise.

    Reference:
        R. Daems, M. Opper, G. Crevecoeur, T. Birdal, Variational inference for SDEs driven by fractional noise
        (ICLR 2024), arXiv:2310.12975, section 3.

    Example:
        >>> import torch
        >>> from sciml import Solver, solve
        >>> from sciml.solvers import Brownian, Diffusive, Fractional, FractionalHeun, FractionalNoise, Grid
        >>> class Relaxing(Diffusive):
        ...     noise_type = "additive"
        ...     def drift(self, t, y, args):
        ...         return -y
        ...     def diffuse(self, t, y, dw, args):
        ...         return 0.5 * dw
        >>> noise, term = FractionalNoise("I", horizon=1.0), Fractional(Relaxing(), shape=(2,), noise=(2,))
        >>> hurst, x0 = torch.tensor(0.7, requires_grad=True), torch.ones(100, 2)
        >>> y0, args = term.start(x0, noise, hurst, seed=1), (noise.coefficients(hurst, x0),)
        >>> solver = Solver(FractionalHeun(), Grid(n=50))
        >>> x, _ = term.split(solve(term, y0, 0.0, 1.0, solver, args=args, path=Brownian((100, 2), seed=1)).ys)
        >>> x.shape, torch.autograd.grad(x.var(), hurst)[0].shape
        (torch.Size([100, 2]), torch.Size([]))
    """

    def __init__(self, term: Diffusive, shape: Sequence[int], noise: Sequence[int] | None = None):
        expect("term", term, Diffusive, "a Diffusive term")
        if term.noise_type != "additive" and term.calculus != "stratonovich":
            raise ValueError(
                "term: noise that depends on the state is integrated in Stratonovich's calculus, found "
                f"{term.calculus}; Ito's correction has no limit for H < 1/2 and is none for H > 1/2"
            )
        self.term, self.shape = term, tuple(shape)
        self.noise_shape: tuple[int, ...] = shape_of_noise(term, self.shape, noise) or ()
        self.calculus = "stratonovich"
        self.noise_type = "general" if term.noise_type == "diagonal" else term.noise_type

    def start(
        self,
        x: Tensor,
        noise: FractionalNoise,
        hurst: Tensor | float,
        seed: int = 0,
        *,
        samples: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """The state (b, n) at X = x (b, *shape), with Z(0) as `FractionalNoise.start` draws it."""
        return self.join(x, noise.start((len(x), *self.noise_shape), hurst, seed, samples=samples).to(x))

    def join(self, x: Tensor, processes: Tensor) -> Tensor:
        """The state of X (b, *shape) and Z (b, *noise, K)."""
        return torch.cat([flat(x), flat(processes)], 1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """X (..., *shape) and Z (..., *noise, K) of states (..., n)."""
        size = prod(self.shape)
        x, processes = state[..., :size], state[..., size:]
        lead, terms = state.shape[:-1], processes.shape[-1] // max(1, prod(self.noise_shape))
        return x.reshape(*lead, *self.shape), processes.reshape(*lead, *self.noise_shape, terms)

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The drift of X, and the slopes of Z."""
        x, processes = self.split(y)
        t, (_, rates) = time_for(t, x), self.coefficients(processes, args)
        slopes = -rates * processes
        return self.join(self.term.drift(t, x, args[1:]) + self.term.diffuse(t, x, slopes.sum(-1), args[1:]), slopes)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """What X and Z get of dw."""
        x, processes = self.split(y)
        weights, _ = self.coefficients(processes, args)
        self.admit(dw, y)
        rises = weights * dw[..., None]
        return self.join(self.term.diffuse(time_for(t, x), x, rises.sum(-1), args[1:]), rises)

    def coefficients(self, processes: Tensor, args: Args) -> tuple[Tensor, Tensor]:
        """Weights and rates (.., K) of the solve's first argument."""
        terms = processes.shape[-1]
        found = tuple(args[0].shape) if args else None
        if found is None or len(found) < 2 or found[0] != 2 or found[-1] != terms:
            raise ValueError(
                f"args: expected FractionalNoise.coefficients(hurst) first, of shape (2, .., {terms}), got {found}"
            )
        weights, rates = args[0].to(processes).unbind(0)
        return weights, rates

    def admit(self, dw: Tensor, y: Tensor) -> None:
        """Refuse increments of another shape than that of the noise."""
        expected = (len(y), *self.noise_shape)
        if tuple(dw.shape) != expected:
            raise ValueError(f"path: expected one of the noise's shape, Brownian({expected}), got {tuple(dw.shape)}")


@dataclass(frozen=True)
class FractionalHeun(Unjudged):
    r"""Heun's method for a `Fractional` term, with the relaxation of its Ornstein-Uhlenbeck processes exact.

    Over a step :math:`\Delta Z_k = (e^{-\gamma_k h} - 1) (Z_k - \omega_k \Delta W / (\gamma_k h))`, what is expected of
    it given :math:`\Delta W`, and X is integrated by Heun's method along :math:`\Delta B = \sum_k \Delta Z_k`. It is
    stable whatever the rates, and the variance of a process misses :math:`(\gamma_k h)^2 / 12` of itself. Its order is
    1, strong and weak; without noise 2. Of a `Controlled` fractional term the control is held over a step and
    may make the noise of a step narrower.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar", "general")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        term, args, h, gained = field.term, field.args, interval.scale, ()
        t, t1 = (field.clock(at, y) for at in (interval.t, interval.t + interval.h))
        if isinstance(term, Controlled) and isinstance(term.term, Fractional):
            inner, _ = term.split(y)
            (u, c), term = term.controls(t, inner, args), term.term
            term.admit(dw, y)
            step, lost = _shaped(h, dw), 0.0
            if c is not None:
                factor, lost = narrowed(c, step)
                u, dw = factor * u, factor.sqrt() * dw
            dw, gained = dw + step * u, (h * rate(u) + lost,)
            rise = _rise(term, (t, t1), h, inner, dw, args)
        elif isinstance(term, Fractional):
            term.admit(dw, y)
            rise = _rise(term, (t, t1), h, y, dw, args)
        else:
            raise ValueError(f"term: FractionalHeun expects a Fractional term, got {type(term).__name__}")
        return y + field.fitting(torch.cat([rise, *gained], 1), y)


def _rise(term: Fractional, times: tuple[Tensor, Tensor], h: Number, y: Tensor, dw: Tensor, args: Args) -> Tensor:
    """What X and the processes gain in a step."""
    x, processes = term.split(y)
    weights, rates = term.coefficients(processes, args)
    decay, h = rates * _shaped(h, processes), _shaped(h, x)
    lost = torch.expm1(-decay)
    kept = torch.where(decay > 0, -lost / torch.where(decay > 0, decay, 1.0), 1.0)
    gain = lost * processes + kept * (weights * dw[..., None])
    along, (t, t1), rest = gain.sum(-1), (time_for(t, x) for t in times), args[1:]
    first = h * term.term.drift(t, x, rest) + term.term.diffuse(t, x, along, rest)
    guess = x + first
    second = h * term.term.drift(t1, guess, rest) + term.term.diffuse(t1, guess, along, rest)
    return term.join(0.5 * (first + second), gain)


def _shaped(h: Number, y: Tensor) -> Number:
    """Step sizes, a number or (l, 1), such that they broadcast against tensors (b, ...)."""
    return h.reshape(h.shape[:1] + (1,) * (y.ndim - 1)) if isinstance(h, Tensor) else h
