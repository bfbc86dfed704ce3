import math

import pytest
import torch
from torch import Tensor

from sciml.calculus import solution_coefficients
from sciml.models.mlp import MLP
from sciml.models.neural_ode import TimeDependent
from tests.solvers.systems import coupled, coupled_exact

DTYPE = torch.float64
ZERO = torch.tensor(0.0, dtype=DTYPE)


def close(found: tuple[Tensor, ...], expected: list[float]) -> None:
    values = torch.stack(found).flatten()
    torch.testing.assert_close(values, torch.tensor(expected, dtype=DTYPE), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda t, y: y, [1 / math.factorial(k) for k in range(1, 9)]),  # exp
        (lambda t, y: y**2, [1.0] * 8),  # 1 / (1 - t)
        (lambda t, y: t.cos() + 0 * y, [1, 0, -1 / 6, 0, 1 / 120, 0, -1 / 5040, 0]),  # 1 + sin
        (lambda t, y: 2 * t * y, [0, 1, 0, 1 / 2, 0, 1 / 6, 0, 1 / 24]),  # exp(t^2)
        (lambda t, y: torch.ones_like(y), [1.0, 0, 0, 0, 0, 0, 0, 0]),
        (lambda t, y: t**3 + 0 * y, [0, 0, 0, 1 / 4, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_coefficients_of_solutions_that_are_known(f, expected, shape):
    close(solution_coefficients(f, ZERO, torch.ones(shape, dtype=DTYPE), 8), expected)


def nested(f, t: Tensor, y: Tensor, order: int) -> list[Tensor]:
    """Total derivatives along the solution, each the slope of the last one, by forward mode."""
    derivative, found = f, []
    for k in range(1, order + 1):
        found.append(derivative(t, y) / math.factorial(k))

        def derivative(t, y, last=derivative):
            return torch.func.jvp(last, (t, y), (torch.ones_like(t), f(t, y)))[1]

    return found


def test_coefficients_of_a_network_are_those_of_nested_derivatives():
    torch.manual_seed(0)
    f = TimeDependent(MLP(4, 3, width=6, depth=2, activation="tanh")).double()
    y = torch.randn(5, 3, dtype=DTYPE)
    t = torch.tensor(0.3, dtype=DTYPE)
    for a, b in zip(solution_coefficients(f, t, y, 5), nested(f, t, y, 5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_every_sample_may_have_its_own_time():
    ts = torch.tensor([[0.2], [0.9]], dtype=DTYPE)
    y = coupled_exact(ts[:, 0])
    together = solution_coefficients(coupled, ts, y, 4)
    for i in range(2):
        alone = solution_coefficients(coupled, ts[i, 0], y[i], 4)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck():
    t, y = torch.tensor(0.3, dtype=DTYPE, requires_grad=True), torch.rand(2, dtype=DTYPE).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, y: solution_coefficients(coupled, t, y, 4), (t, y))


def test_what_is_known_is_not_evaluated_again():
    calls = []

    def f(t, y):
        calls.append(type(y).__name__)
        return y.sin()

    y = torch.ones(2)
    found = solution_coefficients(f, torch.tensor(0.0), y, 3, first=y.sin())
    assert calls == ["Jet", "Jet"]
    assert found[0].equal(y.sin())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="order: expected at least 1, got 0"):
        solution_coefficients(lambda t, y: y, ZERO, ZERO, 0)
    with pytest.raises(ValueError, match="f: order 3 needs 2 derivatives, but f has 0"):
        solution_coefficients(lambda t, y: y.relu(), ZERO, torch.ones(2), 3)
