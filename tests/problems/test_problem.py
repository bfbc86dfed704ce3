import inspect

import pytest
import torch

import sciml.problems
from sciml import Solver
from sciml.data import OperatorData, TrajectoryData
from sciml.problems import Problem, Spiral
from sciml.solvers.term import as_term


class Flat(Spiral):
    """Its states lack a component."""

    def initial(self, count, generator, dtype=torch.float32):
        return super().initial(count, generator, dtype)[:, :1]


def test_every_problem_starts_in_the_shape_that_it_describes():
    kinds = [getattr(sciml.problems, name) for name in dir(sciml.problems)]
    problems = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, Problem)]
    checked = 0
    for kind in problems:
        if inspect.isabstract(kind) or kind.__name__ == "RandomlyForced":  # which takes a problem
            continue
        problem = kind()
        assert len(problem.start(2, torch.Generator().manual_seed(0))) == 2
        checked += 1
    assert checked >= 8


def test_start_of_another_shape_is_told_with_what_describes_it():
    told = (
        r"problem: expected \(3, 2\) from Flat.initial, as its channels \('x', 'y'\) and coordinates say, got \(3, 1\)"
    )
    with pytest.raises(ValueError, match=told):
        Flat().start(3, torch.Generator())


class Endless(Problem):
    """Decay, until nobody knows when."""

    def term(self):
        return as_term(lambda t, y: -y)

    def solver(self):
        return Solver()

    def initial(self, count, generator, dtype=torch.float32):
        return torch.ones(count, 1, dtype=dtype)


USES = {
    "times": lambda problem: problem.times(3),
    "evolve": lambda problem: problem.evolve(torch.ones(2, 1), torch.linspace(0, 1, 3)),
    "fields": OperatorData,
    "trajectories": lambda problem: TrajectoryData(problem).file(),
}


@pytest.mark.parametrize("use", USES)
def test_problem_without_an_end_is_told(use):
    with pytest.raises(ValueError, match="problem: expected Endless to have a final time, got none"):
        USES[use](Endless())
