"""Expressions of an unknown function, its derivatives and the coordinates: what a PDE's residual is written in.

    u = Unknown()
    dt, dx, dxx = Partial(0), Partial(1), Partial(1, 1)
    burgers = dt(u) + u * dx(u) - nu * dxx(u)
    burgers(net, points)  # (b,)

An expression only says what is wanted. When it is called with a function, all partial derivatives in it come from one
jet, and each sum over coordinates from one or a few; or from samples, where it would be too long (`stde`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Number
from operator import add, mul
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciml.calculus.derivative import VALUE, Derivative
from sciml.calculus.vectors import Vectors

if TYPE_CHECKING:
    from sciml.calculus.stde import Draw

Function = Callable[[Tensor], Tensor]


class Expression(ABC):
    """A function of the points, of the unknown's value and of its derivatives."""

    __array_ufunc__ = None  # numbers of numpy on the left leave operators to the expression

    def __call__(self, u: Function, x: Tensor, draw: "Draw | None" = None) -> Tensor:
        """The value at points.

        Args:
            u: the unknown: a function or module that gives (b), (b, 1) or, for a system, (b, c).
            x: points (b, d).
            draw: samples to estimate sums of derivatives from; None computes all of their terms.

        Returns:
            The value (b).

        Raises:
            ValueError: if shapes do not fit, if u is not smooth enough for a derivative, or if there are no samples for
                one of the sums.
        """
        from sciml.calculus.evaluate import derivatives

        whole = self if draw is None else self.grouped(0)[0]
        return whole.value(derivatives(u, x, list(dict.fromkeys(whole.unknowns())), draw), x)

    def with_error(self, u: Function, x: Tensor, draw: "Draw") -> tuple[Tensor, Tensor]:
        """An estimate at points and its standard error, from one pass in which the samples are kept apart.

        The square of the error is an unbiased estimate of the variance; where estimates are multiplied with each other
        it is right to first order, and rather too large.

        Args:
            u: the unknown, as of `__call__`.
            x: points (b, d).
            draw: at least two samples for each sum.

        Returns:
            The value and its standard error (b), zero where all terms of the sums were taken.

        Raises:
            ValueError: as of `__call__`, and if there is only one sample.

        Example:
            >>> import torch
            >>> from sciml.calculus import Laplacian, Sparse, Unknown
            >>> laplacian, x = Laplacian()(Unknown()), torch.zeros(1, 100)
            >>> u = lambda x: (x**2).sum(1)  # all of its second derivatives are the same
            >>> laplacian.with_error(u, x, Sparse(4).draw(laplacian, x))
            (tensor([200.]), tensor([0.]))
        """
        rows = self(u, x, draw._replace(apart=True))
        rows = rows if rows.ndim == 2 else rows[None]  # where nothing is estimated
        return rows[0], (rows[1:] - rows[0]).square().sum(0).sqrt()

    @property
    def constant(self) -> bool:
        """Whether it is the same number everywhere."""
        return False

    @abstractmethod
    def value(self, known: Mapping["Unknown", Tensor], x: Tensor) -> Tensor:
        """The value (b) from those (b) of the unknowns in it."""

    @abstractmethod
    def unknowns(self) -> Iterator["Unknown"]:
        """The unknowns and derivatives of unknowns in it."""

    @abstractmethod
    def differentiated(self, line: int | Vectors) -> "Expression":
        """Its derivative along a coordinate or a vector, by the rules of sums, products and powers."""

    @abstractmethod
    def grouped(self, group: int) -> tuple["Expression", int]:
        """The same with estimates that are multiplied with each other in groups of their own.

        Args:
            group: the number of the first group.

        Returns:
            the expression, and how many groups it takes.

        Raises:
            ValueError: if it is not a polynomial in what is estimated.
        """

    def __add__(self, other: Any) -> "Expression":
        return Total((self, as_expression(other)))

    def __radd__(self, other: Any) -> "Expression":
        return Total((as_expression(other), self))

    def __sub__(self, other: Any) -> "Expression":
        return self + -as_expression(other)

    def __rsub__(self, other: Any) -> "Expression":
        return as_expression(other) + -self

    def __neg__(self) -> "Expression":
        return Product((Constant(-1.0), self))

    def __mul__(self, other: Any) -> "Expression":
        return Product((self, as_expression(other)))

    def __rmul__(self, other: Any) -> "Expression":
        return Product((as_expression(other), self))

    def __truediv__(self, other: Any) -> "Expression":
        return self * as_expression(other) ** -1

    def __rtruediv__(self, other: Any) -> "Expression":
        return as_expression(other) * self**-1

    def __pow__(self, exponent: float) -> "Expression":
        if not isinstance(exponent, Number):
            raise TypeError(f"exponent: expected a number, got {type(exponent).__name__}")
        return Power(self, exponent)  # pyrefly: ignore[bad-argument-type]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Expression":
        """Functions of torch that act pointwise, as ``torch.sin(u)``, and operators with a tensor on their left."""
        operator = OPERATORS.get(func.__name__.strip("_"))
        if operator is not None and not kwargs:
            return operator(*map(as_expression, args))
        return Applied(func, tuple(map(as_expression, args)), tuple(sorted((kwargs or {}).items())))


