"""Random solves and the verdict on what comes of each.

    python -m tests.solvers.fuzz 17          # one case, with its arguments and traceback
    python -m tests.solvers.fuzz 0 10000     # many, with what was found

What may come of a solve: the exact solution, within a bound from the tolerance; a status or a `SolveError` with the
time; a ValueError or TypeError that starts with the name of an argument. Everything else is a finding.
"""

import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from sciml import SolveError, solve
from tests.solvers.calls import Call, draw
from tests.solvers.mistakes import mistaken, spoil
from tests.solvers.verdict import gradients, judged, repeated

SECONDS = 20  # after which a solve counts as hanging
NAMED = re.compile(r"(\w+(\[[^\]]*\])?(, )?)+: ")


class Hang(BaseException):
    """A solve that takes too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Interrupt what takes too long, where there are signals to do so."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(number: int) -> tuple[str, str]:
    """The kind of outcome of a case, and what was found ("" where all is well)."""
    call = draw(number)
    call.mistake = mistaken(call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated")
        try:
            with limited():
                return _outcome(call)
        except Hang:
            return "hang", f"took more than {SECONDS} s"
        except Exception as error:
            return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"


def _outcome(call: Call) -> tuple[str, str]:
    quiet = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(call.mode, nullcontext)
    try:
        spoil(call)
        with quiet():
            s = solve(call.term, call.y0, call.t0, call.t1, call.solver(), **call.arguments())
    except SolveError as error:
        return "SolveError", _error(call, error)
    except (ValueError, TypeError) as error:
        found = "" if NAMED.match(str(error)) else f"names no argument: {type(error).__name__}: {error}"
        if not found and not call.mistake and not call.refusable(str(error)):
            found = f"refused: {error}"
        return "refused", found and f"{found}\n{traceback.format_exc()}"
    if call.mistake:
        return "accepted", f"the mistake {call.mistake!r} went unnoticed"
    found = judged(call, s)
    if not found:
        with quiet():
            found = repeated(call, s)
    if not found:
        try:
            found = gradients(call, s)
        except RuntimeWarning as warning:
            if not str(warning).startswith("Backsolve:"):
                raise
            return "warned", ""
        except SolveError:
            return "SolveError", ""  # of the backward solve
    return "solved" if bool((s.status < 3).all()) else "status", found


def _error(call: Call, error: SolveError) -> str:
    if call.mistake:
        return f"the mistake {call.mistake!r} was noticed late: {error}"
    told = " at t=" in str(error) and len(error.times) == len(error.status) > 0
    return "" if told and (call.joint or len(error.samples) == len(error.status)) else f"tells too little: {error}"


def main(first: int, end: int) -> int:
    """Run cases, print what is found, and return how many findings there are."""
    kinds: Counter[str] = Counter()
    findings, begin = 0, time.perf_counter()
    for number in range(first, end):
        start = time.perf_counter()
        kind, found = run(number)
        kinds[kind] += 1
        taken = time.perf_counter() - start
        if found or taken > 5:
            findings += bool(found)
            print(f"case {number}: {kind}, {taken:.1f} s: {found}", flush=True)
    print(f"{end - first} cases in {time.perf_counter() - begin:.0f} s, {findings} findings; {dict(kinds)}")
    return findings


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[1:]]
    if len(numbers) == 1:
        call = draw(numbers[0])
        print(call, mistaken(call))
        numbers.append(numbers[0] + 1)
    sys.exit(bool(main(*numbers)))
