from types import SimpleNamespace

import pytest

from benchmarks import timing


@pytest.fixture
def clock(monkeypatch):
    """Clocks that only the timed functions advance."""
    now = SimpleNamespace(wall=0.0, cpu=0.0)
    fake = SimpleNamespace(perf_counter=lambda: now.wall, process_time=lambda: now.cpu)
    monkeypatch.setattr(timing, "time", fake)
    return now


def test_interleaved_takes_turns_and_leaves_the_warmup_out(clock):
    calls = []

    def function(name, step):
        calls.append(name)
        cost = 100.0 if calls.count(name) <= 2 else calls.count(name) * step
        clock.wall += cost
        clock.cpu += 2 * cost

    functions = {"a": lambda: function("a", 1.0), "b": lambda: function("b", 10.0)}
    times = timing.interleaved(functions, repeats=5, warmup=2)
    assert calls == ["a", "b"] * 7
    assert times["a"].wall == (4.0, 5.0, 6.0)  # quartiles of 3, 4, 5, 6, 7
    assert times["a"].cpu == (8.0, 10.0, 12.0)
    assert times["b"].wall.median == 50.0


def test_interleaved_does_not_time_leading_calls(clock):
    calls = []

    def function(name):
        cost = 1.0 if calls and calls[-1] == name else 100.0
        calls.append(name)
        clock.wall += cost
        clock.cpu += cost

    times = timing.interleaved({name: lambda name=name: function(name) for name in "ab"}, repeats=2, warmup=0, lead=1)
    assert calls == ["a", "a", "b", "b"] * 2
    assert times["a"].cpu == times["b"].cpu == (1.0, 1.0, 1.0)
