"""Sparse triangular systems, differentiable in the factor and in the right-hand side."""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.linear import kernels, triangular_kernels
from sciml.solvers.linear.derivatives import recorded, transformed
from sciml.solvers.linear.sparse import Compressed


class Sweeps(NamedTuple):
    """The rows of a lower triangular pattern in the order of a solve, then those of its transpose.

    Attributes:
        order: rows (2 n) int32.
        begin: where the entries of each beside the diagonal begin (2 n + 1) int32.
        col: their columns (2 nnz - 2 n) int32.
        place: their places in the lower triangle, likewise.
        diagonal: the diagonal entries' places there (2 n) int32.
    """

    order: Tensor
    begin: Tensor
    col: Tensor
    place: Tensor
    diagonal: Tensor


class Lower:
    """A lower triangular matrix L in compressed rows with its diagonal last in each row.

    On a CPU with numba a loop over the rows solves; elsewhere the rows are taken in levels that do not depend on one
    another, so that a solve takes as many steps as the longest chain of dependencies.

    Args:
        compressed: L, with its diagonal stored; its values are not to be changed in place.

    Raises:
        ValueError: an entry above the diagonal, or a missing diagonal.
    """

    def __init__(self, compressed: Compressed):
        ends = compressed.crow[1:].long() - 1
        whole = len(ends) <= compressed.nnz and bool((ends >= compressed.crow[:-1]).all())
        rows = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
        if not whole or not torch.equal(compressed.col.index_select(0, ends), rows):
            raise ValueError("compressed: expected a lower triangular matrix with every diagonal entry stored")
        self.compressed = compressed
        self.known: dict[str, Any] = {}  # what depends on the pattern alone, for all triangles on it

    @classmethod
    def of(cls, compressed: Compressed) -> "Lower":
        """The lower triangle of a matrix."""
        n = compressed.size[0]
        if compressed.col.device.type == "cpu" and kernels.available():
            crow = torch.empty(n + 1, dtype=torch.int32)
            keep = torch.empty(compressed.nnz, dtype=torch.int32)
            keep = keep[: kernels.call(triangular_kernels.lower, compressed.crow, compressed.col, crow, keep)]
        else:
            keep = torch.nonzero(compressed.col <= compressed.row).squeeze(-1)
            counts = torch.bincount(compressed.row[keep], minlength=n)
            crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        col, values = (x.index_select(0, keep) for x in (compressed.col, compressed.values))
        return cls(Compressed(crow, col, values, n))

    def diagonal(self) -> Tensor:
        """The diagonal (n), without a gradient."""
        return self.compressed.values.detach().index_select(0, self.compressed.crow[1:] - 1)

    def with_values(self, values: Tensor) -> "Lower":
        """The same pattern with other values (nnz)."""
        other = object.__new__(Lower)
        other.compressed = self.compressed.with_values(values)
        other.known = self.known
        return other

    def solve(self, b: Tensor, transposed: bool = False) -> Tensor:
        """L^-1 b, or L^-T b, for rows b (m, n)."""
        kernels.check_length(b, self.compressed.size[0])
        values = self.compressed.values
        if recorded(values, b) or transformed():
            return _Solve.apply(values, b, self, transposed)
        return self._solve(b, transposed)

    def solve_twice(self, b: Tensor) -> Tensor:
        """L^-T L^-1 b for rows b (m, n)."""
        kernels.check_length(b, self.compressed.size[0])
        values = self.compressed.values
        if b.device.type != "cpu" or not kernels.available() or recorded(values, b) or transformed():
            return self.solve(self.solve(b), transposed=True)
        return self._sweep(b, 0, 2)

    def _solve(self, b: Tensor, transposed: bool) -> Tensor:
        if b.device.type != "cpu" or not kernels.available():
            return self._by_levels(b, transposed)
        return self._sweep(b, int(transposed), int(transposed) + 1)

    def _sweep(self, b: Tensor, first: int, end: int) -> Tensor:
        x, n = b.detach().clone(memory_format=torch.contiguous_format), self.compressed.size[0]
        order, begin, col, values, inverse = self.arrays
        rows = slice(first * n, end * n)
        given = (order[rows], begin[first * n :], col, values, inverse[rows])
        kernels.call(triangular_kernels.solve, *given, x, reorder=True)
        return x

    @property
    def sweeps(self) -> Sweeps:
        """The order of solves."""
        if "sweeps" not in self.known:
            self.known["sweeps"] = self._sweeps()
        return self.known["sweeps"]

    def _sweeps(self) -> Sweeps:
        c = self.compressed
        with torch.inference_mode(False):
            n, turned = c.size[0], c.turned
            sizes = (2 * n, 2 * n + 1, *(2 * [2 * (c.nnz - n)]), 2 * n)
            found = Sweeps(*(torch.empty(size, dtype=torch.int32) for size in sizes))
            kernels.call(triangular_kernels.schedule, c.crow, c.col, turned[0], found.order)
            kernels.call(triangular_kernels.listed, c.crow, c.col, *turned, *found)
            return found

    @cached_property
    def arrays(self) -> list[Any]:
        """What a sweep reads, with the inverse of the diagonal: a division takes as long as the rest of a row."""
        order, begin, col, place, diagonal = self.sweeps
        values = self.compressed.values.detach()
        inverse = values.index_select(0, diagonal).reciprocal()
        return [kernels.array(x) for x in (order, begin, col, values.index_select(0, place), inverse)]

    @property
    def levels(self) -> list[tuple[Tensor, Tensor]]:
        """Rows that do not depend on one another, with their entries left of the diagonal, in the order of a solve."""
        if "levels" not in self.known:
            self.known["levels"] = self._levels()
        return self.known["levels"]

    def _levels(self) -> list[tuple[Tensor, Tensor]]:
        c = self.compressed
        strict = torch.nonzero(c.col < c.row).squeeze(-1)
        row, col = c.row[strict], c.col[strict].long()
        depth = torch.zeros(c.size[0], dtype=torch.int64, device=c.col.device)
        while True:
            deeper = depth.scatter_reduce(0, row, depth[col] + 1, "amax")
            if torch.equal(deeper, depth):
                break
            depth = deeper
        count = int(depth.max()) + 1 if len(depth) else 0
        split = lambda depth, x: x[depth.sort(stable=True).indices].split(  # noqa: E731
            torch.bincount(depth, minlength=count).tolist()
        )
        rows = split(depth, torch.arange(len(depth), device=depth.device))
        return list(zip(rows, split(depth[row], strict), strict=True))

    def _by_levels(self, b: Tensor, transposed: bool) -> Tensor:
        c, x = self.compressed, b.clone()
        diagonal, values = self.diagonal(), c.values.detach()
        for rows, entries in reversed(self.levels) if transposed else self.levels:
            row, col, value = c.row[entries], c.col[entries].long(), values[entries]
            if transposed:
                x[:, rows] /= diagonal[rows]
                x.index_add_(1, col, value * x[:, row], alpha=-1)
            else:
                x.index_add_(1, row, value * x[:, col], alpha=-1)
                x[:, rows] /= diagonal[rows]
        return x


