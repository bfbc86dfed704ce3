"""Arguments of wrong types and values: each of them has to be refused with the argument's name."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sciml import Discrete
from sciml.solvers import PID, Euler, Event, Final, Grid, Quadrature, SaveAt, Steps, Tsit5
from tests.solvers.calls import Call, leaves, mapped

SHARE = 0.25  # of the calls that are spoilt


def _set(**changes: Any) -> Callable[[Call], None]:
    """Change fields of the call."""
    return lambda call: vars(call).update(changes)


def _more(**changes: Any) -> Callable[[Call], None]:
    """Change keyword arguments of `solve`."""
    return lambda call: call.more.update(changes)


def _pid(**changes: Any) -> Callable[[Call], None]:
    """A PID controller of a stepper that bears one, with other options."""

    def change(call: Call) -> None:
        call.stepper, call.adjoint, call.control, call.options = Tsit5(), None, PID, dict(changes)

    return change


def _grid(**changes: Any) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call.stepper, call.adjoint, call.control, call.options = Euler(), None, Grid, dict(changes)

    return change


def _plain(call: Call) -> None:
    """A call with nothing else in it that could be refused first, or excuse what is not."""
    call.y0, call.max_steps = torch.ones(2, 3), 50
    call.t0, call.t1, call.more, call.term = 0.0, 1.0, {}, lambda t, y: -y
    call.event = call.jump = ""


def _of_state(change: Callable[[Any], Any]) -> Callable[[Call], None]:
    def apply(call: Call) -> None:
        call.y0 = change(call.y0)

    return apply


def _term(make: Callable[[Any], Any]) -> Callable[[Call], None]:
    """Another field: a function of what the right one gives."""

    def apply(call: Call) -> None:
        call.term = lambda t, y, args=(): make(y)

    return apply


def _fold(fold: Callable[[], Any]) -> Callable[[Call], None]:
    def apply(call: Call) -> None:
        call.more["folds"] = {"wrong": fold()}

    return apply


class Half:
    """Nothing that any argument could be."""

    def __repr__(self) -> str:
        return "Half()"


def gap(t: Any, y: Any, key: Any, args: Any) -> Any:
    """A jump that does nothing."""
    return y, torch.zeros(key.shape, dtype=torch.bool)


ARRAY = np.ones(3)
MISTAKES: dict[str, Callable[[Call], None]] = {
    **{f"y0 is {x!r}": _set(y0=x) for x in (1.0, [1.0, 2.0], None, "y", (), {}, ARRAY, (torch.ones(2), 1.0))},
    **{
        f"y0 of {dtype}": _of_state(lambda y0, dtype=dtype: mapped(lambda x: x.detach().real.to(dtype), y0))
        for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.uint8)
    },
    "y0 of two dtypes": _set(y0=(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.float64))),
    **{
        f"{name} is {x!r}": _set(**{name: x})
        for name in ("t0", "t1")
        for x in (math.nan, math.inf, "0", None, [0.0, 1.0, 2.0, 3.0, 4.0], torch.tensor(1j), torch.zeros(5, 7), Half())
    },
    "span overflows": _set(t0=-1e308, t1=1.5e308),
    "solver is a stepper": _more(solver=Tsit5()),
    "solver is unknown": _more(solver="tsit6"),
    "solver is a number": _more(solver=3),
    "stepper is a class": _set(stepper=Tsit5),
    "stepper is a name": _set(stepper="tsit5"),
    "stepper is a number": _set(stepper=5),
    "controller is a number": _set(control=lambda **_: 1e-3),
    "controller is a class": _set(control=lambda **_: PID),
    "adjoint is a name": _set(adjoint="all"),
    "adjoint is a class": _set(adjoint=Discrete),
    "adjoint is a number": _set(adjoint=1),
    **{f"max_steps is {x!r}": _set(max_steps=x) for x in (0, -1, 2.5, "10", None, math.nan)},
    **{f"lanes is {x!r}": _set(lanes=x) for x in ("rows", None, 3)},
    **{
        f"rtol is {x!r}": _pid(rtol=x) for x in (-1e-3, math.nan, "1e-3", None, torch.ones(7), torch.tensor(1j), [1e-3])
    },
    **{f"atol is {x!r}": _pid(atol=x) for x in (-1e-3, math.nan, "1e-3", None, torch.ones(7), -torch.ones(3))},
    "no tolerance": _pid(rtol=0.0, atol=0.0),
    **{f"dt0 is {x!r}": _pid(dt0=x) for x in (0.0, -1.0, math.nan, "0.1")},
    **{f"dtmax is {x!r}": _pid(dtmax=x) for x in (0.0, -1.0, math.nan, "0.1")},
    **{f"safety is {x!r}": _pid(safety=x) for x in (0.0, -1.0, math.nan, "0.9")},
    **{f"pcoeff is {x!r}": _pid(pcoeff=x) for x in (math.nan, "1", math.inf)},
    **{f"icoeff is {x!r}": _pid(icoeff=x) for x in (math.nan, None)},
    **{f"factormin is {x!r}": _pid(factormin=x) for x in (0.0, 2.0, math.nan, "0.2")},
    **{f"factormax is {x!r}": _pid(factormax=x) for x in (0.5, math.nan, None)},
    **{
        f"{name} is {x!r}": _pid(**{name: x})
        for name in ("step_ts", "jump_ts")
        for x in (0.5, [math.nan], ["a"], torch.ones(5, 2), torch.ones(1, 1, 1), torch.tensor([1j]), Half())
    },
    **{f"norm is {x!r}": _pid(norm=x) for x in (2, "rms")},
    "norm of a wrong shape": _pid(norm=lambda e: torch.ones(5)),
    "norm gives a number": _pid(norm=lambda e: 1.0),
    **{f"n is {x!r}": _grid(n=x) for x in (0, -1, 2.5, "4", math.nan)},
    **{f"dt is {x!r}": _grid(dt=x) for x in (0.0, -1.0, math.nan, math.inf, 0.3, "0.1", 1e-30)},
    **{
        f"ts is {x!r}": _grid(ts=x)
        for x in (0.5, torch.tensor([0.0, math.nan, 1.0]), torch.zeros(2, 2), torch.tensor([1.0, 0.0]), "a", [0.0, "1"])
    },
    "two grids": _grid(n=2, dt=0.5),
    **{f"args is {x!r}": _more(args=x) for x in ([torch.ones(1)], (1.0,), 3.0, torch.ones(1), None, Half())},
    **{f"term is {x!r}": _set(term=x) for x in (None, 3.0, "f", Half())},
    "term of one argument": _set(term=lambda y: y),
    "term of four arguments": _set(term=lambda t, y, args, more: y),
    "drift of another shape": _term(lambda y: torch.cat([x.reshape(-1) for x in leaves(y)] * 2)),
    "drift of another dtype": _term(lambda y: mapped(lambda x: x.to(torch.float16), y)),
    "drift is a number": _term(lambda y: 1.0),
    "drift is None": _term(lambda y: None),
    "drift is a pair": _term(lambda y: (y, y)),
    **{
        f"save_at is {x!r}": _more(save_at=x)
        for x in (
            [math.nan],
            [math.inf],
            ["a"],
            0.5,
            torch.zeros(5, 3, 2),
            torch.tensor([1j]),
            Half(),
            [[0.1], [0.2, 0.3]],
        )
    },
    **{f"folds is {x!r}": _more(folds=x) for x in ([Final()], Final(), "final", 3, (Final(), Steps()), Half())},
    **{f"a fold is {x!r}": _fold(lambda x=x: x) for x in (None, 3, Final, "steps", Half())},
    "a fold is a function": _fold(lambda: gap),
    "save times are none": _fold(lambda: SaveAt("now")),
    "integrand is a number": _fold(lambda: Quadrature(3.0)),
    **{f"nodes is {x!r}": _fold(lambda x=x: Quadrature(lambda t, y, args: y, x)) for x in (0, -1, 2.5, "3")},
    "integral of a number": _fold(lambda: Quadrature(lambda t, y, args: 1.0)),
    "integral of None": _fold(lambda: Quadrature(lambda t, y, args: None)),
    "jumps is one jump": _more(jumps=gap),
    **{f"jumps is {x!r}": _more(jumps=x) for x in (3, "jump", Half())},
    **{f"a jump is {x!r}": _more(jumps=[x]) for x in (3, None, "jump", Half())},
    "jump gives a state": _more(jumps=[lambda t, y, key, args: y]),
    "jump gives a number": _more(jumps=[lambda t, y, key, args: 3]),
    "jump gives None": _more(jumps=[lambda t, y, key, args: None]),
    "jump gives a bool": _more(jumps=[lambda t, y, key, args: (y, True)]),
    "jump of another shape": _more(jumps=[lambda t, y, key, args: (torch.ones(7), torch.zeros(key.shape) > 0)]),
    "jump marks a wrong shape": _more(jumps=[lambda t, y, key, args: (y, torch.zeros(7) > 0)]),
    "jump marks numbers": _more(jumps=[lambda t, y, key, args: (y, torch.zeros(key.shape))]),
    **{f"events is {x!r}": _more(events=x) for x in (3, "e", [3], {"a": None}, Half(), [None])},
    "event gives a number": _more(events=lambda t, y, args: 1.0),
    "event gives None": _more(events=lambda t, y, args: None),
    "event of a wrong shape": _more(events=lambda t, y, args: torch.ones(7)),
    "event of complex values": _more(events=lambda t, y, args: torch.ones(()) * 1j),
    "reset is a number": lambda call: call.more.update(
        events=Event(lambda t, y, args: t.reshape(-1)[0] + y[..., 0] - 0.5, reset=3)
    ),
    **{f"path is {x!r}": _more(path=x) for x in (3, "path", Half())},
    **{f"mesh is {x!r}": _more(mesh=x) for x in (3, "mesh", Half(), (1, 2))},
    **{
        f"resume is {x!r}": lambda call, x=x: vars(call).update(y0=None, t0=None) or call.more.update(resume=x)
        for x in (3, Half())
    },
    "resume with a state": _more(resume=Half()),
    "nothing to start from": _set(y0=None, t0=None),
}


def mistaken(call: Call) -> str:
    """The mistake to be made in a call; "" for none."""
    pick = random.Random(-1 - call.number)
    return pick.choice(sorted(MISTAKES)) if pick.random() < SHARE else ""


def spoil(call: Call) -> None:
    """Make the call's mistake."""
    if call.mistake:
        _plain(call)
        call.stepper, call.control, call.options, call.adjoint = Tsit5(), PID, {}, None
    if call.mistake:
        MISTAKES[call.mistake](call)
