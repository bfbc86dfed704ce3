from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciml import solve
from sciml.solvers import Backsolve, Discrete, Solver


@pytest.mark.parametrize("adjoint", [Discrete("graph"), Discrete("all"), Discrete("every", 3)], ids=lambda a: a.store)
def test_solve_within_mixed_precision_is_in_single_precision(adjoint: Discrete):
    first, net = nn.Linear(2, 2), nn.Linear(2, 2)

    def gradients(within: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y0 = first(torch.ones(3, 2))
            scale = y0.mean()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            y0, scale = (y0, scale) if within else (y0.float(), scale.float())
            solver = Solver(adjoint=adjoint)
            ys = solve(Scaled(net), y0, 0.0, 1.0, solver, args=(scale,)).ys
        assert ys.dtype == torch.float32
        return list(torch.autograd.grad(ys.sum(), [*first.parameters(), *net.parameters()]))

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


@pytest.mark.parametrize("adjoint", [Discrete("all"), Discrete("every", 3), Backsolve()], ids=["all", "every", "back"])
def test_backward_pass_within_mixed_precision_is_in_single_precision(adjoint: Any):
    net, y0 = Scaled(nn.Linear(2, 2)), torch.ones(3, 2)

    def gradients(within: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            ys = solve(net, y0, 0.0, 1.0, Solver(adjoint=adjoint), args=(torch.ones(()),)).ys
            return list(torch.autograd.grad(ys.sum(), list(net.parameters())))

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


class Scaled(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return args[0] * self.net(y)


def test_states_of_several_tensors_are_taken():
    y0 = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(3, dtype=torch.float64)}
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="y0"):
        solve(lambda t, y: y, y0, 0.0, 1.0)  # of two precisions
    with torch.autocast("cpu", torch.bfloat16):
        ys = solve(lambda t, y: {"a": -y["a"]}, {"a": y0["a"]}, 0.0, 1.0).ys
    assert ys["a"].dtype == torch.float32
    assert (ys["a"] - torch.exp(torch.tensor(-1.0))).abs().max() < 1e-4
