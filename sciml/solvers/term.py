"""Terms: the right-hand sides of differential equations, dy = f(t, y, args) dt."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dis import get_instructions
from functools import cache, lru_cache, partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sciml.solvers.linear.operator import LinearOperator
from sciml.typing import Args, Calculus, Lanes, NoiseType


class Term(ABC):
    """A right-hand side. Subclass it, or hand any ``f(t, y)`` or ``f(t, y, args)`` to `solve`."""

    @abstractmethod
    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """dy/dt, of y's shape.

        Args:
            t: time; 0-d with joint lanes, (b, 1, .., 1) where each sample steps by itself.
            y: state.
            args: the tensors given to `solve` as ``args``.
        """

    def mass(self, args: Args) -> Tensor | LinearOperator | None:
        """M of M dy/dt = f(t, y); None is the identity.

        It may be singular, which makes the system differential-algebraic (of index 1): where a row is empty, f = 0 is a
        constraint, which y0 has to meet too. Between steps unknowns without a slope are of order 4 at most, and most
        exact with `Rodas5P`. M is (n, n) with the n unknowns of one system, or one for each (b, n, n), and constant in
        t and y; a `SparseOperator` may stand for one (n, n). Only some implicit steppers take it.
        """
        return None

    def jacobian(self, t: Tensor, y: Tensor, args: Args) -> LinearOperator | None:
        """df/dy where the term knows its entries, as a sparse matrix that preconditioners can factor, say.

        None leaves it to differentiation. Arguments are those of `drift`; a joint state is one system of all its
        unknowns.
        """
        return None


class Semilinear(Term):
    """dy/dt = L y + N(t, y) with a constant diagonal L: what exponential steppers integrate exactly.

    In Fourier space every constant-coefficient PDE on a periodic domain has this form.
    """

    @abstractmethod
    def linear(self, args: Args) -> Tensor:
        """The diagonal of L, real or complex, broadcastable against the state."""

    @abstractmethod
    def remainder(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """N(t, y), of y's shape."""

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """L y + N(t, y)."""
        return self.linear(args) * y + self.remainder(t, y, args)


class Separable(Term):
    """dq/dt = v(t, p), dp/dt = F(t, q): what symplectic steppers integrate. The state is (..., 2 n): q, then p.

    With a Hamiltonian T(p) + V(q), v is the gradient of T and F that of -V.
    """

    @abstractmethod
    def velocity(self, t: Tensor, p: Tensor, args: Args) -> Tensor:
        """dq/dt at momenta p (..., n); t as in `drift`."""

    @abstractmethod
    def force(self, t: Tensor, q: Tensor, args: Args) -> Tensor:
        """dp/dt at positions q (..., n); t as in `drift`."""

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """Both together, of y's shape."""
        q, p = y.chunk(2, -1)
        return torch.cat([self.velocity(t, p, args), self.force(t, q, args)], -1)


class Diffusive(Term):
    """dy = f(t, y) dt + g(t, y) dW, a stochastic equation: the drift f, and g as what it makes of an increment of W.

    Attributes:
        noise_type: ``"diagonal"``: entry i of g dW is g_i(t, y_i) dW_i, with a number of W for each of the state;
            ``"additive"``: g does not depend on y; ``"scalar"``: all entries see one number; ``"general"``: anything
            linear in dW. Steppers say which ones they integrate, and trust it.
        calculus: ``"ito"`` or ``"stratonovich"``: the integral that is meant.

    Example:
        >>> import torch
        >>> from sciml import Solver, solve
        >>> from sciml.solvers import Brownian, Diffusive, EulerMaruyama, Grid
        >>> class Growth(Diffusive):
        ...     noise_type = "diagonal"
        ...     def drift(self, t, y, args):
        ...         return 0.1 * y
        ...     def diffuse(self, t, y, dw, args):
        ...         return 0.5 * y * dw
        >>> solver = Solver(EulerMaruyama(), Grid(n=100))
        >>> solve(Growth(), torch.ones(1000), 0.0, 1.0, solver, path=Brownian(seed=1)).ys.shape
        torch.Size([1000])
    """

    noise_type: NoiseType = "general"
    calculus: Calculus = "ito"

    @abstractmethod
    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The product g(t, y) dw, of y's shape.

        Args:
            t: time; as in `drift`.
            y: state.
            dw: an increment of the path, of the path's shape.
            args: the tensors given to `solve` as ``args``.
        """


class FunctionTerm(Term):
    """A plain callable ``f(t, y)`` or ``f(t, y, args)`` as a term; ``takes`` is what `takes_args` says of it."""

    def __init__(self, function: Callable[..., Tensor], takes: bool | None):
        self.function, self.takes = function, takes

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The function's value."""
        return called(self.function, self.takes, t, y, args)


