"""Matrices that are not stored: functions and stencils."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciml.solvers.linear.operator import JacobianOperator, LinearOperator
from sciml.solvers.linear.sparse import Compressed, SparseOperator


class FunctionOperator(LinearOperator):
    """A linear function of vectors, which any number of them may share.

    Args:
        function: from (m, n) to (m, n), linear in every row.
        n: number of unknowns.
        dtype: of the vectors; None is torch's default.
        device: where they are.
        diagonal: the matrix's diagonal (n), which some preconditioners ask for; None finds it from n products.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import FunctionOperator, pcg
        >>> a = FunctionOperator(lambda x: 2 * x, 3)
        >>> pcg(a, torch.ones(3)).x
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        n: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        diagonal: Tensor | None = None,
    ):
        probe = torch.empty(0, dtype=dtype, device=device)
        super().__init__((1, n, n), probe.dtype, probe.device)
        if diagonal is not None and diagonal.shape != (n,):
            raise ValueError(f"diagonal: expected the shape {(n,)}, got {tuple(diagonal.shape)}")
        self.function, self.known = function, diagonal

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n)."""
        return self.function(x)

    def transpose(self) -> JacobianOperator:
        """The transposed matrix, by reverse differentiation."""
        _, n, _ = self.shape
        zero = torch.zeros(1, n, dtype=self.dtype, device=self.device)
        return JacobianOperator(self.function, zero, 1, transposed=True)

    def diagonal(self) -> Tensor:
        """The diagonal (1, n)."""
        return super().diagonal() if self.known is None else self.known[None]


class StencilOperator(LinearOperator):
    """What couples each cell of a regular grid with its neighbours: (A u)(i) = sum_s c_s(i) u(i + offset_s).

    Vectors are flat, (m, n) with n cells in the order of `torch.Tensor.reshape`. Nothing but the coefficients is
    stored, and memory is read in order.

    Args:
        offsets: s offsets, one integer for each axis of the grid.
        coefficients: (s, *x), or (s) followed by ones where they do not vary.
        grid: the grid's shape *x; None reads it off the coefficients.
        periodic: whether neighbours beyond an end are those at the other one; else they are 0.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import StencilOperator
        >>> a = StencilOperator([(-1,), (0,), (1,)], torch.tensor([[-1.0], [2.0], [-1.0]]), grid=(3,))
        >>> a.matvec(torch.ones(1, 3))
        tensor([[1., 0., 1.]])
    """

    def __init__(
        self,
        offsets: Sequence[Sequence[int]],
        coefficients: Tensor,
        grid: Sequence[int] | None = None,
        periodic: bool = False,
    ):
        grid = tuple(coefficients.shape[1:] if grid is None else grid)
        if coefficients.ndim != len(grid) + 1 or len(coefficients) != len(offsets):
            expected = f"({len(offsets)}, {', '.join(map(str, grid))})"
            raise ValueError(f"coefficients: expected the shape {expected}, got {tuple(coefficients.shape)}")
        if any(len(offset) != len(grid) for offset in offsets):
            raise ValueError(f"offsets: expected {len(grid)} integers each for a grid of shape {grid}, got {offsets}")
        self.offsets = [tuple(offset) for offset in offsets]
        self.coefficients = coefficients.expand(len(offsets), *grid)
        self.grid, self.periodic = grid, periodic
        n = self.coefficients[0].numel()
        super().__init__((1, n, n), coefficients.dtype, coefficients.device)

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n)."""
        u = x.reshape(-1, *self.grid)
        products = (c * self._shifted(u, offset) for c, offset in zip(self.coefficients, self.offsets, strict=True))
        return sum(products, torch.zeros_like(u)).reshape(x.shape)

    def _shifted(self, u: Tensor, offset: Sequence[int]) -> Tensor:
        """u(i + offset), (m, *x)."""
        axes = tuple(range(1, u.ndim))
        if self.periodic:
            return u.roll(tuple(-k for k in offset), axes) if any(offset) else u
        padding: list[int] = []
        for k, size in zip(reversed(offset), reversed(self.grid), strict=True):
            k = max(-size, min(size, k))
            padding += [-k, k]  # torch cuts where padding is negative
        return torch.nn.functional.pad(u, padding) if any(offset) else u

    def transpose(self) -> "StencilOperator":
        """The transposed matrix, a stencil too."""
        back = [tuple(-k for k in offset) for offset in self.offsets]
        moved = [self._shifted(c[None], offset)[0] for c, offset in zip(self.coefficients, back, strict=True)]
        return StencilOperator(back, torch.stack(moved), self.grid, self.periodic)

    def diagonal(self) -> Tensor:
        """The diagonal (1, n)."""
        stays = lambda k, size: k % size == 0 if self.periodic else k == 0  # noqa: E731
        at = [
            c for c, offset in zip(self.coefficients, self.offsets, strict=True) if all(map(stays, offset, self.grid))
        ]
        return sum(at, self.coefficients.new_zeros(self.grid)).reshape(1, -1)

    def sparse(self) -> SparseOperator:
        """The same matrix in compressed rows, as preconditioners that factor it want it."""
        n = self.shape[-1]
        number = torch.arange(n, device=self.device).reshape(self.grid)
        rows, columns, values = [], [], []
        for c, offset in zip(self.coefficients, self.offsets, strict=True):
            there = self._shifted(number[None] + 1, offset)[0]  # 0 beyond an end
            inside = (there > 0).reshape(-1)
            rows.append(number.reshape(-1)[inside])
            columns.append(there.reshape(-1)[inside] - 1)
            values.append(c.reshape(-1)[inside])
        place = torch.stack([torch.cat(rows), torch.cat(columns)])
        coo = torch.sparse_coo_tensor(place, torch.cat(values), (n, n), check_invariants=False).coalesce()
        row, column = coo.indices()
        crow = torch.cat([row.new_zeros(1), torch.bincount(row, minlength=n).cumsum(0)])
        return SparseOperator(Compressed(crow.int(), column.int(), coo.values(), n))
