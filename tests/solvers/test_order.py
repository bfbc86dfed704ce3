import math
from collections.abc import Iterator
from itertools import combinations_with_replacement

import mpmath
import numpy as np
import pytest
import torch

from sciml import Solver, solve
from sciml.solvers import Dopri8, Grid, Stepper, Steps, Tsit5
from sciml.solvers.exponential import phi
from sciml.solvers.implicit_tableau import Diagonal, matrix
from sciml.solvers.low_storage import LowStorage
from tests.solvers.registry import (
    DIRK,
    EXPLICIT,
    EXPONENTIAL,
    IMPLICIT,
    LOW_STORAGE,
    MULTISTEP,
    REVERSIBLE,
    TAYLOR,
    Case,
)
from tests.solvers.systems import DTYPE, Forced, coupled, coupled_exact


def slope(sizes: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def in_range(found: float, order: int) -> bool:
    return order - 0.2 <= found <= order + 0.5


@pytest.mark.parametrize("case", [*EXPLICIT, *LOW_STORAGE, *TAYLOR, *REVERSIBLE, *MULTISTEP, *IMPLICIT], ids=str)
def test_stepper_converges_with_its_order(case: Case):
    errors = []
    for n in case.steps:
        solver = Solver(case.stepper, Grid(n=n))
        nodes = solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 1.5, solver, folds={"nodes": Steps()}).folds["nodes"]
        # the mean over the nodes, since at a single time the errors of single steps may cancel
        errors.append(float((nodes.ys - coupled_exact(nodes.ts)).norm(dim=1).mean()))
    assert in_range(slope([1 / n for n in case.steps], errors), case.stepper.order), errors


@pytest.mark.parametrize("case", EXPONENTIAL, ids=str)
def test_exponential_stepper_converges_with_its_order_on_a_stiff_term(case: Case):
    term = Forced()
    y0, end = term.exact(torch.tensor(0.0)), torch.tensor(1.0, dtype=DTYPE)
    errors = []
    for n in case.steps:
        y1 = solve(term, y0, 0.0, 1.0, Solver(case.stepper, Grid(n=n))).ys
        errors.append(float((y1 - term.exact(end)).abs().max()))
    assert in_range(slope([1 / n for n in case.steps], errors), case.stepper.order), errors


# Local order of the dense output: Hermite's cubic is O(h^4) where the step itself is at least as good.
LOCAL = {"Euler": 2, "Heun": 3, "Midpoint": 3, "Bosh3": 4, "RK4": 4, "Dopri5": 5, "Tsit5": 5, "Dopri8": 6}
LOCAL |= {"Ralston": 3, "Fehlberg2": 3, "Heun3": 4, "CarpenterKennedy4": 4, "ReversibleHeun": 3, "Taylor": 6}
LOCAL |= {"ImplicitEuler": 2, "ImplicitMidpoint": 3, "Trapezoid": 3, "SDIRK2": 3, "TRBDF2": 3, "Kvaerno3": 4}
LOCAL |= {"KenCarp4": 4, "Kvaerno5": 5, "Rodas5P": 5}
LOCAL |= {"GaussLegendre4": 3, "GaussLegendre6": 4, "RadauIIA3": 3, "RadauIIA5": 4}


@pytest.mark.parametrize("case", [*EXPLICIT, *LOW_STORAGE, *TAYLOR, *REVERSIBLE, *IMPLICIT], ids=str)
def test_dense_output_has_its_local_order(case: Case):
    largest = 0.4 if case.stepper.order > 3 else 0.1
    sizes, errors = [largest / 2**i for i in range(4)], []
    for h in sizes:
        worst = []
        for start in torch.tensor([0.3, 0.7, 1.1, 1.5], dtype=DTYPE):  # one alone may have an error that vanishes
            ts = start + h * torch.linspace(0.05, 0.95, 13, dtype=DTYPE)
            ys = solve(coupled, coupled_exact(start), start, start + h, Solver(case.stepper, Grid(n=1)), save_at=ts).ys
            worst.append((ys - coupled_exact(ts)).abs().max())
        errors.append(float(torch.stack(worst).mean()))
    assert in_range(slope(sizes, errors), LOCAL[str(case)]), errors


