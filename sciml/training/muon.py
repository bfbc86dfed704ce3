"""Muon over all parameters of a module; needs `pip install "sciml-torch[optim]"`."""

from collections.abc import Iterable
from typing import Any

import pytorch_optimizer
from torch import nn


class Muon(pytorch_optimizer.Muon):
    """Orthogonalised momentum for the weight matrices, AdamW for everything else.

    Args:
        params: the parameters of a module. Matrices with more than one row and column take Muon's steps.
        lr: learning rate of the matrices.
        momentum: Nesterov momentum of the matrices.
        weight_decay: of the matrices.
        adamw_lr: learning rate of the others.
        adamw_wd: their weight decay.

    Reference:
        K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
        https://kellerjordan.github.io/posts/muon.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 3e-4,
        adamw_wd: float = 0.0,
    ):
        matrices: dict[str, Any] = {"params": [], "use_muon": True}
        others: dict[str, Any] = {"params": [], "use_muon": False}
        for p in params:
            (matrices if p.ndim > 1 and min(p.shape) > 1 else others)["params"].append(p)
        super().__init__(
            [group for group in (matrices, others) if group["params"]],
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            adamw_lr=adamw_lr,
            adamw_wd=adamw_wd,
        )
