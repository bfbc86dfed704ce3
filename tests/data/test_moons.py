import pytest
import torch

from sciml.data import Moons


def parts(**options):
    data = Moons(**options)
    data.setup("fit")
    return {name: data.part(name)[0] for name in ("train", "val", "test")}


def test_points_lie_on_two_half_circles():
    split = parts(train=50, val=20, test=30, noise=0.0)
    assert {name: tuple(x.shape) for name, x in split.items()} == {"train": (50, 2), "val": (20, 2), "test": (30, 2)}
    for x in split.values():
        upper, lower = x.square().sum(1) - 1, (x - torch.tensor([1.0, 0.5])).square().sum(1) - 1
        assert torch.minimum(upper.abs(), lower.abs()).max() < 1e-5  # float32
        assert x.dtype == torch.float32


def test_noise_has_its_deviation():
    x = parts(train=4000, noise=0.2)["train"]
    still = parts(train=4000, noise=0.0)["train"]
    added = x.var(0, correction=0) - still.var(0, correction=0)
    assert (added - 0.04).abs().max() < 0.03  # 4 standard errors of the variance's covariance with the noise


def test_parts_differ_and_are_a_function_of_the_seed_and_not_of_each_other():
    first, again, other = (parts(train=40, val=40, test=40, data_seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["test"], other["test"])
    assert not torch.equal(first["train"], first["val"])
    assert torch.equal(parts(train=7, val=40, test=40, data_seed=1)["val"], first["val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train": 0}, "train: expected at least 1 point, got 0"), ({"noise": -1.0}, "noise: expected a deviation")],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Moons(**options)
