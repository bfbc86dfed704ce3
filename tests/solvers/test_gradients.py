import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sciml import Discrete, Solution, Solver, solve
from sciml.solvers import (
    ETDRK4,
    PID,
    RK4,
    Final,
    Fold,
    Grid,
    Quadrature,
    Stats,
    Steps,
    Tsit5,
)
from sciml.solvers.march import Segment
from tests.solvers.registry import STEPPERS, Case
from tests.solvers.systems import DTYPE, Linked, Net

GRAPH = Discrete("graph")
REPLAYS = [Discrete("all"), Discrete("every"), Discrete("every", 3)]
KINDS = ["joint", "each"]
# Replay runs the same float64 operations as backpropagation and adds the steps' shares in another order.
SAME = 1e-9
# Central differences of 1e-6 in float64: truncation 1e-12 times third derivatives, round-off 1e-10 times the sum.
DIFFERENCES = 1e-6


def name(adjoint: Discrete) -> str:
    return adjoint.store + (str(adjoint.every) if adjoint.every else "")


@dataclass(frozen=True)
class Peak(Fold):
    """The largest state over all steps, component by component."""

    reduce: ClassVar = "max"
    stages: ClassVar[bool] = False

    def emit(self, segment: Segment, saves: int | None, *inputs: Tensor) -> Tensor:
        return segment.y1


def weighted(found: Any) -> Tensor:
    """A scalar in which every entry of every result has its own weight."""
    total = torch.zeros((), dtype=DTYPE)
    for x in [found] if isinstance(found, Tensor) else found:
        if isinstance(x, Tensor):
            total = total + (x * (1 + torch.arange(x.numel(), dtype=DTYPE).reshape(x.shape) * 0.37).sin()).sum()
        else:
            total = total + weighted(x)
    return total


def same(found: list[Tensor], right: list[Tensor]) -> bool:
    noise = 1e-15 + 1e-14 * max(float(b.abs().max()) for b in right)  # a sum that cancels keeps its terms' round-off
    return all(bool(((a - b).abs() <= SAME * b.abs().max() + noise).all()) for a, b in zip(found, right, strict=True))


def agrees_with_differences(loss: Callable[..., Tensor], inputs: list[Tensor], grads: list[Tensor]) -> None:
    """Directional derivatives, one random direction per input."""
    generator = torch.Generator().manual_seed(1)
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        way = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        with torch.no_grad():
            ends = [loss(*inputs[:i], x + sign * 1e-6 * way, *inputs[i + 1 :]) for sign in (1, -1)]
        found, right = float((grad * way).sum()), float(ends[0] - ends[1]) / 2e-6
        assert abs(found - right) < DIFFERENCES * max(1, abs(right)), (i, found, right)


class Problem:
    """One solve as a function of y0, t0, t1, save times, two args, and the solver."""

    def __init__(self, kind: str, backward: bool, folds: bool = True):
        self.kind, self.folds = kind, folds
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.rand, dtype=DTYPE, generator=generator)
        t0, t1 = (1.0, 0.1) if backward else (0.1, 1.0)
        lanes = (3,) if kind == "each" else ()
        save_at = t0 + (t1 - t0) * torch.tensor([0.9, 0.05, 0.5, 0.5], dtype=DTYPE)
        self.inputs = [
            draw(3, 3),
            t0 + 0.05 * draw(lanes),
            t1 - 0.05 * draw(lanes),
            save_at + 0.01 * draw(*lanes, 4),
            torch.tensor([-1.0, -2.0, -0.5], dtype=DTYPE),
            torch.tensor([1.0, 0.5, -0.7], dtype=DTYPE),
        ]

    def solve(self, solver: Solver, inputs: list[Tensor], **options: Any) -> Solution:
        y0, t0, t1, save_at, *args = inputs
        folds = {}
        if self.folds:
            integrand = lambda t, y, args: (y * args[1] + t).square()  # noqa: E731
            folds = {"steps": Steps(), "stats": Stats(), "q": Quadrature(integrand), "final": Final(), "peak": Peak()}
        return solve(Linked(), y0, t0, t1, solver, args=tuple(args), save_at=save_at, folds=folds, **options)

    def loss(self, solver: Solver, *inputs: Tensor, **options: Any) -> Tensor:
        s = self.solve(solver, list(inputs), **options)
        total = weighted(s.ys)
        if self.folds:
            steps, stats = s.folds["steps"], s.folds["stats"]
            total = total + weighted([steps.ts, steps.ys, stats.h, stats.error])
            total = total + weighted([s.folds[key] for key in ("q", "final", "peak")])
        return total

    def grads(self, solver: Solver, **options: Any) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in self.inputs]
        return list(torch.autograd.grad(self.loss(solver, *inputs, **options), inputs))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_replay_equals_backprop_and_finite_differences(kind: str, backward: bool):
    problem = Problem(kind, backward)
    solver = partial(Solver, Tsit5(), PID(1e-4, 1e-6, dt0=0.9), lanes=kind)
    first = problem.solve(solver(), problem.inputs)
    assert bool((first.stats.rejected > 0).all())
    mesh = first.mesh
    right = problem.grads(solver(GRAPH), mesh=mesh)
    for adjoint in REPLAYS:
        assert same(problem.grads(solver(adjoint), mesh=mesh), right), adjoint
        assert same(problem.grads(solver(adjoint)), right), adjoint  # a march of its own chooses these steps
    assert same(problem.grads(solver(GRAPH)), right)
    agrees_with_differences(partial(problem.loss, solver(GRAPH), mesh=mesh), problem.inputs, right)


