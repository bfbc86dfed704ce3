"""Newton's iteration, stiffness, masses and large systems; what any stepper has to do is tested with the others."""

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._pytree import tree_leaves, tree_map

from sciml import Discrete, SolveError, Solver, Status, solve
from sciml.solvers import (
    GMRES,
    PID,
    Dense,
    Grid,
    ImplicitEuler,
    ImplicitMidpoint,
    KenCarp4,
    Kvaerno3,
    Kvaerno5,
    RadauIIA5,
    Rodas5P,
    Stats,
    Stepper,
    Tsit5,
)
from sciml.solvers.march import March
from sciml.solvers.state import Const, State
from sciml.solvers.term import Term, as_term
from tests.solvers.registry import IMPLICIT, Case
from tests.solvers.stiff import PROBLEMS, ROBERTSON, Stiff, scaled_error
from tests.solvers.systems import DTYPE, Net, coupled, coupled_exact
from tests.solvers.test_gradients import GRAPH, KINDS, REPLAYS, Problem, same, weighted

PAIRS = [Kvaerno3(), KenCarp4(), Kvaerno5(), Rodas5P()]
BEST = [Kvaerno5(), Rodas5P()]
NAME = lambda x: type(x).__name__  # noqa: E731


@pytest.mark.parametrize("stepper", BEST, ids=NAME)
@pytest.mark.parametrize("name", PROBLEMS)
@torch.no_grad()
def test_stiff_problem_is_solved_to_its_tolerance(name: str, stepper: Stepper):
    problem, rtol = PROBLEMS[name], 1e-6
    solver = Solver(stepper, PID(rtol, rtol * problem.ratio))
    s = solve(problem.field, problem.y0, 0.0, problem.end, solver)
    assert scaled_error(s.ys, problem.exact) < 300 * rtol  # the bar; local errors of rtol add up
    assert int(s.stats.accepted) < 2000  # an explicit method would take a million steps


@pytest.mark.slow
@pytest.mark.parametrize("stepper", BEST, ids=NAME)
@pytest.mark.parametrize("name", PROBLEMS)
@torch.no_grad()
def test_stiff_problem_is_solved_at_every_tolerance(name: str, stepper: Stepper):
    problem = PROBLEMS[name]
    for rtol in (1e-4, 1e-6, 1e-8):
        s = solve(problem.field, problem.y0, 0.0, problem.end, Solver(stepper, PID(rtol, rtol * problem.ratio)))
        assert scaled_error(s.ys, problem.exact) < 300 * rtol, rtol


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_reference_is_that_of_scipy(name: str):
    problem = PROBLEMS[name]
    field = lambda t, y: problem.field(t, torch.from_numpy(y)).numpy()  # noqa: E731
    jacobian = lambda t, y: torch.func.jacfwd(partial(problem.field, t))(torch.from_numpy(y)).numpy()  # noqa: E731
    y0 = problem.y0.numpy()
    s = solve_ivp(field, (0, problem.end), y0, method="Radau", rtol=1e-11, atol=1e-14, jac=jacobian)
    assert scaled_error(torch.from_numpy(s.y[:, -1]), problem.exact) < 1e-9  # local errors of 1e-11 add up


def oscillators(t: Tensor, y: Tensor) -> Tensor:
    """Three of several stiffnesses."""
    mu = torch.tensor([[50.0], [20.0], [100.0]], dtype=DTYPE)
    position, speed = y[:, :1], y[:, 1:]
    return torch.cat([speed, mu * (1 - position**2) * speed - position], 1)


@cache
def oscillated() -> Tensor:
    y0 = torch.tensor([[2.0, 0.0]], dtype=DTYPE).repeat(3, 1)
    return solve(oscillators, y0, 0.0, 30.0, Solver(Rodas5P(), PID(1e-9, 1e-11), lanes="each")).ys


@pytest.mark.parametrize("stepper", BEST, ids=NAME)
@pytest.mark.parametrize("kind", ["each", "rows", "whole"])
@torch.no_grad()
def test_batch_of_stiff_systems_is_solved(kind: str, stepper: Stepper):
    """By themselves, together, and together as one system of six unknowns."""
    y0 = torch.tensor([[2.0, 0.0]], dtype=DTYPE).repeat(3, 1)
    chosen = type(stepper)(rows=kind == "rows")
    solver = Solver(chosen, PID(1e-6, 1e-8), lanes="each" if kind == "each" else "joint")
    s = solve(oscillators, y0, 0.0, 30.0, solver)
    assert scaled_error(s.ys, oscillated()) < 300e-6  # as above
    assert kind != "each" or len(set(s.stats.accepted.tolist())) > 1


