"""Linear differential operators: derivatives along coordinates and vectors, and sums of them."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sciml.calculus.partitions import prove
from sciml.calculus.vectors import Vectors

if TYPE_CHECKING:
    from sciml.calculus.expression import Expression

Coordinates = tuple[int, int | None]
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Derivative:
    """d^fixed sum over i_1, .., i_m of d_{i_1}^{p_1} .. d_{i_m}^{p_m}.

    Made by `Partial`, `Directional`, `PowerSum`, `Laplacian`, `Biharmonic` and `Trace`. Called with an expression it is
    applied to it.

    Args:
        fixed: coordinates in ascending order, then vectors, each as often as is differentiated along it.
        orders: (p_1, .., p_m) in descending order.
        over: first and last but one of the coordinates that each i runs over; None stands for their number d.
        factor: a matrix whose columns take the place of coordinates under the sum.
    """

    fixed: tuple[int | Vectors, ...] = ()
    orders: tuple[int, ...] = ()
    over: Coordinates = (0, None)
    factor: Vectors | None = None

    def __post_init__(self) -> None:
        """Refuse what is none, and prove that the coefficient it is read from holds nothing else."""
        for name, numbers, least in (("coordinates", self.coordinates, 0), ("orders", self.orders, 1)):
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in numbers):
                raise ValueError(f"{name}: expected whole numbers, {least} or more, got {numbers}")
        start, stop = self.over
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"coordinates: expected first and last but one of some, got {self.over}")
        if self.orders and (len(self.coordinates) < len(self.fixed) or (self.factor and self.fixed)):
            raise ValueError(
                f"{self!r}: expected no vectors beside a sum over coordinates, and nothing beside one over columns"
            )
        if self.index:
            prove(self.index)

    @property
    def order(self) -> int:
        """How often is differentiated."""
        return len(self.fixed) + sum(self.orders)

    @property
    def coordinates(self) -> tuple[int, ...]:
        """What of the fixed is no vector."""
        return tuple(line for line in self.fixed if not isinstance(line, Vectors))

    @property
    def index(self) -> tuple[int, ...]:
        """Its multi-index: along each fixed coordinate or vector, then along i_1, .., i_m."""
        return *Counter(self.fixed).values(), *self.orders

    @property
    def varies(self) -> bool:
        """Whether it is taken along vectors that may depend on the points."""
        return any(isinstance(each, Vectors) and each.varies for each in (*self.fixed, self.factor))

    def chart(self, x: Tensor) -> tuple[Function, Tensor]:
        """The map y -> x and the y (b, m) of points such that it is summed over coordinates of y."""
        return (lambda y: y, x) if self.factor is None else self.factor.around(x)

    def after(self, first: "Derivative") -> "Derivative":
        """This of that.

        Raises:
            ValueError: if they are sums over different coordinates, or that is along vectors that are differentiated.
        """
        if self.order and first.varies:
            raise ValueError(f"{self!r} of {first!r}, whose vectors depend on the points: expected constant ones")
        if self.orders and first.orders and (self.over, self.factor) != (first.over, first.factor):
            kinds = [each.factor or f"coordinates {each.over}" for each in (self, first)]
            raise ValueError(f"a sum over {kinds[0]} of one over {kinds[1]}: expected the same ones")
        summed = self if self.orders else first
        orders = tuple(sorted(self.orders + first.orders, reverse=True))
        return Derivative(in_order(self.fixed + first.fixed), orders, summed.over, summed.factor)

    def __call__(self, expression: Any) -> "Expression":
        """This of an expression: linear; of products and powers only where there is no sum over coordinates.

        Raises:
            ValueError: if that has to be written out.
        """
        from sciml.calculus.expression import Product, Total, Unknown, as_expression

        expression = as_expression(expression)
        if isinstance(expression, Unknown):
            return Unknown(expression.component, self.after(expression.derivative))
        if isinstance(expression, Total):
            return Total(tuple(self(term) for term in expression.terms))
        if isinstance(expression, Product):
            numbers = [factor for factor in expression.factors if factor.constant]
            rest = [factor for factor in expression.factors if not factor.constant]
            if numbers and len(rest) == 1:
                return Product((*numbers, self(rest[0])))
        if self.orders:
            raise ValueError(f"{self!r} of {type(expression).__name__}: expected a linear combination; write it out")
        for line in self.fixed:
            expression = expression.differentiated(line)
        return expression


def in_order(lines: Iterable[int | Vectors]) -> tuple[int | Vectors, ...]:
    """Coordinates in ascending order, then vectors."""
    return tuple(sorted(lines, key=lambda line: (1, 0) if isinstance(line, Vectors) else (0, line)))


VALUE = Derivative()  # of the function itself


def Partial(*coordinates: int) -> Derivative:
    """The partial derivative along coordinates: ``Partial(0, 0, 1)`` is u_xxy.

    Args:
        coordinates: numbers of the columns of the points, each as often as is differentiated along it.

    Example:
        >>> import torch
        >>> from sciml.calculus import Partial, Unknown
        >>> u, dt, dx = Unknown(), Partial(0), Partial(1)
        >>> (dt(u) + u * dx(u))(lambda x: x[:, 0] * x[:, 1], torch.tensor([[2.0, 3.0]]))
        tensor([15.])
    """
    if not coordinates:
        raise ValueError("coordinates: expected at least one")
    return Derivative(tuple(sorted(coordinates)))


def PowerSum(*orders: int, start: int = 0, stop: int | None = None) -> Derivative:
    """The sum over all i_1, .., i_m of d_{i_1}^{p_1} .. d_{i_m}^{p_m} u: ``PowerSum(3)`` is sum_i u_iii.

    Args:
        orders: (p_1, .., p_m).
        start: the first coordinate that is summed over.
        stop: the one after the last; None takes all.
    """
    if not orders:
        raise ValueError("orders: expected at least one")
    return Derivative((), tuple(sorted(orders, reverse=True)), (start, stop))


def Laplacian(start: int = 0, stop: int | None = None) -> Derivative:
    """The sum of second derivatives over the coordinates from ``start`` up to ``stop``, exclusive.

    Example:
        >>> import torch
        >>> from sciml.calculus import Laplacian, Unknown
        >>> Laplacian()(Unknown())(lambda x: (x**2).sum(-1), torch.zeros(1, 5))
        tensor([10.])
    """
    return PowerSum(2, start=start, stop=stop)


def Biharmonic(start: int = 0, stop: int | None = None) -> Derivative:
    """The Laplacian of the Laplacian."""
    return PowerSum(2, 2, start=start, stop=stop)


def Directional(v: Tensor | Function, order: int = 1, start: int = 0) -> Derivative:
    """The derivative along a vector, v . grad u, of order two v . (Hess u) v, of order n D^n u[v, .., v].

    Vectors that depend on the points are not differentiated.

    Args:
        v: the vector (n,), or a function of points (b, d) that gives (b, n), or (1, n) for all of them.
        order: how often is differentiated along it.
        start: the first coordinate that v has an entry for; n = d - start.

    Raises:
        TypeError: if v is neither a tensor nor a function.
        ValueError: if it has a wrong shape, or the order is none.

    Example:
        >>> import torch
        >>> from sciml.calculus import Directional, Unknown
        >>> rotation = Directional(lambda x: torch.stack([-x[:, 1], x[:, 0]], 1))
        >>> rotation(Unknown())(lambda x: x[:, 0] * x[:, 1], torch.tensor([[3.0, 2.0]]))
        tensor([5.])
    """
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order: expected a whole number, 1 or more, got {order!r}")
    return Derivative((Vectors(v, start, (1,), "v"),) * order)


def Trace(sigma: Tensor | Function, start: int = 0) -> Derivative:
    """The second derivatives trace(sigma sigma^T Hess u), the sum of c . (Hess u) c over the columns c of sigma.

    Half of it belongs to the diffusion of dx = b dt + sigma dw: of the backward Kolmogorov equation, of Black and
    Scholes' and of Hamilton, Jacobi and Bellman's. `Sparse` estimates it from some of the columns, `Dense` along
    sigma z with random z (Shi et al. 2024, arXiv 2412.00088, section 4.3). A sigma that depends on the points is not
    differentiated.

    Args:
        sigma: a matrix (n, m), or of a diagonal one the diagonal (n,); or a function of points (b, d) that gives
            (b, n, m) or (b, n), with 1 for b where it is the same for all of them. Diagonal ones cost no more in many
            dimensions than a `Laplacian`.
        start: the first coordinate that sigma has a row for; n = d - start.

    Raises:
        TypeError: if sigma is neither a tensor nor a function.
        ValueError: if it has a wrong shape.

    Example:
        The Black-Scholes equation of points (t, prices) with volatility .2 and interest .05.

        >>> import torch
        >>> from sciml.calculus import Directional, Partial, Trace, Unknown
        >>> u, dt, prices = Unknown(), Partial(0), lambda x: x[:, 1:]
        >>> growth = Directional(lambda x: 0.05 * prices(x), start=1)
        >>> spread = Trace(lambda x: 0.2 * prices(x), start=1)
        >>> residual = dt(u) + growth(u) + 0.5 * spread(u) - 0.05 * u
        >>> residual(lambda x: x[:, 1:].sum(1), torch.rand(2, 11)).abs().max() < 1e-6  # a portfolio of all
        tensor(True)
    """
    return Derivative((), (2,), factor=Vectors(sigma, start, (1, 2), "sigma"))