@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
@pytest.mark.parametrize("case", [c for c in STEPPERS if c.stepper.dense], ids=str)
def test_every_stepper_has_the_gradient_of_its_steps(case: Case, adjoint: Discrete):
    problem = Problem("each", False, folds=False)
    solver = partial(Solver, case.stepper, Grid(n=7), lanes="each")
    if case.stepper.history and not case.stepper.reversible and adjoint.store != "graph":
        pytest.skip("its steps cannot be taken again one by one, which is refused")
    adjoint = Discrete("invert") if case.stepper.history and adjoint != GRAPH else adjoint
    grads = problem.grads(solver(adjoint))
    if adjoint == GRAPH:
        agrees_with_differences(partial(problem.loss, solver(GRAPH)), problem.inputs, grads)
    else:
        assert same(grads, problem.grads(solver(GRAPH)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [c for c in STEPPERS if not c.stepper.dense], ids=str)
def test_exponential_stepper_has_a_gradient_through_its_coefficients(case: Case, kind: str):
    inputs = Problem(kind, False).inputs
    inputs.pop(3)

    def loss(adjoint: Discrete, *inputs: Tensor) -> Tensor:
        y0, t0, t1, *args = inputs
        solver = Solver(case.stepper, Grid(n=6), adjoint, lanes=kind)
        s = solve(Linked(), y0, t0, t1, solver, args=tuple(args), folds={"steps": Steps()})
        return weighted([s.ys, *s.folds["steps"]])

    grads = {}
    for adjoint in (GRAPH, *REPLAYS):
        own = [x.clone().requires_grad_() for x in inputs]
        grads[adjoint] = torch.autograd.grad(loss(adjoint, *own), own)
        assert same(grads[adjoint], grads[GRAPH]), adjoint
    agrees_with_differences(partial(loss, GRAPH), inputs, list(grads[GRAPH]))


def test_exponential_stepper_has_a_gradient_at_its_save_times():
    problem = Problem("each", False)
    y0, _, _, _, *args = problem.inputs
    for adjoint in (GRAPH, *REPLAYS):
        own = [x.clone().requires_grad_() for x in (y0, *args)]
        solver = Solver(ETDRK4(), Grid(n=10), adjoint, lanes="each")
        s = solve(Linked(), own[0], 0.0, 1.0, solver, args=tuple(own[1:]), save_at=[1.0, 0.3])
        two = solve(Linked(), own[0], 0.0, 0.3, Solver(ETDRK4(), Grid(n=3), lanes="each"), args=tuple(own[1:]))
        found = torch.autograd.grad(weighted(s.ys[:, 1]), own)
        # the step sizes of the two grids differ in the last place
        assert same(list(found), list(torch.autograd.grad(weighted(two.ys), own)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
def test_times_of_a_grid_have_a_gradient(kind: str, ends: tuple[float, float]):
    a, b = ends
    inner = a + (b - a) * torch.tensor([0.1, 0.3, 0.35, 0.8], dtype=DTYPE)
    y0 = torch.rand(2, 2, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    net = Net()

    def loss(adjoint: Discrete, y0: Tensor, inner: Tensor, t1: Tensor) -> Tensor:
        ts = torch.cat([torch.full((1,), a, dtype=DTYPE), inner, t1[None]])
        solver = Solver(RK4(), Grid(ts=ts), adjoint, lanes=kind)
        s = solve(net, y0, a, t1, solver, save_at=[0.33, 0.9], folds={"steps": Steps(), "stats": Stats()})
        return weighted([s.ys, *s.folds["steps"], s.folds["stats"].h])

    inputs = [y0, inner, torch.tensor(b, dtype=DTYPE)]
    grads = {}
    for adjoint in (GRAPH, *REPLAYS):
        own = [x.clone().requires_grad_() for x in inputs]
        value = loss(adjoint, *own)
        grads[adjoint] = torch.autograd.grad(value, [*own, *net.parameters()])
        assert same(list(grads[adjoint]), list(grads[GRAPH])), adjoint
    agrees_with_differences(partial(loss, GRAPH), inputs, list(grads[GRAPH][:3]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
def test_parameters_of_every_declared_place_have_a_gradient(kind: str, adjoint: Discrete):
    class Owner:
        def __init__(self, net: nn.Module):
            self.net = net

        def field(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(t, y)

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(t, y)

    net = Net()
    y0 = torch.ones(2, 2, dtype=DTYPE)
    solver = Solver(Tsit5(), Grid(n=5), adjoint, lanes=kind)
    right = torch.autograd.grad(weighted(solve(net, y0, 0.0, 1.0, Solver(Tsit5(), Grid(n=5))).ys), net.parameters())
    fields = {
        "module": net,
        "forward": net.forward,
        "method": Owner(net).field,
        "object": Owner(net),
        "partial": partial(lambda net, t, y: net(t, y), net),
    }
    for where, field in fields.items():
        found = torch.autograd.grad(weighted(solve(field, y0, 0.0, 1.0, solver).ys), net.parameters())
        assert same(list(found), list(right)), where


@pytest.mark.parametrize("tree", [False, True], ids=["tensor", "tree"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
def test_parameters_of_an_integrand_have_a_gradient(kind: str, adjoint: Discrete, tree: bool):
    class Integrand(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0, dtype=DTYPE))

        def forward(self, t: Tensor, y, args: tuple[Tensor, ...]) -> Tensor:
            return self.w**2 * (y["y"] if tree else y).sum(-1)

    integrand, y0 = Integrand(), torch.ones(2, 2, dtype=DTYPE)
    decay = (lambda t, y: {"y": -y["y"]}) if tree else (lambda t, y: -y)
    solver = Solver(Tsit5(), PID(1e-8, 1e-10), adjoint, lanes=kind)
    s = solve(decay, {"y": y0} if tree else y0, 0.0, 1.0, solver, folds={"q": Quadrature(integrand)})
    (grad,) = torch.autograd.grad(s.folds["q"].sum(), integrand.w)
    assert abs(grad.item() - 16 * (1 - torch.tensor(-1.0).exp().item())) < 1e-6  # 2 w times 4 components; rtol 1e-8


@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_complex_state_has_the_gradient_of_its_parts(kind: str, adjoint: Discrete):
    rate = torch.tensor([0.3 + 2j, -0.2 - 1j], dtype=torch.complex128, requires_grad=True)
    z0 = torch.tensor([[1.0 + 1j, 0.5j], [2.0, -1j]], dtype=torch.complex128, requires_grad=True)
    solver = Solver(Tsit5(), Grid(n=6), adjoint, lanes=kind)

    def loss(z0: Tensor, rate: Tensor) -> Tensor:
        field = lambda t, z, args: args[0] * z + (1j * t) * z.abs() ** 2  # noqa: E731
        return weighted(torch.view_as_real(solve(field, z0, 0.0, 1.0, solver, args=(rate,), save_at=[0.4, 1.0]).ys))

    assert torch.autograd.gradcheck(loss, (z0, rate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replay_in_float32_is_as_close_as_round_off(dtype: torch.dtype):
    net = Net().to(dtype)
    y0, t1 = torch.ones(4, 2, dtype=dtype, requires_grad=True), torch.ones((), dtype=dtype, requires_grad=True)
    grads = []
    for adjoint in (GRAPH, *REPLAYS):
        ys = solve(net, y0, 0.0, t1, Solver(Tsit5(), Grid(n=10), adjoint), save_at=[0.33, 1.0]).ys
        grads.append(torch.autograd.grad(ys.square().sum(), [y0, t1, *net.parameters()]))
    for found in grads[1:]:
        for a, b in zip(found, grads[0], strict=True):
            assert a.dtype == b.dtype
            # products summed over ten steps of seven stages of eight numbers, two roundings each; for t1, which moves
            # no save time, they cancel
            assert (a - b).abs().max() <= 1120 * torch.finfo(dtype).eps * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_times_at_the_ends_have_a_gradient(kind: str, adjoint: Discrete, dtype: torch.dtype):
    """Also where single precision puts them a little outside."""
    ts = torch.tensor([0.1, 0.7], dtype=dtype, requires_grad=True)
    y0 = torch.ones(1, 1, dtype=DTYPE)
    solver = Solver(Tsit5(), Grid(n=30), adjoint, lanes=kind)
    ys = solve(lambda t, y: -t * y, y0, 0.1, 0.7, solver, save_at=ts).ys.reshape(2)
    (grad,) = torch.autograd.grad(ys.sum(), ts)
    assert torch.allclose(grad, (-ts * ys).to(dtype), rtol=1e-6)  # 30 steps of order 5, and ts in single precision


@pytest.mark.parametrize("kind", KINDS)
def test_graph_has_second_derivatives(kind: str):
    def loss(y0: Tensor, t1: Tensor, linear: Tensor, coupling: Tensor) -> Tensor:
        solver = Solver(Tsit5(), Grid(n=3), lanes=kind)
        s = solve(Linked(), y0, 0.0, t1, solver, args=(linear, coupling), save_at=t1[..., None] / 2)
        return s.ys.square().sum()

    draw = partial(torch.rand, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    inputs = tuple(x.requires_grad_() for x in (draw(2, 2), draw(2 if kind == "each" else ()), draw(2), draw(2)))
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("adjoint", REPLAYS, ids=name)
def test_replay_refuses_second_derivatives(adjoint: Discrete):
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    y1 = solve(lambda t, y: -(y**2), y0, 0.0, 1.0, Solver(adjoint=adjoint)).ys
    (grad,) = torch.autograd.grad(y1.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match=r'only Discrete\(store="graph"\)'):
        (y1.sum() + grad.sum()).backward()  # where a constant gradient would go unnoticed


@pytest.mark.parametrize("kind", KINDS)
def test_undeclared_tensor_is_differentiated_by_backprop(kind: str):
    hidden = torch.tensor(-0.7, dtype=DTYPE, requires_grad=True)
    s = solve(lambda t, y: hidden * y, torch.ones(2, 1, dtype=DTYPE), 0.0, 1.0, Solver(Tsit5(), Grid(n=20), lanes=kind))
    (grad,) = torch.autograd.grad(s.ys.sum(), hidden)
    assert abs(grad.item() - 2 * torch.tensor(-0.7).exp().item()) < 1e-6  # 20 steps of order 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", REPLAYS, ids=name)
def test_undeclared_tensor_is_refused_by_name(kind: str, adjoint: Discrete):
    hidden = torch.tensor([-0.7], dtype=DTYPE, requires_grad=True)
    inside = 2 * hidden
    net = Net()
    y0 = torch.ones(2, 2, dtype=DTYPE)
    solver = Solver(adjoint=adjoint, lanes=kind)
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return hidden * y

    for field, called in ((counted, "hidden"), (lambda t, y: inside * y, "inside"), (lambda t, y: net(t, y), "net")):
        with pytest.raises(ValueError, match=re.escape(f"it reads '{called}'")):
            solve(field, y0, 0.0, 1.0, solver)
    read = lambda t, y, args: (y * hidden).sum(-1)  # noqa: E731
    with pytest.raises(ValueError, match="not declared"):
        solve(lambda t, y: -y, y0, 0.0, 1.0, solver, folds={"q": Quadrature(read)})
    calls.clear()
    with torch.no_grad():
        s = solve(counted, y0, 0.0, 1.0, solver)
    assert len(calls) == int(s.stats.nfe.max())  # nothing is walked where nothing is differentiated
    y0.requires_grad_()
    with pytest.raises(ValueError, match="not declared"):
        solve(lambda t, y: y * y0.sum(), y0, 0.0, 1.0, solver)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
def test_nothing_to_differentiate_costs_nothing(kind: str, adjoint: Discrete):
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return -y

    s = solve(counted, torch.ones(2, 2, dtype=DTYPE), 0.0, 1.0, Solver(adjoint=adjoint, lanes=kind))
    assert not s.ys.requires_grad
    assert len(calls) <= int(s.stats.nfe.max()) + 2  # two more look for undeclared tensors, at both ends


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
def test_inputs_that_are_results_of_others_have_their_gradient(kind: str, adjoint: Discrete):
    base = torch.tensor(0.5, dtype=DTYPE, requires_grad=True)
    y0, scale, t1 = base * torch.ones(2, 1, dtype=DTYPE), -(base**2), base * 2
    field = lambda t, y, args: args[0] * y  # noqa: E731
    s = solve(field, y0, base - 0.5, t1, Solver(Tsit5(), Grid(n=30), adjoint, lanes=kind), args=(scale,))
    (grad,) = torch.autograd.grad(s.ys.sum(), base)
    # 2 b exp(-b^2 (b + 1/2)), whose derivative is 2 exp(..) (1 - b (3 b^2 + b))
    exact = 2 * torch.tensor(-0.25).exp().item() * (1 - 0.5 * (0.75 + 0.5))
    assert abs(grad.item() - exact) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS], ids=name)
def test_gradient_of_rejected_and_padded_steps_is_finite(kind: str, adjoint: Discrete):
    """A root whose derivative is infinite at 0, next to a sample that ends long before."""
    y0 = torch.tensor([[1.0], [0.04]], dtype=DTYPE, requires_grad=True)
    t1 = torch.tensor([1.9, 0.1], dtype=DTYPE) if kind == "each" else 0.1
    s = solve(lambda t, y: -y.sqrt(), y0, 0.0, t1, Solver(Tsit5(), PID(1e-6, 1e-8), adjoint, lanes=kind))
    (grad,) = torch.autograd.grad(s.ys.sum(), y0)
    exact = 1 - torch.as_tensor(t1).reshape(-1, 1) / (2 * y0.detach().sqrt())  # y = (sqrt(y0) - t/2)^2
    assert torch.allclose(grad, exact, atol=1e-4)  # rtol 1e-6, the end of the first sample close to the singularity


# What is kept


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes of the distinct tensors that autograd keeps for a run."""
    seen: dict[int, int] = {}
    alive = []

    def pack(x: Tensor) -> Tensor:
        alive.append(x)
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        alive.append(run())
    return sum(seen.values())


@pytest.mark.parametrize("kind", KINDS)
def test_store_keeps_what_it_promises(kind: str):
    net, y0 = Net(), torch.ones(500, 2, dtype=DTYPE)
    state = y0.untyped_storage().nbytes()
    n = 100

    def kept(adjoint: Discrete, steps: int = n) -> float:
        solver = Solver(Tsit5(), Grid(n=steps), adjoint, lanes=kind)
        return saved_bytes(lambda: solve(net, y0, 0.0, 1.0, solver)) / state

    every_stage, states, sparse, tenth = map(kept, [GRAPH, *REPLAYS[:2], Discrete("every", 10)])
    times = n if kind == "each" else 2 * n * 8 / state  # the mesh itself, (n + 1, b) where every sample has its own
    assert every_stage > 6 * 2 * n  # six stages, at least two activations each
    # n + 1 states; y0, the weights and the times of a hundred steps beside
    assert n <= states < n + times + 10
    assert tenth < 10 + times + 10
    assert sparse == tenth  # the root of a hundred
    assert kept(REPLAYS[1], 400) < 20 + 4 * times + 10
