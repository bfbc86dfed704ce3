from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sciml.models import LearnedFactor
from sciml.models.matrix_network import MatrixNetwork
from sciml.problems import Diffusion
from sciml.solvers.linear import SparseOperator


class Couplings(NamedTuple):
    row: Tensor
    col: Tensor
    nodes: Tensor
    edges: Tensor


def graph(dtype: torch.dtype = torch.float32) -> Couplings:
    """A chain of 6 unknowns, closed by one more coupling, and an unknown alone."""
    generator = torch.Generator().manual_seed(0)
    row, col = torch.tensor([1, 2, 3, 4, 5, 5]), torch.tensor([0, 1, 2, 3, 4, 0])
    nodes, edges = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((7, 3), (6, 4)))
    nodes[:, -1] = 4 / torch.bincount(torch.cat([row, col]), minlength=7).clamp(min=1) - 1
    return Couplings(row, col, nodes, edges)


def network(rounds: int, dtype: torch.dtype = torch.float32) -> MatrixNetwork:
    torch.manual_seed(1)
    return MatrixNetwork(3, width=5, rounds=rounds, more=2).to(dtype)


def test_a_round_is_its_definition():
    net, seen = network(1, torch.float64), graph(torch.float64)
    (step,) = net.rounds
    f = net.enter(seen.nodes).relu()
    heard = [[torch.zeros(5, dtype=torch.float64)] for _ in f]
    for i, j, e in zip(seen.row.tolist(), seen.col.tolist(), seen.edges, strict=True):
        to, of = (f @ part.mT for part in step.ends.weight.chunk(2))
        heard[i].append((step.edge(e) + step.turn + to[i] + of[j]).relu())
        heard[j].append((step.edge(e) - step.turn + to[j] + of[i]).relu())
    mean = torch.stack([sum(h) / max(len(h) - 1, 1) for h in heard])  # pyrefly: ignore[no-matching-overload]
    f = f + (step.keep(f) + step.hear(mean)).relu()
    a, b, more, node = (f @ part.mT for part in net.ends.weight.split([5, 5, 2, 1]))
    edge = [
        net.edge_out((net.edge(e) + a[i] + b[j]).relu())
        for i, j, e in zip(seen.row.tolist(), seen.col.tolist(), seen.edges, strict=True)
    ]
    for found, expected in zip(net(seen), (torch.cat(edge), node[:, 0], more), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_compiled_loops_are_what_torch_does(rounds: int):
    pytest.importorskip("numba")
    net, seen = network(rounds), graph()
    with torch.no_grad():
        pairs = zip(net._compiled(seen), net(seen), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # single precision


def test_a_factor_to_solve_with_is_the_differentiable_one():
    torch.manual_seed(0)
    net = LearnedFactor("mic", width=8, rounds=2)
    a = SparseOperator.from_scipy(Diffusion(cells=9).system(seed=0).matrix)
    found, expected = net.setup(a), net(net.look(a, None))
    values = (x.lower.compressed.values.detach() for x in (found, expected))  # pyrefly: ignore[missing-attribute]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    assert not torch.equal(net.setup(a).lower.compressed.values, LearnedFactor("mic").setup(a).lower.compressed.values)


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        MatrixNetwork(3, width=0, rounds=1)
    with pytest.raises(ValueError, match="rounds: expected at least 0, got -1"):
        MatrixNetwork(3, width=4, rounds=-1)
