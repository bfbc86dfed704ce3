"""Steppers of strong order 3/2 and adaptive steps of stochastic equations: orders, laws, gradients, refusals."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.errors import SolveError, Status
from sciml.solvers import (
    PID,
    SOSRI2,
    SRA1,
    SRIW1,
    Brownian,
    Diffusive,
    EulerMaruyama,
    Grid,
    MaxStiffness,
    ShARK,
    Stats,
    Stiffness,
    StratonovichHeun,
)
from sciml.solvers.arithmetic import ARRAYS, NUMBERS, TENSORS
from sciml.solvers.stochastic import Stochastic
from sciml.solvers.stochastic_runge_kutta import SOSRI2_ROWS
from tests.solvers.systems import DTYPE
from tests.solvers.test_stochastic import ARGS, END, KINDS, SAME, STEPS, Arc, Linear, Problem, fitted, name

DIAGONAL = [SRIW1(), SOSRI2()]
EMBEDDED = [*DIAGONAL, SRA1(), ShARK()]
JUDGED = [*EMBEDDED, StratonovichHeun()]
PATHS = 800


class Pendulum(Diffusive):
    """dq = p dt, dp = -sin q dt + cos t dW: additive noise that depends on time, in one of two entries."""

    noise_type = "additive"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        q, p = y.unbind(-1)
        return torch.stack([p, -torch.sin(q)], -1)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([0 * dw, torch.cos(t) * dw], -1)


def noise_of(stepper: Stochastic) -> Any:
    return stepper.noise_types[0]


def test_sosri2_meets_the_conditions_of_strong_order_three_halves():
    """Roessler (2010), theorem 6.1, with the coefficients' 15 digits."""
    rows = SOSRI2_ROWS
    square = lambda given: np.array([[0.0] * 4, *(np.pad(row, (0, 4 - len(row))) for row in given)])  # noqa: E731
    a0, b0, a1, b1 = map(square, rows[:4])
    alpha, *betas = map(np.array, rows[4:])
    e, noise = np.ones(4), b1.sum(1)
    assert np.allclose(
        [alpha @ e, alpha @ a0 @ e, alpha @ b0 @ e, alpha @ b0.sum(1) ** 2], [1, 0.5, 1, 1.5], atol=1e-12
    )
    for beta, right in zip(betas, ([1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, -1, -1, 0], [0, 0, 0, 2, 1]), strict=True):
        found = [beta @ e, beta @ noise, beta @ a1 @ e, beta @ noise**2, beta @ b1 @ noise]
        assert np.allclose(found, right, atol=1e-12)
    assert abs((0.5 * betas[0] + betas[2] / 3) @ a1 @ b0.sum(1)) < 1e-6  # met less exactly in the paper's table


@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
@pytest.mark.parametrize("stepper", DIAGONAL, ids=name)
def test_strong_order_is_three_halves_and_weak_order_two(stepper: Stochastic, noise: str):
    count, steps = 4 * PATHS, np.array([8, 16, 32, 64])
    path = Brownian((count, 1 if noise == "scalar" else 2), 3, cells=64, areas=True, dtype=DTYPE)
    y0, term, w = torch.ones(count, 2, dtype=DTYPE), Linear(noise, "ito"), path(0.0, 1.0).w * math.sqrt(END)
    strengths = ARGS[1].diagonal().diag() if noise == "diagonal" else ARGS[1][:, :1]
    right = ((ARGS[0] - 0.5 * strengths.square().sum(1)) * END + w @ strengths.T).exp()
    missed = [solve(term, y0, 0.0, END, Solver(stepper, Grid(n=n)), args=ARGS, path=path).ys - right for n in steps]
    errors = torch.stack([miss.norm(dim=1) for miss in missed]).mean(1)
    assert 1.3 <= -np.polyfit(np.log(steps), errors.log(), 1)[0] <= 2.0
    means = torch.stack([miss.mean(0).abs().max() for miss in missed])
    assert 1.7 <= -np.polyfit(np.log(steps), means.log(), 1)[0] <= 2.5