OPERATORS: dict[str, Callable[..., Expression]] = {
    **dict.fromkeys(("add", "radd"), lambda a, b: Total((a, b))),
    **dict.fromkeys(("mul", "multiply", "rmul"), lambda a, b: Product((a, b))),
    **dict.fromkeys(("sub", "subtract"), lambda a, b: Total((a, -b))),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), lambda a, b: Product((a, b**-1))),
    **dict.fromkeys(("rsub",), lambda a, b: Total((b, -a))),
    **dict.fromkeys(("rdiv", "rtruediv"), lambda a, b: Product((b, a**-1))),
    **dict.fromkeys(("neg", "negative"), lambda a: -a),
}


def as_expression(value: Any) -> Expression:
    """A number, a tensor or a function of points as an expression.

    Raises:
        TypeError: if it is none of these.
    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, Number | Tensor):
        return Constant(value)
    if callable(value) and not isinstance(value, type | Derivative):
        return Coefficient(value)
    raise TypeError(f"expected an expression, a number, a tensor or a function of points, got {value!r}")


@dataclass(frozen=True)
class Unknown(Expression):
    """The unknown function, or a component ``u[i]`` of it where the PDE is a system.

    Args:
        component: which one; None where u is a scalar.
        derivative: what is taken of it.
        group: which samples estimate that.
    """

    component: int | None = None
    derivative: Derivative = VALUE
    group: int = 0

    def __getitem__(self, component: int) -> "Unknown":
        if self.component is not None or not isinstance(component, int) or component < 0:
            raise ValueError(f"component: expected one number, 0 or more, of an unknown without one, got {component!r}")
        return replace(self, component=component)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("the components of an unknown have no number of their own; write u[0], u[1], ..")

    def value(self, known: Mapping["Unknown", Tensor], x: Tensor) -> Tensor:
        """See `Expression.value`."""
        return known[self]

    def unknowns(self) -> Iterator["Unknown"]:
        """See `Expression.unknowns`."""
        yield self

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        return replace(self, derivative=Derivative((line,)).after(self.derivative))

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        return (replace(self, group=group), 1) if self.derivative.orders else (self, 0)


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A number, or a tensor of one or of values (b) or (b, 1)."""

    number: Any

    @property
    def constant(self) -> bool:
        """Whether it is not a tensor of values."""
        return not isinstance(self.number, Tensor) or self.number.numel() == 1

    def value(self, known: Mapping[Unknown, Tensor], x: Tensor) -> Any:
        """See `Expression.value`."""
        if not isinstance(self.number, Tensor) or self.number.shape in ((), (1,), (len(x),)):
            return self.number
        if self.number.shape != (len(x), 1) and self.number.numel() != 1:
            raise ValueError(f"tensor: expected one number or values ({len(x)}), got {tuple(self.number.shape)}")
        return self.number.flatten()

    def unknowns(self) -> Iterator[Unknown]:
        """See `Expression.unknowns`."""
        return iter(())

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        if not self.constant:
            raise ValueError("differentiation of a tensor of values: give the coefficient as a function of points")
        return Constant(0.0)

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        return self, 0


@dataclass(frozen=True, eq=False)
class Coefficient(Expression):
    """A known function of the points, or a partial derivative of it.

    Args:
        function: the function: (b, d) to (b), (b, 1) or one number.
        along: coordinates and vectors, each as often as is differentiated along it.
    """

    function: Function
    along: tuple[int | Vectors, ...] = ()

    def value(self, known: Mapping[Unknown, Tensor], x: Tensor) -> Tensor:
        """See `Expression.value`."""
        from sciml.calculus.evaluate import partial_derivative

        found = partial_derivative(self.function, x, self.along) if self.along else self.function(x)
        found = torch.as_tensor(found, dtype=x.dtype, device=x.device) if isinstance(found, float | int) else found
        if found.shape not in ((), (len(x),), (len(x), 1)):
            raise ValueError(f"coefficient: expected values {tuple(x.shape[:1])}, got {tuple(found.shape)}")
        return found.flatten().expand(len(x))

    def unknowns(self) -> Iterator[Unknown]:
        """See `Expression.unknowns`."""
        return iter(())

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        return replace(self, along=Derivative((line,)).after(Derivative(self.along)).fixed)

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        return self, 0


