"""Jets: truncated Taylor polynomials that go through PyTorch functions.

A jet stands where a tensor of shape (b, ...) would. Torch hands each function that meets one to ``Jet``, which looks up
the function's rule. The modules beside this one fill the table of rules. What a function does in place (``+=``, an
activation with ``inplace=True``) it does to its result: other names of the jet that went in keep its value.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sciml.calculus.algebra import Algebra, Index, Polynomial

Rule = Callable[..., Any]  # called with the function that was met and its arguments
NAMESPACES = (torch, torch.Tensor, functional, torch.special, torch.linalg, torch.fft)
FALLBACK = "fallback"
SPELLINGS = {"axis": "dim", "keepdims": "keepdim"}
POSITIONAL = ("condition", "input", "other")
RULES: dict[str, Rule] = {}
NAMES: dict[Any, str] = {}  # under which name the rule of a function is found


class Jet:
    """A truncated Taylor polynomial in some formal variables, for several curves at once.

    Args:
        algebra: the multi-indices.
        coefficients: one per multi-index, normalised (c_a = d^a u / a!). The first, the value, has shape (b, ...); the
            others (R, b, ...) with one entry per direction, where any axis but the first may be 1, a collapsed one
            (b, ...), also with axes of 1. None is zero.
        directions: R.
        smoothness: how many derivatives of what the jet went through are continuous everywhere: infinite for smooth
            networks, 0 after ``relu``, -1 after ``sign``. A jet of a higher order holds the derivatives of the piece
            that the point is in, without the delta functions at the kinks. ``torch.where`` counts as smooth, and so do
            functions without a rule that are not known to have kinks.
    """

    tables: ClassVar[tuple[dict[str, Rule], ...]] = (RULES,)
    is_nested: ClassVar[bool] = False  # modules of torch ask for it
    __array_ufunc__ = None  # numbers of numpy on the left leave operators to the jet

    def __init__(self, algebra: Algebra, coefficients: Polynomial, directions: int, smoothness: float = math.inf):
        self.algebra = algebra
        self._coefficients = coefficients
        self.directions = directions
        self.smoothness = smoothness

    def coefficient(self, index: int | Index) -> Tensor:
        """A normalised coefficient, d^a u / a!.

        Args:
            index: the multi-index a; a number where there is one variable.

        Returns:
            The value (b, ...) for a = 0; (R, b, ...) otherwise, (b, ...) where a is collapsed.

        Raises:
            ValueError: if the jet does not have it.
        """
        index = (index,) if isinstance(index, int) else tuple(index)
        if index not in self.algebra.indices:
            raise ValueError(f"index: expected one of {self.algebra.indices}, got {index}")
        k = self.algebra.indices.index(index)
        c = self.coefficients[k]
        if c is None:
            return self.primal.new_zeros(self.full_shape(k))
        return c.to(self.dtype).expand(self.full_shape(k))

    def derivative(self, index: int | Index) -> Tensor:
        """A derivative along the curves, d^a u = a! c_a; shapes as of ``coefficient``."""
        orders = (index,) if isinstance(index, int) else tuple(index)
        factor = math.prod([math.factorial(max(n, 0)) for n in orders])
        c = self.coefficient(index)
        return c if factor == 1 else c * factor

    def has_directions(self, k: int) -> bool:
        """Whether the coefficient at position k has the axis of directions."""
        return k > 0 and k not in self.algebra.collapsed

    def full_shape(self, k: int) -> tuple[int, ...]:
        """The shape of the coefficient at position k where no axis is left at 1."""
        return (self.directions, *self.shape) if self.has_directions(k) else tuple(self.shape)

    def full(self, k: int) -> Any:
        """The coefficient at position k in its full shape, or None."""
        c, shape = self.coefficients[k], self.full_shape(k)
        if c is None:
            return None
        c = c.to(self.dtype) if self.is_complex() and not c.is_complex() else c  # of x + 1j, for one
        return c if c.shape == shape else c.expand(shape)

    @property
    def coefficients(self) -> Polynomial:
        """The normalised coefficients, in the order of the algebra's indices."""
        return self._coefficients

    @property
    def primal(self) -> Tensor:
        """The value (b, ...)."""
        return self._coefficients[0]

    @property
    def shape(self) -> torch.Size:
        """That of the value."""
        return self.primal.shape

    @property
    def ndim(self) -> int:
        """That of the value."""
        return self.primal.ndim

    @property
    def dtype(self) -> torch.dtype:
        """That of the value."""
        return self.primal.dtype

    @property
    def device(self) -> torch.device:
        """That of the value."""
        return self.primal.device

    @property
    def requires_grad(self) -> bool:
        """That of the value."""
        return self.primal.requires_grad

    @property
    def real(self) -> "Jet":
        """Its real part."""
        return dispatch(self.tables, torch.real, (self,), {})

    @property
    def imag(self) -> "Jet":
        """Its imaginary part."""
        return dispatch(self.tables, torch.imag, (self,), {})

    @property
    def mT(self) -> "Jet":
        """With the last two axes swapped."""
        return dispatch(self.tables, torch.transpose, (self, -2, -1), {})

    @property
    def mH(self) -> "Jet":
        """With the last two axes swapped, conjugate."""
        return dispatch(self.tables, torch.adjoint, (self,), {})

    @property
    def T(self) -> "Jet":
        """With all axes in reverse order."""
        return dispatch(self.tables, torch.permute, (self, tuple(reversed(range(self.ndim)))), {})

    def dim(self) -> int:
        """The number of axes of the value."""
        return self.primal.ndim

    def size(self, dim: int | None = None) -> Any:
        """The size of the value."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of entries of the value."""
        return self.primal.numel()

    def is_floating_point(self) -> bool:
        """Whether the value is real."""
        return self.primal.is_floating_point()

    def is_complex(self) -> bool:
        """Whether the value is complex."""
        return self.primal.is_complex()

    def detach(self) -> Tensor:
        """The value as a constant, without coefficients and without gradients."""
        return self.primal.detach()

    def __len__(self) -> int:
        return len(self.primal)

    def __iter__(self) -> Any:
        return iter(self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.primal)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("a jet cannot be assigned to in place; use torch.where, torch.cat or torch.stack")

    def __getattr__(self, name: str) -> Any:
        """Methods of tensors that have no rule of their own."""
        func = None if name.startswith("__") else getattr(torch.Tensor, name, None)
        if not callable(func):
            raise AttributeError(f"a jet has no attribute {name!r}")
        return lambda *args, **kwargs: dispatch(self.tables, func, args=(self, *args), kwargs=kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls in place of a function that met a jet."""
        return dispatch(cls.tables, func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Jet({tuple(self.shape)}, directions={self.directions}, indices={self.algebra.indices})"


def dispatch(
    tables: Sequence[dict[str, Rule]], func: Any, args: Sequence[Any], kwargs: dict[str, Any], name: str = ""
) -> Any:
    """Apply the rule of a function.

    Args:
        tables: tables of rules, which are asked in turn; a rule may pass by NotImplemented.
        func: the function.
        args: its arguments.
        kwargs: more of them.
        name: the name of its rule, where that is known.
    """
    if "out" in kwargs and kwargs.pop("out") is not None:
        raise TypeError(f"{name_of(func)}: out= cannot be given where a jet goes in")
    name = name or rule_of(func)
    if kwargs and name:
        args, kwargs = _spelled(args, kwargs)
    for table in tables:
        rule = table.get(name)
        if rule is not None:
            result = rule(func, *args, **kwargs)
            if result is not NotImplemented:
                return result
    given = name_of(func)
    if given == "__setitem__":
        raise TypeError("a jet cannot be assigned to a part of a tensor; use torch.where, torch.cat or torch.stack")
    if given.endswith("_") and not given.endswith("__"):
        raise TypeError(f"{given}: a jet cannot be changed in place; call {given.rstrip('_')} instead")
    return RULES[FALLBACK](func, *args, **kwargs)


def _spelled(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Arguments as rules call them, of which torch has several spellings."""
    first = [kwargs[name] for name in POSITIONAL if name in kwargs]
    rest = {SPELLINGS.get(name, name): v for name, v in kwargs.items() if name not in POSITIONAL}
    return (*args, *first), rest


@torch.compiler.assume_constant_result  # a compiler cannot look up every function in a dictionary
def rule_of(func: Any) -> str:
    """The name of a function's rule, empty if it has none."""
    return NAMES.get(func, "")


@torch.compiler.assume_constant_result
def name_of(func: Any) -> str:
    """The name of a function of torch."""
    return getattr(func, "__name__", repr(func))


def rule(*names: str, table: dict[str, Rule] = RULES) -> Callable[[Rule], Rule]:
    """Enter a rule for the functions and the methods of these names, wherever torch keeps them."""

    def enter(given: Rule) -> Rule:
        for name in names:
            table[name] = given
            for func in _called(name):
                NAMES.setdefault(func, name)
            if name not in vars(Jet) and callable(getattr(torch.Tensor, name, None)):
                setattr(Jet, name, _method(name))
        return given

    return enter


def _called(name: str) -> list[Any]:
    found = (getattr(space, name, None) for space in NAMESPACES)
    return [func for func in found if callable(func)]


def _method(name: str) -> Callable[..., Any]:
    func = getattr(torch.Tensor, name)

    def method(self: Jet, *args: Any, **kwargs: Any) -> Any:
        return dispatch(self.tables, func, (self, *args), kwargs, name)

    method.__name__ = name
    return method


def jets_of(*values: Any) -> list[Jet]:
    """The jets among some values, all of the same curves.

    Raises:
        ValueError: if they differ in their algebras or numbers of directions.
    """
    jets = [v for v in values if isinstance(v, Jet)]
    for other in jets[1:]:
        if other.algebra != jets[0].algebra or other.directions != jets[0].directions:
            raise ValueError(f"expected jets along the same curves, got {jets[0]!r} and {other!r}")
    return jets


def like(jets: Sequence[Jet], coefficients: Polynomial) -> Jet:
    """A jet along the same curves as some others, as smooth as the least of them."""
    return Jet(jets[0].algebra, coefficients, jets[0].directions, min(x.smoothness for x in jets))


def same_type(value: Any, parts: Sequence[Any]) -> Any:
    """Other parts in a tuple or list of the type of a value, with its names."""
    kind = type(value)
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


def primal(value: Any) -> Any:
    """The value of a jet; anything else as it is."""
    return value.primal if isinstance(value, Jet) else value
