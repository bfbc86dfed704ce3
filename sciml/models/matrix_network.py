"""A network that looks at a sparse symmetric matrix as at a graph, and says a number of every coupling and unknown."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from sciml.models import network_kernels
from sciml.solvers.linear import kernels

EDGES = 4  # numbers of a coupling, which the compiled loops have by name
CHUNK = 2**13  # unknowns at a time, whose numbers stay in a processor's cache
START = 0.1  # weights of the last layers, relative to torch's own: the network begins near what it corrects


class Graph(Protocol):
    """The n unknowns and m couplings of a matrix.

    Attributes:
        row: of each coupling the unknown that is later in some order (m).
        col: the earlier one (m).
        nodes: numbers of the unknowns (n, k), the last of which is 4 / (number of couplings, at least 1) - 1.
        edges: numbers of the couplings (m, 4).
    """

    @property
    def row(self) -> Tensor: ...  # noqa: D102

    @property
    def col(self) -> Tensor: ...  # noqa: D102

    @property
    def nodes(self) -> Tensor: ...  # noqa: D102

    @property
    def edges(self) -> Tensor: ...  # noqa: D102


class MatrixNetwork(nn.Module):
    """Rounds of messages along couplings, then a hidden layer for every coupling.

    Args:
        nodes: numbers that are seen of an unknown.
        width: numbers that are kept for an unknown.
        rounds: of messages between neighbours.
        more: further numbers of an unknown that are given out, for a layer of the caller's own.
    """

    def __init__(self, nodes: int, width: int, rounds: int, more: int = 0):
        super().__init__()
        for name, value, least in (("width", width, 1), ("rounds", rounds, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.width, self.more = width, more
        self.enter = nn.Linear(nodes, width)
        self.rounds = Rounds(Round(width) for _ in range(rounds))
        self.ends = nn.Linear(width, 2 * width + more + 1, bias=False)
        self.edge, self.edge_out = nn.Linear(EDGES, width), nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            for last in (self.ends.weight[-1:], self.edge_out.weight):
                last.mul_(START)

    def forward(self, seen: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """A number of each coupling (m) and of each unknown (n), and the further ones (n, more)."""
        f = self.enter(seen.nodes).relu()
        for step in self.rounds:
            f = step(f, seen)
        row, col, more, node = self.ends(f).split([self.width, self.width, self.more, 1], 1)
        edge = (self.edge(seen.edges) + row[seen.row] + col[seen.col]).relu()
        return self.edge_out(edge)[:, 0], node[:, 0], more

    def quick(self, seen: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """The same without gradients: by compiled loops on a CPU in single precision, where numba is installed."""
        with torch.no_grad():
            nodes = seen.nodes
            fast = nodes.device.type == "cpu" and nodes.dtype == torch.float32 and kernels.available()
            return self._compiled(seen) if fast else self(seen)

    def _compiled(self, seen: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes by torch, in chunks; couplings by loops."""
        call, width, nodes, edges = kernels.call, self.width, seen.nodes, seen.edges
        f, heard = nodes.new_empty(len(nodes), width), nodes.new_zeros(len(nodes), width)
        sides = nodes.new_empty(len(nodes), 2 * width)
        more, node = nodes.new_empty(len(nodes), self.more), nodes.new_empty(len(nodes), 1)
        weights = self.ends.weight.split([2 * width, self.more, 1])
        to_sides = [*(step.ends.weight for step in self.rounds), weights[0]]
        chunks = [slice(i, i + CHUNK) for i in range(0, len(nodes), CHUNK)]
        for part in chunks:
            torch.addmm(self.enter.bias, nodes[part], self.enter.weight.t(), out=f[part]).relu_()
            torch.mm(f[part], to_sides[0].t(), out=sides[part])
        for step, weight in zip(self.rounds, to_sides[1:], strict=True):
            call(network_kernels.messages, seen.row, seen.col, edges, *affine(step.edge), step.turn, sides, heard)
            for part in chunks:
                f[part] = step.update(f[part], heard[part], nodes[part])
                heard[part] = 0
                torch.mm(f[part], weight.t(), out=sides[part])
        for part in chunks:
            torch.mm(f[part], weights[1].t(), out=more[part])
            torch.mm(f[part], weights[2].t(), out=node[part])
        edge = nodes.new_empty(len(edges))
        numbers = (seen.row, seen.col, edges, *affine(self.edge), sides, self.edge_out.weight[0], edge)
        call(network_kernels.edge_head, *numbers, reorder=True)
        return edge, node[:, 0], more


class Round(nn.Module):
    """Messages along couplings to both their ends, and what these make of their mean."""

    def __init__(self, width: int):
        super().__init__()
        self.edge, self.ends = nn.Linear(EDGES, width), nn.Linear(width, 2 * width, bias=False)
        self.turn = nn.Parameter(torch.empty(width).uniform_(-1, 1))  # the two ways of a coupling, with the order
        self.keep, self.hear = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, f: Tensor, seen: Graph) -> Tensor:
        """From the numbers of the unknowns (n, width) to new ones."""
        to, of = self.ends(f).chunk(2, 1)
        edge, row, col = self.edge(seen.edges), seen.row, seen.col
        heard = torch.zeros_like(f)
        heard = heard.index_add(0, row, (edge + self.turn + to[row] + of[col]).relu())
        heard = heard.index_add(0, col, (edge - self.turn + to[col] + of[row]).relu())
        return self.update(f, heard, seen.nodes)

    def update(self, f: Tensor, heard: Tensor, nodes: Tensor) -> Tensor:
        """The new numbers from what was heard in all (n, width), and what is seen of the unknowns."""
        mean = heard * ((nodes[:, -1:] + 1) / 4)  # over the couplings
        return f + (self.keep(f) + self.hear(mean)).relu()


class Rounds(nn.ModuleList):
    """Rounds, one after another."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Round]:  # pyrefly: ignore[bad-override]
            """Each of them."""
            ...


def affine(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weights (in, out), and biases."""
    return linear.weight.t().contiguous(), linear.bias
