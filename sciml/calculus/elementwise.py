"""Functions of one variable: how a polynomial goes through them.

A rule is either a *series*, the Taylor coefficients f^(m)(x0) / m! of the function at the value, or a *recurrence* over
the coefficients that comes from a differential equation (Griewank and Walther 2008, Evaluating Derivatives, ch. 13).
Any recurrence gives a series too, applied to x0 + s.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sciml.calculus import piecewise
from sciml.calculus.algebra import (
    Algebra,
    Polynomial,
    compose,
    constant,
    convolve,
    divide,
    integrate,
    multiply,
    plus,
    scale,
    times,
    univariate,
)

# the highest orders for which composing a series is measured to beat a recurrence, for few and for many directions
COMPOSED, COMPOSED_MANY, MANY = 3, 6, 8

TANH, TAN, SIGMOID = (1.0, 0.0, -1.0), (1.0, 0.0, 1.0), (0.0, 1.0, -1.0)  # of y' = a + b y + c y^2


def _primitive(algebra: Algebra, x: Polynomial, y0: Any, g: Polynomial) -> Polynomial:
    """A polynomial y with y' = g x'."""
    return [y0, *(integrate(algebra, g, x, k) for k in range(1, len(algebra.indices)))]


def _riccati(algebra: Algebra, x: Polynomial, y0: Tensor, a: float, b: float, c: float) -> Polynomial:
    """A polynomial y with y' = (a + b y + c y^2) x'."""
    y = constant(algebra, y0)
    g = constant(algebra, a + y0 * (b + c * y0))
    for k in range(1, len(algebra.indices)):
        y[k] = integrate(algebra, g, x, k)
        if k not in algebra.maximal:
            g[k] = plus(times(y[k], b) if b else None, convolve(algebra, y, y, k, c))
    return y


def _pair(algebra: Algebra, x: Polynomial, s0: Tensor, c0: Tensor, sign: float) -> Polynomial:
    """A polynomial s with s' = c x' and c' = sign s x'."""
    s, c = constant(algebra, s0), constant(algebra, c0)
    for k in range(1, len(algebra.indices)):
        s[k] = integrate(algebra, c, x, k)
        if k not in algebra.maximal:
            slope = integrate(algebra, s, x, k)
            c[k] = None if slope is None else slope * sign
    return s


def exp(algebra: Algebra, x: Polynomial) -> Polynomial:
    """From y' = y x'."""
    y = constant(algebra, x[0].exp())
    for k in range(1, len(algebra.indices)):
        y[k] = integrate(algebra, y, x, k)
    return y


def expm1(algebra: Algebra, x: Polynomial) -> Polynomial:
    """exp(x) - 1."""
    return [x[0].expm1(), *exp(algebra, x)[1:]]


def _riccati_series(y0: Tensor, order: int, a: float, b: float, c: float) -> list[Any]:
    """The series of y, where each derivative is y' = a + b y + c y^2 times a polynomial in y."""
    slope = y0 * (y0 * c + b) if b else a + y0 * y0 * c
    slope = slope + a if a and b else slope
    q, series = [1.0], [y0, slope]
    for m in range(2, order + 1):
        # (y' q)' = y' ((b + 2 c y) q + (a + b y + c y^2) dq/dy)
        rise = [0.0] * (len(q) + 1)
        for n, value in enumerate(q):
            rise[n] += b * value * (1 + n)
            rise[n + 1] += c * value * (2 + n)
            if n:
                rise[n - 1] += a * value * n
        q = [value / m for value in rise]
        series.append(slope * _horner(q, y0))
    return series


def _horner(q: list[float], y: Tensor) -> Any:
    value: Any = q[-1]
    for n in range(len(q) - 2, -1, -1):
        value = y * value if isinstance(value, float) else value * y
        value = value + q[n] if q[n] else value
    return value


def tanh(algebra: Algebra, x: Polynomial) -> Polynomial:
    """From y' = (1 - y^2) x'."""
    return _riccati(algebra, x, x[0].tanh(), *TANH)


def tan(algebra: Algebra, x: Polynomial) -> Polynomial:
    """From y' = (1 + y^2) x'."""
    return _riccati(algebra, x, x[0].tan(), *TAN)


def sigmoid(algebra: Algebra, x: Polynomial) -> Polynomial:
    """From y' = (y - y^2) x'."""
    return _riccati(algebra, x, x[0].sigmoid(), *SIGMOID)


def sin(algebra: Algebra, x: Polynomial) -> Polynomial:
    """Sine, with its cosine."""
    return _pair(algebra, x, x[0].sin(), x[0].cos(), -1.0)


