"""Transforms of torch.func through `solve`, and vectorised derivatives of torch.autograd."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from sciml import Discrete, SolveError, Solver, solve
from sciml.solvers import (
    PID,
    RK4,
    Auto,
    Backsolve,
    Brownian,
    Diffusive,
    Doubled,
    ErrorEstimate,
    EulerMaruyama,
    GaussLegendre4,
    Grid,
    ImplicitEuler,
    Kvaerno5,
    Quadrature,
    Rodas5P,
    SaveAt,
    StratonovichHeun,
    Tsit5,
    frame,
    local_heuristic,
)
from sciml.solvers.linear import GMRES
from tests.solvers.systems import DTYPE, Net, Oscillators

TOLERANCES, LOOSE = PID(1e-6, 1e-8), PID(1e-3, 1e-5)
SOLVED = Kvaerno5(rtol=1e-7, atol=1e-9)  # stage equations, beyond what its steps are held to
Y = torch.tensor([[0.3, -0.8], [1.1, 0.4], [2.0, 0.1]], dtype=DTYPE)
RATES = torch.tensor([1.0, 2.0, 4.0], dtype=DTYPE)
SPAN = torch.tensor([0.1, 1.0], dtype=DTYPE)
# The same float64 operations in another order. Iterated stages end at a hundredth of their tolerance, and get two
# corrections more within transforms.
SAME, ITERATED = 1e-10, 1e-6


def pendulum(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    force = -args[0] * y[..., 0].sin() - 0.1 * y[..., 1] + 0.1 * (t.squeeze(-1) if t.ndim else t)
    return torch.stack([y[..., 1], force], -1)


class Noisy(Diffusive):
    noise_type = "diagonal"

    def __init__(self, calculus: Any = "ito"):
        self.calculus = calculus

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return pendulum(t, y, args)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return 0.3 * y.sin() * dw


class Way:
    """A kind of solve from a state (2): what comes out, and the steps it took last."""

    def __init__(self, stepper: Any, controller: Any, lanes: Any = "joint", term: Any = pendulum, **given: Any):
        self.solver, self.term, self.given = Solver(stepper, controller, lanes=lanes), term, given
        self.close = ITERATED if hasattr(stepper, "iterations") else SAME
        self.mesh: Any = None

    def __call__(self, y0: Tensor, rate: Tensor = RATES[1], mesh: Any = None) -> Tensor:
        y0 = y0[None] if self.solver.lanes == "each" else y0
        given = self.given | ({"path": Brownian(seed=5)} if isinstance(self.term, Noisy) else {})
        found = solve(self.term, y0, *SPAN.tolist(), self.solver, args=(rate,), mesh=mesh, **given)
        self.mesh = found.mesh
        return torch.cat([found.ys.flatten(), *(x.flatten() for x in found.folds.values())])


def end_of(y: Tensor, solver: Solver | None = None) -> Tensor:
    return solve(pendulum, y, 0.0, 1.0, solver, args=(RATES[1],)).ys


SAVES = {"save_at": [0.9, 0.1, 0.5]}
FOLDS = {"folds": {"q": Quadrature(lambda t, y, args: (y * y).sum(-1)), "at": SaveAt(SPAN), "e": ErrorEstimate()}}
WAYS = {
    "grid": Way(RK4(), Grid(n=5)),
    "grid each": Way(RK4(), Grid(n=5), "each"),
    "tsit5": Way(Tsit5(), TOLERANCES),
    "tsit5 each": Way(Tsit5(), TOLERANCES, "each"),
    "saves": Way(Tsit5(), TOLERANCES, **SAVES),
    "saves each": Way(Tsit5(), TOLERANCES, "each", **SAVES),
    "folds": Way(Tsit5(), TOLERANCES, **FOLDS),
    "folds each": Way(Tsit5(), TOLERANCES, "each", **FOLDS),
    "euler": Way(ImplicitEuler(), Grid(n=3)),
    "gauss each": Way(GaussLegendre4(), Grid(n=1), "each"),
    "kvaerno5": Way(SOLVED, LOOSE),
    "kvaerno5 each": Way(SOLVED, LOOSE, "each"),
    "rodas5p": Way(Rodas5P(), LOOSE),
    "rodas5p each": Way(Rodas5P(), LOOSE, "each"),
    "noise": Way(EulerMaruyama(), Grid(n=4), term=Noisy()),
    "noise each": Way(EulerMaruyama(), Grid(n=4), "each", term=Noisy()),
    "doubled": Way(Doubled(StratonovichHeun()), PID(1e-1, 1e-1), term=Noisy("stratonovich"), save_at=[0.3, 1.0]),
    "doubled each": Way(Doubled(StratonovichHeun()), PID(1e-1, 1e-1), "each", term=Noisy("stratonovich")),
}
DETERMINISTIC = [name for name in WAYS if name[:5] not in ("noise", "doubl")]


def backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian by plain backpropagation, row by row."""
    x = x.detach().clone().requires_grad_()
    out = function(x)
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in out.reshape(-1)]
    return torch.stack(rows).reshape((*out.shape, *x.shape))


