"""Step doubling of stochastic steppers: what it converges to, its path, gradients, refusals."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sciml import Discrete, Solver, solve
from sciml.solvers import (
    PID,
    SRK,
    Brownian,
    Doubled,
    EulerHeun,
    EulerMaruyama,
    Given,
    Grid,
    LogODE,
    MatrixDiffusive,
    Milstein,
    Stats,
    StratonovichHeun,
    StratonovichMidpoint,
    StratonovichReversibleHeun,
    brownian,
)
from sciml.solvers.areas import Area
from sciml.solvers.arithmetic import ARRAYS, NUMBERS, TENSORS
from sciml.solvers.doubled import joined
from sciml.solvers.march import March
from sciml.solvers.state import Const
from sciml.solvers.stochastic import Stochastic
from tests.solvers.systems import DTYPE
from tests.solvers.test_given import Area as Areas
from tests.solvers.test_given import motion
from tests.solvers.test_stochastic import ARGS, END, KINDS, Linear, name
from tests.solvers.test_stochastic_adaptive import Driven
from tests.solvers.test_weak_order import Turn

INNER = [Milstein(), SRK(), EulerHeun(), StratonovichHeun(), StratonovichMidpoint(), StratonovichReversibleHeun()]
PATHS, TOLERANCES = 300, (3e-2, 3e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", INNER, ids=name)
def test_error_follows_the_tolerance(stepper: Stochastic, kind: str):
    """Of exact solutions on the same path; the errors of n steps, each at its tolerance, add up at random."""
    term, y0 = Linear("diagonal", stepper.calculus), torch.ones(PATHS, 2, dtype=DTYPE)
    path = Brownian((PATHS, 2), 3, areas=stepper.levy, cells=2**20, dtype=DTYPE)
    w, s = path(0.0, 1.0) if not stepper.levy else path(0.0, 1.0).w, ARGS[1].diagonal()
    ito = 0.5 * s**2 if stepper.calculus == "ito" else 0
    right = y0 * ((ARGS[0] - ito) * END + s * w * math.sqrt(END)).exp()
    errors, steps = [], []
    for tolerance in TOLERANCES:
        solver = Solver(Doubled(stepper), PID(rtol=0, atol=tolerance), lanes=kind)
        with torch.no_grad():
            solution = solve(term, y0, 0.0, END, solver, args=ARGS, path=path)
        errors.append((solution.ys - right).norm(dim=1))
        steps.append(float(solution.stats.accepted.double().mean()))
    means = [float(error.mean()) for error in errors]
    bars = [float(error.std()) / math.sqrt(PATHS) for error in errors]
    for mean, bar, n, tolerance in zip(means, bars, steps, TOLERANCES, strict=True):
        assert mean + 4 * bar < 2 * tolerance * math.sqrt(2 * n)
    # by order 1 errors shrink as the tolerance to the power 2/3, which is by 21; per path less, since steps are few
    assert means[0] - 4 * bars[0] > 5 * (means[1] + 4 * bars[1])
    assert steps[0] < steps[1]


@pytest.mark.parametrize("tolerance", [8e-3, 2e-3])
def test_rejections_do_not_bias_the_noise(tolerance: float):
    """As for the embedded methods; save times that are no nodes of the tree cut steps unevenly."""
    count, saves = 10_000, [0.3, 0.61, 1.0]
    y0 = torch.stack([torch.ones(count), torch.zeros(count)], -1).to(DTYPE)
    controller = PID(rtol=tolerance, atol=tolerance, dt0=1.0, safety=1.0, icoeff=1.2)  # it aims high
    solver = Solver(Doubled(Milstein()), controller, lanes="each")
    with torch.no_grad():
        solution = solve(Driven(), y0, 0.0, 1.0, solver, path=Brownian((count, 1), 4), save_at=saves)
    rejected, accepted = (int(x.sum()) for x in (solution.stats.rejected, solution.stats.accepted))
    assert rejected >= 0.15 * (accepted + rejected)
    for k, t in enumerate(saves):
        y, w = solution.ys[:, k].unbind(-1)
        assert abs(float(w.var()) / t - 1) < 3 * math.sqrt(2 / count)
        assert abs(float(w.mean())) < 3 * math.sqrt(t / count)
        assert float((y - (w - 0.5 * t).exp()).abs().mean()) < 10 * tolerance  # of some 30 steps, at random
    path = Brownian((count, 1), 4, cells=2**20, dtype=DTYPE)
    assert float((path(0.0, 1.0)[:, 0] - w).abs().max()) < 1e-12  # it is the one path


@pytest.mark.parametrize("stepper", [EulerHeun(), StratonovichReversibleHeun()], ids=name)
def test_noise_that_does_not_commute_is_integrated_path_by_path(stepper: Stochastic):
    """By order 1/2, as on grids: 16 times as many steps take the error to a fourth; of fine steps it is an eighth."""
    y0, path = torch.ones(200, 2, dtype=DTYPE), Brownian((200, 2), 5, cells=2**20, dtype=DTYPE)
    run = lambda solver: solve(Turn(), y0, 0.0, 1.0, solver, path=path).ys  # noqa: E731
    right, off = run(Solver(StratonovichHeun(), Grid(n=1024))), []
    for tolerance in (1e-1, 2e-3):
        miss = (run(Solver(Doubled(stepper), PID(rtol=0, atol=tolerance), lanes="each")) - right).norm(dim=1)
        off.append((float(miss.mean()), float(miss.std()) / math.sqrt(200)))
    assert off[0][0] - 4 * off[0][1] > 2 * (off[1][0] + 4 * off[1][1]), off
    assert off[1][0] + 4 * off[1][1] < 0.05


def test_euler_with_noise_of_the_state_goes_elsewhere():
    """Of y = exp(W - 1/2), at a tolerance that leaves Milstein's method a fiftieth of that error."""
    term, y0, args = Linear("diagonal", "ito"), torch.ones(1000, 2, dtype=DTYPE), (0 * ARGS[0], torch.eye(2).double())
    path, means = Brownian((1000, 2), 3, cells=2**20, dtype=DTYPE), []
    for stepper, warned in (
        (EulerMaruyama(), pytest.warns(UserWarning, match="is not guaranteed")),
        (Milstein(), nullcontext()),
    ):
        solver = Solver(Doubled(stepper), PID(rtol=0, atol=1e-2), lanes="each")
        with torch.no_grad(), warned:
            ys = solve(term, y0, 0.0, 1.0, solver, args=args, path=path).ys
        means.append(float((ys - (path(0.0, 1.0) - 0.5).exp()).mean()))
    assert means[0] > 0.1
    assert abs(means[1]) < 0.01


