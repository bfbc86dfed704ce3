"""Loops over the rows of sparse matrices that no array operation says: compiled by numba, for a CPU.

Lower triangular matrices are in compressed rows with the diagonal last in each. Vectors are rows (m, n). Triangular
systems and incomplete factors have theirs in triangular_kernels.py.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.linear.derivatives import recorded, transformed

FEW = 2  # threads up to which one compiled loop beats products by torch


@cache
def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def suited(*tensors: Tensor) -> bool:
    """Whether one compiled loop on these is the quickest, and no derivative is asked for."""
    plain = not recorded(*tensors) and not transformed()
    return plain and tensors[0].device.type == "cpu" and available() and torch.get_num_threads() <= FEW


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


def loop(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """As `call`, by Python itself where numba is not installed."""
    return call(kernel, *arguments) if available() else kernel(*map(array, arguments))


def check_length(vectors: Tensor, n: int) -> None:
    """Refuse vectors (m, k) for a preconditioner of n unknowns, past whose ends a loop would read.

    Raises:
        ValueError: k is not n.
    """
    if vectors.shape[-1] != n:
        raise ValueError(f"M: it was set up for a matrix of {n} unknowns, got one of {vectors.shape[-1]}")


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


def approximate_inverse(crow: Any, col: Any, values: Any, a_crow: Any, a_col: Any, a_values: Any) -> int:
    """G of a pattern with the diagonal of G A G^T equal to 1; -1, or a row whose block is not definite."""
    n = crow.shape[0] - 1
    most = np.int64(0)
    for i in range(n):
        most = max(most, np.int64(crow[i + 1]) - crow[i])
    block = np.empty((most, most + 1), values.dtype)  # behind a column for what is outside the pattern
    y, inverse = np.empty(most, values.dtype), np.empty(most, values.dtype)
    entry = np.empty(most, np.int64)  # of the row, the diagonal last
    place = np.zeros(n, np.uint32)  # of each unknown in the block, from 1 on
    for i in range(n):
        size = 0
        for k in range(crow[i], crow[i + 1]):
            if col[k] == i:
                entry[np.int64(crow[i + 1]) - crow[i] - 1] = k
                continue
            entry[size] = k
            size += 1
            place[col[k]] = size
        size += 1
        place[i] = size
        for r in range(size):
            block[r, 1 : r + 2] = 0
            j = col[entry[r]]
            for k in range(a_crow[j], a_crow[j + 1]):
                block[r, place[a_col[k]]] = a_values[k]
        for r in range(size):  # Cholesky
            place[col[entry[r]]] = 0
            pivot = block[r, r + 1]
            for c in range(r):
                total = block[r, c + 1]
                for p in range(1, c + 1):
                    total -= block[r, p] * block[c, p]
                total *= inverse[c]
                block[r, c + 1] = total
                pivot -= total * total
            if not pivot > 0:
                return i
            inverse[r] = 1 / np.sqrt(pivot)
        # the last column of the block's inverse, scaled by the root of its last entry, which is the last pivot
        for r in range(size - 1, -1, -1):
            total = values.dtype.type(1 if r == size - 1 else 0)
            for p in range(r + 1, size):
                total -= block[p, r + 1] * y[p]
            y[r] = total * inverse[r]
            values[entry[r]] = y[r]
    return -1


def normal_product(crow: Any, col: Any, values: Any, r: Any, z: Any) -> None:
    """Adds G^T G r to z, row by row of G."""
    for s in range(r.shape[0]):
        for i in range(crow.shape[0] - 1):
            total = values.dtype.type(0)
            for k in range(crow[i], crow[i + 1]):
                total += values[k] * r[s, col[k]]
            for k in range(crow[i], crow[i + 1]):
                z[s, col[k]] += values[k] * total


def coarse_residual(
    crow: Any, col: Any, values: Any, a_crow: Any, a_col: Any, a_values: Any, r: Any, z: Any, out: Any
) -> None:
    """Z^T r - (Z^T A) z of Z^T and Z^T A."""
    for i in range(out.shape[1]):
        for s in range(out.shape[0]):
            total = values.dtype.type(0)
            for k in range(crow[i], crow[i + 1]):
                total += values[k] * r[s, col[k]]
            for k in range(a_crow[i], a_crow[i + 1]):
                total -= a_values[k] * z[s, a_col[k]]
            out[s, i] = total


def spread(crow: Any, col: Any, values: Any, coarse: Any, z: Any) -> None:
    """Adds Z c of Z^T to z: its rows are long, those of Z short and of many lengths."""
    for i in range(coarse.shape[1]):
        for s in range(coarse.shape[0]):
            found = coarse[s, i]
            for k in range(crow[i], crow[i + 1]):
                z[s, col[k]] += values[k] * found


def bonds(crow: Any, col: Any, values: Any, scale: Any, least: float, begin: Any, other: Any, strength: Any) -> int:
    """Pairs of unknowns that a coupling joins, or two in a row, and how strongly; their number.

    The pairs of an unknown with those before it begin where ``begin`` says. A coupling's strength is relative to the
    smaller diagonal, to which is added, for each neighbour that the two have in common, half of the product of both
    couplings with it, of the matrix that ``scale`` gives a diagonal of ones and of which both are at least ``least``.
    Where no such sum can be as large as the weakest coupling, none is taken.
    """
    n = crow.shape[0] - 1
    near, sizes = np.empty(col.shape[0], np.uint32), np.empty(col.shape[0], values.dtype)  # relative to both diagonals
    start, count = np.zeros(n + 1, np.uint32), 0
    weakest, strongest, largest = np.inf, 0.0, 0.0
    for i in range(n):
        total = 0.0
        for k in range(crow[i], crow[i + 1]):
            if col[k] != i:
                size = abs(values[k]) * scale[i] * scale[col[k]]
                weakest = min(weakest, abs(values[k]) * max(scale[i], scale[col[k]]) ** 2)
                strongest = max(strongest, size)
                total += size
                near[count], sizes[count] = col[k], size
                count += size >= least
        start[i + 1] = count
        largest = max(largest, total)
    further = strongest * largest / 2 > weakest
    found = np.full(n, -1, values.dtype)  # strength of the row's pair with each unknown, where it is one
    room = other.shape[0] - col.shape[0]  # enough where the pattern is symmetric
    end = 0
    for i in range(n):
        begin[i] = first = end
        for k in range(crow[i], crow[i + 1]):
            j = col[k]
            if j < i:
                found[j] = abs(values[k]) * max(scale[i], scale[j]) ** 2
                other[end] = j
                end += 1
        if further:
            for k in range(start[i], start[i + 1]):
                m, half = near[k], sizes[k] / 2
                if end + np.int64(start[m + 1]) - start[m] > room:
                    continue
                for p in range(start[m], start[m + 1]):
                    j = near[p]
                    if j >= i:
                        break
                    other[end] = j
                    end += found[j] < 0
                    found[j] = max(found[j], 0) + half * sizes[p]
        for e in range(first, end):
            strength[e] = found[other[e]]
            found[other[e]] = -1
    begin[n] = end
    return end


def largest(values: Any, keys: Any, shift: int, count: int) -> tuple[float, int]:
    """The last of the largest numbers, none of which is negative, and how many are larger than it.

    Args:
        values: the numbers.
        keys: their bits as integers, which have the same order.
        shift: what makes 16 bits of these.
        count: how many are the largest.
    """
    counts = np.zeros(2**16, np.int64)
    for k in range(keys.shape[0]):
        counts[keys[k] >> shift] += 1
    bucket, above = 2**16 - 1, 0
    while above + counts[bucket] < count:
        above += counts[bucket]
        bucket -= 1
    kept, end = np.empty(counts[bucket], values.dtype), 0
    for k in range(keys.shape[0]):
        if keys[k] >> shift == bucket:
            kept[end] = values[k]
            end += 1
    least = np.partition(kept, end - (count - above))[end - (count - above)]
    return least, above + int((kept > least).sum())


def coloured(begin: Any, other: Any, strength: Any, least: float, ties: int, crow: Any, col: Any) -> int:
    """The triangular pattern, in the order of colours, of the pairs that are stronger; the number of its entries.

    Unknowns of a pair have different colours, each the first that is free; the row of the later colour has the entry.

    Args:
        begin: where the pairs of an unknown with those before it begin, as of `bonds`.
        other: the unknown before it.
        strength: of the pair.
        least: pairs that are stronger are kept,
        ties: and so many of the first that are as strong.
        crow: where rows begin.
        col: columns, rising in each row, the diagonal among them.
    """
    n = begin.shape[0] - 1
    colour, kept = np.zeros(n, np.int64), np.empty(other.shape[0], np.int64)
    start = np.zeros(n + 1, np.int64)
    taken = np.full(n + 1, -1, np.int64)
    crow[0] = 0
    count = 0
    sizes = np.ones(n, np.int64)
    for i in range(n):
        for k in range(begin[i], begin[i + 1]):
            tie = strength[k] == least and ties > 0
            if strength[k] > least or tie:
                ties -= tie
                j, at = other[k], count
                while at > start[i] and kept[at - 1] > j:
                    kept[at] = kept[at - 1]
                    at -= 1
                kept[at] = j
                count += 1
                taken[colour[j]] = i
        start[i + 1] = count
        while taken[colour[i]] == i:
            colour[i] += 1
        for k in range(start[i], count):
            sizes[i if colour[kept[k]] < colour[i] else kept[k]] += 1
    for i in range(n):
        crow[i + 1] = crow[i] + sizes[i]
        sizes[i] = crow[i]
    for i in range(n):
        for k in range(start[i], start[i + 1]):
            j = kept[k]
            if colour[j] < colour[i]:
                col[sizes[i]] = j
                sizes[i] += 1
        col[sizes[i]] = i
        sizes[i] += 1
        for k in range(start[i], start[i + 1]):
            j = kept[k]
            if colour[j] > colour[i]:
                col[sizes[j]] = i
                sizes[j] += 1
    return crow[n]


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
