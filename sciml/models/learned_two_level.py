"""A sparse approximate inverse and a coarse space, both corrected by a network."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sciml.models import two_level_kernels
from sciml.models.learned_preconditioner import LearnedPreconditioner
from sciml.models.matrix_features import EDGES, NODES, PAIRS, MatrixFeatures, matrix_features
from sciml.solvers.linear import FSAI, Aggregation, Preconditioner, SparseOperator, kernels
from sciml.solvers.linear.aggregation import Coarse, DenseCoarse, TwoLevel, pairwise
from sciml.solvers.linear.approximate_inverse import Inverse
from sciml.solvers.linear.sparse import Compressed

DIAGONAL, SOFT = 0.3, 1.5  # largest corrections of G's diagonal, which is at least 1, and of shares
CHUNK = 2**12  # unknowns at a time, whose numbers stay in a processor's cache
START = 0.1  # weights of the last layers, relative to torch's own: the network begins near the classic preconditioner


class LearnedTwoLevel(LearnedPreconditioner):
    """A two-level preconditioner whose smoother G^T G and coarse vectors Z are corrected entry by entry.

    G begins as `FSAI` on the lower triangle of the matrix, Z as aggregates after a damped Jacobi sweep and a step down
    their energy. The network sees, free of units, each unknown's and each coupling's numbers, passes messages along
    couplings, and adds bounded corrections within the patterns. Whatever the weights, G^T G is symmetric positive
    definite, rows of Z sum to 1, so that its range holds constants, and an application is products with sparse matrices
    and one coarse solve.

    Where a solve breaks down or does not end, `Aggregation` with the same aggregates takes over.

    Args:
        width: numbers that the network keeps for an unknown.
        rounds: of messages between neighbours.
        doublings: of pairs, where no aggregates are given (`on`): they have about 2^doublings unknowns.

    Example:
        >>> from sciml.problems import Diffusion
        >>> from sciml.solvers.linear import SparseOperator, pcg
        >>> system = Diffusion(cells=16).system(seed=0)
        >>> a, b = SparseOperator.from_scipy(system.matrix), torch.from_numpy(system.b)
        >>> blocks = torch.from_numpy(system.aggregates(4))
        >>> bool(pcg(a, b, LearnedTwoLevel().on(blocks)).converged.all())
        True
    """

    def __init__(self, width: int = 16, rounds: int = 1, doublings: int = 4):
        super().__init__()
        for name, value, least in (("width", width, 1), ("rounds", rounds, 0), ("doublings", doublings, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.doublings = doublings
        self.enter = nn.Linear(NODES, width)
        self.rounds = Rounds(Round(width) for _ in range(rounds))
        self.ends = nn.Linear(width, 3 * width + 1, bias=False)  # parts of the two heads below, and the diagonal
        self.edge, self.pair = nn.Linear(EDGES, width), nn.Linear(PAIRS, width)
        self.edge_out, self.pair_out = nn.Linear(width, 1, bias=False), nn.Linear(width, 1, bias=False)
        with torch.no_grad():
            for last in (self.ends.weight[-1:], self.edge_out.weight, self.pair_out.weight):
                last.mul_(START)

    def aggregate(self, operator: SparseOperator) -> Tensor:
        """Pairs of pairs along strong couplings."""
        return pairwise(operator, self.doublings)

    def look(self, operator: SparseOperator, aggregates: Tensor | None) -> MatrixFeatures:
        """Features of the matrix, and what the corrections begin from."""
        if aggregates is None:
            aggregates = self.aggregate(operator)
        return matrix_features(operator, aggregates, self.enter.weight.dtype)

    def corrections(self, seen: MatrixFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Of couplings (m), the diagonal (n) and Z (p), in (-1, 1)."""
        f = self.enter(seen.nodes).relu()
        for step in self.rounds:
            f = step(f, seen)
        width = f.shape[1]
        row, col, own, diagonal = self.ends(f).split([width, width, width, 1], 1)
        edge = (self.edge(seen.edges) + row[seen.row] + col[seen.col]).relu()
        pair = (self.pair(seen.pairs) + own[seen.z.row]).relu()
        edge, diagonal, pair = (x.squeeze(-1).tanh() for x in (self.edge_out(edge), diagonal, self.pair_out(pair)))
        return edge, diagonal, pair

    def entries(self, seen: MatrixFeatures) -> tuple[Compressed, Compressed]:
        """G (n, n) and Z (n, c) with the corrections."""
        edge, diagonal, pair = (x.to(seen.g.values) for x in self.corrections(seen))
        coupling = seen.edges[:, 0].to(edge).abs() / 4
        g = seen.g.values.index_add(0, seen.left, coupling * edge).index_add(0, seen.diagonal, DIAGONAL * diagonal)
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
        if not bool(g.values.isfinite().all() & z.values.isfinite().all()):
            raise ValueError(
                "weights: expected finite numbers, the network's corrections are not; was training unstable?"
            )
        return TwoLevel(Inverse(g), Coarse(seen.a, z))

    def classic(self, aggregates: Tensor | None = None) -> dict[str, Preconditioner]:
        """`FSAI` with the aggregates, and with these smoothed, which has the same number of entries."""
        options = {"smoother": FSAI(), "aggregates": aggregates, "doublings": self.doublings}
        return {"plain": Aggregation(**options), "smoothed": Aggregation(**options, damping=2 / 3)}