@pytest.mark.parametrize("stepper", [case.stepper for case in IMPLICIT], ids=NAME)
def test_stiff_component_is_damped(stepper: Stepper):
    """Prothero and Robinson's y' = -1e6 (y - sin t) + cos t, a hundred times stiffer than a step is long."""
    n, rate = 16, 1e6

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -rate * (y - t.sin()) + t.cos()

    ts = torch.linspace(0, 1, 40, dtype=DTYPE)[1:]
    s = solve(field, torch.zeros(1, dtype=DTYPE), 0.0, 1.0, Solver(stepper, Grid(n=n)), save_at=ts)
    conservative = ("ImplicitMidpoint", "Trapezoid", "GaussLegendre4", "GaussLegendre6")
    errors = (s.ys[:, 0] - ts.sin()).abs()
    worst = errors[-1] if type(stepper).__name__ in conservative else errors.max()
    # stages of order q leave h^(q + 1), whatever the order of the method (Hairer & Wanner, IV.15); q is at least 1
    assert worst < (1 / n) ** 2
    off = solve(field, torch.ones(1, dtype=DTYPE), 0.0, 1.0, Solver(stepper, Grid(n=n))).ys
    damped = abs(float(off) - float(torch.tensor(1.0).sin())) < (1 / n) ** 2
    assert damped == (type(stepper).__name__ not in conservative)  # |R| is 1 at infinity


@pytest.mark.parametrize(("stepper", "order"), [(Rodas5P(), 2), (Kvaerno3(), 2), (Kvaerno5(), 2)])
def test_order_in_the_stiff_limit_is_the_one_known(stepper: Stepper, order: int):
    """Prothero and Robinson's problem at h lambda from 1e3 on: no better than the order of the stages, but no worse."""
    rate, steps, errors = 1e5, (4, 8, 16, 32), []
    field = lambda t, y: -rate * (y - t.cos()) - t.sin()  # noqa: E731
    for n in steps:
        y1 = solve(field, torch.ones(1, dtype=DTYPE), 0.0, 2.0, Solver(stepper, Grid(n=n))).ys
        errors.append(float((y1 - torch.tensor(2.0, dtype=DTYPE).cos()).abs()))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope > order - 0.2, errors
    assert errors[-1] < 1e-7


class Massive(Term):
    """M y' = M f(t, y) for a given M."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return torch.einsum("...ij,...j->...i", self.matrix, coupled(t, y))

    def mass(self, args: tuple[Tensor, ...]) -> Tensor:
        return self.matrix


MASSIVE = [case for case in IMPLICIT if case.stepper.masses]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MASSIVE, ids=str)
def test_mass_changes_nothing_but_the_form(case: Case, kind: str):
    one = torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=DTYPE)
    matrix = one if kind == "joint" else torch.stack([one, 3 * one.mT])
    y0 = torch.ones((2,) if kind == "joint" else (2, 2), dtype=DTYPE)
    ts = torch.tensor([0.3, 1.0], dtype=DTYPE)
    solver = Solver(case.stepper, Grid(n=8), lanes=kind)
    found, right = (solve(term, y0, 0.0, 1.0, solver, save_at=ts).ys for term in (Massive(matrix), coupled))
    assert (found - right).abs().max() < 1e-10  # what Newton's iteration leaves


@pytest.mark.parametrize("case", [*IMPLICIT, Case(Tsit5(), ())], ids=str)
def test_mass_is_refused_where_it_cannot_be_taken(case: Case):
    solver = Solver(case.stepper, Grid(n=4))
    with pytest.raises(ValueError, match=r"expected a mass of shape \(2, 2\)|takes no mass"):
        solve(Massive(torch.ones(3, 3, dtype=DTYPE)), torch.ones(2, dtype=DTYPE), 0.0, 1.0, solver)
    if not case.stepper.masses:
        with pytest.raises(ValueError, match=f"{type(case.stepper).__name__} takes no mass; expected Rodas5P"):
            solve(Massive(torch.eye(2, dtype=DTYPE)), torch.ones(2, dtype=DTYPE), 0.0, 1.0, solver)


class Algebraic(Term):
    """Robertson's problem with the conservation of mass in the place of the third equation."""

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        first, second, _ = ROBERTSON.field(t, y).unbind(-1)
        return torch.stack([first, second, y.sum(-1) - 1], -1)

    def mass(self, args: tuple[Tensor, ...]) -> Tensor:
        return torch.tensor([1.0, 1.0, 0.0], dtype=DTYPE).diag()


