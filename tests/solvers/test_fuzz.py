"""Ten thousand random solves, a few hundred of them in every run; `fuzz` says what may come of one."""

import pytest

from tests.solvers.fuzz import run

FEW, ALL, PART = 400, 10_000, 100


def findings(first: int, end: int) -> list[str]:
    results = ((number, *run(number)) for number in range(first, end))
    return [f"case {number}, {kind}: {found}" for number, kind, found in results if found]


@pytest.mark.parametrize("first", range(0, FEW, PART))
def test_random_solves_come_out_right_or_say_why_not(first: int):
    assert not findings(first, first + PART)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, ALL, PART))
def test_ten_thousand_random_solves_come_out_right_or_say_why_not(first: int):
    assert not findings(first, first + PART)