@pytest.mark.parametrize("stepper", DIAGONAL, ids=name)
def test_strong_order_is_three_halves_where_the_diffusion_is_no_line(stepper: Stochastic):
    path = Brownian((PATHS, 2), 3, cells=128, areas=True, dtype=DTYPE)
    right = torch.arctan(math.tan(0.2) + math.sin(END) + path(0.0, 1.0).w * math.sqrt(END))
    y0 = torch.full((PATHS, 2), 0.2, dtype=DTYPE)
    ends = [solve(Arc("ito"), y0, 0.0, END, Solver(stepper, Grid(n=n)), path=path).ys for n in STEPS]
    slope, error = fitted(torch.stack([(end - right).norm(dim=1) for end in ends]))
    assert 4 * error < 0.2
    assert 1.3 <= slope <= 2.0, (slope, error)


@pytest.mark.parametrize("stepper", [SRA1(), ShARK()], ids=name)
def test_strong_order_of_additive_noise_that_depends_on_time(stepper: Stochastic):
    """Against the other method on fine steps, which agrees with Heun's, of order 1, as far as that goes."""
    path = Brownian((PATHS, 1), 3, cells=2048, areas=True, dtype=DTYPE)
    y0 = torch.tensor([1.0, 0.0], dtype=DTYPE).expand(PATHS, 2)
    end = lambda method, n: solve(Pendulum(), y0, 0.0, END, Solver(method, Grid(n=n)), path=path).ys  # noqa: E731
    other = {SRA1: ShARK(), ShARK: SRA1()}[type(stepper)]
    right = end(other, 2048)
    coarse, fine = (float((end(StratonovichHeun(), n) - right).norm(dim=1).mean()) for n in (512, 2048))
    assert 3.5 * fine < coarse < 2e-3
    slope, error = fitted(torch.stack([(end(stepper, n) - right).norm(dim=1) for n in STEPS]))
    assert 4 * error < 0.2
    assert 1.3 <= slope <= 2.1, (slope, error)


def test_shark_integrates_a_changing_diffusion_without_drift_exactly_where_it_is_linear():
    """int_0^1 (1 + t) dW = 2 W(1) - int_0^1 W dt, with the areas of a single step."""

    class Ramp(Diffusive):
        noise_type = "additive"

        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return 0 * y

        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return (1 + t) * dw

    path = Brownian((50,), 1, cells=1, areas=True, dtype=DTYPE)
    whole = path(0.0, 1.0)
    for stepper in (SRA1(), ShARK()):
        y = solve(Ramp(), torch.zeros(50, dtype=DTYPE), 0.0, 1.0, Solver(stepper, Grid(n=1)), path=path).ys
        assert torch.allclose(y, 2 * whole.w - (whole.w / 2 + whole.h), rtol=1e-13, atol=1e-14)


class Judged(Problem):
    """The same solve with adaptive steps; the mesh of the first one is kept."""

    def __init__(self, stepper: Stochastic, kind: str):
        super().__init__(stepper, kind)
        self.term.noise_type, self.mesh = noise_of(stepper), None
        if self.term.noise_type == "additive":
            self.term.diffuse = lambda t, y, dw, args: (self.term.scale + t).cos() * args[1] * dw

    def loss(self, adjoint: Discrete, inputs: list[Tensor]) -> Tensor:
        y0, t0, t1, *args = inputs[:5]
        solver = Solver(self.stepper, PID(rtol=3e-3, atol=3e-3, dt0=0.5), adjoint, lanes=self.kind)
        for p, value in zip(self.term.parameters(), inputs[5:], strict=True):
            p.data = value.detach()
        options = {"args": tuple(args), "path": Brownian(seed=7), "mesh": self.mesh}
        solution = solve(self.term, y0, t0, t1, solver, folds={"sizes": Stats()}, **options)
        if self.mesh is None:
            self.mesh = solution.mesh
            assert int(solution.stats.rejected.sum()) > 0
            assert self.kind == "joint" or len(solution.stats.accepted.unique()) > 1
        weights = torch.arange(1, 7, dtype=DTYPE).reshape(3, 2)
        return (solution.ys * weights).sin().sum() + solution.folds["sizes"].error.square().sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", JUDGED, ids=name)
