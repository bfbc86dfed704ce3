import pytest
import torch
from torch.autograd import gradcheck

from sciml.data import RandomSystems
from sciml.models import LearnedExtrapolation, RelaxationFactor
from sciml.problems import Diffusion, Heat, TwoPhase
from sciml.solvers.linear import BlockSystems, History, UnrolledSOR
from sciml.training import AccelerationModule, AfterIterations, IterationCount
from tests.training.running import train

HEAT = Heat(Diffusion(cells=8), dt=(1e-3, 1e-1))
TOLERANCE = 1e-4


def norms(steps=30):
    """Three systems, of which the last does not arrive at 1e-4; logarithms that fall by random steps."""
    drops = torch.rand(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([[0.3, 1.0, 2.0]], dtype=torch.float64)
    return torch.cat([start, start - (drops * torch.tensor([1.0, 2.0, 0.1])).cumsum(0)]).exp()


def test_the_smoothed_count_tends_to_the_number_of_iterations():
    history = History(norms(), None)
    exact = history.iterations(TOLERANCE).double()
    assert exact[2] == 31 > exact[0]
    errors = []
    for sharpness in (4.0, 40.0, 4000.0):
        found = IterationCount(TOLERANCE, 30, sharpness).per_system(history.residuals)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6  # no norm is nearer to the tolerance than 1 %: exp(-4000 * .01)
    assert float(IterationCount(TOLERANCE, 30, 4000.0)(history)) == pytest.approx(float(exact.mean()))


def test_where_norms_fall_steadily_the_count_and_its_gradient_are_those_of_the_time_of_arrival():
    rate = torch.tensor([0.2, 0.4, 0.5], dtype=torch.float64, requires_grad=True)
    falling = torch.exp(-rate * torch.arange(81)[:, None])
    count = IterationCount(TOLERANCE, 80).per_system(falling)
    arrival = torch.log(1 / torch.tensor(TOLERANCE)) / rate
    assert torch.allclose(count, arrival + 0.5, atol=1e-3)  # sums for integrals, a c = 2 at most: exp(-2 pi^2 / 2)
    (gradient,) = torch.autograd.grad(count.sum(), rate)
    assert torch.allclose(gradient, -arrival / rate, rtol=1e-2)  # of which the derivative is 40 times as large


def test_gradients_of_losses_are_those_of_differences():
    x = norms(8).requires_grad_()
    for loss in (IterationCount(1e-2, 8), AfterIterations(8), AfterIterations(3, "error")):
        assert gradcheck(lambda x, loss=loss: loss(History(x, x)), (x,))


def test_what_is_left_after_iterations_is_the_mean_square_at_that_one():
    x = norms(8)
    assert float(AfterIterations(3)(History(x, None))) == pytest.approx(float(x[3].square().mean()))


@pytest.mark.parametrize("kind", [RelaxationFactor, LearnedExtrapolation])
def test_training_on_the_count_takes_fewer_iterations_on_systems_that_it_did_not_see(kind, tmp_path):
    torch.manual_seed(0)
    data = RandomSystems(HEAT, train=48, val=8, test=32, length=6, history=3, batch_size=16)
    loss = IterationCount(TOLERANCE, 30)
    model = AccelerationModule(kind(), loss=loss, max_iter=60, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    metrics, _ = train(model, data, tmp_path, epochs=12)
    systems = BlockSystems.join(data.part("test"))
    omega, zero = model(systems).omega, torch.zeros_like(systems.b)
    from_zero = UnrolledSOR().run(systems, 60, omega, zero).iterations(TOLERANCE).double().mean()
    assert metrics["test_iterations"] < float(from_zero)
    # the last solution with the best single omega, or with one for each that takes 60 products more
    assert metrics["test_iterations"] < metrics["test_tuned" if kind is RelaxationFactor else "test_young"]


def test_starts_do_not_depend_on_units_or_on_the_batch():
    data = RandomSystems(HEAT, train=4, val=1, test=1, length=4, history=2)
    data.setup("fit")
    systems, one = BlockSystems.join(data.part("train")), data.part("train")[2]
    scaled = BlockSystems.join(
        [BlockSystems(s.matrix.with_values(7 * s.matrix.values), 7 * s.b, s.sizes, s.previous, s.dt) for s in [one]]
    )
    for net in (RelaxationFactor().double(), LearnedExtrapolation(2).double()):
        start, alone, other = net(systems), net(one), net(scaled)
        assert torch.allclose(alone.omega, start.omega[2:3], rtol=1e-10)
        assert torch.allclose(alone.x0, start.x0[systems.owner == 2], rtol=1e-10)
        assert torch.allclose(other.omega, alone.omega, rtol=1e-10)
        assert torch.allclose(other.x0, alone.x0, rtol=1e-10)


def test_parts_are_of_other_seeds_and_know_the_solutions_before():
    data = RandomSystems(HEAT, train=6, val=3, test=3, length=4, history=2, data_seed=5)
    data.setup("fit")
    first, second = data.part("train")[:2]  # steps 1 and 2 of a sequence
    assert torch.equal(second.previous[0], first.solution)
    assert torch.equal(second.previous[1], first.previous[0])
    assert float(second.dt[0, 1]) == float(first.dt[0, 0])
    assert float(first.residual(first.solution).abs().max()) < 1e-12
    parts = [data.part(name)[0].b for name in ("train", "val", "test")]
    assert not any(torch.equal(a, b) for a, b in ((parts[0], parts[1]), (parts[0], parts[2]), (parts[1], parts[2])))
    still = RandomSystems(Diffusion(cells=3, coefficient=TwoPhase()), train=2, val=1, test=1)
    still.setup("fit")
    assert still.part("train")[0].previous is None


def test_mistakes_are_named():
    history = History(norms(4), None)
    for make, message in (
        (lambda: IterationCount(0.0, 5), "tolerance: expected a positive number"),
        (lambda: IterationCount(1e-3, 5, sharpness=-1.0), "sharpness: expected a positive number"),
        (lambda: AfterIterations(-1), "steps: expected a number of iterations"),
        (lambda: AfterIterations(1, "energy"), "measure: expected 'residual' or 'error'"),
        (lambda: AfterIterations(5)(history), "history: expected at least 5 iterations, got 4"),
        (lambda: AfterIterations(4, "error")(history), "history: expected one with errors"),
        (lambda: RelaxationFactor(lanczos=0), "lanczos: expected at least 1"),
        (lambda: RelaxationFactor(low=2.0), "low, high: expected 0 <= low < high"),
        (lambda: LearnedExtrapolation(history=0), "history: expected at least 1"),
        (lambda: RandomSystems(HEAT, train=0), "train: expected at least 1"),
        (lambda: RandomSystems(HEAT, length=1, history=2), "length: expected at least the 2 steps"),
        (lambda: AccelerationModule(RelaxationFactor(), tolerance=0.0), "tolerance: expected a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    system = Diffusion(cells=3).system(0)
    with pytest.raises(ValueError, match="systems: expected at least 3 previous solutions"):
        LearnedExtrapolation()(BlockSystems.of(system.matrix, system.b))
