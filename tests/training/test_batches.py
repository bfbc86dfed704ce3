"""What modules that draw make of a part of the data is a function of weights and data, whatever the batches are."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sciml import Grid, Solver
from sciml.data import Moons, MovingDigits, TensorFields
from sciml.models import (
    CNF,
    MLP,
    Autonomous,
    CoordinateDiffusion,
    DiagonalSDE,
    ForecastInterpolant,
    LatentDynamics,
    LatentFSDE,
    LatentODE,
    LatentSDE,
    LatentVideo,
    NeuralSDE,
    StochasticInterpolant,
    TimeDependent,
)
from sciml.solvers import RK4, SRIW1
from sciml.training import (
    DensityModule,
    ForecastModule,
    InterpolantModule,
    LatentODEModule,
    LatentSDEModule,
    LatentVideoModule,
    NeuralSDEModule,
    ODEClassifierModule,
)
from sciml.training.trainer_cli import quiet
from tests.training.running import trainer
from tests.training.test_heads import Signs
from tests.training.tiny.tiny import Rotations


def videos(batch_size):
    return MovingDigits(size=12, frames=5, train=4, val=4, test=4, batch_size=batch_size)


def holes(batch_size):
    return Rotations(holes=True, batch_size=batch_size)


def dynamics():
    return LatentDynamics(2, 4, 8, steps=1)


def moons(batch_size):
    return Moons(train=8, val=4, test=4, batch_size=batch_size)


def signs(batch_size):
    data = Signs(batch_size)
    data.part = lambda name: tuple(x[:4] for x in Signs().part(name))
    return data


def pairs(batch_size):
    fields = torch.randn(2, 12, 1, 6, generator=torch.Generator().manual_seed(0))
    return TensorFields(*fields, train=4, val=4, test=4, batch_size=batch_size)


def flow(kind, **options):
    return kind(TimeDependent(MLP(3, 2, activation="tanh")), 2, solver=Solver(RK4(), Grid(n=4)), **options)


def plane():
    return DiagonalSDE(Autonomous(MLP(2, 2, width=8)), CoordinateDiffusion(2))


GRID = Solver(SRIW1(), Grid(n=8))
MODULES = {
    "ode": (lambda: LatentODEModule(LatentODE(2, 2, 8, solver=Solver(controller=Grid(n=8))), share=0.6), holes),
    "sde": (lambda: LatentSDEModule(LatentSDE(2, 2, 4, 8, solver=Solver(SRIW1(), Grid(n=8))), share=0.6), holes),
    "fsde": (lambda: LatentSDEModule(LatentFSDE(2, dynamics(), width=8)), holes),
    "nsde": (lambda: NeuralSDEModule(NeuralSDE(plane(), GRID)), holes),
    "classifier": (
        lambda: ODEClassifierModule(nn.Identity(), NeuralSDE(plane(), GRID), nn.Linear(2, 2), draws=3),
        signs,
    ),
    "video": (
        lambda: LatentVideoModule(LatentVideo(dynamics(), 12, features=8, width=2), observed=3, forecasts=2),
        videos,
    ),
    "forecast": (lambda: ForecastModule(ForecastInterpolant(torch.nn.Conv1d(3, 1, 1)), members=3), pairs),
    "density": (lambda: DensityModule(flow(CNF)), moons),
    "interpolant": (lambda: InterpolantModule(flow(StochasticInterpolant, diffusion=0.5)), moons),
}


@pytest.mark.parametrize("name", MODULES)
def test_metrics_and_predictions_do_not_depend_on_the_batches(tmp_path, name):
    make, data = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    found, predictions = [], []
    with quiet():
        for batch_size in (4, 3, 1):
            run, part = trainer(tmp_path), data(batch_size)
            part.prepare_data()
            part.setup("fit")
            module.fit_to(part)
            found += [run.validate(module, part, verbose=False)[0] | run.test(module, part, verbose=False)[0]]
            batches = run.predict(module, part)
            predictions.append({key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    for metrics in found:
        for stage in ("val", "test"):
            metrics.pop(f"{stage}_stiffness", None)  # of joint lanes that of a batch
    for metrics, predicted in zip(found[1:], predictions[1:], strict=True):
        assert_close(metrics, found[0], rtol=1e-4, atol=1e-5)  # float32 sums in another order
        assert_close(predicted, predictions[0], rtol=1e-4, atol=1e-5)
