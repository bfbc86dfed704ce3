"""Fields that write to memory which is not theirs: to their state, or to the slope that they gave before.

Their numbers would be wrong without a word. Torch counts the changes of every tensor, which costs nothing to read.
"""

from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor


class Watch:
    """The initial state of a march and the slope there, neither of which may change.

    The slope is held weakly: what a field gives anew is free to go, what it gives again is alive by itself.
    """

    def __init__(self, y0: Tensor):
        self.y0, self.counts = y0, [_changes(y0), 0]
        self.slope: ref[Tensor] | None = None

    def start(self, carry: Sequence[Tensor]) -> None:
        """Note the slope, which a stepper's carry begins with where it has one."""
        if carry and not torch.compiler.is_compiling():
            slope = carry[0] if carry[0]._base is None else carry[0]._base
            self.slope, self.counts[1] = ref(slope), _changes(slope)

    def check(self) -> None:
        """Refuse changes.

        Raises:
            ValueError: naming what the field changed.
        """
        if _changes(self.y0) != self.counts[0]:
            raise ValueError(
                "term: it changes its state in place; expected one that leaves y as it is, as by y.clone()"
            )
        slope = None if self.slope is None else self.slope()
        if slope is not None and _changes(slope) != self.counts[1]:
            raise ValueError("term: it writes to the tensor that it returned before; expected a new tensor every time")


def _changes(x: Tensor) -> int:
    """How often a tensor was changed in place; 0 where that is not counted: in inference mode, in compiled programs."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
