import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sciml import PID, Discrete, Grid, Solver, Tsit5, solve
from sciml.calculus import probes
from sciml.models import CNF, MLP, TimeDependent
from sciml.solvers import RK4

TIGHT = Solver(Tsit5(), PID(rtol=1e-9, atol=1e-9))
DTYPE = torch.float64


def field(dim: int = 2, width: int = 8) -> nn.Module:
    """A time-dependent net whose flow bends the plane well off a normal distribution."""
    torch.manual_seed(1)
    net = TimeDependent(MLP(dim + 1, dim, width=width, depth=2, activation="tanh")).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    return net


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """dx/dt = A x, whose flow is a matrix exponential."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.3, 0.8], [-0.5, -0.7]], dtype=DTYPE))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x @ self.matrix.t()


def brute_force(flow: CNF, x: Tensor) -> Tensor:
    """The logarithm of the density with autograd's derivatives, on the flow's steps."""

    def augmented(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y[:, :-1] if y.requires_grad else y[:, :-1].detach().requires_grad_()
            f = flow.field(t, x)
            rows = [torch.autograd.grad(f[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(flow.dim)]
        return torch.cat([f, sum(rows)[:, None]], 1)

    y = solve(augmented, torch.cat([x, torch.zeros(len(x), 1, dtype=DTYPE)], 1), flow.t1, 0.0, flow.solver).ys
    normal = torch.distributions.MultivariateNormal(torch.zeros(flow.dim, dtype=DTYPE), torch.eye(flow.dim).double())
    return normal.log_prob(y[:, :-1]) + y[:, -1]


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_density_and_its_gradients_are_those_with_autograds_divergence(dim):
    flow, x = CNF(field(dim), dim, Solver(RK4(), Grid(n=6)), t1=1.5), points(5, dim).requires_grad_()
    found, expected = flow.log_prob(x), brute_force(flow, x)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [x, *(p for p in flow.parameters())]
    for a, b in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (found, expected)), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_density_of_a_linear_flow_is_the_normal_one_of_its_covariance():
    flow, x = CNF(Linear(), 2, TIGHT, t1=2.0), points(7, 2)
    spread = torch.matrix_exp(2.0 * flow.field.matrix.detach())
    exact = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=DTYPE), spread @ spread.t())
    with torch.no_grad():
        assert_close(flow(x), exact.log_prob(x), rtol=1e-7, atol=1e-7)  # 100 tolerances of the solve


def test_density_integrates_to_one():
    flow = CNF(field(), 2, Solver(Tsit5(), PID(rtol=1e-6, atol=1e-6)))
    axis = torch.linspace(-9, 9, 181, dtype=DTYPE)  # the trapezoid rule is exact to round-off for what is so smooth
    with torch.no_grad():
        density = flow(torch.cartesian_prod(axis, axis)).exp()
    assert density.reshape(181, 181)[[0, -1]].max() < 1e-7  # nothing is outside
    assert abs(density.sum().item() * (axis[1] - axis[0]).item() ** 2 - 1) < 1e-5
    assert (density.max() - 1 / (2 * math.pi)).abs() > 0.02  # not the normal one


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_pull_undoes_push_and_knows_how_volumes_change(lanes):
    flow, z = CNF(field(), 2, Solver(Tsit5(), PID(rtol=1e-9, atol=1e-9), lanes=lanes)), points(6, 2)
    with torch.no_grad():
        x = flow.push(z)
        back, change = flow.pull(x)
    assert_close(back, z, rtol=1e-6, atol=1e-6)  # there and back at tolerances of 1e-9
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: flow.push(z[None])[0], row) for row in z])
    assert_close(change, -jacobian.det().log(), rtol=1e-6, atol=1e-6)


def test_samples_have_the_density():
    flow = CNF(field(), 2)
    with torch.no_grad():
        x = flow.double().sample(20_000, torch.Generator().manual_seed(0))
        left = flow(torch.cartesian_prod(*[torch.linspace(-9, 9, 181, dtype=DTYPE)] * 2)).exp().reshape(181, 181)
    share = left[:90].sum() + left[90].sum() / 2  # of x < 0, on a grid of cells .1 wide
    assert abs((x[:, 0] < 0).double().mean() - 0.01 * share) < 0.015  # 4 standard errors of a share of 20,000
    again = flow.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_gradients_pass_gradcheck():
    flow, x = CNF(field(width=3), 2, Solver(RK4(), Grid(n=2))), points(2, 2).requires_grad_()
    parameters = list(flow.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: flow.log_prob(x), (x, *parameters))


def test_adjoints_agree():
    x, gradients = points(4, 2), []
    for adjoint in (Discrete("graph"), Discrete("all")):
        flow = CNF(field(), 2, Solver(RK4(), Grid(n=4), adjoint), divergence="hutchinson")
        flow.log_prob(x, torch.Generator().manual_seed(0)).sum().backward()
        gradients.append([p.grad for p in flow.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_estimate_is_unbiased_and_fixed_by_its_generator(law):
    flow = CNF(field(), 2, Solver(RK4(), Grid(n=4)), divergence="hutchinson", law=law, samples=3)
    x = points(3, 2)
    with torch.no_grad():
        first, again = (flow.log_prob(x, torch.Generator().manual_seed(0)) for _ in range(2))
        assert torch.equal(first, again)
        many = flow.log_prob(x.repeat(4000, 1), torch.Generator().manual_seed(1)).reshape(4000, 3)
        error = (many.mean(0) - flow(x)).abs()
    assert (error < 4 * many.std(0) / 4000**0.5).all()
    assert (many.std(0) > 1e-3).all()


def test_noise_is_the_same_all_along_a_solve():
    flow, x = CNF(Linear(), 2, TIGHT, divergence="hutchinson"), points(3, 2)
    with torch.no_grad():
        _, change = flow.pull(x, torch.Generator().manual_seed(0))
    v = probes((1, 3, 2), x, generator=torch.Generator().manual_seed(0))[0]
    assert_close(change, -(v * (v @ flow.field.matrix.t())).sum(1), rtol=1e-8, atol=1e-8)


def test_work_of_the_last_solve_is_kept():
    flow = CNF(field(), 2, Solver(RK4(), Grid(n=3)))
    assert flow.stats is None
    flow(points(2, 2))
    assert (flow.stats.accepted.item(), flow.stats.rejected.item()) == (3, 0)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_export_on_a_grid_is_the_density_for_any_batch(lanes):
    flow = CNF(field(), 2, Solver(RK4(), Grid(n=4), lanes=lanes)).eval()
    program = torch.export.export(flow, (points(2, 2),), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    x = points(7, 2)
    with torch.no_grad():
        assert_close(program(x), flow(x), rtol=1e-12, atol=1e-12)  # round-off


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CNF(field(), 0), "dim: expected a whole number"),
        (lambda: CNF(field(), 2, samples=0), "samples: expected a whole number"),
        (lambda: CNF(field(), 2, divergence="none"), "divergence: expected 'exact' or 'hutchinson', got 'none'"),
        (lambda: CNF(field(), 2)(points(3)), r"x: expected points \(b, 2\), got \(3,\)"),
        (lambda: CNF(field(), 2).push(points(3, 4)), r"z: expected points \(b, 2\), got \(3, 4\)"),
        (lambda: CNF(field(), 2, divergence="hutchinson").log_prob(points(3, 2)), "generator: .*expects one"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
