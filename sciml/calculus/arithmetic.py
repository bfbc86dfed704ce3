"""Sums, products, quotients, powers, and functions of one variable."""

from typing import Any

import torch
from torch import Tensor

from sciml.calculus.algebra import Algebra, Polynomial, constant, divide, multiply, plus, times
from sciml.calculus.dispatch import Jet, jets_of, like, primal, rule
from sciml.calculus.elementwise import ELEMENTWISE, Elementwise


def pair(x: Any, y: Any) -> tuple[list[Jet], Polynomial, Polynomial]:
    """Two operands as polynomials whose coefficients broadcast against each other, and the jets among them."""
    jets = jets_of(x, y)
    axes = max(v.ndim for v in (x, y) if isinstance(v, Jet | Tensor))
    return jets, _aligned(x, axes, jets[0].algebra), _aligned(y, axes, jets[0].algebra)


def _aligned(value: Any, axes: int, algebra: Algebra) -> Polynomial:
    """Coefficients with new axes between that of directions and those of the value, which broadcast before."""
    if not isinstance(value, Jet):
        return constant(algebra, value)
    missing = axes - value.ndim
    if not missing:
        return value.coefficients
    parts = [value.primal]
    for k, c in enumerate(value.coefficients[1:], 1):
        if c is not None:
            ones = [1] * missing
            c = c.reshape(c.shape[0], *ones, *c.shape[1:]) if value.has_directions(k) else c.reshape(*ones, *c.shape)
        parts.append(c)
    return parts


def is_constant(x: Polynomial) -> bool:
    """Whether a polynomial has nothing but its value."""
    return all(c is None for c in x[1:])


def add_polynomials(algebra: Algebra, x: Polynomial, y: Polynomial, sign: float = 1.0) -> Polynomial:
    """The sum x + sign y."""
    first = x[0] + y[0] if sign == 1.0 else x[0] - y[0]
    return [first, *(plus(a, times(b, sign)) for a, b in zip(x[1:], y[1:], strict=True))]


def subtract_polynomials(algebra: Algebra, x: Polynomial, y: Polynomial) -> Polynomial:
    """The difference x - y."""
    return add_polynomials(algebra, x, y, -1.0)


def multiply_polynomials(algebra: Algebra, x: Polynomial, y: Polynomial) -> Polynomial:
    """The product x y, where one of them is often a constant."""
    if is_constant(y):
        return [None if c is None else c * y[0] for c in x]
    if is_constant(x):
        return [None if c is None else c * x[0] for c in y]
    return multiply(algebra, x, y)


def divide_polynomials(algebra: Algebra, x: Polynomial, y: Polynomial) -> Polynomial:
    """The quotient x / y."""
    return [None if c is None else c / y[0] for c in x] if is_constant(y) else divide(algebra, x, y)


def _binary(combine: Any, x: Any, y: Any) -> Jet:
    jets, a, b = pair(x, y)
    return like(jets, combine(jets[0].algebra, a, b))


@rule("add", "__add__", "__radd__")
def add(func: Any, x: Any, y: Any, *, alpha: float = 1) -> Jet:
    """The sum x + alpha y."""
    return _binary(add_polynomials, x, y if alpha == 1 else y * alpha)


@rule("sub", "subtract", "__sub__")
def sub(func: Any, x: Any, y: Any, *, alpha: float = 1) -> Jet:
    """The difference x - alpha y."""
    return _binary(subtract_polynomials, x, y if alpha == 1 else y * alpha)


@rule("rsub", "__rsub__")
def rsub(func: Any, x: Any, y: Any, *, alpha: float = 1) -> Jet:
    """The difference y - alpha x."""
    return _binary(subtract_polynomials, y, x if alpha == 1 else x * alpha)


@rule("mul", "multiply", "__mul__", "__rmul__")
def mul(func: Any, x: Any, y: Any) -> Jet:
    """The product x y."""
    return _binary(multiply_polynomials, x, y)


