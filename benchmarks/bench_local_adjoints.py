"""The local regulariser under continuous adjoints, where the global one cannot go: does it save as many evaluations?

Digits as in `bench_regularization`, with its weight of the local, unbiased form, trained under the discrete adjoint,
under `Backsolve`, and by torchdiffeq's `odeint_adjoint` (dopri5) with `local_heuristic` at a state that it is asked
for; "x" is relative to the discrete adjoint's. Evaluations are those of a prediction for the test part by our solver at
the same tolerance, whatever trained the field.
"""

from functools import cache

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench_regularization import METHODS, TASKS, Field, data
from sciml import PID, Solver, Tsit5, solve
from sciml.models import NeuralODE
from sciml.solvers import Backsolve, ErrorEstimate, local_heuristic

TASK, METHOD, TOLERANCE = "digits", "local, unbiased", 1e-5
SOLVER = Solver(Tsit5(), PID(TOLERANCE, TOLERANCE))


class Torchdiffeqs(nn.Module):
    """The solve and its penalty by torchdiffeq's adjoint; draws are those of `SolverRegularizer`."""

    def __init__(self, field: nn.Module):
        super().__init__()
        self.field, self.progress = field, 0.0
        self.regularizer = METHODS[METHOD](1.0)

    def forward(self, y0: Tensor) -> Tensor:
        t = torch.rand((), dtype=torch.float64).to(y0)
        ts = torch.stack([torch.zeros_like(t), t, torch.ones_like(t)])
        _, middle, end = torchdiffeq.odeint_adjoint(self.field, y0, ts, rtol=TOLERANCE, atol=TOLERANCE)
        penalty = local_heuristic(ErrorEstimate(), self.field, t, middle, SOLVER, t1=1.0)
        self.penalty = self.regularizer.weight_at(self.progress) * penalty
        return end

    def take_penalty(self) -> Tensor:
        return self.penalty


def cases() -> list[str]:
    return ["none", "discrete", "Backsolve", "odeint_adjoint"]


@cache
def result(case: str, seed: int) -> dict[str, float]:
    """Accuracy and evaluations on the test part."""
    hidden, batch, epochs, lr, *_ = TASKS[TASK]
    (x, y), test = data(TASK)
    torch.manual_seed(seed)
    field, head = Field(x.shape[1], hidden), nn.Linear(x.shape[1], 10)
    regularizer = None if case == "none" else METHODS[METHOD](1.0)
    solver = Solver(Tsit5(), SOLVER.controller, Backsolve()) if case == "Backsolve" else SOLVER
    own = NeuralODE(field, solver, regularizer=regularizer)
    model = Torchdiffeqs(field) if case == "odeint_adjoint" else own
    optimizer = torch.optim.Adam([*field.parameters(), *head.parameters()], lr)
    done, steps = 0, epochs * (len(x) // batch)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            model.progress = done / steps
            loss, penalty = cross_entropy(head(model(x[rows])), y[rows]), model.take_penalty()
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            optimizer.step()
            done += 1
    with torch.no_grad():
        solution = solve(field, test[0], 0.0, 1.0, SOLVER)
        right = (head(solution.ys).argmax(1) == test[1]).float().mean()
    return {"accuracy %": 100 * float(right), "NFE": float(solution.stats.nfe)}


def run(case: str, seed: int) -> dict[str, float | str]:
    torch.set_num_threads(1)
    found = result(case, seed)
    return {**found, "NFE x": found["NFE"] / result("discrete", seed)["NFE"]}
