"""A progress bar over the span of a solve."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

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
            slowest, most = (s.theta.min(), s.accepted.max()) if isinstance(s.theta, Tensor) else (s.theta, s.accepted)
            bar.n = 100 * float(slowest)
            bar.set_postfix(steps=int(most), refresh=False)
            bar.update(0)

        yield tick
        bar.n = 100.0
