"""What a problem is."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from sciml.solvers.solve import Solver, solve
from sciml.solvers.term import Term


class Curves(NamedTuple):
    """Curves over one axis, to be drawn into one picture."""

    x: Tensor  # (n)
    curves: dict[str, Tensor]  # (n) each
    xlabel: str = "t"
    log: bool = False


class Problem(ABC):
    """An initial value problem from t = 0 to ``t1``.

    Its fields are (b, c, *x), for a system of ordinary differential equations (b, c); what the solver integrates may be
    another representation of them, by `encode` and `decode`.

    Attributes:
        t1: final time.
        channels: names of the c components.
    """

    channels: ClassVar[tuple[str, ...]] = ("u",)

    if TYPE_CHECKING:

        @property
        def t1(self) -> float:
            """Final time; a dataclass field of the problems."""
            ...

    @abstractmethod
    def term(self) -> Term:
        """The right-hand side, on encoded states."""

    @abstractmethod
    def solver(self) -> Solver:
        """A solver that integrates it well."""

    @abstractmethod
    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """So many random initial conditions (count, c, *x), on the CPU."""

    def start(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The initial conditions of `initial`, whose shape is checked.

        Raises:
            ValueError: if it is not (count, c, *x) with a component for each of ``channels`` and the axes of space.
        """
        u0, points = self.initial(count, generator, dtype), self.mesh_points()
        space = tuple(len(x) for x in self.coordinates()) if points is None else (len(points),)
        wanted = (count, len(self.channels), *space)
        if tuple(u0.shape) != wanted:
            raise ValueError(
                f"problem: expected {wanted} from {type(self).__name__}.initial, as its channels {self.channels} and "
                f"coordinates say, got {tuple(u0.shape)}"
            )
        return u0

    @property
    def chunk(self) -> int:
        """How many samples to solve together where many are wanted; no result depends on it."""
        return 64

    def coordinates(self) -> tuple[Tensor, ...]:
        """The grid along each axis of space; none for a system of ordinary differential equations."""
        return ()

    def mesh_points(self) -> Tensor | None:
        """The points (n, d) of a mesh, whose fields are (b, c, n); None where there is a grid or no space."""
        return None

    def encode(self, u: Tensor) -> Tensor:
        """The solver's state of fields (.., c, *x)."""
        return u

    def decode(self, y: Tensor) -> Tensor:
        """The fields (.., c, *x) of the solver's state."""
        return y

    def times(self, count: int) -> Tensor:
        """At most ``count + 1`` times from 0 to ``t1``, about evenly spread, at which `evolve` can save; float64."""
        return torch.linspace(0, final_time(self), count + 1, dtype=torch.float64)

    def exact(self, u0: Tensor, ts: Tensor) -> Tensor | None:
        """The solution (b, t, c, *x) that started from u0 (b, c, *x), where it is known."""
        return None

    def curves(self, ts: Tensor, u: Tensor) -> dict[str, Curves]:
        """What to draw of a solution u (t, c, *x) beside the fields, by the picture's name."""
        return {}

    def residuals(self, ts: Tensor, u: Tensor) -> dict[str, float]:
        """By how much solutions u (b, t, c, *x) miss what they should keep, by name."""
        return {}

    def evolve(self, u0: Tensor, ts: Tensor, progress: bool = False) -> Tensor:
        """The numerical solution.

        Args:
            u0: fields at t = 0, (b, c, *x).
            ts: times (t) between 0 and ``t1``.
            progress: show a progress bar.

        Returns:
            Fields (b, t, c, *x).
        """
        t1 = final_time(self)
        saved = solve(self.term(), self.encode(u0), 0.0, t1, self.solver(), save_at=ts, progress=progress).ys
        return self.decode(saved.transpose(0, 1) if self.solver().lanes == "joint" else saved)


def final_time(problem: Problem) -> float:
    """The final time of a problem, which may be one of the user's own.

    Raises:
        ValueError: if there is none.
    """
    if not hasattr(problem, "t1"):
        name = type(problem).__name__
        raise ValueError(f"problem: expected {name} to have a final time, got none; give it a field or attribute `t1`")
    return problem.t1
