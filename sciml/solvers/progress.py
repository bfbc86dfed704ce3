"""A progress bar over the span of a solve."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from sciml.solvers.state import State


def progress_bar(shown: bool) -> AbstractContextManager[Callable[[State], None]]:
    """A function to call after every trial; its bar follows the slowest lane. Silent unless ``shown``."""
    return _bar() if shown else nullcontext(lambda s: None)


@contextmanager
def _bar() -> Iterator[Callable[[State], None]]:
    from tqdm.auto import tqdm

    with tqdm(total=100.0, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:

        def tick(s: State) -> None:
            bar.n = 100 * float(np.min(s.theta))
            bar.set_postfix(steps=int(np.max(s.accepted)), refresh=False)
            bar.update(0)

        yield tick
        bar.n = 100.0
