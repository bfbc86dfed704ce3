import pytest
import torch
from torch.testing import assert_close

from sciml import PID, Discrete, Grid, Solver, Tsit5, solve
from sciml.models import (
    MLP,
    STEER,
    KineticRegularizer,
    MatrixField,
    NeuralCDE,
    SolverRegularizer,
    TaylorRegularizer,
)
from sciml.solvers import CDE, RK4, Backsolve, Spline

CURVES = ["linear", "hermite", "rectilinear"]
SAMPLES, COUNT = 4, 7
NAN = torch.nan
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def model(solver=None, **options):
    return NeuralCDE(MatrixField(MLP(3, 9, width=8), 3), MLP(3, 3), solver, **options).double()


def tight(**options):
    return Solver(Tsit5(), PID(**TIGHT), **options)


def series(shared=False, missing=True):
    """Times and two values, float64."""
    draw = torch.Generator().manual_seed(1)
    times = (0.1 + torch.rand(1 if shared else SAMPLES, COUNT, 1, generator=draw)).cumsum(1).expand(SAMPLES, -1, -1)
    values = torch.randn(SAMPLES, COUNT, 2, generator=draw)
    if missing:
        values[1, 2], values[2, 4:, 0], values[3, 0, 1] = NAN, NAN, NAN
    return torch.cat([times, values], -1).double()


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("curve", ["linear", "hermite"])
def test_states_are_those_of_the_equation_in_time(curve, lanes):
    """Whatever the times of the samples; states at times between, too."""
    cde, data = model(tight(lanes=lanes), curve=curve), series(shared=lanes == "joint")
    times = data[..., 0]
    x = getattr(Spline, curve)(times, data)
    ts = torch.cat([times, 0.3 * times[:, 1:] + 0.7 * times[:, :-1]], 1).sort(1).values
    with torch.no_grad():
        y0 = cde.initial(x(times[:, :1]))
        solver = Solver(Tsit5(), PID(**TIGHT, jump_ts=times), lanes="each")
        right = solve(CDE(cde.field.field), y0, times[:, 0], times[:, -1], solver, args=x, save_at=ts).ys
        assert_close(cde(data), right[:, -1], rtol=1e-6, atol=1e-7)  # a thousand times the tolerance
        assert_close(cde(data, ts[0] if lanes == "joint" else ts), right, rtol=1e-6, atol=1e-7)
        outside = torch.stack([times[:, 0] - 1, times[:, -1] + 1], 1)
        assert_close(cde(data, outside[0] if lanes == "joint" else outside), right[:, [0, -1]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("curve", CURVES)
def test_states_depend_on_what_was_seen_until_then(curve):
    """States at observations are those of the series until there; with gaps so for "rectilinear" only."""
    cde, data = model(tight(lanes="each"), curve=curve), series(missing=curve == "rectilinear")
    with torch.no_grad():
        whole = cde(data, data[..., 0])
        for n in range(2, COUNT + 1):
            assert_close(cde(data[:, :n]), whole[:, n - 1], rtol=1e-6, atol=1e-7)
        assert_close(cde.initial(data[:, 0].nan_to_num(0)), whole[:, 0])


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_a_series_may_be_filled_up(curve, lanes):
    cde, data = model(tight(lanes=lanes), curve=curve), series(shared=True)
    longer = torch.cat([data, torch.full((SAMPLES, 3, 3), NAN, dtype=torch.float64)], 1)
    ts = torch.linspace(data[0, 0, 0], data[0, -1, 0], 5, dtype=torch.float64)
    with torch.no_grad():
        assert_close(cde(longer), cde(data), rtol=1e-6, atol=1e-7)
        assert_close(cde(longer, ts), cde(data, ts), rtol=1e-6, atol=1e-7)


def test_steps_end_at_observations_unless_the_solver_says_otherwise():
    data = series()
    with torch.no_grad():
        counts = []
        for controller in (PID(1e-4, 1e-6), PID(1e-4, 1e-6, jump_ts=[])):
            cde = model(Solver(controller=controller))
            cde(data)
            counts.append(int(cde.stats.nfe))
        assert counts[0] < 0.5 * counts[1]
        right = model(tight()).eval()
        for steps, miss in ((6 * 8, 1e-2), (6 * 32, 1e-4)):  # order 4, where a look behind an observation has order 1
            torch.manual_seed(0)
            cde = model(Solver(RK4(), Grid(n=steps)))
            cde.load_state_dict(right.state_dict())
            assert_close(cde(data), right(data), rtol=0, atol=miss)
        with pytest.raises(ValueError, match="jump_ts: expected times at which steps of the grid end"):
            model(Solver(RK4(), Grid(n=10)))(data)


@pytest.mark.parametrize("adjoint", [Discrete("graph"), Discrete("all"), Backsolve()], ids=lambda a: a.store)
def test_gradients_reach_weights_and_data(adjoint):
    cde, data = model(Solver(controller=PID(1e-6, 1e-8), adjoint=adjoint)), series()
    seen = ~data.isnan()
    leaf = data.clone().requires_grad_()
    cde(leaf).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in cde.parameters())
    assert (leaf.grad[~seen] == 0).all()
    way = torch.randn_like(data)
    with torch.no_grad():
        ends = [cde(data + sign * 1e-5 * way).square().sum() for sign in (1, -1)]
    right = (ends[0] - ends[1]) / 2e-5
    assert abs((leaf.grad * way)[seen].sum() - right) < 1e-3 * abs(right)  # on other steps, of a tolerance of 1e-6


@pytest.mark.parametrize(
    "regularizer",
    [
        SolverRegularizer(),
        SolverRegularizer(form="reuse"),
        KineticRegularizer(),
        TaylorRegularizer(order=2),
    ],
    ids=["global", "reuse", "kinetic", "taylor"],
)
@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_regularisers_read_its_solves(regularizer, lanes):
    cde = model(Solver(controller=PID(1e-4, 1e-6), lanes=lanes), regularizer=regularizer)
    cde(series())
    penalty = cde.take_penalty()
    assert penalty > 0
    grads = torch.autograd.grad(penalty, list(cde.field.parameters()), allow_unused=True)
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in grads)
    cde.eval()(series())
    assert cde.take_penalty() is None


