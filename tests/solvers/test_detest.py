"""Non-stiff problems that everybody measures on; `test_implicit` has the stiff ones."""

import pytest

from sciml import Status
from tests.solvers.detest import PROBLEMS, RTOLS, STEPPERS, exact, numeric, peer, solution
from tests.solvers.stiff import scaled_error


def check(name: str, method: str, rtol: float) -> None:
    """At most 300 rtol, or three times scipy's error: orbits multiply local errors by thousands, whatever the code."""
    s = solution(name, STEPPERS[method], rtol)
    assert s.status == Status.DONE
    found = scaled_error(s.ys, exact(name))
    assert found <= 300 * rtol or found <= 3 * peer(name, method, rtol).error


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_is_solved_to_its_tolerance(name: str):
    for method, rtols in RTOLS.items():
        check(name, method, rtols[-2])  # bosh3: 1e-3, the others: 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", STEPPERS)
def test_problem_is_solved_at_every_tolerance(name: str, method: str):
    for rtol in RTOLS[method]:
        check(name, method, rtol)


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.exact])
def test_formula_is_the_solution(name: str):
    # scipy's least rtol is 2e-14; it adds up over some 1000 steps, and an orbit's phase errs a hundred times more
    assert scaled_error(numeric(name), exact(name)) < 1e-9