def test_gradients_on_adaptive_meshes_are_those_of_differences(stepper: Stochastic, kind: str):
    """Also of the error estimates; a mesh that was found and the same mesh given have the same gradient."""
    problem = Judged(stepper, kind)
    grads = problem.grads(Discrete())
    for adjoint in (Discrete(), Discrete("all"), Discrete("every", 3)):
        for found, right in zip(problem.grads(adjoint), grads, strict=True):
            assert float((found - right).abs().max()) <= SAME * float(right.abs().max())
    generator = torch.Generator().manual_seed(2)
    for i, (x, grad) in enumerate(zip(problem.inputs, grads, strict=True)):
        way = torch.randn(x.shape, dtype=DTYPE, generator=generator)
        with torch.no_grad():
            ends = [
                problem.loss(Discrete(), [*problem.inputs[:i], x + sign * 1e-6 * way, *problem.inputs[i + 1 :]])
                for sign in (1, -1)
            ]
        found, right = float((grad * way).sum()), float(ends[0] - ends[1]) / 2e-6
        # central differences in float64: round-off 1e-10 times the sum, third derivatives times 1e-12
        assert abs(found - right) < 1e-6 * max(1, abs(right)), (i, found, right)


@pytest.mark.parametrize("kind", KINDS)
def test_error_follows_the_tolerance(kind: str):
    path = Brownian((400, 2), 3, areas=True, cells=2**20, dtype=DTYPE)
    y0, errors, steps = torch.full((400, 2), 0.2, dtype=DTYPE), [], []
    right = torch.arctan(math.tan(0.2) + math.sin(END) + path(0.0, 1.0).w * math.sqrt(END))
    for tolerance in (1e-1, 1e-2, 1e-3):
        solution = solve(Arc("ito"), y0, 0.0, END, Solver(SRIW1(), PID(rtol=0, atol=tolerance), lanes=kind), path=path)
        errors.append(float((solution.ys - right).abs().mean()))
        steps.append(float(solution.stats.accepted.double().mean()))
    # errors of steps of size h are tolerated up to order 3/2, and add up at random: to order 1, and less by order 1/2
    assert all(error < 3 * tolerance for error, tolerance in zip(errors, (1e-1, 1e-2, 1e-3), strict=True))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert steps[0] < steps[1] < steps[2]


class Driven(Diffusive):
    """y' = y dW beside W itself, of one number for each sample: what adaptive steps made of the path can be seen."""

    noise_type = "scalar"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0 * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([y[:, 0], torch.ones_like(y[:, 1])], -1) * dw


@pytest.mark.parametrize("tolerance", [3e-2, 3e-3])
@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_rejections_do_not_bias_the_noise(count: int, tolerance: float):
    """Of the paths' ends the variance is 1 and y = exp(W - 1/2); noise drawn anew after a rejection has .4."""
    y0 = torch.stack([torch.ones(count), torch.zeros(count)], -1).to(DTYPE)
    controller = PID(rtol=tolerance, atol=tolerance, dt0=1.0, safety=1.0, icoeff=1.2)  # it aims high
    with torch.no_grad():
        solution = solve(
            Driven(), y0, 0.0, 1.0, Solver(SRIW1(), controller, lanes="each"), path=Brownian((count, 1), 4)
        )
    rejected, accepted = (int(x.sum()) for x in (solution.stats.rejected, solution.stats.accepted))
    assert rejected >= 0.2 * (accepted + rejected)
    y, w = solution.ys.unbind(-1)
    assert abs(float(w.var()) - 1) < 3 * math.sqrt(2 / count)
    assert abs(float(w.mean())) < 3 / math.sqrt(count)
    assert float((y - (w - 0.5).exp()).abs().mean()) < 5 * tolerance
    path = Brownian((count, 1), 4, cells=2**20, areas=True, dtype=DTYPE)
    assert float((path(0.0, 1.0).w[:, 0] - w).abs().max()) < 1e-12  # it is the one path


