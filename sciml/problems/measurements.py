"""Measurements at scattered points, as a condition of an equation."""

import torch
from torch import Generator, Tensor

from sciml.calculus import Expression
from sciml.problems.equation import Condition
from sciml.solvers.expect import expect


class Measurements:
    """Values at scattered points: a coefficient that knows them there alone, and draws of the points.

    Args:
        points: (n, d).
        values: (n); of points that single precision does not tell apart it is their mean.
    """

    def __init__(self, points: Tensor, values: Tensor):
        different, place = points.float().unique(dim=0, return_inverse=True)  # told apart in single precision
        self.place = place  # of every measurement (n) among the points
        counts, none = torch.bincount(place), torch.zeros_like(different, dtype=points.dtype)
        self.points = none.index_add(0, place, points) / counts[:, None]
        self.values = none[:, 0].to(values.dtype).index_add(0, place, values) / counts

    def __call__(self, x: Tensor) -> Tensor:
        """The values (b) at points (b, d) that were drawn."""
        away = torch.cdist(x, self.points.to(x), compute_mode="donot_use_mm_for_euclid_dist")
        return self.values.to(x)[away.argmin(1)]

    def sample(self, count: int, generator: Generator) -> Tensor:
        """So many points (count, d), each measurement as often as others or once more."""
        order = torch.randperm(len(self.place), generator=generator, device=generator.device)
        drawn = self.place.to(order)[order[torch.arange(count, device=order.device) % len(order)]]
        return self.points.to(order.device, torch.get_default_dtype())[drawn]


def measured(expression: Expression, points: Tensor, values: Tensor) -> Condition:
    """The condition that an expression has the values that were measured at scattered points.

    Args:
        expression: what was measured, such as u, u[1] or dx(u).
        points: (n, d), inside of the domain.
        values: (n).

    Raises:
        TypeError: of what is no expression or no tensor.
        ValueError: if there is none, shapes do not fit, or some are not finite.

    Example:
        >>> import torch
        >>> from sciml.calculus import Unknown
        >>> from sciml.problems import measured
        >>> points = torch.tensor([[0.1], [0.5]])
        >>> condition = measured(Unknown(), points, torch.tensor([1.0, 0.6]))
        >>> condition.sample(2, torch.Generator()).sort(0).values
        tensor([[0.1000],
                [0.5000]])
    """
    expect("expression", expression, Expression, "an expression, as Unknown()")
    for name, given in (("points", points), ("values", values)):
        expect(name, given, Tensor, "a tensor")
    if points.ndim != 2 or not len(points):
        raise ValueError(f"points: expected (n, d) with at least one, got {tuple(points.shape)}")
    if values.shape != points.shape[:1]:
        raise ValueError(f"values: expected {tuple(points.shape[:1])}, one for each point, got {tuple(values.shape)}")
    for name, given in (("points", points), ("values", values)):
        if not bool(given.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinite ones")
    table = Measurements(points, values)
    return Condition(expression - table, table.sample)