@dataclass(frozen=True, eq=False)
class Total(Expression):
    """A sum."""

    terms: tuple[Expression, ...]

    def value(self, known: Mapping[Unknown, Tensor], x: Tensor) -> Tensor:
        """See `Expression.value`."""
        return reduce(add, [term.value(known, x) for term in self.terms])

    def unknowns(self) -> Iterator[Unknown]:
        """See `Expression.unknowns`."""
        return (found for term in self.terms for found in term.unknowns())

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        return Total(tuple(term.differentiated(line) for term in self.terms))

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        terms, counts = zip(*(term.grouped(group) for term in self.terms), strict=True)
        return Total(terms), max(counts)


@dataclass(frozen=True, eq=False)
class Product(Expression):
    """A product."""

    factors: tuple[Expression, ...]

    @property
    def constant(self) -> bool:
        """See `Expression.constant`."""
        return all(factor.constant for factor in self.factors)

    def value(self, known: Mapping[Unknown, Tensor], x: Tensor) -> Tensor:
        """See `Expression.value`."""
        return reduce(mul, [factor.value(known, x) for factor in self.factors])

    def unknowns(self) -> Iterator[Unknown]:
        """See `Expression.unknowns`."""
        return (found for factor in self.factors for found in factor.unknowns())

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        return Total(tuple(Product(self._but(i, factor.differentiated(line))) for i, factor in enumerate(self.factors)))

    def _but(self, i: int, factor: Expression) -> tuple[Expression, ...]:
        return *self.factors[:i], factor, *self.factors[i + 1 :]

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        factors, count = [], 0
        for factor in self.factors:
            own, more = factor.grouped(group + count)
            factors.append(own)
            count += more
        return Product(tuple(factors)), count


@dataclass(frozen=True, eq=False)
class Power(Expression):
    """A power with a constant exponent."""

    base: Expression
    exponent: float

    @property
    def constant(self) -> bool:
        """See `Expression.constant`."""
        return self.base.constant

    def value(self, known: Mapping[Unknown, Tensor], x: Tensor) -> Tensor:
        """See `Expression.value`."""
        return self.base.value(known, x) ** self.exponent

    def unknowns(self) -> Iterator[Unknown]:
        """See `Expression.unknowns`."""
        return self.base.unknowns()

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        slope = self.base.differentiated(line)
        if self.exponent in (0, 1):  # else a power of zero would stand beside a factor of zero
            return slope if self.exponent else Constant(0.0)
        return self.exponent * self.base ** (self.exponent - 1) * slope

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        _, count = self.base.grouped(group)
        if not count:
            return self, 0
        if self.exponent != int(self.exponent) or self.exponent < 1:
            raise ValueError(f"a power {self.exponent} of an estimate is biased; expected a polynomial in estimates")
        return Product((self.base,) * int(self.exponent)).grouped(group)


@dataclass(frozen=True, eq=False)
class Applied(Expression):
    """A pointwise function of torch."""

    function: Callable[..., Tensor]
    arguments: Sequence[Expression]
    options: Sequence[tuple[str, Any]] = ()

    @property
    def _name(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def value(self, known: Mapping[Unknown, Tensor], x: Tensor) -> Tensor:
        """See `Expression.value`."""
        values = [argument.value(known, x) for argument in self.arguments]
        found = self.function(*values, **dict(self.options))
        shape = torch.broadcast_shapes(*(value.shape for value in values if isinstance(value, Tensor)))
        if not isinstance(found, Tensor) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self._name}: expected a function of each value by itself, got {got} for {tuple(shape)}")
        return found

    def unknowns(self) -> Iterator[Unknown]:
        """See `Expression.unknowns`."""
        return (found for argument in self.arguments for found in argument.unknowns())

    def differentiated(self, line: int | Vectors) -> Expression:
        """See `Expression.differentiated`."""
        raise ValueError(f"a derivative of {self._name}(..) is not taken by itself; write it out by the chain rule")

    def grouped(self, group: int) -> tuple[Expression, int]:
        """See `Expression.grouped`."""
        if any(argument.grouped(group)[1] for argument in self.arguments):
            raise ValueError(f"{self._name} of an estimate is biased; expected a polynomial in estimates")
        return self, 0


def computed(expression: Expression) -> Iterator[Tensor]:
    """The tensors in an expression that were computed, with gradients, when it was written down."""
    if isinstance(expression, Constant) and isinstance(expression.number, Tensor) and expression.number.grad_fn:
        yield expression.number
    derivative = expression.derivative if isinstance(expression, Unknown) else VALUE
    for vectors in (*derivative.fixed, derivative.factor):
        if isinstance(vectors, Vectors) and isinstance(vectors.given, Tensor) and vectors.given.grad_fn:
            yield vectors.given
    for part in vars(expression).values():
        for each in part if isinstance(part, tuple) else (part,):
            if isinstance(each, Expression):
                yield from computed(each)
