"""Sparse matrices in compressed rows (CSR)."""

import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sciml.solvers.linear.derivatives import recorded, transformed
from sciml.solvers.linear.operator import LinearOperator

ROWS = 8  # vectors up to which products are taken one by one: torch's product with a block of vectors is slower


class Compressed:
    """A matrix in compressed rows, of any shape.

    Args:
        crow: (rows + 1) int32, where each row begins.
        col: (nnz) int32, columns, rising in each row.
        values: (nnz); a gradient flows to them.
        columns: how many.
    """

    def __init__(self, crow: Tensor, col: Tensor, values: Tensor, columns: int):
        if crow.dtype != torch.int32 or col.dtype != torch.int32:
            raise TypeError(f"crow, col: expected int32, got {crow.dtype} and {col.dtype}")
        if col.ndim != 1 or values.shape != col.shape:
            raise ValueError(f"values: expected the shape {tuple(col.shape)} of col, got {tuple(values.shape)}")
        self.crow, self.col, self.values = crow, col, values
        self.size = (len(crow) - 1, columns)

    @classmethod
    def from_scipy(cls, matrix: Any, dtype: torch.dtype | None = None, device: Any = None) -> "Compressed":
        """Of a scipy matrix of any format; duplicates are summed, columns sorted."""
        a = sparse.csr_matrix(matrix)
        if np.iscomplexobj(a.data):
            raise TypeError(f"matrix: expected real entries, got {a.dtype}")
        if not a.has_canonical_format:
            a = a.copy()  # the caller's may share its memory
            a.sum_duplicates()
        if max(a.shape[0], a.shape[1], a.nnz) > np.iinfo(np.int32).max:
            raise ValueError(f"matrix: {a.shape} with {a.nnz} entries does not fit indices of 32 bits")
        tensor = lambda x, kind: torch.from_numpy(np.array(x, dtype=kind)).to(device)  # noqa: E731
        values = tensor(a.data, None).to(dtype)
        return cls(tensor(a.indptr, np.int32), tensor(a.indices, np.int32), values, a.shape[1])

    def to_scipy(self) -> sparse.csr_matrix:
        """The scipy matrix, which shares memory on a CPU."""
        parts = (x.detach().cpu().numpy() for x in (self.values, self.col, self.crow))
        return sparse.csr_matrix(tuple(parts), shape=self.size)

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.col)

    @cached_property
    def matrix(self) -> Tensor:
        """As torch's sparse CSR tensor, without gradients."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.crow, self.col, self.values.detach(), size=self.size, check_invariants=False
            )

    @cached_property
    def row(self) -> Tensor:
        """The row of every entry (nnz) int64."""
        with torch.inference_mode(False):
            counts = (self.crow[1:] - self.crow[:-1]).long()
            return torch.repeat_interleave(torch.arange(self.size[0], device=self.crow.device), counts)

    @cached_property
    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of the transposed pattern, and where each of its entries comes from."""
        with torch.inference_mode(False):
            return self._turned()

    def _turned(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.col.device.type == "cpu" and not transformed():  # counting beats sorting
            number = np.arange(self.nnz, dtype=np.int32)
            parts = (number, self.col.numpy(), self.crow.numpy())
            turned = sparse.csr_matrix(parts, shape=self.size).tocsc()
            crow, col, order = (torch.from_numpy(x) for x in (turned.indptr, turned.indices, turned.data))
            return crow, col, order.long()
        order = torch.sort(self.col, stable=True).indices
        counts = torch.bincount(self.col, minlength=self.size[1])
        crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        return crow, self.row[order].int(), order

    def transpose(self) -> "Compressed":
        """The transposed matrix."""
        crow, col, order = self.turned
        return Compressed(crow, col, self.values[order], self.size[0])

    def with_values(self, values: Tensor) -> "Compressed":
        """The same pattern with other values; what depends on the pattern alone is kept."""
        other = Compressed(self.crow, self.col, values, self.size[1])
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k in ("row", "turned")})
        return other

    def dense(self) -> Tensor:
        """The matrix as a dense tensor, differentiable in the values."""
        where = (self.row, self.col.long())
        return self.values.new_zeros(self.size).index_put(where, self.values, accumulate=True)

    def product(self, x: Tensor) -> Tensor:
        """The products (m, rows) with vectors (m, columns)."""
        if recorded(self.values, x) or transformed():
            return _Product.apply(self.values, x, self)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return torch.mv(self.matrix, x[0])[None]
        if len(x) <= ROWS:
            return torch.stack([torch.mv(self.matrix, row) for row in x]) if len(x) else x.new_zeros(0, self.size[0])
        return (self.matrix @ x.mT.contiguous()).mT


