"""A Brownian motion that is given as a callable of times, as torchsde's objects are."""

from copy import copy
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciml.solvers.areas import Area
from sciml.solvers.brownian import FINEST, MOST
from sciml.solvers.control import Controller, Grid
from sciml.solvers.expect import expect
from sciml.solvers.path import DyadicPath, Levy
from sciml.solvers.term import real_dtype
from sciml.typing import Lanes, Number

if TYPE_CHECKING:
    from sciml.solvers.stepper import Stepper


class Given(DyadicPath):
    """A Brownian motion of torchsde's calling convention as a path: a solve sees its increments, and no others.

    Whoever gives the path answers for its law: increments are asked for at the ends of steps, in order, in a backward
    pass once more. On ``Grid(ts=...)`` they are those between these very times. Correlated noise is the business of
    the term's ``diffuse``. Under a controller of step sizes steps are nodes of a binary tree over the span, as those of
    `Brownian` are, so that its decisions do not bias the noise.

    Args:
        motion: ``motion(t0, t1)`` is the increment from t0 to t1 (0-d tensors); with ``return_U=True`` the pair of it
            and of W_u - W_t0 integrated over u, with ``return_A=True`` that of it and of the Levy area, for steppers
            that read them. Its attributes ``shape`` and ``dtype`` are read where it has them.
        cells: of adaptive steps, the number of leaves of the tree, which are the finest; a power of two.

    Example:
        >>> import torch, torchsde
        >>> from sciml import Solver, solve
        >>> from sciml.solvers import EulerMaruyama, Given, Grid
        >>> from sciml.solvers.term import Diffusive
        >>> class Growth(Diffusive):
        ...     noise_type = "diagonal"
        ...     def drift(self, t, y, args):
        ...         return 0.1 * y
        ...     def diffuse(self, t, y, dw, args):
        ...         return 0.5 * y * dw
        >>> motion = torchsde.BrownianInterval(0.0, 1.0, size=(7, 2))
        >>> solver = Solver(EulerMaruyama(), Grid(n=100))
        >>> solve(Growth(), torch.ones(7, 2), 0.0, 1.0, solver, path=Given(motion)).ys.shape
        torch.Size([7, 2])
    """

    def __init__(self, motion: Any, cells: int = FINEST):
        if not callable(motion):
            raise TypeError(f"motion: expected a callable motion(t0, t1), got {type(motion).__name__}")
        expect("cells", cells, Integral, "a whole number")
        if not 2 <= cells <= MOST or cells & (cells - 1):
            raise ValueError(f"cells: expected a power of two from 2 to 2^30, got {cells}")
        self.motion, self.reads, self.cells = motion, "", int(cells)
        self._start = 0.0
        self._nodes: dict[float, Tensor] = {}

    def within(
        self, stepper: "Stepper", controller: Controller, t0: Tensor, t1: Tensor, y0: Tensor, lanes: Lanes
    ) -> "Given":
        """The same path that knows the times of the solve.

        Raises:
            ValueError: it does not fit.
        """
        if lanes == "each":
            raise ValueError("path: a given motion has one time for all samples, expected lanes='joint', got 'each'")
        if bool(t1.detach() < t0.detach()):
            raise ValueError("path: Brownian motion runs forward in time, expected t0 <= t1")
        dtype = getattr(self.motion, "dtype", None)
        if dtype not in (None, real_dtype(y0)):
            raise ValueError(f"path: expected the state's dtype {real_dtype(y0)}, got {dtype}")
        found = copy(self)
        found._start, found.parts = t0.item(), 1 + stepper.halves
        found._nodes = {1.0: t1.detach().double().cpu()}
        found.reads = "U" if stepper.levy else "A" if stepper.area else ""
        known, enough = getattr(self.motion, "levy_area_approximation", None), ("davie", "foster")
        if found.reads and known not in (None, *enough, *(("space-time",) if found.reads == "U" else ())):
            raise ValueError(
                f"path: {type(stepper).__name__} reads a Levy area that the motion does not know ({known!r})"
            )
        ts = controller.ts if isinstance(controller, Grid) else None
        if any(isinstance(t, Tensor) and t.requires_grad for t in (t0, t1, ts)):
            raise ValueError("path: a given motion has no derivative in time, expected times without gradients")
        if ts is not None and not torch.equal(t0, t1):
            thetas = [0.0, *controller.thetas(t0, t1).tolist()]
            found._nodes = dict(zip(thetas, torch.as_tensor(ts, dtype=torch.float64).cpu().unbind(), strict=True))
        return found

    def increment(self, tensors: tuple[Tensor, ...], theta0: Number, theta1: Number, span: Tensor) -> Any:
        """The motion's increment over a step, with its Levy area where the stepper reads one."""
        start, end = (self._time(float(theta), span) for theta in (theta0, theta1))
        if self.reads == "U":
            w, u = self.motion(start, end, return_U=True)
            length = (end - start).item()
            return Levy(w, u / length - 0.5 * w if length else torch.zeros_like(w))
        if self.reads == "A":
            return Area(*self.motion(start, end, return_A=True))
        return self.motion(start, end)

    def _time(self, theta: float, span: Tensor) -> Tensor:
        """The time at a fraction of the span, exactly that of a grid of times."""
        node = self._nodes.get(theta)
        return torch.tensor(self._start + span.item() * theta, dtype=torch.float64) if node is None else node
