import copy

import pytest
import torch
from torch.func import jvp
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.testing import assert_close

from sciml import Grid, Solver, solve
from sciml.models import MLP, Autonomous, NeuralODE, TaylorRegularizer, TimeDependent
from sciml.models.taylor_regularizer import SquaredDerivative
from sciml.solvers import RK4, Discrete, Dopri8, Quadrature


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def field():
    return TimeDependent(MLP(3, 2, width=8, activation="tanh")).double()


def states():
    return torch.randn(4, 2, dtype=torch.float64)


def neural_ode(order=2, **solver):
    return NeuralODE(field(), Solver(RK4(), Grid(n=6), **solver), t1=2.0, regularizer=TaylorRegularizer(order, 0.5))


def derivative(f, order):
    """d^K y / dt^K as a function of (t, y), by forward derivatives in one another."""
    if order == 1:
        return f
    lower = derivative(f, order - 1)
    return lambda t, y: jvp(lower, (t, y), (torch.ones_like(t), f(t, y)))[1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivative_is_that_of_nested_autograd(order):
    f, t, y = field(), torch.tensor(0.3, dtype=torch.float64), states()
    expected = derivative(f, order)(t, y).square().sum(1)
    assert_close(SquaredDerivative(f, order)(t, y, ()), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_penalty_is_the_mean_integral(lanes):
    y0 = states()
    ode = NeuralODE(field(), Solver(RK4(), Grid(n=40), lanes=lanes), 2.0, TaylorRegularizer(2, 0.5))
    ode(y0)
    along = Quadrature(lambda t, y, args: derivative(ode.field, 2)(t, y).square().sum(1), nodes=5)
    fine = solve(ode.field, y0, 0.0, 2.0, Solver(Dopri8(), Grid(n=40)), folds={"r": along})
    assert_close(ode.penalty, 0.5 * fine.folds["r"].mean(), rtol=1e-6, atol=0)  # fourth order, h = .05


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_penalty_is_positive_where_time_runs_backward(lanes):
    """And that of the way back along the same solution, to the error of RK4."""
    ode, y0 = neural_ode(lanes=lanes), states()
    end = ode(y0)
    forward = ode.take_penalty()
    ode(end, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert_close(ode.take_penalty(), forward, rtol=1e-2, atol=0)


def test_penalty_is_taken_once_and_copies_have_none():
    ode = neural_ode()
    ode(states())
    assert copy.deepcopy(ode).penalty is None
    assert ode.take_penalty() > 0
    assert ode.penalty is None


class Cubed(torch.nn.Module):
    def forward(self, t, y):
        return -(y**3)


def test_states_without_further_axes_have_the_exact_penalty():
    """Of y' = -y^3: the integral of y'^2 is (y(0)^4 - y(1)^4) / 4."""
    y0 = torch.tensor([0.5, 1.0], dtype=torch.float64)
    ode = NeuralODE(Cubed(), Solver(RK4(), Grid(n=40)), regularizer=TaylorRegularizer(1, 1.0))
    ode(y0)
    y1 = y0 / (1 + 2 * y0**2).sqrt()
    assert_close(ode.penalty, (y0**4 - y1**4).mean() / 4, rtol=1e-6, atol=0)  # fourth order, h = 1/40


def test_states_of_several_axes_are_one_vector():
    y0 = torch.randn(4, 3, 2, dtype=torch.float64)
    f = Autonomous(MLP(2, 2, width=8)).double()
    ode = NeuralODE(f, Solver(RK4(), Grid(n=6)), regularizer=TaylorRegularizer(2))
    ode(y0)
    together = ode.penalty
    ode(y0.flatten(0, 1))
    assert_close(together, 3 * ode.penalty, rtol=1e-12, atol=0)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("adjoint", [Discrete(), Discrete("all")])
def test_gradient_is_that_of_finite_differences(adjoint, lanes):
    ode, y0 = neural_ode(order=3, lanes=lanes, adjoint=adjoint), states()
    start = parameters_to_vector(ode.parameters()).detach()
    direction, h = torch.randn_like(start), 1e-5

    def loss(shift):
        vector_to_parameters(start + shift * direction, ode.parameters())
        return ode(y0).square().sum() + ode.penalty

    gradient = torch.autograd.grad(loss(0.0), list(ode.parameters()))
    slope = parameters_to_vector(gradient) @ direction
    difference = (loss(h) - loss(-h)).detach() / (2 * h)
    assert_close(slope, difference, rtol=1e-7, atol=0)  # h^2, and round-off / h


def test_nothing_is_read_outside_of_training():
    ode = neural_ode()
    ode(states())
    assert ode.penalty > 0
    ode.eval()(states())
    assert ode.penalty is None


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="order: expected a whole number, 1 or more, got 0"):
        TaylorRegularizer(0)
    with pytest.raises(ValueError, match=r"weight: expected a number, 0 or more, got -1\.0"):
        TaylorRegularizer(2, -1.0)
    kinked = NeuralODE(Autonomous(MLP(2, 2, activation="relu")), regularizer=TaylorRegularizer(3))
    with pytest.raises(ValueError, match="f: order 3 needs 2 derivatives, but f has 0"):
        kinked(torch.randn(4, 2))
