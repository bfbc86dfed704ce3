"""Truncated polynomials in several formal variables, and their arithmetic.

A polynomial is the list of its coefficients on a *down-set* of multi-indices: with an index it holds all smaller ones.
The coefficients are normalised, c_a = (d^a u) / a!, so that a product is a plain convolution,

    (u v)_k = sum_{i + j = k} u_i v_j.

The first coefficient, that of 1, has the shape of the value; the others have an axis of directions before that. None is
a structural zero. A *collapsed* coefficient is kept summed over its directions. It has to be maximal in the down-set,
so that it enters other coefficients never, and its own rule is linear in it: a product of two others is summed as it
arises.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

Index = tuple[int, ...]
Coefficient = Tensor | float | None  # a number stands for a coefficient that is the same everywhere
Polynomial = list[Any]  # of Coefficient, in the order of the indices


class Algebra(NamedTuple):
    """The polynomials on one down-set. Made by ``univariate`` and ``downset``.

    Attributes:
        indices: the multi-indices, by total degree; the first is zero.
        collapsed: positions of the coefficients that are kept summed over directions.
        maximal: positions of the coefficients that enter no other one.
        products: for each position k the pairs (i, j) with indices[i] + indices[j] = indices[k].
        shares: for each of these pairs the share of i in k along the first variable of k, which is the weight of
            x_i g_j in the coefficient k of the integral of g x'.
    """

    indices: tuple[Index, ...]
    collapsed: tuple[int, ...]
    maximal: tuple[int, ...]
    products: tuple[tuple[tuple[int, int], ...], ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def order(self) -> int:
        """The highest total degree."""
        return sum(self.indices[-1])

    @property
    def variables(self) -> int:
        """How many formal variables there are."""
        return len(self.indices[0])

    @property
    def plain(self) -> "Algebra":
        """The same down-set with nothing collapsed."""
        return self._replace(collapsed=())


_MADE: dict[Any, Algebra] = {}  # not an lru_cache: the compiler traces through that, with a warning


def univariate(order: int, collapsed: bool = False) -> Algebra:
    """The polynomials of one variable up to an order, with the highest coefficient collapsed if wanted."""
    if not isinstance(order, int) or isinstance(order, bool) or order < 1:
        raise ValueError(f"order: expected a whole number, 1 or more, got {order!r}")
    return downset((order,), collapsed=((order,),) if collapsed else ())


def downset(*tops: Index, collapsed: Sequence[Index] = ()) -> Algebra:
    """The polynomials on all multi-indices below some given ones.

    Args:
        tops: multi-indices, each one order per variable.
        collapsed: those of them that are kept summed over directions.

    Raises:
        ValueError: if the indices differ in length, are negative or all zero, or if a collapsed one is not maximal.

    Example:
        >>> downset((2, 1), (0, 2)).indices
        ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (2, 1))
    """
    key = (tops, tuple(collapsed))
    if torch.compiler.is_compiling():  # what a first call put there would compile the second one anew
        return _make(tops, key[1])
    if key not in _MADE:
        _check(tops)
        _MADE[key] = _make(tops, key[1])
    return _MADE[key]


def _check(tops: tuple[Index, ...]) -> None:
    for top in tops:
        whole = isinstance(top, tuple) and all(isinstance(n, int) and n >= 0 for n in top)
        if not whole or len(top) != len(tops[0]):
            raise ValueError(f"tops: expected tuples of orders, 0 or more, of one length, got {top!r} in {tops!r}")
    if not any(any(top) for top in tops):
        raise ValueError(f"tops: expected at least one multi-index that is not zero, got {tops!r}")


def _make(tops: tuple[Index, ...], collapsed: tuple[Index, ...]) -> Algebra:
    below = {a for top in tops for a in product(*(range(n + 1) for n in top))}
    indices = tuple(sorted(below, key=lambda a: (sum(a), a)))
    place = {a: k for k, a in enumerate(indices)}
    products, shares = [], []
    for k, a in enumerate(indices):
        rests = [(i, tuple(n - m for n, m in zip(a, b, strict=True))) for i, b in enumerate(indices[: k + 1])]
        pairs = tuple((i, place[rest]) for i, rest in rests if min(rest) >= 0)
        first = next((v for v, n in enumerate(a) if n), 0)
        products.append(pairs)
        shares.append(tuple(indices[i][first] / (a[first] or 1) for i, _ in pairs))
    fed = {i for k, pairs in enumerate(products) for i, _ in pairs if i != k}
    maximal = tuple(k for k in range(len(indices)) if k not in fed)
    for a in collapsed:
        if place.get(a) not in maximal:
            raise ValueError(f"collapsed: expected maximal multi-indices among {tops!r}, got {a!r}")
    return Algebra(indices, tuple(place[a] for a in collapsed), maximal, tuple(products), tuple(shares))


def plus(a: Any, b: Any) -> Any:
    """The sum of two coefficients."""
    return b if a is None else a if b is None else a + b


def times(a: Any, factor: Any) -> Any:
    """A coefficient times a number or a tensor that has no directions."""
    if a is None or (isinstance(factor, float) and factor == 1.0):
        return a
    return a * factor


def constant(algebra: Algebra, value: Any) -> Polynomial:
    """The polynomial that is a value."""
    return [value] + [None] * (len(algebra.indices) - 1)


def scale(x: Polynomial, factor: Any) -> Polynomial:
    """A polynomial times a number."""
    return [times(c, factor) for c in x]


def convolve(algebra: Algebra, a: Polynomial, b: Polynomial, k: int, factor: float = 1.0) -> Any:
    """Coefficient k of a b, times a factor."""
    pairs = algebra.products[k]
    if a is not b:
        return _total(algebra, k, [(a[i], b[j], factor, i and j) for i, j in pairs])
    twice = 2.0 * factor
    return _total(algebra, k, [(a[i], a[j], factor if i == j else twice, i and j) for i, j in pairs if i <= j])


def integrate(algebra: Algebra, g: Polynomial, x: Polynomial, k: int) -> Any:
    """Coefficient k > 0 of the integral of g x', which needs of g only smaller ones."""
    weighed = zip(algebra.products[k], algebra.shares[k], strict=True)
    return _total(algebra, k, [(x[i], g[j], share, j) for (i, j), share in weighed if share])


