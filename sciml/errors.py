"""What can go wrong: in a solve, per lane, and in a file of data."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class Status(IntEnum):
    """How a lane of a solve stands. Everything from ``MAX_STEPS`` on is a failure."""

    CROSSING = -1  # halted before a step with an event; no lane ends so
    RUNNING = 0
    DONE = 1
    EVENT = 2
    MAX_STEPS = 3
    DT_UNDERFLOW = 4
    NON_FINITE = 5
    NEWTON = 6
    PILE_UP = 7
    EVENT_NAN = 8

    @property
    def failed(self) -> bool:
        """Whether the lane stopped before its end without having been asked to."""
        return self >= Status.MAX_STEPS


CAUSES = {
    Status.MAX_STEPS: "max_steps={max_steps} trials were used up; raise max_steps or loosen rtol and atol",
    Status.DT_UNDERFLOW: "the step size fell below {least} of the span without meeting rtol and atol; the solution may "
    "have a singularity there, or the tolerances lie below the round-off of the state's dtype",
    Status.NON_FINITE: "the vector field or the state became NaN or infinite",
    Status.NEWTON: "the stage equations of an implicit step could not be solved",
    Status.PILE_UP: "events pile up: two of them lie within 2^-48 of the span or the round-off of time, as the bounces "
    "of a ball that comes to rest; end the solve before, by a terminating event",
    Status.EVENT_NAN: "an event function became NaN in the step that starts there",
}


class DataError(ValueError):
    """A file or folder of data is not as it should be; the message names it, and the place in it where there is one."""


class SolveError(RuntimeError):
    """A solve stopped before its end.

    Attributes:
        status: the status of each failed lane.
        samples: their indices in the batch; empty where the whole state is one system.
        times: the time that each of them had reached.
    """

    def __init__(self, message: str, status: Sequence[Status], samples: Sequence[int], times: Sequence[float]):
        super().__init__(message)
        self.status, self.samples, self.times = tuple(status), tuple(samples), tuple(times)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all arguments, so that it crosses process borders."""
        return type(self), (str(self), self.status, self.samples, self.times)


class LinearSolveError(RuntimeError):
    """An iterative solve of linear systems did not solve them all.

    Attributes:
        status: the status of each right-hand side that was not solved.
        rows: their indices.
    """

    def __init__(self, message: str, status: Sequence[IntEnum], rows: Sequence[int]):
        super().__init__(message)
        self.status, self.rows = tuple(status), tuple(rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all arguments, so that it crosses process borders."""
        return type(self), (str(self), self.status, self.rows)
