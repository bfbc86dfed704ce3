"""What a network sees of a symmetric positive definite matrix and of aggregates of its unknowns: numbers without units.

The matrix is scaled to a diagonal of ones, so that a multiple of it looks the same.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sciml.models import two_level_kernels
from sciml.models.matrix_network import EDGES
from sciml.solvers.linear import kernels
from sciml.solvers.linear.aggregation import soft
from sciml.solvers.linear.approximate_inverse import approximate_inverse
from sciml.solvers.linear.preconditioner import positive
from sciml.solvers.linear.sparse import Compressed, SparseOperator

NODES, PAIRS = 8, 3  # numbers of each; a coupling has those of `MatrixNetwork`
DAMPING = 2 / 3  # of the sweep that the coarse vectors start from
DESCENT = 0.9  # length of the step in which they then lose energy


class MatrixFeatures(NamedTuple):
    """A matrix A (n, n), what a two-level preconditioner starts from, and the features of its parts.

    Nodes are unknowns, edges the m entries of G off its diagonal, pairs the p entries of Z. An unknown is before
    another if the other's row of G has an entry for it.

    Attributes:
        a: A.
        scale: one over the root of A's diagonal (n).
        g: G of strong `FSAI` for the scaled matrix.
        z: coarse vectors (n, c), rows of which sum to 1: smoothed aggregates after a step down their energy.
        share: sizes of Z's entries before that step, relative to the sum of their row (p).
        row: the later unknown of each edge (m).
        col: the earlier one (m).
        nodes: (n, 8): row sum of A; sum of the squares of the couplings; their shares inside the aggregate, with
            unknowns before this one and others; share of those before; the largest; the entry of G; their number.
        edges: (m, 4): the coupling, the entry of G, whether both ends are of one aggregate, contrast of the diagonal.
        pairs: (p, 3): the entry of Z before the step, whether the aggregate is the unknown's own, and the step.
    """

    a: Compressed
    scale: Tensor
    g: Compressed
    z: Compressed
    share: Tensor
    row: Tensor
    col: Tensor
    nodes: Tensor
    edges: Tensor
    pairs: Tensor


def places(triangular: Compressed) -> tuple[Tensor, Tensor]:
    """Where the diagonal (n) and where the edges (m) stand in a matrix."""
    middle = triangular.row == triangular.col
    return middle.nonzero()[:, 0], (~middle).nonzero()[:, 0]


def matrix_features(operator: SparseOperator, aggregates: Tensor, dtype: torch.dtype = torch.float32) -> MatrixFeatures:
    """Look at a matrix.

    Args:
        operator: A.
        aggregates: (n) the aggregate of each unknown, numbered from 0 without gaps.
        dtype: of the features.

    Raises:
        ValueError: A is not positive definite, or the aggregates are not such numbers.
    """
    a, d = operator.compressed, operator.diagonal()[0].detach()
    a = a.with_values(a.values.detach())
    positive(d, "a learned preconditioner")
    scale = d.rsqrt()
    g = approximate_inverse(a, strong=True)
    g = g.with_values(g.values / scale.index_select(0, g.col))
    start = soft(a, aggregates, DAMPING)
    nodes, edges, row, col = graph(a, aggregates, g, scale, dtype)
    z, share, pairs = (_descend if compiled(a) else _descend_by_scipy)(a, aggregates, start, dtype)
    return MatrixFeatures(a, scale, g, z, share, row, col, nodes, edges, pairs)


def compiled(a: Compressed) -> bool:
    """Whether loops over a matrix are compiled."""
    return a.values.device.type == "cpu" and kernels.available()


def graph(
    a: Compressed, aggregates: Tensor, g: Compressed, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes (n, 8) and edges (m, 4) of A as `MatrixFeatures` has them, and the ends of the edges (m each).

    Args:
        a: A.
        aggregates: (n).
        g: triangular in some order of the unknowns, for the scaled matrix.
        scale: one over the root of A's diagonal (n).
        dtype: of nodes and edges.
    """
    return (_look if compiled(a) else _look_by_torch)(a, aggregates, g, scale, dtype)