def right(found: Any, expected: Tensor, close: float = SAME) -> None:
    found, expected = found.detach(), expected.detach()
    assert (found - expected).abs().max() <= close * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", WAYS)
def test_derivatives_are_those_of_backpropagation(name: str):
    way = WAYS[name]
    jacobian = backward(way, Y[1])
    right(jacrev(way)(Y[1]), jacobian, way.close)
    right(jacfwd(way)(Y[1]), jacobian, way.close)
    by_rate = lambda rate: way(Y[1], rate)  # noqa: E731
    jacobian = backward(by_rate, RATES[1])
    right(grad(lambda rate: by_rate(rate).sum())(RATES[1]), jacobian.sum(), way.close)
    right(vjp(by_rate, RATES[1])[1](torch.ones_like(jacobian))[0], jacobian.sum(), way.close)
    right(jvp(by_rate, (RATES[1],), (torch.ones_like(RATES[1]),))[1], jacobian, way.close)


@pytest.mark.parametrize("name", WAYS)
def test_mapped_samples_are_those_of_a_loop_over_the_steps_they_share(name: str):
    way = WAYS[name]
    for function, batch in ((way, Y), (lambda rate, mesh=None: way(Y[1], rate, mesh), RATES)):
        found = vmap(function)(batch)
        again = partial(function, mesh=way.mesh)
        right(found, torch.stack([again(x) for x in batch]), way.close)
        slopes = torch.stack([backward(again, x).sum(0) for x in batch])
        right(vmap(grad(lambda x, f=again: f(x).sum()))(batch), slopes, way.close)


@pytest.mark.parametrize("name", ["tsit5", "tsit5 each", "kvaerno5", "rodas5p", "saves", "doubled"])
def test_second_derivatives_are_differences_of_first_ones(name: str):
    way, h = WAYS[name], 1e-4
    way(Y[1])
    mesh = way.mesh
    function = lambda y: way(y, mesh=mesh)  # noqa: E731
    ahead, behind = ([backward(function, Y[1] + s * h * unit) for unit in torch.eye(2, dtype=DTYPE)] for s in (1, -1))
    differences = torch.stack([(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)], -1)
    # of second order: h^2 / 6 times a third derivative, and what iterations leave over h
    close = 1e-3 if way.close == ITERATED else 1e-6
    right(hessian(function)(Y[1]), differences, close)
    right(jacrev(jacrev(function))(Y[1]), differences, close)


@pytest.mark.parametrize("name", ["tsit5", "tsit5 each", "euler", "rodas5p", "noise each"])
def test_transforms_nest(name: str):
    way = WAYS[name]
    vmap(way)(Y)
    mesh = way.mesh
    function = lambda y: way(y, mesh=mesh)  # noqa: E731
    rows = torch.stack([backward(function, y) for y in Y])  # (b, n, 2)
    right(vmap(jacrev(function))(Y), rows, way.close)
    right(vmap(jacfwd(function))(Y), rows, way.close)
    diagonal = lambda jacobian: torch.stack([jacobian[i, :, i] for i in range(len(Y))])  # noqa: E731
    right(diagonal(jacrev(vmap(function))(Y)), rows, way.close)
    right(diagonal(jacfwd(vmap(function))(Y)), rows, way.close)
    many = vmap(vmap(way, (None, 0)), (0, None))(Y, RATES)
    mesh = way.mesh
    right(many, torch.stack([torch.stack([way(y, rate, mesh) for rate in RATES]) for y in Y]), way.close)


def test_mapped_samples_are_all_as_exact_as_was_asked_for():
    rates, tight = torch.tensor([0.1, 1.0, 60.0], dtype=DTYPE), Solver(None, PID(1e-9, 1e-10))
    end = lambda rate: solve(lambda t, y: -rate * (y - t.cos()), torch.ones(1, dtype=DTYPE), 0.0, 1.0, tight)  # noqa: E731
    exact = lambda r: (r * (r * math.cos(1) + math.sin(1)) + math.exp(-r)) / (1 + r * r)  # noqa: E731
    found = vmap(lambda rate: end(rate).ys)(rates)[:, 0]
    assert (found - torch.tensor([exact(float(r)) for r in rates])).abs().max() < 1e-7
    counts = vmap(lambda rate: tuple(end(rate).stats))(rates)
    assert all(len(set(count.tolist())) == 1 for count in counts)  # they share their steps
    most = max(int(end(rate).stats.accepted) for rate in rates)
    assert most <= int(counts[1][0]) <= most + 3


