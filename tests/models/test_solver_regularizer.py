import pytest
import torch
import torchdiffeq
from torch.testing import assert_close

from sciml import PID, Discrete, Grid, Solver, Tsit5, solve
from sciml.models import (
    MLP,
    Autonomous,
    CoordinateDiffusion,
    DiagonalSDE,
    NeuralODE,
    NeuralSDE,
    SolverRegularizer,
    TimeDependent,
)
from sciml.solvers import (
    ETDRK4,
    RK4,
    SOSRI2,
    Backsolve,
    Bosh3,
    ErrorEstimate,
    MaxStiffness,
    StepCount,
    Stiffness,
    local_heuristic,
)

LANES = ["joint", "each"]
LOCAL = ["unbiased", "biased", "reuse"]
TOLERANCE = PID(1e-4, 1e-4)


def field():
    torch.manual_seed(0)
    net = TimeDependent(MLP(3, 2, width=8, activation="tanh")).double()
    with torch.no_grad():
        for weights in net.parameters():
            weights *= 3
    return net


def states():
    return torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ode(heuristic=None, form="global", **solver):
    return NeuralODE(field(), Solver(Tsit5(), TOLERANCE, **solver), 2.0, SolverRegularizer(heuristic, form, 0.5))


@pytest.mark.parametrize("lanes", LANES)
def test_global_penalty_is_that_of_the_steps(lanes):
    model = ode(lanes=lanes)
    y1 = model(states())
    solution = solve(model.field, states(), 0.0, 2.0, model.solver, folds={"x": ErrorEstimate()})
    assert_close(model.penalty, 0.5 * solution.folds["x"].mean())
    assert_close(y1, solution.ys)
    assert_close(model.stats.nfe, solution.stats.nfe)


@pytest.mark.parametrize("heuristic", [ErrorEstimate(), StepCount(), Stiffness()], ids=lambda h: type(h).__name__)
@pytest.mark.parametrize("lanes", LANES)
def test_steps_that_are_taken_again_estimate_the_whole_without_bias(lanes, heuristic, monkeypatch):
    """The mean over all steps with their probabilities, which are their shares of the span."""
    whole, again, y0 = ode(heuristic, lanes=lanes), ode(heuristic, "reuse", lanes=lanes), states()[:1]
    whole(y0)
    theta, mean = solve(whole.field, y0, 0.0, 2.0, whole.solver).mesh.theta.flatten(), 0.0
    assert len(theta) > 5
    for start, end in theta.unfold(0, 2, 1):
        drawn = (start + end) / 2
        monkeypatch.setattr(torch, "rand", lambda shape, drawn=drawn, **options: drawn.expand(shape))
        again(y0)
        mean = mean + (end - start) * again.penalty
    assert_close(mean, whole.penalty, rtol=1e-6, atol=0)  # an error estimate is a difference that cancels


@pytest.mark.parametrize("form", LOCAL)
@pytest.mark.parametrize("lanes", LANES)
def test_local_forms_have_the_same_gradient_under_every_adjoint(form, lanes):
    """That of a step from a state of the solution, beside that of the solve."""
    found = []
    for adjoint in (Discrete(), Discrete("all"), Discrete("every"), Backsolve()):
        model = ode(form=form, lanes=lanes, adjoint=adjoint)
        torch.manual_seed(3)
        model(states())
        penalty = model.take_penalty()
        assert penalty > 0
        found.append([penalty, *torch.autograd.grad(penalty, list(model.parameters()))])
    for each in found[1:]:
        assert_close(each, found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lanes", LANES)
def test_local_forms_draw_times_or_steps_of_the_solution(lanes, monkeypatch):
    seen = []
    steps = solve(field(), states(), 0.0, 2.0, Solver(Tsit5(), TOLERANCE, lanes=lanes))

    def watched(heuristic, term, t, y, solver, **ends):
        seen.append(t)
        with torch.no_grad():
            exact = steps(t[..., None] if t.ndim else t)
        assert_close(y, exact.squeeze(1) if t.ndim else exact, rtol=1e-9, atol=1e-9)
        return local_heuristic(heuristic, term, t, y, solver, **ends)

    monkeypatch.setattr("sciml.models.solver_regularizer.local_heuristic", watched)
    torch.manual_seed(4)
    nodes = 2 * steps.mesh.theta[:-1].reshape(len(steps.mesh.theta) - 1, -1)
    for form in LOCAL:
        seen.clear()
        model = ode(form=form, lanes=lanes)
        with torch.no_grad():
            for _ in range(8):
                model(states())
        times = torch.stack(seen).reshape(8, -1)
        on = (times[:, None] - nodes).abs().amin(1) < 1e-9
        assert bool(on.all()) != (form == "unbiased")
        assert bool((times >= 0).all() & (times < 2).all())
        assert len(times.unique()) > 3


def test_penalty_on_a_step_goes_with_the_adjoint_of_torchdiffeq():
    f, y0, ts = field(), states(), torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)
    solver, parameters = Solver(Tsit5(), TOLERANCE), list(f.parameters())
    ys = torchdiffeq.odeint_adjoint(f, y0, ts, rtol=1e-7, atol=1e-7)
    penalty = local_heuristic(ErrorEstimate(), f, 0.7, ys[1], solver, t1=2.0)
    both = torch.autograd.grad(ys[-1].square().sum() + penalty, parameters, retain_graph=True)
    loss = torch.autograd.grad(ys[-1].square().sum(), parameters)
    alone = torch.autograd.grad(local_heuristic(ErrorEstimate(), f, 0.7, ys[1].detach(), solver, t1=2.0), parameters)
    for sum_, a, b in zip(both, loss, alone, strict=True):
        assert_close(sum_, a + b, rtol=1e-9, atol=1e-9)
        assert bool(b.abs().sum() > 0)