Tree = tuple["Tree", ...]


def trees(order: int) -> list[Tree]:
    """All rooted trees of an order, as sorted tuples of their branches."""

    def forests(nodes: int, largest: int) -> Iterator[Tree]:
        if nodes == 0:
            yield ()
        for size in range(min(nodes, largest), 0, -1):
            for count in range(1, nodes // size + 1):
                for some in combinations_with_replacement(known[size], count):
                    for rest in forests(nodes - size * count, size - 1):
                        yield some + rest

    known: dict[int, list[Tree]] = {}
    for k in range(1, order + 1):
        known[k] = list(forests(k - 1, k - 1))
    return known[order]


def nodes(tree: Tree) -> int:
    return 1 + sum(map(nodes, tree))


def density(tree: Tree) -> int:
    return nodes(tree) * math.prod(map(density, tree))


def matrices(stepper: Stepper) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A (s + 1, s + 1) with the solution as its last row, that row, the embedded weights, c (s + 1)."""
    if isinstance(stepper, LowStorage):
        a = unrolled(stepper)
        return a, a[-1], a[-1], np.array([*stepper.nodes, 1.0])
    tableau = stepper.tableau
    if isinstance(tableau, Diagonal):
        a, nodes = matrix(tableau), np.array([0.0, *tableau.c])
        b = a[-1] if tableau.b is None else np.array(tableau.b)
        return a, b, b - (0.0 if tableau.error is None else np.array(tableau.error)), nodes
    size = len(tableau.a) + 1
    a = np.zeros((size, size))
    for i, row in enumerate(tableau.a):
        a[i + 1, : len(row)] = row
    error = np.zeros(size) if tableau.error is None else np.array([*tableau.error, *[0.0] * size])[:size]
    return a, a[-1], a[-1] - error, np.array([0.0, *tableau.c])


def unrolled(stepper: LowStorage) -> np.ndarray:
    """The tableau of a method of two registers, from what they hold in units of the slopes."""
    size = len(stepper.adds)
    total, state, rows = np.zeros(size), np.zeros(size), [np.zeros(size)]
    for i, (keep, add) in enumerate(zip(stepper.keeps, stepper.adds, strict=True)):
        total = keep * total + np.eye(size)[i]
        state = state + add * total
        rows.append(state)
    return np.pad(np.stack(rows), ((0, 0), (0, 1)))


def elementary(tree: Tree, a: np.ndarray) -> np.ndarray:
    """The stages' elementary weights of a tree's branches."""
    return math.prod((a @ elementary(branch, a) for branch in tree), start=np.ones(len(a)))


def residual(weights: np.ndarray, a: np.ndarray, order: int) -> float:
    """The worst residual of the order conditions of one order."""
    return max(abs(weights @ elementary(tree, a) - 1 / density(tree)) for tree in trees(order))


def test_rooted_trees_are_all_there():
    assert [len(trees(k)) for k in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


# Coefficients are rounded to float64 and, in Tsit5 and Dopri8, published with 16 to 18 digits; sums of up to 13 of
# size 20 then leave some 1e-13. A wrong digit in any of them shows as at least 1e-9.
ROUNDED = 2e-12


@pytest.mark.parametrize("case", [*EXPLICIT, *LOW_STORAGE, *DIRK], ids=str)
def test_tableau_meets_the_order_conditions(case: Case):
    a, b, _, c = matrices(case.stepper)
    assert np.abs(a.sum(1) - c).max() < ROUNDED
    assert c[-1] == 1 or case in DIRK
    for order in range(1, case.stepper.order + 1):
        assert residual(b, a, order) < ROUNDED, order
    if case.stepper.order < 8:
        assert residual(b, a, case.stepper.order + 1) > 1e-5


@pytest.mark.parametrize("case", [c for c in [*EXPLICIT, *DIRK] if c.stepper.adaptive], ids=str)
def test_embedded_weights_are_one_order_lower(case: Case):
    a, _, embedded, _ = matrices(case.stepper)
    for order in range(1, case.stepper.order):
        assert residual(embedded, a, order) < ROUNDED, order
    assert residual(embedded, a, case.stepper.order) > 1e-7


@pytest.mark.parametrize("case", [c for c in EXPLICIT if c.stepper.adaptive], ids=str)
def test_tolerance_is_missed_by_as_much_as_the_coefficients_say(case: Case):
    """Steps of h with E h^p |f_p| tolerated err by C h^(p+1) |f_(p+1)| each, over a unit of time by C / E tolerances.

    E and C are the largest residuals of the embedded weights and the solution. Of Fehlberg2 E is 1/512 and C 1/6: its
    steps are sixteen times as long as Heun's, of the same C and E = 1/2.
    """
    a, b, embedded, _ = matrices(case.stepper)
    order = case.stepper.order
    missed = residual(b, a, order + 1) / residual(embedded, a, order)
    assert missed <= 1 + ROUNDED if case.loose == 1 else case.loose <= missed < 100


@pytest.mark.parametrize("case", [c for c in EXPLICIT if c.stepper.tableau.dense], ids=str)
def test_dense_weights_meet_the_order_conditions_inside_the_step(case: Case):
    a, b, _, _ = matrices(case.stepper)
    dense = np.array(case.stepper.tableau.dense)
    for s in (0.0, 0.1, 0.37, 0.5, 0.83, 1.0):
        weights = dense @ s ** np.arange(1, dense.shape[1] + 1)
        for order in range(1, LOCAL[str(case)]):
            worst = max(abs(weights @ elementary(tree, a) - s**order / density(tree)) for tree in trees(order))
            assert worst < ROUNDED, (s, order)
    assert np.abs(dense.sum(1) - b).max() < ROUNDED  # it ends where the step does


@pytest.mark.parametrize("stepper", [Tsit5(), Dopri8()])
def test_dense_output_is_continuous_over_steps(stepper: Stepper):
    nodes = torch.linspace(0, 2, 9, dtype=DTYPE)[1:-1]
    eps = 1e-9
    ts = torch.stack([nodes - eps, nodes + eps])
    ys = solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 2.0, Solver(stepper, Grid(n=8)), save_at=ts.reshape(-1)).ys
    before, after = ys.reshape(2, 7, 2)
    assert (after - before).abs().max() < 1e-8  # 2 eps times a slope of at most 3


def reference(z: complex, k: int) -> complex:
    with mpmath.workdps(40):
        return complex(mpmath.hyp1f1(1, k + 1, z) / mpmath.factorial(k))


SIZES = [0.0, 1e-300, 1e-12, 1e-5, 1e-3, 0.1, 0.5, 0.99, 1 - 1e-16, 1.0, 1.01, 1.5, 3.0, 2 * math.pi, 10.0, 40.0, 300.0]


@pytest.mark.parametrize("angle", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_phi_functions_agree_with_mpmath(angle: float):
    turn = complex(math.cos(math.pi * angle), math.sin(math.pi * angle))
    z = torch.tensor([size * turn for size in SIZES], dtype=torch.complex128)
    for k, values in enumerate(phi(z, 4)):
        for at, value in zip(z.tolist(), values.tolist(), strict=True):
            right = reference(at, k)
            # exp itself is off by |z| eps; the recurrence, taken from |z| = 1 on, divides what it lost by z each time
            scale = max(abs(right), 1 / math.factorial(k) / max(1, abs(at)))
            assert abs(value - right) < 1e-14 * scale * max(1, abs(at)), (k, at)


def test_phi_functions_of_real_numbers_agree_with_mpmath():
    z = torch.tensor([sign * size for size in [*SIZES, 700.0] for sign in (1, -1)] + [-1e6], dtype=DTYPE)
    for k, values in enumerate(phi(z, 3)):
        for at, value in zip(z.tolist(), values.tolist(), strict=True):
            right = reference(at, k).real
            assert abs(value - right) < 1e-14 * abs(right) * max(1, abs(at)) + 1e-300, (k, at)


def test_phi_functions_have_a_derivative_everywhere():
    z = torch.tensor([0.0, 1e-8, 0.5, 1.0, -1.0, 3.0, -40.0], dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: tuple(phi(z, 3)), z)
