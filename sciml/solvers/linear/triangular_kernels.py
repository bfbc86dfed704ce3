"""Loops over the rows of sparse triangular matrices, as those of kernels.py.

A lower one has its diagonal last in every row, its transpose, ``upper``, has it first.
"""

from typing import Any

import numpy as np

WINDOW = 4096  # rows that are put in another order among themselves: what they read of a solution stays in the cache
AHEAD = 4  # entries of a row that a factor takes at a time


def schedule(crow: Any, col: Any, above: Any, order: Any) -> None:
    """An order to solve the rows in, and then those of the transpose, which a processor can take several at a time of.

    A row that waits for the one before takes as long as that takes to come through the pipeline. So each `WINDOW` of
    rows goes by levels, as in a parallel solve: first those that wait for no other in it; in the transpose these are
    the last. In a level the short ones come first, since the end of a loop that is as long as the last one is foreseen.

    Args:
        crow: with `col`, the pattern.
        col: its columns.
        above: where the rows of the transpose begin.
        order: takes the rows in order (2 n).
    """
    n = crow.shape[0] - 1
    level, by_length = np.zeros(n, np.int32), np.empty(min(n, WINDOW), np.int64)
    count = np.zeros(WINDOW + 1, np.int64)
    for start in range(0, n, WINDOW):
        end, deepest = min(start + WINDOW, n), 0
        for i in range(start, end):
            deep = 0
            for k in range(crow[i], crow[i + 1] - 1):
                deep = max(deep, level[col[k]] + 1 if col[k] >= start else 0)
            level[i] = deep
            deepest = max(deepest, deep)
        for upper in range(2):
            begin = above if upper else crow
            for i in range(start, end):
                count[min(np.int64(begin[i + 1]) - np.int64(begin[i]), WINDOW)] += 1
            total = 0
            for length in range(WINDOW + 1):
                total, count[length] = total + count[length], total
            for i in range(start, end):
                length = min(np.int64(begin[i + 1]) - np.int64(begin[i]), WINDOW)
                by_length[count[length]] = i
                count[length] += 1
            count[:] = 0
            for i in range(start, end):
                count[deepest - level[i] if upper else level[i]] += 1
            total = 2 * n - end if upper else start
            for deep in range(deepest + 1):
                total, count[deep] = total + count[deep], total
            for p in range(end - start):
                i = by_length[p]
                deep = deepest - level[i] if upper else level[i]
                order[count[deep]] = i
                count[deep] += 1
            count[:] = 0


def listed(
    crow: Any,
    col: Any,
    above: Any,
    row: Any,
    entry: Any,
    order: Any,
    begin: Any,
    beside: Any,
    place: Any,
    diagonal: Any,
) -> None:
    """The entries of a lower triangle, and then of its transpose, as a solve in some order meets them.

    Args:
        crow: with `col`, the pattern.
        col: its columns.
        above: with `row`, the pattern of the transpose.
        row: the columns of that.
        entry: where each entry of that comes from.
        order: the rows in order, then those of the transpose (2 n).
        begin: takes where the entries beside the diagonal of each of these begin (2 n + 1).
        beside: takes their columns.
        place: takes their places in the lower triangle.
        diagonal: takes the places there of the diagonal's entries (2 n).
    """
    n, at = crow.shape[0] - 1, 0
    for p in range(n):
        begin[p], i = at, order[p]
        diagonal[p] = crow[i + 1] - 1
        for k in range(crow[i], crow[i + 1] - 1):
            beside[at], place[at] = col[k], k
            at += 1
    for p in range(n, 2 * n):
        begin[p], i = at, order[p]
        diagonal[p] = entry[above[i]]
        for k in range(above[i] + 1, above[i + 1]):
            beside[at], place[at] = row[k], entry[k]
            at += 1
    begin[2 * n] = at


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
            keep[count] = k
            count += 1 if col[k] <= i else 0  # no branch, as only every other one would be foreseen
    out[crow.shape[0] - 1] = count
    return count


def factor(crow: Any, col: Any, values: Any, below: Any, row: Any, entry: Any, modified: float, shift: float) -> int:
    """An incomplete Cholesky factor in the place of A's lower triangle; -1, or the row whose pivot is not positive.

    What falls outside the pattern goes, times ``modified``, to the diagonal of both its rows. A column is known as soon
    as those before it are; times one of its entries it is then taken from what is behind that in its row.

    Args:
        crow: with `col` and `values`, A's lower triangle.
        col: its columns, rising in each row.
        values: its entries.
        below: with `row`, the pattern of its transpose.
        row: the columns of that.
        entry: where each entry of that comes from.
        modified: that share.
        shift: relative increase of the diagonal.
    """
    n, near, zero = crow.shape[0] - 1, np.int64(col.shape[0]) - AHEAD, np.zeros(1, values.dtype)[0]
    column, kept = np.zeros(n, values.dtype), np.zeros(n, values.dtype)  # kept: sums of products inside the pattern
    for j in range(n):
        pivot = values[crow[j + 1] - 1] * (1 + shift)
        if not pivot > 0:
            return j
        pivot = np.sqrt(pivot)
        values[crow[j + 1] - 1] = pivot
        begin, end, inverse, total = below[j] + 1, below[j + 1], 1 / pivot, zero
        for a in range(begin, end):
            k = np.uint64(entry[a])
            values[k] *= inverse
            column[row[a]] = values[k]
            total += values[k]
        for a in range(begin, end):
            k, last = np.int64(entry[a]), np.int64(crow[row[a] + 1]) - 1
            left, inside = values[np.uint64(k)], zero
            k += 1
            if a == begin:  # no row above has an entry of the column
                k = last
            elif k <= near:  # so many without a look at the end of the row, which no processor would foresee
                for ahead in range(AHEAD):
                    place = np.uint64(k + ahead)
                    product = (left if k + ahead < last else zero) * column[col[place]]
                    values[place] -= product
                    kept[col[place]] += product
                    inside += product
                k += AHEAD
            while k < last:
                place = np.uint64(k)
                product = left * column[col[place]]
                values[place] -= product
                kept[col[place]] += product
                inside += product
                k += 1
            values[np.uint64(last)] -= left * left + modified * (left * (total - left) - inside)
        for a in range(begin, end):
            i = row[a]
            values[crow[i + 1] - 1] += modified * kept[i]
            column[i] = kept[i] = 0
    return -1
