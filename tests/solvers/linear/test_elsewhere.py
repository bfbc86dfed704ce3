"""Linear solves on another device than the host's, against those on the host."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sciml.models import LearnedFactor, LearnedTwoLevel
from sciml.solvers.linear import (
    FSAI,
    GMRES,
    SSOR,
    Aggregation,
    AlgebraicMultigrid,
    Chebyshev,
    IncompleteCholesky,
    Jacobi,
    Preconditioner,
    Single,
    SparseOperator,
    StencilOperator,
    pcg,
    sor,
)
from sciml.solvers.linear.arguments import as_operator
from tests.elsewhere import agree, elsewhere, reads
from tests.solvers.linear.spd import diffusion

SIDE = 12


def right(device: torch.device) -> Tensor:
    return torch.linspace(-1, 2, 2 * SIDE**2, dtype=torch.float64).sin().reshape(2, -1).to(device).requires_grad_()


PRECONDITIONERS = [
    None,
    Jacobi(),
    SSOR(),
    IncompleteCholesky(),
    pytest.param(IncompleteCholesky(modified=0.97), id="modified"),
    FSAI(),
    Chebyshev(2),
    Aggregation(FSAI()),
    Single(Aggregation(Chebyshev())),
    AlgebraicMultigrid(),
    LearnedFactor(width=8),
    LearnedTwoLevel(width=8),
]


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS, ids=lambda m: type(m).__name__)
def test_conjugate_gradients_elsewhere(preconditioner: Preconditioner | None):
    if isinstance(preconditioner, torch.nn.Module):
        preconditioner = preconditioner.double()

    def make(device: torch.device) -> tuple[Any, ...]:
        a, b = SparseOperator.from_scipy(diffusion(SIDE), device=device), right(device)
        m = preconditioner.to(device) if isinstance(preconditioner, torch.nn.Module) else preconditioner
        solution = pcg(a, b, m, rtol=1e-10)
        assert bool(solution.converged.all())
        assert bool((solution.iterations < 100).all())
        (slope,) = torch.autograd.grad(solution.x.square().sum(), b)
        return solution.x, slope

    agree(make)


def test_other_operators_and_solvers_elsewhere():
    def make(device: torch.device) -> tuple[Any, ...]:
        b = right(device).detach()
        matrix = torch.from_numpy(diffusion(SIDE).toarray()).to(device).requires_grad_()
        dense = pcg(matrix, b, Jacobi(), rtol=1e-10).x
        (slope,) = torch.autograd.grad(dense.square().sum(), matrix)
        offsets, line = [(-1,), (0,), (1,)], torch.tensor([[-1.0], [2.0], [-1.0]], dtype=b.dtype, device=device)
        stencil = pcg(StencilOperator(offsets, line, grid=(SIDE**2,)), b, Chebyshev(2), rtol=1e-10).x
        krylov, _ = GMRES(rtol=1e-10, restart=60).inverse(as_operator(matrix.detach()))(b)
        relaxed = sor(SparseOperator.from_scipy(diffusion(SIDE), device=device), b, 1.6, rtol=1e-8).x
        return dense, slope, stencil, krylov, relaxed

    agree(make)


def test_right_hand_side_on_another_device_is_refused():
    a, b = SparseOperator.from_scipy(diffusion(SIDE)), right(torch.device("cpu")).detach()
    with pytest.raises(ValueError, match=r"b: expected a tensor on A's device cpu, got one on meta"):
        pcg(a, b.to("meta"))


def test_residuals_are_looked_at_every_ten_iterations():
    with elsewhere() as device:
        a, b = SparseOperator.from_scipy(diffusion(SIDE), device=device), right(device).detach()
        pcg(a, b, Jacobi(), rtol=1e-10)
        counts = []
        for rtol in (1e-2, 1e-10):
            reads.clear()
            counts.append((int(pcg(a, b, Jacobi(), rtol=rtol).iterations.max()), len(reads)))
    (short, few), (long, many) = counts
    assert long > short + 20
    assert many - few <= (long - short) // 10 + 2
