"""The gradient of a step's scaled error, which is written by hand."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sciml.solvers.error_norm import error_norm, norm, quotients

TOLERANCES = (1e-2, 1e-3)


def step(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    error, y0, y1 = (torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(3))
    return 1e-2 * error, y0, y1


@pytest.mark.parametrize("each", [False, True], ids=["joint", "each"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2)], ids=str)
def test_value_and_gradient_are_those_of_the_formula(shape: tuple[int, ...], each: bool):
    given = [x.requires_grad_() for x in step(*shape)]
    found, plain = error_norm(*given, *TOLERANCES, each), norm(quotients(*given, *TOLERANCES), each)
    assert torch.equal(found, plain)
    weights = torch.linspace(1, 2, found.numel(), dtype=torch.float64).reshape(found.shape)
    grads, right = (torch.autograd.grad(x, given, weights, retain_graph=True) for x in (found, plain))
    for grad, expected in zip(grads, right, strict=True):
        assert torch.allclose(grad, expected, rtol=1e-13, atol=0)


def test_gradient_can_be_differentiated_again():
    given = [x.requires_grad_() for x in step(2, 3)]
    function = lambda *xs: error_norm(*xs, *TOLERANCES, True)  # noqa: E731
    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


def test_only_what_needs_a_gradient_gets_one_and_an_error_of_zero_has_none():
    error, y0, y1 = step(3, 2)
    y1.requires_grad_()
    error_norm(error, y0, y1, *TOLERANCES, False).backward()
    assert bool(y1.grad.abs().max() > 0)
    grad = torch.autograd.grad(error_norm(0 * error, y0, y1, *TOLERANCES, False), y1)[0]
    assert torch.equal(grad, torch.zeros_like(y1))


def test_gradient_of_an_error_near_underflow_is_finite():
    error, y0, y1 = (x.requires_grad_() for x in step(1))
    grads = torch.autograd.grad(error_norm(1e-315 * error.sign(), y0, y1, *TOLERANCES, False), (y0, y1))
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_state_that_is_infinite_shows():
    error, y0, y1 = step(3)
    y1[1] = torch.inf
    assert not bool(error_norm(error, y0, y1.requires_grad_(), *TOLERANCES, False).isfinite())