@cache
def of_differential_equations(kind: str) -> Tensor:
    y0, t1, ts = span(kind)
    return solve(ROBERTSON.field, y0, 0.0, t1, Solver(Rodas5P(), PID(1e-10, 1e-16), lanes=kind), save_at=ts).ys


def span(kind: str) -> tuple[Tensor, Any, Any]:
    """Where to start, when to end and when to save."""
    if kind == "joint":
        return ROBERTSON.y0, 40.0, [12.0, 40.0]
    t1 = torch.tensor([40.0, 4.0], dtype=DTYPE)
    return ROBERTSON.y0.repeat(2, 1), t1, t1[:, None] * torch.tensor([0.3, 1.0])


@pytest.mark.parametrize(("stepper", "kind"), [*((s, "joint") for s in PAIRS), (Rodas5P(), "each")])
def test_differential_algebraic_system_has_the_solution_of_the_differential_one(stepper: Stepper, kind: str):
    y0, t1, ts = span(kind)
    rtol = 1e-6
    solver = Solver(stepper, PID(rtol, rtol * 1e-6), lanes=kind)
    with torch.no_grad():
        found, right = solve(Algebraic(), y0, 0.0, t1, solver, save_at=ts).ys, of_differential_equations(kind)
    assert scaled_error(found, right) < 300 * rtol
    ends = found.select(int(kind == "each"), 1)
    assert (ends.sum(-1) - 1).abs().max() < 1e-8  # Newton's hundredth of rtol, at the ends of steps


@pytest.mark.parametrize("adjoint", [GRAPH, *REPLAYS[:1]])
@pytest.mark.parametrize("stepper", [Kvaerno3(rtol=1e-12, atol=1e-12), Rodas5P()], ids=NAME)
def test_gradient_through_a_mass_agrees_with_differences(stepper: Stepper, adjoint: Discrete):
    class Weighted(Term):
        def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return coupled(t, y)

        def mass(self, args: tuple[Tensor, ...]) -> Tensor:
            return args[0]

    y0 = torch.ones(2, dtype=DTYPE)
    matrix = torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=DTYPE, requires_grad=True)
    loss = lambda m: weighted(  # noqa: E731
        solve(Weighted(), y0, 0.0, 1.0, Solver(stepper, Grid(n=4), adjoint), args=(m,), save_at=[0.4, 1.0]).ys
    )
    assert torch.autograd.gradcheck(loss, matrix, eps=1e-5, atol=1e-7)  # truncation 1e-10, round-off 1e-16 / 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", [Kvaerno5(rtol=1e-12, atol=1e-12), Rodas5P()], ids=NAME)
def test_gradient_on_chosen_steps_agrees_with_differences(stepper: Stepper, kind: str):
    """With all folds, the error estimate's among them, on the frozen mesh."""
    problem = Problem(kind, False)
    solver = partial(Solver, stepper, PID(1e-2, 1e-2, dt0=0.9), lanes=kind)
    mesh = problem.solve(solver(), problem.inputs).mesh
    right = problem.grads(solver(GRAPH), mesh=mesh)
    for adjoint in REPLAYS:
        assert same(problem.grads(solver(adjoint), mesh=mesh), right), adjoint
    loss, generator = partial(problem.loss, solver(GRAPH), mesh=mesh), torch.Generator().manual_seed(1)
    for i, (x, grad) in enumerate(zip(problem.inputs, right, strict=True)):
        way = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        shifted = lambda size, i=i, x=x, way=way: [*problem.inputs[:i], x + size * way, *problem.inputs[i + 1 :]]  # noqa: E731
        with torch.no_grad():
            difference = float(loss(*shifted(1e-4)) - loss(*shifted(-1e-4))) / 2e-4
        # truncation 1e-8 times third derivatives; the estimate's round-off, some 1e-13, over rtol and 1e-4
        assert abs(float((grad * way).sum()) - difference) < 3e-6 * max(1, abs(difference)), i


