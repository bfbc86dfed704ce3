from itertools import pairwise

import pytest
import torch
from torch import nn

from sciml.calculus import Sparse
from sciml.data import Collocation
from sciml.models import MLP
from sciml.problems import BurgersDirichlet, SineGordon
from sciml.training import LevenbergMarquardt, PINNModule
from sciml.training.levenberg_marquardt import Residuals
from tests.training.test_pinn import fit

DOUBLE = torch.float64


def minimise(function, start, **options):
    """An optimiser of a function's sum of squares, and its parameter."""
    p = nn.Parameter(torch.tensor(start, dtype=DOUBLE))
    optimizer = LevenbergMarquardt([p], **options)
    optimizer.residuals = Residuals(
        lambda: function(p), lambda: (function(p.detach()), torch.func.jacrev(function)(p.detach()))
    )
    return optimizer, p


def rosenbrock(p):
    return torch.stack([1 - p[0], 10 * (p[1] - p[0] ** 2)])


def test_linear_least_squares_take_one_step():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 3, generator=generator, dtype=DOUBLE), torch.randn(9, generator=generator, dtype=DOUBLE)
    optimizer, p = minimise(lambda p: a @ p - b, [0.0, 0.0, 0.0], damping=1e-14)
    assert optimizer.step() == b @ b
    torch.testing.assert_close(p.detach(), torch.linalg.lstsq(a, b[:, None]).solution[:, 0], rtol=1e-11, atol=1e-11)


def test_valley_of_rosenbrock_is_followed_to_its_end():
    optimizer, p = minimise(rosenbrock, [-1.2, 1.0])
    losses = [optimizer.step().item() for _ in range(60)]
    assert all(a >= b for a, b in pairwise(losses))
    torch.testing.assert_close(p.detach(), torch.ones(2, dtype=DOUBLE), rtol=1e-9, atol=0)


def test_parameters_stay_where_no_damping_helps():
    optimizer, p = minimise(rosenbrock, [1.0, 1.0], trials=3)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2, dtype=DOUBLE))
    assert optimizer.param_groups[0]["damping"] == 1e-2 * 4**3


def test_damping_goes_with_the_state():
    optimizer, _ = minimise(rosenbrock, [-1.2, 1.0])
    for _ in range(5):
        optimizer.step()
    other, _ = minimise(rosenbrock, [0.0, 0.0])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["damping"] == optimizer.param_groups[0]["damping"] != 1e-2


def burgers(optimizer=LevenbergMarquardt, **options):
    torch.manual_seed(0)
    return PINNModule(BurgersDirichlet(nu=0.1), MLP(2, 1, width=8, depth=2), optimizer=optimizer, **options)


@pytest.mark.parametrize("hard", [True, False])
def test_networks_are_trained_through_lightning(tmp_path, hard):
    options = {"hard": hard, "weights": {} if hard else {"initial": 5.0}}
    data = Collocation(points=300, boundary=60, steps=40, val=100, test=500)
    metrics, run, _ = fit(burgers(**options), tmp_path, data, precision="64-true")
    assert run.global_step == 40
    adam, *_ = fit(burgers(lambda p: torch.optim.Adam(p, lr=1e-2), **options), tmp_path, data, precision="64-true")
    assert metrics["test_relative_l2"] < 0.05 * adam["test_relative_l2"]


def test_jacobian_is_that_of_the_residuals(tmp_path):
    model = burgers(hard=False)
    fit(model, tmp_path, Collocation(points=7, boundary=3, steps=1, val=1, test=1), precision="64-true")
    r, jacobian = model._jacobian()
    with torch.enable_grad():
        torch.testing.assert_close(r, model._residuals().detach(), rtol=1e-12, atol=1e-13)
        for row, value in zip(jacobian, model._residuals(), strict=True):
            grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, materialize_grads=True)
            torch.testing.assert_close(row, torch.cat([g.flatten() for g in grads]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches: LevenbergMarquardt solves for one"),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val: LevenbergMarquardt solves for one"),
    ],
)
def test_what_changes_gradients_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(burgers(), tmp_path, Collocation(steps=2, val=1, test=1), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minimise(rosenbrock, [0.0, 0.0], damping=0.0), "damping: expected more than 0, got 0"),
        (lambda: minimise(rosenbrock, [0.0, 0.0], increase=1.0), "increase: expected more than 1, got 1"),
        (lambda: minimise(rosenbrock, [0.0, 0.0], trials=0), "trials: expected at least 1, got 0"),
        (lambda: minimise(rosenbrock, [0.0, 0.0], lr=0.0), "lr: expected a positive number, got 0"),
        (lambda: LevenbergMarquardt(nn.Linear(2, 2).parameters()).step(), "residuals: LevenbergMarquardt needs them"),
        (
            lambda: PINNModule(
                SineGordon(4), MLP(4, 1), estimator=Sparse(2), optimizer=LevenbergMarquardt
            ).configure_optimizers(),
            "optimizer: LevenbergMarquardt takes plain residuals",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_frozen_parameters_stay(tmp_path):
    module = PINNModule(BurgersDirichlet(), MLP(2, 1, width=4, depth=2).double(), optimizer=LevenbergMarquardt)
    first, *_, last = module.parameters()
    first.requires_grad_(False)
    before, moving = first.clone(), last.detach().clone()
    fit(module, tmp_path, Collocation(points=50, boundary=20, steps=2, val=50, test=50))
    assert torch.equal(first, before)
    assert not torch.equal(last, moving)