def cos(algebra: Algebra, x: Polynomial) -> Polynomial:
    """Cosine, with minus its sine."""
    return _pair(algebra, x, x[0].cos(), -x[0].sin(), -1.0)


def sinh(algebra: Algebra, x: Polynomial) -> Polynomial:
    """Hyperbolic sine."""
    return _pair(algebra, x, x[0].sinh(), x[0].cosh(), 1.0)


def cosh(algebra: Algebra, x: Polynomial) -> Polynomial:
    """Hyperbolic cosine."""
    return _pair(algebra, x, x[0].cosh(), x[0].sinh(), 1.0)


def softplus(algebra: Algebra, x: Polynomial, beta: float = 1.0, threshold: float = 20.0) -> Polynomial:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold, as in torch."""
    steep = scale(x, float(beta))
    steep[0] = torch.where(
        steep[0] > threshold, torch.inf, steep[0]
    )  # where the slope is one, and its derivatives zero
    return _primitive(algebra, x, functional.softplus(x[0], beta, threshold), sigmoid(algebra, steep))


def logsigmoid(algebra: Algebra, x: Polynomial) -> Polynomial:
    """-log(1 + exp(-x))."""
    return _primitive(algebra, x, functional.logsigmoid(x[0]), sigmoid(algebra, scale(x, -1.0)))


def erf(algebra: Algebra, x: Polynomial) -> Polynomial:
    """From y' = 2 / sqrt(pi) exp(-x^2) x'."""
    bell = exp(algebra, scale(multiply(algebra, x, x), -1.0))
    return _primitive(algebra, x, x[0].erf(), scale(bell, 2.0 / math.sqrt(math.pi)))


def _over_one_plus(algebra: Algebra, x: Polynomial, sign: float) -> Polynomial:
    """1 + sign x^2."""
    square = scale(multiply(algebra, x, x), sign)
    return [1.0 + square[0], *square[1:]]


def atan(algebra: Algebra, x: Polynomial) -> Polynomial:
    """From y' = x' / (1 + x^2)."""
    one = constant(algebra, torch.ones_like(x[0]))
    return _primitive(algebra, x, x[0].atan(), divide(algebra, one, _over_one_plus(algebra, x, 1.0)))


def silu(algebra: Algebra, x: Polynomial, inplace: bool = False) -> Polynomial:
    """The product x sigmoid(x)."""
    return multiply(algebra, x, sigmoid(algebra, x))


def mish(algebra: Algebra, x: Polynomial, inplace: bool = False) -> Polynomial:
    """The product x tanh(softplus(x))."""
    return multiply(algebra, x, tanh(algebra, softplus(algebra, x)))


def gelu(algebra: Algebra, x: Polynomial, approximate: str = "none") -> Polynomial:
    """The product x P(X < x) for a normal X, or its approximation by tanh."""
    if approximate == "none":
        gate = erf(algebra, scale(x, math.sqrt(0.5)))
    else:
        cubic = scale(multiply(algebra, x, multiply(algebra, x, x)), 0.044715)
        inner = [plus(a, b) for a, b in zip(x, cubic, strict=True)]
        gate = tanh(algebra, scale(inner, math.sqrt(2 / math.pi)))
    return scale(multiply(algebra, x, [gate[0] + 1.0, *gate[1:]]), 0.5)


def power(x: Tensor, order: int, exponent: Any) -> list[Any]:
    """binom(p, m) x^(p - m)."""
    series, factor = [], 1.0
    for m in range(order + 1):
        if isinstance(factor, float) and factor == 0.0:
            series.append(None)
        elif isinstance(exponent, int | float) and exponent == m:
            series.append(factor if m else torch.ones_like(x))
        else:
            series.append(times(_raised(x, exponent - m, factor), factor))
        factor = factor * (exponent - m) / (m + 1)
    return series


def _raised(x: Tensor, p: Any, factor: Any) -> Tensor:
    if isinstance(p, Tensor):  # beside a factor of zero an infinite power of zero counts for nothing
        p = torch.where((x == 0) & (torch.as_tensor(factor) == 0), 0, p)
    return x if isinstance(p, int | float) and p == 1 else x**p


def reciprocal(x: Tensor, order: int) -> list[Any]:
    """(-1)^m / x^(m + 1)."""
    series = [x.reciprocal()]
    for _ in range(order):
        series.append(series[-1] * -series[0])
    return series


def logarithm(value: Callable[[Tensor], Tensor], shift: float = 0.0, unit: float = 1.0) -> Callable[..., list[Any]]:
    """-(-1)^m unit / (m (x + shift)^m), for logarithms to any base."""

    def series(x: Tensor, order: int) -> list[Any]:
        ratio = -1.0 / (x + shift if shift else x)
        powers = [value(x), -unit * ratio]
        for m in range(2, order + 1):
            powers.append(powers[-1] * ratio * ((m - 1) / m))
        return powers

    return series


class Elementwise(NamedTuple):
    """A rule for a function of one variable.

    Attributes:
        recurrence: from (algebra, x, ...) to coefficients, None where only the series is known.
        series: from (x0, order, ...) to Taylor coefficients, None where that comes from the recurrence.
        smoothness: how many derivatives are continuous everywhere; -1 where the function itself is not. A function of
            the other arguments where it depends on them.
    """

    recurrence: Callable[..., Polynomial] | None = None
    series: Callable[..., list[Any]] | None = None
    smoothness: float | Callable[..., float] = math.inf

    def kept(self, *args: Any, **kwargs: Any) -> float:
        """How many derivatives are continuous, given the other arguments."""
        return self.smoothness(*args, **kwargs) if callable(self.smoothness) else self.smoothness

    def __call__(self, algebra: Algebra, x: Polynomial, *args: Any, **kwargs: Any) -> Polynomial:
        """The coefficients of f(x)."""
        order = algebra.order
        composed = order <= (COMPOSED_MANY if _directions(algebra, x) >= MANY else COMPOSED)
        if self.recurrence is not None and not composed:
            return self.recurrence(algebra, x, *args, **kwargs)
        return compose(algebra, self.about(x[0], order, *args, **kwargs), x)

    def about(self, x: Tensor, order: int, *args: Any, **kwargs: Any) -> list[Any]:
        """The Taylor coefficients about x."""
        if self.series is not None:
            return self.series(x, order, *args, **kwargs)
        assert self.recurrence is not None
        return self.recurrence(univariate(order), [x, 1.0] + [None] * (order - 1), *args, **kwargs)


def _directions(algebra: Algebra, x: Polynomial) -> int:
    """How many directions the coefficients have, 0 where there are none."""
    every = (len(c) for k, c in enumerate(x) if k and k not in algebra.collapsed and isinstance(c, Tensor))
    return next(every, 0)


def _both(rule: Callable[..., Polynomial], value: Callable[[Tensor], Tensor], slope: Any) -> Elementwise:
    return Elementwise(rule, lambda x, order: _riccati_series(value(x), order, *slope))


def _series(rule: Callable[..., list[Any]], smoothness: float | Callable[..., float] = math.inf) -> Elementwise:
    return Elementwise(None, rule, smoothness)


ELEMENTWISE: dict[str, Elementwise] = {
    **{f.__name__: Elementwise(f) for f in (exp, expm1, sin, cos, sinh, cosh, erf, atan)},
    **{f.__name__: Elementwise(f) for f in (softplus, logsigmoid, silu, mish, gelu)},
    "tanh": _both(tanh, torch.tanh, TANH),
    "tan": _both(tan, torch.tan, TAN),
    "sigmoid": _both(sigmoid, torch.sigmoid, SIGMOID),
    "erfc": Elementwise(lambda algebra, x: [x[0].erfc(), *scale(erf(algebra, x), -1.0)[1:]]),
    "reciprocal": _series(reciprocal),
    "pow": _series(power),
    "sqrt": _series(lambda x, order: power(x, order, 0.5)),
    "rsqrt": _series(lambda x, order: power(x, order, -0.5)),
    "square": _series(lambda x, order: power(x, order, 2)),
    "log": _series(logarithm(torch.log)),
    "log1p": _series(logarithm(torch.log1p, shift=1.0)),
    "log2": _series(logarithm(torch.log2, unit=1 / math.log(2))),
    "log10": _series(logarithm(torch.log10, unit=1 / math.log(10))),
    "relu": _series(piecewise.relu, 0),
    "relu6": _series(piecewise.relu6, 0),
    "leaky_relu": _series(piecewise.leaky_relu, 0),
    "abs": _series(piecewise.absolute, 0),
    "clamp": _series(piecewise.clamp, 0),
    "hardtanh": _series(piecewise.hardtanh, 0),
    "elu": _series(piecewise.elu, lambda alpha=1.0, inplace=False: int(alpha == 1)),
    "selu": _series(piecewise.selu, 0),
    "celu": _series(piecewise.celu, 1),
    **{
        f.__name__: _series(piecewise.staircase(f), -1)
        for f in (torch.sign, torch.floor, torch.ceil, torch.round, torch.trunc)
    },
}