@pytest.mark.parametrize("stepper", [Kvaerno5(rtol=1e-12, atol=1e-12), Rodas5P(), RadauIIA5()], ids=NAME)
def test_parameters_have_the_same_gradient_by_every_linear_solver_and_adjoint(stepper: Stepper):
    net, y0 = Net(), torch.ones(3, 2, dtype=DTYPE)
    grads = []
    for linear in (Dense(), GMRES(1e-13)):
        for adjoint in (GRAPH, REPLAYS[1]):
            chosen = type(stepper)(**{**vars(stepper), "linear": linear})
            s = solve(net, y0, 0.0, 1.0, Solver(chosen, Grid(n=3), adjoint))
            grads.append(list(torch.autograd.grad(weighted(s.ys), net.parameters())))
    for other in grads[1:]:
        assert all(torch.allclose(a, b, rtol=1e-8) for a, b in zip(other, grads[0], strict=True))
    explicit = torch.autograd.grad(weighted(solve(net, y0, 0.0, 1.0, Solver(Tsit5(), Grid(n=60))).ys), net.parameters())
    # three steps of order 5 are off by some 1e-4
    assert all((a - b).abs().max() < 1e-2 * b.abs().max() for a, b in zip(grads[0], explicit, strict=True))


def test_second_derivative_is_right_or_refused():
    y0 = torch.ones(2, dtype=DTYPE, requires_grad=True)
    run = lambda stepper: lambda y: solve(coupled, y, 0.0, 1.0, Solver(stepper, Grid(n=4))).ys  # noqa: E731
    assert torch.autograd.gradgradcheck(run(Rodas5P()), y0)
    (grad,) = torch.autograd.grad(run(Kvaerno3())(y0).sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def brusselator(t: Tensor, y: Tensor) -> Tensor:
    """Two species on (0, 1) by second differences, u = 1 and v = 3 at the ends (Hairer & Wanner, IV.10), (2, n)."""
    u, v = y.unbind(-2)
    pad = lambda x, end: torch.nn.functional.pad(x[None], (1, 1), value=end)[0]  # noqa: E731
    spread = lambda x, end: 0.02 * (x.shape[-1] + 1) ** 2 * pad(x, end).diff(n=2)  # noqa: E731
    return torch.stack([1 + u * u * v - 4 * u + spread(u, 1.0), 3 * u - u * u * v + spread(v, 3.0)])


@pytest.mark.parametrize("stepper", [Kvaerno3, Rodas5P])
@torch.no_grad()
def test_large_system_is_solved_without_its_matrix(stepper: type[Stepper]):
    n = 140
    x = torch.arange(1, n + 1, dtype=DTYPE) / (n + 1)
    y0 = torch.stack([1 + (2 * torch.pi * x).sin(), 3 + 0 * x])
    chosen = [stepper(linear=linear) for linear in (None, GMRES(1e-10, restart=80), Dense())]
    assert isinstance(chosen[0].solver(2 * n), GMRES)  # past 256 unknowns
    runs = [solve(brusselator, y0, 0.0, 0.1, Solver(s, PID(1e-4, 1e-6))) for s in chosen[1:]]
    assert (runs[0].ys - runs[1].ys).abs().max() < 1e-5  # a tenth of rtol, since both find the same steps
    assert int(runs[0].stats.accepted) == int(runs[1].stats.accepted)


class Underdetermined(Term):
    """An equation 0 = 0 in the last sample, whatever the step."""

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return y * torch.tensor([[-1.0, -1.0], [-1.0, 0.0]], dtype=DTYPE)

    def mass(self, args: tuple[Tensor, ...]) -> Tensor:
        return torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=DTYPE).diag_embed()


@pytest.mark.parametrize("kind", ["each", "rows"])
@pytest.mark.parametrize("case", MASSIVE, ids=str)
def test_singular_matrix_is_a_status(case: Case, kind: str):
    y0 = torch.ones(2, 2, dtype=DTYPE)
    for controller in [Grid(n=4), PID()][: 1 + case.stepper.adaptive]:
        stepper = type(case.stepper)(rows=kind == "rows")
        solver = Solver(stepper, controller, lanes="joint" if kind == "rows" else "each")
        with pytest.raises(SolveError, match="stage equations of an implicit step could not be solved") as caught:
            solve(Underdetermined(), y0, 0.0, 1.0, solver)
        assert caught.value.status == (Status.NEWTON,)
        assert caught.value.samples == ((1,) if kind == "each" else ())
        s = solve(Underdetermined(), y0, 0.0, 1.0, solver, throw=False)
        assert torch.equal(s.ys[1], y0[1])
        assert kind == "rows" or torch.allclose(s.ys[0], torch.tensor(-1.0, dtype=DTYPE).exp(), rtol=0.2)


@pytest.mark.parametrize("stepper", PAIRS, ids=NAME)
def test_singular_matrix_is_a_smaller_step_under_control(stepper: Stepper):
    rate = 1 / (0.25 * stepper.tableau.gamma)
    solver = Solver(stepper, PID(1e-6, 1e-6, dt0=0.25), lanes="each")
    s = solve(lambda t, y: rate * y, torch.ones(1, 1, dtype=DTYPE), 0.0, 0.5, solver)
    assert torch.allclose(s.ys, torch.tensor(0.5 * rate, dtype=DTYPE).exp(), rtol=1e-4)