@pytest.mark.parametrize("lengths", [0.5, 0.11])
def test_no_place_that_was_read_is_passed_over(lengths: float):
    """Accepted and rejected at random: every place that was tried is the end or the middle of a step."""
    path, draw = Given(lambda t0, t1: t1 - t0, 2**20), np.random.default_rng(0)
    path.parts = 2
    for _ in range(10):
        theta, size, read, kept, stops = 0.0, lengths, set(), {0.0}, [0.3, 0.30001, 0.7, 1.0]
        for _ in range(20_000):
            stop = next(s for s in stops if s > theta)
            end = min(path.end(theta, size, NUMBERS), stop)
            middle = path.middle(theta, end, NUMBERS)
            assert theta < middle <= end
            assert middle == end or 0.25 <= (middle - theta) / (end - theta) <= 0.75
            read |= {middle, end}
            if draw.random() < 0.3 and middle < end and end - theta > 2**-18:
                size = (end - theta) * draw.uniform(0.2, 0.95)
            else:
                kept |= {middle, end}
                theta, size = end, min(1.0, size * draw.uniform(0.8, 3))
            if theta == 1:
                break
        assert theta == 1
        assert read <= kept


def test_arithmetics_agree_on_where_steps_are_cut():
    path, draw = Brownian(cells=2**20), np.random.default_rng(1)
    path.parts = 2
    start = np.concatenate([draw.integers(0, 2**10, 50) / 2**10, draw.random(50)])
    end = np.minimum(1.0, start + np.concatenate([2.0 ** -draw.integers(2, 12, 50), draw.random(49) / 9, [0.0]]))
    right = [path.middle(a, b, NUMBERS) for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    assert path.middle(start, end, ARRAYS).tolist() == right
    assert path.middle(torch.from_numpy(start), torch.from_numpy(end), TENSORS).tolist() == right
    assert right[-1] == end[-1]


def test_whole_step_reads_what_the_path_tells_of_it():
    """Chen's relation, against the path's own values and, of pairs, against the sum of a fine grid's."""
    path = Brownian((5, 2), 1, cells=64, areas=True, dtype=DTYPE)
    for first, middle, last in ((0.0, 0.5, 1.0), (0.25, 0.4375, 0.75)):
        share = (middle - first) / (last - first)
        for found, right in zip(joined(share, path(first, middle), path(middle, last)), path(first, last), strict=True):
            assert float((found - right).abs().max()) < 1e-14
    pairs = motion(5, 2, "foster", 1.0)
    parts = [Area(*pairs(k / 8, (k + 1) / 8, return_A=True)) for k in range(8)]
    found = parts[0]
    for part in parts[1:]:
        found = joined(0.5, found, part)
    ys = solve(Areas(), torch.zeros(5, 3, dtype=DTYPE), 0.0, 1.0, Solver(LogODE(), Grid(n=8)), path=Given(pairs)).ys
    right = ys[:, 2] - 0.5 * ys[:, 0] * ys[:, 1]
    assert float((found.a[:, 0, 1] - right).abs().max()) < 1e-12


class Mixed(MatrixDiffusive):
    """Noise that does not commute."""

    noise_type, calculus = "general", "stratonovich"

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * y

    def diffusion(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return ((y @ args[1] + t).cos()[..., None] * y[:, None]).mT


@pytest.mark.parametrize("stepper", [Milstein(), LogODE(), StratonovichReversibleHeun()], ids=name)
def test_gradients_on_the_frozen_mesh(stepper: Any):
    """Against differences, of error estimates too; undone steps keep nothing."""
    y0 = torch.linspace(0.5, 2, 6, dtype=DTYPE).reshape(3, 2)
    stores = ["graph", "invert"] if stepper.history else ["graph", "all"]
    area = isinstance(stepper, LogODE)
    term = Mixed() if area else Linear("diagonal", stepper.calculus)

    def call(store: str, y0: Tensor, *args: Tensor, mesh: Any = None) -> Any:
        path = Given(motion(3, 2, "foster", 1.0)) if area else Brownian(seed=3)
        solver = Solver(Doubled(stepper), PID(rtol=1e-2, atol=1e-2, dt0=0.3), Discrete(store))
        folds = {} if store == "invert" else {"stats": Stats()}
        return solve(term, y0, 0.0, 1.0, solver, args=args, path=path, save_at=[0.4, 1.0], folds=folds, mesh=mesh)

    def loss(found: Any) -> Tensor:
        return found.ys.square().sum() + (found.folds["stats"].error.sum() if found.folds else 0)

    inputs = [x.clone().requires_grad_() for x in (y0, *ARGS)]
    first = call("graph", *inputs)
    assert int(first.mesh.count) > 3
    right = torch.autograd.grad(first.ys.square().sum(), inputs, retain_graph=True)
    again = call(stores[1], *inputs)
    for a, b in zip(torch.autograd.grad(again.ys.square().sum(), inputs), right, strict=True):
        assert float((a - b).abs().max()) < 1e-9 * (1 + float(b.abs().max()))
    grads = torch.autograd.grad(loss(first), inputs)
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        way, at = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=DTYPE), [*inputs]
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                at[i] = x + sign * 1e-6 * way
                ends.append(float(loss(call("graph", *at, mesh=first.mesh))))
        # central differences in float64: round-off 1e-10 times the sum, third derivatives times 1e-12
        assert abs(float((grad * way).sum()) - (ends[0] - ends[1]) / 2e-6) < 1e-6 * max(1, abs(ends[0]))


def test_evaluations_are_counted():
    calls = []

    class Counted(Linear):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            calls.append(0)
            return super().drift(t, y, args)

    for stepper in (StratonovichMidpoint(), StratonovichReversibleHeun()):
        solver, y0 = Solver(Doubled(stepper), PID(rtol=1e-2, atol=1e-2)), torch.ones(3, 2, dtype=DTYPE)
        term, options = Counted("diagonal", "stratonovich"), {"args": ARGS, "path": Brownian()}
        calls.clear()
        with torch.no_grad():
            found = solve(term, y0, 0.0, 1.0, solver, **options)
        assert int(found.stats.nfe) == len(calls)
        calls.clear()
        with torch.no_grad():
            again = solve(term, y0, 0.0, 1.0, solver, mesh=found.mesh, **options)
        assert int(again.stats.nfe) == len(calls)
        assert torch.equal(again.ys, found.ys)


def test_a_motion_that_is_given_and_what_is_refused():
    """Exact on a torchsde motion, whose times are asked at nodes of the tree."""
    asked, term, y0 = [], Linear("diagonal", "ito"), torch.ones(50, 2, dtype=DTYPE)
    inner = torchsde.BrownianInterval(0.0, 1.0, (50, 2), DTYPE, entropy=1)

    def watched(t0: Tensor, t1: Tensor) -> Tensor:
        asked.extend([float(t0), float(t1)])
        return inner(t0, t1)

    solver = Solver(Doubled(Milstein()), PID(rtol=1e-3, atol=1e-3))
    ys = solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=Given(watched, 2**10)).ys
    s = ARGS[1].diagonal()
    right = ((ARGS[0] - 0.5 * s**2) + s * inner(0.0, 1.0)).exp()
    assert float((ys - right).norm(dim=1).mean()) < 2e-3 * math.sqrt(len(asked))  # errors of steps, at random
    assert all((t * 2**10).is_integer() for t in asked)
    with pytest.raises(ValueError, match="controller: Doubled judges its steps, expected PID; on a grid"):
        Solver(Doubled(Milstein()), Grid(n=3))
    with pytest.raises(TypeError, match="stepper: expected a stepper of stochastic equations"):
        Doubled(Doubled())
    with pytest.raises(ValueError, match="term: Doubled expects an equation of ito calculus, found stratonovich"):
        solve(Linear("diagonal", "stratonovich"), y0, 0.0, 1.0, solver, args=ARGS, path=Brownian())
    with pytest.raises(ValueError, match="cells: expected a power of two of at least 2 under PID, got 1"):
        solve(term, y0, 0.0, 1.0, solver, args=ARGS, path=Brownian(cells=1))
    with pytest.raises(ValueError, match=r"cells: expected a power of two from 2 to 2\^30, got 3"):
        Given(inner, 3)
    with pytest.raises(ValueError, match="term: Doubled expects diagonal or additive or scalar noise, found general"):
        solve(Linear("general", "ito"), y0, 0.0, 1.0, solver, args=ARGS, path=Brownian((50, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_is_read_on_the_host(kind: str, monkeypatch: pytest.MonkeyPatch):
    lanes, y0 = () if kind == "joint" else (3,), torch.ones(3, 2, dtype=DTYPE)
    t0, t1 = torch.zeros(lanes, dtype=DTYPE), torch.ones(lanes, dtype=DTYPE)
    controller = PID(rtol=1e-2, atol=1e-2)
    path = Brownian().within(Doubled(), controller, t0, t1, y0, kind)
    march = March(Linear("diagonal", "stratonovich"), Doubled(), controller, kind, path=path)
    const = Const(t0, t1, torch.tensor([0.3, 1.0], dtype=DTYPE), ARGS, path.tensors())
    state, mode = march.start(const, y0), FakeTensorMode()
    monkeypatch.setattr(brownian, "_reads", lambda x: False)  # as on a GPU
    fakes = tree_map_only(Tensor, mode.from_tensor, (state, const))
    with mode:
        found = march.advance(*fakes, saves=1)
    right = march.advance(state, const, saves=1)
    assert [(x.shape, x.dtype) for x in tree_leaves(found)] == [(x.shape, x.dtype) for x in tree_leaves(right)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["loop", "chunks"])
def test_compiled_march_is_the_eager_one(kind: str, mode: Any):
    y0, options = torch.ones(3, 2, dtype=DTYPE), {"args": ARGS, "save_at": [0.3, 1.0]}
    right, found = (
        solve(
            Linear("diagonal", "ito"),
            y0,
            0.0,
            1.0,
            Solver(Doubled(Milstein()), PID(rtol=1e-2, atol=1e-2), lanes=kind, compile=compiled),
            path=Brownian(cells=2**8),
            **options,
        ).ys
        for compiled in (None, mode)
    )
    assert torch.allclose(found, right, rtol=1e-11, atol=0)
