"""Whether an iteration may end before its last round."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sciml.solvers.transforms import holds


def over(reached: Tensor) -> bool:
    """Whether all are there; False of a compiled program, which does not ask, and of fakes, which cannot tell."""
    return _known(reached) and holds(reached)


def some(lost: Tensor) -> bool:
    """Whether one is lost; False likewise."""
    return _known(lost) and not holds(~lost)


def _known(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and not isinstance(x, FakeTensor)
