"""Random linear systems of a family, to learn how to solve further ones."""

import numpy as np
from torch.utils.data import Dataset

from sciml.data.seeding import derive_seed
from sciml.data.split import SplitData
from sciml.problems.implicit_steps import Direct, Evolution
from sciml.problems.linear_systems import Family
from sciml.solvers.linear.blocks import BlockSystems


class RandomSystems(SplitData):
    """Systems with their solutions, in batches side by side.

    Every part has seeds of its own. A family of steps in time gives several systems for each seed, which know the
    solutions before them; they are those of a sparse factorisation.

    Args:
        family: what to draw from.
        train: systems to train on.
        val: systems to validate on.
        test: systems to test on.
        length: steps of a sequence in time.
        history: solutions that a step knows of those before; the first steps of a sequence, which have fewer, are
            left out.
        batch_size: systems per training step.
        data_seed: seed of the systems, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        ValueError: no systems in a part, or too short a sequence.

    Example:
        >>> from sciml.data import RandomSystems
        >>> from sciml.problems import Diffusion, Heat
        >>> data = RandomSystems(Heat(Diffusion(cells=4)), train=5, val=1, test=1, length=4, history=2, batch_size=5)
        >>> data.setup("fit")
        >>> batch = data.dataset("train")[[0, 1, 2, 3, 4]]
        >>> len(batch), batch.previous.shape, batch.dt.shape
        (5, torch.Size([2, 80]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        family: Family,
        train: int = 256,
        val: int = 64,
        test: int = 128,
        length: int = 8,
        history: int = 1,
        batch_size: int = 16,
        data_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, workers)
        for name, count in (("train", train), ("val", val), ("test", test), ("history", history)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        if length < history:
            raise ValueError(f"length: expected at least the {history} steps of the history, got {length}")
        self.family, self.length, self.history, self.data_seed = family, length, history, data_seed
        self.counts = {"train": train, "val": val, "test": test}
        self._parts: dict[str, list[BlockSystems]] = {}

    def setup(self, stage: str) -> None:
        """Draw and solve the systems, once."""
        if self._parts:
            return
        for name, count in self.counts.items():
            found: list[BlockSystems] = []
            while len(found) < count:
                found += self._systems(derive_seed(self.data_seed, f"systems {name}", len(found)) % 2**32)
            self._parts[name] = found[:count]

    def part(self, name: str) -> list[BlockSystems]:
        """The systems of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]

    def dataset(self, name: str) -> Dataset[BlockSystems]:
        """A part, to be indexed by lists of systems."""
        return _Batches(self.part(name))

    def _systems(self, seed: int) -> list[BlockSystems]:
        solve = Direct()
        if not isinstance(self.family, Evolution):
            system = self.family.system(seed)
            return [BlockSystems.of(system.matrix, system.b, solution=solve(system))]
        found, previous, dts = [], [], []
        for system in self.family.steps(seed, self.length, solve=solve):
            previous, dts = [system.x0, *previous][: self.history], [system.dt, *dts][: self.history]
            if len(previous) == self.history:
                x = solve(system)
                found.append(BlockSystems.of(system.matrix, system.b, np.array(previous), np.array(dts), x))
        return found


class _Batches(Dataset[BlockSystems]):
    def __init__(self, systems: list[BlockSystems]):
        self.systems = systems

    def __len__(self) -> int:
        return len(self.systems)

    def __getitem__(self, index: list[int]) -> BlockSystems:
        return BlockSystems.join([self.systems[i] for i in index])
