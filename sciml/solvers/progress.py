"""A progress bar over the span of a solve."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from sciml.solvers.state import State


def progress_bar(shown: bool) -> AbstractContextManager[Callable[[State], None]]:
    """A function to call after every trial; its bar follows the slowest lane. Silent unless ``shown``."""
    return _bar() if shown else nullcontext(lambda s: None)


@contextmanager
def _bar() -> Iterator[Callable[[State], None]]:
    from tqdm.auto import tqdm

    with tqdm(total=100.0, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:

        def tick(s: State) -> None:
            bar.n = 100 * torch.as_tensor(s.theta).min().item()
            bar.set_postfix(steps=torch.as_tensor(s.accepted).max().item(), refresh=False)
            bar.update(0)

        yield tick
        bar.n = 100.0
