"""What a linear solve is given: a matrix, and right-hand sides or guesses."""

from functools import partial
from typing import Any

import torch
from scipy.sparse import issparse
from torch import Tensor

from sciml.solvers.linear.operator import DenseOperator, LinearOperator
from sciml.solvers.linear.solve import scaled
from sciml.solvers.linear.sparse import Compressed, SparseOperator

SYMMETRIC = 1e3  # roundings, relative, by which u A v and v A u of a symmetric matrix may differ


def as_operator(A: Any) -> LinearOperator:
    """The matrix as a linear operator.

    Raises:
        TypeError: it is neither an operator nor a real matrix of torch or scipy, or not of float32 or float64.
        ValueError: it is not square.
    """
    if issparse(A):
        return SparseOperator.from_scipy(A)
    if not isinstance(A, LinearOperator) and not (isinstance(A, Tensor) and A.is_floating_point()):
        raise TypeError(f"A: expected a LinearOperator, a real tensor or a sparse scipy matrix (n, n), got {_kind(A)}")
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"A: expected float32 or float64, got {A.dtype}")
    if isinstance(A, LinearOperator):
        return A
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"A: expected a square matrix (n, n), got the shape {tuple(A.shape)}")
    if A.layout == torch.strided:
        return DenseOperator(A)
    if A.layout == torch.sparse_csr and _rising(A.crow_indices(), A.col_indices()):
        return SparseOperator(Compressed(A.crow_indices().int(), A.col_indices().int(), A.values(), A.shape[1]))
    coo = A.to_sparse_coo()
    if coo.is_coalesced() and A.layout != torch.sparse_coo:  # which torch takes every compressed tensor to be
        parts = (coo.indices(), coo.values(), A.shape)
        coo = torch.sparse_coo_tensor(*parts, is_coalesced=False, check_invariants=False)
    coo = coo.coalesce()
    row, col = coo.indices()
    crow = torch.cat([row.new_zeros(1), torch.bincount(row, minlength=A.shape[0]).cumsum(0)])
    return SparseOperator(Compressed(crow.int(), col.int(), coo.values(), A.shape[1]))


def _rising(crow: Tensor, col: Tensor) -> bool:
    """Whether columns rise in every row, as torch wants it but does not ask for."""
    first = torch.zeros(len(col) + 1, dtype=torch.bool, device=col.device).index_fill(0, crow.long(), True)
    return bool(((col[1:] > col[:-1]) | first[1:-1]).all())


def check_symmetric(operator: LinearOperator) -> None:
    """Refuse a matrix that is not symmetric, by u A v = v A u for two fixed vectors; asked once for every operator.

    Raises:
        ValueError: they differ by more than round-off.
    """
    if operator.__dict__.setdefault("_symmetric", False):
        return
    m, n, _ = operator.shape
    k = torch.arange(n, device=operator.device, dtype=torch.float64)
    u, v = ((a * k + a).sin().to(operator.dtype).expand(m, n) for a in (12.9898, 78.233))
    au, av = operator.matvec(u), operator.matvec(v)
    power = torch.maximum(scaled(au)[1], scaled(av)[1])  # or the norms' squares would vanish or overflow
    au, av = au / power, av / power
    norm = partial(torch.linalg.vector_norm, dim=-1, keepdim=True)
    gap = (torch.linalg.vecdot(u, av) - torch.linalg.vecdot(v, au)).abs()[:, None]
    size = torch.maximum(norm(u) * norm(av), norm(v) * norm(au))
    if bool((gap > SYMMETRIC * torch.finfo(operator.dtype).eps * size).any()):  # NaN is for the iteration to tell
        raise ValueError(
            f"A: conjugate gradients expect a symmetric matrix; u A v and v A u differ by {gap.max().item():.3g}, "
            f"relative to {size.max().item():.3g}; GMRES solves with others"
        )
    operator.__dict__["_symmetric"] = True


def as_rows(name: str, b: Tensor, operator: LinearOperator) -> Tensor:
    """A right-hand side or several of them as rows (m, n).

    Raises:
        TypeError: it is no tensor of the operator's dtype.
        ValueError: the shape or the device does not fit, or A has no unknowns.
    """
    m, n, _ = operator.shape
    if not n:
        raise ValueError("A: expected at least one unknown, got a matrix of the shape (0, 0)")
    if not isinstance(b, Tensor) or b.dtype != operator.dtype:
        raise TypeError(f"{name}: expected a tensor of A's dtype {operator.dtype}, got {_kind(b)}")
    if b.device != operator.device:
        raise ValueError(f"{name}: expected a tensor on A's device {operator.device}, got one on {b.device}")
    if b.ndim not in (1, 2) or b.shape[-1] != n or (m > 1 and b.shape != (m, n)):
        expected = f"({n},) or (m, {n})" if m == 1 else f"({m}, {n})"
        raise ValueError(f"{name}: expected the shape {expected} for A of {n} unknowns, got {tuple(b.shape)}")
    return b.reshape(-1, n)


def as_guess(x0: Tensor | None, b: Tensor, operator: LinearOperator) -> Tensor:
    """First guesses for b as rows (m, n), 0 where none are given.

    Raises:
        TypeError: they are no tensor of the operator's dtype.
        ValueError: they have not b's shape.
    """
    if x0 is None:
        return torch.zeros_like(b).reshape(-1, b.shape[-1])
    rows = as_rows("x0", x0, operator)
    if x0.numel() != b.numel():
        raise ValueError(f"x0: expected the shape {tuple(b.shape)} of b, got {tuple(x0.shape)}")
    return rows


def _kind(x: Any) -> str:
    return f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__
