"""Functions without a rule: derivatives along the curves by nested forward-mode autograd.

For the multi-index a, as many ``torch.func.jvp`` stand in each other as a has orders. This costs more than a rule, the
more so the higher the order.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sciml.calculus.algebra import Index, plus
from sciml.calculus.dispatch import FALLBACK, RULES, Jet, jets_of, like, name_of, same_type

# from which order on torch's forward derivatives are wrong, without a word (torch 2.13); tests show it
WRONG = {
    **dict.fromkeys(("cholesky_inverse", "triangular_solve", "scatter_reduce prod"), 1),
    **dict.fromkeys(("native_layer_norm", "native_batch_norm", "_native_batch_norm_legit"), 2),
    **dict.fromkeys(("linalg_solve_ex", "linalg_tensorsolve", "linalg_householder_product"), 2),
    **dict.fromkeys(("linalg_eig", "linalg_eigvals"), 3),
}
CONSTANT = ("airy", "bessel_", "polynomial")  # torch.special has these without derivatives, which it takes to be zero

# how many derivatives of functions without a rule are continuous
KINKS = {
    **dict.fromkeys(("_threshold", "hardshrink", "remainder", "fmod", "frac", "copysign"), -1),
    **dict.fromkeys(("prelu", "rrelu", "hardswish", "hardsigmoid", "softshrink", "l1_loss"), 0),
    **dict.fromkeys(("max", "min", "amax", "amin", "aminmax", "cummax", "cummin", "sort", "msort", "topk"), 0),
    **dict.fromkeys(("median", "nanmedian", "kthvalue", "quantile", "nanquantile"), 0),
    **dict.fromkeys((f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)), 0),
    **dict.fromkeys(("softsign", "smooth_l1_loss", "huber_loss"), 1),
}

Point = tuple[Tensor, ...]
Derivatives = dict[Index, Any]


class FallbackWarning(UserWarning):
    """A function without a Taylor rule was differentiated by nested autograd."""


def fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The jet of any function that forward-mode autograd can differentiate.

    Raises:
        NotImplementedError: if it cannot.
    """
    name = name_of(func)
    _warn(name)
    leaves, spec = tree_flatten((args, kwargs), is_leaf=lambda v: isinstance(v, Jet))
    places = [n for n, v in enumerate(leaves) if isinstance(v, Jet)]
    jets = jets_of(*leaves)

    def of_jets(*values: Tensor) -> Any:
        given = list(leaves)
        for n, value in zip(places, values, strict=True):
            given[n] = value
        a, k = tree_unflatten(given, spec)
        return func(*a, **k)

    if isinstance(func, torch.jit.ScriptModule | torch._C.ScriptMethod):
        raise NotImplementedError(
            "u: torch's forward mode gives wrong numbers for modules from torch.jit; expected the module itself"
        )
    _refuse_wrong(name.rpartition(".")[2], [*args, *kwargs.values()], jets[0].algebra.order)
    try:
        return _propagate(of_jets, jets, KINKS.get(name.rpartition(".")[2], math.inf))
    except (RuntimeError, NotImplementedError) as error:
        raise NotImplementedError(
            f"{name}: no Taylor rule, and nested forward-mode autograd cannot differentiate it: {error}"
        ) from error


def _refuse_wrong(name: str, values: list[Any], order: int) -> None:
    if name.startswith("special_") and any(part in name for part in CONSTANT):
        raise NotImplementedError(f"{name}: no Taylor rule, and torch has no derivative of it")
    reduced = " prod" if any(isinstance(v, str) and v == "prod" for v in values) else ""
    if order >= WRONG.get(name + reduced, math.inf):
        raise NotImplementedError(
            f"{name}: no Taylor rule, and torch's forward mode gives wrong numbers for derivatives of order {order}"
        )


@torch.compiler.assume_constant_result  # so that a compiler warns too, once, while it traces
def _warn(name: str) -> None:
    warnings.warn(f"{name} has no Taylor rule: it falls back to nested autograd", FallbackWarning, stacklevel=2)


