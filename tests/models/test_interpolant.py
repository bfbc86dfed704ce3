"""Interpolants between noise and a normal distribution, whose velocity, score and flow are known."""

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from sciml import PID, Solver
from sciml.models import StochasticInterpolant
from sciml.models.draws import normals_like
from sciml.models.interpolant import SCHEDULES, times
from sciml.solvers import Tsit5

DTYPE = torch.float64
MEAN, DEVIATION = torch.tensor([1.0, -2.0], dtype=DTYPE), torch.tensor([0.5, 3.0], dtype=DTYPE)
TIGHT = Solver(Tsit5(), PID(rtol=1e-10, atol=1e-10))


class Exact(nn.Module):
    """The velocity for data of N(MEAN, DEVIATION^2), by the formula of normal distributions for conditional means."""

    def __init__(self, schedule: str):
        super().__init__()
        self.curves = SCHEDULES[schedule]
        self.shift, self.turn = nn.Parameter(torch.zeros(2, dtype=DTYPE)), nn.Parameter(torch.eye(2, dtype=DTYPE))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        a, b, a_rate, b_rate = (curve(t) for curve in self.curves)
        slope = (a * a_rate + b * b_rate * DEVIATION**2) / variance(self.curves, t)
        return b_rate * MEAN + slope * (x - b * MEAN) @ self.turn + self.shift


def variance(curves, t: Tensor) -> Tensor:
    return curves.alpha(t) ** 2 + (curves.beta(t) * DEVIATION) ** 2