@rule("div", "divide", "true_divide", "__truediv__", "__div__")
def div(func: Any, x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """The quotient x / y."""
    if rounding_mode is not None:
        return whole(torch.div, x, y, rounding_mode=rounding_mode)
    return _binary(divide_polynomials, x, y)


@rule("floor_divide", "__floordiv__")
def whole(func: Any, x: Any, y: Any, **options: Any) -> Jet:
    """Whole numbers of a quotient, a staircase."""
    found = like(jets_of(x, y), constant(jets_of(x, y)[0].algebra, func(primal(x), primal(y), **options)))
    found.smoothness = -1
    return found


@rule("remainder", "__mod__", "fmod")
def remainder(func: Any, x: Any, y: Any) -> Jet:
    """What is left of x by whole numbers of y, which jumps from y to zero."""
    mode = "trunc" if func in (torch.fmod, torch.Tensor.fmod) else "floor"
    steps = torch.div(primal(x), primal(y), rounding_mode=mode)
    left = x - steps * y
    found = like([left], [func(primal(x), primal(y)), *left.coefficients[1:]])
    found.smoothness = -1
    return found


@rule("positive", "__pos__")
def positive(func: Any, x: Jet) -> Jet:
    """The jet itself."""
    return x


@rule("__rtruediv__", "__rdiv__")
def rdiv(func: Any, x: Any, y: Any) -> Jet:
    """The quotient y / x."""
    return _binary(divide_polynomials, y, x)


@rule("neg", "negative", "__neg__")
def neg(func: Any, x: Jet) -> Jet:
    """The negative -x."""
    return like([x], [None if c is None else -c for c in x.coefficients])


@rule("float_power")
def float_power(func: Any, x: Any, exponent: Any) -> Any:
    """The power x^p in double precision."""
    return power(func, *(v.to(_double(v)) if isinstance(v, Jet | Tensor) else v for v in (x, exponent)))


def _double(x: Jet | Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64


@rule("pow", "__pow__")
def power(func: Any, x: Any, exponent: Any) -> Any:
    """The power x^p for a number p, for a constant tensor p, and for a positive x and any p."""
    if isinstance(exponent, Jet):
        base = x if isinstance(x, Jet | Tensor) else exponent.primal.new_tensor(x)
        if not base.is_complex() and not (base.ndim and base.is_floating_point()):
            base = base.to(exponent.dtype)  # as torch does; the logarithm of whole numbers is in single precision
        return mul(torch.mul, exponent, base.log()).exp()
    if isinstance(exponent, Tensor) and exponent.ndim > x.ndim:
        x = x + torch.zeros_like(exponent)
    return unary(ELEMENTWISE["pow"], x, exponent)


@rule("__rpow__")
def rpow(func: Any, x: Jet, base: Any) -> Any:
    """The power p^x of a number p."""
    return power(func, base, x)


def unary(function: Elementwise, x: Jet, *args: Any, **kwargs: Any) -> Jet:
    """A function of one variable, of each entry."""
    y = like([x], function(x.algebra, x.coefficients, *args, **kwargs))
    y.smoothness = min(y.smoothness, function.kept(*args, **kwargs))
    return y


def _enter(function: Elementwise) -> Any:
    return lambda func, x, *args, **kwargs: unary(function, x, *args, **kwargs)


ALIASES = {"abs": ("absolute", "__abs__"), "sigmoid": ("expit",), "clamp": ("clip",), "atan": ("arctan",)}
for _name, _function in ELEMENTWISE.items():
    if _name not in ("pow", "abs"):
        rule(_name, *ALIASES.get(_name, ()))(_enter(_function))


@rule("abs", "absolute", "__abs__")
def absolute(func: Any, x: Jet) -> Any:
    """The modulus |x|."""
    if x.is_complex():
        return (x.real.square() + x.imag.square()).sqrt()
    return unary(ELEMENTWISE["abs"], x)


@rule("__gt__", "__lt__", "__ge__", "__le__", "__eq__", "__ne__", "gt", "lt", "ge", "le", "eq", "ne", "greater", "less")
def compare(func: Any, x: Any, y: Any) -> Tensor:
    """Comparisons, of the values."""
    return func(primal(x), primal(y))


@rule(
    *("isnan", "isinf", "isfinite", "argmax", "argmin", "argsort", "logical_not", "signbit", "__bool__"),
    *("allclose", "isclose", "equal", "any", "all", "nonzero", "bool", "int", "long"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "is_tensor", "numel", "is_complex"),
    *("is_floating_point", "result_type", "stride", "is_contiguous", "get_device", "data_ptr"),
)
def of_value(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What only looks at the value."""
    return func(*(primal(v) for v in args), **kwargs)


@rule("detach")
def detach(func: Any, x: Jet) -> Tensor:
    """The value as a constant."""
    return x.detach()
