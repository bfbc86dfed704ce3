"""Problems whose kept tensors were made under unusual circumstances."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sciml.problems import Burgers, NavierStokes
from sciml.problems.constant import constant

PROBLEMS = [Burgers(points=34), NavierStokes(points=34)]


class Tendency(nn.Module):
    def __init__(self, problem: Burgers | NavierStokes):
        super().__init__()
        self.problem = problem

    def forward(self, fields: Tensor) -> Tensor:
        problem = self.problem
        return problem.decode(problem.remainder(torch.zeros(()), problem.encode(fields), ()))


def fields(problem: Burgers | NavierStokes) -> Tensor:
    return problem.initial(2, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_gradients_flow_after_inference(problem: Burgers | NavierStokes):
    """Of points that nothing else has asked for, so that inference comes first."""
    u = fields(problem)
    with torch.inference_mode():
        expected = Tendency(problem)(u)
    u.requires_grad_()
    found = Tendency(problem)(u)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert u.grad is not None


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_an_export_leaves_nothing_behind(problem: Burgers | NavierStokes):
    problem = type(problem)(points=40)
    u = fields(problem)
    exported = torch.export.export(Tendency(problem), (u,)).module()
    assert torch.allclose(exported(u), Tendency(problem)(u), atol=1e-5)


def test_fakes_are_not_kept():
    line = constant(torch.ones)
    with FakeTensorMode():
        assert isinstance(line(3), FakeTensor)
    assert line(3).tolist() == [1.0] * 3


def test_what_numbers_give_is_made_once():
    calls = []

    @constant
    def line(n: int) -> Tensor:
        calls.append(n)
        return torch.ones(n)

    assert line(3) is line(3)
    assert line(2).shape == (2,)
    assert calls == [3, 2]
