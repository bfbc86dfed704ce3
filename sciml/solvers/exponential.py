"""Exponential Runge-Kutta methods for semilinear terms dy/dt = L y + N(t, y) with a constant diagonal L."""

from abc import abstractmethod
from dataclasses import dataclass
from math import factorial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from sciml.solvers.expect import broadcasts
from sciml.solvers.stepper import Field, Interval, Step, Stepper
from sciml.solvers.term import Semilinear, Term, expand
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment  # noqa: F401


def phi(z: Tensor, count: int) -> list[Tensor]:
    """The functions phi_0 = exp, .., phi_count of exponential integrators, elementwise.

    phi_k(z) = (phi_(k-1)(z) - 1/(k-1)!) / z. Where |z| < 1 that loses digits and the Taylor series sum_n z^n / (n + k)!
    is summed instead, to round-off in float64.

    Args:
        z: real or complex, any shape.
        count: the highest index.

    Reference:
        Cox & Matthews, Exponential time differencing for stiff systems, J. Comput. Phys. 176 (2002),
        doi:10.1006/jcph.2002.6995.
    """
    near = z.abs() < 1
    small, large = torch.where(near, z, 0), torch.where(near, 1, z)
    values = [z.exp()]
    far = large.exp()
    for k in range(1, count + 1):
        far = (far - 1 / factorial(k - 1)) / large
        series = torch.full_like(z, 1 / factorial(k + 19))
        for n in range(18, -1, -1):
            series = series * small + 1 / factorial(n + k)
        values.append(torch.where(near, series, far))
    return values


class _Exponential(Stepper):
    """An exponential method whose coefficients, functions of L and the one step size, are its carry."""

    needs: ClassVar[type[Term]] = Semilinear
    uniform: ClassVar[bool] = True
    starts: ClassVar[int] = 0

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The coefficients, computed in float64 and rounded once."""
        linear = cast(Semilinear, field.term).linear(field.args)
        if linear.is_complex() and not y.is_complex():
            raise ValueError("term: expected a real linear part, since the state is real, got a complex one")
        if not broadcasts(linear.shape, y.shape):
            raise ValueError(
                f"term: expected a linear part that broadcasts against {tuple(y.shape)}, "
                f"got shape {tuple(linear.shape)}"
            )
        wide = linear.to(torch.complex128 if linear.is_complex() else torch.float64)
        size = h.to(y.device) if isinstance(h, Tensor) else torch.tensor(h, dtype=torch.float64, device=y.device)
        coefficients = self.coefficients(expand(size, y) * wide, expand(size, y))
        dtype = y.dtype if linear.is_complex() else y.real.dtype if y.is_complex() else y.dtype
        return tuple(c.to(dtype) for c in coefficients)

    @abstractmethod
    def coefficients(self, z: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """What a step multiplies with, from z = h L and h."""


@dataclass(frozen=True)
class ETDRK2(_Exponential):
    """Exponential time differencing Runge-Kutta of order 2 (Cox & Matthews 2002, eq. 22), on uniform grids."""

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def coefficients(self, z: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """e^z, h phi_1, h phi_2."""
        e, p1, p2 = phi(z, 2)
        return e, h * p1, h * p2

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step of two evaluations."""
        e, p1, p2 = carry
        n0 = field.remainder(field.clock(interval.t, y), y)
        a = e * y + p1 * n0
        na = field.remainder(field.clock(interval.t + interval.h, y), a)
        return Step(a + p2 * (na - n0), None, (), carry)


@dataclass(frozen=True)
class ETDRK4(_Exponential):
    """Exponential time differencing Runge-Kutta of order 4 (Cox & Matthews 2002, eq. 26-29), on uniform grids.

    In stiff modes whose amplitudes do not decay the observed order is lower, as for every method of this family
    (Hochbruck & Ostermann 2005, doi:10.1137/040611434).

    The coefficients come from phi-functions by series and recurrence, which is what the contour integrals of Kassam &
    Trefethen (2005, doi:10.1137/S1064827502410633) compute more expensively.
    """

    order: ClassVar[int] = 4
    evaluations: ClassVar[int] = 4

    def coefficients(self, z: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """e^z, e^(z/2), h/2 phi_1(z/2) and the weights of the four stages, the middle two equal."""
        half, q = phi(z / 2, 1)
        e, p1, p2, p3 = phi(z, 3)
        return e, half, h / 2 * q, h * (p1 - 3 * p2 + 4 * p3), h * (2 * p2 - 4 * p3), h * (4 * p3 - p2)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step of four evaluations."""
        e, half, q, w0, w1, w2 = carry
        remainder = field.remainder
        t0, t1, t2 = (field.clock(interval.t + c * interval.h, y) for c in (0.0, 0.5, 1.0))
        n0 = remainder(t0, y)
        drifted = half * y
        a = torch.addcmul(drifted, q, n0)
        na = remainder(t1, a)
        nb = remainder(t1, torch.addcmul(drifted, q, na))
        nc = remainder(t2, half * a + q * (2 * nb - n0))
        y1 = torch.addcmul(torch.addcmul(e * y, w0, n0), w1, na + nb)
        return Step(torch.addcmul(y1, w2, nc), None, (), carry)