def _total(algebra: Algebra, k: int, terms: list[tuple[Any, Any, float, int]]) -> Any:
    """The sum of factor a b; where k is collapsed, products of two positive orders are summed over directions."""
    alone = mixed = None
    for a, b, factor, both in terms:
        if a is None or b is None:
            continue
        if isinstance(a, float):
            a, b = b, a
        term = times(a, b * factor) if isinstance(b, float) else times(a * b, factor)
        if both:
            mixed = plus(mixed, term)
        else:
            alone = plus(alone, term)
    if mixed is not None and k in algebra.collapsed:
        mixed = mixed.sum(0)
    return plus(alone, mixed)


def multiply(algebra: Algebra, a: Polynomial, b: Polynomial) -> Polynomial:
    """The product a b."""
    return [convolve(algebra, a, b, k) for k in range(len(algebra.indices))]


def divide(algebra: Algebra, a: Polynomial, b: Polynomial) -> Polynomial:
    """The quotient y = a / b, from y b = a."""
    y = constant(algebra, a[0] / b[0])
    rest = [None, *b[1:]]
    for k in range(1, len(algebra.indices)):
        known = convolve(algebra, y, rest, k)
        top = a[k] if known is None else plus(a[k], -known)
        y[k] = None if top is None else top / b[0]
    return y


def compose(algebra: Algebra, f: Sequence[Any], x: Polynomial) -> Polynomial:
    """f(x) = sum_m f_m n^m of the part n of x that has no constant coefficient.

    The f_m have no directions, and collapsed coefficients are summed before they meet them, so that for low orders this
    touches less memory than a recurrence.

    Args:
        algebra: where x and the result live.
        f: Taylor coefficients of a function of one variable about x[0].
        x: a polynomial.
    """
    n = [None, *x[1:]]
    y = [f[0], *(None if f[1] is None else times(c, f[1]) for c in n[1:])]
    power = n
    for m in range(2, algebra.order + 1):
        if all(c is None for c in f[m:]):
            break
        power = [convolve(algebra, power, n, k) if sum(a) >= m else None for k, a in enumerate(algebra.indices)]
        for k, c in enumerate(power):
            if c is not None and f[m] is not None:
                y[k] = plus(y[k], times(c, f[m]))
    return y
