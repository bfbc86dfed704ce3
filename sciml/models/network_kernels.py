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
        i, j = row_of[e], col_of[e]
        a, b, c, d = edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3]
        for h in range(width):
            word[h] = bias[h] + a * weight[0, h] + b * weight[1, h] + c * weight[2, h] + d * weight[3, h]
        for h in range(width):
            heard[i, h] += max(word[h] + turn[h] + ends[i, h] + ends[j, width + h], zero)
        for h in range(width):
            heard[j, h] += max(word[h] - turn[h] + ends[j, h] + ends[i, width + h], zero)


def edge_head(row_of: Any, col_of: Any, edges: Any, weight: Any, bias: Any, ends: Any, out: Any, raw: Any) -> None:
    """The network's number of each edge from ends (n, 2 width)."""
    width = len(bias)
    for e in range(edges.shape[0]):
        i, j = row_of[e], col_of[e]
        a, b, c, d = edges[e, 0], edges[e, 1], edges[e, 2], edges[e, 3]
        total = np.float32(0)
        for h in range(width):
            word = bias[h] + a * weight[0, h] + b * weight[1, h] + c * weight[2, h] + d * weight[3, h]
            total += out[h] * max(word + ends[i, h] + ends[j, width + h], np.float32(0))
        raw[e] = total
