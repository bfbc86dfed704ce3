import functools
import math

import pytest
import torch
from torch import Tensor, nn

from sciml import Solver, Status, Term, solve
from sciml.solvers import ETDRK4, PID, RK4, Dopri5, Dopri8, Euler, Final, Grid, Quadrature, Stats, Steps, Tsit5
from sciml.solvers.term import as_term
from tests.solvers.registry import EXPLICIT, EXPONENTIAL, STEPPERS, Case
from tests.solvers.systems import DTYPE, Linked, Net, coupled, coupled_exact

FINE = PID(1e-8, 1e-10)
# Tolerances of 1e-8 give errors of some 1e-7 over the spans here; wrong by one step would be 1e-3.
CLOSE = 1e-6
KINDS = ["joint", "each"]
ARGS = (torch.tensor([-1.0, -2.0, -0.5], dtype=DTYPE), torch.tensor([1.0, 0.5, -0.7], dtype=DTYPE))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=DTYPE)


@pytest.mark.parametrize("kind", KINDS)
def test_output_has_the_promised_shapes(kind: str):
    solver = Solver(lanes=kind)
    first = 1 if kind == "each" else 0
    s = solve(coupled, ones(3, 2), 0.0, 1.0, solver, save_at=[0.0, 0.5])
    assert s.ys.shape == ((3, 2, 2) if first else (2, 3, 2))
    assert s.ts.tolist() == [0.0, 0.5]
    last = solve(coupled, ones(3, 2), 0.0, 1.0, solver)
    assert last.ys.shape == (3, 2)
    lanes = (3,) if first else ()
    assert last.ts.shape == last.status.shape == lanes
    assert all(count.shape == lanes for count in last.stats)
    assert last.mesh.theta.shape[1:] == lanes


def test_solution_is_shown_without_its_steps():
    s = solve(coupled, ones(2), 0.0, 1.0)
    assert repr(s).startswith(f"Solution(ys={s.ys!r}, ts={s.ts!r}, status=")
    assert not any(each in repr(s) for each in ("Mesh(", "State(", "March("))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("kind", KINDS)
def test_state_keeps_its_dtype_and_times_are_its_real_part(dtype: torch.dtype, kind: str):
    seen = set()

    def turn(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return 1j * y if y.is_complex() else -y * t / t.clamp_min(1e-3)

    y0 = torch.ones(2, 1, dtype=dtype)
    s = solve(turn, y0, 0.0, 1.0, Solver(controller=PID(1e-5, 1e-7), lanes=kind), save_at=[0.3, 1.0])
    assert s.ys.dtype == dtype
    assert seen == {y0.real.dtype}
    if dtype.is_complex:
        exact = torch.exp(1j * torch.tensor([0.3, 1.0], dtype=DTYPE))
        found = s.ys.reshape(2, 2).T if kind == "each" else s.ys.reshape(2, 2)
        assert (found - exact[:, None]).abs().max() < 1e-4  # rtol is 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*EXPLICIT, *EXPONENTIAL], ids=str)
def test_complex_state_is_the_pair_of_its_parts(case: Case, kind: str):
    rate = torch.tensor([-0.5 + 3j, 1j], dtype=torch.complex128)

    class Whole(Linked):
        def linear(self, args: tuple[Tensor, ...]) -> Tensor:
            return rate

        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return y * y.abs() ** 2 * -0.1

    def parts(t: Tensor, y: Tensor) -> Tensor:
        return torch.view_as_real(Whole().drift(t, torch.view_as_complex(y.contiguous()), ()))

    z0 = torch.tensor([[1.0 + 0j, 0.5j], [1 - 1j, 2.0 + 0j]], dtype=torch.complex128)
    stepper = case.stepper
    solver = Solver(stepper, Grid(n=8), lanes=kind)
    whole = solve(Whole(), z0, 0.0, 1.0, solver, save_at=[0.5, 1.0]).ys
    right = solve(parts, torch.view_as_real(z0), 0.0, 1.0, Solver(RK4(), Grid(n=400), lanes=kind), save_at=[0.5, 1.0])
    error = (torch.view_as_real(whole) - right.ys).abs().max()
    assert error < {1: 0.7, 2: 0.1}.get(stepper.order, 6e-3)  # eight steps of 3/8 radians each
    if stepper.order > 2 and stepper.needs is Term:
        same = solve(parts, torch.view_as_real(z0), 0.0, 1.0, solver, save_at=[0.5, 1.0]).ys
        assert (torch.view_as_real(whole) - same).abs().max() < 1e-13  # the same operations, other kernels


@pytest.mark.parametrize("kind", KINDS)
def test_backward_in_time_comes_back(kind: str):
    solver = Solver(controller=FINE, lanes=kind)
    end = coupled_exact(torch.tensor(2.0, dtype=DTYPE)).expand(3, 2)
    back = solve(coupled, end, 2.0, 0.0, solver, save_at=[2.0, 1.0, 0.3, 0.0])
    ys = back.ys if kind == "joint" else back.ys.movedim(1, 0)
    assert (ys - coupled_exact(back.ts[:, None])[:, None, 0]).abs().max() < CLOSE
    assert bool((back.stats.accepted > 5).all())


def test_samples_may_have_their_own_times_and_directions():
    t0 = torch.tensor([0.0, 1.5, 0.5, 1.0], dtype=DTYPE)
    t1 = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=DTYPE)
    s = t0[:, None] + (t1 - t0)[:, None] * torch.tensor([1.0, 0.0, 0.3, 0.3, 0.7], dtype=DTYPE)
    found = solve(coupled, coupled_exact(t0), t0, t1, Solver(controller=FINE, lanes="each"), save_at=s)
    assert (found.ys - coupled_exact(s)).abs().max() < CLOSE
    assert torch.equal(found.ts, s)
    last = solve(coupled, coupled_exact(t0), t0, t1, Solver(controller=FINE, lanes="each"))
    assert (last.ys - coupled_exact(t1)).abs().max() < CLOSE
    assert torch.equal(last.ts, t1)
    assert len(set(last.stats.accepted.tolist())) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stepper", [Tsit5(), Dopri5(), Dopri8()])