def test_what_a_solution_says_within_a_transform_is_what_it_says_outside():
    def said(y: Tensor) -> Any:
        found = solve(pendulum, y, 0.0, 1.0, args=(RATES[1],))
        return found.ys, (found.status, found.ts, *found.stats, found.mesh.theta, found(0.5))

    for found, expected in zip(vjp(said, Y[1], has_aux=True)[2], said(Y[1])[1], strict=True):
        right(found, expected)


@pytest.mark.parametrize("name", ["tsit5", "tsit5 each"])
def test_ensembles_of_modules(name: str):
    solver, nets = WAYS[name].solver, [Net(seed) for seed in range(3)]
    weights, buffers = stack_module_state(nets)
    meshes: list[Any] = []

    def loss(weights: Any, buffers: Any, mesh: Any = None) -> Tensor:
        field = lambda t, y: functional_call(nets[0], (weights, buffers), (t, y))  # noqa: E731
        found = solve(field, Y, 0.0, 1.0, solver, mesh=mesh)
        meshes.append(found.mesh)
        return found.ys.square().sum()

    slopes, values = vmap(torch.func.grad_and_value(loss))(weights, buffers)
    for i, net in enumerate(nets):
        value = solve(net, Y, 0.0, 1.0, solver, mesh=meshes[0]).ys.square().sum()
        right(values[i], value.detach())
        for slope, expected in zip(slopes.values(), torch.autograd.grad(value, list(net.parameters())), strict=True):
            right(slope[i], expected)
    # by the ordinary backward pass of a mapped solve, too
    vmap(loss)(weights, buffers).sum().backward()
    right(weights["inner"].grad, slopes["inner"])


