import pytest
import torch

from sciml.data import Collocation
from sciml.data.collocation import Block

CPU = torch.device("cpu")


def draw(block, epoch=0, where="domain", rank=0):
    return torch.rand(3, generator=block.generator(epoch, CPU, where, rank)).tolist()


def test_points_are_a_function_of_part_epoch_number_place_and_rank(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    block = Block("train", 2, 10, 10)
    cases = [
        draw(block),
        draw(block, epoch=1),
        draw(block, where="left"),
        draw(block, rank=1),
        draw(block._replace(number=3)),
        draw(block._replace(part="val")),
    ]
    assert draw(block) == cases[0]
    assert len(set(map(tuple, cases))) == len(cases)
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    assert draw(block) != cases[0]


def test_points_to_validate_on_stay_the_same():
    block = Block("val", 0, 10, 10)
    assert draw(block) == draw(block, epoch=5) == draw(block, rank=1)


def test_blocks_of_each_part():
    data = Collocation(points=50, boundary=7, steps=3, val=250, test=90, block=100)
    assert list(data.train_dataloader()) == [Block("train", i, 50, 7) for i in range(3)]
    held = Collocation(points=50, boundary=7, steps=5, hold=2).train_dataloader()
    assert [block.number for block in held] == [0, 0, 1, 1, 2]
    assert list(data.val_dataloader()) == [Block("val", i, n, 7) for i, n in enumerate((100, 100, 50))]
    assert list(data.test_dataloader()) == list(data.predict_dataloader()) == [Block("test", 0, 90, 7)]


@pytest.mark.parametrize("name", ["points", "boundary", "steps", "val", "test", "block", "hold"])
def test_numbers_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        Collocation(**{name: 0})
