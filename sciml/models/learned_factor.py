"""A learned incomplete Cholesky factor."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sciml.models import two_level_kernels
from sciml.models.learned_preconditioner import LearnedPreconditioner
from sciml.models.matrix_features import NODES, lower_graph
from sciml.models.matrix_network import MatrixNetwork
from sciml.solvers.linear import IncompleteCholesky, Preconditioner, SparseOperator, kernels
from sciml.solvers.linear.incomplete import Factored, lower_of
from sciml.solvers.linear.preconditioner import finite
from sciml.solvers.linear.triangular import Lower

Base = Literal["matrix", "ic", "mic"]


class FactorFeatures(NamedTuple):
    """A matrix A (n, n) as a graph whose edges are its m entries below the diagonal.

    Attributes:
        base: the factor of A that corrections begin from.
        row: the larger unknown of each edge (m).
        col: the smaller one (m).
        nodes: (n, 8) as of `MatrixFeatures` with the scaled base for G and all unknowns in one aggregate.
        edges: (m, 4) likewise.
    """

    base: Lower
    row: Tensor
    col: Tensor
    nodes: Tensor
    edges: Tensor


class LearnedFactor(LearnedPreconditioner):
    """M = (L L^T)^-1 with L on the pattern of A's lower triangle, made by a graph neural network.

    The network passes messages along the couplings, other ones to the larger and to the smaller unknown, since a factor
    depends on the order of the unknowns, and multiplies each entry of a base by a number in [1 / e, e]: M is symmetric
    positive definite whatever the weights. Iterations grow with the size of a system, as those of every such factor,
    and a network may serve systems badly that are unlike those it has seen; then IC(0) takes over.

    Args:
        base: what corrections begin from: "matrix" is A's lower triangle, the network has to find the factor; "ic"
            IC(0), and "mic" MIC(0).
        width: numbers that the network keeps for an unknown.
        rounds: of messages between neighbours.
        modified: share of what falls outside the pattern that "mic" adds to the diagonal, in [0, 1]. In the plane .99
            is near the best of it; in space, where less is outside, .8 for a thousand unknowns, .95 for ten thousand.

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

    def __init__(self, base: Base = "matrix", width: int = 16, rounds: int = 3, modified: float = 0.99):
        super().__init__()
        if base not in ("matrix", "ic", "mic"):
            raise ValueError(f"base: expected 'matrix', 'ic' or 'mic', got {base!r}")
        self.base, self.modified = base, modified
        self.classic()  # refuses a share that is none
        self.network = MatrixNetwork(NODES, width, rounds)

    def look(self, operator: SparseOperator, aggregates: Tensor | None) -> FactorFeatures:
        """The graph, and the base."""
        a = operator.compressed
        a = a.with_values(a.values.detach())
        base = lower_of(SparseOperator(a), "a learned preconditioner")
        scale = base.diagonal().rsqrt()
        if self.base == "matrix":
            c = base.compressed
            base = base.with_values(c.values * scale.index_select(0, c.col))
        else:
            base = IncompleteCholesky(self.modified if self.base == "mic" else 0.0).factor(base).lower
        nodes, edges, row, col = lower_graph(a, base.compressed, scale, self.network.enter.weight.dtype)
        return FactorFeatures(base, row, col, nodes, edges)

    def forward(self, seen: FactorFeatures) -> Factored:
        """The factor, differentiable in the weights."""
        return self._factor(seen, *(x.tanh().exp() for x in self.network(seen)[:2]))

    def prepare(self, seen: FactorFeatures) -> Factored:
        """The factor.

        Raises:
            ValueError: the network's weights are not finite.
        """
        c, (edge, diagonal, _) = seen.base.compressed, self.network.quick(seen)
        edge, diagonal = edge.tanh_().exp_(), diagonal.tanh_().exp_()
        if not (finite(edge) and finite(diagonal)):
            raise ValueError("weights: expected finite numbers, the network's are not; was training unstable?")
        if edge.device.type != "cpu" or not kernels.available():
            return self._factor(seen, edge, diagonal)
        values = torch.empty_like(c.values)
        kernels.call(two_level_kernels.corrected, c.crow, c.values, edge, diagonal, values)
        return Factored(seen.base.with_values(values))

    def _factor(self, seen: FactorFeatures, edge: Tensor, diagonal: Tensor) -> Factored:
        """The base's entries times these numbers."""
        c = seen.base.compressed
        left = torch.arange(len(edge), device=edge.device) + seen.row  # every row before ends with its diagonal
        sizes = edge.new_empty(len(edge) + len(diagonal)).index_copy(0, left, edge)
        sizes = sizes.index_copy(0, c.crow[1:].long() - 1, diagonal)
        return Factored(seen.base.with_values(c.values * sizes.to(c.values)))

    def classic(self, aggregates: Tensor | None = None) -> dict[str, Preconditioner]:
        """IC(0) and MIC(0), on the same pattern."""
        return {"ic": IncompleteCholesky(), "mic": IncompleteCholesky(self.modified)}
