import pytest
import torch

from sciml import Solver, solve
from sciml.solvers import (
    PID,
    RK4,
    SOSRI2,
    Backsolve,
    Brownian,
    Diffusive,
    ErrorEstimate,
    Grid,
    MaxStiffness,
    StepCount,
    Stiffness,
    Tsit5,
    local_heuristic,
)
from tests.solvers.systems import DTYPE, Net

KINDS = ["joint", "each"]
HEURISTICS = [ErrorEstimate(), StepCount(), Stiffness(), MaxStiffness()]


def start(b: int = 3) -> torch.Tensor:
    return torch.rand(b, 2, dtype=DTYPE, generator=torch.Generator().manual_seed(0))


class Watched:
    """A field that keeps the times of its evaluations."""

    def __init__(self, field: torch.nn.Module):
        self.field, self.times = field, []

    def __call__(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.times.append(t.reshape(-1) if t.ndim else t)
        return self.field(t, y)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heuristic", HEURISTICS, ids=lambda h: type(h).__name__)
def test_step_is_the_first_that_a_solve_tries(heuristic: ErrorEstimate, kind: str, back: bool):
    solver = Solver(Tsit5(), PID(1e-6, 1e-8), lanes=kind)
    t, t1 = (torch.tensor([0.7, 0.2, 0.4], dtype=DTYPE) if kind == "each" else 0.3), (-1.0 if back else 3.0)
    local, whole = Watched(Net()), Watched(Net())
    found = local_heuristic(heuristic, local, t, start(), solver, t1=t1)
    solve(whole, start(), t, t1, solver)
    assert len(local.times) == 8  # two to begin with, six of the step
    assert torch.allclose(torch.stack(local.times), torch.stack(whole.times[:8]), rtol=1e-12)
    given = local_heuristic(heuristic, Net(), t, start(), solver, h=local.times[-1] - t)
    assert torch.allclose(found, given, rtol=1e-6)
    one = solve(Net(), start(), t, local.times[-1], Solver(Tsit5(), PID(1.0, 1.0, dt0=9.0), lanes=kind)).mesh
    assert bool((one.count == 1).all())
    step = solve(Net(), start(), t, local.times[-1], solver, mesh=one, folds={"x": heuristic}).folds["x"]
    assert torch.allclose(found, step, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heuristic", HEURISTICS, ids=lambda h: type(h).__name__)
def test_gradient_flows_to_parameters_alone(heuristic: ErrorEstimate, kind: str):
    """It is that of finite differences with the size, which is chosen automatically, kept."""
    net, solver = Net(), Solver(Tsit5(), PID(1e-3, 1e-4), Backsolve(), lanes=kind)
    y = (2 * start()).requires_grad_()
    t = torch.tensor(0.3, dtype=DTYPE, requires_grad=True)
    grads = torch.autograd.grad(local_heuristic(heuristic, net, t, y, solver, t1=2.0).sum(), net.parameters())
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(local_heuristic(heuristic, net, t, y, solver, t1=2.0).sum(), [t, y])
    watched = Watched(net)
    local_heuristic(heuristic, watched, t, y, solver, t1=2.0)
    h = watched.times[-1] - 0.3
    for weights, grad in zip(net.parameters(), grads, strict=True):
        way, kept, values = torch.randn_like(weights), weights.detach().clone(), []
        with torch.no_grad():
            for e in (1e-5, -1e-5):
                weights.copy_(kept + e * way)
                values.append(local_heuristic(heuristic, net, 0.3, y, solver, h=h).sum())
            weights.copy_(kept)
        difference = float(values[0] - values[1]) / 2e-5
        # truncation 1e-10 times third derivatives; round-off 1e-16 over the tolerance 1e-3 and over 1e-5
        assert abs(float((way * grad).sum()) - difference) < 1e-6 * max(1, abs(difference))


class Noisy(torch.nn.Module, Diffusive):
    """A net's drift, and a diffusion of each entry."""

    noise_type, calculus = "diagonal", "ito"

    def __init__(self):
        super().__init__()
        self.net, self.strength = Net(), torch.nn.Parameter(torch.tensor([0.3, 0.5], dtype=DTYPE))

    def drift(self, t: torch.Tensor, y: torch.Tensor, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.net(t, y)

    def diffuse(self, t: torch.Tensor, y: torch.Tensor, dw: torch.Tensor, args: tuple[torch.Tensor, ...]):
        return torch.sin(self.strength * y) * dw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heuristic", HEURISTICS, ids=lambda h: type(h).__name__)
def test_noisy_step_is_that_of_a_solve_on_its_path_with_the_gradient_of_differences(
    heuristic: ErrorEstimate, kind: str
):
    """Size and path, which is another one for every seed, are kept."""
    sde, solver, y = Noisy(), Solver(SOSRI2(), PID(1e-3, 1e-4), Backsolve(), lanes=kind), (2 * start()).requires_grad_()
    t, h = (torch.tensor([0.7, 0.2, 0.4], dtype=DTYPE), torch.tensor([0.1, 0.2, 0.3])) if kind == "each" else (0.3, 0.1)
    local = lambda seed: local_heuristic(heuristic, sde, t, y, solver, h=h, path=Brownian(seed=seed))  # noqa: E731
    found = local(5)
    loose = Solver(SOSRI2(), PID(1e9, 1.0, dt0=9.0), lanes=kind)
    one = solve(sde, y.detach(), t, t + h, loose, path=Brownian(seed=5)).mesh
    assert bool((one.count == 1).all())
    given = Solver(SOSRI2(), PID(1e-3, 1e-4), lanes=kind)
    step = solve(sde, y.detach(), t, t + h, given, path=Brownian(seed=5), mesh=one, folds={"x": heuristic}).folds["x"]
    assert torch.allclose(found, step, rtol=1e-9)
    assert not torch.allclose(found, local(6), rtol=1e-3)
    grads = torch.autograd.grad(found.sum(), [*sde.parameters(), y], allow_unused=True)
    assert grads[-1] is None
    for weights, grad in zip(sde.parameters(), grads[:-1], strict=True):
        way, kept, values = torch.randn_like(weights), weights.detach().clone(), []
        with torch.no_grad():
            for e in (1e-5, -1e-5):
                weights.copy_(kept + e * way)
                values.append(local(5).sum())
            weights.copy_(kept)
        difference, slope = float(values[0] - values[1]) / 2e-5, 0.0 if grad is None else float((way * grad).sum())
        assert abs(slope - difference) < 1e-6 * max(1, abs(difference))  # as above


def test_a_tree_of_states_is_one_state():
    y, solver = start(), Solver(Tsit5(), PID(1e-6, 1e-8))
    net = Net()
    parts = lambda t, y: tuple(net(t, torch.stack(y, -1)).unbind(-1))  # noqa: E731
    found = local_heuristic(ErrorEstimate(), parts, 0.0, tuple(y.unbind(-1)), solver, t1=1.0)
    assert torch.allclose(found, local_heuristic(ErrorEstimate(), net, 0.0, y, solver, t1=1.0), rtol=1e-9)


@pytest.mark.parametrize(
    ("solver", "heuristic", "ends", "said"),
    [
        (Solver(), ErrorEstimate(), {}, "t1, h: expected exactly one of them"),
        (Solver(), ErrorEstimate(), {"t1": 1.0, "h": 0.1}, "t1, h: expected exactly one of them"),
        (Solver(RK4(), Grid(n=2)), Stiffness(), {"t1": 1.0}, "t1: Grid has no first size of its own"),
        (Solver(RK4(), Grid(n=2)), ErrorEstimate(), {"h": 0.1}, "heuristic: ErrorEstimate is in units"),
        (Solver(), ErrorEstimate(), {"h": 0.1, "path": Brownian(seed=1)}, "path: Tsit5 reads no noise"),
    ],
)
def test_mistakes_are_named(solver: Solver, heuristic: ErrorEstimate, ends: dict[str, float], said: str):
    with pytest.raises(ValueError, match=said):
        local_heuristic(heuristic, Net(), 0.0, start(), solver, **ends)
    with pytest.raises(ValueError, match=r"path: SOSRI2 expects one, as Brownian\(seed=0\), got None"):
        local_heuristic(ErrorEstimate(), Noisy(), 0.0, start(), Solver(SOSRI2()), h=0.1)
