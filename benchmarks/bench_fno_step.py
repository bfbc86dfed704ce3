"""CPU time of one training step of the Fourier neural operator beside neuraloperator's, eager, in float32.

A step is forward, backward and AdamW, on 20 samples, with 64 channels, 4 layers and 17 wavenumbers per axis. "plain"
compares the same formula, v <- gelu(K v + A v + a), in both libraries (on other axes than the last the peer keeps
2 * 16 wavenumbers, ours 2 * 17 - 1); "default" is the peer as it comes, with a channel MLP in each layer. The steps are
timed in turn. Needs `pip install neuraloperator==2.0.0`.
"""

from collections.abc import Callable

import torch
from torch import nn

from sciml.models.fno import FNO
from timing import interleaved

SIZES = {"1-D 256": (256,), "2-D 64x64": (64, 64)}
BATCH, WIDTH, LAYERS, MODES, REPEATS = 20, 64, 4, 16, 25
PLAIN = {"use_channel_mlp": False, "positional_embedding": None, "lifting_channel_ratio": 0}


def cases() -> list[str]:
    return [f"{size} {kind}" for size in SIZES for kind in ("plain", "default")]


def run(case: str, seed: int) -> dict[str, float | str]:
    from neuralop.models import FNO as Peer

    size, kind = case.rsplit(" ", 1)
    sizes = SIZES[size]
    torch.manual_seed(seed)
    peer = Peer(
        n_modes=tuple(2 * MODES for _ in sizes),
        in_channels=1,
        out_channels=1,
        hidden_channels=WIDTH,
        n_layers=LAYERS,
        **(PLAIN if kind == "plain" else {}),
    )
    ours = FNO(1, 1, modes=[MODES + 1 for _ in sizes], width=WIDTH, layers=LAYERS)
    steps = {"sciml": step(ours, sizes), "neuralop": step(peer, sizes)}
    times = {name: timing.cpu.median for name, timing in interleaved(steps, REPEATS, warmup=3).items()}
    return {
        "sciml CPU ms": 1e3 * times["sciml"],
        "neuralop CPU ms": 1e3 * times["neuralop"],
        "ratio": times["neuralop"] / times["sciml"],
    }


def step(net: nn.Module, sizes: tuple[int, ...]) -> Callable[[], None]:
    """One step of training on random fields."""
    x, y = torch.randn(2, BATCH, 1, *sizes)
    optimiser = torch.optim.AdamW(net.parameters())

    def train() -> None:
        optimiser.zero_grad()
        (net(x) - y).square().mean().backward()
        optimiser.step()

    return train
