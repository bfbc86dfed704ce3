"""Functions of square matrices A, as series in A - A0, whose powers vanish beyond the order of a jet."""

from typing import Any

import torch

from sciml.calculus.dispatch import Jet, jets_of, primal, rule, same_type

SMALL = 8  # rows up to which a determinant is found without an inverse


@rule("solve")
def solve(func: Any, A: Any, B: Any, *, left: bool = True) -> Any:
    """A^-1 B, or B A^-1."""
    if not left:
        return _solved(A.mT, B.mT).mT
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    return _solved(A, B.unsqueeze(-1)).squeeze(-1) if vector else _solved(A, B)


def _solved(A: Any, B: Any) -> Any:
    """A^-1 B, by as many corrections A0^-1 (B - A X) as there are orders."""
    inverse = torch.linalg.inv(primal(A))
    x = torch.matmul(inverse, B)
    for _ in range(jets_of(A, B)[0].algebra.order):
        x = x + torch.matmul(inverse, B - torch.matmul(A, x))
    return x


@rule("inv", "inverse")
def inv(func: Any, A: Any = None, *, input: Any = None) -> Any:
    """A^-1."""
    A = input if A is None else A
    return _solved(A, torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape))


@rule("det")
def det(func: Any, A: Any = None, *, input: Any = None) -> Any:
    """The determinant: by the recursion of Faddeev and LeVerrier, of more than 8 rows where there is an inverse."""
    A = input if A is None else A
    if A.shape[-1] > SMALL:
        return torch.linalg.det(A.primal) * _log_det_ratio(A).exp()
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    adjoint, found = eye.expand(A.shape), torch.ones(A.shape[:-2], dtype=A.dtype, device=A.device)
    for k in range(1, A.shape[-1] + 1):
        product = torch.matmul(A, adjoint)
        found = _trace(product) / k
        adjoint = found[..., None, None] * eye - product
    return found


@rule("logdet")
def logdet(func: Any, input: Jet) -> Any:
    """The logarithm of the determinant."""
    return torch.logdet(input.primal) + _log_det_ratio(input)


@rule("slogdet")
def slogdet(func: Any, A: Any = None, *, input: Any = None) -> Any:
    """The sign of a real matrix's determinant, and the logarithm of its size."""
    A = input if A is None else A
    if A.is_complex():
        return NotImplemented
    found = func(A.primal)
    return same_type(found, [found[0], found[1] + _log_det_ratio(A)])


def _log_det_ratio(A: Any) -> Any:
    """log(det A / det A0) = trace log(1 + N) with N = A0^-1 (A - A0)."""
    n = torch.matmul(torch.linalg.inv(A.primal), A - A.primal)
    power, total = n, _trace(n)
    for m in range(2, A.algebra.order + 1):
        power = torch.matmul(power, n)
        total = total - _trace(power) * ((-1) ** m / m)
    return total


def _trace(x: Any) -> Any:
    return x.diagonal(0, -2, -1).sum(-1)