def test_dense_output_is_what_save_at_gives(kind: str, stepper):
    ts = torch.tensor([0.9, 0.1, 0.1, 0.0, 1.0, 0.55], dtype=DTYPE)
    solver = Solver(stepper, PID(1e-5, 1e-7), lanes=kind)
    saved = solve(coupled, ones(3, 2), 0.0, 1.0, solver, save_at=ts)
    s = solve(coupled, ones(3, 2), 0.0, 1.0, solver)
    assert (s(ts) - saved.ys).abs().max() < 1e-14  # the same steps again; joint lanes add in another order
    one = s(0.55)
    assert one.shape == (3, 2)
    assert torch.equal(one, s(ts).select(0 if kind == "joint" else 1, 5))
    assert torch.equal(saved.ys.select(0 if kind == "joint" else 1, 3), ones(3, 2))
    assert torch.equal(saved(1.0), s(1.0))
    with pytest.raises(ValueError, match="outside the span"):
        s(1.5)


def test_dense_output_of_trees_is_a_tree():
    s = solve(lambda t, y: {"a": -y["a"], "b": y["a"][:1]}, {"a": ones(3), "b": ones(1)}, 0.0, 1.0)
    assert s(0.5)["a"].shape == (3,)
    assert s(torch.tensor([0.5, 0.7]))["b"].shape == (2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_save_times_give_an_empty_solution(kind: str):
    s = solve(coupled, ones(3, 2), 0.0, 1.0, Solver(lanes=kind), save_at=[])
    assert s.ys.shape == ((0, 3, 2) if kind == "joint" else (3, 0, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", STEPPERS, ids=str)
def test_mesh_takes_the_same_steps_again(case: Case, kind: str):
    solver = Solver(case.stepper, PID(1e-5, 1e-7) if case.stepper.adaptive else Grid(n=9), lanes=kind)
    y0 = torch.rand(2, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    keep = {"nodes": Steps(), "final": Final(), "stats": Stats()} if case.stepper.dense else {"nodes": Steps()}
    t1 = torch.tensor([0.9, 0.3], dtype=DTYPE) if kind == "each" else 0.9
    first = solve(Linked(), y0, 0.0, t1, solver, args=ARGS, folds=keep)
    again = solve(Linked(), y0, 0.0, t1, solver, args=ARGS, folds=keep, mesh=first.mesh)
    # the same float64 operations in the same order
    assert torch.equal(again.ys, first.ys)
    assert torch.equal(again.mesh.theta, first.mesh.theta)
    assert torch.equal(again.folds["nodes"].ys, first.folds["nodes"].ys)
    assert torch.equal(again.folds["nodes"].ts, first.folds["nodes"].ts)
    assert torch.equal(again.stats.accepted, first.stats.accepted)
    assert int(again.stats.rejected.max()) == 0


@pytest.mark.parametrize("stepper", [Tsit5(), ETDRK4()])
def test_mesh_of_a_failed_sample_holds_its_last_state(stepper):
    class Blow(Linked):
        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return torch.where(y > 3, torch.nan, y**2)

    y0 = torch.tensor([[0.1], [1.5]], dtype=DTYPE)
    controller = PID() if stepper.adaptive else Grid(n=40)
    solver = Solver(stepper, controller, lanes="each")
    options = {"args": (torch.tensor([-0.1], dtype=DTYPE),), "throw": False}
    first = solve(Blow(), y0, 0.0, 1.0, solver, **options)
    assert first.status.tolist() == [Status.DONE, Status.NON_FINITE]
    with torch.no_grad():
        again = solve(Blow(), y0, 0.0, 1.0, solver, mesh=first.mesh, **options)
    assert torch.equal(again.ys, first.ys)
    assert torch.equal(again.status, first.status)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("controller", [PID(1e-7, 1e-9), PID(1e-7, 1e-9, pcoeff=0.4, icoeff=0.3)])
def test_resumed_solve_is_as_good_as_one_in_one_go(kind: str, controller: PID):
    solver = Solver(controller=controller, lanes=kind)
    first = solve(coupled, ones(2, 2), 0.0, 1.0, solver)
    second = solve(coupled, None, None, 2.0, solver, resume=first, save_at=[1.5, 2.0])
    ts = second.ts[:, None]
    ys = second.ys if kind == "joint" else second.ys.movedim(1, 0)
    assert (ys - coupled_exact(ts)[:, None, 0]).abs().max() < 1e-5  # rtol is 1e-7
    fresh = solve(coupled, first.ys, 1.0, 2.0, solver)
    assert bool((second.mesh.theta[1] > 1.2 * fresh.mesh.theta[1]).all())  # it goes on with its step size
    dense = second(torch.tensor([1.5, 2.0], dtype=DTYPE))
    assert (dense - second.ys).abs().max() < 1e-14
    third = solve(coupled, None, None, 0.0, solver, resume=second)  # and back
    assert (third.ys - 1).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_exponential_solve_equals_one_in_one_go(kind: str):
    y0 = torch.rand(2, 3, dtype=DTYPE)
    half = Solver(ETDRK4(), Grid(n=8), lanes=kind)
    first = solve(Linked(), y0, 0.0, 1.0, half, args=ARGS)
    second = solve(Linked(), None, None, 2.0, half, args=ARGS, resume=first)
    whole = solve(Linked(), y0, 0.0, 2.0, Solver(ETDRK4(), Grid(n=16), lanes=kind), args=ARGS)
    assert (second.ys - whole.ys).abs().max() < 1e-14  # the same steps; the times round differently


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_solve_of_a_tree_goes_on(kind: str):
    field = lambda t, y: (-y[0], y[0].sum(-1))  # noqa: E731
    y0 = (ones(2, 3), ones(2)) if kind == "each" else (ones(3), ones())
    solver = Solver(controller=FINE, lanes=kind)
    first = solve(field, y0, 0.0, 1.0, solver)
    second = solve(field, None, None, 2.0, solver, resume=first)
    assert isinstance(second.ys, tuple)
    assert (second.ys[0] - math.exp(-2)).abs().max() < CLOSE
    assert (second.ys[1] - (1 + 3 * (1 - math.exp(-2)))).abs().max() < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_solve_resumes_from_any_kind_of_solution(kind: str):
    solver = Solver(controller=FINE, lanes=kind)
    first = solve(coupled, ones(2, 2), 0.0, 1.0, solver)
    exact = coupled_exact(torch.tensor(2.0, dtype=DTYPE))
    starts = {
        "of a mesh": solve(coupled, ones(2, 2), 0.0, 1.0, solver, mesh=first.mesh),
        "of no time": solve(coupled, coupled_exact(ones(2)), 1.0, 1.0, solver),
        "of a grid": solve(coupled, ones(2, 2), 0.0, 1.0, Solver(RK4(), Grid(n=200), lanes=kind)),
        "of dense output": solve(coupled, ones(2, 2), 0.0, 1.0, solver, save_at=[0.2]),
    }
    for name, start in starts.items():
        for controller in (FINE, PID(1e-8, 1e-10, pcoeff=0.4, icoeff=0.3)):
            s = solve(coupled, None, None, 2.0, Solver(controller=controller, lanes=kind), resume=start)
            assert (s.ys - exact).abs().max() < CLOSE, name
            assert bool((s.stats.accepted > 5).all()), name


def test_failed_sample_resumes_where_it_stopped():
    solver = Solver(controller=PID(1e-6, 1e-8), lanes="each")
    square = lambda t, y: y**2  # noqa: E731
    first = solve(square, torch.tensor([[0.1], [2.0]], dtype=DTYPE), 0.0, 1.0, solver, throw=False)
    second = solve(lambda t, y: -(y**2), None, None, 0.0, solver, resume=first, throw=False)
    assert torch.equal(second(first.ts[:, None])[:, 0], first.ys)  # it starts at some .5 and not at 1


def test_resume_is_differentiable():
    y0 = ones(2).requires_grad_()
    first = solve(coupled, y0, 0.0, 1.0, Solver(controller=FINE))
    second = solve(coupled, None, None, 2.0, Solver(controller=FINE), resume=first)
    (grad,) = torch.autograd.grad(second.ys[0], y0)
    assert abs(grad[0].item() - 1 / 25) < CLOSE  # u = 1 / (1/u0 + t^2)


# Folds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [c for c in STEPPERS if c.stepper.dense], ids=str)
def test_quadrature_is_the_integral(case: Case, kind: str):
    rtol = 1e-7 if case.stepper.order > 2 else 1e-5
    controller = PID(rtol, rtol / 100) if case.stepper.adaptive else Grid(n=500 if case.stepper.order == 1 else 100)
    solver = Solver(case.stepper, controller, lanes=kind)
    integrand = lambda t, y, args: args[0] * t * y[..., 0]  # noqa: E731
    if kind == "each":
        integrand = lambda t, y, args: args[0] * t[:, 0] * y[..., 0]  # noqa: E731
    scale = torch.tensor(3.0, dtype=DTYPE)
    s = solve(coupled, ones(2, 2), 0.0, 1.0, solver, args=(scale,), folds={"q": Quadrature(integrand)})
    # the integral of 3 t / (1 + t^2); 500 steps of order 1 are right to some 2e-3, the others to ten times rtol
    most = 5e-3 if case.stepper.order == 1 else 10 * case.loose * rtol
    assert (s.folds["q"] - 1.5 * math.log(2)).abs().max() < most
    assert s.folds["q"].shape == (2,)


def test_quadrature_of_three_nodes_is_exact_for_a_quintic():
    s = solve(lambda t, y: 0 * y, ones(1), 0.0, 2.0, Solver(RK4(), Grid(n=3)), folds={"q": Quadrature(quintic)})
    assert abs(s.folds["q"].item() - 64 / 6) < 1e-13


def quintic(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    return t**5 * y


def test_folds_of_steps_are_padded_with_the_last_one():
    t1 = torch.tensor([0.2, 3.0], dtype=DTYPE)
    s = solve(coupled, ones(2, 2), 0.0, t1, Solver(lanes="each"), folds={"nodes": Steps(), "stats": Stats()})
    count = s.stats.accepted
    n = int(count.max())
    assert count[0] < n
    nodes, stats = s.folds["nodes"], s.folds["stats"]
    assert nodes.ts.shape == stats.h.shape == stats.error.shape == (2, n)
    assert nodes.ys.shape == (2, n, 2)
    for lane, k in enumerate(count.tolist()):
        assert bool((nodes.ts[lane].diff()[: k - 1] > 0).all())
        assert bool((nodes.ts[lane, k - 1 :] == t1[lane]).all())
        assert bool((nodes.ys[lane, k - 1 :] == s.ys[lane]).all())
        assert bool((stats.h[lane, k:] == 0).all())
        assert bool((stats.error[lane, k:] == 0).all())
        assert bool((stats.error[lane, :k] > 0).all())
    assert (stats.h.sum(1) - t1).abs().max() < 1e-14
    assert stats.error.max() <= 1


def test_joint_folds_of_steps_have_every_step():
    s = solve(coupled, ones(2), 0.0, -3.0, folds={"nodes": Steps(), "stats": Stats(), "final": Final()})
    n = int(s.stats.accepted)
    assert s.folds["nodes"].ts.shape == s.folds["stats"].h.shape == (n,)
    assert s.folds["nodes"].ys.shape == (n, 2)
    assert torch.equal(s.folds["nodes"].ys[-1], s.ys)
    assert torch.equal(s.folds["final"], s.ys)
    assert abs(s.folds["stats"].h.sum() + 3) < 1e-14
    assert (s.folds["nodes"].ts.diff() - s.folds["stats"].h[1:]).abs().max() < 1e-14


def test_fold_that_wants_errors_is_told_that_there_are_none():
    s = solve(coupled, ones(2), 0.0, 1.0, Solver(RK4(), Grid(n=4)), folds={"stats": Stats()})
    assert s.folds["stats"].error.tolist() == [0.0] * 4


def test_error_of_an_adaptive_stepper_on_a_grid_is_reported_or_zero():
    s = solve(coupled, ones(2), 0.0, 1.0, Solver(Tsit5(), Grid(n=4)), folds={"stats": Stats()})
    assert s.folds["stats"].error.shape == (4,)


# Trees


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tuple, list, dict])
def test_tree_state_is_the_packed_one(kind: str, make: type):
    each = kind == "each"
    a, b, c = ones(2, 3), 2 * ones(2), 0.5 * ones(2, 2, 2)
    leaves = [x if each else x[0] for x in (a, b, c)]
    pick = lambda tree: [tree[k] for k in sorted(tree)] if make is dict else list(tree)  # noqa: E731
    build = lambda parts: dict(zip("abc", parts, strict=True)) if make is dict else make(parts)  # noqa: E731

    def field(t: Tensor, y):
        a, b, c = pick(y)
        assert t.shape == ((2,) if each else ())
        return build([-a * b[..., None] if each else -a * b, t * b, c.sin()])

    def packed(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y[..., :3], y[..., 3:4], y[..., 4:]
        return torch.cat([-a * b, t * b, c.sin()], -1)

    solver = Solver(lanes=kind)
    flat = torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in (a, b, c)], 1)
    right = solve(packed, flat if each else flat[0], 0.0, 1.0, solver, save_at=[0.5, 1.0]).ys
    found = solve(field, build(leaves), 0.0, 1.0, solver, save_at=[0.5, 1.0]).ys
    assert isinstance(found, make)
    shapes = [x.shape for x in pick(found)]
    lead = (2, 2) if each else (2,)
    assert shapes == [(*lead, 3), lead, (*lead, 2, 2)]
    assert torch.equal(torch.cat([x.reshape(*lead, -1) for x in pick(found)], -1), right)


@pytest.mark.parametrize("kind", KINDS)
def test_tolerances_may_differ_by_component(kind: str):
    field = lambda t, y: (y[0] - y[0] ** 3, 30 * torch.cos(30 * t)[..., None] + 0 * y[1])  # noqa: E731
    y0 = (0.1 * ones(2, 1), 0 * ones(2, 1)) if kind == "each" else (0.1 * ones(1), 0 * ones(1))
    loose = torch.tensor([1e-5, 1e3], dtype=DTYPE)
    steps = [
        int(solve(field, y0, 0.0, 3.0, Solver(controller=PID(0.0, atol), lanes=kind)).stats.accepted.max())
        for atol in (loose, 1e-5)
    ]
    assert steps[0] * 3 < steps[1]  # the fast component no longer asks for its steps


@pytest.mark.parametrize(
    ("y0", "error", "message"),
    [
        ((), TypeError, "at least one tensor"),
        ((ones(2), ones(2).float()), TypeError, "one dtype"),
        ((ones(2), ones(2).to("meta")), TypeError, "device"),
        ((ones(2), 3.0), TypeError, "got float"),
        ((ones(2), ones(3)), ValueError, "one batch size"),
        ((ones(), ones()), ValueError, "batch"),
    ],
    ids=["empty", "dtypes", "devices", "number", "batches", "scalars"],
)
def test_tree_that_is_no_state_is_refused(y0, error: type, message: str):
    with pytest.raises(error, match=message):
        solve(lambda t, y: y, y0, 0.0, 1.0, Solver(lanes="each"))


def test_field_of_another_tree_is_refused():
    with pytest.raises(ValueError, match=r"structure of the state, \('tensor', 'tensor'\), got tensor"):
        solve(lambda t, y: y[0], (ones(2), ones(2)), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"{'a': 'tensor', 'b': 'tensor'}, got {'a': 'tensor'}"):
        solve(lambda t, y: {"a": y["a"]}, {"a": ones(2), "b": ones(2)}, 0.0, 1.0)
    with pytest.raises(ValueError, match="shapes"):
        solve(lambda t, y: (y[0], y[1][:1]), (ones(2), ones(2)), 0.0, 1.0)
    with pytest.raises(TypeError, match="term"):
        solve(lambda t, y: (y[0], 1.0), (ones(2), ones(2)), 0.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_folds_of_a_tree_see_the_tree(kind: str):
    y0 = {"x": ones(2, 3), "z": ones(2)} if kind == "each" else {"x": ones(3), "z": ones()}
    field = lambda t, y: {"x": -y["x"], "z": 0 * y["z"]}  # noqa: E731
    folds = {"nodes": Steps(), "final": Final(), "q": Quadrature(lambda t, y, args: y["x"].sum(-1) * y["z"])}
    s = solve(field, y0, 0.0, 1.0, Solver(controller=FINE, lanes=kind), folds=folds)
    assert torch.equal(s.folds["final"]["x"], s.ys["x"])
    assert torch.equal(s.folds["nodes"].ys["z"].select(-1, -1), s.ys["z"])
    assert (s.folds["q"] - 3 * (1 - math.exp(-1))).abs().max() < CLOSE


# Callables


class Affine(Term):
    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return -y * (args[0] if args else 1.0)


class Owner:
    def field(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


class Forward(nn.Module):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


@pytest.mark.parametrize(
    "term",
    [
        lambda t, y: -y,
        lambda t, y, args: -y * args[0],
        lambda t, y, *, sign=-1.0: sign * y,
        lambda t, y, sign=-1.0: sign * y,
        lambda *inputs: -inputs[1],
        Affine(),
        Owner(),
        Owner().field,
        Forward(),
        Forward().forward,
        functools.partial(lambda sign, t, y: sign * y, -1.0),
        functools.partial(lambda t, y, sign: sign * y, sign=-1.0),
        functools.partial(lambda t, y, args, sign: sign * y * args[0], sign=-1.0),
    ],
    ids=[
        *("function", "args", "keyword", "default", "variadic", "term", "object", "method", "module", "forward"),
        *("partial", "bound", "partial_args"),
    ],
)
def test_term_may_be_any_callable(term):
    args = () if getattr(as_term(term), "takes", True) is False else (ones(),)  # which those that take none refuse
    s = solve(term, ones(2), 0.0, 1.0, Solver(controller=FINE), args=args)
    assert (s.ys - math.exp(-1)).abs().max() < CLOSE


def test_nothing_but_field_state_and_times_is_needed():
    s = solve(Net(), ones(5, 2), 0.0, 1.0)
    assert s.ys.shape == (5, 2)
    assert s.status == Status.DONE


def test_solver_may_be_named():
    s = solve(coupled, ones(2), 0.0, 1.0, "dopri5")
    right = solve(coupled, ones(2), 0.0, 1.0, Solver(Dopri5()))
    assert torch.equal(s.ys, right.ys)
    with pytest.raises(ValueError, match=r"solver: .*'tsit5'"):
        solve(coupled, ones(2), 0.0, 1.0, "tsit6")
    with pytest.raises(ValueError, match="controller: RK4 has no error estimate"):
        solve(coupled, ones(2), 0.0, 1.0, "rk4")
    with pytest.raises(TypeError, match="got the class Tsit5"):
        solve(coupled, ones(2), 0.0, 1.0, Tsit5)
    with pytest.raises(TypeError, match=r"solver: expected a Solver or a name.*Tsit5"):
        solve(coupled, ones(2), 0.0, 1.0, Tsit5())


@pytest.mark.parametrize("kind", KINDS)
def test_progress_bar_is_printed_when_asked_for(kind: str, capsys):
    solve(coupled, ones(2, 2), 0.0, 1.0, Solver(lanes=kind))
    assert capsys.readouterr().err == ""
    solve(coupled, ones(2, 2), 0.0, 1.0, Solver(lanes=kind), progress=True)
    printed = capsys.readouterr().err
    assert "100%" in printed
    assert "steps=" in printed


def test_gradients_off_record_nothing():
    net = Net()
    with torch.no_grad():
        assert not solve(net, ones(3, 2), 0.0, 1.0).ys.requires_grad
        assert not solve(net, ones(3, 2), 0.0, 1.0, Solver(lanes="each")).ys.requires_grad
    with torch.inference_mode():
        assert solve(net, ones(3, 2), 0.0, 1.0, Solver(Euler(), Grid(n=2))).ys.shape == (3, 2)
        assert solve(net, ones(3, 2), 0.0, 1.0, Solver(lanes="each"), save_at=[0.5])(0.25).shape == (3, 2)
