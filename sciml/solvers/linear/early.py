"""Whether an iteration may end before its last round."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def over(reached: Tensor) -> bool:
    """Whether all are there; False of a compiled program, which does not ask, and of fakes, which cannot tell."""
    return not torch.compiler.is_compiling() and not isinstance(reached, FakeTensor) and bool(reached.all())
