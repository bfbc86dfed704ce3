"""Loops over matrices and graphs for `LearnedTwoLevel`: compiled by numba, for a CPU.

Matrices are in compressed rows, vectors of a node, an edge or a pair in rows. What is written comes last.
"""

from typing import Any

import numpy as np


def look(
    crow: Any,
    col: Any,
    values: Any,
    aggregates: Any,
    g_crow: Any,
    g_col: Any,
    g: Any,
    scale: Any,
    nodes: Any,
    edges: Any,
    row_of: Any,
    col_of: Any,
) -> None:
    """Ends and features of the edges, features of the nodes; g: entries of G for the scaled matrix."""
    e = 0
    for i in range(crow.shape[0] - 1):
        total = squares = couplings = inside = before = inside_before = largest = 0.0
        at, end, count = g_crow[i], g_crow[i + 1], 0
        for k in range(crow[i], crow[i + 1]):
            j, value = col[k], values[k]
            total += value
            if j == i:
                continue
            size, same = abs(value) * scale[i] * scale[j], aggregates[i] == aggregates[j]
            squares += size * size
            couplings += size
            inside += size if same else 0.0
            largest = max(largest, size)
            count += 1
            while at < end and g_col[at] < j:
                at += 1
            if at < end and g_col[at] == j:
                before += size
                inside_before += size if same else 0.0
        k, behind = crow[i], crow[i + 1]
        for at in range(g_crow[i], end):
            j = g_col[at]
            if j == i:
                nodes[i, 6] = g[at] - 1
                continue
            while k < behind and col[k] < j:
                k += 1
            row_of[e], col_of[e] = i, j
            edges[e, 0] = 4 * values[k] * scale[i] * scale[j] if k < behind and col[k] == j else 0.0
            edges[e, 1], edges[e, 2] = 4 * g[at], 1.0 if aggregates[i] == aggregates[j] else -1.0
            a, b = scale[j] * scale[j], scale[i] * scale[i]
            edges[e, 3] = (a - b) / (a + b)
            e += 1
        nodes[i, 0] = total * scale[i] * scale[i]
        nodes[i, 1] = 4 * squares - 1
        whole = couplings if couplings > 0 else 1.0
        nodes[i, 2], nodes[i, 3], nodes[i, 4] = inside_before / whole, (inside - inside_before) / whole, before / whole
        nodes[i, 5] = largest
        nodes[i, 7] = 4 / max(count, 1) - 1


def look_lower(
    crow: Any,
    col: Any,
    values: Any,
    l_crow: Any,
    lower: Any,
    scale: Any,
    nodes: Any,
    edges: Any,
    row_of: Any,
    col_of: Any,
) -> None:
    """The same for one aggregate and a triangle on the pattern of the matrix's lower one, whose entries it scales."""
    e = 0
    for i in range(crow.shape[0] - 1):
        total = squares = couplings = before = largest = 0.0
        at, own = l_crow[i], scale[i]
        for k in range(crow[i], crow[i + 1]):
            j, value = col[k], values[k]
            total += value
            if j == i:
                continue
            size = abs(value) * own * scale[j]
            squares += size * size
            couplings += size
            largest = max(largest, size)
            if j < i:
                before += size
                row_of[e], col_of[e] = i, j
                a, b = scale[j] * scale[j], own * own
                edges[e, 0], edges[e, 1] = 4 * value * own * scale[j], 4 * own * lower[at]
                edges[e, 2], edges[e, 3] = 1.0, (a - b) / (a + b)
                e += 1
                at += 1
        whole = couplings if couplings > 0 else 1.0
        nodes[i, 0], nodes[i, 1] = total * own * own, 4 * squares - 1
        nodes[i, 2], nodes[i, 3], nodes[i, 4] = before / whole, (couplings - before) / whole, before / whole
        nodes[i, 5], nodes[i, 6] = largest, own * lower[at] - 1
        nodes[i, 7] = 4 / max(np.int64(crow[i + 1]) - np.int64(crow[i]) - 1, 1) - 1