class Constant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 3))

    def forward(self, t, y):
        return self.weight.expand(len(y), 3, 3)


@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("form", ["global", "reuse"])
def test_error_estimates_do_not_look_over_observations(form, lanes):
    """Between two of them the state goes straight here, which every step has exactly."""
    solver = Solver(controller=PID(1e-4, 1e-6), lanes=lanes)
    cde = NeuralCDE(Constant(), MLP(3, 3), solver, regularizer=SolverRegularizer(form=form)).double()
    for _ in range(10):
        cde(series())
        assert cde.take_penalty() < 1e-9  # round-off of 1e-16 in units of 1e-6


def test_kinetic_energy_is_that_of_the_driven_state():
    """On a line along which the slope of the state is known."""
    cde = model(tight(), regularizer=KineticRegularizer(weight=1.0, jacobian=0.0))
    data = series(missing=False)[:, :2]
    cde(data)
    x = Spline.linear(torch.arange(2.0, dtype=torch.float64), data)
    with torch.no_grad():
        solution = solve(CDE(cde.field.field), cde.initial(data[:, 0]), 0.0, 1.0, tight(), args=x)
        ts = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)  # midpoints
        slopes = torch.stack([CDE(cde.field.field).drift(t, solution(t), x) for t in ts])
    assert_close(cde.take_penalty().detach(), slopes.square().mean(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(("curve", "lanes"), [("linear", "joint"), ("rectilinear", "each")])
def test_export_is_the_model(curve, lanes):
    """For batches of any size."""
    pieces = 4 if curve == "rectilinear" else 2
    cde, data = model(Solver(RK4(), Grid(n=pieces), lanes=lanes), curve=curve).eval(), series()[:, :3]
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(cde, (data[:2].clone(),), dynamic_shapes=shapes).module()
    with torch.no_grad():
        assert_close(program(data), cde(data), rtol=1e-10, atol=1e-12)


def test_what_does_not_fit_is_refused():
    for wrong, said in (
        ({"curve": "cubic"}, "curve: expected one of linear, hermite, rectilinear, got 'cubic'"),
        ({"regularizer": STEER(0.5)}, "regularizer: STEER moves the end"),
        ({"regularizer": SolverRegularizer(form="unbiased")}, "regularizer: expected form='global' or 'reuse'"),
    ):
        with pytest.raises(ValueError, match=said):
            model(**wrong)
    cde = model()
    with pytest.raises(ValueError, match=r"series: expected times and values \(b, n, 1 \+ c\), got shape \(4, 7\)"):
        cde(series()[..., 0])
    with pytest.raises(ValueError, match="solver: expected lanes='each' for times"):
        cde(series(), torch.linspace(0, 1, 3))
    with pytest.raises(ValueError, match="field: expected values"):
        NeuralCDE(MatrixField(MLP(3, 12), 4), MLP(3, 3))(series().float())