class _Product(torch.autograd.Function):
    """A x, differentiable in the values and in x, any number of times, and under torch.func's transforms."""

    @staticmethod
    def forward(values: Tensor, x: Tensor, compressed: Compressed) -> Tensor:
        return compressed.with_values(values)._product(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, x, ctx.compressed = inputs
        ctx.save_for_backward(values, x)
        ctx.save_for_forward(values, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        (values, x), a, g = ctx.saved_tensors, ctx.compressed, grad_outputs[0]
        to_values = to_x = None
        if ctx.needs_input_grad[0]:
            to_values = (g[:, a.row] * x[:, a.col.long()]).sum(0)
        if ctx.needs_input_grad[1]:
            to_x = a.with_values(values).transpose().product(g)
        return to_values, to_x, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (values, x), a = ctx.saved_tensors, ctx.compressed
        dvalues, dx, _ = grad_inputs
        parts = []
        if dx is not None:
            parts.append(a.with_values(values).product(dx))
        if dvalues is not None:
            parts.append(a.with_values(dvalues).product(x))
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(  # pyrefly: ignore[bad-override]
        info: Any, in_dims: tuple[Any, ...], values: Tensor, x: Tensor, compressed: Compressed
    ) -> Any:
        if in_dims[1] is not None:
            x = x.movedim(in_dims[1], 0)
        if in_dims[0] is None:
            flat = compressed.with_values(values).product(x.flatten(0, 1))
            return flat.unflatten(0, x.shape[:2]), 0
        values = values.movedim(in_dims[0], 0)
        rows = x if in_dims[1] is not None else x.expand(info.batch_size, *x.shape)
        products = [compressed.with_values(v).product(r) for v, r in zip(values, rows, strict=True)]
        return torch.stack(products), 0


class SparseOperator(LinearOperator):
    """A sparse matrix (n, n), which any number of vectors (m, n) may share.

    Args:
        compressed: the matrix in compressed rows.

    Example:
        >>> import scipy.sparse as sp
        >>> import torch
        >>> from sciml.solvers.linear import SparseOperator
        >>> a = SparseOperator.from_scipy(sp.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(3, 3)))
        >>> a.matvec(torch.ones(1, 3, dtype=torch.float64))
        tensor([[1., 0., 1.]], dtype=torch.float64)
    """

    def __init__(self, compressed: Compressed):
        n, columns = compressed.size
        if n != columns:
            raise ValueError(f"compressed: expected a square matrix, got the shape {compressed.size}")
        if not compressed.values.is_floating_point():
            raise TypeError(f"compressed: expected real floating point values, got {compressed.values.dtype}")
        super().__init__((1, n, n), compressed.values.dtype, compressed.values.device)
        self.compressed = compressed

    @classmethod
    def from_scipy(cls, matrix: Any, dtype: torch.dtype | None = None, device: Any = None) -> "SparseOperator":
        """Of a scipy matrix of any format.

        Args:
            matrix: (n, n).
            dtype: of the values; None keeps the matrix's.
            device: where they go.

        Raises:
            ValueError: it is not square, or too large for indices of 32 bits.
        """
        return cls(Compressed.from_scipy(matrix, dtype, device))

    def to_scipy(self) -> sparse.csr_matrix:
        """The scipy matrix, which shares memory on a CPU."""
        return self.compressed.to_scipy()

    def to(self, *args: Any, **kwargs: Any) -> "SparseOperator":
        """On another device, or of another real dtype, as `torch.Tensor.to`."""
        c = self.compressed
        values = c.values.to(*args, **kwargs)
        if values.device == c.values.device:
            return SparseOperator(c.with_values(values))
        return SparseOperator(Compressed(c.crow.to(values.device), c.col.to(values.device), values, c.size[1]))

    def with_values(self, values: Tensor) -> "SparseOperator":
        """The same pattern with other values (nnz)."""
        return SparseOperator(self.compressed.with_values(values))

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n)."""
        return self.compressed.product(x)

    def transpose(self) -> "SparseOperator":
        """The transposed matrix."""
        return SparseOperator(self.compressed.transpose())

    def diagonal(self) -> Tensor:
        """The diagonal (1, n); 0 where nothing is stored."""
        c = self.compressed
        if c.values.device.type == "cpu" and not c.values.requires_grad:
            return torch.from_numpy(c.to_scipy().diagonal())[None]
        at = torch.nonzero(c.row == c.col).squeeze(-1)
        return c.values.new_zeros(1, self.shape[-1]).index_put(
            (at.new_zeros(1), c.row[at]), c.values[at], accumulate=True
        )

    def filled(self) -> Tensor:
        """Which rows are not zero (1, n)."""
        c = self.compressed
        return c.with_values((c.values.detach() != 0).to(self.dtype)).product(c.values.new_ones(1, c.size[1])) > 0

    def dense(self) -> Tensor:
        """The matrix (1, n, n)."""
        return self.compressed.dense()[None]