def lower_graph(
    a: Compressed, lower: Compressed, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with all unknowns in one aggregate, for a triangle on the pattern of A's lower one.

    Args:
        a: A.
        lower: a factor of it, which is scaled here.
        scale: one over the root of A's diagonal (n).
        dtype: of nodes and edges.
    """
    if not compiled(a):
        one, scaled = a.col.new_zeros(a.size[0], dtype=torch.int64), lower.values * scale[lower.row]
        return _look_by_torch(a, one, lower.with_values(scaled), scale, dtype)
    out = _empty(a.size[0], lower.nnz - a.size[0], dtype)
    kernels.call(two_level_kernels.look_lower, a.crow, a.col, a.values, lower.crow, lower.values, scale, *out)
    return out


def _empty(n: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nodes, edges = torch.empty(n, NODES, dtype=dtype), torch.empty(m, EDGES, dtype=dtype)
    return nodes, edges, torch.empty(m, dtype=torch.int64), torch.empty(m, dtype=torch.int64)


def _look(
    a: Compressed, aggregates: Tensor, g: Compressed, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = _empty(a.size[0], g.nnz - a.size[0], dtype)
    given = (a.crow, a.col, a.values, aggregates, g.crow, g.col, g.values, scale)
    kernels.call(two_level_kernels.look, *given, *out)
    return out


def _look_by_torch(
    a: Compressed, aggregates: Tensor, g: Compressed, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row, col, n = a.row, a.col.long(), a.size[0]
    scaled = a.values * scale[row] * scale[col]
    same = aggregates[row] == aggregates[col]
    coupling, ones = scaled.abs() * (row != col), (row != col).to(scaled.dtype)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(n).index_add(0, row, x)

    known = _keys(g)
    before = _at(known, row * n + col)[1] & (row != col)
    couplings = total(coupling)
    shares = coupling / torch.where(couplings > 0, couplings, 1)[row]
    middle, left = places(g)
    nodes = (
        total(a.values) * scale**2,
        4 * total(coupling**2) - 1,
        total(shares * (same & before)),
        total(shares * (same & ~before)),
        total(shares * before),
        coupling.new_zeros(n).scatter_reduce(0, row, coupling, "amax"),
        g.values[middle] - 1,
        4 / total(ones).clamp(min=1) - 1,
    )
    at, coupled = _at(_keys(a), known[left])
    row, col, d = g.row[left], g.col[left].long(), scale**-2
    contrast = (d[row] - d[col]) / (d[row] + d[col])
    together = 2 * (aggregates[row] == aggregates[col]).to(d.dtype) - 1
    edges = (4 * scaled[at] * coupled, 4 * g.values[left], together, contrast)
    return torch.stack(nodes, -1).to(dtype), torch.stack(edges, -1).to(dtype), row, col


def _keys(a: Compressed) -> Tensor:
    """Rising numbers of a matrix's entries (nnz)."""
    return a.row * a.size[1] + a.col.long()


def _at(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where keys are among known ones, and whether they are."""
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return at, known[at] == wanted


def _descend(
    a: Compressed, aggregates: Tensor, start: Compressed, dtype: torch.dtype
) -> tuple[Compressed, Tensor, Tensor]:
    values, share = torch.empty_like(start.values), torch.empty_like(start.values)
    row, pairs = torch.empty(start.nnz, dtype=torch.int64), torch.empty(start.nnz, PAIRS, dtype=dtype)
    given = (a.crow, a.col, a.values, aggregates, start.crow, start.col, start.values, DESCENT, start.size[1])
    kernels.call(two_level_kernels.descend, *given, values, share, row, pairs)
    z = start.with_values(values)
    z.__dict__["row"] = row
    return z, share, pairs


def _descend_by_scipy(
    a: Compressed, aggregates: Tensor, start: Compressed, dtype: torch.dtype
) -> tuple[Compressed, Tensor, Tensor]:
    """The step goes along -D^-1 A Z, without A's row sums, less its sum in each row, so that rows still sum to 1.

    Of that sum each entry bears its share, so that weak couplings between very different coefficients stay weak. Where
    couplings are positive, as in M + dt K of finite elements with a small dt, the energy may rise.

    Reference:
        J. Mandel, M. Brezina, P. Vanek, Computing 62 (1999), doi:10.1007/s006070050022 (energy); L. N. Olson, J. B.
        Schroder, R. S. Tuminaro, SIAM J. Sci. Comput. 33 (2011), doi:10.1137/100803031 (on a pattern).
    """
    matrix, z, row = a.to_scipy(), start.to_scipy(), start.row
    couplings = matrix - sparse.diags(np.asarray(matrix.sum(1)).ravel())
    pattern = sparse.csr_matrix((np.ones_like(z.data), z.indices, z.indptr), z.shape)
    image = start.values.new_zeros(start.nnz)
    found = Compressed.from_scipy((sparse.diags(1 / matrix.diagonal()) @ couplings @ z).multiply(pattern))
    image[_at(_keys(start).cpu(), _keys(found).cpu())[0].to(image.device)] = found.values.to(image)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(a.size[0]).index_add(0, row, x)

    size = start.values.abs()
    share = size / total(size)[row]
    step = image - share * total(image)[row]
    own = 2 * (start.col == aggregates[row]).to(image.dtype) - 1
    pairs = torch.stack([start.values, own, step], -1).to(dtype)
    return start.with_values(start.values - DESCENT * step), share, pairs
