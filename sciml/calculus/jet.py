"""Taylor mode: derivatives of any order along many directions, in one pass through a network.

A curve, or with several variables a polynomial surface, x(t) = x + sum_i t_i v_i is sent through a function; out come
the Taylor coefficients of u(x(t)), which are derivatives of u:

    d^a/dt^a u(x(t)) at t = 0  =  D^|a| u [v_1, a_1 times; v_2, a_2 times; ...].

(Griewank and Walther 2008, Evaluating Derivatives, ch. 13; Bettencourt, Johnson and Duvenaud 2019, Taylor-mode
automatic differentiation for higher-order derivatives in JAX.) The results are differentiable to parameters and points.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sciml.calculus import (  # noqa: F401  (they fill the table of rules)
    arithmetic,
    composite,
    fallback,
    matrices,
    structural,
)
from sciml.calculus.algebra import Algebra, Index, constant, univariate
from sciml.calculus.dispatch import Jet
from sciml.calculus.sparse import SparseJet, seeded

Directions = Tensor | Sequence[Tensor] | Mapping[Index, Tensor]
Coordinates = Tensor | Sequence[Tensor]


def jet(
    u: Callable[[Any], Any], x: Tensor, directions: Directions, order: int | Algebra, *, collapsed: bool = False
) -> Any:
    """Taylor coefficients of a function along directions.

    Args:
        u: a function or module of points, in PyTorch's functions.
        x: points (b, ...).
        directions: v of x + t v, (R, ...) for all points or (R, b, ...) for each of its own. With several variables one
            of these for each; or, for a curve that is not a line, a mapping from multi-indices to normalised
            coefficients.
        order: the highest derivative where there is one variable; otherwise the multi-indices, from ``downset``.
        collapsed: whether of the highest derivative only the sum over the directions is wanted, which is cheaper. An
            algebra says so itself.

    Returns:
        The jet of u(x), from which ``derivative`` and ``coefficient`` read; a tree of jets where u returns a tree.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if shapes do not fit.

    Example:
        The Laplacian of x^2 y + y^3 at (1, 2), which is 2 y + 6 y.

        >>> import torch
        >>> from sciml.calculus.jet import jet
        >>> u = lambda x: x[:, 0] ** 2 * x[:, 1] + x[:, 1] ** 3
        >>> jet(u, torch.tensor([[1.0, 2.0]]), torch.eye(2), 2, collapsed=True).derivative(2)
        tensor([16.])
    """
    return _results(u(seed(x, directions, _algebra(order, collapsed))), x)


def coordinate_jet(
    u: Callable[[Any], Any], x: Tensor, coordinates: Coordinates, order: int | Algebra, *, collapsed: bool = False
) -> Any:
    """Taylor coefficients of a function along coordinates, whatever their number at the cost of those that move.

    Args:
        u: as of ``jet``. Up to its first affine map it should use functions of one variable, sums over the last axis,
            slices of that, and arithmetic with constants; others see d coefficients per direction.
        x: points (b, d).
        coordinates: numbers of coordinates, (R,) for all points or (R, b) for each of its own; with several variables
            one of these for each.
        order: as of ``jet``.
        collapsed: as of ``jet``.

    Returns:
        As ``jet`` with directions that are 1 at a coordinate and 0 elsewhere.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> from sciml.calculus.algebra import downset
        >>> from sciml.calculus.jet import coordinate_jet
        >>> u = lambda x: x[:, 0] ** 2 * x[:, 1]
        >>> xxy = downset((2, 1))
        >>> i, j = torch.tensor([0]), torch.tensor([1])
        >>> coordinate_jet(u, torch.tensor([[1.0, 2.0]]), (i, j), xxy).derivative((2, 1))
        tensor([[2.]])
    """
    algebra = _algebra(order, collapsed)
    for c in [coordinates] if isinstance(coordinates, Tensor) else coordinates:
        _check_range(c, x)
    return along_coordinates(u, x, coordinates, algebra)


def along_coordinates(u: Callable[[Any], Any], x: Tensor, coordinates: Coordinates, order: int | Algebra) -> Any:
    """As ``coordinate_jet``, for coordinates that are known to be there."""
    return _results(u(seed_coordinates(x, coordinates, _algebra(order, False))), x)


def seed(x: Tensor, directions: Directions, algebra: Algebra) -> Jet:
    """Points that move along directions; arguments as of ``jet``.

    Returns:
        The jet of x itself, to be handed to functions.
    """
    _check_points(x)
    given = _by_index(directions, algebra)
    shaped = {a: _shaped(v, x, _named(a, algebra)) for a, v in given.items()}
    counts = {len(v) for v in shaped.values()}
    if len(counts) > 1:
        raise ValueError(f"directions: expected the same number of them for each variable, got {sorted(counts)}")
    parts = constant(algebra, x)
    for a, v in shaped.items():
        k = algebra.indices.index(a)
        parts[k] = v.sum(0) if k in algebra.collapsed else v
    return Jet(algebra, parts, counts.pop())


def seed_coordinates(x: Tensor, coordinates: Coordinates, algebra: Algebra) -> SparseJet:
    """Points that move along coordinates; arguments as of ``coordinate_jet``.

    Returns:
        The jet of x itself, to be handed to functions.
    """
    _check_points(x)
    given = [coordinates] if isinstance(coordinates, Tensor) else list(coordinates)
    if len(given) != algebra.variables:
        raise ValueError(
            f"coordinates: expected one tensor for each of {algebra.variables} variables, got {len(given)}"
        )
    for c in given:
        if not isinstance(c, Tensor) or c.dtype not in (torch.int64, torch.int32):
            shown = c.dtype if isinstance(c, Tensor) else type(c).__name__
            raise TypeError(f"coordinates: expected tensors of whole numbers, got {shown}")
    shapes = {tuple(c.shape) for c in given}
    count = given[0].shape[:1]
    if (
        not x.ndim
        or len(shapes) > 1
        or shapes.pop() not in {tuple(count), (*count, *x.shape[:-1])}
        or not given[0].ndim
    ):
        expected = f"(R,) or (R, {', '.join(map(str, x.shape[:-1]))})" if x.ndim > 1 else "(R,)"
        got = ", ".join(str(tuple(c.shape)) for c in given)
        raise ValueError(f"coordinates: expected shapes {expected} for points {tuple(x.shape)}, got {got}")
    return seeded(x, [c.to(torch.int64) for c in given], algebra)


def _algebra(order: Any, collapsed: bool) -> Algebra:
    if not isinstance(order, Algebra):
        return univariate(order, collapsed)
    if collapsed:
        raise ValueError("collapsed: an algebra says itself what is collapsed: downset(..., collapsed=[...])")
    return order


def _check_points(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor of points, got {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"x: expected points of a floating or complex dtype, got {x.dtype}")


def _check_range(coordinates: Any, x: Any) -> None:
    """Refuse numbers that are none of a coordinate, where they can be seen without waiting for a device."""
    hidden = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if hidden or not isinstance(coordinates, Tensor) or not isinstance(x, Tensor) or not x.ndim:
        return
    if coordinates.device.type == "cpu" and coordinates.numel() and not coordinates.is_floating_point():
        least, most = (n.item() for n in coordinates.aminmax())
        if least < 0 or most >= x.shape[-1]:
            found = f"{least} to {most}"
            raise ValueError(f"coordinates: expected numbers from 0 to {x.shape[-1] - 1}, got {found}")


def _by_index(directions: Any, algebra: Algebra) -> dict[Index, Tensor]:
    """Directions by their multi-indices."""
    if isinstance(directions, Mapping):
        unknown = [a for a in directions if a not in algebra.indices[1:]]
        if unknown or not directions:
            raise ValueError(f"directions: expected multi-indices among {algebra.indices[1:]}, got {list(directions)}")
        return dict(directions)
    given = [directions] if isinstance(directions, Tensor) else list(directions)
    m = algebra.variables
    if len(given) != m:
        raise ValueError(f"directions: expected one tensor for each of {m} variables, got {len(given)}")
    units = (tuple(int(i == v) for i in range(m)) for v in range(m))
    return {a: v for a, v in zip(units, given, strict=True) if a in algebra.indices}


def _named(index: Index, algebra: Algebra) -> str:
    return "directions" if algebra.variables == 1 and index == (1,) else f"directions at {index}"


def _shaped(v: Any, x: Tensor, name: str) -> Tensor:
    """Directions (R, b|1, ...)."""
    if not isinstance(v, Tensor) or not (v.is_floating_point() or v.is_complex()):
        raise TypeError(
            f"{name}: expected a floating tensor, got {v.dtype if isinstance(v, Tensor) else type(v).__name__}"
        )
    if v.dtype != x.dtype:
        raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {v.dtype}")
    shared = x.ndim > 1 and v.ndim == x.ndim and v.shape[1:] == x.shape[1:]
    each = v.ndim == x.ndim + 1 and v.shape[2:] == x.shape[1:] and v.shape[1:2] in (x.shape[:1], (1,))
    if shared:
        return v[:, None]
    if not each or (x.ndim == 1 and v.shape[1:] != x.shape):
        point, all_points = ", ".join(map(str, x.shape[1:])), ", ".join(map(str, x.shape))
        expected = f"(R, {point}) or (R, {all_points})" if x.ndim > 1 else f"(R, {all_points})"
        raise ValueError(f"{name}: expected {expected} for points {tuple(x.shape)}, got {tuple(v.shape)}")
    return v


def _results(y: Any, x: Tensor) -> Any:
    """Jets of everything that a function returned."""
    return y if type(y) is Jet else tree_map(_dense, y)


def _dense(y: Any) -> Any:
    return Jet(y.algebra, y.coefficients, y.directions, y.smoothness) if isinstance(y, SparseJet) else y
