"""Implicit Runge-Kutta methods for stiff problems: a tableau and an order each.

Stages are increments z = Y - y0, and what a stage adds to later ones is taken from z, not from the field, which would
magnify what Newton's iteration left by the stiffness (Hairer & Wanner, Solving ODEs II, IV.8). The gradient of a stage
is that of the root, by the implicit function theorem with the Jacobian at the stage; it cannot be differentiated again.
"""

from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from sciml.solvers import implicit_tableau as tab
from sciml.solvers.control import PID, Controller
from sciml.solvers.dense import polynomial, polynomial_curve, rows, traced
from sciml.solvers.linear.operator import CoupledOperator, LinearOperator, ShiftedOperator
from sciml.solvers.newton import ROUNDINGS, ImplicitStepper, settled, solve_stage
from sciml.solvers.stepper import Field, Interval, Step, combine
from sciml.solvers.term import real_dtype
from sciml.typing import Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


@dataclass(frozen=True)
class NewtonStepper(ImplicitStepper):
    """An implicit method whose stage equations are solved by Newton's iteration.

    Its iteration stops at a hundredth of the tolerance. A step on which it does not converge is tried again with a
    smaller size; on a grid that is a failure (`Status.NEWTON`).

    Args:
        rows: whether the samples of the first axis of a joint state are systems of their own.
        linear: solves the linear systems; None takes LU factors up to 256 unknowns and `GMRES` above.
        iterations: largest number of iterations for a stage.
        rtol: relative tolerance of the stages; None takes the controller's, on a grid ten thousand roundings.
        atol: absolute tolerance, likewise.
    """

    iterations: int = 10
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None

    def within(self, controller: Controller) -> Self:
        """With the tolerances of the controller, where there are some and none were given."""
        if not isinstance(controller, PID):
            return self
        rtol, atol = self.rtol, self.atol
        return replace(
            self,
            rtol=controller.rtol if rtol is None else rtol,
            atol=controller.atol if atol is None else atol,
        )

    def tolerances(self, y: Tensor) -> tuple[Tensor, ...]:
        """The relative and the absolute one, like y."""
        least = ROUNDINGS * torch.finfo(y.dtype).eps
        rtol, atol = (torch.as_tensor(least if x is None else x) for x in (self.rtol, self.atol))
        return tuple(x.to(device=y.device, dtype=real_dtype(y)).clone() for x in (rtol.clamp_min(least), atol))


def _units(y: Tensor, rtol: Tensor, atol: Tensor, m: int) -> Tensor:
    """What errors are measured in (m, n)."""
    return (atol + rtol * y.detach().abs()).clamp_min(torch.finfo(y.dtype).tiny).reshape(m, -1)