def test_sample_takes_the_same_adaptive_steps_bit_by_bit_whatever_its_batch():
    y0 = torch.linspace(0.5, 2, 40).reshape(20, 2)
    solver, args = Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), lanes="each"), tuple(x.float() for x in ARGS)
    saves = [0.3, 0.7, END]  # at which steps end that are no nodes of the tree
    whole = solve(Linear("diagonal", "ito"), y0, 0.0, END, solver, args=args, path=Brownian(seed=5), save_at=saves)
    for some in ([7], [3, 19], list(range(19, 2, -1))):
        path = Brownian(seed=5, samples=some)
        found = solve(Linear("diagonal", "ito"), y0[some], 0.0, END, solver, args=args, path=path, save_at=saves)
        assert torch.equal(found.ys, whole.ys[some])
        assert torch.equal(found.stats.accepted, whole.stats.accepted[some])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_end_at_save_times(kind: str):
    term, y0 = Linear("diagonal", "ito"), torch.ones(3, 2, dtype=DTYPE)
    options = {"args": ARGS, "path": Brownian((3, 2), 5, cells=2**20, areas=True, dtype=DTYPE)}
    solver, ts = Solver(SRIW1(), PID(rtol=1e-3, atol=1e-3), lanes=kind), torch.tensor([1.0, 0.1, 0.0, 0.55])
    solution = solve(term, y0, 0.0, 1.0, solver, save_at=ts, **options)
    states = solution.ys.movedim(int(kind == "each"), 0)
    w = torch.stack([options["path"](0.0, float(t)).w for t in ts])
    strengths = ARGS[1].diagonal()
    right = ((ARGS[0] - 0.5 * strengths**2) * ts[:, None, None] + strengths * w).exp()
    assert float((states - right).abs().max()) < 0.02
    assert torch.equal(states[2], y0)
    nodes = solution.mesh.theta
    again = solve(term, y0, 0.0, 1.0, solver, mesh=solution.mesh, save_at=ts, **options)
    assert torch.equal(again.ys, solution.ys)
    assert all(bool(((nodes - t).abs() < 1e-7).any(0).all()) for t in ts)
    with pytest.raises(ValueError, match="save_at: SRIW1 has no dense output, so expected times at which its steps en"):
        solution([0.333])


class Noise(Linear):
    """dy = dW."""

    def __init__(self):
        super().__init__("additive", "ito")

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0 * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return dw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saves", [[1 / 32, 1.0], [0.03, 0.5, 1.0], [2.0**-7, 0.7, 0.9]])
def test_stops_within_cells_are_places_of_the_same_path(kind: str, saves: list[float]):
    path = Brownian((4, 2), 3, cells=8, areas=True, dtype=DTYPE)
    solver = Solver(SRA1(), PID(rtol=1e-3, atol=1e-3), lanes=kind)
    solution = solve(Noise(), torch.zeros(4, 2, dtype=DTYPE), 0.0, 1.0, solver, path=path, save_at=saves)
    right = torch.stack([path(0.0, t).w for t in saves], int(kind == "each"))
    assert float((solution.ys - right).abs().max()) < 1e-13  # sums of a few numbers of size 1 in float64


