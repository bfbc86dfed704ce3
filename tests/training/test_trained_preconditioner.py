from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sciml import PID, Grid, Solver, solve
from sciml.data.generate import load
from sciml.models import LearnedTwoLevel
from sciml.problems import Conduction, FiniteElements, Lognormal
from sciml.solvers import CG, Dense, Kvaerno5
from sciml.training import TrainedPreconditioner
from tests.solvers.linear.counting import Counting
from tests.solvers.linear.spd import draw

CONFIG = Path(__file__).parent / "tiny" / "preconditioner.yaml"
SPACE = FiniteElements(cells=10, coefficient=Lognormal(contrast=1e3, correlation=0.1))
PARTS = ("train", "val", "test")


def test_kvaerno_on_finite_elements_with_a_trained_preconditioner(fit, sciml, tmp_path, monkeypatch):
    """Solution and gradient are those of dense factors, one set-up serves all stages; and by its run's name."""
    fit("run", config=CONFIG)
    space, rtol = SPACE.discretise(0), 1e-4
    y0 = torch.from_numpy(np.sin(np.pi * space.points).prod(1)).requires_grad_()
    counting, control = Counting(TrainedPreconditioner("run")), PID(rtol=rtol, atol=1e-2 * rtol)
    found, direct = (
        solve(Conduction(space), y0, 0.0, 0.05, Solver(Kvaerno5(linear=linear), control))
        for linear in (CG(counting, max_iter=200), Dense())
    )
    assert (found.ys - direct.ys).abs().max() < 1e-2 * rtol * y0.abs().max()  # linear residuals are 1e-8
    to_learned, to_direct = (torch.autograd.grad(x.ys.square().sum(), y0)[0] for x in (found, direct))
    assert (to_learned - to_direct).abs().max() < 1e-2 * rtol * to_direct.abs().max()
    trials = int(found.stats.accepted + found.stats.rejected)
    assert counting.setups == trials  # which serve the gradient too
    assert counting.applications > 6 * trials  # six implicit stages and the error's filter

    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    Path("heat.yaml").write_text(yaml.safe_dump(heat("run")))
    dense = "--data.init_args.problem.init_args.linear=sciml.solvers.Dense"
    learned, dense = (load(Path(sciml("data", "generate", "heat.yaml", *x).strip())) for x in ([], [dense]))
    assert learned.fields.shape == (3, 2, 1, 49)
    assert (learned.fields - dense.fields).abs().max() < 1e-2 * rtol * dense.fields.abs().max()  # ten roundings


def heat(run: str) -> dict:
    """A configuration whose problem's solver names the preconditioner of a run."""
    preconditioner = {"class_path": "sciml.training.TrainedPreconditioner", "init_args": {"run": run}}
    linear = {"class_path": "sciml.solvers.CG", "init_args": {"preconditioner": preconditioner}}
    space = {"class_path": "sciml.problems.FiniteElements", "init_args": {"cells": 8}}
    problem = {"class_path": "sciml.problems.HeatConduction", "init_args": {"space": space, "linear": linear}}
    net = {"class_path": "sciml.models.FNO", "init_args": {"in_channels": 1, "out_channels": 1, "modes": [2]}}
    return {
        "model": {"class_path": "sciml.training.OperatorModule", "init_args": {"net": net}},
        "data": {"class_path": "sciml.data.OperatorData", "init_args": {"problem": problem, **dict.fromkeys(PARTS, 1)}},
    }


def test_gradients_through_implicit_steps_with_a_learned_preconditioner():
    """To the entries of the stiffness, symmetric, and to the initial state; the weights take no part."""
    torch.manual_seed(0)
    net = LearnedTwoLevel(doublings=2)
    with torch.no_grad():
        for last in (net.network.edge_out, net.pair_out, net.network.ends):
            last.weight.mul_(20)
    space = FiniteElements(cells=4, coefficient=Lognormal(contrast=50.0, correlation=0.2)).discretise(0)
    term = Conduction(space)
    up = term.stiffness.compressed.turned[2]
    solver = Solver(Kvaerno5(linear=CG(net, rtol=1e-13), rtol=1e-12, atol=1e-14), Grid(n=2))

    def end(values, y0):
        return solve(term, y0, 0.0, 0.02, solver, args=((values + values[up]) / 2,)).ys

    values = term.stiffness.compressed.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (values, draw(9).requires_grad_()), fast_mode=True)  # in random directions
    end(values, draw(9)).sum().backward()
    assert all(weight.grad is None for weight in net.parameters())


def test_run_that_has_no_preconditioner_is_told(fit, sciml):
    with pytest.raises(FileNotFoundError, match="run: no checkpoint 'nowhere'; has training started"):
        TrainedPreconditioner("nowhere")
    Path("solve.yaml").write_text(yaml.safe_dump(heat("nowhere")))
    assert "run: no checkpoint 'nowhere'" in sciml("solve", "solve.yaml", code=2)
    with pytest.raises(ValueError, match=r"run: expected a run folder or a checkpoint, 'solve.yaml' is neither"):
        TrainedPreconditioner("solve.yaml")
    fit("other")
    with pytest.raises(ValueError, match=r"names classes from elsewhere: tiny\.Net"):
        TrainedPreconditioner("other")
    fit("plain", config=CONFIG.with_name("latent_ode.yaml"))
    expected = "run: expected one that trained a LearnedPreconditioner, 'plain' has trained a NormalizedLatent"
    with pytest.raises(ValueError, match=expected):
        TrainedPreconditioner("plain")
