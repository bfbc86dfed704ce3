"""Derivatives of a function by jets: all partial ones in one pass, sums over coordinates in one or a few each."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciml.calculus.algebra import Algebra, downset
from sciml.calculus.derivative import VALUE, Derivative, in_order
from sciml.calculus.dispatch import Jet
from sciml.calculus.jet import along_coordinates, jet
from sciml.calculus.vectors import Vectors

if TYPE_CHECKING:
    from sciml.calculus.expression import Unknown
    from sciml.calculus.stde import Draw

Function = Callable[[Tensor], Tensor]
FEW = 8  # coordinates up to which a direction is as cheap as a coordinate


def derivatives(u: Function, x: Tensor, wanted: Sequence["Unknown"], draw: "Draw | None") -> dict["Unknown", Tensor]:
    """The values (b) of unknowns and of their derivatives.

    Args:
        u: the unknown function.
        x: points (b, d).
        wanted: what is wanted.
        draw: samples for sums of derivatives; None takes all terms.

    Raises:
        ValueError: if shapes do not fit, or if u is not smooth enough.
    """
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise ValueError(f"x: expected points (b, d), got {tuple(x.shape) if isinstance(x, Tensor) else x!r}")
    for each in wanted:
        _check_coordinates(each.derivative, x.shape[1])
    whole: dict[Any, Tensor] = {}
    partial = [w.derivative for w in wanted if w.derivative.fixed and not w.derivative.orders]
    if partial:
        whole |= _partials(u, x, list(dict.fromkeys(partial)))
    sums = list(dict.fromkeys((w.derivative, w.group) for w in wanted if w.derivative.orders))
    for each in sums:
        whole |= draw.estimate(u, x, *each) if draw is not None else _summed(u, x, *each)
    if draw is not None and draw.apart:
        whole |= draw.shifted({each: whole[each] for each in sums}, x)
    if VALUE not in whole and any(not w.derivative.order for w in wanted):
        whole[VALUE] = u(x)
    return {w: _read(whole, w, x, draw is not None and draw.apart) for w in wanted}


def _read(whole: dict[Any, Tensor], wanted: "Unknown", x: Tensor, apart: bool) -> Tensor:
    """An unknown's values (b), or rows (n, b) of a sum whose samples are kept apart."""
    if not wanted.derivative.orders:
        return _component(whole[wanted.derivative], wanted, x)
    found = whole[wanted.derivative, wanted.group]
    return torch.vmap(lambda row: _component(row, wanted, x))(found) if apart else _component(found, wanted, x)


def _check_coordinates(derivative: Derivative, d: int) -> None:
    last = max((*derivative.coordinates, (derivative.over[1] or 1) - 1, derivative.over[0]))
    if last >= d:
        raise ValueError(f"x: expected points of at least {last + 1} coordinates for {derivative!r}, got {d}")


def _component(values: Tensor, wanted: "Unknown", x: Tensor) -> Tensor:
    """One component (b) of values (b), (b, 1) or (b, c)."""
    if values.shape[:1] != x.shape[:1] or values.ndim not in (1, 2):
        raise ValueError(f"u: expected values ({x.shape[0]}) or ({x.shape[0]}, c), got {tuple(values.shape)}")
    if wanted.component is not None:
        if values.ndim == 1 or wanted.component >= values.shape[1]:
            raise ValueError(f"u[{wanted.component}]: expected values of more components, got {tuple(values.shape)}")
        return values[:, wanted.component]
    if values.ndim == 2 and values.shape[1] != 1:
        raise ValueError(f"u: it has {values.shape[1]} components; expected u[0], u[1], .. in the expression")
    return values if values.ndim == 1 else values[:, 0]


def _partials(u: Function, x: Tensor, wanted: Sequence[Derivative]) -> dict[Any, Tensor]:
    """Partial derivatives, all from the one jet that moves along each of their coordinates and vectors.

    Its multi-indices are those below the wanted ones and no others. That is the least that a pass can carry: a
    derivative of order n along k directions has as many of lower order below it, and univariate jets along sums of the
    directions would carry those of each.
    """
    lines = in_order(dict.fromkeys(line for derivative in wanted for line in derivative.fixed))
    indices = {each: tuple(each.fixed.count(line) for line in lines) for each in wanted}
    out = checked(_along(u, x, lines, downset(*indices.values())), max(each.order for each in wanted))
    return {VALUE: out.primal} | {each: out.derivative(index)[0] for each, index in indices.items()}


