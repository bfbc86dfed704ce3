"""Loops over the lanes of `QuickWays`: compiled by numba, for a CPU.

Numbers are those of `Ways` to the last bit: the same operations in the same precision, whose .5, 1.5 and .25 are given.
"""

from math import frexp
from typing import Any

from sciml.solvers.dyadic import BITS
from sciml.solvers.dyadic import SECOND as OTHER
from sciml.solvers.hashed import FIRST, GAMMA, SECOND

REST, NODE, BETWEEN = 0, 1, 2  # kinds of steps


def plan(ends: Any, ticks: float, width: int, start: Any, level: Any, known: Any, kinds: Any) -> Any:
    """Where steps lead: nodes' starts and levels, which were those of the last ones, and how far a way is known.

    Returns:
        how many nodes are to be halved, how many steps are no nodes, and the deepest level.
    """
    missing, others, deepest = 0, 0, 0
    for i in range(len(start)):
        first, last = round(ends[0, i] * ticks), round(ends[1, i] * ticks)
        length = last - first
        if length <= 0:
            kinds[i] = REST
        elif length < width or (length & (length - 1)) | (first & (length - 1)):
            kinds[i] = BETWEEN
            others += 1
        else:
            kinds[i] = NODE
            down, parted = BITS + 1 - frexp(length)[1], BITS + 1 - frexp(first ^ start[i])[1]
            known[i] = min(level[i], parted, down)
            start[i], level[i] = first, down
            missing += down - known[i]
            deepest = max(deepest, down)
    return missing, others, deepest


def draw(bits: Any, streams: Any, start: Any, level: Any, known: Any, kinds: Any) -> None:
    """The hashes (n, 1 or 2, p) of nodes from known levels on, lane by lane."""

    def mixed(z: Any) -> Any:
        z = (((z >> 30) & ((1 << 34) - 1)) ^ z) * FIRST
        z = (((z >> 27) & ((1 << 37) - 1)) ^ z) * SECOND
        return ((z >> 31) & ((1 << 33) - 1)) ^ z

    n = 0
    for i in range(len(start)):
        if kinds[i] != NODE:
            continue
        for k in range(known[i], level[i]):
            node = (start[i] >> (BITS - k)) + (1 << k)
            for j in range(bits.shape[1]):
                key = mixed((node + j * OTHER) * GAMMA)
                for p in range(bits.shape[2]):
                    bits[n, j, p] = mixed(key + streams[i, p])
            n += 1


def walk(
    found: Any,
    kept: Any,
    numbers: Any,
    scales: Any,
    constants: Any,
    start: Any,
    level: Any,
    known: Any,
    kinds: Any,
) -> None:
    """Halve nodes from known levels on; the values (1 or 2, l, q) over the last ones, 0 for steps that are none.

    Args:
        found: where to put them.
        kept: values (l, 2 levels, 1 or 2, q) over both halves of the nodes on the way.
        numbers: of the nodes (n, 1 or 2, q), by `draw`.
        scales: of the numbers of levels (levels, 1 or 2).
        constants: .5, 1.5 and .25.
        start: of the last node (l).
        level: its level.
        known: down to which it was known.
        kinds: of the steps.
    """
    half, three, quarter = constants
    n = 0
    for i in range(len(start)):
        if kinds[i] != NODE:
            found[:, i] = 0
            continue
        for k in range(known[i], level[i]):
            above, left, right = kept[i, 2 * k + ((start[i] >> (BITS - k)) & 1)], kept[i, 2 * k + 2], kept[i, 2 * k + 3]
            for q in range(above.shape[1]):
                w, bend = above[0, q], scales[k, 0] * numbers[n, 0, q]
                if len(found) == 1:
                    rise = half * w + bend
                else:
                    h, odd = above[1, q], scales[k, 1] * numbers[n, 1, q]
                    rise = half * w + (three * h + bend)
                    mean = quarter * h - half * bend
                    left[1, q], right[1, q] = mean + odd, mean - odd
                left[0, q], right[0, q] = rise, w - rise
            n += 1
        last = kept[i, 2 * level[i] + ((start[i] >> (BITS - level[i])) & 1)]
        for j in range(len(found)):
            found[j, i] = last[j]
