"""Compiled marches beside the eager one. Each program costs seconds to compile: few of them, on small fields."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sciml import solve
from sciml.errors import SolveError, Status
from sciml.solvers import PID, Bosh3, Discrete, Event, Fold, Quadrature, Solver, Stats, Steps, bound, compiled
from sciml.solvers.fast_math import EDGE, tanh
from sciml.solvers.interop import odeint
from tests.solvers.systems import DTYPE, Net, coupled

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

# The same float64 operations in another order, and with products and sums fused: some units in the last place a step.
ROUND_OFF = 1e-12


class Peak(Fold):
    """The largest component."""

    reduce = "max"
    stages = False

    def emit(self, segment: Any, saves: int | None, *inputs: Tensor) -> Tensor:
        return segment.y1.amax(-1)


FOLDS = {
    "energy": Quadrature(lambda t, y, args: args[0] * y.square().sum(-1)),
    "sizes": Stats(),
    "steps": Steps(),
    "peak": Peak(),
}


@pytest.fixture(autouse=True)
def _forgetting():
    """Programs of one test do not serve another."""
    yield
    compiled.forget()


def solver(mode: str | None, lanes: str = "joint", rtol: float = 1e-6, **kwargs: Any) -> Solver:
    return Solver(Bosh3(), PID(rtol, rtol, 0.1), Discrete("all"), lanes=lanes, compile=mode, **kwargs)


def start(b: int) -> Tensor:
    return torch.linspace(0.5, 1.5, 2 * b, dtype=DTYPE).reshape(b, 2)


def close(a: Any, b: Any, tolerance: float = ROUND_OFF) -> bool:
    leaves = lambda tree: [x for x in torch.utils._pytree.tree_leaves(tree) if x is not None]  # noqa: E731
    return all(torch.allclose(x, y, tolerance, tolerance) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_loop_gives_what_an_eager_march_gives_for_joint_lanes():
    args = (torch.tensor(2.0, dtype=DTYPE),)
    ts = torch.tensor([0.7, 0.0, 2.0, 0.71, 0.3], dtype=DTYPE)  # out of order, and several in one step
    both = [solve(coupled, start(3), 0.0, 2.0, solver(m), args=args, save_at=ts, folds=FOLDS) for m in ("loop", None)]
    loop, eager = both
    assert close(loop.ys, eager.ys)
    assert close(loop.folds, eager.folds, 1e-6)  # an error estimate is a difference that cancels
    assert close(loop.mesh, eager.mesh, 1e-9)
    assert loop.stats == eager.stats
    assert (loop.ys[2, :, 0] - start(3)[:, 0] / (1 + 4 * start(3)[:, 0])).abs().max() < 1e-5  # u' = -2 t u^2


def test_loop_serves_lanes_that_step_by_themselves_any_batch_and_any_tolerance(capsys: pytest.CaptureFixture[str]):
    torch._dynamo.reset()  # also drops all callbacks of compilations
    ts = torch.linspace(0, 2, 5, dtype=DTYPE)
    for b, rtol, t1 in ((3, 1e-6, 2.0), (2, 1e-6, 2.0), (5, 1e-8, 3.0), (4, 1e-4, 2.5)):
        ends = torch.linspace(2, t1, b, dtype=DTYPE)
        loop, eager = (
            solve(coupled, start(b), 0.0, ends, solver(m, "each", rtol), save_at=ts, folds={"steps": Steps()})
            for m in ("loop", None)
        )
        assert close(loop.ys, eager.ys)
        assert close(loop.folds, eager.folds, 1e-9)
        assert loop.mesh.count.tolist() == eager.mesh.count.tolist()
    assert capsys.readouterr().err.count("compiling") == 2  # the march and the saved states


@pytest.mark.slow
def test_batches_of_a_training_run_compile_once(capsys: pytest.CaptureFixture[str]):
    """A check of the validation, a batch of training, a short last one, and the whole validation."""
    torch._dynamo.reset()
    for b, train in ((4, False), (4, True), (3, True), (4, True), (2, False)):
        y0 = start(b).requires_grad_(train)
        ys = solve(coupled, y0, 0.0, 1.0, solver("loop")).ys
        if train:
            ys.sum().backward()
    assert (
        capsys.readouterr().err.count("compiling") == 3
    )  # two marches, one of which keeps states, and a backward pass


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("mode", "lanes"), [("loop", "each"), ("chunks", "joint")])
def test_march_goes_on_when_its_rows_are_full(mode: str, lanes: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bound, "ROWS", 8)
    ts = torch.linspace(0, 2, 9, dtype=DTYPE)
    arguments = coupled, start(3), 0.0, 2.0
    loop, eager = (solve(*arguments, solver(m, lanes), save_at=ts, folds={"steps": Steps()}) for m in (mode, None))
    assert int(eager.mesh.count.max()) > 20
    assert close(loop.ys, eager.ys)
    assert close(loop.folds["steps"], eager.folds["steps"], 1e-9)
    assert close(loop.mesh, eager.mesh, 1e-9)


@pytest.mark.usefixtures("traced")
def test_folds_of_one_class_may_have_results_of_other_shapes():
    first = lambda n: lambda t, y, args: y[:, :n]  # noqa: E731 - functions of one code
    for integrand in (lambda t, y, args: y, lambda t, y, args: y.sum(-1), first(1), first(2)):
        arguments, folds = (coupled, start(3), 0.0, 1.0), {"q": Quadrature(integrand)}
        loop, eager = (solve(*arguments, solver(mode), folds=folds).folds["q"] for mode in ("loop", None))
        assert close(loop, eager)


@pytest.mark.usefixtures("traced")
def test_a_solve_in_inference_mode_leaves_nothing_behind_for_others():
    made, y0 = solver("chunks"), start(3)
    with torch.inference_mode():
        solve(coupled, y0, 0.0, 1.0, made)
    y0.requires_grad_()
    (slope,) = torch.autograd.grad(solve(coupled, y0, 0.0, 1.0, made).ys.sum(), y0)
    (right,) = torch.autograd.grad(solve(coupled, y0, 0.0, 1.0, solver(None)).ys.sum(), y0)
    assert close(slope, right)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_progress_is_shown(lanes: str, capsys: pytest.CaptureFixture[str]):
    solve(coupled, start(3), 0.0, 1.0, solver("chunks", lanes), progress=True)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [None, "loop"])
def test_solves_within_a_compiled_function_are_one_break_of_its_graph(mode: str | None):
    made, y0, graphs = solver(mode), start(3), CompileCounterWithBackend("eager")
    step = torch.compile(lambda y: y * solve(coupled, 2 * y, 0.0, 1.0, made).ys, backend=graphs)
    assert close(step(y0), y0 * solve(coupled, 2 * y0, 0.0, 1.0, solver(None)).ys)
    assert graphs.frame_count == 2  # what is before the solve and what is after


def test_odeint_within_a_compiled_function_is_one_break_of_its_graph():
    ts, graphs = torch.linspace(0, 1, 3, dtype=DTYPE), CompileCounterWithBackend("eager")
    step = torch.compile(lambda y: 2 * odeint(lambda t, y: -y, 2 * y, ts), backend=graphs)
    assert close(step(start(3)), 4 * start(3) * (-ts).exp()[:, None, None], 1e-6)  # odeint's tolerances: 1e-7, 1e-9
    assert graphs.frame_count == 2


@pytest.mark.parametrize(("lanes", "stages"), [("joint", "lowered"), ("each", None)])
def test_backward_loop_gives_the_gradient_of_backpropagation(
    lanes: str, stages: str | None, request: pytest.FixtureRequest
):
    if stages:
        request.getfixturevalue(stages)
    net, ts = Net(), torch.linspace(0, 1, 6, dtype=DTYPE)
    grads = []
    for mode in ("loop", None):
        y0, scale = start(3).requires_grad_(), torch.tensor(1.1, dtype=DTYPE, requires_grad=True)
        end = torch.tensor(1.0, dtype=DTYPE, requires_grad=True)
        term = Scaled(net)
        found = solve(term, y0, 0.0, end, solver(mode, lanes), args=(scale,), save_at=ts * end.detach(), folds=FOLDS)
        total = found.ys.square().sum() + found.folds["energy"].sum() + found.folds["peak"].sum()
        total = total + found.folds["steps"].ys.sum()
        grads.append(torch.autograd.grad(total, [y0, scale, end, *net.parameters()]))
    assert close(*grads, 1e-10)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


class Plainly(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Scaled(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return self.net(t, y) * args[0]


@pytest.mark.usefixtures("traced")
def test_a_repeated_solve_sees_what_has_changed():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).to(DTYPE).eval()
    field, method, ts = Plainly(net), solver("loop", rtol=1e-4), torch.tensor([0.2, 0.9], dtype=DTYPE)

    def agree(y0: Tensor, t1: float = 1.0) -> bool:
        both = [solve(field, y0, 0.0, t1, m, save_at=ts).ys for m in (method, solver(None, rtol=1e-4))]
        return close(*both)

    assert agree(start(2))
    assert agree(start(2) + 1)  # another state
    assert agree(start(2).mT)  # in other places
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    assert agree(start(2))
    ts.mul_(0.5)
    assert agree(start(2))
    assert agree(start(2), 1.5)
    net.train()
    with pytest.raises(ValueError, match="Dropout"):
        agree(start(2), 1.5)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_gradient_of_a_repeated_solve_goes_to_the_weights_that_it_meets():
    field, method = Plainly(nn.Sequential(nn.Linear(2, 2), nn.Tanh()).to(DTYPE)), solver("loop", rtol=1e-4)
    for _ in range(3):
        grads = []
        for m in (method, solver(None, rtol=1e-4)):
            y0 = start(2).requires_grad_()
            end = solve(field, y0, 0.0, 1.0, m).ys.square().sum()
            grads.append(torch.autograd.grad(end, [y0, *field.parameters()]))
        assert close(*grads)
        field.net[0].weight = nn.Parameter(2 * field.net[0].weight.detach())  # another object


@pytest.mark.usefixtures("traced")
def test_second_gradient_is_refused_as_of_every_replay():
    y0 = start(2).requires_grad_()
    end = solve(Net(), y0, 0.0, 1.0, solver("loop")).ys.sum()
    (grad,) = torch.autograd.grad(end, [y0], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_field_that_cannot_be_traced_falls_back_and_says_so_once(recwarn: pytest.WarningsRecorder):
    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y if float(y.sum()) > 0 else y

    for _ in range(2):
        found = solve(field, start(2), 0.0, 1.0, solver("loop"))
        assert close(found.ys, solve(field, start(2), 0.0, 1.0, solver(None)).ys)
    told = [str(w.message) for w in recwarn if "cannot be compiled" in str(w.message)]
    assert len(told) == 2
    assert "as one loop and goes on as chunks" in told[0]
    assert "as chunks and goes on without compiling" in told[1]


@pytest.mark.usefixtures("traced")
def test_failures_are_those_of_an_eager_march():
    def blowup(t: Tensor, y: Tensor) -> Tensor:  # infinite at t = 1 / y0
        return y * y

    y0 = torch.tensor([[0.5], [2.0]], dtype=DTYPE)
    ended = [solve(blowup, y0, 0.0, 1.0, solver(m, "each"), throw=False) for m in ("loop", None)]
    assert [s.status.tolist() for s in ended] == [[Status.DONE, Status.DT_UNDERFLOW]] * 2
    assert abs(ended[0].ys[0, 0].item() - 1.0) < 1e-5
    with pytest.raises(SolveError, match=r"sample 1 at t=0\.5"):
        solve(blowup, y0, 0.0, 1.0, solver("loop", "each"))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_events_and_resets_are_met_between_loops(lanes: str):
    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], torch.full_like(y[..., 1], -9.81)], -1)

    axis = -1 if lanes == "each" else (0, 1)
    floor = Event(lambda t, y, args: y[..., :1].amin(axis), -1, reset=lambda t, y, args: y * y.new_tensor([1.0, -0.8]))
    apex = Event(lambda t, y, args: y[..., 1:].amax(axis), -1, terminate=False)
    y0 = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=DTYPE)[: 2 if lanes == "each" else 1].requires_grad_()
    ts, events = torch.linspace(0, 1.5, 7, dtype=DTYPE), {"floor": floor, "apex": apex}
    loop, eager = (
        solve(fall, y0, 0.0, 1.5, solver(m, lanes), save_at=ts, events=events, folds={"steps": Steps()})
        for m in ("loop", None)
    )
    assert int(eager.events["floor"].count.max()) >= 2
    assert close(loop.ys, eager.ys)
    assert close(loop.mesh, eager.mesh)
    assert close(loop.folds, eager.folds)
    for name in events:
        assert torch.allclose(loop.events[name].ts, eager.events[name].ts, equal_nan=True)
    grads = [torch.autograd.grad(found.ys.sum(), [y0]) for found in (loop, eager)]
    assert close(*grads, 1e-9)


@pytest.mark.usefixtures("traced")
def test_weights_that_change_are_seen():
    net = Net()
    for _ in range(2):
        found = [solve(net, start(2), 0.0, 1.0, solver(m)).ys.detach() for m in ("loop", None)]
        assert close(*found)
        with torch.no_grad():
            net.outer.mul_(2)
    net.outer = nn.Parameter(net.outer.detach() / 8)
    assert close(*(solve(net, start(2), 0.0, 1.0, solver(m)).ys.detach() for m in ("loop", None)))


@pytest.mark.usefixtures("traced")
def test_compiled_solve_resumes():
    whole = solve(coupled, start(2), 0.0, 2.0, solver(None))
    half = solve(coupled, start(2), 0.0, 1.0, solver("loop"))
    rest = solve(coupled, None, None, 2.0, solver("loop"), resume=half)
    assert torch.allclose(rest.ys, whole.ys, rtol=1e-5)
    assert int(rest.stats.accepted) < int(whole.stats.accepted)


def test_rational_tanh_is_good_to_a_few_units_in_the_last_place():
    x = torch.cat([torch.linspace(-12, 12, 400_001), torch.logspace(-8, 1, 20_000), torch.tensor([EDGE])])
    exact = x.double().tanh()
    off = (tanh(x).double() - exact).abs() / exact.abs().clamp_min(1e-30)
    assert off.max() < 3.4e-7  # as fitted; round-off is 6e-8


def test_fast_math_changes_float32_results_by_round_off_only():
    torch.manual_seed(0)
    net = Plain()
    grads, ends = [], []
    for fast in (True, False):
        y0 = start(8).float().requires_grad_()
        method = Solver(Bosh3(), PID(1e-3, 1e-3), compile="loop" if fast else None, fast_math=fast)
        end = solve(net, y0, 0.0, 1.0, method).ys
        ends.append(end.detach())
        grads.append(torch.autograd.grad(end.square().sum(), [y0, *net.parameters()]))
    assert close(*ends, 1e-4)  # round-off, and what it moves the ends of steps by: less than rtol
    assert close(*grads, 1e-3)


def test_fast_math_leaves_float64_alone():
    y0 = start(8)
    ends = [
        solve(
            lambda t, y: y.sin().tanh(), y0, 0.0, 1.0, Solver(Bosh3(), lanes="each", compile=mode, fast_math=bool(mode))
        )
        for mode in ("loop", None)
    ]
    assert torch.equal(*(end.stats.accepted for end in ends))
    assert close(*(end.ys for end in ends), 1e-12)


def test_wrong_modes_are_refused():
    with pytest.raises(ValueError, match="compile: expected None, 'loop' or 'chunks', got 'jit'"):
        Solver(compile="jit")
    with pytest.raises(ValueError, match="fast_math: expected compile='loop' or 'chunks' with it"):
        Solver(fast_math=True)