class _Solve(torch.autograd.Function):
    """x = L^-1 b: db = L^-T dx, dL = -db x^T on the pattern; and the other way round for L^-T."""

    @staticmethod
    def forward(values: Tensor, b: Tensor, lower: Lower, transposed: bool) -> Tensor:
        same = values is lower.compressed.values  # with what is known of them
        return (lower if same else lower.with_values(values))._solve(b, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, b, ctx.lower, ctx.transposed = inputs
        ctx.save_for_backward(values, b)  # of the solution itself a derivative of the derivative would know nothing
        ctx.save_for_forward(values, b)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (values, b), (dvalues, db, *_) = ctx.saved_tensors, grad_inputs
        lower, dl = ctx.lower.with_values(values), ctx.lower.compressed.with_values(dvalues)
        x = lower.solve(b, ctx.transposed)
        return lower.solve(db - (dl.transpose() if ctx.transposed else dl).product(x), ctx.transposed)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        values, b = ctx.saved_tensors
        lower, to_values = ctx.lower.with_values(values), None
        to_b = lower.solve(grad_outputs[0], not ctx.transposed)
        if ctx.needs_input_grad[0]:
            x, c = lower.solve(b, ctx.transposed), lower.compressed
            left, right = (x, to_b) if ctx.transposed else (to_b, x)
            to_values = -(left[:, c.row] * right[:, c.col.long()]).sum(0)
        return to_values, to_b, None, None
