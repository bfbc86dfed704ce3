import pytest
import torch

from sciml import PID, Discrete, Grid, Solver, solve
from sciml.solvers import Taylor
from tests.solvers.systems import DTYPE, coupled, coupled_exact
from tests.solvers.test_order import in_range, slope


@pytest.mark.parametrize(
    ("order", "steps"), [(2, (32, 64, 128, 256)), (3, (32, 64, 128, 256)), (4, (16, 32, 64, 128)), (8, (8, 12, 16, 24))]
)
def test_every_order_is_reached(order, steps):
    end, errors = torch.tensor([0.4, 0.8, 1.2, 1.5], dtype=DTYPE), []
    for n in steps:
        ys = solve(coupled, torch.ones(2, dtype=DTYPE), 0.0, 1.5, Solver(Taylor(order), Grid(n=n)), save_at=end).ys
        errors.append(float((ys - coupled_exact(end)).norm(dim=1).mean()))
    assert in_range(slope([1 / n for n in steps], errors), order), errors


def test_polynomials_up_to_its_order_are_exact_within_steps_too():
    ts = torch.linspace(0, 2, 11, dtype=DTYPE)
    ys = solve(
        lambda t, y: 5 * t**4 + 0 * y, torch.zeros(1, dtype=DTYPE), 0.0, 2.0, Solver(Taylor(5), Grid(n=3)), save_at=ts
    ).ys
    torch.testing.assert_close(ys[:, 0], ts**5, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("order", [3, 6, 10])
def test_tolerances_are_kept(order, lanes):
    solver = Solver(Taylor(order), PID(rtol=1e-7, atol=1e-7), lanes=lanes)
    y0, end = torch.ones(3, 2, dtype=DTYPE), torch.tensor(1.5, dtype=DTYPE)
    solution = solve(coupled, y0, 0.0, 1.5, solver)
    assert (solution.ys - coupled_exact(end)).abs().max() < 3e-6  # 30 tolerances
    trials = solution.stats.accepted + solution.stats.rejected
    assert (solution.stats.nfe <= order * trials + 3).all()


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_gradients_are_those_of_the_graph_and_of_finite_differences(lanes):
    y0 = torch.tensor([[1.0, 1.0], [0.7, 1.2]], dtype=DTYPE, requires_grad=True)

    def end(y0, store="graph"):
        return solve(coupled, y0, 0.0, 1.0, Solver(Taylor(4), Grid(n=3), Discrete(store), lanes=lanes)).ys

    assert torch.autograd.gradcheck(end, y0)
    (graph,), (replayed,) = (torch.autograd.grad(end(y0, store).sum(), y0) for store in ("graph", "all"))
    torch.testing.assert_close(graph, replayed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_state_may_be_a_tree(lanes):
    y0 = {"place": torch.ones(3, 2, dtype=DTYPE), "speed": torch.zeros(3, 2, dtype=DTYPE)}
    solver = Solver(Taylor(8), PID(rtol=1e-9, atol=1e-9), lanes=lanes)
    end = solve(lambda t, y: {"place": y["speed"], "speed": -y["place"]}, y0, 0.0, 1.0, solver).ys
    exact = torch.tensor([1.0], dtype=DTYPE)
    torch.testing.assert_close(end["place"], exact.cos().expand(3, 2), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(end["speed"], -exact.sin().expand(3, 2), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2.5])
def test_what_is_no_order_is_refused(order):
    with pytest.raises(ValueError, match="order: expected a whole number, 2 or more"):
        Taylor(order)