def partial_derivative(function: Function, x: Tensor, along: tuple[int | Vectors, ...]) -> Tensor:
    """A partial derivative (b) of a known function of the points, zero where it is constant."""
    lines = tuple(dict.fromkeys(along))
    index = tuple(along.count(line) for line in lines)
    out = _along(function, x, lines, downset(index))
    if isinstance(out, Tensor):
        return torch.zeros_like(out)
    return checked(out, len(along)).derivative(index)[0]


def _along(u: Function, x: Tensor, lines: tuple[int | Vectors, ...], algebra: Algebra) -> Any:
    """The jet with a variable for each of some coordinates and vectors."""
    coordinates = [line for line in lines if not isinstance(line, Vectors)]
    if x.shape[1] > FEW and len(coordinates) == len(lines):
        return along_coordinates(u, x, [torch.full((1,), c, device=x.device) for c in coordinates], algebra)
    every = torch.arange(x.shape[1], device=x.device)
    units = (line.direction(x) if isinstance(line, Vectors) else (every == line).to(x.dtype)[None] for line in lines)
    return jet(u, x, [unit[None] for unit in units], algebra)  # (1, b or 1, d) each


def _summed(u: Function, x: Tensor, derivative: Derivative, group: int) -> dict[Any, Tensor]:
    """A sum of derivatives over coordinates, by all of its terms."""
    place, y = derivative.chart(x)
    start, stop = derivative.over
    count, values, parts = tuple(Counter(derivative.fixed).values()), [], []
    for orders, weight, tuples in terms(derivative.orders, range(start, y.shape[1] if stop is None else stop)):
        columns = torch.tensor(tuples, device=x.device).unbind(1)
        out = moved(lambda y: u(place(y)), y, derivative.coordinates, orders, columns)
        values.append(out.primal)
        parts.append(weight * out.derivative((*count, *orders)))
    return {VALUE: values[0], (derivative, group): torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]}


def moved(
    u: Function,
    x: Tensor,
    fixed: tuple[int, ...],
    orders: tuple[int, ...],
    columns: Sequence[Tensor],
    collapsed: bool = True,
) -> Jet:
    """The jet along fixed coordinates and along some others (R) or (R, b), at the highest orders summed over R."""
    count = Counter(fixed)
    along = [torch.full_like(columns[0], c) for c in count]
    top = (*count.values(), *orders)
    algebra = downset(top, collapsed=(top,) if collapsed else ())
    return checked(along_coordinates(u, x, [*along, *columns], algebra), sum(top))


def terms(orders: tuple[int, ...], coordinates: range) -> Iterator[tuple[tuple[int, ...], int, list[tuple[int, ...]]]]:
    """The terms of a sum over all i_1, .., i_m: by which of them are equal, each choice of coordinates once.

    Yields:
        orders along coordinates that differ, how often each term occurs, and the coordinates.
    """
    for merged, times in Counter(_merged(orders)).items():
        if len(set(merged)) == 1:  # any order of the coordinates gives the same term
            tuples = list(combinations(coordinates, len(merged)))
            for k in range(2, len(merged) + 1):
                times *= k
        else:
            tuples = list(permutations(coordinates, len(merged)))
        if tuples:
            yield merged, times, tuples


def _merged(orders: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The orders for every way in which some of i_1, .., i_m may be equal."""
    if not orders:
        yield ()
        return
    for rest in _merged(orders[1:]):
        yield tuple(sorted((orders[0], *rest), reverse=True))
        for i in range(len(rest)):
            yield tuple(sorted((*rest[:i], rest[i] + orders[0], *rest[i + 1 :]), reverse=True))


def checked(out: Any, order: int) -> Jet:
    """A jet of a function that is smooth enough.

    Raises:
        ValueError: if it is not, or if u returned something else.
    """
    if not isinstance(out, Jet):
        raise ValueError(f"u: expected a function of its points, got one that returns {type(out).__name__}")
    if order > out.smoothness + 1:
        raise ValueError(
            f"u: a derivative of order {order} was asked for, but u has {max(out.smoothness, 0):g} continuous ones; "
            "take a smooth activation, as tanh, gelu or silu"
        )
    return out
