"""Sparse linear systems to train preconditioners on, and larger ones to judge them by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.utils.data import Dataset

from sciml.data.loader import Loader
from sciml.data.seeding import derive_seed, generator
from sciml.data.split import SplitData
from sciml.problems.linear_systems import Family, LinearSystem
from sciml.solvers.linear import SparseOperator

SEEDS = 2**31  # numbers of systems lie below


class Example(NamedTuple):
    """A system of a family, with right-hand sides.

    Attributes:
        key: which one it is, among all of a data module.
        name: of its family.
        scale: unknowns, about, relative to those of the family's smallest system for training.
        operator: the matrix (n, n).
        aggregates: blocks of the grid (n); None leaves them to the model.
        b: right-hand sides (k, n).
        x: their solutions (k, n), where these were asked for.
    """

    key: str
    name: str
    scale: int
    operator: SparseOperator
    aggregates: Tensor | None
    b: Tensor
    x: Tensor | None


@dataclass(frozen=True)
class Source:
    """A family to draw systems from.

    Args:
        family: of the systems.
        weight: share of the systems for training, relative to other sources.
        cells: along an edge, or the least and the largest number, of systems for training; None is the family's own.
        edge: cells along an edge of a block of aggregates, where the family is on grids; None leaves aggregates to the
            model.
    """

    family: Family
    weight: float = 1.0
    cells: tuple[int, int] | int | None = None
    edge: int | None = None

    def __post_init__(self) -> None:
        """Refuse what draws nothing."""
        if not self.weight > 0:
            raise ValueError(f"weight: expected a positive number, got {self.weight}")
        low, high = self.range
        if not 2 <= low <= high:
            raise ValueError(f"cells: expected two rising numbers from 2 on, got {self.cells}")
        if self.edge is not None and self.edge < 1:
            raise ValueError(f"edge: expected a positive number of cells, got {self.edge}")

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest number of cells along an edge."""
        space: Any = getattr(self.family, "space", None) or self.family
        cells = self.cells or getattr(space, "cells", 32)
        return cells if isinstance(cells, tuple) else (cells, cells)

    def draw(self, seed: int, scale: int | None = None) -> LinearSystem:
        """A system by seed: of a random size, or of about `scale` times the unknowns of the smallest ones."""
        low, high = self.range
        step = self.edge or 1
        if scale is None:
            choice = torch.randint((high - low) // step + 1, (), generator=generator(seed, "cells"))
            return self.family.system(seed, low + step * int(choice))
        system = self.family.system(seed, low)
        if scale == 1:
            return system
        cells = round(low * scale ** (1 / system.points.shape[1]) / step) * step
        return self.family.system(seed, cells)


class Systems(Dataset[list[Example]]):
    """The systems of one part, made when they are first asked for, and kept where they are for training.

    Args:
        part: "train", "val" or "test".
        plan: names, sources and scales, one for each system; no scale for a size at random.
        seed: of the systems.
        count: right-hand sides of each.
        correlation: of their fields; None for white noise.
        solutions: whether to solve them.
    """

    def __init__(
        self,
        part: str,
        plan: Sequence[tuple[str, Source, int | None]],
        seed: int,
        count: int,
        correlation: float | None,
        solutions: bool,
    ):
        self.part, self.plan, self.seed = part, plan, seed
        self.count, self.correlation, self.solutions = count, correlation, solutions
        self._kept: dict[int, Example] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self.plan)

    def __getitem__(self, index: list[int]) -> list[Example]:
        """Those of a batch."""
        return [self._kept.get(i) or self._made(i) for i in index]

    def _made(self, i: int) -> Example:
        name, source, scale = self.plan[i]
        number = i if scale is None else sum(x[:3:2] == (name, scale) for x in self.plan[:i])  # the same at all scales
        seed = derive_seed(self.seed, f"systems, {self.part}, {name}", number) % SEEDS
        system = source.draw(seed, scale)
        b = system.draw(self.count, seed, self.correlation)
        solved = self.solutions and scale in (None, 1)  # losses are of these
        x = splu(system.matrix.tocsc()).solve(b.T).T.copy() if solved else None
        example = Example(
            f"{self.part} {i}",
            name,
            scale or 1,
            SparseOperator.from_scipy(system.matrix),
            None if source.edge is None else torch.from_numpy(system.aggregates(source.edge)),
            torch.from_numpy(b),
            None if x is None else torch.from_numpy(x),
        )
        if scale is None or scale == 1:
            self._kept[i] = example
        return example


