"""What a solver's own estimates say of how hard a differential equation is, as folds that a loss may hold.

Every step comes with an estimate of its error, and the last two stages of some methods with one of the stiffness. They
are differentiable, and where they are small a solver takes few steps (Pal et al. 2021). The steps are those of the
frozen mesh: how the controller would choose others is not differentiated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sciml.solvers.explicit import RungeKutta
from sciml.solvers.fold import Fold, Reduce
from sciml.solvers.stepper import Stepper
from sciml.typing import Lanes

if TYPE_CHECKING:
    from sciml.solvers.control import Controller
    from sciml.solvers.march import Segment

LEAST = 1e-10  # scaled errors below are taken for it, as controllers do: a root has no derivative at 0
ROUND_OFF = 8  # units in the last place of the state within which two stages count as equal


class Heuristic(Fold):
    """A number (l) for each step that is small where steps are easy, and what it comes to over all of them."""

    reduce: ClassVar[Reduce] = "sum"


@dataclass(frozen=True)
class ErrorEstimate(Heuristic):
    """The sum of E_j |h_j| over the steps (l): E is the scaled error, rms(err / (atol + rtol max(|y0|, |y1|))).

    Reference:
        A. Pal, Y. Ma, V. Shah, C. Rackauckas, Opening the blackbox: accelerating neural differential equations by
        regularizing internal solver heuristics, ICML 2021, arXiv:2105.03918 (ERNODE). Its code takes the mean over the
        steps where this takes the sum.

    Example:
        >>> import torch
        >>> from sciml import solve
        >>> from sciml.solvers import ErrorEstimate
        >>> rate = torch.tensor(1.0, requires_grad=True)
        >>> solution = solve(lambda t, y: -rate * y, torch.ones(2), 0.0, 1.0, folds={"error": ErrorEstimate()})
        >>> solution.folds["error"].backward()  # as a part of a loss
        >>> bool(rate.grad > 0)
        True
    """

    errors: ClassVar[bool] = True

    def refusal(self, stepper: Stepper, controller: "Controller") -> str | None:
        """Grids have no tolerances."""
        return _without_tolerances(self, controller)

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """E |h| of the step."""
        return _times_size(segment.scaled_error(), segment)


@dataclass(frozen=True)
class StepCount(Heuristic):
    """The sum of E_j^(1/q) over the steps (l): how many steps would take to just meet the tolerance.

    q is the power of the step size by which the error estimate shrinks, for ordinary equations the method's order.

    A step of h whose error is E could have been h E^(-1/q) long. Unlike that of `ErrorEstimate`, the size of this does
    not depend on the problem, so that a weight found on one serves others.
    """

    errors: ClassVar[bool] = True

    def refusal(self, stepper: Stepper, controller: "Controller") -> str | None:
        """Grids have no tolerances."""
        return _without_tolerances(self, controller)

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """E^(1/q) of the step."""
        return segment.scaled_error().clamp_min(LEAST) ** (1 / segment.march.stepper.error_order)


@dataclass(frozen=True)
class Stiffness(Heuristic):
    """The sum of S_j |h_j| over the steps (l): S is |k' - k| / |g' - g| over the method's stability interval.

    g and g' are the states of the last two stages, k and k' the slopes there; both are at the end of the step, so that
    the quotient estimates an eigenvalue of the Jacobian. Methods with two such stages are Tsit5, Dopri5, Dopri8, RK4,
    Heun and Fehlberg2, and SOSRI2 for stochastic equations. The stability interval, along the negative real axis, is
    3.5068 for Tsit5; a step is as long as stability allows where S |h| is near 1. Where the states agree to round-off,
    S is 0.

    Reference:
        A. Pal, Y. Ma, V. Shah, C. Rackauckas, ICML 2021, arXiv:2105.03918 (SRNODE).

        E. Hairer, G. Wanner, Solving Ordinary Differential Equations II (1996), IV.2, eq. 2.26.
    """

    def refusal(self, stepper: Stepper, controller: "Controller") -> str | None:
        """Methods that cannot be probed."""
        if stepper.stability and (not isinstance(stepper, RungeKutta) or stepper.apart is not None):
            return None
        return (
            f"{type(self).__name__} compares the last two stages where both are at the end of a step, those of "
            f"{type(stepper).__name__} are not; expected Tsit5, Dopri5, Dopri8, RK4, Heun, Fehlberg2 or SOSRI2"
        )

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """S |h| of the step."""
        return _times_size(_stiffness(segment), segment)


@dataclass(frozen=True)
class MaxStiffness(Stiffness):
    """The largest S_j of all steps (l), as the code of the 2021 paper takes it; S as of `Stiffness`."""

    reduce: ClassVar[Reduce] = "max"

    def emit(self, segment: "Segment", saves: int | None, *inputs: Tensor) -> Tensor:
        """S of the step."""
        return _stiffness(segment)


def _without_tolerances(fold: Fold, controller: "Controller") -> str | None:
    if controller.adaptive:
        return None
    return (
        f"{type(fold).__name__} is in units of the tolerance, which {type(controller).__name__} has not; expected PID"
    )


def _times_size(value: Tensor, segment: "Segment") -> Tensor:
    """A value (l) times the step's size."""
    h = abs(segment.interval.h)
    return value * (h if isinstance(h, float) else h.to(value))


def _stiffness(segment: "Segment") -> Tensor:
    """S of the step (l)."""
    march, y = segment.march, segment.y1
    found = march.stepper.probe(segment)
    if found is None:
        raise TypeError(f"{type(march.stepper).__name__} has no two stages at the end of a step")
    gap, rise = (_length(x, march.lanes) for x in found)
    near = ~(gap > ROUND_OFF * torch.finfo(gap.dtype).eps * _length(y.detach(), march.lanes))
    return torch.where(near, 0, rise / torch.where(near, 1, gap)) / march.stepper.stability


def _length(x: Tensor, lanes: Lanes) -> Tensor:
    """The Euclidean norm (l), whose derivative is 0 where it vanishes."""
    dims = None if lanes == "joint" else tuple(range(1, x.ndim))
    return torch.linalg.vector_norm(x, dim=dims) if dims != () else x.abs()
