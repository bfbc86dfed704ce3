"""A progress bar over the span of a solve."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from sciml.solvers.state import State


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[State], None]]:
    """A function to call after every trial; its bar follows the slowest lane. Silent unless ``shown``."""
    if not shown:
        yield lambda s: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=100.0, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:

        def tick(s: State) -> None:
            bar.n = 100 * float(np.min(s.theta))
            bar.set_postfix(steps=int(np.max(s.accepted)), refresh=False)
            bar.update(0)

        yield tick
        bar.n = 100.0
