"""Loops over the couplings of a graph for `MatrixNetwork`: compiled by numba, for a CPU.

Numbers of an unknown or a coupling are in rows. What is written comes last.
"""

from typing import Any

import numpy as np


def messages(row_of: Any, col_of: Any, edges: Any, weight: Any, bias: Any, turn: Any, ends: Any, heard: Any) -> None:
    """Adds to each node what its edges say: (n, width) from ends (n, 2 width)."""
    width = heard.shape[1]
    word, zero = np.empty(width, heard.dtype), np.float32(0)
    for e in range(edges.shape[0]):
        i, j = np.uint64(row_of[e]), np.uint64(col_of[e])  # numba looks at every place that may be negative
        a, b, c, d = edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3]
        for h in range(width):
            word[h] = bias[h] + a * weight[0, h] + b * weight[1, h] + c * weight[2, h] + d * weight[3, h]
        to, of, at = ends[i, :width], ends[j, width:], heard[i]
        for h in range(width):
            at[h] += max(word[h] + turn[h] + to[h] + of[h], zero)
        to, of, at = ends[j, :width], ends[i, width:], heard[j]
        for h in range(width):
            at[h] += max(word[h] - turn[h] + to[h] + of[h], zero)


def edge_head(row_of: Any, col_of: Any, edges: Any, weight: Any, bias: Any, ends: Any, out: Any, raw: Any) -> None:
    """The network's number of each edge from ends (n, 2 width)."""
    width = len(bias)
    for e in range(edges.shape[0]):
        i, j = np.uint64(row_of[e]), np.uint64(col_of[e])
        a, b, c, d = edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3]
        one, other, total = ends[i, :width], ends[j, width:], np.float32(0)
        for h in range(width):
            word = bias[h] + a * weight[0, h] + b * weight[1, h] + c * weight[2, h] + d * weight[3, h]
            total += out[h] * max(word + one[h] + other[h], np.float32(0))
        raw[e] = total
