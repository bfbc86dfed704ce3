"""Loops over the rows of sparse matrices that no array operation says: compiled by numba, for a CPU.

Lower triangular matrices are in compressed rows with the diagonal last in each. Vectors are rows (m, n).
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor


@cache
def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def call(kernel: Callable[..., Any], *arguments: Any, reorder: bool = False) -> Any:
    """Run a kernel on tensors, which it sees as arrays of the same memory.

    Args:
        kernel: the function.
        arguments: its own.
        reorder: whether sums may be taken in another order, several terms at a time.

    Raises:
        ImportError: numba is not installed.
    """
    return _compiled(kernel, reorder)(*map(array, arguments))


def array(x: Any) -> Any:
    """The memory of a tensor, int32 without a sign: numba looks at every place that may be negative."""
    if not isinstance(x, Tensor):
        return x
    found = x.detach().numpy()
    return found.view(np.uint32) if x.dtype == torch.int32 else found


@cache
def _compiled(kernel: Callable[..., Any], reorder: bool) -> Callable[..., Any]:
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            f"{kernel.__name__} on a CPU needs numba; install it with: pip install 'sciml-torch[amg]'"
        ) from error
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract"} if reorder else False,
    }
    try:
        return numba.njit(kernel, cache=True, **options)
    except RuntimeError:  # no folder to keep it in
        return numba.njit(kernel, **options)


def forward(crow: Any, col: Any, values: Any, inverse: Any, b: Any, x: Any) -> None:
    """L x = b, with the inverse of L's diagonal."""
    for i in range(b.shape[1]):
        for s in range(b.shape[0]):
            total = b[s, i]
            for k in range(crow[i], crow[i + 1] - 1):
                total -= values[k] * x[s, col[k]]
            x[s, i] = total * inverse[i]


def backward(crow: Any, col: Any, values: Any, inverse: Any, x: Any) -> None:
    """L^T x = b with b in the place of x."""
    for i in range(x.shape[1] - 1, -1, -1):
        for s in range(x.shape[0]):
            found = x[s, i] * inverse[i]
            x[s, i] = found
            for k in range(crow[i], crow[i + 1] - 1):
                x[s, col[k]] -= values[k] * found


def lower(crow: Any, col: Any, out: Any, keep: Any) -> int:
    """Where the entries up to the diagonal are, in ``keep``, and where their rows begin; their number."""
    count = 0
    for i in range(crow.shape[0] - 1):
        out[i] = count
        for k in range(crow[i], crow[i + 1]):
            if col[k] <= i:
                keep[count] = k
                count += 1
    out[crow.shape[0] - 1] = count
    return count


def factor(crow: Any, col: Any, values: Any, modified: float, shift: float) -> int:
    """An incomplete Cholesky factor in the place of A's lower triangle; -1, or the row whose pivot is not positive.

    What falls outside the pattern goes, times ``modified``, to the diagonal of both its rows.
    """
    n = crow.shape[0] - 1
    below = np.zeros(n + 1, np.int64)  # where the entries of every column below the diagonal begin
    for i in range(n):
        for k in range(crow[i], crow[i + 1] - 1):
            below[col[k] + 1] += 1
    for j in range(n):
        below[j + 1] += below[j]
    place, row, entry = below[:-1].copy(), np.empty(below[n], np.int32), np.empty(below[n], np.int64)
    for i in range(n):
        for k in range(crow[i], crow[i + 1] - 1):
            at = place[col[k]]
            row[at], entry[at] = i, k
            place[col[k]] += 1
    for j in range(n):
        pivot = values[crow[j + 1] - 1] * (1 + shift)
        if not pivot > 0:
            return j
        pivot = np.sqrt(pivot)
        values[crow[j + 1] - 1] = pivot
        for a in range(below[j], below[j + 1]):
            values[entry[a]] /= pivot
        for a in range(below[j], below[j + 1]):
            i, left = row[a], values[entry[a]]
            last = crow[i + 1] - 1
            values[last] -= left * left
            k = crow[i]
            for c in range(below[j], a):
                r, product = row[c], left * values[entry[c]]
                while k < last and col[k] < r:
                    k += 1
                if k < last and col[k] == r:
                    values[k] -= product
                else:
                    values[last] -= modified * product
                    values[crow[r + 1] - 1] -= modified * product
    return -1


