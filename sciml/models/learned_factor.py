"""A learned incomplete Cholesky factor."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sciml.models.learned_preconditioner import LearnedPreconditioner
from sciml.solvers.linear import IncompleteCholesky, Preconditioner, SparseOperator
from sciml.solvers.linear.incomplete import Factored
from sciml.solvers.linear.preconditioner import positive
from sciml.solvers.linear.triangular import Lower

Base = Literal["matrix", "ic", "mic"]

NODES, EDGES = 3, 2  # numbers of features
MODIFIED = 0.99  # of MIC(0)
LARGEST = 1.0  # logarithm of a correction
START = 0.1  # weights of the last layers, relative to torch's own: the network begins near its base


class FactorFeatures(NamedTuple):
    """A matrix A (n, n) as a graph whose edges are its m entries below the diagonal.

    Attributes:
        base: the factor of A, scaled to a diagonal of ones, that corrections begin from.
        root: root of A's diagonal (n).
        row: the larger unknown of each edge (m).
        col: the smaller one (m).
        left: where the edges stand in the factor (m).
        nodes: (n, 3): row sum, number of couplings, entry of the base.
        edges: (m, 2): the coupling, the entry of the base.
    """

    base: Lower
    root: Tensor
    row: Tensor
    col: Tensor
    left: Tensor
    nodes: Tensor
    edges: Tensor

    @property
    def diagonal(self) -> Tensor:
        """Where the diagonal stands in the factor (n)."""
        return self.base.compressed.crow[1:].long() - 1


class LearnedFactor(LearnedPreconditioner):
    """M = (L L^T)^-1 with L on the pattern of A's lower triangle, made by a graph neural network.

    The network passes messages along the couplings, other ones to the larger and to the smaller unknown, since a factor
    depends on the order of the unknowns, and multiplies each entry of a base by a number in [1 / e, e]: M is symmetric
    positive definite whatever the weights. Iterations grow with the size of a system, as those of every such factor,
    and a network may serve systems badly that are unlike those it has seen; then IC(0) takes over.

    Args:
        base: what corrections begin from: "matrix" is A's lower triangle, the network has to find the factor; "ic"
            IC(0), and "mic" MIC(0) with .99 of what it drops.
        width: numbers that the network keeps for an unknown and a coupling.
        rounds: of messages between neighbours.

    Reference:
        Y. Li, P. Y. Chen, T. Du, W. Matusik, Learning Preconditioner for Conjugate Gradient PDE Solvers, ICML 2023,
        arXiv:2305.16368; corrections of a classic factor: V. Trifonov et al., arXiv:2405.15557.

    Example:
        >>> from sciml.problems import Diffusion
        >>> from sciml.solvers.linear import SparseOperator, pcg
        >>> system = Diffusion(cells=16).system(seed=0)
        >>> a, b = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b)
        >>> bool(pcg(a, b, LearnedFactor()).converged.all())
        True
    """

    def __init__(self, base: Base = "matrix", width: int = 16, rounds: int = 3):
        super().__init__()
        if base not in ("matrix", "ic", "mic"):
            raise ValueError(f"base: expected 'matrix', 'ic' or 'mic', got {base!r}")
        for name, value, least in (("width", width, 1), ("rounds", rounds, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.base = base
        self.node_in, self.edge_in = _mlp(NODES, width, width), _mlp(EDGES, width, width)
        self.up = nn.ModuleList(_mlp(3 * width, width, width) for _ in range(rounds))
        self.down = nn.ModuleList(_mlp(3 * width, width, width) for _ in range(rounds))
        self.keep = nn.ModuleList(_mlp(3 * width, width, width) for _ in range(rounds))
        self.edge_out, self.node_out = _mlp(3 * width, width, 1, START), _mlp(width, width, 1, START)

    def look(self, operator: SparseOperator, aggregates: Tensor | None) -> FactorFeatures:
        """The graph, and the base."""
        d = operator.diagonal()[0].detach()
        positive(d, "a learned preconditioner")
        root, dtype = d.sqrt(), next(self.parameters()).dtype
        a = operator.compressed
        row, col = a.row, a.col.long()
        scaled = SparseOperator(a.with_values(a.values.detach() / (root[row] * root[col])))
        lower = base = Lower.of(scaled.compressed)
        if self.base != "matrix":
            prepared = IncompleteCholesky(MODIFIED if self.base == "mic" else 0.0).setup(operator)
            made = prepared.lower  # pyrefly: ignore[missing-attribute]
            base = made.with_values(made.compressed.values / root[made.compressed.row])
        c = lower.compressed
        left = torch.nonzero(c.col < c.row).squeeze(-1)
        ones = torch.ones_like(a.values.detach()).masked_fill(row == col, 0)
        count = torch.zeros_like(d).index_add(0, row, ones)
        entries = base.compressed.values
        diagonal = entries[c.crow[1:].long() - 1]
        sums = torch.zeros_like(d).index_add(0, row, a.values.detach()) / d
        nodes = torch.stack([sums, count / 4 - 1, diagonal - 1], -1).to(dtype)
        edges = 4 * torch.stack([c.values[left], entries[left]], -1).to(dtype)
        return FactorFeatures(base, root, c.row[left], c.col[left].long(), left, nodes, edges)

    def forward(self, seen: FactorFeatures) -> Factored:
        """The factor, differentiable in the weights."""
        f, e, row, col = self.node_in(seen.nodes), self.edge_in(seen.edges), seen.row, seen.col
        for up, down, keep in zip(self.up, self.down, self.keep, strict=True):
            larger, smaller = torch.cat([e, f[row], f[col]], 1), torch.cat([e, f[col], f[row]], 1)
            rising, falling = up(larger), down(smaller)
            heard = [torch.zeros_like(f).index_add(0, to, part) for to, part in ((row, rising), (col, falling))]
            e, f = e + rising + falling, f + keep(torch.cat([f, *heard], 1))
        factors = self.edge_out(torch.cat([e, f[row], f[col]], 1))[:, 0], self.node_out(f)[:, 0]
        values = seen.base.compressed.values
        log = torch.zeros_like(values)
        log = log.index_copy(0, seen.left, factors[0].to(values.dtype))
        log = log.index_copy(0, seen.diagonal, factors[1].to(values.dtype))
        factors = (LARGEST * torch.tanh(log / LARGEST)).exp()
        return Factored(seen.base.with_values(values * factors * seen.root[seen.base.compressed.row]))

    def prepare(self, seen: FactorFeatures) -> Factored:
        """The factor.

        Raises:
            ValueError: the network's weights are not finite.
        """
        prepared = self(seen)
        if not bool(prepared.lower.compressed.values.isfinite().all()):
            raise ValueError("weights: expected finite numbers, the network's are not; was training unstable?")
        return prepared

    def classic(self, aggregates: Tensor | None = None) -> dict[str, Preconditioner]:
        """IC(0) and MIC(0), on the same pattern."""
        return {"ic": IncompleteCholesky(), "mic": IncompleteCholesky(MODIFIED)}


def _mlp(inputs: int, width: int, outputs: int, size: float = 1.0) -> nn.Sequential:
    """One hidden layer; the last one's weights start with a size relative to torch's own."""
    last = nn.Linear(width, outputs)
    with torch.no_grad():
        last.weight.mul_(size)
        last.bias.mul_(size)
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), last)
