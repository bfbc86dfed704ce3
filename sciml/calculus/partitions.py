"""Which partial derivatives a Taylor coefficient along a curve holds, by enumerating partitions.

With n(t) = sum_a t^a w_a over multi-indices a that are not zero, the coefficient of t^k in u(x + n(t)) is

    sum over multisets {a_1, .., a_m} with a_1 + .. + a_m = k of  D^m u[w_{a_1}, .., w_{a_m}] / (their multiplicities)!,

the formula of Faa di Bruno. Whoever reads a derivative off a coefficient proves by this that nothing else is in it: the
single 13-jet that Shi et al. (2024, eq. 44 f.) print for u_xxxy, for one, holds 17160 u_xxt besides.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from itertools import product
from math import factorial, prod
from typing import Any

from sciml.calculus.algebra import Index

Partial = tuple[Any, ...]  # coordinates in the order of their repr, each as often as is differentiated along it
Curve = Mapping[Index, Mapping[Any, int | Fraction]]  # the coefficients w_a by coordinate


def contents(curve: Curve, index: Index) -> dict[Partial, Fraction]:
    """What the coefficient of t^index in u(x + n(t)) consists of.

    Args:
        curve: the coefficients of n.
        index: a multi-index that is not zero.

    Returns:
        The factor of every partial derivative of u in it, without those whose factors cancel.

    Example:
        >>> contents({(1,): {"x": 1}}, (2,))
        {('x', 'x'): Fraction(1, 2)}
        >>> contents({(1,): {"x": 1}, (2,): {"y": 1}}, (2,))
        {('y',): Fraction(1, 1), ('x', 'x'): Fraction(1, 2)}
    """
    found: dict[Partial, Fraction] = {}
    for parts in _partitions(index, sorted(curve, reverse=True)):
        share = Fraction(1, prod(factorial(n) for n in Counter(parts).values()))
        for choice in product(*(curve[a].items() for a in parts)):
            partial = tuple(sorted((coordinate for coordinate, _ in choice), key=repr))
            weight = prod((Fraction(w) for _, w in choice), start=share)
            found[partial] = found.get(partial, Fraction(0)) + weight
    return {partial: factor for partial, factor in found.items() if factor}


@cache
def prove(index: Index) -> None:
    """Along one line per variable the coefficient of an index is d^index u / index! and nothing else.

    Also where some of the lines are the same, as in samples of the terms of a sum over several coordinates.

    Raises:
        AssertionError: if it is not.
    """
    variables = range(len(index))
    for coordinates in _labels(len(index)):
        curve = {tuple(int(i == k) for i in variables): {c: 1} for k, c in enumerate(coordinates)}
        wanted = tuple(sorted((c for c, n in zip(coordinates, index, strict=True) for _ in range(n)), key=repr))
        found = contents(curve, index)
        if found != {wanted: Fraction(1, prod(map(factorial, index)))}:
            raise AssertionError(f"the coefficient of {index} along {coordinates} is contaminated: {found}")


def _labels(count: int) -> Iterator[tuple[int, ...]]:
    """Every way in which some variables may be the same: one for each partition of their set."""
    if not count:
        yield ()
        return
    for rest in _labels(count - 1):
        yield from ((*rest, label) for label in range(len(set(rest)) + 1))


def _partitions(index: Index, parts: Sequence[Index]) -> Iterator[tuple[Index, ...]]:
    """The multisets of some parts that add up to an index."""
    if not any(index):
        yield ()
    for i, part in enumerate(parts):
        rest = tuple(n - m for n, m in zip(index, part, strict=True))
        if min(rest) >= 0:
            yield from ((part, *more) for more in _partitions(rest, parts[i:]))
