import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciml import Discrete, Solver, Status, solve
from sciml.solvers import ETDRK4, PID, RK4, Bosh3, Dopri5, Dopri8, Event, Grid, Heun, Quadrature, Steps, Tsit5
from tests.solvers.systems import DTYPE, Linked

KINDS = ["joint", "each"]
ADJOINTS = [Discrete("graph"), Discrete("all"), Discrete("every", 3)]


def name(adjoint: Discrete) -> str:
    return adjoint.store + (str(adjoint.every) if adjoint.every else "")


def row(*numbers: float, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


# Jumps


def turning(t: Tensor, y: Tensor, args: tuple[Tensor, ...] = ()) -> Tensor:
    rate = args[0] if args else 1.0
    return rate * torch.stack([-y[..., 1], y[..., 0]], -1)


def to_circle(t: Tensor, y: Tensor, key: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A projection to the unit circle."""
    return y / y.norm(dim=-1, keepdim=True), torch.ones_like(key, dtype=torch.bool)


class Push(nn.Module):
    """Every third step is followed by a push with a weight."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(row(0.7).squeeze())

    def forward(self, t: Tensor, y: Tensor, key: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        changed = key % 3 == 2
        pushed = y * self.w + args[0] * t.reshape(t.shape if t.ndim == 0 else (-1, 1)).cos()
        return torch.where(changed.reshape(changed.shape + (1,) * (y.ndim - changed.ndim)), pushed, y), changed


@pytest.mark.parametrize("stepper", [Tsit5(), RK4()])
@pytest.mark.parametrize("kind", KINDS)
def test_projection_holds_the_invariant(kind: str, stepper: Any):
    controller = PID(1e-3, 1e-5) if stepper.adaptive else Grid(n=60)
    y0 = row(1, 0).expand(2, 2)
    t1 = row(20, 10) if kind == "each" else 20.0
    solver = Solver(stepper, controller, lanes=kind)
    free = solve(turning, y0, 0.0, t1, solver)
    s = solve(turning, y0, 0.0, t1, solver, jumps=(to_circle,), folds={"nodes": Steps()})
    assert (free.ys.norm(dim=-1) - 1).abs().max() > 1e-5
    assert (s.ys.norm(dim=-1) - 1).abs().max() < 1e-15
    assert (
        s.ys - torch.stack([torch.as_tensor(t1, dtype=DTYPE).cos(), torch.as_tensor(t1, dtype=DTYPE).sin()], -1)
    ).abs().max() < 0.1
    with torch.no_grad():
        again = solve(turning, y0, 0.0, t1, solver, jumps=(to_circle,), mesh=s.mesh)
    assert torch.equal(again.ys, s.ys)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
@pytest.mark.parametrize("controller", [PID(1e-4, 1e-6), Grid(n=10)], ids=["pid", "grid"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_jumps_are_finite_differences_on_the_frozen_mesh(kind: str, controller: Any, adjoint: Discrete):
    push = Push()
    y0 = torch.stack([row(1.0, 0.2), row(-0.5, 0.9)]).requires_grad_()
    rate, t1 = row(1.3)[0].requires_grad_(), (row(2.0, 5.0) if kind == "each" else row(4.0)[0]).requires_grad_()
    event = Event(lambda t, y, args: (y if kind == "each" else y[0])[..., 0] - 0.1, terminate=False)
    options = {
        "jumps": (push, to_circle),
        "save_at": row(0.3, 1.1, 1.9),
        "folds": {"q": Quadrature(lambda t, y, args: y.square()), "nodes": Steps()},
        "events": event,
    }
    solver = Solver(Tsit5(), controller, adjoint, lanes=kind)
    first = solve(turning, y0, 0.0, t1, solver, args=(rate,), **options)

    def weighted(y0: Tensor, rate: Tensor, t1: Tensor, w: Tensor) -> Tensor:
        s = solve(turning, y0, 0.0, t1, solver, args=(rate,), mesh=first.mesh, **options)
        met = s.events[0].ts
        found = (s.ys, s.folds["q"], s.folds["nodes"].ys, s._y, met[~met.isnan()])
        weights = (1 + torch.arange(x.numel(), dtype=DTYPE).reshape(x.shape) * 0.37 for x in found)
        return torch.stack([(x * w.sin()).sum() for x, w in zip(found, weights, strict=True)])

    # central differences of 1e-6: truncation 1e-12 times third derivatives, round-off 1e-10 times the sums
    assert torch.autograd.gradcheck(weighted, (y0, rate, t1, push.w), eps=1e-6, atol=1e-6, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_jumps_see_trees(kind: str):
    lanes = (2,) if kind == "each" else ()

    def jump(t: Tensor, y: Any, key: Tensor, args: tuple[Tensor, ...]) -> Any:
        assert t.shape == key.shape == lanes
        return {"a": y["a"] + 1}, torch.ones(lanes, dtype=torch.bool)

    y0 = {"a": torch.zeros(*lanes, 3, dtype=DTYPE)}
    s = solve(lambda t, y: {"a": 0 * y["a"]}, y0, 0.0, 1.0, Solver(RK4(), Grid(n=5), lanes=kind), jumps=[jump])
    assert bool((s.ys["a"] == 5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_sample_at_rest_does_not_jump(kind: str):
    count = lambda t, y, key, args: (y + 1, torch.ones_like(key, dtype=torch.bool))  # noqa: E731
    wave = lambda t, y: 0 * y + (3 * t).sin()  # noqa: E731
    t1 = row(1.0, 5.0) if kind == "each" else 5.0
    y0 = torch.zeros(2, 1, dtype=DTYPE, requires_grad=True)
    for adjoint in ADJOINTS:
        s = solve(wave, y0, 0.0, t1, Solver(adjoint=adjoint, lanes=kind), jumps=(count,))
        steps = s.stats.accepted.reshape(-1, 1)
        drift = (1 - (3 * torch.as_tensor(t1, dtype=DTYPE)).cos()) / 3
        assert (s.ys - steps - drift.reshape(-1, 1)).abs().max() < 1e-3  # rtol 1e-4
        with torch.no_grad():
            again = solve(wave, y0, 0.0, t1, Solver(lanes=kind), jumps=(count,), mesh=s.mesh)
        assert (again.ys - s.ys).abs().max() < 1e-12


def test_jump_that_is_none_is_named():
    with pytest.raises(
        ValueError, match=r"jumps: expected a state of shape \(2,\) of torch.float64 and changed of shape \(\)"
    ):
        solve(turning, row(1, 0), 0.0, 1.0, jumps=(lambda t, y, key, args: (y[:1], torch.tensor(True)),))
    with pytest.raises(ValueError, match=r"changed of shape \(2,\) of torch.bool, got .* and \(\) of"):
        solve(
            turning,
            row(1, 0).expand(2, 2),
            0.0,
            1.0,
            Solver(lanes="each"),
            jumps=(lambda t, y, key, args: (y, torch.tensor(True)),),
        )


@pytest.mark.parametrize("kind", ["joint", "each"])
@pytest.mark.parametrize("controller", [PID(), Grid(n=4)])
def test_jump_to_where_the_state_is_not_finite_fails_there(kind: str, controller: Any):
    def lose(t: Tensor, y: Tensor, key: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        late = (t.reshape(key.shape) > 0.6).expand(key.shape)
        return torch.where(t > 0.6, torch.nan, y), late

    solver = Solver(Tsit5(), controller, lanes=kind)
    s = solve(lambda t, y: -y, row(1, 1), 0.0, 1.0, solver, jumps=[lose], throw=False)
    assert bool((s.status == Status.NON_FINITE.value).all())
    assert bool(s.ys.isfinite().all())  # the last state before the jump


def test_jump_of_an_exponential_stepper():
    double = lambda t, y, key, args: (torch.where(key == 1, 2 * y, y), key == 1)  # noqa: E731
    y0, args = row(1.0, 2.0, 3.0), (row(-1.0, -2.0, -3.0), row(0.0, 0.0, 0.0))
    s = solve(Linked(), y0, 0.0, 1.0, Solver(ETDRK4(), Grid(n=4)), args=args, jumps=(double,))
    assert (s.ys - 2 * y0 * args[0].exp()).abs().max() < 1e-14


# Stops


def gate(edges: tuple[float, ...], stiff: float = 0.0):
    """y' = cos t, plus 1 between pairs of edges, and a pull to the exact solution: known in closed form."""

    def level(t: Tensor, known: bool = False) -> Tensor:
        total = torch.zeros_like(t)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            total = total + ((t.clamp(start, end) - start) if known else ((t >= start) & (t < end)).to(t))
        return total

    def exact(t: Tensor) -> Tensor:
        return t.sin() + level(t, known=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return (t.cos() + level(t) - stiff * (y - exact(t)) + 0 * y).to(y)

    return field, exact


EDGES = (0.7, 1.3, 2.1, 2.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_field_is_seen_on_the_right_side_of_every_jump(kind: str, sign: int, dtype: torch.dtype):
    seen: list[Tensor] = []

    def constant(t: Tensor, y: Tensor) -> Tensor:
        """Piecewise constant: exact for every method that never looks over an edge."""
        seen.append(t.reshape(-1))
        return (torch.bucketize(t, torch.tensor(EDGES, dtype=t.dtype), right=True) % 2).to(y) + 0 * y

    ts = (0.0, 3.0)[::sign]
    y0 = torch.zeros(1, 1, dtype=dtype)
    jumps = torch.tensor(EDGES, dtype=DTYPE)
    s = solve(constant, y0, *ts, Solver(controller=PID(1e-3, 1e-3, jump_ts=jumps, dt0=5.0), lanes=kind))
    assert abs(abs(s.ys.item()) - 0.7) < 64 * torch.finfo(dtype).eps  # the gates are open for .6 and .1
    assert s.stats.accepted.item() == 5
    assert s.stats.rejected.item() == 0
    times = torch.cat(seen)
    for edge in EDGES:
        near = times[(times - edge).abs() < 1e-4]
        assert bool((near != torch.tensor(edge, dtype=dtype)).all())
        assert bool((near < edge).any())
        assert bool((near > edge).any())


@pytest.mark.parametrize("stepper", [Bosh3(), Dopri5(), Tsit5(), Dopri8()])
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_convergence_holds_across_jumps(kind: str, stepper: Any):
    """The work of a smooth field: a jump that a step goes over would cost rejected steps, or an error of its size."""
    field, exact = gate(EDGES, 30.0)
    errors, works = [], []
    for rtol in (1e-4, 1e-6, 1e-8):
        controller = PID(rtol, rtol, jump_ts=EDGES)
        s = solve(field, torch.zeros(1, 1, dtype=DTYPE), 0.0, 3.0, Solver(stepper, controller, lanes=kind))
        errors.append(abs(s.ys.item() - exact(row(3.0)).item()))
        works.append(s.stats.accepted.item())
        assert s.stats.rejected.item() <= 10  # as the gates open
    # errors of single steps add up over the 1/30 that the pull remembers
    assert all(error < 60 * rtol for error, rtol in zip(errors, (1e-4, 1e-6, 1e-8), strict=True))
    blind = solve(field, torch.zeros(1, 1, dtype=DTYPE), 0.0, 3.0, Solver(stepper, PID(1e-8, 1e-8), lanes=kind))
    assert works[-1] < blind.stats.accepted.item() + blind.stats.rejected.item()


@pytest.mark.parametrize("stepper", [Bosh3(), Tsit5()])
def test_fixed_steps_between_jumps_have_full_order(stepper: Any):
    """With steps of a given largest size the error falls as its power, over the edges too."""
    field, exact = gate(EDGES, 3.0)
    sizes, errors = (0.1, 0.05, 0.025, 0.0125), []
    for dt in sizes:
        controller = PID(1e3, 1e3, dt0=dt, dtmax=dt, jump_ts=EDGES)
        s = solve(field, torch.zeros(1, dtype=DTYPE), 0.0, 3.0, Solver(stepper, controller))
        errors.append(abs(s.ys.item() - exact(row(3.0)).item()))
    x, y = torch.tensor(sizes, dtype=DTYPE).log(), torch.tensor(errors, dtype=DTYPE).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert stepper.order - 0.4 < slope < stepper.order + 1


@pytest.mark.parametrize("stepper", [Heun(), RK4()])
@pytest.mark.parametrize("kind", KINDS)
def test_grids_have_full_order_across_jumps(kind: str, stepper: Any):
    """Where they are told of them; with spans of each sample's own they meet them at their own steps."""
    field, exact = gate((1.0, 2.0), 3.0)
    t1 = row(3.0, 1.5) if kind == "each" else row(3.0).squeeze()
    sizes, errors = (12, 24, 48, 96), {True: [], False: []}
    for told in errors:
        for n in sizes:
            grid = Grid(n=n, jump_ts=(2.0, 1.0, -4.0, 2.5) if told else None)
            s = solve(field, torch.zeros(2, 1, dtype=DTYPE), 0.0, t1, Solver(stepper, grid, lanes=kind))
            errors[told].append((s.ys[:, 0] - exact(t1)).abs().max().item())
    x = torch.tensor(sizes, dtype=DTYPE).log()
    slopes = {}
    for told, values in errors.items():
        y = torch.tensor(values, dtype=DTYPE).log()
        slopes[told] = -((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert stepper.order - 0.2 < slopes[True] < stepper.order + 0.6
    assert slopes[False] < 1.5


def test_a_grid_of_times_meets_its_jumps_and_their_gradients():
    field, exact = gate((1.0, 2.0), 3.0)
    ts = torch.cat([torch.linspace(0, 1, 40, dtype=DTYPE), torch.linspace(1, 3, 101, dtype=DTYPE)[1:]])
    s = solve(field, torch.zeros(1, dtype=DTYPE), 0.0, 3.0, Solver(RK4(), Grid(ts=ts, jump_ts=(1.0, 2.0))))
    assert abs(s.ys.item() - exact(row(3.0)).item()) < 1e-6  # (3 h)^4 / 120 with h = 1 / 39
    ts.requires_grad_()
    rates = row(1.0, 2.0)

    def pulled(ts: Tensor) -> Tensor:
        """The rate changes at a time that moves; the answer is exp(t_1 + 2 (t_2 - t_1))."""
        edge = ts[39]
        rate = lambda t, y: y * torch.where(t < edge, *rates)  # noqa: E731
        return solve(rate, row(1.0), 0.0, 2.0, Solver(RK4(), Grid(ts=ts, jump_ts=edge.detach()[None]))).ys.sum()

    end = pulled(ts[:90])
    (grad,) = torch.autograd.grad(end, ts)
    assert abs(end.item() - math.exp(1 + 2 * (ts[89].item() - 1))) < 1e-4
    assert abs(grad[39] + end.detach()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_jumps_of_a_grid_are_met_to_round_off(kind: str):
    """Steps are exact where the field is constant between them; 0.2 has not the place 1 / 9 in the span, in binary."""
    edges = (0.2, 0.7)
    field = lambda t, y: ((t >= edges[0]) & (t < edges[1])).to(y) + 0 * y  # noqa: E731
    y0 = torch.zeros(1, 1, dtype=DTYPE)
    for grid in (Grid(n=9, jump_ts=edges), Grid(dt=0.1, jump_ts=edges)):
        s = solve(field, y0, 0.1, 1.0, Solver(RK4(), grid, lanes=kind))
        assert abs(s.ys.item() - 0.5) < 1e-12  # of times that are 1e-15 beside the jumps
        assert torch.equal(solve(field, y0, 0.3, 0.3, Solver(RK4(), grid, lanes=kind)).ys, y0)


@pytest.mark.parametrize("kind", KINDS)
def test_jumps_within_a_step_of_a_grid_are_refused(kind: str):
    with pytest.raises(ValueError, match="jump_ts: expected times at which steps of the grid end"):
        solve(turning, row(1, 0).expand(2, 2), 0.0, 1.0, Solver(RK4(), Grid(n=4, jump_ts=[0.3]), lanes=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_end_at_the_given_times(kind: str):
    given = (0.37, 2.9, 1.001, -1.0, 5.0)  # in any order; those outside do not matter
    y0 = row(1, 0).expand(2, 2)
    t1 = row(3.0, 2.0) if kind == "each" else 3.0
    s = solve(turning, y0, 0.0, t1, Solver(controller=PID(step_ts=given), lanes=kind), folds={"nodes": Steps()})
    nodes = s.folds["nodes"].ts.reshape(-1, s.folds["nodes"].ts.shape[-1])
    for lane, end in enumerate(torch.as_tensor(t1).reshape(-1).tolist()):
        for t in (0.37, 1.001, 2.9):
            if t < end:
                assert (nodes[lane] - t).abs().min() < 1e-15 * 8
    plain = solve(turning, y0, 0.0, t1, Solver(lanes=kind))
    assert bool((s.stats.accepted <= plain.stats.accepted + 3).all())  # the step size comes back after a stop


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_discontinuities_are_right(kind: str, adjoint: Discrete):
    """The edges stay where they are; the ends of the span move."""
    y0 = torch.tensor([[0.3], [0.7]], dtype=DTYPE, requires_grad=True)
    t0, t1, w = (row(x).squeeze().requires_grad_() for x in (0.1, 2.6, 1.7))

    def field(t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        on = (torch.bucketize(t.detach().contiguous(), row(*EDGES), right=True) % 2).to(y)
        return args[0] * on - y * (1 + 0.3 * t.sin())

    solver = Solver(Tsit5(), PID(1e-9, 1e-11, jump_ts=EDGES), adjoint, lanes=kind)

    def loss(y0: Tensor, t0: Tensor, t1: Tensor, w: Tensor, solver: Solver = solver) -> Tensor:
        return solve(field, y0, t0, t1, solver, args=(w,)).ys.sin().sum()

    inputs = (y0, t0, t1, w)
    grads = torch.autograd.grad(loss(*inputs), inputs)
    for i, grad in enumerate(grads):
        ends = []
        for h in (1e-4, -1e-4):
            with torch.no_grad():
                ends.append(loss(*(x + h if i == k else x for k, x in enumerate(inputs))))
        right = (ends[0] - ends[1]) / 2e-4
        assert abs(grad.sum() - right) < 1e-5 * (1 + abs(right))  # on other meshes at rtol 1e-9; truncation 1e-8


@torch.no_grad()
def test_evaluations_at_discontinuities_are_counted():
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return torch.ones_like(y)

    for kind in KINDS:
        calls.clear()
        s = solve(counted, torch.zeros(1, 1), 0.0, 3.0, Solver(controller=PID(jump_ts=EDGES), lanes=kind))
        assert len(calls) == s.stats.nfe.item()
        calls.clear()
        s = solve(
            counted, torch.zeros(1, 1), 0.0, 3.0, Solver(lanes=kind), jumps=(lambda t, y, key, args: (y, key >= 0),)
        )
        assert len(calls) == s.stats.nfe.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_ts": [math.nan]}, "step_ts: expected finite times"),
        ({"jump_ts": 3.0}, r"jump_ts: expected finite times of shape \(k\)"),
    ],
)
def test_times_that_are_none_are_refused(options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        PID(**options)


def test_times_for_every_sample_need_lanes():
    ts = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"step_ts, jump_ts: expected times of shape \(k\), got \(2, 3\)"):
        solve(turning, row(1, 0).expand(2, 2), 0.0, 1.0, Solver(controller=PID(step_ts=ts)))
    s = solve(
        turning,
        row(1, 0).expand(2, 2),
        0.0,
        1.0,
        Solver(controller=PID(step_ts=ts), lanes="each"),
        folds={"n": Steps()},
    )
    assert ((s.folds["n"].ts[:, :, None] - ts[:, None, :]).abs().amin(1)).max() < 1e-7  # given in single precision
