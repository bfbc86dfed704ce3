"""Brownian motion as a function of its seed: any increment can be asked for, at any time, in any order."""

from collections.abc import Sequence
from copy import copy
from functools import cache
from math import ceil, prod, sqrt
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.control import Controller, Grid
from sciml.solvers.expect import expect
from sciml.solvers.hashed import GAMMA, halved_normals, mixed, signed
from sciml.solvers.path import Path
from sciml.solvers.term import expand, real_dtype
from sciml.typing import Lanes, Number

if TYPE_CHECKING:
    from sciml.solvers.stepper import Stepper

BITS = 48  # of a time: the root of the tree has 2^BITS ticks, as fine as the smallest step of a march
FINEST = 2**20  # cells where no grid says how many
MOST = 2**30
SLACK = 1e-4  # of a cell, by which a step may be shorter: nodes of a grid in float32
AT_ONCE = 24  # rows of normal numbers that are added up together; part of what a path is, to the last bit
BLOCK = 64  # cells that a march on the host draws at once, of a state of at most 2^11 numbers


class Brownian(Path):
    r"""Brownian motion W from a tree of normal numbers, each a hash of (seed, sample, entry, node).

    A path belongs to a span and a number of cells: solves of another span, or of one that follows, take another seed,
    and solves with other steps that are to see the same path take the same ``cells``.

    The span is cut into ``cells`` equal cells, which are leaves of a binary tree. W at their ends is found by halving:
    at the middle of a node of length w its value is the mean of those at the ends plus :math:`\sqrt{w} / 2` times the
    node's number. Within a cell a step's end is drawn from the bridge between the cell's ends with the cell's own
    number, so that the law is exact for all times that are at least a cell apart, whatever they are; steps that are
    shorter are refused. The same ends give the same increment, whatever was tried and rejected between, and a sample's
    path does not depend on its batch. Joint lanes keep the cells that they are at: two blocks of at least 8 of them.

    Increments over a whole are the sums of those over parts to round-off, also in float32; joint lanes and lanes
    "each" see the same path to round-off.

    Args:
        shape: of W, its first axis the samples; None takes that of the state.
        seed: an integer, of which the last 64 bits are taken.
        samples: a whole number for each sample, by which its path is known; None counts them from 0.
        cells: number of cells; None takes the least number that separates the steps of a `Grid`, and 2^20 under other
            controllers. Twice as many refine the same path, other numbers are other paths.
        by: ``"tree"``; or ``"step"``: every cell has a number of its own and W is their sum. A step then costs one
            normal number instead of up to twice the logarithm of ``cells``, and only `Grid` with just so many equal
            steps can ask for it. It is another path than that by ``"tree"``.
        dtype: of W, float32 or float64; None takes that of the state, alone torch's default.
        device: of W, likewise.

    References:
        A. Jelincic, J. Foster, P. Kidger, Single-seed generation of Brownian paths and integrals for adaptive and high
        order SDE solvers (2024), arXiv:2405.06464.

    Example:
        >>> import torch
        >>> from sciml.solvers import Brownian
        >>> path = Brownian((1000,), seed=1, cells=100, dtype=torch.float64)
        >>> whole, first, rest = path(0.0, 1.0), path(0.0, 0.37), path(0.37, 1.0)
        >>> bool(((first + rest - whole).abs() < 1e-12).all())
        True
    """

    def __init__(
        self,
        shape: Sequence[int] | None = None,
        seed: int = 0,
        *,
        samples: Tensor | Sequence[int] | None = None,
        cells: int | None = None,
        by: Literal["tree", "step"] = "tree",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        expect("seed", seed, Integral, "an integer")
        if shape is not None:
            whole = isinstance(shape, Sequence) and all(isinstance(n, Integral) and n >= 0 for n in shape)
            if not whole or isinstance(shape, str):
                raise TypeError(f"shape: expected a sequence of sizes or None, got {shape!r}")
        if cells is not None:
            expect("cells", cells, Integral, "a whole number or None")
            if not 1 <= cells <= MOST:
                raise ValueError(f"cells: expected a number from 1 to 2^30, got {cells}")
        if by not in ("tree", "step"):
            raise ValueError(f"by: expected 'tree' or 'step', got {by!r}")
        if by == "step" and cells is None:
            raise ValueError("cells: expected the number of steps with by='step', got None")
        if dtype not in (None, torch.float32, torch.float64):
            raise TypeError(f"dtype: expected torch.float32, torch.float64 or None, got {dtype}")
        if samples is not None:
            samples = torch.as_tensor(samples)
            if samples.is_floating_point() or samples.is_complex() or samples.ndim != 1:
                kind = f"{samples.dtype} of shape {tuple(samples.shape)}"
                raise ValueError(f"samples: expected a vector of whole numbers, got {kind}")
        self.shape = None if shape is None else tuple(shape)
        self.seed, self.samples, self.cells, self.by, self.dtype = int(seed), samples, cells, by, dtype
        self.device = None if device is None else torch.device(device)
        if self.shape is not None:
            self._check_samples()
        self._settle()

    def _check_samples(self) -> None:
        shape = self.shape or ()
        if self.samples is not None and shape[:1] != tuple(self.samples.shape):
            raise ValueError(f"samples: expected one for each of shape {shape}, got {len(self.samples)}")

    def within(
        self, stepper: "Stepper", controller: Controller, t0: Tensor, t1: Tensor, y0: Tensor, lanes: Lanes
    ) -> "Brownian":
        """The same path with what is left to the solve filled in."""
        if bool((t1.detach() < t0.detach()).any()):
            raise ValueError("path: Brownian motion runs forward in time, expected t0 <= t1")
        if y0.is_complex():
            raise ValueError(f"path: Brownian motion is real, got a state of {y0.dtype}")
        found = copy(self)
        found.shape = tuple(y0.shape) if self.shape is None else self.shape
        if lanes == "each" and found.shape[:1] != tuple(y0.shape[:1]):
            raise ValueError(f"path: expected a shape that starts with the {len(y0)} samples, got {found.shape}")
        found._check_samples()
        if self.dtype not in (None, real_dtype(y0)):
            raise ValueError(f"path: expected the state's dtype {real_dtype(y0)}, got {self.dtype}")
        bare = self.device is not None and self.device.index is None and self.device.type == y0.device.type
        if self.device not in (None, y0.device) and not bare:
            raise ValueError(f"path: expected the state's device {y0.device}, got {self.device}")
        found.dtype, found.device = real_dtype(y0), y0.device
        still = torch.equal(t0, t1)
        grid = isinstance(controller, Grid) and not still
        if self.by == "step" and not still and (not grid or controller.ts is not None):
            raise ValueError(
                f"path: by='step' cannot be refined, expected Grid(n={self.cells}), got {_described(controller)}"
            )
        thetas = controller.thetas(t0, t1) if grid else None
        if thetas is not None and thetas.requires_grad:
            raise ValueError(
                "controller: Brownian motion has no derivative in time; expected Grid(n=..), or ts, t0 and t1 without "
                "gradients"
            )
        if self.cells is None:
            found.cells = FINEST if thetas is None else _enough(thetas)
        found._settle()
        if thetas is not None:
            found.admit(torch.cat([torch.zeros_like(thetas[..., :1]), thetas], -1).movedim(-1, 0))
        return found

    def admit(self, theta: Tensor) -> None:
        """Refuse steps that are shorter than a cell, whose law would be wrong, and by ``"step"`` all but cells."""
        steps = theta.diff(dim=0)
        least = steps[steps > 0].min().item() if bool((steps > 0).any()) else 1.0
        cells = self.cells or 1
        if least * cells < 1 - SLACK:
            raise ValueError(
                f"cells: expected at least {ceil((1 - SLACK) / least)} for a step of {least:g} of the span, got {cells}"
            )
        whole = (theta * cells).round() / cells
        if self.by == "step" and not (
            torch.allclose(theta, whole, rtol=0, atol=SLACK / cells) and bool((steps * cells < 1.5).all())
        ):
            raise ValueError(f"path: by='step' cannot be refined, expected the steps of Grid(n={cells})")

    def repeats(self, other: Path | None) -> bool:
        """Whether another path has the same seed."""
        return isinstance(other, Brownian) and other.seed == self.seed

    def _settle(self) -> None:
        """Work out what follows from the arguments, as far as they are known."""
        self._drawn: dict[int, tuple[Tensor, ...]] = {}  # increments of the cells of the last blocks
        self._of: Tensor | None = None  # the streams that they were drawn from
        self._depth = ((self.cells or 1) - 1).bit_length()  # halvings from the root to a cell
        self._root = 2.0**self._depth / (self.cells or 1)  # length of the root: more than 1 where leaves are left over
        most = max(8, min(BLOCK, 2**17 // max(1, prod(self.shape or ()))))
        self._block = 1 << min(self._depth, most.bit_length() - 1)  # cells in a block
        self._width = 1 << (BITS - self._depth)  # ticks in a cell
        self._ticks = float((self.cells or 1) * self._width)  # in the span

    def _streams(self) -> Tensor:
        """A hash for every two entries (b, p)."""
        shape = self.shape or ()
        count = shape[0] if shape else 1
        samples = torch.arange(count) if self.samples is None else self.samples.to("cpu", torch.int64)
        pairs = torch.arange((prod(shape[1:]) + 1) // 2)
        seed = mixed(torch.tensor([signed(self.seed * GAMMA + 1)]))
        return mixed(mixed(seed + samples * GAMMA)[:, None] + pairs * GAMMA).to(self.device or "cpu")

    def tensors(self) -> tuple[Tensor, ...]:
        """The streams (b, p); of each level and of the cells the bits of a place within a node, and its scale."""
        if self.shape is None or self.cells is None:
            missing = "shape" if self.shape is None else "cells"
            raise ValueError(f"{missing}: expected it for a path outside of a solve, which would fill it in; got None")
        streams, levels = self._streams(), range(self._depth + 1)
        shifts = torch.tensor([BITS - level for level in levels], device=streams.device)
        scales = [sqrt(2 * self._root * 2.0**-level) for level in levels]  # the root of 2 is left out of the normals
        return streams, shifts, torch.tensor(scales, dtype=torch.float64, device=streams.device)

    def __call__(self, theta0: Number, theta1: Number) -> Tensor:
        """The increment between fractions of a span of length 1: numbers, or tensors (b) with one for each sample."""
        theta0, theta1 = (torch.as_tensor(theta, dtype=torch.float64) for theta in (theta0, theta1))
        for name, theta in (("theta0", theta0), ("theta1", theta1)):
            if not bool(((theta >= 0) & (theta <= 1)).all()):
                raise ValueError(f"{name}: expected fractions of the span, from 0 to 1, got {theta.tolist()}")
        if self.by == "step":
            self.admit(torch.stack(torch.broadcast_tensors(theta0, theta1)))
        return self.increment(self.tensors(), theta0, theta1, torch.ones_like(theta0))

    def increment(self, tensors: tuple[Tensor, ...], theta0: Number, theta1: Number, span: Tensor) -> Tensor:
        """W(theta1) - W(theta0), of the path's shape, times the root of the span."""
        if isinstance(theta0, float):
            found = self._on_host(tensors, theta0, theta1)
            return found * (_root(span).to(self._dtype) if span.requires_grad else sqrt(span.item()))
        start, end = (
            (theta.detach() * self._ticks).round().to(tensors[0].device, torch.int64) for theta in (theta0, theta1)
        )
        found = self._between(tensors, start, end)
        return found * expand(_root(span).to(found.device, found.dtype), found)

    @property
    def _dtype(self) -> torch.dtype:
        return self.dtype or torch.get_default_dtype()

    def _between(self, tensors: tuple[Tensor, ...], start: Tensor, end: Tensor) -> Tensor:
        """The increment between ticks (l), from all nodes that hold either of them."""
        streams, shifts, scales = tensors
        nodes, weights = self._steps(start, end) if self.by == "step" else _descend(start, end, shifts, scales)
        nodes = mixed(nodes.movedim(-1, 0) * GAMMA)  # (rows, l)
        weights = weights.movedim(-1, 0).to(self._dtype)
        if start.ndim == 0:
            nodes, weights = nodes[:, None], weights[:, None]
        total = None
        for some, weight in zip(nodes.split(AT_ONCE), weights.split(AT_ONCE), strict=True):
            drawn = halved_normals(mixed(some[..., None] + streams), self._dtype)  # (rows, b, 2 p)
            part = _summed(drawn.mul_(weight[..., None]))
            total = part if total is None else total + part
        return self._shaped(total)  # pyrefly: ignore[bad-argument-type]

    def _steps(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the step's cell, (l, 1), and its weight, 0 for a step of no length."""
        weight = (end > start).to(torch.float64) * sqrt(2 / (self.cells or 1))
        return start.div(self._width, rounding_mode="floor")[..., None], weight[..., None]

    def _shaped(self, drawn: Tensor) -> Tensor:
        """Numbers (.., b, 2 p) as W (.., *shape); of an odd number of entries the last one is left out."""
        shape = self.shape or ()
        lead = drawn.shape[:-2]
        return drawn[..., : prod(shape[1:])].reshape(lead + shape)

    def _on_host(self, tensors: tuple[Tensor, ...], theta0: float, theta1: float) -> Tensor:
        """The increment between numbers, from the increments of all cells of a block, of which the last are kept."""
        size, width = self._block, self._width
        start, end = round(theta0 * self._ticks), round(theta1 * self._ticks)
        if self.by == "step" and (start % width or end - start not in (0, width)):
            raise ValueError(f"path: by='step' knows the steps of Grid(n={self.cells}) only, got {theta0} to {theta1}")
        (first, within), (last, rest) = divmod(start, width), divmod(end, width)
        block, at = divmod(first, size)
        if within or rest or last > (block + 1) * size or last <= first:
            return self._between(tensors, *torch.tensor([start, end], device=tensors[0].device))
        streams = tensors[0]
        if self._of is None or self._of.data_ptr() != streams.data_ptr():
            self._drawn, self._of = {}, streams
        cells = self._drawn.get(block)
        if cells is None:
            if len(self._drawn) == 2:
                self._drawn.pop(next(iter(self._drawn)))
            cells = self._drawn[block] = self._cells(streams, block).unbind()
        count = last - first
        return cells[at] if count == 1 else torch.stack(cells[at : at + count]).sum(0)

    def _cells(self, streams: Tensor, block: int) -> Tensor:
        """The increments of a block's cells (cells, *shape)."""
        size = self._block
        count = min(size, (self.cells or 1) - block * size)  # there may be no more
        if self.by == "step":
            nodes, weights = block * size + np.arange(count), None
        else:
            nodes, weights = _subtree(block, size.bit_length() - 1, self._depth, self._root)
            needed = weights[:count].any(0)
            nodes, weights = nodes[needed], weights[:count, needed]
        keys = mixed(torch.from_numpy(nodes).to(streams.device) * GAMMA)
        drawn = halved_normals(mixed(keys[:, None, None] + streams), self._dtype)  # (nodes, b, 2 p)
        if weights is None:
            return self._shaped(drawn.mul_(sqrt(2 / (self.cells or 1))))
        weights = torch.from_numpy(weights).to(streams.device, self._dtype)
        with torch.autocast(streams.device.type, enabled=False):
            cells = weights @ drawn.flatten(1)
        return self._shaped(cells.reshape(count, *drawn.shape[1:])).contiguous()


def _root(span: Tensor) -> Tensor:
    """The root of the span (l), whose derivative is not wanted where it is 0."""
    some = span > 0
    return torch.where(some, torch.where(some, span, 1.0).sqrt(), 0.0)


def _descend(start: Tensor, end: Tensor, shifts: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes whose numbers make the increment between ticks (l), and their weights: (l, rows) each.

    Weights are differences that are taken before any rounding, so that short steps lose nothing.
    """
    nodes, weights = _path(torch.stack([start, end]), shifts, scales)
    (node0, node1), (weight0, weight1) = nodes.unbind(), weights.unbind()
    same = node0 == node1
    root = (end - start)[..., None] * (scales[0] * 2.0**-BITS)
    nodes = torch.cat([torch.zeros_like(start)[..., None], node1, node0], -1)
    weights = torch.cat([root, weight1 - torch.where(same, weight0, 0), torch.where(same, 0, -weight0)], -1)
    return nodes, weights


def _path(tick: Tensor, shifts: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes that hold ticks (..), from root to cells, and how far their numbers move W there: (.., levels)."""
    tick, width = tick[..., None], torch.ones_like(shifts) << shifts
    x = (tick & (width - 1)).to(torch.float64) / width  # a node's width is a power of two
    rest = 1 - x
    within = torch.minimum(x, rest)
    within[..., -1] = (x[..., -1] * rest[..., -1]).sqrt()
    return (tick >> shifts) + (1 << (BITS - shifts)), within * scales


def _subtree(block: int, below: int, depth: int, root: float) -> tuple[np.ndarray, np.ndarray]:
    """The nodes (n) that move the 2^below cells of a block, and their weights (cells, n) in the cells' increments."""
    above = depth - below
    levels = np.arange(above)
    falls = (block >> (above - 1 - levels)) & 1  # whether the block lies in the right half of a node
    slopes = np.exp2(levels / 2 - depth) * (1 - 2 * falls)
    inside = np.arange(1, 1 << below)  # the nodes below the block, as if it were the root
    nodes = inside + ((block + (1 << above) - 1) << _level(inside))
    weights = np.broadcast_to(np.concatenate([[2.0**-depth], slopes]), (1 << below, above + 1))
    nodes = np.concatenate([[0], (1 << levels) + (block >> (above - levels)), nodes])
    return nodes, np.concatenate([weights, 2.0 ** (-depth / 2) * _rises(below)], 1) * sqrt(2 * root)


@cache
def _rises(below: int) -> np.ndarray:
    """How the numbers of the nodes of the lowest levels move cells of length 1, (2^below, 2^below - 1)."""
    columns = [np.zeros((1 << below, 0))]
    for level in range(below):
        slope = np.repeat([1.0, -1.0], 1 << (below - level - 1)) * 2.0 ** ((level - below) / 2)
        columns.append(np.kron(np.eye(1 << level), slope[:, None]))
    return np.concatenate(columns, 1)


def _level(nodes: np.ndarray) -> np.ndarray:
    """The level of nodes: the root, which is 1, has level 0."""
    return np.frexp(nodes)[1] - 1


def _summed(rows: Tensor) -> Tensor:
    """The sum over the first axis by halves: in one order for every entry, whatever the shape."""
    while len(rows) > 1:
        half = len(rows) // 2
        odd, rows = rows[2 * half :], rows[:half] + rows[half : 2 * half]
        rows[: len(odd)] += odd
    return rows[0]


def _described(controller: Controller) -> str:
    return "Grid(ts=..)" if isinstance(controller, Grid) else type(controller).__name__


def _enough(thetas: Tensor) -> int:
    """The least number of cells that separates the nodes (.., n) of a grid."""
    least = torch.cat([thetas[..., :1], thetas.diff(dim=-1)], -1).min().item()
    cells = ceil((1 - SLACK) / max(least, 2.0**-BITS))
    if cells > MOST:
        raise ValueError(f"controller: Brownian motion tells steps of 2^-30 of the span apart, got one of {least:g}")
    return cells
