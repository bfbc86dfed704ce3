from itertools import chain

import pytest
import torch
from torch.utils.data import TensorDataset

from sciml.data import Loader

DATA = TensorDataset(torch.arange(10))


def numbers(loader):
    return [batch.tolist() for (batch,) in loader]


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    loader = Loader(DATA, 4, shuffle=True, seed=0)
    first, second = numbers(loader), numbers(loader)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second
    assert numbers(Loader(DATA, 4, shuffle=True, seed=1)) != first
    loader.set_epoch(0)
    assert numbers(loader) == first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_a_saved_position_is_that_of_the_next_batch(taken, workers):
    loader = Loader(DATA, 4, shuffle=True, workers=workers)
    expected = [*numbers(loader), *numbers(loader)]
    loader = Loader(DATA, 4, shuffle=True, workers=workers)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    resumed = Loader(DATA, 4, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    rest = numbers(resumed) + (numbers(resumed) if taken < 3 else [])
    assert rest == expected[taken:]


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_iteration_that_was_left_starts_again(shuffle):
    loader = Loader(DATA, 4, shuffle=shuffle)
    expected = numbers(Loader(DATA, 4, shuffle=shuffle))
    next(iter(loader))
    assert numbers(loader) == expected
    loader.load_state_dict({"epoch": 0, "batch": 1})
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 0, "batch": 2}
    assert numbers(loader) == expected


def test_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    numbers(Loader(DATA, 4, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_epoch(shuffle):
    ranks = [Loader(DATA, 2, shuffle=shuffle, rank=rank, world_size=3) for rank in range(3)]
    parts = [list(chain(*numbers(loader))) for loader in ranks]
    assert all(len(loader) == -(-len(part) // 2) for loader, part in zip(ranks, parts, strict=True))
    seen = list(chain(*parts))
    assert len(set(seen)) == len(seen)
    assert len(seen) == (9 if shuffle else 10)  # training needs parts of the same length


def test_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        Loader(DATA, 0)
