"""Fields that write to memory which is not theirs: to their state, or to a slope that they gave before.

Their numbers would be wrong without a word. Torch counts the changes of every tensor, which costs nothing to read.
"""

from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor

from sciml.solvers.linear.derivatives import transformed


class Kept:
    """A tensor that may not change.

    A view shares its count with whatever else its memory holds, so that its values are compared where that has changed.
    Others are held weakly: a slope that is new every time is free to go, one that is given again is alive by itself.
    """

    def __init__(self, x: Tensor):
        self.count, view = _changes(x), x._base is not None
        self.tensor = x.detach() if view else None
        self.values = x.detach().clone() if view else None
        self.ref = ref(x)

    def changed(self) -> bool:
        """Whether it did."""
        x = self.ref() if self.tensor is None else self.tensor
        if x is None or _changes(x) == self.count:
            return False
        return self.values is None or not torch.equal(x, self.values)


class Watch:
    """The initial state of a march and the slope there, neither of which may change; nothing in compiled programs."""

    def __init__(self, y0: Tensor):
        self.y0 = kept(y0)
        self.slope: Kept | None = None

    def start(self, carry: Sequence[Tensor]) -> None:
        """Note the slope, which a stepper's carry begins with where it has one."""
        self.slope = kept(carry[0]) if carry else None

    def check(self) -> None:
        """Refuse changes.

        Raises:
            ValueError: naming what the field changed.
        """
        if self.y0 is not None and self.y0.changed():
            raise ValueError(
                "term: it changes its state in place; expected one that leaves y as it is, as by y.clone()"
            )
        refuse_reuse(self.slope)


def kept(x: Tensor) -> Kept | None:
    """A tensor that may not change, or None in a compiled program or a transform of torch.func, which cannot tell."""
    return None if torch.compiler.is_compiling() or transformed() else Kept(x)


def refuse_reuse(slope: Kept | None) -> None:
    """Refuse a slope that has changed.

    Raises:
        ValueError: it has.
    """
    if slope is not None and slope.changed():
        raise ValueError("term: it writes to the tensor that it returned before; expected a new tensor every time")


def _changes(x: Tensor) -> int:
    """How often a tensor was changed in place; 0 in inference mode, where that is not counted."""
    return 0 if x.is_inference() else x._version