def as_term(term: Any) -> Term:
    """``term`` itself, or a callable wrapped as one.

    Raises:
        TypeError: ``term`` is neither a `Term` nor a callable of two or three positional arguments, or has a mass that
            is no method.
    """
    if isinstance(term, Term):
        if type(term).mass is not Term.mass or "mass" in vars(term):
            _check_mass(term.mass)
        return term
    if not callable(term):
        raise TypeError(f"term: expected a Term or a callable f(t, y) or f(t, y, args), got {type(term).__name__}")
    return FunctionTerm(term, takes_args(term, "term", "f"))


def _check_mass(mass: Any) -> None:
    expected = "term: expected a method mass(args) that returns a matrix"
    if not callable(mass):
        raise TypeError(f"{expected}, got {type(mass).__name__}")
    try:
        inspect.signature(mass).bind(())
    except TypeError as error:
        raise TypeError(f"{expected}, got one of other arguments: {error}") from error


def takes_args(function: Callable[..., Any], name: str, letter: str) -> bool | None:
    """Whether a callable of (t, y) is called with args too; None: where a solve has any.

    The latter are those of ``*args``, and of a third argument that is called ``args`` or has a tuple or None as its
    default, as args have; other defaults, as in ``lambda t, y, i=i``, are the caller's own.

    Raises:
        TypeError: it takes another number of positional arguments; the error names it by ``name`` and ``letter``.
    """
    count, may = _positional(function)
    if not 2 <= count <= 3:
        expected = f"a callable {letter}(t, y) or {letter}(t, y, args)"
        raise TypeError(f"{name}: expected {expected}, got one of {count} positional arguments")
    return True if count == 3 else None if may else False


def called(function: Callable[..., Any], takes: bool | None, t: Tensor, y: Any, args: Args) -> Any:
    """The value of a callable of which `takes_args` is known."""
    return function(t, y, args) if takes or (takes is None and args) else function(t, y)


def _positional(function: Callable[..., Any]) -> tuple[int, bool]:
    """How many of (t, y, args) a callable takes: what it requires, at least two if it can; whether it may get args."""
    target = function.forward if isinstance(function, nn.Module) else function
    plain = getattr(target, "__func__", target)
    if isinstance(plain, FunctionType) and not hasattr(plain, "__wrapped__"):  # ten times quicker than a signature
        code = plain.__code__
        names = code.co_varnames[plain is not target : code.co_argcount]
        defaults = (inspect.Parameter.empty,) * (len(names) - len(plain.__defaults__ or ())) + (
            plain.__defaults__ or ()
        )
        varies = bool(code.co_flags & inspect.CO_VARARGS)
    else:
        try:
            parameters = inspect.signature(target).parameters.values()
        except ValueError:  # a builtin without a signature
            return 2, False
        varies = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [p for p in parameters if p.kind in kinds]
        names, defaults = tuple(p.name for p in named), tuple(p.default for p in named)
    required = sum(default is inspect.Parameter.empty for default in defaults)
    if varies:
        return max(required, 2), len(names) < 3
    may = names[2:3] == ("args",) or any(isinstance(default, tuple | None) for default in defaults[2:3])
    return (required if required >= 2 else min(2, len(names))), may


def refuse_changing(term: Term) -> None:
    """Refuse a field that is another function at every evaluation: batch norms and dropout in train mode.

    Looked at are all modules of a module, of a term's attributes, and of what a plain function names.

    Raises:
        ValueError: naming the module.
    """
    found = _field_modules(term.function if isinstance(term, FunctionTerm) else term)
    seen: set[nn.Module] = set()
    for module in found:  # grows; several times quicker than `Module.modules`
        if module.training and _changes(type(module)):
            _refuse(module, found)
        parts = module._modules
        if parts and module not in seen:
            seen.add(module)
            found.extend(part for part in parts.values() if part is not None)


