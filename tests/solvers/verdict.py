"""Whether a random solve came out right: the exact solution, consistent folds and gradients, no silent NaN."""

import math
from typing import Any

import torch
from torch import Tensor

from sciml import Status, solve
from sciml.solvers import PID
from tests.solvers.calls import Call, fitted, leaves
from tests.solvers.registry import STEPPERS

LOOSE = 1.0  # tolerances that a step may err by: what is estimated is the error of the lower order
KINKED = 100.0  # likewise over a discontinuity that nobody declared, on which estimates are blind
ROUNDINGS = 100.0  # a step, of sums of some ten terms
FAILED = Status.MAX_STEPS.value


def up(x: Tensor) -> Tensor:
    """In double precision, with its gradient."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def lane_times(call: Call, t: Any) -> Tensor:
    """A time as float64 (l)."""
    t = t.to(torch.float64) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    return t if call.joint else t.expand(leaves(call.y0)[0].shape[:1])


def exact(call: Call, t: Tensor, leaf: Tensor) -> Tensor:
    """The solution of a component of the state at times (l)."""
    t0 = fitted(lane_times(call, call.t0), leaf)
    y = call.problem.exact(fitted(t, leaf), t0, up(leaf), up(call.w))
    return y.expand(leaf.shape)


def broken(call: Call, t: Tensor) -> Tensor:
    """Whether (l) there is no solution up to times (l)."""
    lanes = torch.zeros_like(t, dtype=torch.bool)
    if call.problem.breaks is None:
        return lanes
    t0 = lane_times(call, call.t0)
    for leaf in leaves(call.y0):
        bad = call.problem.breaks(fitted(t, leaf), fitted(t0, leaf), up(leaf), up(call.w))
        lanes = lanes | (bad.any() if call.joint else bad.flatten(1).any(-1) if bad.ndim > 1 else bad)
    return lanes


def bound(call: Call, s: Any, t: Tensor, dense: bool) -> float:
    """How far a result at times (l) may lie from the exact solution; infinite where nothing is known.

    With errors e in every one of n steps and a field that spreads solutions by exp(rate h) over a time h, the error at
    the end is at most n e exp(rate span). Under an error controller e is some tolerances, on a grid a multiple of
    (rate h)^(order + 1), as far as rate h is small.
    """
    problem, w = call.problem, float(call.w.detach())
    t0 = lane_times(call, call.t0)
    path = [
        exact(call, t0 + (t - t0) * x, leaf).detach().abs()
        for x in (0.0, 0.25, 0.5, 0.75, 1.0)
        for leaf in leaves(call.y0)
    ]
    size = max([float(x.max()) for x in path if x.numel()] or [0.0])
    span = float((t - t0).detach().abs().max()) if t.numel() else 0.0
    if not math.isfinite(size):
        return math.inf
    backward = bool((t < t0).any())
    rate = problem.rate(w, size)
    spreads = problem.growth(w, size)[backward]
    if type(call.stepper).__name__ == "ReversibleHeun":  # its second state drifts apart at the rate of a damped mode
        spreads = rate
    if spreads * span > 300:
        return math.inf
    steps = int(s.stats.accepted.max()) + 1 if s.stats.accepted.numel() else 1
    first = leaves(call.y0)[0]
    eps = torch.finfo(first.dtype).eps
    far = max(float(t0.detach().abs().max()), float(t.detach().abs().max())) if t.numel() else 0.0
    slope = 1 + rate * (1 + size)
    clock = span * min(eps * far * rate, 2 * slope) + 2.0**-50 * far * slope  # the times that are seen are rounded
    rounding = ROUNDINGS * eps * steps * (size + rate * span)
    total = sum(leaf.numel() for leaf in leaves(call.y0))
    if call.control is PID:
        tolerance = call.options["atol"] + call.options["rtol"] * size
        loose = next((case.loose for case in STEPPERS if case.stepper == call.stepper), 1)
        if loose > 1 and span * rate > 10:  # Fehlberg2 compares the slopes at both ends, which a whole wave apart agree
            return math.inf
        if dense and call.name == "stiff" and span > steps:  # the ends follow the slow solution, at any length
            return math.inf
        each = loose * (LOOSE if problem.smooth else KINKED) * steps * tolerance * math.sqrt(total)
        if dense:
            each *= 3
    else:
        n = max(1, steps - 1)
        h = span / n * (3 if "ts" in call.options else 1)
        order = min(call.stepper.order, 3) if dense else call.stepper.order
        if h * rate > 0.5 and span > 0:
            return math.inf
        each = 10 * (size + 1) * rate * span * (rate * h) ** (order if problem.smooth else 1)
        each = each if problem.smooth else 10 * rate * h
    newton = 100 * 1e4 * eps * steps * (size + 1) * 0.01 if hasattr(call.stepper, "linear") else 0
    return (each + rounding + clock + newton) * math.exp(spreads * span)


def judged(call: Call, s: Any) -> str:
    """What is wrong with a solution; "" where nothing is."""
    return _shapes(call, s) or _statuses(call, s) or _finite(call, s) or _values(call, s) or _folds(call, s)


def _shapes(call: Call, s: Any) -> str:
    lanes = () if call.joint else leaves(call.y0)[0].shape[:1]
    if s.status.shape != lanes:
        return f"status of shape {tuple(s.status.shape)}"
    lane = len(lanes)
    for y, leaf in zip(leaves(s.ys), leaves(call.y0), strict=True):
        count = () if call.more.get("save_at") is None else (s.ts.shape[-1],)
        right = (*leaf.shape[:lane], *count, *leaf.shape[lane:])
        if y.shape != right or y.dtype != leaf.dtype:
            return f"ys of shape {tuple(y.shape)} of {y.dtype}, expected {right} of {leaf.dtype}"
    return ""


def _ordinary(call: Call) -> bool:
    """Whether nothing of the call excuses a failure."""
    t0, t1 = lane_times(call, call.t0), lane_times(call, call.t1)
    span = (t1 - t0).abs()
    eps = torch.finfo(leaves(call.y0)[0].dtype).eps
    long = bool((span > 4).any()) or bool((t0.abs() > 10).any()) or bool(((span < 1e-4) & (span > 0)).any())
    tight = call.options.get("atol", 1.0) < 1e3 * eps * 8 or call.options.get("rtol", 1.0) < 1e3 * eps
    return call.problem.smooth and not long and not tight and call.jump != "nan"


def _statuses(call: Call, s: Any) -> str:
    t0, t1 = lane_times(call, call.t0), lane_times(call, call.t1)
    doomed, status = broken(call, t0 + 0.9 * (t1 - t0)), s.status
    if leaves(call.y0)[0].numel() == 0 and sum(leaf.numel() for leaf in leaves(call.y0)) == 0:
        return "" if bool((status == Status.DONE.value).all()) else f"status {status} of nothing"
    ended = status == Status.EVENT.value
    if bool((ended & (call.event not in ("end", "ties", "never", "nan"))).any()) or bool((status < 1).any()):
        return f"status {status.tolist()}"
    grid_over_pole = call.control is not PID and call.name in ("square", "logistic", "nan_after", "nan_above")
    short = (t1 - t0).abs() < 1e6  # in longer ones the least step may be so long that implicit methods damp what grows
    doomed = doomed & short & (t0 != t1) & (call.name != "sliding")  # which stays where it is unknown to estimates
    if call.event in ("", "record", "reset", "level", "twins") and not grid_over_pole:
        alive = doomed & (status < FAILED)
        if bool(alive.any()):
            return f"status {status.tolist()} though there is no solution up to t1 in {doomed.tolist()}"
    if call.jump == "nan" and call.event == "" and bool(((status < FAILED) & (t0 != t1)).any()):
        return f"status {status.tolist()} though a jump made the state NaN"
    if _ordinary(call) and call.event in ("", "never", "end", "record", "reset"):
        near = broken(call, t0 + 1.1 * (t1 - t0))
        odd = (status > FAILED) & ~near
        if (call.name == "stiff" and call.control is not PID) or call.name in ("nan", "infinite"):
            odd = odd & False
        if call.control is not PID:  # a step of a grid may be too long for Newton's iteration
            odd = odd & (status != Status.NEWTON.value)
        if bool(odd.any()):
            return f"status {status.tolist()} of an ordinary solve"
    return ""


def _finite(call: Call, s: Any) -> str:
    for y in leaves(s.ys):
        if not bool(y.isfinite().all()):
            return f"ys not finite, status {s.status.tolist()}"
    if not bool(torch.as_tensor(s.ts).isfinite().all()):
        return "ts not finite"
    return ""


def _columns(call: Call, s: Any) -> list[tuple[Tensor, list[Tensor]]]:
    """Times (l) and states of every output."""
    if call.more.get("save_at") is None:
        return [(s.ts, leaves(s.ys))]
    lane = int(not call.joint)
    ts = s.ts if call.joint or s.ts.ndim == 2 else s.ts.expand(len(s.status), -1)
    return [(ts[..., i].to(torch.float64), [y.select(lane, i) for y in leaves(s.ys)]) for i in range(ts.shape[-1])]


def _values(call: Call, s: Any) -> str:
    """The exact solution, also at the time where a lane failed or ended."""
    if call.jump == "nan" or sum(leaf.numel() for leaf in leaves(call.y0)) == 0:
        return ""
    saved = call.more.get("save_at") is not None
    with torch.no_grad():
        for t, ys in _columns(call, s):
            good = (s.status == Status.DONE.value) | (not saved and call.problem.breaks is None)
            good = good & ~broken(call, t0_past(call, t))
            if call.name in ("square", "logistic"):
                good = good & (s.status == Status.DONE.value)
            if not bool(good.any()):
                continue
            t = torch.where(good, t, lane_times(call, call.t0))
            most = bound(call, s, t, saved)
            if not math.isfinite(most):
                continue
            for y, leaf in zip(ys, leaves(call.y0), strict=True):
                off = torch.where(fitted(good, leaf), (up(y) - exact(call, t, leaf)).abs(), 0)
                if off.numel() and not float(off.max()) <= most:
                    return f"off by {float(off.max()):.3g}, expected at most {most:.3g}, at t={t.tolist()}"
    return ""


def t0_past(call: Call, t: Tensor) -> Tensor:
    """A tenth further than times (l): near a pole nothing is known of the error."""
    t0 = lane_times(call, call.t0)
    return t0 + 1.1 * (t - t0)


def _folds(call: Call, s: Any) -> str:
    folds, lane = s.folds, int(not call.joint)
    ended = s.status == Status.EVENT.value
    done = s.status == Status.DONE.value
    if "final" in folds and call.more.get("save_at") is None:
        same = all(torch.equal(a, b) for a, b in zip(leaves(folds["final"]), leaves(s.ys), strict=True))
        if not same and call.jump == "" and call.event in ("", "never", "nan"):
            return "Final differs from ys"
    for name in ("final", "steps", "again", "stats", "rise"):
        for x in leaves(folds[name]) if name in folds else []:
            if name == "rise" and not math.isfinite(bound(call, s, lane_times(call, call.t1).detach(), True)):
                continue  # steps so large that the field overflows between their ends
            if name == "rise" and call.name == "nan_after" and call.control is not PID:
                continue  # between the last stage and the end the field may be NaN
            keep = fitted(done | ended, x).expand(x.shape) if lane else bool(done | ended)
            bad = ~x.isfinite() & keep if lane else ~x.isfinite() & torch.tensor(keep)
            if bool(bad.any()):
                return f"fold {name!r} not finite, status {s.status.tolist()}"
            if name != "rise" and not bool(x.isfinite().all()) and call.jump != "nan":
                return f"fold {name!r} not finite in a lane that failed, status {s.status.tolist()}"
    if "stats" in folds and call.event == "" and call.options.get("jump_ts") is None:
        h = folds["stats"].h
        span = (lane_times(call, call.t1) - lane_times(call, call.t0)) * s.mesh.theta[-1]
        off = (h.sum(-1) - span).abs() > 1e-9 * span.abs() + 1e-300
        if leaves(call.y0)[0].numel() and bool(off.any()):
            return f"steps of sizes {h.tolist()} over {span.tolist()}"
    if "rise" in folds and call.event in ("", "never", "record") and call.more.get("save_at") is None:
        return _rise(call, s)
    return ""


def _rise(call: Call, s: Any) -> str:
    """The integral of the field is what the state gains."""
    if call.jump == "nan" or not call.problem.smooth or call.control is not PID or call.name == "stiff":
        return ""
    lane = int(not call.joint)
    flat = lambda x: x.flatten(lane) if x.ndim > lane else x.unsqueeze(lane)  # noqa: E731
    pairs = zip(leaves(s.ys), leaves(call.y0), strict=True)
    gain = torch.cat([flat(a.detach() - b.detach()) for a, b in pairs], lane)
    done = s.status == Status.DONE.value
    if not gain.numel() or bool(broken(call, t0_past(call, lane_times(call, call.t1))).any()):
        return ""
    off = (folds := s.folds["rise"].detach()).sub(gain).abs()
    most = bound(call, s, lane_times(call, call.t1), True)
    keep = fitted(done, off)
    if folds.shape != gain.shape or not float(torch.where(keep, off, 0).max()) <= most:
        return f"the integral of the field is off by {float(off.max()):.3g}, expected at most {most:.3g}"
    return ""


def repeated(call: Call, s: Any) -> str:
    """The same solution on its mesh, at any times, or in two parts."""
    plain = {key: x for key, x in call.arguments().items() if key != "throw"}
    good = s.status == Status.DONE.value
    if call.again == "" or call.jump or call.event or not bool(good.all()):
        return ""
    if call.again == "mesh":
        other = solve(call.term, call.y0, call.t0, call.t1, call.solver(), mesh=s.mesh, **plain)
        for a, b in zip(leaves(other.ys), leaves(s.ys), strict=True):
            eps = torch.finfo(a.dtype).eps
            if a.numel() and not bool(((a - b).abs() <= 1e4 * eps * (1 + b.abs())).all()):
                return f"on its own mesh off by {float((a - b).abs().max()):.3g}"
    elif call.again == "dense" and call.stepper.dense:
        for a in leaves(s(lane_times(call, call.t1)[..., None] if not call.joint else lane_times(call, call.t1))):
            if not bool(a.isfinite().all()):
                return "dense output not finite"
    elif call.again == "resume":
        t1 = lane_times(call, call.t1)
        plain.pop("save_at", None)
        plain.pop("folds", None)
        if "ts" not in call.options:
            other = solve(call.term, None, None, t1, call.solver(), resume=s, throw=False, **plain)
            for a in leaves(other.ys):
                if not bool(a.isfinite().all()):
                    return "resumed solution not finite"
    return ""


def _sum(y: Tensor) -> Tensor:
    return (y.real + y.imag).to(torch.float64).sum() if y.is_complex() else y.to(torch.float64).sum()


def gradients(call: Call, s: Any) -> str:
    """Finite gradients of all inputs that want one, and near those of the exact solution."""
    inputs = call.wanted()
    if call.mode != "graph" or not inputs:
        return ""
    if "rise" in s.folds and call.control is not PID and call.problem.breaks is not None:
        return ""  # the integrand may be NaN beside the steps of a grid, and its share of a replay with it
    read = s.folds.values() if call.number % 2 else ()
    outputs = [leaf for x in (s.ys, *read) for leaf in leaves(x)]
    loss = sum(_sum(y) for y in outputs)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        idle = call.name in ("rest", "nan", "infinite") or not sum(y.numel() for y in outputs)
        return "" if idle else "ys carry no gradient"
    grads = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)  # of times that a grid moves
    largest = max([float(y.detach().abs().max()) for y in outputs if y.numel()] or [0.0])
    span = (lane_times(call, call.t1) - lane_times(call, call.t0)).detach().abs()
    if largest > 1e15 or bool((span > 1e15).any()):  # powers of these overflow
        return ""
    for x, grad in zip(inputs, grads, strict=True):
        if grad is not None and not bool(grad.isfinite().all()):
            where = "y0" if any(x is leaf for leaf in leaves(call.y0)) else "another input"
            return f"gradient of {where} not finite, status {s.status.tolist()}"
    if call.number % 2 or call.event or call.jump:
        return ""
    return _slopes(call, s, inputs, grads)


def _slopes(call: Call, s: Any, inputs: list[Tensor], grads: tuple[Any, ...]) -> str:
    """The gradients beside those of the exact solution, where they are well determined."""
    sizes = [leaf.detach().abs() for leaf in leaves(call.y0)]
    clean = all(float(x.min()) > 0.2 for x in sizes if x.numel()) and call.problem.smooth
    if not clean or not bool((s.status == Status.DONE.value).all()) or not sum(x.numel() for x in sizes):
        return ""
    t1 = lane_times(call, call.t1)
    if bool(broken(call, t0_past(call, t0_past(call, t1).detach()).detach()).any()):
        return ""
    total = torch.zeros((), dtype=torch.float64)
    columns = _columns(call, s) if call.more.get("save_at") is not None else [(t1, leaves(s.ys))]
    for t, _ in columns:
        for leaf in leaves(call.y0):
            total = total + _sum(exact(call, t, leaf))
    if not total.requires_grad or (
        call.more.get("save_at") is not None and bool((t1 == lane_times(call, call.t0)).any())
    ):
        return ""
    right = torch.autograd.grad(total, inputs, allow_unused=True)
    with torch.no_grad():
        most = max(
            [bound(call, s, t, len(columns) > 0 and call.more.get("save_at") is not None) for t, _ in columns] or [0]
        )
    ends = [exact(call, t.detach(), leaf).detach().abs() for t, _ in columns for leaf in leaves(call.y0)]
    small = min([float(y.min()) for y in ends if y.numel()] or [1.0])
    span = float((t1 - lane_times(call, call.t0)).detach().abs().max())
    rate = call.problem.rate(float(call.w.detach()), max(float(x.max()) for x in sizes if x.numel()))
    count = sum(x.numel() for x in sizes) * max(1, len(columns))
    if not math.isfinite(most):
        return ""
    most = 100 * most / max(min(small, 1), 1e-300) * (1 + rate) * (1 + span) * count
    for x, grad, other in zip(inputs, grads, right, strict=True):
        a = torch.zeros_like(up(x)) if grad is None else up(grad)
        b = torch.zeros_like(up(x)) if other is None else up(other)
        off = (a - b).abs() / (1 + b.abs())
        if off.numel() and not float(off.max()) <= most:
            place = next((i for i, leaf in enumerate(leaves(call.y0)) if x is leaf), None)
            what = f"y0[{place}]" if place is not None else "w" if x is call.w else "t0" if x is call.t0 else "t1"
            return f"gradient of {what} off by {float(off.max()):.3g}, expected at most {most:.3g}"
    return ""
