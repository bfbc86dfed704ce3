"""Controllers: which step to try next and whether to accept it.

Sizes are fractions dtheta of the span t1 - t0, in float64, so that no time error accumulates whatever the dtype of the
state is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial, isfinite, prod, sqrt
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.arithmetic import Arithmetic
from sciml.solvers.error_norm import error_norm, norm, quotients
from sciml.solvers.expect import broadcasts, expect, expect_number, expect_times
from sciml.solvers.stepper import Field, Stepper, displace
from sciml.solvers.term import expand, real_dtype
from sciml.solvers.transforms import holds
from sciml.typing import Lanes, Number

Norm = Callable[[Tensor], Tensor]


SHRINK = 0.95  # what a rejected step is at most multiplied with: were it repeated, it would be rejected for ever
TINY = 1e-300  # keeps a division by zero from raising, and changes nothing else
FLOOR = 2.0**-48  # the smallest dtheta: 32 units in the last place of theta near 1


def _holds(condition: bool | Tensor) -> bool:
    """Whether a comparison holds, everywhere where it is one of tensors."""
    return bool(condition.all()) if isinstance(condition, Tensor) else condition


class Decision(NamedTuple):
    """What a controller says of a trial."""

    accept: Number  # bool
    dtheta: Number  # the next size, before any stop clips it
    memory: tuple[Number, ...]  # the controller's, (l) each; kept where the trial is accepted


class Controller(ABC):
    """Proposes step sizes and judges trials.

    Attributes:
        adaptive: whether it reads error estimates.
    """

    adaptive: ClassVar[bool]

    @abstractmethod
    def start(
        self, field: Field, t0: Number, span: Number, y: Tensor, k: Tensor | None, order: int, xp: Arithmetic
    ) -> Number:
        """The first dtheta (l), from the field k at (t0, y) where a stepper knows it."""

    def fits(self, y0: Tensor) -> None:
        """Refuse a state that it cannot control.

        Raises:
            ValueError: an argument of the controller does not fit the state.
        """
        return None

    def limit(self, span: Tensor) -> Tensor | None:
        """The largest dtheta (l), None where there is no limit."""
        return None

    def thetas(self, t0: Tensor, t1: Tensor) -> Tensor:
        """Fractions of the span (k) or (l, k) that steps end at: increasing, the last of them 1."""
        return torch.ones(1, dtype=t0.dtype, device=t0.device)

    def edges(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, ...]:
        """None, or one tensor: fractions of the span (k) or (l, k) at which the field is discontinuous."""
        return ()

    def memory(self, like: Number) -> tuple[Number, ...]:
        """What it remembers at the start, each shaped like ``like`` (l)."""
        return ()

    @abstractmethod
    def decide(
        self, error: Number, dtheta: Number, used: Number, memory: tuple[Number, ...], order: float, xp: Arithmetic
    ) -> Decision:
        """The verdict on a trial.

        Args:
            error: scaled error (l), float64; NaN or infinite where the trial failed.
            dtheta: the size that the controller asked for (l).
            used: the size that was tried, smaller where a stop clipped it (l).
            memory: the controller's memory.
            order: the power of the step size by which the stepper's error estimate shrinks.
            xp: the arithmetic of these numbers.
        """

    def scaled(self, error: Tensor, y0: Tensor, y1: Tensor, lanes: Lanes) -> Tensor:
        """The norm (l) of an error of the state relative to what is tolerated; not finite where y1 is not."""
        raise TypeError(f"{type(self).__name__} has no tolerances")


def _fractions(ts: Tensor | Sequence[float], t0: Tensor, t1: Tensor) -> Tensor:
    """Times (k) or (l, k) as fractions of the span, (l, k) or (k) for joint lanes; 2 where there is none."""
    times = expect_times("step_ts, jump_ts", ts)
    start, span = t0[..., None], (t1 - t0)[..., None]
    if times.ndim > 1 and times.shape[:-1] != t0.shape:
        kinds, lanes = (f"(k) or ({len(t0)}, k)", "") if t0.ndim else ("(k)", " for joint lanes")
        raise ValueError(f"step_ts, jump_ts: expected times of shape {kinds}, got {tuple(times.shape)}{lanes}")
    safe, times = torch.where(span == 0, 1, span), times.to(start)
    theta = ((times - start) / safe).detach()
    inside = (theta >= 0) & (theta <= 1) & (span != 0)  # others would overflow in a short span
    return torch.where(inside, (torch.where(inside, times, start) - start) / safe, 2.0)


@dataclass(frozen=True)
class PID(Controller):
    """Keeps the scaled error near 1: factor = safety E_n^(-b1) E_(n-1)^(-b2) E_(n-2)^(-b3) (Soderlind 2003).

    b1 = (p + i + d)/q, b2 = -(p + 2d)/q, b3 = d/q with q the stepper's order; the scaled error is the norm of
    err / (atol + rtol max(|y0|, |y1|)). The default is the I controller; p=.4, i=.3 smooths the steps of mildly stiff
    problems.

    Args:
        rtol: relative tolerance; a number or a tensor that broadcasts against the state.
        atol: absolute tolerance; likewise.
        dt0: first step size in units of time; None chooses it, much as Hairer, Norsett and Wanner
            do (Solving ODEs I, II.4), but independent of the unit of time.
        dtmax: largest step size in units of time.
        pcoeff: proportional coefficient.
        icoeff: integral coefficient.
        dcoeff: derivative coefficient.
        safety: factor on the predicted size.
        factormin: smallest change of size.
        factormax: largest change of size.
        step_ts: times that steps must end at: (k), or (b, k) with lanes "each"; those outside the span do not matter.
        jump_ts: times at which the field is discontinuous, likewise. Steps end at them, the last evaluation before
            and the first after see times a few units in the last place before and after. Discrete adjoints give their
            gradients.
        norm: maps scaled errors (shaped as the state) to (l); None takes the root mean square.

    Reference:
        G. Soderlind, Digital filters in adaptive time-stepping, ACM TOMS 29 (2003), doi:10.1145/641876.641877.
    """

    adaptive: ClassVar[bool] = True

    rtol: float | Tensor = 1e-4
    atol: float | Tensor = 1e-6
    dt0: float | None = None
    dtmax: float | None = None
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    safety: float = 0.9
    factormin: float = 0.2
    factormax: float = 10.0
    norm: Norm | None = None
    step_ts: Tensor | Sequence[float] | None = None
    jump_ts: Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot control a step."""
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            expect_number(name, value)
            if not _holds(value >= 0):
                raise ValueError(f"{name}: expected a non-negative tolerance, got {value}")
        if not _holds(self.rtol + self.atol > 0):
            raise ValueError("rtol, atol: expected at least one of them to be positive, got 0 and 0")
        for name in ("dt0", "dtmax"):
            value = getattr(self, name)
            if value is not None:
                expect_number(name, value)
                if not value > 0:
                    raise ValueError(
                        f"{name}: expected a positive step size (its sign is that of t1 - t0), got {value}"
                    )
        for name in ("step_ts", "jump_ts"):
            ts = getattr(self, name)
            ts = None if ts is None else expect_times(name, ts)
            if ts is not None and (ts.ndim not in (1, 2) or not bool(ts.isfinite().all())):
                raise ValueError(f"{name}: expected finite times of shape (k) or (b, k), got {getattr(self, name)}")
        for name in ("pcoeff", "icoeff", "dcoeff", "safety", "factormin", "factormax"):
            expect_number(name, getattr(self, name))
            if not (isfinite(getattr(self, name)) or name == "factormax"):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}")
        if not 0 < self.safety <= 1:
            raise ValueError(f"safety: expected a positive factor of at most 1, got {self.safety}")
        if not 0 < self.factormin < 1 < self.factormax:
            raise ValueError(
                "factormin, factormax: expected 0 < factormin < 1 < factormax, "
                f"got {self.factormin} and {self.factormax}"
            )
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"norm: expected a callable, got {type(self.norm).__name__}")

    def fits(self, y0: Tensor) -> None:
        """Refuse tolerances that do not broadcast against the state."""
        for name, tolerance in (("rtol", self.rtol), ("atol", self.atol)):
            shape = tuple(getattr(tolerance, "shape", ()))
            if not broadcasts(shape, y0.shape):
                raise ValueError(f"{name}: expected a shape that broadcasts against {tuple(y0.shape)}, got {shape}")

    def thetas(self, t0: Tensor, t1: Tensor) -> Tensor:
        """``step_ts`` and ``jump_ts`` as fractions of the span, increasing, and 1: (k) or (l, k)."""
        given = [_fractions(ts, t0, t1).detach() for ts in (self.step_ts, self.jump_ts) if ts is not None]
        if not given:
            return super().thetas(t0, t1)
        inside, one = torch.cat(given, -1), torch.ones_like(t0.detach())[..., None]
        return torch.cat([torch.where((inside > 0) & (inside < 1), inside, 1.0), one], -1).sort(-1).values

    def edges(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, ...]:
        """``jump_ts`` as fractions of the span, (k) or (l, k); they stay where they are when its ends move."""
        return () if self.jump_ts is None else (_fractions(self.jump_ts, t0, t1),)

    def _tolerances(self, y: Tensor, lanes: Lanes) -> tuple[float | Tensor, float | Tensor]:
        """Both, for norms of a state's errors: those of Euclid are to be root mean squares."""
        root = 1.0 if self.norm else sqrt(prod(y.shape[lanes == "each" :]))
        least = sqrt(torch.finfo(y.dtype).tiny)  # where state and atol are 0, an error of 0 is 0, with a gradient
        atol = self.atol.clamp_min(least) if isinstance(self.atol, Tensor) else max(self.atol, least)
        return self.rtol * root, atol * root

    def _norm(self, quotients: Tensor, lanes: Lanes) -> Tensor:
        """That of Euclid, with derivative 0 where it vanishes, or the user's; not finite where a quotient is not."""
        euclid = norm(quotients, lanes == "each")
        if self.norm is None:
            return euclid
        value = self.norm(quotients)
        if not isinstance(value, Tensor) or value.shape != euclid.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"norm: expected a tensor of shape {tuple(euclid.shape)}, got {got}")
        return value + 0 * euclid

    def scaled(self, error: Tensor, y0: Tensor, y1: Tensor, lanes: Lanes) -> Tensor:
        """The norm of err / (atol + rtol max(|y0|, |y1|)), (l)."""
        tolerances = self._tolerances(y0, lanes)
        if self.norm is None:
            return error_norm(error, y0, y1, *tolerances, lanes == "each")
        return self._norm(quotients(error, y0, y1, *tolerances), lanes)

    def start(
        self, field: Field, t0: Number, span: Number, y: Tensor, k: Tensor | None, order: int, xp: Arithmetic
    ) -> Number:
        """``dt0``, or a size found by one evaluation of the field, or a sixteenth of the span where that is noisy."""
        length = abs(span)
        if self.dt0 is not None:
            dt = self.dt0 + 0 * length
        else:
            dt = length / 16 if k is None else self._first(field, t0, span, y, k, order, xp)
        dtheta = xp.where(dt < length, dt / (length + TINY), 1.0)
        return xp.where(dtheta > 2 * FLOOR, dtheta, 2 * FLOOR)

    def limit(self, span: Tensor) -> Tensor | None:
        """``dtmax`` as a fraction of the span."""
        return None if self.dtmax is None else self.dtmax / span.abs()

    def _first(
        self, field: Field, t0: Number, span: Number, y: Tensor, k: Tensor, order: int, xp: Arithmetic
    ) -> Number:
        """The h for which a Taylor term of the method's order, h^q |y^(q)| / q!, is a quarter of what is tolerated.

        A probe gives the rate r at which the slope changes, and |y^(q)| is taken for |y'| r^(q - 1). The rate is at
        least a hundredth of that of the state: at some points the slope happens to stand still.
        """
        rtol, atol = self._tolerances(y, field.lanes)
        unit, length = y.abs() * rtol + atol, abs(span)
        size = lambda x: xp.number(self._norm(x / unit, field.lanes), span)  # noqa: E731
        state, slope = size(y), size(k)
        known = (state > 1e-5) & (slope > 1e-5)
        probe = xp.where(known, 0.01 * state / (slope + TINY), 1e-6)
        h = xp.where(probe < length, probe, length)
        forward = step = h * xp.where(span < 0, -1.0, 1.0)
        if not isinstance(forward, float):
            step = expand(torch.as_tensor(forward).to(y.device, real_dtype(y)), y)
        change = size(field(field.clock(t0 + forward, y), displace(y, (1.0,), (k,), step)) - k) / (h + TINY)
        rate, least = change / (slope + TINY), xp.where(known, 0.01 * slope / (state + TINY), TINY)
        rate = xp.where(rate > least, rate, least)
        first = (factorial(order) / 4 * rate / (slope + TINY)) ** (1 / order) / rate
        first = xp.where(slope > 1e-5, first, 100 * probe)
        return xp.where(xp.isfinite(first), first, 1e-3 * length)

    def memory(self, like: Number) -> tuple[Number, ...]:
        """The last two accepted errors; none for the I controller."""
        if self.pcoeff == 0 and self.dcoeff == 0:
            return ()
        return (like * 0 + 1.0, like * 0 + 1.0)

    def decide(
        self, error: Number, dtheta: Number, used: Number, memory: tuple[Number, ...], order: float, xp: Arithmetic
    ) -> Decision:
        """Accept where the scaled error is at most 1.

        A trial that is not finite is repeated with a tenth of the size, one whose error is infinite, which stands for
        stage equations that were not solved, with half of it (Hairer & Wanner, Solving ODEs II, IV.8).
        """
        bounded = xp.where(error > 1e-10, error, 1e-10)
        factor = self.safety * bounded ** (-(self.pcoeff + self.icoeff + self.dcoeff) / order)
        if memory:
            last, before = memory
            factor = factor * last ** ((self.pcoeff + 2 * self.dcoeff) / order) * before ** (-self.dcoeff / order)
            memory = (bounded, last)
        accept = error <= 1  # false for NaN
        factor = xp.where(factor < self.factormin, self.factormin, factor)
        factor = xp.where(factor > self.factormax, self.factormax, factor)
        less = min(self.safety, SHRINK)
        factor = xp.where(accept | (factor < less), factor, less)
        size = used * xp.where(xp.isfinite(error), factor, xp.where(error == math.inf, 0.5, 0.1))
        clipped = used < 0.999 * dtheta  # by more than the round-off of theta + dtheta
        return Decision(accept, xp.where(accept & clipped & (size < dtheta), dtheta, size), memory)


