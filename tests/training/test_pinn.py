from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from pytorch_optimizer import AdaHessian
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from sciml.calculus import Laplacian, Sparse, Unknown
from sciml.calculus.expression import as_expression
from sciml.data import Collocation
from sciml.data.collocation import Block
from sciml.models import MLP
from sciml.problems import Box, BurgersDirichlet, Condition, Poisson, SineGordon
from sciml.problems.equation import Ansatz, Equation, Landmark
from sciml.training import LevenbergMarquardt, PINNModule
from sciml.training.pinn import Squared
from sciml.training.trainer_cli import quiet
from tests.training.running import logged, trainer


def module(equation, width=16, **options):
    torch.manual_seed(0)
    options.setdefault("optimizer", lambda p: torch.optim.Adam(p, lr=3e-3))
    return PINNModule(equation, MLP(equation.dim, 1, width=width, depth=2), **options)


def fit(model, folder, data=None, **options):
    data = data or Collocation(points=100, boundary=20, steps=200, val=200, test=500)
    with quiet():
        run = trainer(folder, max_epochs=1, **options)
        run.fit(model, data)
        (metrics,) = run.test(model, data, verbose=False)
    return metrics, run, data


def test_estimates_train_a_net_to_below_the_best_constant(tmp_path):
    equation = SineGordon(6, seed=1)
    data = Collocation(points=100, steps=300, val=200, test=1000)
    metrics, run, _ = fit(module(equation, 32, estimator=Sparse(3)), tmp_path, data)
    assert metrics["test_relative_l2"] < 0.5 * metrics["test_baseline"]  # a third of it with three seeds
    with quiet():
        (found,) = run.predict(run.model, data)
    assert set(found) == {"points", "predictions", "residual", "targets"}
    error = (found["predictions"] - found["targets"]).norm() / found["targets"].norm()
    torch.testing.assert_close(error.item(), metrics["test_relative_l2"], rtol=1e-4, atol=0)


def test_error_of_estimates_is_logged_where_there_is_one(tmp_path):
    """A squared estimate is the product of two independent ones plus the variance that is reported, on average."""
    equation, still = SineGordon(6, seed=1), lambda p: torch.optim.SGD(p, lr=0.0)
    model, data = (
        module(equation, estimator=Sparse(3), optimizer=still),
        Collocation(points=4000, steps=1, val=1, test=1),
    )
    fit(model, tmp_path, data)
    (row,) = (row for row in logged(tmp_path / "metrics.csv") if row.get("train_residual"))
    block = next(iter(data.train_dataloader()))
    x, *draws = model._sample(block, 2)
    found = [model.residual(model.solution, x, draw).detach() for draw in draws]
    off = (found[0] ** 2 + found[1] ** 2) / 2 - found[0] * found[1]
    share = float(row["train_estimate_std"]) ** 2
    assert abs(off.mean() - share) <= 4 * off.std() / len(off) ** 0.5 < 0.2 * share
    for number, estimator in enumerate((None, Sparse(6), Sparse(1))):
        fit(module(equation, estimator=estimator, optimizer=still), tmp_path / str(number), data)
        assert not any(row.get("train_estimate_std") for row in logged(tmp_path / str(number) / "metrics.csv"))