def approximate_inverse(crow: Any, col: Any, values: Any, a_crow: Any, a_col: Any, a_values: Any) -> int:
    """G of the lower pattern with the diagonal of G A G^T equal to 1; -1, or a row whose block is not definite."""
    most = np.int64(0)
    for i in range(crow.shape[0] - 1):
        most = max(most, np.int64(crow[i + 1]) - crow[i])
    block, y = np.empty((most, most), values.dtype), np.empty(most, values.dtype)
    for i in range(crow.shape[0] - 1):
        begin, size = crow[i], np.int64(crow[i + 1]) - crow[i]
        for a in range(size):
            q, end = a_crow[col[begin + a]], a_crow[col[begin + a] + 1]
            for b in range(a + 1):
                wanted = col[begin + b]
                while q < end and a_col[q] < wanted:
                    q += 1
                block[a, b] = a_values[q] if q < end and a_col[q] == wanted else 0
        for j in range(size):  # Cholesky
            pivot = block[j, j]
            for p in range(j):
                pivot -= block[j, p] * block[j, p]
            if not pivot > 0:
                return i
            pivot = np.sqrt(pivot)
            block[j, j] = pivot
            for r in range(j + 1, size):
                total = block[r, j]
                for p in range(j):
                    total -= block[r, p] * block[j, p]
                block[r, j] = total / pivot
        # the last column of the block's inverse, scaled by the root of its last entry, which is the last pivot
        y[size - 1] = 1 / block[size - 1, size - 1]
        for r in range(size - 2, -1, -1):
            total = 0.0
            for p in range(r + 1, size):
                total -= block[p, r] * y[p]
            y[r] = total / block[r, r]
        for a in range(size):
            values[begin + a] = y[a]
    return -1


def sweeps(
    crow: Any, col: Any, values: Any, diagonal: Any, b: Any, x: Any, omega: float, target: Any, sizes: Any
) -> None:
    """Sweeps of successive over-relaxation on x until a residual is at its target (m) or not finite, or sizes are full.

    Before each sweep the norm of the residual goes to ``sizes`` (m, k), which is filled up with the last one; one sweep
    less than there are places.
    """
    for s in range(b.shape[0]):
        for k in range(sizes.shape[1]):
            total = 0.0
            for i in range(b.shape[1]):
                r = b[s, i]
                for j in range(crow[i], crow[i + 1]):
                    r -= values[j] * x[s, col[j]]
                total += r * r
            sizes[s, k] = np.sqrt(total)
            if not target[s] < sizes[s, k] < np.inf:
                for rest in range(k + 1, sizes.shape[1]):
                    sizes[s, rest] = sizes[s, k]
                break
            if k + 1 < sizes.shape[1]:
                for i in range(b.shape[1]):
                    r = b[s, i]
                    for j in range(crow[i], crow[i + 1]):
                        r -= values[j] * x[s, col[j]]
                    x[s, i] += omega * r / diagonal[i]


def soft_aggregates(
    crow: Any, col: Any, values: Any, aggregates: Any, damping: float, z_crow: Any, z_col: Any, z_values: Any
) -> int:
    """Z of aggregates after a damped Jacobi sweep with the sizes of A's couplings; the number of its entries."""
    end = 0
    z_crow[0] = 0
    for i in range(crow.shape[0] - 1):
        total = 0.0
        for k in range(crow[i], crow[i + 1]):
            if col[k] != i:
                total += abs(values[k])
        begin = end
        z_col[end], z_values[end] = aggregates[i], 1.0 if total == 0 else 1 - damping
        end += 1
        factor = 0.0 if total == 0 else damping / total
        for k in range(crow[i], crow[i + 1]):
            if col[k] == i:
                continue
            wanted, q = aggregates[col[k]], begin
            while q < end and z_col[q] < wanted:
                q += 1
            if q < end and z_col[q] == wanted:
                z_values[q] += factor * abs(values[k])
                continue
            for p in range(end, q, -1):
                z_col[p], z_values[p] = z_col[p - 1], z_values[p - 1]
            z_col[q], z_values[q] = wanted, factor * abs(values[k])
            end += 1
        z_crow[i + 1] = end
    return end
