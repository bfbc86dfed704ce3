"""Random numbers as functions of where they are used.

No generator's state is kept anywhere: every draw comes from a generator seeded with (seed, purpose, indices), so that
a run that was stopped and resumed draws what an uninterrupted one draws.
"""

import os
from hashlib import blake2b

import torch


def run_seed() -> int:
    """The seed of this run: what `lightning.seed_everything` (the config key `seed_everything`) was given, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A seed below 2^63 that is a function of its arguments; other arguments give an unrelated one.

    Args:
        seed: the seed of the run.
        purpose: what the numbers are for, e.g. `"shuffle"`.
        indices: which of them, e.g. epoch, step, rank.

    Example:
        >>> derive_seed(0, "shuffle", 3) == derive_seed(0, "shuffle", 3) != derive_seed(0, "shuffle", 4)
        True
    """
    digest = blake2b(repr((seed, purpose, *indices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))
