import pytest
import torch
from torch.testing import assert_close

from sciml import PID, Grid, Solver, Tsit5, solve
from sciml.models import MLP, Autonomous, Chain, NeuralODE, TimeDependent
from sciml.solvers import RK4, Auto, Bosh3, Stiffness


def autonomous():
    return Autonomous(MLP(2, 2, width=8))


def time_dependent():
    return TimeDependent(MLP(3, 2, width=8))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("make", [autonomous, time_dependent])
def test_saved_states_start_at_y0_and_end_where_the_flow_does(make, lanes):
    ode = NeuralODE(make(), Solver(Tsit5(), PID(rtol=1e-6, atol=1e-7), lanes=lanes), t1=2.0)
    y0, ts = torch.randn(5, 2), torch.linspace(0, 2, 7)
    with torch.no_grad():
        saved, end = ode(y0, ts), ode(y0)
    assert saved.shape == (5, 7, 2)
    assert_close(saved[:, 0], y0)
    assert_close(saved[:, -1], end, rtol=1e-5, atol=1e-6)  # the same steps; dense output rounds differently


def test_each_sample_has_its_own_times():
    ode = NeuralODE(time_dependent(), Solver(Tsit5(), PID(rtol=1e-6, atol=1e-7), lanes="each"))
    y0 = torch.randn(2, 2)
    ts = torch.stack([torch.linspace(0, 1, 4), torch.linspace(0.5, 2.5, 4)])
    with torch.no_grad():
        saved = ode(y0, ts)
        alone = torch.cat([ode(y0[i : i + 1], ts[i]) for i in range(2)])
    assert_close(saved, alone, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_times_of_a_batch_in_joint_lanes_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"solver: expected lanes='each' for times \(2, 3\) of each sample's own"):
        NeuralODE(autonomous())(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"ts: expected times \(t\) or \(b, t\), got shape \(2, 3, 1\)"):
        NeuralODE(autonomous())(torch.zeros(2, 2), torch.zeros(2, 3, 1))


def test_work_of_the_last_solve_is_kept():
    ode = NeuralODE(autonomous(), Solver(RK4(), Grid(n=3)))
    assert ode.stats is None
    ode(torch.zeros(2, 2))
    assert ode.stats is not None
    assert (ode.stats.accepted.item(), ode.stats.rejected.item()) == (3, 0)


@pytest.mark.parametrize(
    ("solver", "told"),
    [
        (Solver(), True),
        (Solver(Bosh3()), False),
        (Solver(Auto()), False),
        (Solver(RK4(), Grid(n=3)), False),
        (Solver(RK4(), Grid(n=3), lanes="each"), True),
    ],
)
def test_watched_solves_tell_stiffness_and_take_no_evaluation_more(solver, told):
    calls = []
    ode, y0 = NeuralODE(Autonomous(MLP(2, 2, width=8)), solver), torch.randn(3, 2)
    ode.field.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        y1 = ode(y0)
        alone = len(calls)
        ode.watched = True
        assert_close(ode(y0), y1, rtol=0, atol=0)
    assert len(calls) == 2 * alone
    assert (ode.stiffness is not None) == told
    if told:
        right = solve(ode.field, y0, 0.0, 1.0, solver, folds={"x": Stiffness()}).folds["x"].mean()
        assert_close(ode.stiffness, right)


def test_chain_is_a_sequential_of_a_list():
    first, second = torch.nn.Linear(2, 3), torch.nn.Tanh()
    x = torch.randn(4, 2)
    assert_close(Chain([first, second])(x), second(first(x)), rtol=0, atol=0)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("stepper", [RK4(), Tsit5()])  # Hermite and polynomial dense output
def test_export_on_a_grid_is_the_neural_ode_for_any_batch_and_times(stepper, lanes):
    ode = NeuralODE(time_dependent(), Solver(stepper, Grid(n=4), lanes=lanes), t1=2.0).eval()
    auto = torch.export.Dim.AUTO
    y0, ts = torch.randn(2, 2), torch.linspace(0, 1, 5)
    flow = torch.export.export(ode, (y0,), dynamic_shapes=({0: auto},)).module()
    saved = torch.export.export(ode, (y0, ts), dynamic_shapes=({0: auto}, {0: auto})).module()
    y0, ts = torch.randn(6, 2), torch.tensor([0.5, 0.7, 1.0, 1.25, 1.3, 2.75, 3.5])
    with torch.no_grad():
        # float32 round-off of four steps of six stages, each a sum over the network's width
        assert_close(flow(y0), ode(y0), rtol=4e-6, atol=4e-6)
        assert_close(saved(y0, ts), ode(y0, ts), rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("solver", [None, Solver(RK4(), Grid(dt=0.25))])
def test_export_without_a_fixed_number_of_steps_is_refused_with_the_remedy(solver):
    with pytest.raises(ValueError, match=r"solver: .*expected Grid\(n=...\)"):
        torch.export.export(NeuralODE(autonomous(), solver), (torch.zeros(2, 2),))
