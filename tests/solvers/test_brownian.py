"""Brownian motion: its law, that it is one path, and what it refuses.

Seeds are fixed. A mean of n numbers is off by more than 4 standard errors once in 16,000 tries, a correlation likewise,
and a tolerance of so many standard errors for the worst of a few hundred is 5.
"""

import itertools
import math
import tracemalloc
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sciml.solvers import PID, Brownian, Euler, Grid, brownian
from sciml.solvers.hashed import halved_normals, mixed, signed
from tests.solvers.systems import DTYPE

PATHS = 20_000
ONE = torch.ones((), dtype=DTYPE)
# Sums of up to 50 terms of size at most 1 in float64, and of 2^-24 in float32.
ROUND_OFF = {torch.float64: 1e-14, torch.float32: 5e-6}


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)


def wiener(path: Brownian, ts: Tensor) -> Tensor:
    """W at times (t) of [0, 1], (t, *shape)."""
    return torch.stack([path(0.0, t) for t in ts])


def covariances_differ(found: Tensor, ts: Tensor) -> float:
    """How many standard errors the worst sample covariance of W (t, n) is away from min(s, t)."""
    n = found.shape[1]
    right = torch.minimum(ts[:, None], ts)
    error = ((right**2 + ts[:, None] * ts) / n).sqrt()  # var(x y) of normal x and y
    return float(((found @ found.T / n - right) / error).abs().max())


def splitmix(seed: int) -> int:
    """The output function of splitmix64, in integers."""
    z = seed % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_hash_is_that_of_splitmix64():
    seeds = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, *(0x9E3779B97F4A7C15 * k for k in range(1, 9))]
    numbers, right = torch.tensor([signed(s) for s in seeds]), [signed(splitmix(s)) for s in seeds]
    assert mixed(numbers).tolist() == right
    assert mixed(numbers.numpy()).tolist() == right
    # the first outputs of the published generator from seed 1234567
    first = [splitmix(1234567 + 0x9E3779B97F4A7C15 * k) for k in (1, 2)]
    assert first == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_are_normal(dtype: torch.dtype):
    z = halved_normals(mixed(torch.arange(500_000)), dtype) * math.sqrt(2)
    assert bool(z.isfinite().all())
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = math.sqrt(variance / len(z))
        assert abs(float(z.double().pow(power).mean()) - moment) < 4 * error, power
    ends = halved_normals(torch.tensor([2**31 - 1, 2**31]), dtype)  # the largest word and the smallest
    assert 5.29 < math.sqrt(2) * float(ends.abs().max()) < 6.4
    assert bool(ends.isfinite().all())