def plain_times(way: Way) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Solves as functions of their times."""
    solver, two = way.solver, Y[:2]
    at = torch.tensor([0.3, 0.8], dtype=DTYPE)
    run = lambda t0, t1, **given: solve(pendulum, two, t0, t1, solver, args=(RATES[1],), **given).ys  # noqa: E731
    return [
        (lambda t: run(t, 1.0), SPAN[0]),
        (lambda t: run(0.1, t), SPAN[1]),
        (lambda t: run(0.1, 1.0, save_at=t), at),
    ]


@pytest.mark.parametrize("name", ["grid", "grid each", "tsit5", "tsit5 each", "euler", "rodas5p each"])
def test_derivatives_by_times(name: str):
    for function, t in plain_times(WAYS[name]):
        jacobian = backward(function, t)
        right(jacrev(function)(t), jacobian, WAYS[name].close)
        right(jacfwd(function)(t), jacobian, WAYS[name].close)


def nodes(lanes: Any) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    ts = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=DTYPE)
    run = lambda ts: solve(pendulum, Y, 0.1, 1.0, Solver(RK4(), Grid(ts=ts), lanes=lanes), args=(RATES[1],)).ys  # noqa: E731
    return run, ts


def edge(lanes: Any) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    field = lambda t, y, args: torch.where(t < args[0], 1.0, 3.0) * y  # noqa: E731
    solver = lambda e: Solver(Tsit5(), PID(1e-6, 1e-8, jump_ts=e[None]), lanes=lanes)  # noqa: E731
    return lambda e: solve(field, Y, 0.0, 1.0, solver(e), args=(e.detach(),)).ys, torch.tensor(0.4, dtype=DTYPE)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("kind", [nodes, edge])
def test_derivatives_by_the_times_of_steps(kind: Any, lanes: Any):
    function, times = kind(lanes)
    jacobian = backward(function, times)
    right(jacrev(function)(times), jacobian)
    right(jacfwd(function)(times), jacobian)
    if lanes == "each":
        with forward_ad.dual_level():
            found = function(forward_ad.make_dual(times, torch.ones_like(times)))
            right(forward_ad.unpack_dual(found).tangent, jacobian.sum(-1) if times.ndim else jacobian)


@pytest.mark.parametrize("name", ["grid", "tsit5", "tsit5 each", "kvaerno5", "rodas5p"])
def test_ends_of_the_span_are_mapped(name: str):
    ends, way = torch.tensor([0.5, 1.0, 2.0], dtype=DTYPE), WAYS[name]
    function = plain_times(way)[1][0]
    close = SAME if name == "grid" else 1e-5 if "tsit5" in name else 1e-2  # ten times the tolerance of the steps
    right(vmap(function)(ends), torch.stack([function(t) for t in ends]), close)
    longest = PID(1e-2, 1e-2, dtmax=0.1)
    count = lambda t: solve(pendulum, Y[0], 0.0, t, Solver(None, longest), args=(RATES[1],)).mesh.count  # noqa: E731
    assert vmap(count)(ends).tolist() == [20, 20, 20]


@pytest.mark.parametrize("adjoint", [Discrete("all"), Discrete("every", 3)])
def test_other_discrete_adjoints_have_the_same_derivatives(adjoint: Discrete):
    end = partial(end_of, solver=Solver(adjoint=adjoint))
    right(hessian(end)(Y[1]), hessian(end_of)(Y[1]))
    right(jacrev(end)(Y[1]), backward(end, Y[1]))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_vectorised_jacobians_of_autograd(name: str):
    way = WAYS[name]
    expected = backward(way, Y[1])
    jacobian = torch.autograd.functional.jacobian
    for _ in range(2):  # what a solve keeps for the next one is not transformed
        right(jacobian(way, Y[1], vectorize=True), expected, way.close)
        if "rodas" not in name:  # whose steps use tangents themselves
            right(jacobian(way, Y[1], vectorize=True, strategy="forward-mode"), expected, way.close)


def test_implicit_steps_with_masses_and_steppers_that_switch():
    class Constrained(Oscillators):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return torch.stack([y[..., 1] - y[..., 0], y[..., 0] + y[..., 1] - 1], -1)

        def mass(self, args: tuple[Tensor, ...]) -> Tensor:
            return torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=DTYPE)

    solver = Solver(Rodas5P(), TOLERANCES)
    end = lambda x: solve(Constrained(), torch.stack([x, 1 - x]), 0.0, 1.0, solver).ys  # noqa: E731
    starts = Y[:, 0]
    right(vmap(end)(starts)[:, 0], 0.5 + (starts - 0.5) * math.exp(-2), 1e-5)  # the tolerance
    right(jacrev(end)(starts[0]), backward(end, starts[0]))
    with pytest.raises(ValueError, match="y0: it does not meet the constraints"):
        vmap(lambda y: solve(Constrained(), y, 0.0, 1.0, solver).ys)(Y)
    stiff = lambda y: solve(lambda t, y: -1e4 * (y - t.cos()), y, 0.0, 1.0, Solver(Auto(), TOLERANCES)).ys  # noqa: E731
    found = vmap(stiff)(Y)
    assert (found - math.cos(1) - 1e-4 * math.sin(1)).abs().max() < 1e-5  # the slow solution, to a few tolerances
    right(jacrev(stiff)(Y[0]), backward(stiff, Y[0]))


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("size", [{"h": 0.1}, {"t1": 1.0}], ids=str)
def test_local_heuristics_take_a_step_of_its_own_for_every_mapped_sample(size: dict[str, float], lanes: Any):
    def value(rate: Tensor, y: Tensor = Y[1]) -> Tensor:
        start = torch.tensor(0.3, dtype=DTYPE)
        return local_heuristic(
            ErrorEstimate(), pendulum, start, y[None], Solver(lanes=lanes), args=(rate,), **size
        ).sum()

    right(vmap(value)(RATES), torch.stack([value(rate) for rate in RATES]))
    right(vmap(lambda y: value(RATES[0], y))(Y), torch.stack([value(RATES[0], y) for y in Y]))
    right(grad(value)(RATES[1]), backward(value, RATES[1]))
    right(jacfwd(value)(RATES[1]), backward(value, RATES[1]))


def test_compiled_solvers_go_eagerly_within_transforms():
    right(jacrev(partial(end_of, solver=Solver(compile="loop")))(Y[1]), backward(end_of, Y[1]))


@pytest.mark.slow
def test_vectorised_jacobians_of_compiled_solves():
    end = partial(end_of, solver=Solver(compile="loop"))
    right(torch.autograd.functional.jacobian(end, Y[1], vectorize=True), backward(end, Y[1]))


def test_one_mapped_sample_that_fails_fails_them_all():
    explode = lambda y, **given: solve(lambda t, y: y * y, y, 0.0, 1.0, **given)  # noqa: E731
    starts = torch.tensor([0.5, 5.0], dtype=DTYPE)
    with pytest.raises(SolveError, match="the step size fell below"):
        vmap(lambda y: explode(y).ys)(starts)
    with pytest.raises(SolveError, match="the step size fell below"):  # also where times are mapped
        vmap(lambda t1: solve(lambda t, y: y * y, starts[1], 0.0, t1).ys)(starts)
    status = vmap(lambda y: explode(y, throw=False).status)(starts)
    assert status.tolist() == [status[0].item()] * 2
    right(vmap(lambda y: explode(y).ys)(starts[:1]), torch.ones(1, dtype=DTYPE), 1e-3)  # 1 / (2 - 1), rtol 1e-4


def test_solves_that_take_no_step():
    end = lambda y, t1=0.0: solve(pendulum, y, 0.0, t1, args=(RATES[1],)).ys  # noqa: E731
    right(vmap(end)(Y), Y)
    right(jacrev(end)(Y[0]), torch.eye(2, dtype=DTYPE))
    zero = torch.zeros((), dtype=DTYPE)
    right(jacrev(lambda t: end(Y[0], t))(zero), pendulum(zero, Y[0], (RATES[1],)))


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("inner", [lambda f: f, jacfwd, jacrev], ids=["none", "jacfwd", "jacrev"])
def test_transforms_leave_nothing_behind(inner: Any, lanes: Any):
    frame._kept.clear()
    solver, ts = Solver(RK4(), Grid(n=3), lanes=lanes), torch.tensor([0.5, 1.0], dtype=DTYPE)
    end = lambda y: solve(pendulum, y[None], 0.0, 1.0, solver, args=(RATES[1],), save_at=ts).ys.flatten()  # noqa: E731
    vmap(inner(end))(Y)
    assert not frame._kept
    jacobian, expected = torch.autograd.functional.jacobian, backward(end, Y[0])
    for vectorize, strategy in ((False, "reverse-mode"), (True, "reverse-mode"), (True, "forward-mode")):
        right(jacobian(end, Y[0], vectorize=vectorize, strategy=strategy), expected)


def test_a_path_that_was_mapped_is_the_same_afterwards():
    path, way = Brownian(seed=5), WAYS["doubled each"]
    end = lambda y: solve(way.term, y[None], 0.0, 1.0, way.solver, args=(RATES[1],), path=path).ys  # noqa: E731
    before = end(Y[0])
    vmap(grad(lambda y: end(y).sum()))(Y)
    assert torch.equal(end(Y[0]), before)


REFUSED = {
    "events: transforms": lambda y: solve(pendulum, y, 0.0, 1.0, args=(RATES[1],), events=lambda t, y: y[0]),
    "adjoint: transforms of torch.func .* got Backsolve": lambda y: solve(
        pendulum, y, 0.0, 1.0, Solver(adjoint=Backsolve()), args=(RATES[1],)
    ),
    "save_at.*: expected the same times": lambda y: solve(
        pendulum, Y[0], 0.0, 4.0, args=(RATES[1],), save_at=y.abs().sort().values
    ),
    "ts, .*: expected the same times": lambda y: solve(
        pendulum,
        Y[0],
        0.0,
        4.0,
        Solver(RK4(), Grid(ts=torch.stack([0 * y[0], y[0].abs(), 0 * y[0] + 4]))),
        args=(y[0],),
    ),
    "goes through neither torch.func.vmap nor jacrev; take linear=Dense": lambda y: solve(
        pendulum, y, 0.0, 1.0, Solver(Kvaerno5(linear=GMRES())), args=(RATES[1],)
    ),
    "this solve does not go through torch.func.vmap: take torch.autograd.grad": lambda y: solve(
        lambda t, y: -y if y[0] > 0 else y, y, 0.0, 1.0
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_mapped_is_refused_with_what_to_take_instead(message: str):
    with pytest.raises((RuntimeError, ValueError), match=message):
        vmap(lambda y: REFUSED[message](y).ys)(Y)


def test_modules_whose_weights_are_given_by_a_call():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Net()

        def forward(self, y: Tensor) -> Tensor:
            return solve(self.field, y, 0.0, 1.0, Solver(None, TOLERANCES, Discrete("all"))).ys

    flow = Flow()
    weights = {name: p.detach() for name, p in flow.named_parameters()}
    slopes = vmap(grad(lambda w, y: functional_call(flow, w, (y,)).square().sum()), (None, 0))(weights, Y)
    alone = [torch.autograd.grad(flow(y).square().sum(), flow.field.inner)[0] for y in Y]
    right(slopes["field.inner"], torch.stack(alone), 1e-4)  # on steps of their own, rtol 1e-6