@pytest.mark.parametrize("form", ["global", *LOCAL])
def test_training_takes_fewer_steps_with_it(form):
    """Towards a rotation by half a turn, which needs some."""
    work = []
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        model = NeuralODE(
            TimeDependent(MLP(3, 2, width=16, activation="tanh")).double(),
            Solver(Tsit5(), PID(1e-5, 1e-5)),
            regularizer=SolverRegularizer(StepCount(), form, weight),
        )
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(states()) + states()).square().mean()
            (loss + model.take_penalty()).backward()
            optimizer.step()
        with torch.no_grad():
            model.eval()(states())
        work.append(int(model.stats.accepted))
    assert work[1] < work[0]


def test_weight_goes_from_the_first_to_the_last_exponentially():
    regularizer = SolverRegularizer(weight=100.0, final_weight=1.0)
    assert [round(regularizer.weight_at(p), 9) for p in (0.0, 0.5, 1.0)] == [100.0, 10.0, 1.0]
    assert SolverRegularizer(weight=3.0).weight_at(0.7) == 3.0
    model = NeuralODE(field(), Solver(Tsit5(), TOLERANCE), regularizer=regularizer)
    model(states())
    first, model.progress = model.penalty, 0.5
    model(states())
    assert_close(model.penalty, 0.1 * first)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("heuristic", [ErrorEstimate(), Stiffness(), MaxStiffness(), StepCount()])
def test_an_empty_batch_has_no_penalty(lanes, heuristic):
    sde = DiagonalSDE(Autonomous(MLP(2, 2)), CoordinateDiffusion(2)).double()
    noisy = NeuralSDE(sde, Solver(SOSRI2(), TOLERANCE, lanes=lanes), 1.0, SolverRegularizer(heuristic))
    for model in (ode(heuristic, lanes=lanes), noisy):
        ys = model(torch.ones(0, 2, dtype=torch.float64))
        assert ys.shape == (0, 2)
        assert model.penalty == 0
        for grad in torch.autograd.grad(ys.sum() + model.penalty, list(model.parameters())):
            assert torch.equal(grad, torch.zeros_like(grad))


def test_a_solve_over_no_time_has_no_penalty():
    for form in ("global", *LOCAL):
        model = ode(form=form)
        model(states(), torch.tensor([1.0, 1.0]))
        assert model.penalty == 0


@pytest.mark.parametrize(
    ("options", "solver", "said"),
    [
        ({"form": "glob"}, Solver(), "form: expected one of global, unbiased, biased, reuse, got 'glob'"),
        ({"weight": -1.0}, Solver(), "weight: expected a number, 0 or more"),
        ({"weight": 0.0, "final_weight": 1.0}, Solver(), "final_weight: expected positive weights"),
        ({}, Solver(adjoint=Backsolve()), "regularizer: form='global' reads all steps, which Backsolve"),
        ({}, Solver(RK4(), Grid(n=4)), "regularizer: ErrorEstimate is in units of the tolerance"),
        ({"heuristic": Stiffness()}, Solver(Bosh3()), "regularizer: Stiffness compares the last two stages"),
        ({"heuristic": MaxStiffness(), "form": "biased"}, Solver(RK4(), Grid(n=4)), "expected form='reuse'"),
        ({"form": "unbiased"}, Solver(ETDRK4(), Grid(n=4)), "regularizer: ETDRK4|form='unbiased' reads states"),
    ],
)
def test_mistakes_are_named(options, solver, said):
    with pytest.raises(ValueError, match=said):
        NeuralODE(field(), solver, regularizer=SolverRegularizer(**options))
