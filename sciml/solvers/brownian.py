"""Brownian motion as a function of its seed: any increment can be asked for, at any time, in any order."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial, reduce
from math import ceil, prod, sqrt
from numbers import Integral
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from sciml.solvers import areas, hosted
from sciml.solvers.control import Controller, Grid
from sciml.solvers.dyadic import BITS, SECOND, Values, descend
from sciml.solvers.expect import expect
from sciml.solvers.hashed import GAMMA, halved_normals, mixed, signed
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.linear.kernels import available
from sciml.solvers.nodes import Nodes, Steps
from sciml.solvers.path import DyadicPath, Levy, Path
from sciml.solvers.term import expand, real_dtype
from sciml.solvers.transforms import holds
from sciml.solvers.ways import QuickWays, Ways
from sciml.typing import Lanes, Number

if TYPE_CHECKING:
    from sciml.solvers.stepper import Stepper

FINEST = 2**20  # cells where no grid says how many
MOST = 2**30
SLACK = 1e-4  # of a cell, by which a step may be shorter: nodes of a grid in float32
TOGETHER = 8  # rows of normal numbers that are added up together; part of what a path is, to the last bit
MANY = 2**15  # streams that fill a kernel
KEPT = ("_nodes", "_ways", "_quick", "_of", "_lock", "_ticket", "_levels")
BLOCK = 64  # nodes that joint lanes draw at once on the host, of states of at most 2^11 numbers


class Brownian(DyadicPath):
    r"""Brownian motion W from a tree of normal numbers, each a hash of (seed, sample, entry, node).

    A path belongs to a span and a number of cells: solves of another span, or of one that follows, take another seed,
    and solves with other steps that are to see the same path take the same ``cells``.

    The span is cut into ``cells`` equal cells, which are leaves of a binary tree. W at their ends is found by halving:
    at the middle of a node of length w its value is the mean of those at the ends plus :math:`\sqrt{w} / 2` times the
    node's number. Within a cell a step's end is drawn from the bridge between the cell's ends with the cell's own
    number, so that the law is exact for any times of which no two lie within one cell; solves refuse others. The same
    ends give the same increment, whatever was tried and rejected between, and a sample's path does not depend on its
    batch. Of every level those nodes are kept that were drawn last: both halves of one; of joint lanes also others
    beside them where W is small. On a CPU lanes "each" keep them too, and compiled marches, those of lanes "each" by
    faster loops where numba is installed. On other devices nothing is kept.

    Under a controller of step sizes steps are nodes of the tree, so that the ends of rejected trials are always ends of
    steps: passed over, they would bias the noise.

    Increments over a whole are the sums of those over parts to round-off, also in float32; joint lanes and lanes
    "each" see the same path to round-off, and on a CPU over nodes bit by bit.

    Args:
        shape: of W, its first axis the samples; None takes that of the state.
        seed: an integer, of which the last 64 bits are taken.
        samples: a whole number for each sample, by which its path is known; None counts them from 0.
        cells: number of cells; None takes the least number that separates the steps of a `Grid`, and 2^20 under other
            controllers. Twice as many refine the same path, other numbers are other paths.
        by: ``"tree"``; or ``"step"``: every cell has a number of its own and W is their sum. A step then costs one
            normal number instead of up to twice the logarithm of ``cells``, and only `Grid` with just so many equal
            steps can ask for it. It is another path than that by ``"tree"``.
        areas: whether the path has space-time Levy areas, and tells them as `Levy` where it is called. A solve adds
            them where its stepper asks for them. A path with areas is another one than that without.
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
        areas: bool = False,
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
        self.areas, self._tells = areas, areas  # whether it has them, and whether it tells them
        self._adaptive = self._pairs = False  # whether areas of pairs of entries are told
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
        if not holds(t1.detach() >= t0.detach()):
            raise ValueError("path: Brownian motion runs forward in time, expected t0 <= t1")
        if y0.is_complex() and self.shape is None:
            raise ValueError(f"path: Brownian motion is real, expected its shape with a state of {y0.dtype}, got None")
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
        found._pairs = stepper.area
        if found._pairs and (controller.adaptive or len(found.shape) != 2):
            name = type(stepper).__name__
            raise ValueError(f"path: {name} reads areas of steps of a grid and a shape (b, m), got {found.shape}")
        found.areas, found._tells = self.areas or stepper.levy or stepper.area, stepper.levy
        found._adaptive, found.parts = controller.adaptive, 1 + stepper.halves
        still = holds(t0 == t1)
        grid = isinstance(controller, Grid) and not still
        if self.by == "step" and not still and (not grid or controller.ts is not None):
            raise ValueError(
                f"path: by='step' cannot be refined, expected Grid(n={self.cells}), got {_described(controller)}"
            )
        thetas = controller.thetas(t0, t1) if grid else None
        moving = [times for times in (thetas, *controller.edges(t0, t1)) if times is not None and times.requires_grad]
        if moving:
            raise ValueError(
                "controller: Brownian motion has no derivative in time; expected Grid(n=..), or ts, jump_ts, t0 and t1 "
                "without gradients"
            )
        if self.cells is None:
            found.cells = FINEST if thetas is None else _enough(thetas)
        elif controller.adaptive and (self.cells & (self.cells - 1) or self.cells < found.parts):
            least = f" of at least {found.parts}" if found.parts > 1 else ""
            raise ValueError(f"cells: expected a power of two{least} under {_described(controller)}, got {self.cells}")
        found._settle()
        return found

    def admit(self, theta: Tensor) -> None:
        """Refuse two ends within one cell, whose joint law would be wrong, and by ``"step"`` all but cells."""
        cells = self.cells or 1
        steps = theta.diff(dim=0)
        place = theta * cells
        cell = place.floor()
        inside = (place - cell > SLACK) & (place - cell < 1 - SLACK)
        close = (cell[1:] == cell[:-1]) & inside[1:] & inside[:-1] & (steps > 0)
        if bool(close.any()):
            least = steps[close].min().item()
            enough = ceil((1 - SLACK) / least)
            enough = 1 << (enough - 1).bit_length() if self._adaptive else enough
            raise ValueError(f"cells: expected at least {enough} for a step of {least:g} of the span, got {cells}")
        whole = place.round()
        if self.by == "step" and not (
            torch.allclose(place, whole, rtol=0, atol=SLACK) and bool((steps * cells < 1.5).all())
        ):
            raise ValueError(f"path: by='step' cannot be refined, expected the steps of Grid(n={cells})")

    def repeats(self, other: Path | None) -> bool:
        """Whether another path has the same seed."""
        return isinstance(other, Brownian) and signed(other.seed) == signed(self.seed)

    def _settle(self) -> None:
        """Work out what follows from the arguments, as far as they are known."""
        self._nodes: Nodes | None = None  # what joint lanes asked for last
        self._ways: Ways | None = None  # and lanes that step by themselves
        self._quick: QuickWays | None = None  # those of compiled marches
        self._of: Tensor | None = None  # the streams that they were drawn from
        self._lock = Lock()
        self._ticket: Tensor | None = None  # for compiled marches, and what it stands in the place of
        self._levels: tuple[Tensor, ...] = ()
        self._span = 1.0, torch.ones((), dtype=self._dtype, device=self.device)  # the last one, and its root
        self._depth = ((self.cells or 1) - 1).bit_length()  # halvings from the root to a cell
        self._root = 2.0**self._depth / (self.cells or 1)  # length of the root: more than 1 where leaves are left over
        most = max(2, min(BLOCK, 2**17 // max(1, prod(self.shape or ()))))
        self._block = 1 << most.bit_length() - 1
        self._width = 1 << (BITS - self._depth)  # ticks in a cell
        self._ticks = float((self.cells or 1) * self._width)  # in the span

    def __getstate__(self) -> dict[str, Any]:
        """What makes it, without what it keeps."""
        return {name: value for name, value in vars(self).items() if name not in KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._settle()

    def _streams(self) -> Tensor:
        """A hash for every two entries (b, p)."""
        shape = self.shape or ()
        samples = np.arange(shape[0] if shape else 1) if self.samples is None else self.samples.numpy(force=True)
        pairs = np.arange((prod(shape[1:]) + 1) // 2)
        seed = mixed(np.array([signed(self.seed * GAMMA + 1)]))
        streams = mixed(mixed(seed + samples.astype(np.int64) * GAMMA)[:, None] + pairs * GAMMA)
        return torch.from_numpy(streams).to(self.device or "cpu")

    def tensors(self) -> tuple[Tensor, ...]:
        """The streams (b, p); of each level, from root to cells, the bits of a place within a node and its length."""
        if self.shape is None or self.cells is None:
            missing = "shape" if self.shape is None else "cells"
            raise ValueError(f"{missing}: expected it for a path outside of a solve, which would fill it in; got None")
        streams, levels = self._streams(), range(self._depth + 1)
        shifts = torch.tensor([BITS - level for level in levels], device=streams.device)
        lengths = [self._root * 2.0**-level for level in levels]
        return streams, shifts, torch.tensor(lengths, dtype=torch.float64, device=streams.device)

    def among(self, tensors: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """The tensors for some of the samples, whose numbers do not depend on the others."""
        streams, *rest = tensors
        return streams.index_select(0, rows.to(streams.device)), *rest

    def hosted(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """On a CPU its ticket in the place of lengths: a way from the root takes longer."""
        streams, shifts, lengths, *more = tensors
        if streams.device.type != "cpu" or lengths.ndim == 0:
            return tensors
        if self._ticket is None:
            self._levels, self._ticket = (shifts, lengths), hosted.ticket(self)
        return streams, shifts, self._ticket, *more

    def remembered(self, streams: Tensor, theta0: Tensor, theta1: Tensor) -> Tensor:
        """The values (1 or 2, *shape) between fractions of the span on the host, over a span of length 1."""
        tensors = streams, *self._levels
        if theta0.ndim == 0:
            return torch.stack(list(self._alone(self._on_host, tensors, theta0.item(), theta1.item())))
        if self.by == "step" or not streams.numel():
            return torch.stack(self._between(tensors, self._tick(theta0), self._tick(theta1)))
        if available():
            return self._alone(self._quickly, tensors, theta0, theta1)
        return torch.stack(self._alone(self._in_lanes, tensors, theta0, theta1))

    def _alone(self, ask: Callable[..., Any], *args: Any) -> Any:
        """What is kept serves one thread at a time, and is dropped where it may be half made."""
        with self._lock:
            try:
                return ask(*args)
            except BaseException:
                self._nodes = self._ways = self._quick = self._of = None
                raise

    def __call__(self, theta0: Number, theta1: Number) -> Tensor:
        """The increment between fractions of a span of length 1: numbers, or tensors (b) with one for each sample."""
        theta0, theta1 = torch.broadcast_tensors(
            *(torch.as_tensor(theta, dtype=torch.float64) for theta in (theta0, theta1))
        )
        for name, theta in (("theta0", theta0), ("theta1", theta1)):
            if not bool(((theta >= 0) & (theta <= 1)).all()):
                raise ValueError(f"{name}: expected fractions of the span, from 0 to 1, got {theta.tolist()}")
        if self.by == "step":
            self.admit(torch.stack([theta0, theta1]))
        return self.increment(self.tensors(), theta0, theta1, torch.ones_like(theta0))

    def increment(self, tensors: tuple[Tensor, ...], theta0: Number, theta1: Number, span: Tensor) -> Any:
        """W(theta1) - W(theta0), of the path's shape, times the root of the span; `Levy` where areas are asked for."""
        ends = theta0, theta1
        if isinstance(theta0, float):
            told = (tensors[0], *self._levels) if tensors[2].ndim == 0 else tensors
            values = self._alone(self._on_host, told, theta0, theta1)
            root: Any = _root(span).to(self._dtype) if span.requires_grad else self._known_root(span.item())
        else:
            streams = tensors[0]
            if tensors[2].ndim == 0:
                size = (1 + self.areas, *(streams.shape[:1] if self.shape else ()), *(self.shape or ())[1:])
                values = hosted.increment(streams, tensors[2], theta0, theta1, size, self._dtype).unbind()
            elif theta0.ndim and self.by == "tree" and _reads(theta0) and _reads(streams) and streams.numel():
                values = self._alone(self._in_lanes, tensors, theta0, theta1)
            else:
                values = self._between(tensors, *(self._tick(theta).to(streams.device) for theta in ends))
            root = _root(span) if span.requires_grad else span.sqrt()
            root = expand(root.to(values[0].device, values[0].dtype), values[0])
        found = [value * root for value in values]
        if self._pairs:
            return self._area(tensors[0], ends, Levy(*found), root)
        return Levy(*found) if self._tells else found[0]

    def _area(self, streams: Tensor, ends: tuple[Number, Number], levy: Levy, root: Any) -> areas.Area:
        """The areas of pairs of entries over a step of a grid, whose ends tell its numbers."""
        start, end = (self._tick(theta).to(streams.device) for theta in ends)
        w, h = levy
        size = (end - start).to(w.dtype) / self._ticks
        size = (expand(size, w) if size.ndim else size) * root * root
        pairs = w.shape[-1] * (w.shape[-1] - 1) // 2
        return areas.drawn(w, h, size, areas.numbers(streams, start, end, pairs, w.dtype))

    def _known_root(self, span: float) -> Tensor:
        """The root of a span as a tensor: a factor that is a number costs as much as the product."""
        known, root = self._span
        if span != known:
            root = torch.full((), sqrt(span), dtype=self._dtype, device=self.device)
            self._span = span, root
        return root

    @property
    def _dtype(self) -> torch.dtype:
        return self.dtype or torch.get_default_dtype()

    def _tick(self, theta: Number) -> Tensor:
        """The ticks (l) of fractions of the span."""
        return (torch.as_tensor(theta, dtype=torch.float64).detach() * self._ticks).round().to(torch.int64)

    def _between(self, tensors: tuple[Tensor, ...], start: Tensor, end: Tensor) -> list[Tensor]:
        """The values between ticks (l), from all nodes that hold either of them."""
        streams, rest = tensors[0], tensors[1:]
        groups = [self._steps(start, end)] if self.by == "step" else descend(start, end, rest[0], rest[1], self.areas)
        return [_shaped(x, self.shape or ()) for x in _summed(self._products(streams, groups)).unbind()]

    def _in_lanes(self, tensors: tuple[Tensor, ...], theta0: Tensor, theta1: Tensor) -> list[Tensor]:
        """The same for lanes on the host, 0 where one is at rest: over nodes from those above them."""
        start, end = (np.rint(theta.detach().numpy() * self._ticks).astype(np.int64) for theta in (theta0, theta1))
        length = end - start
        nodes = ((length & (length - 1) | start & (length - 1)) == 0) & (length >= self._width)
        level = BITS + 1 - np.frexp(length.astype(np.float64))[1]
        found = [
            _shaped(torch.from_numpy(x), self.shape or ()) for x in self._ways_of(tensors[0]).over(start, level, nodes)
        ]
        others = (~nodes & (length > 0)).nonzero()[0]
        if len(others):
            few = torch.from_numpy(others)
            ticks = (torch.from_numpy(x[others]) for x in (start, end))
            for x, y in zip(found, self._between(self.among(tensors, few), *ticks), strict=True):
                x.index_copy_(0, few, y)
        return found

    def _quickly(self, tensors: tuple[Tensor, ...], theta0: Tensor, theta1: Tensor) -> Tensor:
        """The same by compiled loops: (1 or 2, *shape)."""
        self._keep_for(tensors[0])
        if self._quick is None:
            streams = tensors[0].numpy()
            draw = partial(_lane_numbers, streams, self._dtype, 1 + self.areas)
            self._quick = QuickWays(draw, streams, self._root, self._ticks, self._width)
        values, others = self._quick.over(torch.stack([theta0, theta1]).numpy())
        found = _shaped(torch.from_numpy(values), self.shape or ())
        if len(others):
            few = torch.from_numpy(others)
            ticks = (self._tick(theta.index_select(0, few)) for theta in (theta0, theta1))
            found[:, few] = torch.stack(self._between(self.among(tensors, few), *ticks))
        return found

    def _ways_of(self, streams: Tensor) -> Ways:
        """What is kept of the lanes' ways."""
        self._keep_for(streams)
        if self._ways is None:
            draw = partial(_lane_numbers, streams.numpy(), self._dtype, 1 + self.areas)
            self._ways = Ways(draw, len(streams), self._root)
        return self._ways

    def _keep_for(self, streams: Tensor) -> None:
        """Forget what was kept of other streams."""
        if streams is self._of:
            return
        if self._of is None or self._of.data_ptr() != streams.data_ptr() or self._of.shape != streams.shape:
            self._nodes, self._ways, self._quick, self._of = None, None, None, streams

    def _products(self, streams: Tensor, groups: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """What is to be added up, some rows (rows, 1 or 2, b, 2 p) after others."""
        at_once = TOGETHER * max(1, MANY // max(1, streams.numel()))
        for keys, weights in groups:
            if keys.ndim == 1:
                keys, weights = keys[:, None], weights[:, None]
            weights = weights.to(self._dtype).movedim(-1, 1)[..., None]
            for key, weight in zip(keys.split(at_once), weights.split(at_once), strict=True):
                drawn = halved_normals(mixed(mixed(key * GAMMA)[..., None] + streams), self._dtype)  # (rows, b, 2 p)
                yield from (drawn[:, None] * weight).split(TOGETHER)

    def _steps(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """The keys (count, l) of a step's cell and their weights (count, l, count), 0 for a step of no length."""
        count = 1 + self.areas
        scales = [sqrt(2 / (self.cells or 1)), sqrt(1 / (6 * (self.cells or 1)))][:count]
        weight = (end > start).to(torch.float64)
        none = torch.zeros_like(weight)
        cell = start.div(self._width, rounding_mode="floor")
        rows = [[scale * weight if k == j else none for k in range(count)] for j, scale in enumerate(scales)]
        return (
            torch.stack([cell + j * SECOND for j in range(count)]),
            torch.stack([torch.stack(row, -1) for row in rows]),
        )

    def _on_host(self, tensors: tuple[Tensor, ...], theta0: float, theta1: float) -> Sequence[Tensor]:
        """The values between numbers: over a node from those above it, over a few cells their sum."""
        streams, width = tensors[0], self._width
        start, end = round(theta0 * self._ticks), round(theta1 * self._ticks)
        length = end - start
        if self.by == "step" and (start % width or length not in (0, width)):
            raise ValueError(f"path: by='step' knows the steps of Grid(n={self.cells}) only, got {theta0} to {theta1}")
        if length >= width and length & (length - 1) == 0 and start % length == 0:
            level = BITS + 1 - length.bit_length()
            return self._nodes_of(streams).over(level, start >> (BITS - level))
        (first, within), (last, rest) = divmod(start, width), divmod(end, width)
        if within or rest or self.areas or self._adaptive or not 0 < last - first <= self._block:
            return self._between(tensors, *torch.tensor([start, end], device=streams.device))
        nodes = self._nodes_of(streams)
        return [reduce(torch.add, [nodes.over(self._depth, cell)[0] for cell in range(first, last)])]

    def _nodes_of(self, streams: Tensor) -> Nodes:
        """What is kept of joint lanes."""
        self._keep_for(streams)
        if self._nodes is None:
            draw = partial(_numbers, streams, self.shape or (), self._dtype, 1 + self.areas)
            self._nodes = (Steps if self.by == "step" else Nodes)(draw, self.cells or 1, self._root, self._block)
        return self._nodes


def _numbers(streams: Tensor, shape: tuple[int, ...], dtype: torch.dtype, kinds: int, nodes: Sequence[int]) -> Values:
    """The numbers of nodes (n), (n, *shape) each."""
    keys = mixed((np.array(nodes) + np.arange(kinds)[:, None] * SECOND) * GAMMA)[..., None, None]
    if streams.device.type == "cpu":
        bits = torch.from_numpy(mixed(keys + streams.numpy()))
    else:
        bits = mixed(torch.from_numpy(keys).to(streams.device) + streams)
    return _shaped(halved_normals(bits, dtype), shape).unbind()


def _lane_numbers(streams: np.ndarray, dtype: torch.dtype, kinds: int, nodes: np.ndarray, lanes: np.ndarray) -> Values:
    """The numbers (n, 2 p) each of nodes (n) of lanes (n)."""
    keys = mixed((nodes + np.arange(kinds)[:, None] * SECOND) * GAMMA)[..., None]
    return tuple(halved_normals(torch.from_numpy(mixed(keys + streams.take(lanes, 0))), dtype).numpy())


def _shaped(drawn: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Numbers (.., b, 2 p) as W (.., *shape); of an odd number of entries the last one is left out."""
    lead, count = drawn.shape[: -1 if shape else -2], prod(shape[1:])
    return (drawn if drawn.shape[-1] == count else drawn[..., :count]).reshape(lead + shape[1:])


def _root(span: Tensor) -> Tensor:
    """The root of the span (l), whose derivative is not wanted where it is 0."""
    some = span > 0
    return torch.where(some, torch.where(some, span, 1.0).sqrt(), 0.0)


def _summed(parts: Iterator[Tensor]) -> Tensor:
    """The sum of all rows of parts, at most `TOGETHER` each: in one order, which zeros at the end do not change."""
    rows, half = next(parts), TOGETHER // 2
    for part in parts:
        rows[: len(part)] += part
    while len(rows) > 1:
        rows, rest = rows[:half], rows[half:]
        rows[: len(rest)] += rest
        half //= 2
    return rows[0]


def _reads(x: Tensor) -> bool:
    """Whether it costs nothing to look at numbers."""
    return type(x) is Tensor and x.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed())


def _described(controller: Controller) -> str:
    return "Grid(ts=..)" if isinstance(controller, Grid) else type(controller).__name__


def _enough(thetas: Tensor) -> int:
    """The least number of cells that separates the nodes (.., n) of a grid."""
    least = torch.cat([thetas[..., :1], thetas.diff(dim=-1)], -1).min().item()
    count = 1 / max(least, 2.0**-BITS)
    cells = round(count) if abs(count - round(count)) <= SLACK * count else ceil((1 - SLACK) * count)
    if cells > MOST:
        raise ValueError(f"controller: Brownian motion tells steps of 2^-30 of the span apart, got one of {least:g}")
    return cells
