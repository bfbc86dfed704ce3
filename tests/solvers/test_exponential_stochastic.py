"""The exponential method for additive noise: exact laws of linear equations, orders, gradients, complex states."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

from sciml import Solver, solve
from sciml.solvers import ETDRK4, SRA1, Brownian, Diffusive, Discrete, Doubled, Grid, Semilinear, StochasticETDRK4
from tests.solvers.systems import DTYPE
from tests.solvers.test_stochastic import END
from tests.solvers.test_weak_order import COUNT, Well, order_of

RATES = torch.tensor([0.0, -1e-3, -1.0, -30.0, -1e4], dtype=DTYPE)


class Relaxing(Semilinear, Diffusive):
    """dy = L y dt + s dW."""

    noise_type = "additive"

    def linear(self, args: tuple[Tensor, ...]) -> Tensor:
        return args[0]

    def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return torch.zeros_like(y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * dw


class SplitWell(Well, Semilinear):
    """`Well` with -y as its linear part."""

    def linear(self, args: tuple[Tensor, ...]) -> Tensor:
        return -torch.ones(1, dtype=DTYPE)

    def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 2 * y - y**3


@pytest.mark.parametrize("n", [1, 2, 7])
def test_linear_equations_have_the_exact_law_at_any_step(n: int):
    """Mean and variance (e^(2 L t) - 1) / (2 L), within 4.5 standard errors of five rates, and no correlations."""
    args = RATES, torch.tensor(0.7, dtype=DTYPE)
    y0 = torch.ones(COUNT, 5, dtype=DTYPE)
    path = Brownian((COUNT, 5), 4)
    y = solve(Relaxing(), y0, 0.0, END, Solver(StochasticETDRK4(), Grid(n=n)), args=args, path=path).ys
    twice = torch.where(RATES == 0, -1.0, 2 * RATES)
    variance = 0.49 * torch.where(RATES == 0, END, torch.expm1(END * twice) / twice)
    off = (y.mean(0) - (END * RATES).exp()) / (variance / COUNT).sqrt()
    assert float(off.abs().max()) < 4.5
    assert float((y.var(0) / variance - 1).abs().max()) < 4.5 * math.sqrt(2 / COUNT)
    assert float((torch.corrcoef(y.T) - torch.eye(5, dtype=DTYPE)).abs().max()) < 4.5 / math.sqrt(COUNT)


def test_weak_order_is_two():
    """Of the second moment, with noise that changes in time, against SRA1 with eight times as many steps."""
    shape = (4 * COUNT, 1)
    path, y0 = Brownian(shape, 3, cells=256, areas=True, dtype=DTYPE), torch.full(shape, 0.3, dtype=DTYPE)
    end = lambda term, method, n: solve(term, y0, 0.0, END, Solver(method, Grid(n=n)), path=path).ys[:, 0]  # noqa: E731
    steps, right = (8, 16, 32), end(Well(), SRA1(), 256)
    slope, error = order_of(steps, [end(SplitWell(), StochasticETDRK4(), n) ** 2 - right**2 for n in steps])
    assert 4 * error < 0.3
    assert 1.8 <= slope <= 2.6, (slope, error)


def test_strong_order_is_one():
    path, y0 = Brownian((COUNT, 1), 3, cells=512, areas=True, dtype=DTYPE), torch.full((COUNT, 1), 0.3, dtype=DTYPE)
    end = lambda term, method, n: solve(term, y0, 0.0, END, Solver(method, Grid(n=n)), path=path).ys  # noqa: E731
    steps, right = (8, 16, 32, 64), end(Well(), SRA1(), 512)
    slope, error = order_of(steps, [(end(SplitWell(), StochasticETDRK4(), n) - right).abs()[:, 0] for n in steps])
    assert 4 * error < 0.1
    assert 0.9 <= slope <= 1.2, (slope, error)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("store", ["graph", "all", "every"])
def test_gradients_equal_differences(lanes, store):
    """Central differences with a step of 1e-5 miss by about 1e-10 in float64."""
    y0 = torch.linspace(-1, 1, 6, dtype=DTYPE).reshape(2, 3).requires_grad_()
    args = tuple(
        a.requires_grad_() for a in (torch.tensor([-0.5, -2.0, -9.0], dtype=DTYPE), torch.ones(3, dtype=DTYPE))
    )
    solver = Solver(StochasticETDRK4(), Grid(n=6), Discrete(store), lanes=lanes)

    def loss(y0: Tensor, *args: Tensor) -> Tensor:
        return solve(Relaxing(), y0, 0.0, 0.8, solver, args=args, path=Brownian(seed=1)).ys.square().sum()

    found = torch.autograd.grad(loss(y0, *args), (y0, *args))
    with torch.no_grad():
        for place, (given, gradient) in enumerate(zip((y0, *args), found, strict=True)):
            along = torch.linspace(1, 2, given.numel(), dtype=DTYPE).reshape(given.shape)
            ends = []
            for sign in (1, -1):
                moved = [y0, *args]
                moved[place] = given + 1e-5 * sign * along
                ends.append(loss(*moved))
            assert float((ends[0] - ends[1]) / 2e-5) == pytest.approx(float((gradient * along).sum()), rel=1e-8)


@pytest.mark.parametrize("rate", [0.0, -1e-310, 1e-17, -1e-17, 1e-9, -1e-4, -0.19, -0.21, 0.3])
def test_gradients_to_rates_are_right_however_small_they_are(rate: float):
    """Of the root of tanh(z) / z, beside differences in 400 digits; its slope is -z / 3 near 0."""
    z = torch.tensor([rate / 4], dtype=DTYPE, requires_grad=True)
    share = StochasticETDRK4().coefficients(z, torch.ones(1, dtype=DTYPE))[-1]
    (found,) = torch.autograd.grad(share.sum(), z)
    f = lambda x: mpmath.sqrt(mpmath.tanh(x) / x) if x else mpmath.mpf(1)  # noqa: E731
    with mpmath.workdps(400):
        x = mpmath.mpf(rate / 4)
        slope = mpmath.diff(f, x, h=mpmath.mpf(10) ** -50) if abs(rate) > 1e-20 else -x / 3
        assert float(share.detach()) == pytest.approx(float(f(x)), rel=1e-15)
        assert float(found) == pytest.approx(float(slope), rel=1e-12)


def test_steps_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="stepper: StochasticETDRK4 takes steps of one size only"):
        Doubled(StochasticETDRK4())


class Turning(Relaxing):
    """A complex amplitude, dz = (i w - r) z dt + s (dW1 + i dW2), from two real motions."""

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[1] * torch.view_as_complex(dw)[:, None]


@pytest.mark.parametrize("n", [1, 5])
def test_complex_states_take_real_motions(n: int):
    """E |z|^2 = e^(-2 r t) + s^2 (1 - e^(-2 r t)) / r: the motions are two of variance t."""
    rate, strength, count = 1.3, 0.6, COUNT
    args = torch.tensor([2j - rate], dtype=torch.complex128), torch.tensor(strength, dtype=DTYPE)
    y0 = torch.ones(count, 1, dtype=torch.complex128)
    path = Brownian((count, 2), 5)
    z = solve(Turning(), y0, 0.0, 1.0, Solver(StochasticETDRK4(), Grid(n=n)), args=args, path=path).ys
    decay = math.exp(-2 * rate)
    variance = strength**2 * (1 - decay) / rate
    off = z[:, 0] - math.exp(-rate) * complex(math.cos(2), math.sin(2))
    assert abs(complex(off.mean())) < 4 * math.sqrt(variance / count)
    assert float(off.abs().square().mean()) == pytest.approx(variance, rel=4 / math.sqrt(count))


def test_what_is_not_diffusive_or_has_other_noise_is_refused():
    class Decay(Semilinear):
        linear = Relaxing.linear
        remainder = Relaxing.remainder

    class Growing(Relaxing):
        noise_type = "diagonal"

    solver, y0 = Solver(StochasticETDRK4(), Grid(n=2)), torch.ones(2, 5, dtype=DTYPE)
    args = RATES, torch.tensor(0.7, dtype=DTYPE)
    with pytest.raises(ValueError, match="term: StochasticETDRK4 expects a Diffusive term too, got Decay"):
        solve(Decay(), y0, 0.0, 1.0, solver, args=args, path=Brownian())
    with pytest.raises(ValueError, match="term: StochasticETDRK4 expects additive noise, found diagonal"):
        solve(Growing(), y0, 0.0, 1.0, solver, args=args, path=Brownian())
    with pytest.raises(ValueError, match="term: StochasticETDRK4 expects a Semilinear term, got Well"):
        solve(Well(), y0, 0.0, 1.0, solver, path=Brownian())
    with pytest.raises(ValueError, match="term: ETDRK4 integrates no noise"):
        solve(Relaxing(), y0, 0.0, 1.0, Solver(ETDRK4(), Grid(n=2)), args=args, path=Brownian())