@cache
def _changes(kind: type[nn.Module]) -> bool:
    """Whether modules of a class may be other functions in train mode."""
    return issubclass(kind, (_NormBase, _DropoutNd, nn.RReLU, nn.MultiheadAttention, nn.RNNBase))


def _field_modules(field: Any) -> list[nn.Module]:
    """The outermost modules of a field as the user gave it."""
    if isinstance(field, nn.Module):
        return [field]
    if not isinstance(field, FunctionType):
        bare = isinstance(field, Term) and not vars(field)
        return [] if bare else [member for member in _members(field) if isinstance(member, nn.Module)]
    scope, found = field.__globals__, []
    for name in field.__code__.co_names:  # of attributes too
        if isinstance(scope.get(name), nn.Module) and name in _global_names(field.__code__):
            found.append(scope[name])
    for cell in field.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # nothing in it yet
            continue
    return [x for x in found if isinstance(x, nn.Module)]


@lru_cache(maxsize=256)
def _global_names(code: CodeType) -> frozenset[str]:
    """The global names that code reads."""
    return frozenset(step.argval for step in get_instructions(code) if step.opname == "LOAD_GLOBAL")


def _refuse(module: nn.Module, roots: Iterable[nn.Module]) -> None:
    """Refuse a module in train mode, where it does something else there.

    Raises:
        ValueError: naming it, with the remedy.
    """
    if isinstance(module, _NormBase):
        if not module.track_running_stats:
            return
        what, instead = "would change its statistics", "take GroupNorm or LayerNorm"
    else:
        if not (getattr(module, "p", 0) or getattr(module, "dropout", 0) or isinstance(module, nn.RReLU)):
            return
        what, instead = "would draw anew", "multiply by a mask that is drawn once and handed to the solve in args"
    place = next(path for root in roots for path, part in root.named_modules() if part is module)
    name = f"{type(module).__name__} {place!r}" if place else type(module).__name__
    raise ValueError(f"term: {name} is in train mode and {what} at every evaluation; call its eval(), or {instead}")


def declared_parameters(*things: Any) -> list[nn.Parameter]:
    """The parameters of every module among ``things``, in a fixed order, each once."""
    found = {
        id(p): p
        for member in _members(things)
        for p in ([member] if isinstance(member, nn.Parameter) else member.parameters())
    }
    return list(found.values())


def declared_modules(*things: Any) -> list[nn.Module]:
    """The modules among ``things``, or the empty list where a parameter lies outside of one."""
    members = list(_members(things))
    return [m for m in members if isinstance(m, nn.Module)] if all(isinstance(m, nn.Module) for m in members) else []


def _members(thing: Any, seen: set[int] | None = None) -> Iterator[nn.Module | nn.Parameter]:
    """The outermost modules and parameters in a thing, which is looked into where that is unambiguous.

    That is: a sequence, a module, a wrapped function, a bound method of a module, a `functools.partial`, or a plain
    object that holds modules, parameters or such things as attributes.
    """
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    parts: Iterable[Any] = ()
    if isinstance(thing, nn.Module | nn.Parameter):
        yield thing
    elif isinstance(thing, tuple):
        parts = thing
    elif isinstance(thing, partial):
        parts = (thing.func, *thing.args, *thing.keywords.values())
    elif inspect.ismethod(thing):
        parts = (thing.__self__,)
    elif not inspect.isfunction(thing) and not inspect.isclass(thing):  # their closures and attributes are not
        values = getattr(thing, "__dict__", {}).values()
        parts = [value for value in values if isinstance(value, nn.Parameter | Term) or callable(value)]
    for part in parts:
        yield from _members(part, seen)


def real_dtype(y: Tensor) -> torch.dtype:
    """The dtype of y's real part: what times, step sizes and norms are rounded to."""
    return y.real.dtype if y.is_complex() else y.dtype


def expand(a: Tensor, y: Tensor) -> Tensor:
    """A per-lane tensor (l) with trailing axes of one, so that it broadcasts against the state."""
    return a.reshape(a.shape + (1,) * (y.ndim - a.ndim))


def vanishing(y: Tensor, lanes: Lanes) -> Tensor:
    """0 (l) where the state is finite, else NaN."""
    size = (torch.view_as_real(y) if y.is_complex() else y).abs()
    axes = tuple(range(lanes == "each", size.ndim))
    return 0 * (size.amax(axes) if axes else size)
