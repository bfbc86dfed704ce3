"""Steppers of stochastic equations against exact solutions on the same paths; their gradients; what they refuse."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sciml import Discrete, Solver, solve
from sciml.errors import Status
from sciml.solvers import (
    PID,
    Brownian,
    Diffusive,
    EulerHeun,
    EulerMaruyama,
    Grid,
    Milstein,
    Quadrature,
    StratonovichHeun,
    StratonovichMidpoint,
    StratonovichMilstein,
    StratonovichReversibleHeun,
    Tsit5,
    brownian,
)
from sciml.solvers.march import March
from sciml.solvers.state import Const
from sciml.solvers.stochastic import Stochastic
from tests.solvers.systems import DTYPE

STEPPERS = [EulerMaruyama(), Milstein(), EulerHeun(), StratonovichHeun()]
STEPPERS += [StratonovichMidpoint(), StratonovichMilstein(), StratonovichReversibleHeun()]
NOISES = ["diagonal", "additive", "scalar", "general"]
PAIRS = [(s, noise) for s, noise in itertools.product(STEPPERS, NOISES) if noise in s.noise_types]
KINDS = ["joint", "each"]
PATHS, END, FINEST = 800, 1.5, 1024
STEPS = (16, 32, 64, 128)
GRID = Solver(EulerMaruyama(), Grid(n=4))
# Replay runs the same float64 operations as backpropagation and adds the steps' shares in another order.
SAME = 1e-9
# Central differences of 1e-6 in float64: truncation 1e-12 times third derivatives, round-off 1e-10 times the sum.
DIFFERENCES = 1e-6


def name(x: Any) -> str:
    return x if isinstance(x, str) else type(x).__name__


class Linear(Diffusive):
    """An equation with a known solution for each kind of noise; y is (b, 2), args = (rates (2), strengths (2, m)).

    dy_i = r_i y_i dt + y_i sum_j s_ij dW_j; of additive noise dy_i = r_i y_i dt + sum_j s_ij dW_j.
    """

    def __init__(self, noise_type: Any, calculus: Any):
        self.noise_type, self.calculus = noise_type, calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * y

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        if self.noise_type == "diagonal":
            return args[1].diagonal() * y * dw
        if self.noise_type == "scalar":
            return args[1][:, 0] * y * dw
        return dw @ args[1].T * (1 if self.noise_type == "additive" else y)

    def exact(self, y: Tensor, path: Brownian, args: tuple[Tensor, ...]) -> Tensor:
        """The solution at END; an integral over the path as a sum over its cells, midpoint by midpoint."""
        rates, strengths = args
        if self.noise_type == "additive":
            tensors, span, total = path.tensors(), torch.tensor(END, dtype=DTYPE), (rates * END).exp() * y
            for k in range(FINEST):
                rise = path.increment(tensors, k / FINEST, (k + 1) / FINEST, span)
                total = total + (rates * END * (1 - (k + 0.5) / FINEST)).exp() * (rise @ strengths.T)
            return total
        w = path(0.0, 1.0) * math.sqrt(END)
        if self.noise_type == "diagonal":
            strengths = strengths.diagonal().diag()
        elif self.noise_type == "scalar":
            strengths = strengths[:, :1]
        ito = 0.5 * strengths.square().sum(1) if self.calculus == "ito" else 0
        return y * ((rates - ito) * END + w @ strengths.T).exp()


ARGS = (torch.tensor([0.4, -0.6], dtype=DTYPE), torch.tensor([[0.5, 0.2], [-0.3, 0.4]], dtype=DTYPE))


def noise_of(kind: str, count: int, cells: int = FINEST, **options: Any) -> Brownian:
    return Brownian((count, 1 if kind == "scalar" else 2), 3, cells=cells, dtype=DTYPE, **options)


def fitted(errors: Tensor) -> tuple[float, float]:
    """The slope of log mean errors (n, paths) over log step sizes, and its standard error."""
    x = -np.log(STEPS)
    weights = torch.tensor((x - x.mean()) / ((x - x.mean()) ** 2).sum(), dtype=DTYPE)
    means = errors.mean(1)
    influence = (weights[:, None] * errors / means[:, None]).sum(0)  # of each path, by the delta method
    return float(weights @ means.log()), float(influence.std() / math.sqrt(errors.shape[1]))


@pytest.mark.parametrize(("stepper", "noise"), PAIRS, ids=name)
def test_strong_order(stepper: Stochastic, noise: str):
    """All noise here commutes, so that methods of order 1 reach it also where it is general."""
    term, path = Linear(noise, stepper.calculus), noise_of(noise, PATHS)
    y0 = torch.ones(PATHS, 2, dtype=DTYPE)
    right = term.exact(y0, path, ARGS)
    ends = [solve(term, y0, 0.0, END, Solver(stepper, Grid(n=n)), args=ARGS, path=path).ys for n in STEPS]
    slope, error = fitted(torch.stack([(end - right).norm(dim=1) for end in ends]))
    order = 1.0 if noise == "additive" else stepper.strong
    if isinstance(stepper, StratonovichReversibleHeun):
        order = 1.0  # what is proven is 1/2
    assert 4 * error < 0.1  # the measurement is sharp
    assert order - 0.2 <= slope <= order + 0.5, (slope, error)


class Arc(Diffusive):
    """Stratonovich: dy = cos(y)^2 (cos t dt + dW), y = arctan(tan y0 + sin t + W); the same in Ito calculus."""

    noise_type = "diagonal"

    def __init__(self, calculus: Any):
        self.calculus = calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y.cos() ** 2 * (torch.cos(t) - (y.cos() * y.sin() if self.calculus == "ito" else 0))

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y.cos() ** 2 * dw


@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_strong_order_where_the_diffusion_is_no_line(stepper: Stochastic):
    term, path = Arc(stepper.calculus), noise_of("diagonal", PATHS)
    y0 = torch.full((PATHS, 2), 0.2, dtype=DTYPE)
    right = torch.arctan(math.tan(0.2) + math.sin(END) + path(0.0, 1.0) * math.sqrt(END))
    ends = [solve(term, y0, 0.0, END, Solver(stepper, Grid(n=n)), path=path).ys for n in STEPS]
    slope, error = fitted(torch.stack([(end - right).norm(dim=1) for end in ends]))
    assert 4 * error < 0.2
    assert stepper.strong - 0.2 <= slope <= stepper.strong + 0.4, (slope, error)


@pytest.mark.parametrize("stepper", STEPPERS[:3], ids=name)
def test_weak_order(stepper: Stochastic):
    """The mean over 20,000 paths less that of the exact solution, which moves along with it."""
    term, path, count = Linear("diagonal", stepper.calculus), noise_of("diagonal", 20_000, 64), 20_000
    args = (torch.tensor([1.5, 1.0], dtype=DTYPE), 0.2 * torch.eye(2, dtype=DTYPE))
    y0 = torch.ones(count, 2, dtype=DTYPE)
    right, steps, means = term.exact(y0, path, args), (8, 16, 32, 64), []
    for n in steps:
        missed = (solve(term, y0, 0.0, END, Solver(stepper, Grid(n=n)), args=args, path=path).ys - right)[:, 0]
        mean, error = float(missed.mean()), float(missed.std()) / math.sqrt(count)
        assert abs(mean) > 20 * error
        means.append(abs(mean))
    assert 0.8 <= float(np.polyfit(-np.log(steps), np.log(means), 1)[0]) <= 1.5


def test_euler_maruyama_has_the_law_of_its_recursion():
    """Without bias E y_n = (1 + r h)^n; noise drawn anew after a rejection, or in another order, would change it."""
    count, n = 40_000, 16
    y = solve(
        Linear("diagonal", "ito"),
        torch.ones(count, 2, dtype=DTYPE),
        0.0,
        END,
        Solver(EulerMaruyama(), Grid(n=n)),
        args=ARGS,
        path=Brownian(seed=11),
    ).ys
    rates, strengths, h = ARGS[0], ARGS[1].diagonal(), END / n
    first, second = (1 + rates * h) ** n, ((1 + rates * h) ** 2 + strengths**2 * h) ** n
    assert bool(((y.mean(0) - first).abs() < 4 * (second - first**2).sqrt() / math.sqrt(count)).all())
    assert bool(((y**2).mean(0) - second).abs().lt(4 * (y**2).std(0) / math.sqrt(count)).all())


@pytest.mark.parametrize("by", ["tree", "step"])
@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_lanes_that_step_by_themselves_give_the_same(stepper: Stochastic, by: Any):
    term, y0 = Linear("scalar", stepper.calculus), torch.ones(5, 2, dtype=DTYPE)
    path = noise_of("scalar", 5, 20, by=by)
    joint, each = (
        solve(term, y0, 0.0, END, Solver(stepper, Grid(n=20), lanes=kind), args=ARGS, path=path).ys for kind in KINDS
    )
    assert torch.allclose(joint, each, rtol=1e-12, atol=0)


def test_sample_ends_at_the_same_state_bit_by_bit_whatever_its_batch():
    y0 = torch.linspace(0.5, 2, 40).reshape(20, 2)
    solver = Solver(Milstein(), Grid(n=25), lanes="each")
    args = tuple(x.float() for x in ARGS)
    whole = solve(Linear("diagonal", "ito"), y0, 0.0, END, solver, args=args, path=Brownian(seed=5)).ys
    for some in ([7], [3, 19], list(range(19, 2, -1))):
        path = Brownian(seed=5, samples=some)
        assert torch.equal(
            solve(Linear("diagonal", "ito"), y0[some], 0.0, END, solver, args=args, path=path).ys, whole[some]
        )


class Neural(nn.Module, Diffusive):
    """Weights in drift and diffusion, which depend on time."""

    def __init__(self, calculus: Any):
        super().__init__()
        self.noise_type, self.calculus = "diagonal", calculus
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=DTYPE))
        self.scale = nn.Parameter(torch.randn(2, generator=generator, dtype=DTYPE))

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * (y @ self.inner + t).tanh()

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return (self.scale * y + t).cos() * args[1] * dw


class Problem:
    """One solve as a function of y0, t0, t1, the two args and the two parameters."""

    def __init__(self, stepper: Stochastic, kind: str):
        self.stepper, self.kind, self.term = stepper, kind, Neural(stepper.calculus)
        generator = torch.Generator().manual_seed(1)
        lanes = (3,) if kind == "each" else ()
        draw = lambda *shape: torch.rand(shape, dtype=DTYPE, generator=generator)  # noqa: E731
        parameters = [p.detach().clone() for p in self.term.parameters()]
        self.inputs = [draw(3, 2), 0.1 * draw(*lanes), 1 + 0.1 * draw(*lanes), draw(2), draw(2), *parameters]

    def loss(self, adjoint: Discrete, inputs: list[Tensor]) -> Tensor:
        y0, t0, t1, *args = inputs[:5]
        solver = Solver(self.stepper, Grid(n=8), adjoint, lanes=self.kind)
        options = {"args": tuple(args), "path": Brownian(seed=7), "save_at": None}
        for p, value in zip(self.term.parameters(), inputs[5:], strict=True):
            p.data = value.detach()
        y = solve(self.term, y0, t0, t1, solver, **options).ys
        return (y * torch.arange(1, 7, dtype=DTYPE).reshape(3, 2)).sin().sum()

    def grads(self, adjoint: Discrete) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in self.inputs]
        loss = self.loss(adjoint, inputs)
        return list(torch.autograd.grad(loss, [*inputs[:5], *self.term.parameters()]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_gradients_are_those_of_differences_under_every_discrete_adjoint(stepper: Stochastic, kind: str):
    problem = Problem(stepper, kind)
    grads = problem.grads(Discrete())
    replays = [Discrete("all"), Discrete("every"), Discrete("every", 3)]
    for adjoint in [Discrete("invert")] if stepper.reversible else replays:
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
        assert abs(found - right) < DIFFERENCES * max(1, abs(right)), (i, found, right)


def test_gradients_can_be_differentiated_again_along_the_graph():
    term, y0 = Linear("diagonal", "ito"), torch.ones(2, 2, dtype=DTYPE)

    def end(rates: Tensor, strengths: Tensor) -> Tensor:
        return solve(
            term, y0, 0.0, 1.0, Solver(Milstein(), Grid(n=3)), args=(rates, strengths), path=Brownian(seed=1)
        ).ys

    inputs = tuple(x.clone().requires_grad_() for x in ARGS)
    assert torch.autograd.gradgradcheck(end, inputs)


def test_tensor_that_the_diffusion_reads_without_declaring_it_is_refused():
    strength = torch.tensor(0.5, dtype=DTYPE, requires_grad=True)

    class Closed(Linear):
        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return strength * y * dw

    solver = Solver(EulerMaruyama(), Grid(n=4), Discrete("all"))
    with pytest.raises(ValueError, match="which needs a gradient but is not declared"):
        solve(Closed("diagonal", "ito"), torch.ones(2, 2, dtype=DTYPE), 0.0, 1.0, solver, args=ARGS, path=Brownian())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_states_meshes_and_later_questions_agree(kind: str):
    term, path = Linear("diagonal", "ito"), noise_of("diagonal", 3, 20)
    y0, solver = torch.ones(3, 2, dtype=DTYPE), Solver(EulerMaruyama(), Grid(n=20), lanes=kind)
    ts = [0.0, 0.25, 0.6, 1.0]
    solution = solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=path, save_at=ts)
    end = solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=path)
    axis = int(kind == "each")
    assert torch.equal(solution.ys.select(axis, 3), end.ys)
    assert torch.equal(solution.ys.select(axis, 0), y0)
    assert torch.equal(end(ts), solution.ys)
    again = solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=path, mesh=solution.mesh)
    assert torch.allclose(again.ys, end.ys, rtol=1e-14, atol=0)
    assert int(end.stats.nfe.max()) == 20
    with pytest.raises(ValueError, match="save_at: EulerMaruyama has no dense output"):
        solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=path, save_at=[0.33])


def test_solve_over_no_time_and_of_no_samples():
    term, solver = Linear("diagonal", "ito"), Solver(EulerMaruyama(), Grid(n=4))
    y0 = torch.ones(3, 2, dtype=DTYPE)
    assert torch.equal(solve(term, y0, 1.0, 1.0, solver, args=ARGS, path=Brownian()).ys, y0)
    assert solve(term, y0[:0], 0.0, 1.0, solver, args=ARGS, path=Brownian()).ys.shape == (0, 2)


def test_sample_that_blows_up_leaves_the_others_unharmed():
    class Cubic(Linear):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return y**3

    y0 = torch.tensor([[0.1, 0.1], [1e3, 0.1], [0.2, 0.1]], dtype=DTYPE)
    solver, options = Solver(EulerMaruyama(), Grid(n=20), lanes="each"), {"args": ARGS, "path": Brownian(seed=2)}
    solution = solve(Cubic("diagonal", "ito"), y0, 0.0, 1.0, solver, throw=False, **options)
    assert solution.status.tolist() == [Status.DONE, Status.NON_FINITE, Status.DONE]
    assert bool(solution.ys.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_step_does_not_wait_for_the_host(stepper: Stochastic, kind: str, monkeypatch: pytest.MonkeyPatch):
    y0, lanes = torch.ones(3, 2, dtype=DTYPE), (3,) if kind == "each" else ()
    t0, t1 = torch.zeros(lanes, dtype=DTYPE), torch.ones(lanes, dtype=DTYPE)
    path = Brownian().within(stepper, Grid(n=4), t0, t1, y0, kind)
    march = March(Linear("diagonal", stepper.calculus), stepper, Grid(n=4), kind, path=path)
    const = Const(t0, t1, torch.linspace(0.25, 1, 4, dtype=DTYPE), ARGS, path.tensors())
    state, mode = march.start(const, y0), FakeTensorMode()
    monkeypatch.setattr(brownian, "_reads", lambda x: False)  # as on a GPU
    fakes = tree_map_only(Tensor, mode.from_tensor, (state, const))
    with mode:
        found = march.advance(*fakes, saves=1)
    right = march.advance(state, const, saves=1)
    assert [(x.shape, x.dtype) for x in tree_leaves(found)] == [(x.shape, x.dtype) for x in tree_leaves(right)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["loop", "chunks"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_march_is_the_eager_one(kind: str, mode: Any):
    term, y0 = Linear("scalar", "ito"), torch.ones(6, 2, dtype=DTYPE)
    ends, grads = [], []
    for compiled in (None, mode):
        args = tuple(x.clone().requires_grad_() for x in ARGS)
        solver = Solver(Milstein(), Grid(n=16), lanes=kind, compile=compiled)
        ends.append(solve(term, y0, 0.0, END, solver, args=args, path=noise_of("scalar", 6, 16)).ys)
        grads.append(torch.autograd.grad(ends[-1].sum(), args))
    assert torch.allclose(*ends, rtol=1e-12, atol=0)
    assert all(torch.allclose(a, b, rtol=SAME, atol=1e-12) for a, b in zip(*grads, strict=True))


def refused(message: str, term: Any = None, y0: Any = None, **options: Any) -> None:
    given = {"args": ARGS, "path": Brownian(), "solver": Solver(EulerMaruyama(), Grid(n=4)), "t0": 0.0, "t1": 1.0}
    given |= options
    term = Linear("diagonal", "ito") if term is None else term
    with pytest.raises(ValueError, match=message):
        solve(term, torch.ones(3, 2, dtype=DTYPE) if y0 is None else y0, **given)


def test_stepper_says_what_it_expects():
    milstein = Solver(Milstein(), Grid(n=4))
    refused(
        "term: Milstein expects diagonal or additive or scalar noise, found general",
        Linear("general", "ito"),
        solver=milstein,
    )
    refused(
        "term: EulerMaruyama expects an equation of ito calculus, found stratonovich; take EulerHeun",
        Linear("diagonal", "stratonovich"),
    )
    refused("expects an equation of stratonovich calculus, found ito", solver=Solver(EulerHeun(), Grid(n=4)))
    refused("noise_type: expected 'diagonal', 'additive', 'scalar' or 'general', got 'white'", Linear("white", "ito"))
    refused("calculus: expected 'ito' or 'stratonovich', got 'itô'", Linear("general", "itô"))
    refused("term: Tsit5 integrates no noise; expected EulerMaruyama", solver=None)
    refused("term: EulerMaruyama expects a Diffusive term, got function", lambda t, y, args: -y, path=None)
    refused("path: Tsit5 reads no noise", lambda t, y: -y, solver=Solver(Tsit5()), args=())
    refused("path: EulerMaruyama expects one, as Brownian", path=None)
    with pytest.raises(ValueError, match="controller: EulerMaruyama has no error estimate, expected Grid"):
        Solver(EulerMaruyama(), PID())
    with pytest.raises(ValueError, match="adjoint: EulerMaruyama cannot be inverted"):
        Solver(EulerMaruyama(), Grid(n=4), Discrete("invert"))


def test_path_that_does_not_fit_is_refused():
    refused(r"path: diagonal noise has the state's shape \(3, 2\), got \(3, 1\)", path=Brownian((3, 1)))
    each = Solver(EulerMaruyama(), Grid(n=4), lanes="each")
    refused(
        r"path: expected a shape that starts with the 3 samples, got \(2, 2\)",
        Linear("general", "ito"),
        solver=each,
        path=Brownian((2, 2)),
    )
    refused("samples: expected one for each of shape", path=Brownian(samples=[1, 2]))
    refused("path: expected the state's dtype torch.float64, got torch.float32", path=Brownian(dtype=torch.float32))
    refused("path: Brownian motion runs forward in time, expected t0 <= t1", t0=1.0, t1=0.0)
    refused(
        "path: Brownian motion is real, expected its shape with a state of torch.complex128, got None",
        y0=torch.ones(3, 2) + 0j * torch.ones(1, dtype=DTYPE),
    )
    refused(r"path: by='step' cannot be refined, expected the steps of Grid\(n=8\)", path=Brownian(cells=8, by="step"))
    ts = torch.tensor([0.0, 0.3, 1.0], dtype=DTYPE, requires_grad=True)
    refused("controller: Brownian motion has no derivative in time", solver=Solver(EulerMaruyama(), Grid(ts=ts)))
    refused("y0: expected a tensor with a Diffusive term, got tuple", y0=(torch.ones(3, 2, dtype=DTYPE),))


def test_diffusion_that_does_not_fit_the_state_is_refused():
    class Wide(Linear):
        def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return torch.ones(4, 1, 1, dtype=DTYPE) * dw

    refused(r"term: expected a diffusion of the state's shape \(3, 2\), got \(4, 3, 2\)", Wide("diagonal", "ito"))


def test_fold_that_reads_within_steps_is_refused():
    refused("has no dense output", folds={"q": Quadrature(lambda t, y, args: y)})


def test_steps_shorter_than_a_cell_are_refused():
    refused("cells: expected at least 4 for a step of 0.25 of the span, got 1", path=Brownian(cells=1))
    fine = solve(Linear("diagonal", "ito"), torch.ones(3, 2, dtype=DTYPE), 0.0, 1.0, GRID, args=ARGS, path=Brownian())
    coarse = Solver(EulerMaruyama(), Grid(n=1))
    refused("cells: expected at least 4 for a step of 0.25", solver=coarse, mesh=fine.mesh)
    by = Brownian(cells=1, by="step")
    refused("expected at least 4", solver=coarse, mesh=fine.mesh, path=by)
    tiny = Solver(EulerMaruyama(), Grid(ts=[0.0, 1e-10, 1.0]))
    refused("controller: Brownian motion tells steps of 2", solver=tiny)


def test_a_solve_that_goes_on_takes_other_noise():
    y0, term = torch.ones(3, 2, dtype=DTYPE), Linear("diagonal", "ito")
    first = solve(term, y0, 0.0, 1.0, GRID, args=ARGS, path=Brownian(seed=1))
    with pytest.raises(ValueError, match="path: expected one of another seed than that of the resumed solve"):
        solve(term, None, None, 2.0, GRID, args=ARGS, path=Brownian(seed=1), resume=first)
    assert solve(term, None, None, 2.0, GRID, args=ARGS, path=Brownian(seed=2), resume=first).ys.shape == (3, 2)


def test_scalar_noise_is_one_number_for_each_sample():
    scalar = Linear("scalar", "ito")
    refused(r"path: scalar noise is one number for each sample, expected Brownian\(\(3, 1\)\), got None", scalar)
    refused("path: scalar noise is one number for each sample", scalar, path=Brownian((3, 2)))


def test_nothing_moves_where_there_is_no_span():
    """Of a lane of no length the derivative to its end is that of the drift."""
    t1 = torch.tensor([1.0, 0.0], dtype=DTYPE, requires_grad=True)
    y0 = torch.ones(2, 2, dtype=DTYPE)
    solver = Solver(Milstein(), Grid(n=4), lanes="each")
    solve(Linear("diagonal", "ito"), y0, 0.0, t1, solver, args=ARGS, path=Brownian()).ys.sum().backward()
    assert t1.grad is not None
    assert abs(float(t1.grad[1] - ARGS[0].sum())) < 1e-12
    stay = solve(Linear("diagonal", "ito"), y0, 1.0, 1.0, GRID, args=ARGS, path=Brownian(cells=4, by="step"))
    assert torch.equal(stay.ys, y0)


def test_mixed_precision_leaves_the_noise_alone():
    path = Brownian((3, 2), cells=4, dtype=torch.float32)
    tensors, span = path.tensors(), torch.ones((), dtype=DTYPE)
    right = path.increment(tensors, 0.25, 0.5, span)
    with torch.autocast("cpu", torch.bfloat16):
        other = Brownian((3, 2), cells=4, dtype=torch.float32)
        assert torch.equal(other.increment(other.tensors(), 0.25, 0.5, span), right)


@pytest.mark.parametrize("lanes", KINDS)
def test_saves_on_a_grid_of_unequal_steps_are_the_states_at_its_nodes(lanes: Any):
    """Those of a solve that ends there after the same steps of the same size, to round-off."""
    nodes = [0.0, 2e-6, 0.1, 0.75, 1.0]
    term, y0, path = Linear("diagonal", "ito"), torch.ones(3, 2, dtype=DTYPE), Brownian(seed=4, cells=2**20)
    solver = Solver(EulerMaruyama(), Grid(ts=nodes), lanes=lanes)
    ys = solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=path, save_at=nodes).ys
    y, own = y0, Brownian((3, 2), seed=4, cells=2**20, dtype=DTYPE)
    for k, (start, end) in enumerate(itertools.pairwise(nodes)):
        y = y + term.drift(y, y, ARGS) * (end - start) + term.diffuse(y, y, own(start, end), ARGS)
        assert torch.allclose(ys[:, k + 1] if lanes == "each" else ys[k + 1], y, rtol=1e-9, atol=0)
    refused("times at which its steps end, as 0.1 and 0.75, got 0.2", solver=solver, save_at=[0.2])