@pytest.mark.parametrize("t1", [0.1, 0.3, 1.1])
def test_save_times_in_single_precision_may_round_over_the_end(t1: float):
    solver, ts = Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2)), torch.linspace(0, t1, 5)
    options = {"args": ARGS, "path": Brownian(seed=1)}
    solution = solve(Linear("diagonal", "ito"), torch.ones(3, 2, dtype=DTYPE), 0.0, t1, solver, save_at=ts, **options)
    assert torch.equal(solution(ts[-1:])[0], solution.ys[-1])
    with pytest.raises(ValueError, match=r"got 1\.5 outside the span"):
        solve(Linear("diagonal", "ito"), torch.ones(3, 2, dtype=DTYPE), 0.0, t1, solver, save_at=[t1, 1.5], **options)


def test_times_that_steps_follow_carry_no_gradient():
    t1, y0 = torch.tensor(1.0, dtype=DTYPE, requires_grad=True), torch.ones(3, 2, dtype=DTYPE)
    options = {"args": ARGS, "path": Brownian()}
    with pytest.raises(ValueError, match="its save times move with t0 and t1; expected t0 and t1 without gradients"):
        solve(Linear("diagonal", "ito"), y0, 0.0, t1, Solver(SRIW1(), PID()), save_at=[0.5, 1.0], **options)
    with pytest.raises(ValueError, match="controller: Brownian motion has no derivative in time"):
        solve(Linear("diagonal", "ito"), y0, 0.0, t1, Solver(SRIW1(), PID(jump_ts=[0.5])), **options)


def test_scalar_noise_has_the_axes_of_the_state():
    y0 = torch.ones(3, 3, dtype=DTYPE)
    with pytest.raises(ValueError, match=r"scalar noise is one number for each sample, expected Brownian\(\(3, 1\)\)"):
        solve(Linear("scalar", "ito"), y0, 0.0, 1.0, Solver(SRIW1(), PID()), args=ARGS, path=Brownian((3,)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["loop", "chunks"])
def test_compiled_adaptive_march_saves_the_same(kind: str, mode: Any):
    y0, options = torch.ones(3, 2, dtype=DTYPE), {"args": ARGS, "save_at": [0.3, 1.0]}
    right, found = (
        solve(
            Linear("diagonal", "ito"),
            y0,
            0.0,
            1.0,
            Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2), lanes=kind, compile=compiled),
            path=Brownian(cells=2**8),
            **options,
        ).ys
        for compiled in (None, mode)
    )
    assert torch.allclose(found, right, rtol=1e-11, atol=0)


@pytest.mark.parametrize("lengths", [0.5, 0.11])
def test_no_rejected_end_is_passed_over(lengths: float):
    """Accepted and rejected at random: every end that was tried is the end of a step."""
    path, draw = Brownian(cells=2**20), np.random.default_rng(0)
    for _ in range(10):
        theta, size, pending, stop = 0.0, lengths, [], 0.3
        for _ in range(20_000):
            end = min(path.end(theta, size, NUMBERS), stop if theta < stop else 1.0)
            assert theta < end <= min(pending, default=1.0)
            if draw.random() < 0.3 and end - theta > 2**-19:
                pending.append(end)
                size = (end - theta) * draw.uniform(0.2, 0.9)
            else:
                pending = [x for x in pending if x > end]
                theta, size = end, min(1.0, size * draw.uniform(0.8, 3))
            if theta == 1:
                break
        assert theta == 1
        assert not pending


def test_arithmetics_agree_on_where_steps_end():
    path, draw = Brownian(cells=2**20), np.random.default_rng(1)
    thetas = np.concatenate([draw.integers(0, 2**20, 200) / 2**20, draw.random(50), [0.0, 0.5, 0.75]])
    sizes = np.concatenate([2.0 ** draw.uniform(-22, 3, 240), 2.0 ** -draw.integers(0, 9, 13).astype(float)])
    right = [path.end(theta, size, NUMBERS) for theta, size in zip(thetas.tolist(), sizes.tolist(), strict=True)]
    assert path.end(thetas, sizes, ARRAYS).tolist() == right
    assert path.end(torch.from_numpy(thetas), torch.from_numpy(sizes), TENSORS).tolist() == right


