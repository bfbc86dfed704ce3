"""Moving digits: whole, straight between walls, at random behind them, and a function of seed and part."""

import math

import pytest
import torch

from sciml.data import MovingDigits
from sciml.data.moving_digits import bounced, render


def test_digits_fly_straight_and_leave_walls_at_random():
    rng = torch.Generator().manual_seed(0)
    paths = bounced(2000, 12, 10.0, (1.0, 2.0), rng)
    assert float(paths.min()) >= 0
    assert float(paths.max()) <= 10
    steps = paths.diff(dim=1)
    free = ((paths[:, 1:] > 0) & (paths[:, 1:] < 10)).all(-1)  # steps that meet no wall at their end
    lengths = steps.norm(dim=-1)[free]
    assert float(lengths.min()) > 1 - 1e-5
    assert float(lengths.max()) < 2 + 1e-5
    straight = free[:, :-1] & free[:, 1:]
    assert torch.allclose(steps[:, :-1][straight], steps[:, 1:][straight], atol=1e-5)  # of places up to 10 in float32
    left = (paths[:, 1:-1, 0] == 0) & (paths[:, 1:-1, 1] > 0) & (paths[:, 1:-1, 1] < 10) & free[:, 1:]
    angles = torch.atan2(steps[:, 1:, 1][left], steps[:, 1:, 0][left])
    assert float(angles.abs().max()) < math.pi / 2
    wide = math.pi / math.sqrt(12)  # the deviation of angles that are uniform on the half circle
    assert abs(float(angles.mean())) < 4 * wide / math.sqrt(len(angles))
    # steps along a wall end in a corner more often than others, and are left out; by less than this
    assert float(angles.std()) == pytest.approx(wide, rel=0.1)


def test_a_digit_is_drawn_whole_wherever_it_is():
    pictures = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    paths = 12 * torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(1))
    frames = render(pictures, paths, 20)
    assert torch.allclose(frames.sum((-1, -2)), pictures.sum((-1, -2))[:, None].expand(5, 7), rtol=1e-5)
    places = torch.arange(20.0)
    for axis in (0, 1):  # the centre of mass moves with the place
        centre = (frames.sum(-1 - axis if axis == 0 else -2) * places).sum(-1) / frames.sum((-1, -2))
        own = (pictures.sum(-1 - axis if axis == 0 else -2) * torch.arange(8.0)).sum(-1) / pictures.sum((-1, -2))
        assert torch.allclose(centre, own[:, None] + paths[..., axis], rtol=1e-4)


def test_parts_are_functions_of_the_seed_and_of_other_digits():
    small = {"train": 6, "val": 3, "test": 3, "frames": 4}
    one, again, other = (MovingDigits(**small, data_seed=seed) for seed in (0, 0, 1))
    for data in (one, again, other):
        data.setup("fit")
    (videos,) = one.part("train")
    assert videos.shape == (6, 4, 1, 20, 20)
    assert float(videos.min()) >= 0
    assert float(videos.max()) <= 1
    assert torch.equal(videos, again.part("train")[0])
    assert not torch.equal(videos, other.part("train")[0])
    assert not torch.equal(videos[:3], one.part("test")[0])
    two = MovingDigits(**small, digits=2)
    two.setup("fit")
    assert float(two.part("train")[0].sum()) > 1.3 * float(videos.sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size: expected more than the 8 pixels of a digit, got 8"),
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"speeds": (2.0, 1.0)}, "speeds: expected a smallest and a largest speed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        MovingDigits(**options).setup("fit")  # pyrefly: ignore