def test_iteration_that_does_not_converge_is_a_status_on_a_grid_and_a_smaller_step_under_control():
    field = lambda t, y: -1e3 * y**3 + t.cos()  # noqa: E731
    y0 = torch.full((1,), 20.0, dtype=DTYPE)
    with pytest.raises(SolveError) as caught:
        solve(field, y0, 0.0, 1.0, Solver(ImplicitEuler(iterations=3), Grid(n=2)))
    assert caught.value.status == (Status.NEWTON,)
    chosen = Solver(Kvaerno5(), PID(1e-6, 1e-8, dt0=0.5))
    s = solve(field, y0, 0.0, 1.0, chosen)
    assert int(s.stats.rejected) > 0
    assert (s.ys - solve(field, y0, 0.0, 1.0, Solver(Rodas5P(), PID(1e-9, 1e-11))).ys).abs() < 1e-5


@pytest.mark.parametrize("stepper", [Kvaerno5(), ImplicitMidpoint(), RadauIIA5(), Rodas5P()], ids=NAME)
def test_field_that_is_not_finite_is_called_so(stepper: Stepper):
    field = lambda t, y: torch.where(t > 0.4, torch.nan, -y)  # noqa: E731
    s = solve(field, torch.ones(2, dtype=DTYPE), 0.0, 1.0, Solver(stepper, Grid(n=4)), throw=False)
    assert s.status == Status.NON_FINITE


def test_state_that_cannot_be_taken_is_refused():
    with pytest.raises(TypeError, match=r"y0: Kvaerno5 expects a real state, got torch.complex128"):
        solve(lambda t, y: y, torch.ones(2, dtype=torch.complex128), 0.0, 1.0, Solver(Kvaerno5()))
    with pytest.raises(ValueError, match=r"Rodas5P\(rows=True\) expects a batch"):
        solve(lambda t, y: y, torch.ones(()), 0.0, 1.0, Solver(Rodas5P(rows=True)))


@pytest.mark.parametrize("stepper", PAIRS, ids=NAME)
def test_single_precision_reaches_its_tolerance(stepper: Stepper):
    s = solve(coupled, torch.ones(2), 0.0, 2.0, Solver(stepper, PID(1e-4, 1e-6)), folds={"stats": Stats()})
    assert (s.ys - coupled_exact(torch.tensor(2.0))).abs().max() < 30e-4  # as in double precision
    assert int(s.stats.rejected) < 5


def test_name_takes_the_stepper():
    assert solve(Stiff.decay, torch.ones(1, dtype=DTYPE), 0.0, 1.0, "rodas5p").status == Status.DONE
    assert solve(Stiff.decay, torch.ones(1, dtype=DTYPE), 0.0, 1.0, "kvaerno5").status == Status.DONE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", [Rodas5P(), Kvaerno3(iterations=4)], ids=NAME)
@torch.no_grad()
def test_march_in_one_compiled_loop_is_the_eager_one(stepper: Stepper, kind: str):
    y0 = ROBERTSON.y0.repeat(2, 1) if kind == "each" else ROBERTSON.y0
    lanes = y0.shape[:1] if kind == "each" else ()
    controller = PID(1e-4, 1e-8, dt0=1e-4)
    chosen = stepper.within(controller)
    march = March(as_term(ROBERTSON.field), chosen, controller, kind)
    zero = torch.zeros(lanes, dtype=DTYPE)
    c = Const(zero, zero + 40, torch.ones(1, dtype=DTYPE), stepper=chosen.constants(zero, y0))

    def loop(s: State, c: Const) -> tuple[State]:
        def body(s: State) -> tuple[State]:
            known = {id(x) for x in tree_leaves(s)}
            return (tree_map(lambda x: x.clone() if id(x) in known else x, march.advance(s, c, 1)[0]),)

        return while_loop(lambda s: (s.status == 0).any(), body, (tree_map(torch.clone, s),))

    options = {"cpp_wrapper": True}
    (found,) = torch.compile(loop, fullgraph=True, dynamic=False, options=options)(march.start(c, y0), c)
    right = solve(ROBERTSON.field, y0, 0.0, 40.0, Solver(stepper, controller, lanes=kind))
    assert torch.equal(found.accepted, right.stats.accepted)
    assert (found.y - right.ys).abs().max() < 1e-9  # sums in another order, magnified where the error chooses the steps