def corrected(crow: Any, values: Any, edge: Any, diagonal: Any, out: Any) -> None:
    """A lower triangle's entries times numbers of its edges and of its diagonal."""
    e = 0
    for i in range(diagonal.shape[0]):
        last = crow[i + 1] - 1
        for k in range(crow[i], last):
            out[k] = values[k] * edge[e]
            e += 1
        out[last] = values[last] * diagonal[i]


def descend(
    crow: Any,
    col: Any,
    values: Any,
    aggregates: Any,
    z_crow: Any,
    z_col: Any,
    start: Any,
    length: float,
    columns: int,
    z: Any,
    share: Any,
    row_of: Any,
    pairs: Any,
) -> None:
    """A step from the coarse vectors ``start`` down their energy, within their pattern; features of the pairs."""
    image = np.zeros(columns + 1, start.dtype)  # of a row, behind one for what is outside its pattern
    place = np.zeros(columns, np.uint32)
    for i in range(crow.shape[0] - 1):
        begin, end = z_crow[i], z_crow[i + 1]
        total = diagonal = 0.0
        for k in range(crow[i], crow[i + 1]):
            total += values[k]
            if col[k] == i:
                diagonal = values[k]
        for p in range(begin, end):
            place[z_col[p]] = 1 + p - begin
            image[1 + p - begin] = 0
        for k in range(crow[i], crow[i + 1]):
            j = col[k]
            value = values[k] - total if j == i else values[k]
            for q in range(z_crow[j], z_crow[j + 1]):
                image[place[z_col[q]]] += value * start[q]
        total_image = size = 0.0
        for p in range(begin, end):
            place[z_col[p]] = 0
            total_image += image[1 + p - begin]
            size += abs(start[p])
        for p in range(begin, end):
            share[p] = abs(start[p]) / size
            step = (image[1 + p - begin] - share[p] * total_image) / diagonal
            z[p] = start[p] - length * step
            row_of[p] = i
            pairs[p, 0], pairs[p, 1], pairs[p, 2] = start[p], 1.0 if z_col[p] == aggregates[i] else -1.0, step


def pair_head(row_of: Any, pairs: Any, weight: Any, bias: Any, own: Any, out: Any, raw: Any) -> None:
    """The network's number of each pair from those of its unknown (n, width)."""
    for p in range(pairs.shape[0]):
        i = np.uint64(row_of[p])
        a, b, c = pairs[p, 0], pairs[p, 1], pairs[p, 2]
        total = np.float32(0)
        for h in range(len(bias)):
            word = bias[h] + a * weight[0, h] + b * weight[1, h] + c * weight[2, h]
            total += out[h] * max(word + own[i, h], np.float32(0))
        raw[p] = total


def correct(
    g_crow: Any, g_col: Any, g: Any, scale: Any, edges: Any, edge: Any, node: Any, node_size: float, out: Any
) -> None:
    """G of the matrix: the entries for the scaled one with bounded corrections, scaled back."""
    e = 0
    for i in range(g_crow.shape[0] - 1):
        for k in range(g_crow[i], g_crow[i + 1]):
            if g_col[k] == i:
                out[k] = (g[k] + node_size * node[i]) * scale[i]
            else:
                size = (abs(edges[e, 0]) + abs(edges[e, 1])) / 8
                out[k] = (g[k] + size * edge[e]) * scale[g_col[k]]
                e += 1


def correct_coarse(z_crow: Any, z: Any, share: Any, pair: Any, size: float, out: Any) -> None:
    """Z with bounded corrections that sum to 0 in every row."""
    for i in range(z_crow.shape[0] - 1):
        surplus = 0.0
        for p in range(z_crow[i], z_crow[i + 1]):
            surplus += share[p] * pair[p]
        for p in range(z_crow[i], z_crow[i + 1]):
            out[p] = z[p] + size * share[p] * (pair[p] - surplus)