def test_baseline_is_the_best_constant_in_the_place_of_the_net(tmp_path):
    equation = Poisson(3)
    model = module(equation, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    metrics, *_ = fit(model, tmp_path, Collocation(points=10, steps=1, test=500, val=10))
    x = torch.cat([equation.sample(500, block.generator(0, torch.device("cpu"))) for block in _blocks(500)])
    y, p = equation.exact(x)[:, 0], 1 - x.square().sum(1)
    best = (y - p * (p @ y) / (p @ p)).norm() / y.norm()
    torch.testing.assert_close(metrics["test_baseline"], best.item(), rtol=1e-4, atol=0)


def test_an_evaluation_that_was_stopped_leaves_nothing_to_the_next_one(tmp_path):
    class Stop(Callback):
        def on_validation_batch_end(self, *args):
            raise ArithmeticError

    model, data = module(Poisson(3)), Collocation(points=5, steps=1, val=10, test=10)
    with quiet():
        (whole,) = trainer(tmp_path).validate(model, data, verbose=False)
        with torch.no_grad():
            weights = [p.clone() for p in model.parameters()]
            torch._foreach_mul_(list(model.parameters()), 3.0)
            with pytest.raises(ArithmeticError):
                trainer(tmp_path, callbacks=[Stop()]).validate(model, data, verbose=False)
            torch._foreach_copy_(list(model.parameters()), weights)
        (again,) = trainer(tmp_path).validate(model, data, verbose=False)
    assert again == whole


def _blocks(count):
    return list(Collocation(test=count).test_dataloader())


def test_soft_conditions_are_losses_and_hard_ones_are_not(tmp_path):
    equation = BurgersDirichlet(nu=0.1)
    soft, *_ = fit(module(equation, hard=False, weights={"initial": 10.0}), tmp_path)
    names = {"initial", "left", "right"}
    assert {f"test_{name}" for name in names} <= set(soft)
    total = soft["test_residual"] + 10 * soft["test_initial"] + soft["test_left"] + soft["test_right"]
    torch.testing.assert_close(soft["test_loss"], total, rtol=1e-5, atol=0)
    hard, *_ = fit(module(equation), tmp_path)
    assert not {f"test_{name}" for name in names} & set(hard)
    assert hard["test_relative_l2"] < soft["test_relative_l2"] < 1


def test_error_at_a_landmark_is_told_also_where_the_solution_is_known_nowhere_else(tmp_path):
    model = module(Known(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    metrics, *_ = fit(model, tmp_path, Collocation(points=10, steps=1, test=50, val=10))
    expected = abs(model(torch.tensor([[0.5]])).item() - 2) / 2
    torch.testing.assert_close(metrics["test_middle_error"], expected, rtol=1e-5, atol=0)
    assert not {"test_relative_l2", "test_baseline", "test_edge_error"} & set(metrics)
    assert model.monitor == "val_loss"


def test_runs_of_one_seed_are_equal_and_others_are_not(tmp_path, monkeypatch):
    found = []
    for seed in ("1", "1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        metrics, *_ = fit(module(Poisson(4), estimator=Sparse(2)), tmp_path, Collocation(points=20, steps=5, test=50))
        found.append(metrics["test_relative_l2"])
    assert found[0] == found[1] != found[2]


def test_lbfgs_sees_the_same_points_within_a_step(tmp_path):
    seen = []

    class Watched(SineGordon):
        def sample(self, count, generator):
            seen.append(super().sample(count, generator))
            return seen[-1]

    model = module(Watched(4), optimizer=lambda p: torch.optim.LBFGS(p, max_iter=5), estimator=Sparse(2))
    fit(model, tmp_path, Collocation(points=30, steps=2, val=1, test=1), limit_val_batches=0)
    training = [x for x in seen if len(x) == 30]
    assert len(training) > 2 + 2  # closures are evaluated several times in each of the two steps
    assert len({tuple(x.flatten().tolist()) for x in training}) == 2


def test_candidates_are_chosen_where_the_residual_is_large(tmp_path):
    equation = BurgersDirichlet()
    model = module(equation, candidates=20, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    fit(model, tmp_path, Collocation(points=1000, steps=1, val=1, test=1), limit_val_batches=0)
    size = lambda x: equation.residual()(model.solution, x).abs().mean().item()  # noqa: E731
    uniform = equation.sample(4000, torch.Generator().manual_seed(1))
    block = next(iter(Collocation(points=1000).train_dataloader()))
    chosen, *_ = model._sample(block)
    again, *_ = model._sample(block)
    assert len(chosen) == 1000
    assert torch.equal(chosen, again)
    assert size(chosen) > 1.08 * size(uniform)  # 1.16 expected of these residuals, with a standard error of .02


def test_points_and_samples_are_frozen_within_a_step():
    """L-BFGS evaluates its closure several times: also where points are chosen and derivatives estimated."""
    model = module(SineGordon(30), candidates=3, estimator=Sparse(2))
    block = next(iter(Collocation(points=20).train_dataloader()))
    losses = []
    for _ in range(3):
        x, draw = model._sample(block)
        losses.append(model.residual(model.solution, x, draw).square().mean().item())
    assert losses[0] == losses[1] == losses[2]


def test_an_equation_on_a_line_is_drawn_as_one():
    ((_, figure),) = PINNModule(Line(), MLP(1, 1)).pictures(Collocation())
    assert [line.get_label() for line in figure.axes[0].lines] == ["exact", "prediction", "prediction - exact"]


def test_a_residual_that_vanishes_lets_candidates_be_chosen():
    model = PINNModule(Line(), nn.Sequential(MLP(1, 1), Nothing()), candidates=4)
    chosen, *_ = model._sample(next(iter(Collocation(points=20).train_dataloader())))
    assert len(chosen) == 20


@pytest.mark.parametrize(("gradient", "backend"), [(0.0, "aot_eager"), (0.1, "inductor")])
def test_compiled_loss_is_the_eager_one(gradient, backend):
    equation = SineGordon(5)
    model = module(equation)
    x = equation.sample(30, torch.Generator().manual_seed(0))
    residual = equation.residual()
    draw = Sparse(2).draw(residual, x, torch.Generator().manual_seed(0))
    loss, weights = Squared(residual, model.solution, gradient), list(model.solution.parameters())
    found = [each(x, [draw, draw]) for each in (loss, torch.compile(loss, fullgraph=True, backend=backend))]
    eager, compiled = ((*values, *torch.autograd.grad(values[0], weights)) for values in found)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)  # float32 round-off of sums


def test_compiled_training_with_two_draws_is_the_eager_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    weights, data = [], Collocation(points=20, steps=3, val=20, test=20)
    for compiled in (False, True):
        model = module(SineGordon(5), estimator=Sparse(2), draws=2, compile=compiled)
        fit(model, tmp_path / str(compiled), data)
        assert isinstance(model._losses["residual", True], OptimizedModule) == compiled
        weights.append(nn.utils.parameters_to_vector(model.solution.net.parameters()).detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)  # float32 round-off, over three steps of Adam


@pytest.mark.parametrize("gradient", [0.0, 0.1])
def test_two_draws_are_independent_and_make_the_loss_unbiased(gradient):
    equation = SineGordon(6)
    model, exact, found = module(equation, estimator=Sparse(2), draws=2), [], {1: [], 2: []}
    for number in range(20):
        x, *draws = model._sample(Block("train", number, 2000, 1), 2)
        loss = Squared(equation.residual(), model.solution, gradient)
        exact.append(loss(x, [None])[0].item())
        for count, losses in found.items():
            losses.append(loss(x, draws[:count])[0].item())
    off = {count: torch.tensor(losses) - torch.tensor(exact) for count, losses in found.items()}
    error = {count: each.std() / len(each) ** 0.5 for count, each in off.items()}
    assert off[2].mean().abs() < 4 * error[2]
    assert off[1].mean() > 5 * error[1]  # the variance of the estimate; some ten of them


def test_two_draws_go_through_all_stages(tmp_path):
    metrics, run, data = fit(
        module(SineGordon(6), estimator=Sparse(2), draws=2), tmp_path, Collocation(points=20, steps=2, val=20, test=20)
    )
    model = run.model
    x, *draws = model._sample(data.blocks("test")[[0]], 2)
    first, second = (model.residual(model.solution, x, draw) for draw in draws)
    torch.testing.assert_close(metrics["test_loss"], (first * second).mean().item(), rtol=1e-5, atol=0)


def test_two_draws_of_nothing_are_one_evaluation():
    model, seen = module(SineGordon(4), draws=2), []
    model.solution.net.register_forward_hook(lambda *_: seen.append(1))
    x, *draws = model._sample(Block("train", 0, 5, 1), 2)
    Squared(model.residual, model.solution)(x, draws)
    once = len(seen)
    Squared(model.residual, model.solution)(x, [None])
    assert len(seen) == 2 * once


def test_gradient_of_the_residual_enters_the_loss():
    equation = BurgersDirichlet()
    model = module(equation).double()
    x = equation.sample(12, torch.Generator().manual_seed(0)).double()
    r = lambda x: equation.residual()(model.solution, x)  # noqa: E731
    slope = torch.func.jacrev(r)(x).diagonal(dim1=0, dim2=1)  # (d, b)
    plain, _ = Squared(equation.residual(), model.solution)(x, [None])
    loss, _ = Squared(equation.residual(), model.solution, 0.5)(x.clone(), [None])
    torch.testing.assert_close(loss - plain, 0.5 * slope.square().sum(0).mean(), rtol=1e-9, atol=0)


def test_gradient_enhanced_training_goes_through_all_stages(tmp_path):
    metrics, run, data = fit(module(BurgersDirichlet(), gradient_weight=0.01), tmp_path, Collocation(steps=3, test=50))
    assert metrics["test_loss"] > metrics["test_residual"]
    with quiet():
        assert len(run.predict(run.model, data)) == 1


def test_pictures_show_the_plane():
    equation = SineGordon(5)
    ((name, figure),) = module(equation).pictures(Collocation())
    assert name == "solution"
    assert [axes.get_title() for axes in figure.axes[:3]] == ["exact", "prediction", "prediction - exact"]


def test_predictor_can_be_exported():
    model = module(SineGordon(5))
    (x,) = model.example_inputs(Collocation())
    program = torch.export.export(model.predictor(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    torch.testing.assert_close(program(x), model(x))


class Nothing(nn.Module):
    def forward(self, x):
        return 0 * x


class Line(Box):
    """u'' = 0 from 0 to 0."""

    def __init__(self):
        super().__init__((0.0,), (1.0,), ("x",))

    def residual(self):
        return Laplacian()(Unknown())

    def exact(self, x):
        return 0 * x


class Flat(Line):
    def exact(self, x):
        return x[:, 0]


class Clash(Line):
    def conditions(self):
        return {"residual": Condition(Unknown() + 0.0, self.side(0, 0))}


class Inverse(Line):
    def __init__(self):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(0.3))


class Open(Equation):
    """An equation whose right side is forgotten."""

    boundary = ("left", "right")
    dim = 1

    def residual(self):
        return Laplacian()(Unknown()) - 1.0

    def sample(self, count, generator):
        return 2 * torch.rand(count, 1, generator=generator, device=generator.device)

    def inside(self, x):
        return (x[:, 0] >= 0) & (x[:, 0] <= 1)

    def hard(self):
        return ("left",)

    def plane(self, count=101):
        raise NotImplementedError


class Wide(Open):
    boundary = ()


class Known(Wide):
    def sample(self, count, generator):
        return torch.rand(count, 1, generator=generator, device=generator.device)

    def landmarks(self):
        return {
            "middle": Landmark(torch.tensor([[0.5]]), torch.tensor([[2.0]])),
            "edge": Landmark(torch.tensor([[0.0]])),
        }


class Vector(Wide):
    def residual(self):
        return Laplacian()(Unknown()) * torch.ones(3, 1)

    def sample(self, count, generator):
        return torch.rand(count, 1, generator=generator, device=generator.device)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: module(Open()), "equation: Open has no condition on right; expected one of the losses"),
        (lambda: module(SineGordon(4), hard=False), "no condition on sphere; .* or hard=True"),
        (lambda: module(SineGordon(4), candidates=0), "candidates: expected at least 1, got 0"),
        (lambda: module(Clash()), "equation: a condition cannot be named 'residual'"),
        (
            lambda: PINNModule(Flat(), MLP(1, 1))._add_error(torch.rand(5, 1)),
            r"equation.exact: expected values \(5, 1\), got \(5,\)",
        ),
        (
            lambda: module(Inverse(), optimizer=LevenbergMarquardt).configure_optimizers(),
            "no parameters of the equation",
        ),
        (
            lambda: module(SineGordon(4), compile=True, optimizer=AdaHessian).configure_optimizers(),
            "compile: AdaHessian differentiates the gradient; expected False",
        ),
        (lambda: module(SineGordon(4), draws=3), "draws: expected 1 or 2, got 3"),
        (lambda: module(SineGordon(4), weights={"top": 1.0}), r"weights: expected names among \[\], got top"),
        (lambda: module(Wide()).setup("fit"), r"points: \d of 4 lie outside of the domain of Wide"),
        (
            lambda: PINNModule(SineGordon(4), MLP(3, 1)).setup("fit"),
            r"solution\.net\.in_features: expected 4 for an input \(4, 4\), got 3 \(of MLP\)",
        ),
        (
            lambda: Squared(Vector().residual(), Ansatz(Vector(), MLP(1, 1)))(torch.rand(5, 1), [None]),
            r"tensor: expected one number or values \(5\), got \(3, 1\)",
        ),
        (
            lambda: Squared(as_expression(2.0), MLP(1, 1))(torch.rand(5, 1), [None]),
            r"residual: expected a number per point, \(5\), got 2.0",
        ),
        (
            lambda: Squared(Laplacian()(Unknown()), nn.Sequential(nn.Linear(2, 4), nn.ReLU()))(
                torch.rand(5, 2), [None]
            ),
            "u: a derivative of order 2",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
