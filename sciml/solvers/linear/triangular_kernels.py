"""Loops over the rows of sparse triangular matrices, as those of kernels.py.

A lower one has its diagonal last in every row, its transpose, ``upper``, has it first.
"""

from typing import Any

import numpy as np

WINDOW = 4096  # rows that are put in another order among themselves: what they read of a solution stays in the cache


def schedule(crow: Any, col: Any, entry: Any, at: int, order: Any, begin: Any, beside: Any, place: Any) -> None:
    """An order to solve the rows in, which a processor can take several at a time of.

    A row that waits for the one before takes as long as that takes to come through the pipeline. So each `WINDOW` of
    rows goes by levels, as in a parallel solve: first those that wait for no other in it. In a level the short ones
    come first, since the end of a loop that is as long as the last one is foreseen.

    Args:
        crow: with `col`, the pattern.
        col: its columns.
        entry: of the transpose, where each entry comes from, empty for a lower triangle; its rows go from the last to
            the first.
        at: where the entries of the first row go in `beside` and `place`.
        order: takes the rows in order (n).
        begin: takes where the entries beside the diagonal of each of these begin (n + 1).
        beside: takes their columns, from there on.
        place: takes their places in the lower triangle, likewise.
    """
    n, upper = order.shape[0], entry.shape[0] > 0
    level, by_length = np.zeros(n, np.int32), np.empty(min(n, WINDOW), np.int64)
    count = np.zeros(WINDOW + 1, np.int64)
    first, last = (1, 0) if upper else (0, 1)  # entries that are the diagonal
    for start in range(0, n, WINDOW):
        size = min(WINDOW, n - start)
        deepest = 0
        for p in range(size):
            i = n - 1 - start - p if upper else start + p
            deep = 0
            for k in range(crow[i] + first, crow[i + 1] - last):
                j = np.int64(col[k])
                if (n - 1 - j if upper else j) >= start:
                    deep = max(deep, level[j] + 1)
            level[i] = deep
            deepest = max(deepest, deep)
            count[min(np.int64(crow[i + 1]) - np.int64(crow[i]), WINDOW)] += 1
        total = 0
        for length in range(WINDOW + 1):
            total, count[length] = total + count[length], total
        for p in range(size):
            i = n - 1 - start - p if upper else start + p
            length = min(np.int64(crow[i + 1]) - np.int64(crow[i]), WINDOW)
            by_length[count[length]] = i
            count[length] += 1
        count[:] = 0
        for p in range(size):
            count[level[by_length[p]]] += 1
        total = start
        for deep in range(deepest + 1):
            total, count[deep] = total + count[deep], total
        for p in range(size):
            i = by_length[p]
            order[count[level[i]]] = i
            count[level[i]] += 1
        count[:] = 0
    for p in range(n):
        begin[p] = at
        i = order[p]
        for k in range(crow[i] + first, crow[i + 1] - last):
            beside[at] = col[k]
            place[at] = entry[k] if upper else k
            at += 1
    begin[n] = at


def solve(order: Any, begin: Any, col: Any, values: Any, inverse: Any, x: Any) -> None:
    """T x = b, with b in the place of x, for the rows of a triangular T in this order, or of two one after the other.

    Args:
        order: the rows.
        begin: where the entries of each beside the diagonal begin.
        col: their columns.
        values: these entries.
        inverse: one over the diagonal, in the order of the rows.
        x: (m, n).
    """
    for s in range(x.shape[0]):
        y = x[s]
        for p in range(order.shape[0]):
            i, k, end = order[p], begin[p], begin[p + 1]
            one, other = y[i], 0.0  # sums that do not wait for one another
            while k + 1 < end:
                one -= values[k] * y[col[k]]
                other -= values[k + 1] * y[col[k + 1]]
                k += 2
            if k < end:
                one -= values[k] * y[col[k]]
            y[i] = (one + other) * inverse[p]


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


def factor(crow: Any, col: Any, values: Any, below: Any, row: Any, entry: Any, modified: float, shift: float) -> int:
    """An incomplete Cholesky factor in the place of A's lower triangle; -1, or the row whose pivot is not positive.

    What falls outside the pattern goes, times ``modified``, to the diagonal of both its rows.

    Args:
        crow: with `col` and `values`, A's lower triangle.
        col: its columns.
        values: its entries.
        below: with `row`, the pattern of its transpose.
        row: the columns of that.
        entry: where each entry of that comes from.
        modified: that share.
        shift: relative increase of the diagonal.
    """
    n = crow.shape[0] - 1
    where = np.full(n, -1, np.int64)  # the last place of an entry of this column
    for j in range(n):
        pivot = values[crow[j + 1] - 1] * (1 + shift)
        if not pivot > 0:
            return j
        pivot = np.sqrt(pivot)
        values[crow[j + 1] - 1] = pivot
        begin, end, inverse = below[j] + 1, below[j + 1], 1 / pivot
        for a in range(begin, end):
            values[entry[a]] *= inverse
        for a in range(begin, end):
            i, left = row[a], values[entry[a]]
            start, last = np.int64(crow[i]), np.int64(crow[i + 1]) - 1
            loss = left * left
            if a > begin:
                for k in range(start, last):
                    where[col[k]] = k
            for c in range(begin, a):  # without a branch, which no processor would foresee
                product, k, own = left * values[entry[c]], where[row[c]], np.int64(crow[row[c] + 1]) - 1
                inside = start <= k < last
                dropped = 0.0 if inside else modified * product
                values[k if inside else own] -= product if inside else dropped
                loss += dropped
            values[last] -= loss
    return -1
