"""What implicit methods share: systems of unknowns, and Newton's iteration for their stage equations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciml.errors import Status
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.linear.early import over
from sciml.solvers.linear.krylov import GMRES
from sciml.solvers.linear.operator import DenseOperator, JacobianOperator, LinearOperator
from sciml.solvers.linear.solve import Dense, Inverse, LinearSolver, attach
from sciml.solvers.stepper import Field, Stepper
from sciml.typing import Number

LARGEST = 256  # unknowns of one linear system up to which its matrix is made and factored
KAPPA = 0.01  # what Newton's iteration may leave, in units of the tolerance
ROUNDINGS = 1e4  # the least relative tolerance, in units of the last place; KAPPA / 10 of it is still above round-off

RUNNING, NEWTON = Status.RUNNING.value, Status.NEWTON.value


@dataclass(frozen=True)
class ImplicitStepper(Stepper):
    """A method whose steps solve linear systems with the field's Jacobian.

    With lanes "each" every sample is a system of its own. A joint state is one system, unless ``rows`` says that the
    samples of its first axis do not couple: they still share their steps, but the Jacobian falls into blocks.

    Args:
        rows: whether the samples of the first axis of a joint state are systems of their own.
        linear: solves the linear systems; None takes LU factors up to 256 unknowns and `GMRES` above.
    """

    masses: ClassVar[bool] = True

    rows: bool = False
    linear: LinearSolver | None = None

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """The field at (t, y)."""
        self.check(field, y)
        return (field.checked(t, y),)

    def check(self, field: Field, y: Tensor) -> None:
        """Refuse a state that it cannot integrate.

        Raises:
            TypeError: a complex state.
            ValueError: a 0-d state as a batch, or a mass of another shape.
        """
        name = type(self).__name__
        if y.is_complex():
            raise TypeError(f"y0: {name} expects a real state, got {y.dtype}; torch.view_as_real makes one")
        if self.rows and y.ndim == 0:
            raise ValueError(f"y0: {name}(rows=True) expects a batch on the first axis, got a 0-d tensor")
        self.mass(field, y)

    def count(self, field: Field, y: Tensor) -> int:
        """The number m of systems in the state."""
        return len(y) if self.rows or field.lanes == "each" else 1

    def mass(self, field: Field, y: Tensor) -> LinearOperator | None:
        """The term's mass for every system."""
        mass = field.term.mass(field.args)
        if mass is None:
            return None
        m = self.count(field, y)
        n = y.numel() // m
        if isinstance(mass, LinearOperator):
            return self._fitting("a mass", mass, m, n)
        if mass.shape not in ((n, n), (m, n, n)):
            raise ValueError(f"term: expected a mass of shape {(n, n)} or {(m, n, n)}, got {tuple(mass.shape)}")
        return DenseOperator(mass.to(y), m)

    def solver(self, n: int) -> LinearSolver:
        """What solves linear systems of n unknowns."""
        return self.linear or (Dense() if n <= LARGEST else GMRES())

    def jacobian(self, field: Field, t: Tensor, y: Tensor) -> LinearOperator:
        """df/dy at one time, t as the field takes it."""
        m = self.count(field, y)
        known = field.term.jacobian(t, y, field.args)
        if known is not None:
            return self._fitting("a Jacobian", known, m, y.numel() // m)
        return JacobianOperator(lambda x: field(t, x), y, m)

    def _fitting(self, what: str, operator: LinearOperator, m: int, n: int) -> LinearOperator:
        """The operator, of which one sparse matrix may serve all systems."""
        if operator.shape[1:] != (n, n) or operator.shape[0] not in (1, m):
            raise ValueError(f"term: expected {what} of shape {(m, n, n)}, got {operator.shape}")
        return operator

    def status(self, field: Field, failed: Tensor) -> Tensor:
        """The verdict (l) on systems (m) that could not be solved."""
        return torch.where(failed if field.lanes == "each" else failed.any(), NEWTON, RUNNING)


def solve_stage(
    residual: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Inverse],
    z: Tensor,
    unit: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Newton's iteration for a root of G: z <- z - A^-1 G(z), each system with its own stopping.

    With the rate theta at which corrections shrink, theta / (1 - theta) times the last one estimates what is left
    (Hairer & Wanner, Solving ODEs II, IV.8).

    Args:
        residual: -G (m, n).
        inverse: what solves with A, dG/dz or near it, at z.
        z: first guess (m, n).
        unit: what corrections are measured in (m, n).
        iterations: their largest number.

    Returns:
        z, and which systems failed though they are finite (m).
    """
    done = stuck = regular = torch.zeros_like(z[:, 0], dtype=torch.bool)
    last = unit[:, 0]
    for k in range(iterations):
        correction, regular = inverse(z)(residual(z))
        size = (correction / unit).square().mean(-1).sqrt()  # (m)
        active = ~(done | stuck)
        near, wild = size <= (KAPPA / 10 if k else KAPPA), ~regular
        if k:
            rate = size / last
            near, wild = near | ((rate < 1) & (rate * size <= KAPPA * (1 - rate))), wild | ~(rate < 2)
        z, last = torch.where(active[:, None], z + correction, z), size
        done, stuck = done | (active & near & regular), stuck | (active & wild & ~near)
        if over(done | stuck):
            break
    return z, ~done & (~regular | z.isfinite().all(-1))


def settled(
    z: Tensor, residual: Callable[[Tensor], Tensor], matrix: Callable[[Tensor], LinearOperator], linear: LinearSolver
) -> Tensor:
    """A root that `solve_stage` found with its derivatives, which are those of G = 0.

    Transforms of torch.func differentiate two corrections from a constant z, which has its derivatives up to the third.
    """
    if not transformed():
        return attach(z, residual(z), matrix, linear)
    z = z.detach()
    for _ in range(2):
        z = z + linear.inverse(matrix(z))(residual(z))[0]
    return z
