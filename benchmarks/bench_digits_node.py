"""Test accuracy on scikit-learn's digits with and without an ODE in the network.

"neural ODE" is the configuration `examples/digits_node`; "no ODE" is the same network with y + f(y) in the place of the
flow of f: a residual block of the same parameters. The seed is that of the weights, the batches and the split into
70 % to train, 10 % to validate and 20 % to test on; the last weights are tested.
"""

import time
from pathlib import Path

import lightning
import torch
import yaml
from torch import Tensor, nn

from sciml.data import Digits
from sciml.training import ODEClassifierModule
from sciml.training.load import build_module
from sciml.training.trainer_cli import quiet

CONFIG = Path(__file__).parents[1] / "examples" / "digits_node" / "config.yaml"


class Residual(nn.Module):
    def __init__(self, field: nn.Module):
        super().__init__()
        self.field = field

    def forward(self, y: Tensor) -> Tensor:
        return y + self.field(torch.zeros((), dtype=y.dtype), y)


def cases() -> list[str]:
    return ["neural ODE", "no ODE"]


def run(case: str, seed: int) -> dict[str, float | str]:
    config = yaml.safe_load(CONFIG.read_text())
    with quiet():
        lightning.seed_everything(seed, verbose=False)
        module = build_module(config["model"])
        assert isinstance(module, ODEClassifierModule)
        if case == "no ODE":
            module.ode = Residual(module.ode.field)
        data = Digits(**config["data"]["init_args"], split_seed=seed)
        trainer = lightning.Trainer(
            **config["trainer"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.fit(module, data)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        (metrics,) = trainer.test(module, data, verbose=False)
    return {
        "test accuracy": metrics["test_accuracy"],
        "nfe": metrics.get("test_nfe", 1.0),
        "parameters": str(sum(p.numel() for p in module.parameters())),
        "wall s": wall,
        "CPU s": cpu,
    }