@dataclass(frozen=True)
class Grid(Controller):
    """Steps of given sizes, every one of them accepted: exactly one of ``n``, ``dt`` and ``ts``.

    Args:
        n: number of equal steps.
        dt: size of equal steps in units of time; must divide t1 - t0.
        ts: the times themselves (n + 1), monotone from t0 to t1; they may carry gradients.
        jump_ts: times at which the field is discontinuous, (k), or (b, k) with lanes "each": of those that are passed,
            ends of steps. The last evaluation before and the first after see times a few units in the last place before
            and after.
    """

    adaptive: ClassVar[bool] = False

    n: int | None = None
    dt: float | None = None
    ts: Tensor | Sequence[float] | None = None
    jump_ts: Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Refuse a grid that is not one."""
        given = [name for name in ("n", "dt", "ts") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"Grid: expected exactly one of n, dt and ts, got {' and '.join(given) or 'none'}")
        if self.n is not None:
            expect("n", self.n, Integral, "a whole number")
            if self.n < 1:
                raise ValueError(f"n: expected at least one step, got {self.n}")
        if self.dt is not None:
            expect_number("dt", self.dt)
            if not 0 < self.dt < math.inf:
                raise ValueError(f"dt: expected a positive step size (its sign is that of t1 - t0), got {self.dt}")
        for name in ("ts", "jump_ts"):
            if getattr(self, name) is not None:
                expect_times(name, getattr(self, name))

    def thetas(self, t0: Tensor, t1: Tensor) -> Tensor:
        """The ends of the steps as fractions of the span, (n) or (l, n), the last of them 1."""
        if self.ts is not None:
            return self._given(expect_times("ts", self.ts).to(t0), t0, t1)
        n = self.count(t0, t1)
        return torch.arange(1, n + 1, dtype=torch.float64, device=t0.device) / n

    def edges(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, ...]:
        """The ends of steps that ``jump_ts`` are, as fractions of the span, (k) or (l, k).

        Raises:
            ValueError: one lies within a step.
        """
        if self.jump_ts is None:
            return ()
        theta, grid = _fractions(self.jump_ts, t0, t1).detach(), self.thetas(t0, t1)
        near, left, right = nearest(torch.cat([torch.zeros_like(grid[..., :1]), grid], -1), theta)
        off = (near - theta).abs() > 1e-6 * (right - left)
        if not torch.compiler.is_exporting() and bool(off[theta <= 1].any()):
            raise ValueError("jump_ts: expected times at which steps of the grid end, got one within a step")
        return (torch.where(theta <= 1, near, 2.0),)

    def count(self, t0: Tensor, t1: Tensor) -> int:
        """The number of steps."""
        if self.ts is not None:
            return max(1, expect_times("ts", self.ts).numel() - 1)
        return self.n or self._count((t1 - t0).abs(), self.dt or 0.0)

    def _count(self, length: Tensor, dt: float) -> int:
        counts = (length[length > 0] / dt).detach()  # a lane of no time fits any grid
        n = int(counts[0].round()) if bool(counts.isfinite().all()) else 0
        if n < 1 or not torch.allclose(counts, torch.full_like(counts, float(n)), rtol=1e-6, atol=0.0):
            raise ValueError(
                f"dt: expected a step that divides t1 - t0, got dt={dt} for a span of "
                f"{length[length > 0][0].item():g} ({counts[0].item():g} steps); Grid(n=...) divides any span"
            )
        return n

    def _given(self, ts: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        listed = ts.ndim == 1 and len(ts) > 1
        if not listed or not holds(ts.detach().diff().sign() == (t1 - t0).sign().reshape(-1, 1)):
            raise ValueError("ts: expected a vector of at least two strictly monotone times from t0 to t1")
        ends = torch.stack([ts[0] - t0, ts[-1] - t1]).detach().abs()
        if not holds(ends <= 1e-6 * (t1 - t0).detach().abs()):
            raise ValueError(
                f"ts: expected times from t0 to t1, got {ts[0].item():g} to {ts[-1].item():g}; "
                "the first must be t0 and the last t1"
            )
        inner = ((ts[1:-1] - t0[..., None]) / (t1 - t0)[..., None]).reshape(*t0.shape, -1)
        return torch.cat(
            [inner, torch.ones_like(inner[..., :1]) if inner.shape[-1] else torch.ones_like(t0)[..., None]], -1
        )

    def start(
        self, field: Field, t0: Number, span: Number, y: Tensor, k: Tensor | None, order: int, xp: Arithmetic
    ) -> Number:
        """Infinite: the stops do the rest."""
        return abs(span) + math.inf

    def decide(
        self, error: Number, dtheta: Number, used: Number, memory: tuple[Number, ...], order: float, xp: Arithmetic
    ) -> Decision:
        """Accept whatever is finite; what is not fails at once, since a grid cannot take a smaller step."""
        finite = xp.isfinite(error)
        return Decision(finite, xp.where(finite, dtheta, 0.0), memory)


def nearest(ends: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the ends (.., n + 1) of steps that nearest to fractions (.., k), and the ends of the steps that have these."""
    ends = ends.expand(*theta.shape[:-1], -1).contiguous()
    after = torch.searchsorted(ends.detach(), theta.contiguous()).clamp(1, ends.shape[-1] - 1)
    left, right = ends.gather(-1, after - 1), ends.gather(-1, after)
    return torch.where(theta - left < right - theta, left, right), left, right


def check(stepper: Stepper, controller: Controller) -> None:
    """Refuse a pair that cannot work.

    Raises:
        ValueError: an adaptive controller over a stepper without an error estimate or with steps of one size only.
    """
    name = type(stepper).__name__
    if controller.adaptive and stepper.uniform:
        raise ValueError(f"controller: {name} takes steps of one size only, expected Grid(n=...) or Grid(dt=...)")
    if stepper.halves and not controller.adaptive:
        raise ValueError(f"controller: {name} judges its steps, expected PID; on a grid take the stepper in it")
    if controller.adaptive and not stepper.adaptive:
        raise ValueError(
            f"controller: {name} has no error estimate, expected Grid(...), got {type(controller).__name__}"
        )
    if stepper.uniform and isinstance(controller, Grid) and controller.ts is not None:
        raise ValueError(
            f"controller: {name} takes steps of one size only, expected Grid(n=...) or Grid(dt=...), got ts"
        )
