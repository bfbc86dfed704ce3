"""A sparse approximate inverse and a coarse space, both corrected by a network."""

import torch
from torch import Tensor, nn

from sciml.models import two_level_kernels
from sciml.models.learned_preconditioner import LearnedPreconditioner
from sciml.models.matrix_features import NODES, PAIRS, MatrixFeatures, matrix_features, places
from sciml.models.matrix_network import START, MatrixNetwork, affine
from sciml.solvers.linear import FSAI, Aggregation, Preconditioner, SparseOperator, kernels
from sciml.solvers.linear.aggregation import Coarse, DenseCoarse, TwoLevel, pairwise
from sciml.solvers.linear.approximate_inverse import Inverse
from sciml.solvers.linear.preconditioner import finite
from sciml.solvers.linear.sparse import Compressed

DIAGONAL, SOFT = 0.3, 1.5  # largest corrections of G's diagonal, which is at least 1, and of shares


class LearnedTwoLevel(LearnedPreconditioner):
    """A two-level preconditioner whose smoother G^T G and coarse vectors Z are corrected entry by entry.

    G begins as strong `FSAI`, with as many entries as the lower triangle of the matrix, Z as aggregates after a damped
    Jacobi sweep and a step down their energy. The network sees, free of units, each unknown's and each coupling's
    numbers, passes messages along couplings, and adds bounded corrections within the patterns. Whatever the weights,
    G^T G is symmetric positive definite, rows of Z sum to 1, so that its range holds constants, and an application is
    products with sparse matrices and one coarse solve.

    Where a solve breaks down or does not end, `Aggregation` with the same aggregates takes over.

    Args:
        width: numbers that the network keeps for an unknown.
        rounds: of messages between neighbours.
        doublings: of pairs, where no aggregates are given (`on`), as of `Aggregation`.

    Example:
        >>> from sciml.problems import Diffusion
        >>> from sciml.solvers.linear import SparseOperator, pcg
        >>> system = Diffusion(cells=16).system(seed=0)
        >>> a, b = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b)
        >>> blocks = torch.from_numpy(system.aggregates(4))
        >>> bool(pcg(a, b, LearnedTwoLevel().on(blocks)).converged.all())
        True
    """

    def __init__(self, width: int = 16, rounds: int = 1, doublings: int | None = None):
        super().__init__()
        if doublings is not None and doublings < 1:
            raise ValueError(f"doublings: expected at least 1, got {doublings}")
        self.doublings = doublings
        self.network = MatrixNetwork(NODES, width, rounds, more=width)
        self.pair, self.pair_out = nn.Linear(PAIRS, width), nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            self.pair_out.weight.mul_(START)

    def aggregate(self, operator: SparseOperator) -> Tensor:
        """Pairs of pairs along strong couplings."""
        return pairwise(operator, self.doublings)

    def look(self, operator: SparseOperator, aggregates: Tensor | None) -> MatrixFeatures:
        """Features of the matrix, and what the corrections begin from."""
        if aggregates is None:
            aggregates = self.aggregate(operator)
        return matrix_features(operator, aggregates, self.pair.weight.dtype)

    def corrections(self, seen: MatrixFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Of couplings (m), the diagonal (n) and Z (p), in (-1, 1)."""
        edge, diagonal, own = self.network(seen)
        pair = (self.pair(seen.pairs) + own[seen.z.row]).relu()
        return edge.tanh(), diagonal.tanh(), self.pair_out(pair)[:, 0].tanh()

    def entries(self, seen: MatrixFeatures) -> tuple[Compressed, Compressed]:
        """G (n, n) and Z (n, c) with the corrections."""
        edge, diagonal, pair = (x.to(seen.g.values) for x in self.corrections(seen))
        size = seen.edges[:, :2].to(edge).abs().sum(1) / 8
        middle, left = places(seen.g)
        g = seen.g.values.index_add(0, left, size * edge).index_add(0, middle, DIAGONAL * diagonal)
        row, share = seen.z.row, seen.share
        surplus = pair.new_zeros(seen.z.size[0]).index_add(0, row, share * pair)
        z = seen.z.values + SOFT * share * (pair - surplus[row])
        return seen.g.with_values(g * seen.scale[seen.g.col.long()]), seen.z.with_values(z)

    def forward(self, seen: MatrixFeatures) -> TwoLevel:
        """The preconditioner with a dense coarse matrix."""
        g, z = self.entries(seen)
        return TwoLevel(Inverse(g), DenseCoarse(seen.a, z))

    def prepare(self, seen: MatrixFeatures) -> TwoLevel:
        """The preconditioner with a sparse coarse matrix.

        Raises:
            ValueError: the network's weights are not finite.
        """
        fast = seen.nodes.device.type == "cpu" and seen.nodes.dtype == torch.float32 and kernels.available()
        g, z = compiled_entries(self, seen) if fast else self.entries(seen)
        if not (finite(g.values) and finite(z.values)):
            raise ValueError(
                "weights: expected finite numbers, the network's corrections are not; was training unstable?"
            )
        return TwoLevel(Inverse(g), Coarse(seen.a, z))

    def classic(self, aggregates: Tensor | None = None) -> dict[str, Preconditioner]:
        """`FSAI` with the aggregates, and with these smoothed, which has the same number of entries."""
        options = {"smoother": FSAI(), "aggregates": aggregates, "doublings": self.doublings}
        return {"plain": Aggregation(**options), "smoothed": Aggregation(**options, damping=2 / 3)}


def compiled_entries(model: LearnedTwoLevel, seen: MatrixFeatures) -> tuple[Compressed, Compressed]:
    """`LearnedTwoLevel.entries` without gradients, by compiled loops."""
    edge, diagonal, own = model.network.quick(seen)
    pair = torch.empty(len(seen.share))
    numbers = (seen.z.row, seen.pairs, *affine(model.pair), own, model.pair_out.weight[0], pair)
    kernels.call(two_level_kernels.pair_head, *numbers, reorder=True)
    g, z = torch.empty_like(seen.g.values), torch.empty_like(seen.z.values)
    edge, diagonal, pair = edge.tanh_(), diagonal.tanh_(), pair.tanh_()
    numbers = (seen.g.crow, seen.g.col, seen.g.values, seen.scale, seen.edges, edge, diagonal, DIAGONAL, g)
    kernels.call(two_level_kernels.correct, *numbers)
    kernels.call(two_level_kernels.correct_coarse, seen.z.crow, seen.z.values, seen.share, pair, SOFT, z)
    return seen.g.with_values(g), seen.z.with_values(z)
