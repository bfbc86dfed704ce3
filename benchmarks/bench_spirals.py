"""A neural controlled equation on series with gaps, beside a recurrent network of as many weights.

Spirals, batches, optimiser and epochs are those of the example ``spirals_ncde``. The GRU reads 0 for what is missing,
what is there and the time since the row before. Accuracy is that on the test part with the weights of the least
validation loss; CPU seconds are those of the training with its validation.
"""

import copy
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sciml import Grid, Solver
from sciml.data import Spirals
from sciml.models import MLP, MatrixField, NeuralCDE
from sciml.solvers import Heun

EPOCHS, BATCH, LR = 20, 100, 3e-3


class Recurrent(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gru = nn.GRU(5, width, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        times, values = series[..., :1], series[..., 1:]
        gaps = torch.cat([torch.zeros_like(times[:, :1]), times.diff(dim=1)], 1)
        seen = ~values.isnan()
        return self.gru(torch.cat([gaps, values.nan_to_num(0), seen.to(gaps)], -1))[1][0]


def controlled() -> nn.Module:
    field = MatrixField(MLP(8, 24, width=32, depth=1, activation="silu"), 3)
    return nn.Sequential(NeuralCDE(field, MLP(3, 8, depth=0), Solver(Heun(), Grid(n=24))), nn.Linear(8, 2))


MODELS = {"controlled": controlled, "recurrent": lambda: nn.Sequential(Recurrent(16), nn.Linear(16, 2))}


def cases() -> list[str]:
    return list(MODELS)


def run(case: str, seed: int) -> dict[str, float | str]:
    torch.set_num_threads(1)
    data = Spirals()
    data.setup("fit")
    (x, y), validation, test = (data.part(name) for name in ("train", "val", "test"))
    rows = x.flatten(0, 1)
    mean, std = rows.nanmean(0), (rows - rows.nanmean(0)).square().nanmean(0).sqrt()
    torch.manual_seed(seed)
    model = MODELS[case]()
    optimizer = torch.optim.Adam(model.parameters(), LR)
    best, least, begun = model.state_dict(), float("inf"), time.process_time()
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model((x[part] - mean) / std), y[part]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = cross_entropy(model((validation[0] - mean) / std), validation[1]).item()
        if loss < least:
            least, best = loss, copy.deepcopy(model.state_dict())
    spent = time.process_time() - begun
    model.load_state_dict(best)
    with torch.no_grad():
        right = (model((test[0] - mean) / std).argmax(1) == test[1]).float().mean()
    return {"weights": sum(p.numel() for p in model.parameters()), "accuracy %": 100 * float(right), "CPU s": spent}
