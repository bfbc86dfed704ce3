import pytest
import torch
from torch.func import jacrev, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.testing import assert_close

from sciml import Grid, Solver, solve
from sciml.models import MLP, STEER, KineticRegularizer, NeuralODE, TimeDependent
from sciml.models.regularizers import KineticEnergy
from sciml.solvers import RK4, Discrete, Dopri8, Quadrature


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def field():
    return TimeDependent(MLP(3, 2, width=8, activation="tanh")).double()


def states():
    return torch.randn(4, 2, dtype=torch.float64)


def test_kinetic_energy_is_that_of_velocity_and_jacobian():
    f, t, y, direction = field(), torch.tensor(0.3, dtype=torch.float64), states(), states()
    jacobians = vmap(jacrev(lambda y: f(t, y[None])[0]))(y)
    rows = torch.einsum("bi,bij->bj", direction, jacobians)
    expected = (f(t, y).square().sum(1) + 0.7 * rows.square().sum(1)) / 2
    assert_close(KineticEnergy(f, direction, 0.7)(t, y, ()), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_kinetic_penalty_is_the_mean_integral_with_one_direction(lanes):
    y0 = states()
    ode = NeuralODE(field(), Solver(RK4(), Grid(n=40), lanes=lanes), 2.0, KineticRegularizer(0.5))
    torch.manual_seed(1)
    ode(y0)
    torch.manual_seed(1)
    fold = Quadrature(KineticEnergy(ode.field, torch.randn_like(y0), 1.0), nodes=5)
    fine = solve(ode.field, y0, 0.0, 2.0, Solver(Dopri8(), Grid(n=40)), folds={"r": fold})
    assert_close(ode.penalty, 0.5 * fine.folds["r"].mean(), rtol=1e-6, atol=0)  # fourth order, h = .05


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("adjoint", [Discrete(), Discrete("all")])
def test_kinetic_gradient_is_that_of_finite_differences(adjoint, lanes):
    solver, y0 = Solver(RK4(), Grid(n=6), adjoint, lanes=lanes), states()
    ode = NeuralODE(field(), solver, 2.0, KineticRegularizer(0.5))
    start = parameters_to_vector(ode.parameters()).detach()
    direction, h = torch.randn_like(start), 1e-5

    def loss(shift):
        vector_to_parameters(start + shift * direction, ode.parameters())
        torch.manual_seed(1)
        return ode(y0).square().sum() + ode.penalty

    gradient = torch.autograd.grad(loss(0.0), list(ode.parameters()))
    slope = parameters_to_vector(gradient) @ direction
    difference = (loss(h) - loss(-h)).detach() / (2 * h)
    assert_close(slope, difference, rtol=1e-7, atol=0)  # h^2, and round-off / h


class Ones(torch.nn.Module):
    """The state is the time."""

    def forward(self, t, y):
        return torch.ones_like(y)


def test_steer_ends_solves_at_uniform_times_in_training():
    ode = NeuralODE(Ones(), Solver(RK4(), Grid(n=1)), 2.0, STEER(0.5))
    ends = torch.cat([ode(torch.zeros(1, 1)) for _ in range(400)])
    assert ode.take_penalty() is None
    assert 1.5 < ends.min() < 1.51 < 2.49 < ends.max() < 2.5
    assert abs(ends.mean() - 2) < 4 * 0.5 / 3**0.5 / 400**0.5
    assert abs(ends.var() - 0.5**2 / 3) < 4 * 0.5**2 * (4 / 45) ** 0.5 / 400**0.5  # the fourth moment is width^4 / 5
    torch.manual_seed(3)
    first = ode(torch.zeros(1, 1))
    torch.manual_seed(3)
    assert torch.equal(ode(torch.zeros(1, 1)), first)
    assert_close(ode.eval()(torch.zeros(1, 1)), torch.full((1, 1), 2.0))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="width: expected a positive number, got 0"):
        STEER(0)
    with pytest.raises(ValueError, match=r"width: expected at most t1=1\.0"):
        NeuralODE(field(), regularizer=STEER(1.5))(states())
    with pytest.raises(ValueError, match="ts: STEER moves the end of a solve"):
        NeuralODE(field(), regularizer=STEER())(states(), torch.linspace(0, 1, 3))
    with pytest.raises(ValueError, match=r"jacobian: expected a number, 0 or more, got -1\.0"):
        KineticRegularizer(jacobian=-1.0)