@dataclass(frozen=True)
class DIRK(NewtonStepper):
    """A diagonally implicit Runge-Kutta method given by its tableau.

    Under an error controller the Jacobian at the start of a step serves all of it, since another step can be tried
    where that does not converge; on a grid every iteration makes its own.

    The field at the end of a step is the carry. The error estimate is filtered by the inverse of Newton's matrix, which
    keeps it from being magnified by the stiffness (Hosea & Shampine 1996, doi:10.1016/0168-9274(95)00115-8).

    ``evaluations``, from which `Solution.stats` counts, are those with one Newton iteration a stage; the products with
    the Jacobian are not counted.

    Args:
        rows: whether the samples of the first axis of a joint state are systems of their own.
        linear: solves the linear systems; None takes LU factors up to 256 unknowns and `GMRES` above.
        iterations: largest number of iterations for a stage.
        rtol: relative tolerance of the stages; None takes the controller's, on a grid ten thousand roundings.
        atol: absolute tolerance, likewise.
        fresh: whether every iteration evaluates the Jacobian; None does so on a grid.
    """

    fresh: bool | None = None

    tableau: ClassVar[tab.Diagonal]
    guesses: ClassVar[tuple[tab.Row, ...]]
    rungs: ClassVar[tuple[tuple[float, ...], ...]]
    bridge: ClassVar[tuple[tuple[float, ...], ...]]  # of unknowns without a slope
    dense: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read from the tableau what the solver wants to know."""
        super().__init_subclass__(**kwargs)
        cls.evaluations = len(cls.tableau.a) + 1
        cls.adaptive = cls.tableau.error is not None
        cls.masses = tab.damps(cls.tableau)
        cls.guesses = tab.predictors(cls.tableau)
        order = min(cls.order, 4 if cls.order > 4 else 3)
        cls.rungs, bridge = rows(tab.extension(cls.tableau, order)), tab.bridge(cls.tableau, order)
        cls.bridge = cls.rungs if bridge is None else rows(bridge)

    def within(self, controller: Controller) -> Self:
        """With the tolerances of the controller, and one Jacobian a step where that can refuse a step."""
        return replace(super().within(controller), fresh=bool(self.fresh) if controller.adaptive else self.fresh)

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes of the start, the stages and the end (s + 2), the tolerances, the dense output's coefficients."""
        nodes = torch.tensor([0.0, *self.tableau.c, 1.0], dtype=torch.float64, device=t0.device)
        return nodes, *self.tolerances(y), torch.tensor(self.rungs, dtype=torch.float64, device=y.device)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; without ``full`` the error and the field at its end are left out."""
        gamma, rows, _, b, weights = self.tableau
        nodes, rtol, atol, _ = field.constants
        start, *times, end = field.clocks(interval, nodes, y)
        m, h = self.count(field, y), interval.scale
        units, mass = _units(y, rtol, atol, m), self.mass(field, y)
        newton = ShiftedOperator(mass, self.jacobian(field, start, y), h * gamma)
        linear = self.solver(y.numel() // m)
        linear = linear.near(newton) if self.fresh is False else linear  # for the gradients of the stages too
        inverse = linear.inverse(newton)
        slopes = [(h * carry[0]).reshape(m, -1)]  # M times the slopes, times h
        if mass is not None:  # no slope on a constraint
            slopes[0] = torch.where(mass.filled(), slopes[0], 0)
        product = mass.matvec if mass else lambda x: x
        stages: list[Tensor] = []
        failures: list[Tensor] = []
        for row, guess, t in zip(rows, self.guesses, times, strict=True):
            known = combine(row, slopes, 1.0) if any(row) else None

            def residual(z: Tensor, t: Tensor = t, known: Tensor | None = known) -> Tensor:
                force = (h * gamma * field(t, y + z.reshape(y.shape))).reshape(m, -1) - product(z)
                return force if known is None else known + force

            def matrix(z: Tensor, t: Tensor = t) -> LinearOperator:
                return ShiftedOperator(mass, self.jacobian(field, t, y + z.reshape(y.shape)), h * gamma)

            with torch.no_grad():
                first = combine(guess, slopes, 1.0) if mass is None else torch.zeros_like(slopes[0])
                lasting = (lambda z: inverse) if self.fresh is False else lambda z: linear.inverse(matrix(z))
                z, lost = solve_stage(residual, lasting, first, units, self.iterations)
            failures.append(lost)
            if torch.is_grad_enabled():
                z = settled(z, residual, matrix, linear)
            stages.append(z)
            slopes.append((product(z) if known is None else product(z) - known) / gamma)
        status = self.status(field, reduce(or_, failures))
        y1 = y + (stages[-1] if b is None else combine(b, slopes, 1.0)).reshape(y.shape)
        if not full:
            return Step(y1, None, (), (), status)
        k = field(end, y1)
        error = None if weights is None else inverse(combine(weights, slopes, 1.0))[0].reshape(y.shape)
        return Step(y1, error, tuple(x.reshape(y.shape) for x in (slopes[0], *stages)), (k,), status)

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """A polynomial through the stages at fractions s (l, k)."""
        if segment.march.term.mass(segment.const.args) is not None:
            return traced(segment, s)
        return polynomial(segment, s, segment.stages, segment.const.stepper[-1])

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the same polynomial, and of another one for unknowns without a slope."""
        curve = polynomial_curve(segment.stages, self.rungs)
        mass = segment.march.term.mass(segment.const.args)
        if mass is None or self.bridge is self.rungs:
            return curve
        filled = mass.filled() if isinstance(mass, LinearOperator) else (mass != 0).any(-1)
        rows = segment.y0.numel() // filled.shape[-1]  # of several steps, one after the other
        filled = filled.reshape(-1, filled.shape[-1])
        filled = filled.repeat(rows // len(filled), 1).reshape(segment.y0.shape)
        bridge = polynomial_curve(segment.stages, self.bridge)
        return tuple(torch.where(filled, a, b) for a, b in zip(curve, bridge, strict=True))


class CollocationMethod(NewtonStepper):
    """A fully implicit method given by its tableau, on grids; all stages are solved for together.

    Its dense output is the collocation polynomial, of local order one more than its stages.
    """

    tableau: ClassVar[tab.Collocation]
    rungs: ClassVar[tuple[tuple[float, ...], ...]]
    dense: ClassVar[bool] = True
    starts: ClassVar[int] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read from the tableau what the solver wants to know."""
        super().__init_subclass__(**kwargs)
        cls.evaluations = len(cls.tableau.a)
        cls.masses = cls.tableau.last
        cls.rungs = rows(tab.interpolating(cls.tableau))

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes (s), the tolerances, the matrix, the dense output's coefficients."""
        nodes = torch.tensor(self.tableau.c, dtype=torch.float64, device=t0.device)
        return (
            nodes,
            *self.tolerances(y),
            y.new_tensor(self.tableau.a),
            torch.tensor(self.rungs, dtype=torch.float64, device=y.device),
        )

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """Nothing is carried."""
        self.check(field, y)
        return ()

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step."""
        nodes, rtol, atol, a, _ = field.constants
        times = field.clocks(interval, nodes, y)
        m, h, s = self.count(field, y), interval.scale, len(times)
        shape, mass = (m, s, y.numel() // m), self.mass(field, y)
        linear = self.solver(s * shape[-1])
        units = _units(y, rtol, atol, m).repeat(1, s)

        def residual(z: Tensor) -> Tensor:
            parts = z.reshape(shape)
            states = (y + part.reshape(y.shape) for part in parts.unbind(1))
            forces = [(h * field.fitting(field(t, x), y)).reshape(m, -1) for t, x in zip(times, states, strict=True)]
            if mass is not None:
                parts = torch.stack([mass.matvec(part) for part in parts.unbind(1)], 1)
            return (a @ torch.stack(forces, 1) - parts).reshape(z.shape)

        def matrix(z: Tensor) -> LinearOperator:
            states = (y + part.reshape(y.shape) for part in z.reshape(shape).unbind(1))
            return CoupledOperator(mass, [self.jacobian(field, t, x) for t, x in zip(times, states, strict=True)], a, h)

        with torch.no_grad():
            z, failed = solve_stage(
                residual, lambda z: linear.inverse(matrix(z)), torch.zeros_like(units), units, self.iterations
            )
        if torch.is_grad_enabled():
            z = settled(z, residual, matrix, linear)
        stages = tuple(part.reshape(y.shape) for part in z.reshape(shape).unbind(1))
        rise = (
            stages[-1]
            if self.tableau.last
            else combine([sum(column) for column in zip(*self.rungs, strict=True)], stages, 1.0)
        )
        return Step(y + rise, None, stages, (), self.status(field, failed))

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The collocation polynomial at fractions s (l, k)."""
        return polynomial(segment, s, segment.stages, segment.const.stepper[-1])

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the same polynomial."""
        return polynomial_curve(segment.stages, self.rungs)


@dataclass(frozen=True)
class ImplicitEuler(DIRK):
    """The implicit Euler method, order 1, L-stable; on grids."""

    order: ClassVar[int] = 1
    tableau: ClassVar[tab.Diagonal] = tab.IMPLICIT_EULER


@dataclass(frozen=True)
class ImplicitMidpoint(DIRK):
    """The implicit midpoint method, order 2, A-stable and symplectic; on grids."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Diagonal] = tab.IMPLICIT_MIDPOINT


@dataclass(frozen=True)
class Trapezoid(DIRK):
    """The trapezoidal rule, order 2, A-stable; on grids."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Diagonal] = tab.TRAPEZOID


@dataclass(frozen=True)
class SDIRK2(DIRK):
    """Alexander's method of two stages (1977), order 2, L-stable; on grids."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Diagonal] = tab.SDIRK2


@dataclass(frozen=True)
class TRBDF2(DIRK):
    """The trapezoidal rule and the second backward differentiation formula in one step, order 2, L-stable; on grids."""

    order: ClassVar[int] = 2
    tableau: ClassVar[tab.Diagonal] = tab.TRBDF2


@dataclass(frozen=True)
class Kvaerno3(DIRK):
    """Kvaerno's 3(2) pair, L-stable (BIT 44, 2004, doi:10.1023/B:BITN.0000046811.70614.38)."""

    order: ClassVar[int] = 3
    tableau: ClassVar[tab.Diagonal] = tab.KVAERNO3


@dataclass(frozen=True)
class Kvaerno5(DIRK):
    """Kvaerno's 5(4) pair, L-stable (BIT 44, 2004, doi:10.1023/B:BITN.0000046811.70614.38).

    One of its nodes lies at 1.23: the field is evaluated up to .23 h past the end of a step.
    """

    order: ClassVar[int] = 5
    tableau: ClassVar[tab.Diagonal] = tab.KVAERNO5


@dataclass(frozen=True)
class KenCarp4(DIRK):
    """The implicit part of Kennedy and Carpenter's 4(3) pair, L-stable (2003, doi:10.1016/S0168-9274(02)00138-1)."""

    order: ClassVar[int] = 4
    tableau: ClassVar[tab.Diagonal] = tab.KENCARP4


@dataclass(frozen=True)
class GaussLegendre4(CollocationMethod):
    """Gauss' method of two stages, order 4, A-stable and symplectic; on grids."""

    order: ClassVar[int] = 4
    tableau: ClassVar[tab.Collocation] = tab.GAUSS4


@dataclass(frozen=True)
class GaussLegendre6(CollocationMethod):
    """Gauss' method of three stages, order 6, A-stable and symplectic; on grids."""

    order: ClassVar[int] = 6
    tableau: ClassVar[tab.Collocation] = tab.GAUSS6


@dataclass(frozen=True)
class RadauIIA3(CollocationMethod):
    """Radau's method of two stages, order 3, L-stable; on grids."""

    order: ClassVar[int] = 3
    tableau: ClassVar[tab.Collocation] = tab.RADAU3


@dataclass(frozen=True)
class RadauIIA5(CollocationMethod):
    """Radau's method of three stages, order 5, L-stable; on grids."""

    order: ClassVar[int] = 5
    tableau: ClassVar[tab.Collocation] = tab.RADAU5