@pytest.mark.parametrize("kind", KINDS)
def test_finest_step_is_where_it_ends(kind: str):
    class Steep(Linear):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return torch.where(t > 0.5, torch.sin(1e9 * y) * 1e6, 0 * y)

    solver, y0 = Solver(SRIW1(), PID(rtol=1e-3, atol=1e-3), lanes=kind), torch.ones(2, 2, dtype=DTYPE)
    options = {"args": ARGS, "path": Brownian(cells=2**10)}
    with pytest.raises(SolveError, match=r"step size fell below 0\.0009[0-9]+, a cell of the path, of the span"):
        solve(Steep("diagonal", "ito"), y0, 0.0, 1.0, solver, **options)
    end = solve(Steep("diagonal", "ito"), y0, 0.0, 1.0, solver, throw=False, **options)
    assert bool((end.status == Status.DT_UNDERFLOW).all())


def test_evaluations_are_counted():
    calls = itertools.count()

    class Counted(Linear):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            next(calls)
            return super().drift(t, y, args)

    solver = Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2))
    y0 = torch.ones(3, 2, dtype=DTYPE)
    solution = solve(Counted("diagonal", "ito"), y0, 0.0, 1.0, solver, args=ARGS, path=Brownian())
    assert int(solution.stats.nfe) == next(calls)


def test_pairs_that_cannot_work_are_refused():
    y0, term = torch.ones(3, 2, dtype=DTYPE), Linear("diagonal", "ito")
    for match, solver, path in (
        ("controller: EulerMaruyama has no error estimate", lambda: Solver(EulerMaruyama(), PID()), Brownian()),
        ("cells: expected a power of two under PID, got 100", lambda: Solver(SRIW1(), PID()), Brownian(cells=100)),
        ("path: by='step' cannot be refined", lambda: Solver(SRIW1(), PID()), Brownian(cells=64, by="step")),
        ("term: SRA1 expects additive noise, found diagonal", lambda: Solver(SRA1(), PID()), Brownian()),
        (r"path: SRIW1 expects one, as Brownian\(seed=0\)", lambda: Solver(SRIW1(), PID()), None),
    ):
        with pytest.raises(ValueError, match=match):
            solve(term, y0, 0.0, 1.0, solver(), args=ARGS, path=path)


@pytest.mark.parametrize("kind", KINDS)
def test_stiffness_of_a_linear_drift_is_its_rate(kind: str):
    """Whatever the noise; its gradient is that of the rate, and other methods are refused."""
    rate = torch.tensor(3.0, dtype=DTYPE, requires_grad=True)

    class Decay(Diffusive):
        noise_type = "diagonal"

        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return -args[0] * y

        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return 0.3 * y * dw

    y0, folds = torch.ones(5, 2, dtype=DTYPE), {"most": MaxStiffness(), "all": Stiffness()}
    solver = Solver(SOSRI2(), PID(1e-2, 1e-2), lanes=kind)
    found = solve(Decay(), y0, 0.0, 2.0, solver, args=(rate,), path=Brownian(seed=1), folds=folds).folds
    assert 2 < SOSRI2.stability < 20
    assert torch.allclose(found["most"], rate / SOSRI2.stability, rtol=1e-8)
    assert torch.allclose(found["all"], 2 * rate / SOSRI2.stability, rtol=1e-8)
    (grad,) = torch.autograd.grad(found["all"].mean(), rate)
    assert abs(float(grad) - 2 / SOSRI2.stability) < 1e-7
    with pytest.raises(ValueError, match="those of SRIW1 are not; expected Tsit5"):
        solve(Decay(), y0, 0.0, 2.0, Solver(SRIW1(), PID(1e-2, 1e-2)), args=(rate,), path=Brownian(), folds=folds)
