"""Independent sparse systems side by side."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sciml.solvers.linear.sparse import Compressed


class BlockSystems:
    """Sparse systems A_i x_i = b_i, of any sizes, as one with a block-diagonal matrix.

    A step of an iteration for all of them is one product, and gradients reach what is given for each.

    Args:
        matrix: A, the blocks along the diagonal (n, n).
        b: right-hand sides, one after the other (n).
        sizes: unknowns of each (s) int64.
        previous: solutions of the steps before (q, n), the last one first, where systems are of a sequence in time.
        dt: the step that each system takes, and those that led to the previous solutions, the last one first (s, q).
        solution: exact solutions (n), where they are known.

    Attributes:
        x0: first guesses (n): the last of the previous solutions, else 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import scipy.sparse as sp
        >>> import torch
        >>> from sciml.solvers.linear import BlockSystems
        >>> one = [BlockSystems.of(2 * sp.eye(n, format="csr"), torch.ones(n)) for n in (2, 3)]
        >>> both = BlockSystems.join(one)
        >>> both.sizes.tolist(), both.sums(both.residual(both.x0)).tolist()
        ([2, 3], [2.0, 3.0])
    """

    def __init__(
        self,
        matrix: Compressed,
        b: Tensor,
        sizes: Tensor,
        previous: Tensor | None = None,
        dt: Tensor | None = None,
        solution: Tensor | None = None,
    ):
        n = matrix.size[0]
        if n != matrix.size[1] or int(sizes.sum()) != n:
            raise ValueError(f"sizes: expected those of square blocks of a matrix {matrix.size}, got {sizes.tolist()}")
        for name, x in {"b": b, "previous": previous, "solution": solution}.items():
            shape = (*x.shape[:-1], n) if name == "previous" and x is not None and x.ndim == 2 else (n,)
            if x is not None and x.shape != shape:
                raise ValueError(f"{name}: expected as many unknowns as rows, {n}, got the shape {tuple(x.shape)}")
        if dt is not None and (previous is None or dt.shape != (len(sizes), len(previous))):
            raise ValueError(
                f"dt: expected a step per system and previous solution, got the shape {tuple(dt.shape)} for "
                f"{len(sizes)} systems and {0 if previous is None else len(previous)} previous solutions"
            )
        self.matrix, self.b, self.sizes = matrix, b, sizes
        self.previous, self.dt, self.solution = previous, dt, solution
        self.x0 = torch.zeros_like(b) if previous is None or not len(previous) else previous[0]

    @classmethod
    def of(cls, matrix: Any, b: Any, previous: Any = None, dt: Any = None, solution: Any = None) -> "BlockSystems":
        """One system.

        Args:
            matrix: A as a scipy matrix (n, n).
            b: right-hand side (n), array or tensor.
            previous: earlier solutions (q, n).
            dt: its time step and those before (q).
            solution: x (n).
        """
        compressed = Compressed.from_scipy(matrix)
        dtype = compressed.values.dtype
        previous, dt, x = (None if v is None else torch.as_tensor(v, dtype=dtype) for v in (previous, dt, solution))
        b, sizes = torch.as_tensor(b, dtype=dtype), torch.tensor([compressed.size[0]])
        return cls(compressed, b, sizes, previous, None if dt is None else dt[None], x)

    @classmethod
    def join(cls, systems: Sequence["BlockSystems"]) -> "BlockSystems":
        """All of them side by side; what not all of them have is left out."""
        if not systems:
            raise ValueError("systems: expected at least one")
        matrices = [s.matrix for s in systems]
        rows = torch.tensor([0, *(m.size[0] for m in matrices)]).cumsum(0).tolist()
        entries = torch.tensor([0, *(m.nnz for m in matrices)]).cumsum(0).tolist()
        crow = torch.cat([m.crow[1:] + k for m, k in zip(matrices, entries, strict=False)])
        col = torch.cat([m.col + k for m, k in zip(matrices, rows, strict=False)])
        values = torch.cat([m.values for m in matrices])
        optional = [[getattr(s, name) for s in systems] for name in ("previous", "dt", "solution")]
        joined = [
            None if any(x is None for x in xs) else torch.cat(xs, dim)
            for xs, dim in zip(optional, (1, 0, 0), strict=True)
        ]
        return cls(
            Compressed(torch.cat([crow.new_zeros(1), crow]), col, values, rows[-1]),
            torch.cat([s.b for s in systems]),
            torch.cat([s.sizes for s in systems]),
            *joined,
        )

    def to(self, *args: Any, **kwargs: Any) -> "BlockSystems":
        """On another device, or of another real dtype, as `torch.Tensor.to`."""
        m = self.matrix
        values = m.values.to(*args, **kwargs)
        moved = (None if x is None else x.to(*args, **kwargs) for x in (self.previous, self.dt, self.solution))
        return BlockSystems(
            Compressed(m.crow.to(values.device), m.col.to(values.device), values, m.size[1]),
            self.b.to(*args, **kwargs),
            self.sizes.to(values.device),
            *moved,
        )

    def __len__(self) -> int:
        """The number of systems."""
        return len(self.sizes)

    @cached_property
    def owner(self) -> Tensor:
        """The system of each unknown (n) int64."""
        return torch.repeat_interleave(torch.arange(len(self.sizes), device=self.b.device), self.sizes)

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of A (n)."""
        m = self.matrix
        at = torch.nonzero(m.col == m.row).squeeze(-1)
        return m.values.new_zeros(m.size[0]).index_put((m.row[at],), m.values[at])

    def sums(self, x: Tensor) -> Tensor:
        """The sums (..., s) of x (..., n) over each system."""
        return x.new_zeros(*x.shape[:-1], len(self)).index_add(-1, self.owner, x)

    def norms(self, x: Tensor) -> Tensor:
        """The norms (..., s) of x (..., n) in each system; their gradient at 0 is 0."""
        return self.sums(x.square()).clamp_min(torch.finfo(x.dtype).tiny).sqrt()

    def relative(self, x: Tensor, to: Tensor) -> Tensor:
        """The norms (..., s) of x (..., n) over those of another vector (n), but where that is 0."""
        norms = self.norms(to)
        return self.norms(x) / torch.where(norms > torch.finfo(norms.dtype).tiny ** 0.5, norms, torch.ones_like(norms))

    def residual(self, x: Tensor) -> Tensor:
        """The residuals b - A x (n)."""
        return self.b - self.matrix.product(x[None])[0]