def _propagate(func: Callable[..., Any], jets: list[Jet], smoothness: float) -> Any:
    algebra, count = jets[0].algebra, len(jets[0].algebra.indices)
    value = func(*(x.primal for x in jets))
    several = not isinstance(value, Tensor)
    outputs = len(value) if several else 1
    of_all = (lambda *v: tuple(func(*v))) if several else (lambda *v: (func(*v),))
    parts: list[list[Any]] = [[v] + [None] * (count - 1) for v in (value if several else (value,))]
    for k, derived in _curved(of_all, jets).items():
        for n in range(outputs):
            parts[n][k] = derived[n].sum(0) if k in algebra.collapsed else derived[n]
    for k in algebra.collapsed:
        if any(x.coefficients[k] is not None for x in jets):
            tangents = tuple(torch.zeros_like(x.primal) if x.full(k) is None else x.full(k) for x in jets)
            slopes = torch.func.jvp(of_all, tuple(x.primal for x in jets), tangents)[1]
            for n in range(outputs):
                parts[n][k] = plus(parts[n][k], slopes[n])
    results = [like(jets, p) if _smooth(p[0]) else p[0] for p in parts]  # the places that a sort gives are no jets
    for y in results:
        if isinstance(y, Jet):
            y.smoothness = min(y.smoothness, smoothness)
    return same_type(value, results) if several else results[0]


def _smooth(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _curved(func: Callable[..., Any], jets: list[Jet]) -> dict[int, Any]:
    """All coefficients (R, ...) but the value, leaving out what collapsed ones add by themselves."""
    algebra = jets[0].algebra
    moving = [(n, k) for n, x in enumerate(jets) for k in range(1, len(algebra.indices)) if _moves(x, k)]
    if not moving:
        return {}

    def of_direction(*moved: Tensor) -> dict[int, Any]:
        def at(t: Point) -> Any:
            points = [x.primal for x in jets]
            for (n, k), c in zip(moving, moved, strict=True):
                points[n] = points[n] + c * _monomial(t, algebra.indices[k])
            return func(*points)

        zero = moved[0].real.new_zeros(())
        found: Derivatives = {}
        for top in (algebra.indices[k] for k in algebra.maximal):
            found.update(_derivatives(at, top)((zero,) * algebra.variables))
        scaled = {}
        for k, index in enumerate(algebra.indices[1:], 1):
            factor = math.prod([math.factorial(n) for n in index])
            scaled[k] = tuple(c / factor for c in found[index])
        return scaled

    return torch.vmap(of_direction)(*(jets[n].full(k) for n, k in moving))


def _moves(x: Jet, k: int) -> bool:
    return x.has_directions(k) and x.coefficients[k] is not None


def _monomial(t: Point, index: Index) -> Any:
    return math.prod([v for v, n in zip(t, index, strict=True) for _ in range(n)])


def _derivatives(at: Callable[[Point], Any], top: Index) -> Callable[[Point], Derivatives]:
    """All derivatives up to a multi-index, as a function of the variables."""
    zero = (0,) * len(top)

    def values(t: Point) -> Derivatives:
        return {zero: at(t)}

    raised = values
    for variable, order in enumerate(top):
        for _ in range(order):
            raised = _raise(raised, variable)
    return raised


def _raise(below: Callable[[Point], Derivatives], variable: int) -> Callable[[Point], Derivatives]:
    """Derivatives of one order more in a variable."""

    def raised(t: Point) -> Derivatives:
        def along(s: Tensor) -> Derivatives:
            return below((*t[:variable], s, *t[variable + 1 :]))

        values, slopes, *_ = torch.func.jvp(along, (t[variable],), (torch.ones_like(t[variable]),))
        higher = {tuple(n + (v == variable) for v, n in enumerate(a)): c for a, c in slopes.items()}
        return {**higher, **values}

    return raised


RULES[FALLBACK] = fallback
