"""Linear differential operators with constant coefficients: partial derivatives, and sums of them over coordinates."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sciml.calculus.partitions import prove

if TYPE_CHECKING:
    from sciml.calculus.expression import Expression

Coordinates = tuple[int, int | None]


@dataclass(frozen=True)
class Derivative:
    """d^fixed sum over i_1, .., i_m of d_{i_1}^{p_1} .. d_{i_m}^{p_m}.

    Made by `Partial`, `PowerSum`, `Laplacian` and `Biharmonic`. Called with an expression it is applied to it.

    Args:
        fixed: coordinates, each as often as is differentiated along it, in ascending order.
        orders: (p_1, .., p_m) in descending order.
        over: first and last but one of the coordinates that each i runs over; None stands for their number d.
    """

    fixed: tuple[int, ...] = ()
    orders: tuple[int, ...] = ()
    over: Coordinates = (0, None)

    def __post_init__(self) -> None:
        """Refuse what is none, and prove that the coefficient it is read from holds nothing else."""
        for name, numbers, least in (("coordinates", self.fixed, 0), ("orders", self.orders, 1)):
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in numbers):
                raise ValueError(f"{name}: expected whole numbers, {least} or more, got {numbers}")
        start, stop = self.over
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"coordinates: expected first and last but one of some, got {self.over}")
        if self.index:
            prove(self.index)

    @property
    def order(self) -> int:
        """How often is differentiated."""
        return len(self.fixed) + sum(self.orders)

    @property
    def index(self) -> tuple[int, ...]:
        """Its multi-index: along each fixed coordinate, then along i_1, .., i_m."""
        return *Counter(self.fixed).values(), *self.orders

    def after(self, first: "Derivative") -> "Derivative":
        """This of that.

        Raises:
            ValueError: if they are sums over different coordinates.
        """
        if self.orders and first.orders and self.over != first.over:
            raise ValueError(f"a sum over coordinates {self.over} of one over {first.over}: expected the same ones")
        over = self.over if self.orders else first.over
        orders = tuple(sorted(self.orders + first.orders, reverse=True))
        return Derivative(tuple(sorted(self.fixed + first.fixed)), orders, over)

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
        for coordinate in self.fixed:
            expression = expression.differentiated(coordinate)
        return expression


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