def interpolant(schedule="linear", **options) -> StochasticInterpolant:
    return StochasticInterpolant(Exact(schedule), 2, schedule, solver=TIGHT, **options)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_lead_from_noise_to_data_at_their_rates(schedule: str):
    a, b, a_rate, b_rate = SCHEDULES[schedule]
    ends = torch.tensor([0.0, 1.0], dtype=DTYPE)
    torch.testing.assert_close(torch.stack([a(ends), b(ends)]), torch.eye(2, dtype=DTYPE))
    t = torch.linspace(0, 1, 7, dtype=DTYPE)
    for curve, rate in ((a, a_rate), (b, b_rate)):
        torch.testing.assert_close(rate(t), torch.func.vmap(torch.func.grad(curve))(t))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_flow_of_the_exact_velocity_makes_data_of_noise_with_its_density(schedule: str, lanes: str):
    flow, z = interpolant(schedule), draw(50, 2)
    flow.solver = Solver(Tsit5(), PID(rtol=1e-10, atol=1e-10), lanes=lanes)
    with torch.no_grad():
        x = flow.push(z)
        torch.testing.assert_close(x, MEAN + DEVIATION * z, rtol=0, atol=1e-8)  # of linear velocities, by hand
        exact = torch.distributions.Normal(MEAN, DEVIATION).log_prob(x).sum(1)
        torch.testing.assert_close(flow.log_prob(x), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_score_is_the_gradient_of_the_log_density_between(schedule: str):
    flow, x = interpolant(schedule), draw(20, 2)
    curves = SCHEDULES[schedule]
    for t in (torch.tensor(0.3, dtype=DTYPE), torch.linspace(0, 0.99, 20, dtype=DTYPE)[:, None]):
        exact = -(x - curves.beta(t) * MEAN) / variance(curves, t)
        torch.testing.assert_close(flow.score(t, x), exact)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_objective_is_least_for_the_exact_velocity(schedule: str):
    """Shifted by c it rises by c^2, and with all else that is linear in x its gradient vanishes in the mean."""
    flow = interpolant(schedule)
    field = flow.field
    parameters = [field.shift, field.turn]
    values, grads = [], []
    for k in range(8):
        x = MEAN + DEVIATION * draw(20_000, 2, seed=100 + k)
        value = flow.objective(x, torch.Generator().manual_seed(k))
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
        with torch.no_grad():
            field.shift += 0.5
            values.append(flow.objective(x, torch.Generator().manual_seed(k)) - value)
            field.shift -= 0.5
    for found, expected in ((torch.stack(grads), 0.0), (torch.stack(values), 0.25)):
        error = found.std(0) / 8**0.5
        assert ((found.mean(0) - expected).abs() < 5 * error).all()
        assert (error < 0.05).all()


@pytest.mark.parametrize("first", [0, 10**6, 2**40])
def test_times_by_number_are_evenly_spread(first: int):
    """Consecutive multiples of the golden ratio leave no gap of 3 times the mean one; each is a sample's own."""
    seeds = torch.arange(first, first + 200)
    t = times(draw(200, 2), seeds)
    assert t.shape == (200, 1)
    assert torch.equal(times(draw(50, 2), seeds[150:]), t[150:])
    if first < 2**31:
        assert torch.equal(times(draw(200, 2), seeds.int()), t)
        assert torch.equal(normals_like(t, seeds.int()), normals_like(t, seeds))
    ends = torch.cat([torch.zeros(1), t.flatten().sort().values, torch.ones(1)])
    assert 0 <= ends.diff().min() <= ends.diff().max() < 3 / 200
    lagged = torch.corrcoef(torch.stack([t[1:, 0], normals_like(t, seeds)[1:, 0], seeds[1:].to(t)]))
    assert (lagged - torch.eye(3)).abs().max() < 0.2  # of 199 independent pairs a deviation is .07


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_noise_leaves_the_law_of_samples_as_it_is(schedule: str, epsilon: float):
    count = 20_000
    flow = interpolant(schedule)
    with torch.no_grad():
        x = flow.sample(count, torch.Generator().manual_seed(0), diffusion=epsilon)
        again = flow.sample(count, torch.Generator().manual_seed(0), diffusion=epsilon)
    assert x.equal(again)
    z = (x - MEAN) / DEVIATION
    assert (z.mean(0).abs() < 4 / count**0.5).all()
    assert ((z.var(0) - 1).abs() < 4 * (2 / count) ** 0.5 + 5e-3).all()  # standard errors, and those of 64 steps
    assert abs(torch.corrcoef(z.t())[0, 1]) < 4 / count**0.5


def test_samples_have_the_noise_of_the_model_unless_another_is_given():
    flow = interpolant(diffusion=1.0)
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    assert flow.sample(3, generator()).equal(flow.sample(3, generator(), diffusion=1.0))
    assert int(flow.stats.accepted) == 64
    still = flow.sample(3, torch.Generator().manual_seed(0), diffusion=0.0)
    torch.testing.assert_close(still, MEAN + DEVIATION * draw(3, 2), rtol=0, atol=1e-8)


def test_optimal_coupling_has_the_least_distance_of_all_pairings():
    seen = {}

    class Spy(Exact):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            seen.update(t=t, x=x)
            return super().forward(t, x)

    x, pairs = 2 * draw(5, 2), {}
    for coupling in ("independent", "optimal"):
        flow = StochasticInterpolant(Spy("linear"), 2, coupling=coupling)
        flow.objective(x, torch.Generator().manual_seed(1))
        pairs[coupling] = (seen["x"] - seen["t"] * x) / (1 - seen["t"])
    noise = pairs["independent"]
    least = min(permutations(range(5)), key=lambda order: (noise[list(order)] - x).square().sum().item())
    torch.testing.assert_close(pairs["optimal"], noise[list(least)])
    assert not torch.allclose(pairs["optimal"], noise)


def test_order_of_points_does_not_matter():
    """Where times told it, a shift of one half of the points would be learned at times of one half only."""
    shifted = torch.cat([torch.full((500, 2), -3.0), torch.full((500, 2), 3.0)]).double()
    seen = []
    flow = StochasticInterpolant(nn.Module(), 2)
    flow.term.field.forward = lambda t, x: seen.append(t) or torch.zeros_like(x)
    for k in range(20):
        flow.objective(shifted, torch.Generator().manual_seed(k))
    means = torch.stack(seen).reshape(20, 2, 500).mean((0, 2))  # deviations of 12^-.5 / 100
    assert ((means - 0.5).abs() < 0.012).all()


def test_empty_batches_and_what_is_not_finite():
    for coupling in ("independent", "optimal"):
        flow = interpolant(coupling=coupling)
        assert flow.objective(draw(0, 2)) == 0
        assert flow.objective(torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0]], dtype=DTYPE)).isnan()


def test_times_of_a_batch_are_spread_evenly():
    times = []
    field = Exact("linear")
    flow = StochasticInterpolant(nn.Module(), 2)
    flow.term.field.forward = lambda t, x: times.append(t) or field(t, x)
    flow.objective(draw(100, 2), torch.Generator().manual_seed(0))
    assert sorted(times[0].mul(100).floor().flatten().tolist()) == list(range(100))


def test_mistakes_are_told():
    coupled = interpolant(coupling="optimal")
    for call, message in (
        (
            lambda: StochasticInterpolant(nn.Identity(), 2, "cubic"),
            "schedule: expected 'linear' or 'trigonometric', got 'cubic'",
        ),
        (lambda: interpolant(coupling="best"), "coupling: expected 'independent' or 'optimal', got 'best'"),
        (lambda: interpolant(diffusion=-1.0), "diffusion: expected a number from 0 on, got -1.0"),
        (lambda: interpolant(coupling="optimal", diffusion=1.0), "coupling: scores and diffusion expect 'independent'"),
        (lambda: coupled.sample(2, diffusion=1.0), "coupling: scores and diffusion expect 'independent'"),
        (lambda: coupled.score(torch.tensor(0.5), draw(2, 2)), "coupling: scores and diffusion expect 'independent'"),
        (lambda: interpolant().objective(draw(2, 3)), r"x: expected points \(b, 2\), got \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