class LinearSystems(SplitData):
    """Random systems of several families: small ones to train on, others of these and larger sizes to judge by.

    Args:
        sources: the families by name.
        held_out: families that only the test has.
        train: systems to train on.
        val: systems of each family and scale to validate on.
        test: systems of each family and scale to test on.
        scales: unknowns of systems to judge by, relative to the smallest ones for training.
        right_hand_sides: of each system.
        correlation: length of the Gaussian fields that right-hand sides are; None for white noise.
        solutions: whether examples of the training size have solutions, by a direct solver.
        batch_size: systems per training step.
        data_seed: seed of the systems, apart from the seed of the training.

    Raises:
        ValueError: if there is no family, or if a number is less than 1.

    Example:
        >>> from sciml.problems import Diffusion
        >>> data = LinearSystems({"poisson": Source(Diffusion(cells=8), edge=4)}, train=3, val=1, test=1, scales=[1, 4])
        >>> [[example.b.shape for example in batch] for batch in data.val_dataloader()]
        [[torch.Size([4, 64])], [torch.Size([4, 256])]]
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        held_out: Mapping[str, Source] | None = None,
        train: int = 100,
        val: int = 1,
        test: int = 2,
        scales: Sequence[int] = (1, 10, 64),
        right_hand_sides: int = 4,
        correlation: float | None = None,
        solutions: bool = False,
        batch_size: int = 1,
        data_seed: int = 0,
    ):
        super().__init__(batch_size)
        self.sources, self.held_out = dict(sources), dict(held_out or {})
        if not self.sources:
            raise ValueError("sources: expected at least one family")
        if twice := self.sources.keys() & self.held_out.keys():
            raise ValueError(f"held_out: expected other names than in sources, got {sorted(twice)} in both")
        numbers = {"train": train, "val": val, "test": test, "right_hand_sides": right_hand_sides}
        for name, value in {**numbers, "batch_size": batch_size, "scales": min(scales, default=0)}.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.counts = {"train": train, "val": val, "test": test}
        self.scales = sorted(scales)
        self.right_hand_sides, self.correlation, self.solutions = right_hand_sides, correlation, solutions
        self.data_seed = data_seed
        self._parts: dict[str, Systems] = {}

    def part(self, name: str) -> Systems:
        """The systems of `"train"`, `"val"` or `"test"`; those to judge by in the order of their sizes."""
        if name not in self._parts:
            plan = self._drawn() if name == "train" else self._scaled(name)
            options = (self.data_seed, self.right_hand_sides, self.correlation, self.solutions)
            self._parts[name] = Systems(name, plan, *options)
        return self._parts[name]

    def _drawn(self) -> list[tuple[str, Source, int | None]]:
        names = list(self.sources)
        weights = torch.tensor([self.sources[name].weight for name in names])
        source = generator(self.data_seed, "sources")
        choices = torch.multinomial(weights, self.counts["train"], replacement=True, generator=source)
        return [(names[i], self.sources[names[i]], None) for i in choices.tolist()]

    def _scaled(self, part: str) -> list[tuple[str, Source, int | None]]:
        sources = self.sources | (self.held_out if part == "test" else {})
        return [
            (name, source, scale)
            for scale in self.scales
            for name, source in sources.items()
            for _ in range(self.counts[part])
        ]

    def dataset(self, name: str) -> Systems:
        """A part, to be indexed by lists of systems."""
        return self.part(name)

    def _loader(self, name: str, shuffle: bool = False) -> Loader:
        if name != "train":  # one by one, and whole in every process, so that all log the same metrics
            return Loader(self.part(name), 1)
        return super()._loader(name, shuffle)