class Round(nn.Module):
    """Messages along couplings to both their ends, and what these make of their mean."""

    def __init__(self, width: int):
        super().__init__()
        self.edge, self.ends = nn.Linear(EDGES, width), nn.Linear(width, 2 * width, bias=False)
        self.turn = nn.Parameter(torch.empty(width).uniform_(-1, 1))  # the two ways of an edge, with G's order
        self.keep, self.hear = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, f: Tensor, seen: MatrixFeatures) -> Tensor:
        """From the numbers of the unknowns (n, width) to new ones."""
        to, of = self.ends(f).chunk(2, 1)
        edge, row, col = self.edge(seen.edges), seen.row, seen.col
        heard = torch.zeros_like(f)
        heard = heard.index_add(0, row, (edge + self.turn + to[row] + of[col]).relu())
        heard = heard.index_add(0, col, (edge - self.turn + to[col] + of[row]).relu())
        return self.update(f, heard, seen.nodes)

    def update(self, f: Tensor, heard: Tensor, nodes: Tensor) -> Tensor:
        """The new numbers from what was heard in all (n, width), and the features of the unknowns."""
        mean = heard * ((nodes[:, 6:7] + 1) / 4)  # over the couplings, whose number is in that feature
        return f + (self.keep(f) + self.hear(mean)).relu()


class Rounds(nn.ModuleList):
    """Rounds, one after another."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Round]:  # pyrefly: ignore[bad-override]
            """Each of them."""
            ...


def compiled_entries(model: LearnedTwoLevel, seen: MatrixFeatures) -> tuple[Compressed, Compressed]:
    """`LearnedTwoLevel.entries` without gradients: nodes by torch, edges and pairs by compiled loops."""
    call, width, nodes = kernels.call, model.enter.out_features, seen.nodes
    f, heard = nodes.new_empty(len(nodes), width), nodes.new_zeros(len(nodes), width)
    sides, diagonal = nodes.new_empty(len(nodes), 2 * width), nodes.new_empty(len(nodes), 1)
    to_sides = [*(step.ends.weight for step in model.rounds), model.ends.weight[: 2 * width]]
    to_own, to_diagonal = model.ends.weight[2 * width : 3 * width], model.ends.weight[3 * width :]
    chunks = [slice(i, i + CHUNK) for i in range(0, len(nodes), CHUNK)]
    for part in chunks:
        torch.addmm(model.enter.bias, nodes[part], model.enter.weight.t(), out=f[part]).relu_()
        torch.mm(f[part], to_sides[0].t(), out=sides[part])
    for step, weight in zip(model.rounds, to_sides[1:], strict=True):
        call(two_level_kernels.messages, seen.row, seen.col, seen.edges, *_affine(step.edge), step.turn, sides, heard)
        for part in chunks:
            f[part] = step.update(f[part], heard[part], nodes[part])
            heard[part] = 0
            torch.mm(f[part], weight.t(), out=sides[part])
    own = heard
    for part in chunks:
        torch.mm(f[part], to_own.t(), out=own[part])
        torch.mm(f[part], to_diagonal.t(), out=diagonal[part])
    edge, pair = nodes.new_empty(len(seen.row)), nodes.new_empty(len(seen.share))
    numbers = (seen.row, seen.col, seen.edges, *_affine(model.edge), sides, model.edge_out.weight[0], edge)
    call(two_level_kernels.edge_head, *numbers, reorder=True)
    numbers = (seen.z.row, seen.pairs, *_affine(model.pair), own, model.pair_out.weight[0], pair)
    call(two_level_kernels.pair_head, *numbers, reorder=True)
    g, z = torch.empty_like(seen.g.values), torch.empty_like(seen.z.values)
    numbers = (
        seen.g.crow,
        seen.g.col,
        seen.g.values,
        seen.scale,
        seen.edges,
        edge.tanh_(),
        diagonal[:, 0].tanh_(),
        DIAGONAL,
        g,
    )
    call(two_level_kernels.correct, *numbers)
    call(two_level_kernels.correct_coarse, seen.z.crow, seen.z.values, seen.share, pair.tanh_(), SOFT, z)
    return seen.g.with_values(g), seen.z.with_values(z)


def _affine(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weights (in, out), and biases."""
    return linear.weight.t().contiguous(), linear.bias