@pytest.mark.parametrize("cells", [1, 7, 100, 128, None])
def test_covariance_of_two_times_is_the_smaller_one(cells: int | None):
    path = Brownian((PATHS,), 5, cells=cells or 2**20, dtype=DTYPE)
    draw = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    inner = draw.sort().values
    if cells is not None:  # at least a cell apart
        inner = (torch.arange(0, cells, 2) + draw[: len(range(0, cells, 2))].repeat(cells)[: (cells + 1) // 2]) / cells
        inner = inner[:: max(1, len(inner) // 12)]
        inner = inner[inner < 1 - 1 / cells]
    ts = torch.cat([inner, times(1.0)])
    assert covariances_differ(wiener(path, ts), ts) < 5


def test_increments_are_normal_and_independent_of_one_another_and_of_other_samples():
    path = Brownian((PATHS // 8, 5), 2, cells=64, dtype=DTYPE)
    rises = torch.stack([path(k / 16, (k + 1) / 16) for k in range(16)]) * 4  # (16, b, 5)
    assert stats.kstest(rises.flatten().numpy(), "norm").pvalue > 1e-4
    entries = rises.movedim(1, 0).flatten(1)  # (b, 80) of each sample
    worst = entries.T.corrcoef().fill_diagonal_(0).abs().max()
    assert float(worst) < 5 / math.sqrt(len(entries))
    neighbours = (entries[1:] * entries[:-1]).mean()
    assert abs(float(neighbours)) < 4 / math.sqrt(entries.numel())
    squares = (entries[1:] ** 2 - 1) * (entries[:-1] ** 2 - 1)
    assert abs(float(squares.mean())) < 4 * 2 / math.sqrt(entries.numel())


def test_seeds_samples_and_entries_have_paths_of_their_own():
    first = [Brownian((64, 3), seed, cells=4, dtype=DTYPE)(0.0, 1.0) for seed in (0, 1, -1, 2**60)]
    drawn = torch.cat(first).flatten()
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("cells", [100, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_increment_of_a_whole_is_the_sum_of_its_parts(dtype: torch.dtype, cells: int):
    path = Brownian((50,), 1, cells=cells, dtype=dtype)
    ends = torch.rand(80, 3, generator=torch.Generator().manual_seed(3), dtype=DTYPE).sort(1).values
    ends[-20:] = ends[-20:, :1] + times(0.0, 1e-6, 2e-6)  # short steps too
    for s, t, u in ends:
        parts, whole = path(s, t) + path(t, u), path(s, u)
        assert float((parts - whole).abs().max()) <= ROUND_OFF[dtype] * float((u - s).sqrt())
    halves = path(0.0, 0.5), path(0.5, 1.0)
    assert float((sum(halves) - path(0.0, 1.0)).abs().max()) < ROUND_OFF[dtype]


@pytest.mark.parametrize("by", ["tree", "step"])
def test_sample_has_the_same_path_bit_by_bit_whatever_its_batch(by: Any):
    generator = torch.Generator().manual_seed(1)
    cells = torch.randint(0, 90, (400,), generator=generator)
    starts, ends = cells / 100.0, (cells + (1 if by == "step" else 7)) / 100.0
    starts, ends = (x.to(DTYPE) for x in (starts, ends))
    whole = Brownian((400, 3), 9, cells=100, by=by)(starts, ends)
    for size in (1, 2, 3, 17, 33, 250):
        some = torch.randperm(400, generator=generator)[:size]
        assert torch.equal(
            Brownian((size, 3), 9, samples=some, cells=100, by=by)(starts[some], ends[some]), whole[some]
        )


def march(path: Brownian, nodes: list[float]) -> list[Tensor]:
    """Increments between numbers, as a march on the host asks for them."""
    tensors = path.tensors()
    return [path.increment(tensors, a, b, ONE) for a, b in itertools.pairwise(nodes)]


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (300, 7, 2), (0, 2), (2, 0)], ids=str)
@pytest.mark.parametrize("cells", [1, 100, 128])
@pytest.mark.parametrize("by", ["tree", "step"])
def test_marching_on_the_host_meets_the_same_path(by: Any, cells: int, shape: tuple[int, ...]):
    path = Brownian(shape, 4, cells=cells, by=by, dtype=DTYPE)
    nodes = [k / cells for k in range(cells + 1)]
    for j, found in enumerate(march(path, nodes)):
        assert found.shape == shape
        assert torch.allclose(found, path(nodes[j], nodes[j + 1]), rtol=0, atol=ROUND_OFF[DTYPE])


def test_numbers_are_drawn_together_and_no_more_than_there_are_cells(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    draw = brownian._numbers
    monkeypatch.setattr(brownian, "_numbers", lambda *args: drawn.append(len(args[-1])) or draw(*args))
    path = Brownian((9, 2), 4, cells=256)
    steps = [(j / 128, (j + 1) / 128) for j in range(128)]
    halves = [(s, s + 1 / 256) for s, _ in steps[::5]]  # tried where a step was rejected
    march(path, [s for s, _ in steps] + [1.0])
    assert drawn == [1 + 64, 63]  # the nodes above 64 of them: from the root on, and from its second half
    drawn.clear()
    path = Brownian((9, 2), 4, cells=256)
    tensors = path.tensors()
    for ends in sorted(steps + halves):
        path.increment(tensors, *ends, ONE)
    assert len(drawn) <= 2 + 4
    assert sum(drawn) <= 1.25 * 256  # blocks of either level overlap


def test_order_of_questions_and_rejections_do_not_matter():
    nodes = [k / 200 for k in range(201)]
    right = march(Brownian((9, 2), 4, cells=200), nodes)
    path = Brownian((9, 2), 4, cells=200)
    tensors = path.tensors()
    generator = torch.Generator().manual_seed(0)
    found: dict[int, Tensor] = {}
    for j in torch.randperm(200, generator=generator).tolist():
        for length in torch.randint(1, 60, (2,), generator=generator).tolist():  # tried and rejected
            path.increment(tensors, nodes[j], min(1.0, nodes[j] + length / 333), ONE)
        found[j] = path.increment(tensors, nodes[j], nodes[j + 1], ONE)
    assert all(torch.equal(found[j], right[j]) for j in range(200))


@pytest.mark.parametrize("areas", [False, True])
def test_lanes_have_the_same_paths_bit_by_bit_whatever_was_asked_before(areas: bool):
    """Over nodes, where joint lanes have them too, between other places, and at rest."""
    generator, spans = torch.Generator().manual_seed(2), torch.ones(40, dtype=DTYPE)
    path, joint = (Brownian((40, 3), 7, cells=2**10, areas=areas) for _ in range(2))
    tensors, known = path.tensors(), joint.tensors()
    values = lambda told: torch.stack([*told] if areas else [told])  # noqa: E731
    draw = lambda: torch.rand(40, generator=generator, dtype=DTYPE)  # noqa: E731
    level, place = torch.full((40,), 3.0, dtype=DTYPE), draw()
    for _ in range(60):
        level = (level + (3 * draw()).floor() - 1).clamp(0, 10)  # near to what was asked before
        place = torch.where(draw() < 0.2, draw(), (place + 2.0**-level * draw()) % 1)
        size, kind = 2.0**-level, draw()
        start = (place / size).floor() * size
        end = start + torch.where(kind < 0.1, 0.0, torch.where(kind < 0.2, 0.7 * size, size))
        found = values(path.increment(tensors, start, end, spans))
        some = torch.randperm(40, generator=generator)[:9]
        fresh = Brownian((9, 3), 7, samples=some, cells=2**10, areas=areas)(start[some], end[some])
        assert torch.equal(values(fresh), found[:, some])
        if kind[0] > 0.2 and level[0] < 8:
            assert torch.equal(values(joint.increment(known, float(start[0]), float(end[0]), ONE))[:, 0], found[:, 0])


def test_steps_of_no_length_and_across_blocks_are_met_on_the_host():
    path = Brownian((3,), 4, cells=200, dtype=DTYPE)
    for ends in ((0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (0.1, 0.9), (0.305, 0.41), (0.3011, 0.3012)):
        (found,) = march(path, list(ends))
        assert float((found - path(*ends)).abs().max()) < ROUND_OFF[DTYPE]


def test_finer_cells_of_twice_the_number_refine_the_same_path():
    paths = [Brownian((6,), 8, cells=25 * 2**k, dtype=DTYPE) for k in range(4)]
    ts = torch.arange(26, dtype=DTYPE) / 25
    first, *others = [wiener(path, ts) for path in paths]
    assert all(float((other - first).abs().max()) < ROUND_OFF[DTYPE] for other in others)


def test_precisions_see_the_same_path():
    single, double = (Brownian((2000,), 6, cells=100, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert single(0.0, 1.0).dtype == torch.float32
    # 32 bits are rounded to 24, which moves a number by up to 2^-24 times the slope of the inverse, 1e4 at 4 deviations
    assert float((single(0.2, 0.9) - double(0.2, 0.9)).abs().max()) < 1e-3
    assert float((single(0.2, 0.9) - double(0.2, 0.9)).abs().mean()) < 1e-6


def test_increments_scale_with_the_root_of_the_span_and_have_its_derivative():
    path = Brownian((4,), 2, cells=10, dtype=DTYPE)
    for ends in ((0.3, 0.4), tuple(times(0.3, 0.4))):
        span = torch.tensor(9.0, dtype=DTYPE, requires_grad=True)
        long = path.increment(path.tensors(), *ends, span)
        short = path.increment(path.tensors(), *ends, ONE)
        assert torch.allclose(long, 3 * short, rtol=1e-14, atol=0)
        (slope,) = torch.autograd.grad(long.sum(), span)
        assert torch.allclose(slope, short.sum() / 6, rtol=1e-14, atol=0)
        empty = torch.zeros((), dtype=DTYPE, requires_grad=True)
        still = path.increment(path.tensors(), *ends, empty)
        assert not bool(still.any())
        assert float(torch.autograd.grad(still.sum(), empty)[0]) == 0


@pytest.mark.parametrize("by", ["tree", "step"])
@pytest.mark.parametrize("lanes", [(), (4,)], ids=["joint", "each"])
def test_path_does_not_wait_for_the_host(by: Any, lanes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    path, mode = Brownian((4, 3), cells=10, by=by), FakeTensorMode()
    ends = (torch.full(lanes, 0.3, dtype=DTYPE), torch.full(lanes, 0.4, dtype=DTYPE), torch.ones(lanes, dtype=DTYPE))
    monkeypatch.setattr(brownian, "_reads", lambda x: False)  # as on a GPU
    tensors = tuple(map(mode.from_tensor, path.tensors()))
    with mode:
        found = path.increment(tensors, *map(mode.from_tensor, ends))
    assert (found.shape, found.dtype) == ((4, 3), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("cells", [4, 2**12])
def test_compiled_path_is_the_same(cells: int):
    path = Brownian((4, 3), cells=cells, dtype=DTYPE)
    compiled = torch.compile(path.increment, fullgraph=True, dynamic=False)
    ends = times(0.1, 0.2, 0.3, 0.4), times(0.1, 0.25, 0.30001, 1.0)
    found, right = (f(path.tensors(), *ends, torch.ones(4, dtype=DTYPE)) for f in (compiled, path.increment))
    assert float((found - right).abs().max()) < ROUND_OFF[DTYPE]


def questions(path: Brownian, count: int) -> int:
    """The most memory that so many increments on the host take, in bytes of Python's."""
    tensors, kept = path.tensors(), 0
    tracemalloc.start()
    for j in range(count):
        path.increment(tensors, j / count, (j + 1) / count, ONE)
        kept = max(kept, sum(w.numel() for _, (w,) in path._nodes.kept.values()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept <= 2 * (64 + count.bit_length()) * math.prod(path.shape)  # a block, those above it, and the way there
    return most


def test_memory_does_not_grow_with_the_number_of_questions():
    questions(Brownian((1, 2), cells=128), 128)  # what is kept for all paths
    few, many = (questions(Brownian((1, 2), cells=count), count) for count in (2**10, 2**13))
    assert many < few + 60_000  # bytes, of wider matrices; a tensor kept for each question would be a million


@pytest.mark.slow
def test_a_million_questions_take_constant_memory():
    assert questions(Brownian((1, 2), cells=2**20), 2**20) < 1_000_000


def test_within_a_solve_cells_are_those_of_its_grid():
    start, end = torch.zeros((), dtype=DTYPE), torch.full((), 2.0, dtype=DTYPE)
    found = lambda controller: Brownian().within(Euler(), controller, start, end, torch.ones(3), "joint")  # noqa: E731
    assert found(Grid(n=100)).cells == 100
    assert found(Grid(dt=0.02)).cells == 100
    assert found(Grid(ts=[0.0, 1.5, 1.7, 2.0])).cells == 10
    assert found(PID()).cells == 2**20
    assert (found(PID()).shape, found(PID()).dtype) == ((3,), torch.float32)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"shape": 3}, TypeError, "shape: expected a sequence of sizes or None, got 3"),
        ({"shape": (2.0,)}, TypeError, "shape: expected a sequence"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer, got float"),
        ({"cells": 0}, ValueError, "cells: expected a number from 1 to 2.30, got 0"),
        ({"cells": 1.5}, TypeError, "cells: expected a whole number or None, got float"),
        ({"by": "grid"}, ValueError, "by: expected 'tree' or 'step', got 'grid'"),
        ({"by": "step"}, ValueError, "cells: expected the number of steps with by='step', got None"),
        ({"dtype": torch.float16}, TypeError, "dtype: expected torch.float32, torch.float64 or None"),
        ({"samples": [0.5]}, ValueError, "samples: expected a vector of whole numbers"),
        ({"shape": (3, 2), "samples": [1, 2]}, ValueError, "samples: expected one for each of shape"),
    ],
)
def test_argument_that_does_not_fit_is_named(options: dict[str, Any], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        Brownian(**options)


def test_path_alone_wants_to_know_its_cells():
    with pytest.raises(ValueError, match="cells: expected it for a path outside of a solve"):
        Brownian((3,))(0.0, 1.0)
    with pytest.raises(ValueError, match="shape: expected it for a path outside of a solve"):
        Brownian(cells=3)(0.0, 1.0)


def test_path_by_step_refuses_other_steps():
    path = Brownian((3,), cells=10, by="step")
    for ends in ((0.1, 0.3), (0.05, 0.15), (0.2, 0.1)):
        with pytest.raises(ValueError, match=r"path: by='step' knows the steps of Grid\(n=10\) only"):
            path.increment(path.tensors(), *ends, ONE)


def test_places_outside_of_the_span_and_parts_of_cells_are_refused():
    path = Brownian((2,), cells=8)
    for bad in (math.nan, -0.1, 2.0):
        with pytest.raises(ValueError, match="theta1: expected fractions of the span, from 0 to 1"):
            path(0.0, bad)
    stepped = Brownian((2,), cells=8, by="step")
    for ends in ((0.0, 1.0), (0.03, 0.04), (0.0, 0.25)):
        with pytest.raises(ValueError, match=r"expected the steps of Grid\(n=8\)|cells: expected at least"):
            stepped(*ends)


def test_grids_of_the_same_steps_have_the_same_path_however_they_are_given():
    y0, t0, t1 = torch.zeros(3, 2), torch.zeros((), dtype=DTYPE), torch.ones((), dtype=DTYPE)
    grids = Grid(n=100), Grid(ts=torch.linspace(0, 1, 101)), Grid(ts=torch.linspace(0, 1, 101, dtype=DTYPE))
    assert {Brownian().within(Euler(), grid, t0, t1, y0, "joint").cells for grid in grids} == {100}


@pytest.mark.parametrize("n", [1, 3, 1000, 20_000, 1_000_000])
def test_equal_steps_are_cells_however_many(n: int):
    zero = torch.zeros((), dtype=torch.float64)
    path = Brownian().within(Euler(), Grid(n=n), zero, zero + 1, torch.ones(1, 1), "joint")
    assert path.cells == n
