"""Joint steps of a grid, which are looked at now and then, and failures among them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sciml import SolveError, Solver, Status, solve
from sciml.solvers import RK4, Brownian, Diffusive, Euler, EulerMaruyama, Grid, Quadrature, Stepper, Steps
from tests.solvers.systems import DTYPE


class Reads(TorchDispatchMode):
    """Counts how often a number is read of the state, which is of single precision, other than of times."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.float32
        return func(*args, **(kwargs or {}))


def test_joint_steps_of_a_grid_are_looked_at_now_and_then():
    counts = []
    for n in (64, 640):
        with Reads() as reads:
            solve(lambda t, y: -y, torch.ones(3), 0.0, 1.0, Solver(RK4(), Grid(n=n)))
        counts.append(reads.count)
    assert counts[1] - counts[0] == 9


class Burst(Diffusive):
    """Infinite from t = .1 on, and refuses infinite states, which it gets where nobody looks."""

    noise_type = "additive"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        if not bool(y.isfinite().all()):
            raise ArithmeticError("infinite")
        return torch.where(t < 0.0995, -y, torch.inf)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0 * dw


def test_fold_that_does_not_bear_what_nobody_looked_at_hides_no_failure():
    fold = Quadrature(lambda t, y, args: torch.distributions.Normal(y, 1.0).log_prob(torch.zeros_like(y)))
    solver = Solver(RK4(), Grid(n=200))
    with pytest.raises(SolveError, match=r"at t=0.0"):
        solve(lambda t, y: 50 * y * y, torch.ones(2, dtype=DTYPE), 0.0, 1.0, solver, folds={"log": fold})


@pytest.mark.parametrize(
    ("field", "stepper"), [(Burst(), EulerMaruyama()), (lambda t, y: torch.where(t < 0.0995, -y, torch.inf), Euler())]
)
def test_step_of_a_grid_that_fails_is_found_all_the_same(field: Any, stepper: Stepper):
    y0, solver = torch.ones(2, dtype=DTYPE), Solver(stepper, Grid(n=1000))
    path = Brownian() if isinstance(field, Burst) else None
    solution = solve(field, y0, 0.0, 1.0, solver, path=path, folds={"ends": Steps()}, throw=False)
    assert solution.status == Status.NON_FINITE
    assert solution.stats.accepted == 100
    assert len(solution.folds["ends"].ys) == 100
    assert torch.allclose(solution.ys, y0 * 0.999**100, rtol=1e-13)
    with pytest.raises(SolveError, match=r"at t=0.1: "):
        solve(field, y0, 0.0, 1.0, solver, path=path)
