"""Space-time Levy areas of Brownian motion: their law, that they belong to one path, and that all ways to ask agree."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from sciml.solvers import Brownian, Levy, brownian
from tests.solvers.systems import DTYPE

PATHS = 20_000
# Sums of up to 100 terms of size at most 1; areas of steps of 1e-6 of the span lose 2^-52 / (1e-6)^1.5, a part in 1e7.
ROUND_OFF = 1e-13


def joined(first: Levy, second: Levy, a: float, b: float) -> Levy:
    """The increment and the area over two intervals of lengths a and b, one after the other."""
    h = (a * first.h + b * second.h) / (a + b) + (b * first.w - a * second.w) / (2 * (a + b))
    return Levy(first.w + second.w, h)


@pytest.mark.parametrize("cells", [7, 64, 2**20])
def test_increments_and_areas_of_neighbours_are_independent_and_of_the_right_size(cells: int):
    """Nodes, parts of cells, and intervals over several nodes."""
    path = Brownian((PATHS,), 3, cells=cells, areas=True, dtype=DTYPE)
    ends = [0.0, 0.25, 0.3, 0.5, 0.8, 1.0] if cells > 7 else [0.0, 1 / 7, 0.4, 0.5, 0.66, 1.0]
    found = []
    for a, b in itertools.pairwise(ends):
        w, h = path(a, b)
        found += [w / math.sqrt(b - a), h * math.sqrt(12 / (b - a))]
    rows = torch.stack(found)
    covariance = rows @ rows.T / PATHS
    # variances of products of independent standard normals are 1, of their squares 2
    worst = ((covariance - torch.eye(len(rows))) / (1 + torch.eye(len(rows), dtype=DTYPE)).sqrt()).abs().max()
    assert float(worst) < 4.5 / math.sqrt(PATHS)
    assert float((rows**4).mean(1).sub(3).abs().max()) < 4.5 * math.sqrt(96 / PATHS)


@pytest.mark.parametrize("cells", [100, 2**20])
def test_values_over_a_whole_are_those_of_its_parts(cells: int):
    path = Brownian((50,), 1, cells=cells, areas=True, dtype=DTYPE)
    ends = torch.rand(60, 3, generator=torch.Generator().manual_seed(3), dtype=DTYPE).sort(1).values
    ends[:10] = (ends[:10] * 64).round() / 64 + torch.tensor([0.0, 1 / 64, 2 / 64], dtype=DTYPE)
    ends = ends.clamp_max(1)
    for s, t, u in ends.tolist():
        if s < t < u:
            whole, parts = path(s, u), joined(path(s, t), path(t, u), t - s, u - t)
            assert float((parts.w - whole.w).abs().max()) < ROUND_OFF
            assert float((parts.h - whole.h).abs().max()) < ROUND_OFF / (u - s)


def test_area_is_that_of_the_path():
    """The mean of W above its chord, by the trapezoidal rule over cells, whose own areas are what it misses."""
    n = 512
    path = Brownian((5,), 2, cells=n, areas=True, dtype=DTYPE)
    tensors, one = path.tensors(), torch.ones((), dtype=DTYPE)
    cells = [path.increment(tensors, k / n, (k + 1) / n, one) for k in range(n)]
    nodes = torch.stack([torch.zeros(5, dtype=DTYPE), *(cell.w for cell in cells)]).cumsum(0)
    mean = ((nodes[1:] + nodes[:-1]) / 2 + torch.stack([cell.h for cell in cells])).mean(0)
    whole = path(0.0, 1.0)
    assert float((mean - whole.w / 2 - whole.h).abs().max()) < ROUND_OFF


def march(path: Brownian, nodes: list[float]) -> list[Levy]:
    tensors, one = path.tensors(), torch.ones((), dtype=DTYPE)
    return [path.increment(tensors, a, b, one) for a, b in itertools.pairwise(nodes)]


def same(found: Levy, right: Levy) -> bool:
    return all(float((a - b).abs().max()) < ROUND_OFF for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("by", ["tree", "step"])
@pytest.mark.parametrize("shape", [(), (5, 3)], ids=str)
def test_marching_on_the_host_meets_the_same_areas(by: str, shape: tuple[int, ...]):
    for cells in (1, 100, 128):
        path = Brownian(shape, 4, cells=cells, by=by, areas=True, dtype=DTYPE)
        nodes = [k / cells for k in range(cells + 1)]
        for found, (a, b) in zip(march(path, nodes), itertools.pairwise(nodes), strict=True):
            assert found.h.shape == shape
            assert same(found, path(a, b))


def test_nodes_are_met_on_the_host_whatever_was_asked_before():
    """As adaptive steps ask: from coarse to fine, and back."""
    path, nodes = Brownian((4,), 4, cells=2**12, areas=True, dtype=DTYPE), [0.0, 0.25, 0.375, 0.4375, 0.5, 1.0]
    path._adaptive = True
    right = [path(a, b) for a, b in itertools.pairwise(nodes)]
    for tries in (nodes, [0.0, 1.0], [0.5, 0.75], [0.25, 0.25 + 2**-12], nodes):
        march(path, tries)
        assert all(map(same, march(path, nodes), right))
    assert all(same(a, b) for a, b in zip(march(path, nodes[::-1][3:5][::-1]), right[1:2], strict=True))


def test_lanes_ask_for_intervals_of_their_own_bit_by_bit():
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, 64, (300,), generator=generator) / 64.0
    lengths = 2.0 ** -torch.randint(6, 9, (300,), generator=generator)
    lengths[::7] = 0.003  # no nodes
    lengths[::11] = 0  # at rest
    starts, ends = starts.to(DTYPE), (starts + lengths).to(DTYPE)
    path = Brownian((300, 3), 9, cells=2**12, areas=True)
    whole = path(starts, ends)
    for size in (1, 2, 33, 250):
        some = torch.randperm(300, generator=generator)[:size]
        part = Brownian((size, 3), 9, samples=some, cells=2**12, areas=True)(starts[some], ends[some])
        assert all(torch.equal(a, b[some]) for a, b in zip(part, whole, strict=True))
    quiet = ends == starts
    assert not bool(torch.cat([whole.w[quiet], whole.h[quiet]]).any())


@pytest.mark.parametrize("areas", [False, True])
def test_parts_of_cells_are_the_same_whoever_asks(areas: bool):
    """Also those that would be nodes, were the tree deeper."""
    path = Brownian((3,), 5, cells=8, areas=areas, dtype=DTYPE)
    tensors, one = path.tensors(), torch.ones((), dtype=DTYPE)
    for ends in ((0.0, 1 / 32), (1 / 32, 1 / 8), (3 / 32, 0.5)):
        lanes = [torch.full((3,), t, dtype=DTYPE) for t in ends]
        found = [path(*ends), path(*lanes), path.increment(tensors, *ends, one)]
        for other in found[1:]:
            pairs = zip(other, found[0], strict=True) if areas else [(other, found[0])]
            assert all(float((a - b).abs().max()) < ROUND_OFF for a, b in pairs)


def test_areas_scale_with_the_root_of_the_span():
    path = Brownian((4,), 2, cells=10, areas=True, dtype=DTYPE)
    for ends in ((0.3, 0.4), tuple(torch.tensor([0.3, 0.4], dtype=DTYPE))):
        long, short = (path.increment(path.tensors(), *ends, torch.tensor(t, dtype=DTYPE)) for t in (9.0, 1.0))
        assert torch.allclose(long.h, 3 * short.h, rtol=1e-14, atol=0)


def test_step_of_no_length_has_no_area_on_a_device_either(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(brownian, "_reads", lambda x: False)
    path, ends = Brownian((3,), cells=64, areas=True, dtype=DTYPE), torch.tensor([0.25, 0.3, 1.0], dtype=DTYPE)
    assert not bool(torch.cat(path(ends, ends)).any())


@pytest.mark.slow
def test_compiled_areas_are_the_same():
    path = Brownian((4, 3), cells=2**12, areas=True, dtype=DTYPE)
    compiled = torch.compile(path.increment, fullgraph=True, dynamic=False)
    ends = [torch.tensor(x, dtype=DTYPE) for x in ([0.0, 0.25, 0.3, 0.5], [0.5, 0.25, 0.30001, 1.0])]
    found, right = (f(path.tensors(), *ends, torch.ones(4, dtype=DTYPE)) for f in (compiled, path.increment))
    assert float((found.w - right.w).abs().max()) < ROUND_OFF
    assert float((found.h - right.h).abs().max()) < 3e-11  # 2^-52 of the integral over a step of 1e-5


def test_path_of_areas_is_another_one():
    plain, other = (Brownian((9,), 2, cells=8, areas=areas, dtype=DTYPE) for areas in (False, True))
    differ: Tensor = plain(0.0, 0.5) - other(0.0, 0.5).w
    assert bool((differ != 0).all())
