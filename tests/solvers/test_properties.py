"""Invariants that hold for any problem; the problems are drawn by hypothesis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciml import Discrete, Solver, solve
from sciml.solvers import ETDRK4, PID, Grid, Quadrature, Stats, Tsit5
from tests.solvers.registry import EXPLICIT, STEPPERS
from tests.solvers.systems import DTYPE, Linked, Net

REVERSIBLE = [case for case in EXPLICIT if case.stepper.adaptive]  # damping ones do not come back
FEW = settings(max_examples=15, derandomize=True)
SEEDS = st.integers(0, 10_000)
SPANS = st.floats(0.1, 2.0)
CASES, EXPLICIT_CASES, ADAPTIVE_CASES = map(st.sampled_from, (STEPPERS, EXPLICIT, REVERSIBLE))
KINDS = st.sampled_from(["joint", "each"])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


@FEW
@given(SEEDS, SPANS, st.floats(-1, 1), ADAPTIVE_CASES, KINDS)
def test_time_reversal_comes_back(seed: int, span: float, t0: float, case, kind: str):
    y0, net = draw(seed, 3, 2), Net(seed)
    tolerance = 1e-5 if case.stepper.order < 4 else 1e-8
    solver = Solver(case.stepper, PID(tolerance, tolerance), lanes=kind, max_steps=100_000)
    with torch.no_grad():
        there = solve(net, y0, t0, t0 + span, solver).ys
        back = solve(net, there, t0 + span, t0, solver).ys
    # the field's Lipschitz constant is at most some 8, both ways err by the tolerance a step
    assert (back - y0).abs().max() < 1000 * tolerance * (1 + y0.abs().max())


@FEW
@given(SEEDS, SPANS, CASES, KINDS)
def test_running_backward_is_running_the_mirrored_field_forward(seed: int, span: float, case, kind: str):
    y0, args = draw(seed, 2, 3), (draw(seed + 1, 3), draw(seed + 2, 3))

    class Mirrored(Linked):
        def linear(self, args: tuple[Tensor, ...]) -> Tensor:
            return -super().linear(args)

        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return -super().remainder(-t, y, args)

    solver = Solver(case.stepper, Grid(n=5), lanes=kind)
    right = solve(Linked(), y0, 0.3, 0.3 - span, solver, args=args).ys
    found = solve(Mirrored(), y0, -0.3, -0.3 + span, solver, args=args).ys
    assert torch.equal(found, right)  # every operation is the same but for its sign


@FEW
@given(SEEDS, EXPLICIT_CASES, KINDS)
def test_runge_kutta_methods_are_affine_invariant(seed: int, case, kind: str):
    """A step commutes with y -> y M + shift."""
    net, y0, shift = Net(seed), draw(seed, 3, 2), draw(seed + 1, 2)
    matrix = torch.eye(2, dtype=DTYPE) + 0.3 * draw(seed + 2, 2, 2)
    inverse = torch.linalg.inv(matrix)
    solver = Solver(case.stepper, Grid(n=6), lanes=kind)
    with torch.no_grad():
        right = solve(net, y0, 0.0, 1.0, solver, save_at=[0.3, 1.0]).ys @ matrix + shift
        field = lambda t, z: net(t, (z - shift) @ inverse) @ matrix  # noqa: E731
        found = solve(field, y0 @ matrix + shift, 0.0, 1.0, solver, save_at=[0.3, 1.0]).ys
    condition = float(torch.linalg.cond(matrix))
    assert (found - right).abs().max() < 1e-13 * condition * (1 + right.abs().max())  # round-off of six steps


@FEW
@given(SEEDS, CASES, st.permutations(range(4)))
def test_sample_does_not_depend_on_its_batch(seed: int, case, order: list[int]):
    """Values, folds, steps taken and gradients, to the last bit."""
    rtol = 1e-5 if case.stepper.order > 3 else 1e-2  # enough for steps to differ between samples
    controller = PID(rtol, rtol) if case.stepper.adaptive else Grid(n=6)
    solver = Solver(case.stepper, controller, Discrete("all"), lanes="each")
    args = (draw(seed + 1, 3).clamp(-2, 0.5), draw(seed + 2, 3))
    y0, t1 = draw(seed, 4, 3), 0.5 + draw(seed + 3, 4).abs()
    folds = {"stats": Stats()}
    if case.stepper.dense:
        folds["q"] = Quadrature(lambda t, y, args: y.square())

    def run(samples: list[int]):
        start = y0[samples].requires_grad_()
        s = solve(Linked(), start, 0.0, t1[samples], solver, args=args, folds=folds)
        outputs = s.ys.sum() + s.folds["q"].sum() if "q" in folds else s.ys.sum()
        return s, torch.autograd.grad(outputs, start)[0]

    whole, grad = run(order)
    for part in ([order[0]], order[1:3], order[3:]):
        s, own = run(part)
        for i, sample in enumerate(part):
            j = order.index(sample)
            assert torch.equal(s.ys[i], whole.ys[j])
            assert torch.equal(own[i], grad[j])
            assert all(torch.equal(a[i], b[j]) for a, b in zip(s.stats, whole.stats, strict=True))
            n = int(s.stats.accepted[i])
            assert torch.equal(s.folds["stats"].h[i, :n], whole.folds["stats"].h[j, :n])
            assert "q" not in folds or torch.equal(s.folds["q"][i], whole.folds["q"][j])


@FEW
@given(
    SEEDS,
    st.lists(st.floats(0, 1), min_size=1, max_size=7),
    st.randoms(use_true_random=False),
    KINDS,
    st.booleans(),
    EXPLICIT_CASES,
)
def test_order_of_save_times_is_the_order_of_states(seed: int, times, random, kind: str, backward: bool, case):
    net, y0 = Net(seed), draw(seed, 2, 2)
    controller = PID() if case.stepper.adaptive else Grid(n=4)
    times = [*times, times[0], 0.0, 1.0]
    mixed = random.sample(range(len(times)), len(times))
    ends = (1.0, 0.0) if backward else (0.0, 1.0)
    axis = 0 if kind == "joint" else 1
    with torch.no_grad():
        straight = solve(net, y0, *ends, Solver(case.stepper, controller, lanes=kind), save_at=times).ys
        shuffled = solve(
            net, y0, *ends, Solver(case.stepper, controller, lanes=kind), save_at=[times[i] for i in mixed]
        ).ys
        end = solve(net, y0, *ends, Solver(case.stepper, controller, lanes=kind)).ys
    assert torch.equal(shuffled, straight.index_select(axis, torch.tensor(mixed)))
    assert torch.equal(straight.select(axis, 0), straight.select(axis, -3))  # the same time twice
    first, last = (-1, -2) if backward else (-2, -1)
    assert torch.equal(straight.select(axis, first), y0)
    assert (straight.select(axis, last) - end).abs().max() < 1e-11  # Dopri8's dense output ends within 1e-12


@FEW
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), KINDS)
def test_exponential_stepper_is_exact_for_a_linear_term(seed: int, n: int, m: int, kind: str):
    class Linear(Linked):
        def remainder(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
            return torch.zeros_like(y)

    y0, rates = draw(seed, 2, 3), 3 * draw(seed + 1, 3)
    ys = solve(Linear(), y0, 0.0, m / 4, Solver(ETDRK4(), Grid(n=n), lanes=kind), args=(rates,)).ys
    assert torch.allclose(ys, y0 * (rates * m / 4).exp(), rtol=1e-13)  # n roundings, and exp's own


@FEW
@given(SEEDS, st.floats(-3, 3), st.floats(1e-3, 10), KINDS)
def test_units_of_time_do_not_matter(seed: int, shift: float, scale: float, kind: str):
    """Moving and stretching time moves and stretches the steps, the first one too."""
    net, y0 = Net(seed), draw(seed, 2, 2)
    moved = lambda t, y: net((t - shift) / scale, y) / scale  # noqa: E731
    with torch.no_grad():
        solver = Solver(Tsit5(), PID(1e-6, 1e-8), lanes=kind)
        right = solve(net, y0, 0.0, 1.0, solver)
        found = solve(moved, y0, shift, shift + scale, solver)
    assert torch.equal(found.stats.accepted, right.stats.accepted)
    # (t - shift) / scale loses up to log10(3 / 1e-3) digits, and errors, as differences, six more
    assert (found.mesh.theta - right.mesh.theta).abs().max() < 1e-5
    assert (found.ys - right.ys).abs().max() < 1e-10
