import sys
import warnings
from functools import cache, partial
from itertools import product

import pytest
import torch
import torchdiffeq
import torchdiffeq._impl.odeint
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from sciml import SolveError
from sciml.solvers import interop
from sciml.solvers.interop.options import METHODS
from tests.solvers.registry import ADAPTIVE as ADAPTIVE_CASES

DTYPE = torch.float64
THEIRS = sys.modules["torchdiffeq._impl.odeint"].SOLVERS  # the function hides the module
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"]
NEWER = sorted(METHODS.keys() - THEIRS.keys())
LIBRARIES = [interop, torchdiffeq]
RTOL = 1e-6


def field(t: Tensor, y: Tensor) -> Tensor:
    return 0.3 * torch.sin(t) * y - 0.1 * y**2


def start(dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.tensor([[1.0, 0.5, -0.3], [0.2, 0.9, 1.4]], dtype=dtype)


def times(n: int = 7, dtype: torch.dtype = DTYPE, back: bool = False) -> Tensor:
    ts = torch.linspace(0.3, 2.1, n, dtype=dtype) ** 1.3  # not equidistant
    return ts.flip(0) if back else ts


@cache
def _exact(shape: tuple[int, ...], ts: tuple[float, ...]) -> Tensor:
    flow = lambda t, y: field(torch.tensor(t), torch.from_numpy(y)).numpy()  # noqa: E731
    found = solve_ivp(flow, (ts[0], ts[-1]), start().reshape(-1), "DOP853", ts, rtol=1e-12, atol=1e-13)
    return torch.from_numpy(found.y.T.copy()).reshape(len(ts), *shape)


def exact(ts: Tensor) -> Tensor:
    """The solution from `start`, by scipy."""
    return _exact(tuple(start().shape), tuple(ts.tolist()))


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE, torch.complex64, torch.complex128], ids=str)
def test_methods_agree_with_torchdiffeq(dtype: torch.dtype, back: bool):
    """Fixed grids to round-off; adaptive methods err as torchdiffeq's, or their tolerance grown by the steps."""
    y0, ts = start(dtype), times(back=back)
    eps, right = torch.finfo(dtype).eps, exact(ts)
    for method in [*FIXED, *ADAPTIVE]:
        ours, theirs = (each.odeint(field, y0, ts, method=method, rtol=RTOL, atol=RTOL) for each in LIBRARIES)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert torch.equal(ours[0], y0)
        if method in FIXED:
            assert (ours - theirs).abs().max() < 20 * eps, method  # six steps of states of size one
        else:
            allowed = max(30 * RTOL, float((theirs - right).abs().max()), 200 * eps)
            assert (ours - right).abs().max() <= allowed, method


@pytest.mark.parametrize("method", [*NEWER, "kvaerno5", "rodas5p", "gausslegendre4"])
def test_methods_that_torchdiffeq_lacks_solve(method: str):
    y0, ts = start(), times(41)
    right = exact(ts)
    errors = [
        float(
            (interop.odeint(field, y0, ts[::every], method=method, rtol=RTOL, atol=RTOL) - right[::every]).abs().max()
        )
        for every in (2, 1)
    ]
    assert errors[1] < 2e-2  # implicit Euler with steps up to .07
    assert errors[1] < max(0.6 * errors[0], 30 * RTOL)


def test_single_precision_times_and_half_precision_states_run():
    ours, theirs = (each.odeint(field, start(), times(dtype=torch.float32), method="rk4") for each in LIBRARIES)
    assert (ours - theirs).abs().max() < 1e-6  # torchdiffeq rounds its step sizes to single precision
    y0 = start(torch.bfloat16)
    ours, theirs = (each.odeint(field, y0, times(dtype=torch.float32), method="euler") for each in LIBRARIES)
    assert torch.equal(ours, theirs)


OPTIONS = [
    {"first_step": 0.01},
    {"first_step": torch.tensor(0.01), "max_step": torch.tensor(0.1)},
    {"max_step": 0.05},
    {"min_step": 0.02, "first_step": 0.01},
    {"safety": 0.7, "ifactor": 3.0, "dfactor": 0.5},
    {"ifactor": 1.0, "dfactor": 0.0, "first_step": 0.02},
    {"max_num_steps": 10_000},
    {"norm": lambda y: y.abs().max()},
    {"dtype": torch.float32},
    {"step_t": torch.tensor([0.9, 1.7, 5.0], dtype=DTYPE)},
    {"jump_t": torch.tensor([1.1], dtype=DTYPE), "step_t": torch.tensor([0.9], dtype=DTYPE)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_options_of_adaptive_methods_run_where_torchdiffeqs_do(options: dict):
    for method, dtype, back in product(ADAPTIVE, [torch.float32, DTYPE, torch.complex128], [False, True]):
        y0, ts = start(dtype), times(3, back=back)
        right = exact(ts)
        theirs, ours = (
            each.odeint(field, y0, ts, method=method, options=options, rtol=1e-3, atol=1e-3)
            for each in (torchdiffeq, interop)
        )
        # thirty times rtol, as of every adaptive stepper; more where the method's coefficients say so (`test_order`)
        allowed = 0.03 * max([case.loose for case in ADAPTIVE_CASES if str(case).lower() == method], default=1)
        assert (ours - right).abs().max() <= max(allowed, 2 * float((theirs - right).abs().max())), (
            method,
            dtype,
            back,
        )


GRIDS = [
    {"step_size": 0.07},
    {"step_size": torch.tensor(0.1), "interp": "cubic"},
    {"interp": "cubic", "step_size": 10.0},
    {"grid_constructor": lambda f, y0, t: torch.linspace(0, 1, 9, dtype=t.dtype) * (t[-1] - t[0]) + t[0]},
    {"perturb": True},
    {"perturb": True, "step_size": 0.3},
]


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # Adams in single precision
@pytest.mark.parametrize("options", GRIDS, ids=lambda options: "+".join(options))
def test_options_of_fixed_grids_agree_to_round_off(options: dict):
    if "grid_constructor" in options:  # its ends must be exact
        inner = options["grid_constructor"]
        options = {"grid_constructor": lambda f, y0, t: torch.cat([t[:1], inner(f, y0, t)[1:-1], t[-1:]])}
    for method, dtype, back in product(FIXED, [torch.float32, DTYPE, torch.complex128], [False, True]):
        y0, ts = start(dtype), times(5, back=back)
        ours, theirs = (each.odeint(field, y0, ts, method=method, options=options) for each in LIBRARIES)
        # perturbed times are 8 units in the last place aside, not 1
        assert (ours - theirs).abs().max() < 100 * torch.finfo(dtype).eps, (method, dtype, back)


def test_a_field_that_jumps_at_nodes_sees_the_nodes_themselves():
    """Controls from a table, looked up by time: one unit in the last place is another entry."""
    ts = torch.arange(60, dtype=DTYPE) * 0.1 + 0.7
    table = torch.sin(torch.arange(61, dtype=DTYPE))
    controlled = lambda t, y: table[torch.searchsorted(ts, t, right=True)] - y  # noqa: E731
    for method in ("euler", "rk4", "heun2"):
        ours, theirs = (each.odeint(controlled, torch.ones(1, dtype=DTYPE), ts, method=method) for each in LIBRARIES)
        assert (ours - theirs).abs().max() < 1e-14
    sides = {"perturb": True}
    ours, theirs = (
        each.odeint(controlled, torch.ones(1, dtype=DTYPE), ts, method="rk4", options=sides) for each in LIBRARIES
    )
    assert (ours - theirs).abs().max() < 1e-14


def test_no_step_passes_the_end():
    """torchdiffeq interpolates within a step that does."""
    seen: dict[object, list[float]] = {each: [] for each in LIBRARIES}
    for each in LIBRARIES:
        each.odeint(lambda t, y, each=each: (seen[each].append(float(t)), field(t, y))[1], start(), times())
    assert max(seen[interop]) <= float(times()[-1]) < max(seen[torchdiffeq])


def outcome(call, library) -> type:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(library)
        except Exception as error:
            return type(error)
    return type(None)


REFUSED = {
    "times increase and decrease": lambda library: library.odeint(field, start(), torch.tensor([0.0, 2.0, 1.0])),
    "times repeat": lambda library: library.odeint(field, start(), torch.tensor([0.0, 0.0])),
    "times are a list": lambda library: library.odeint(field, start(), [0.0, 1.0]),
    "times are integers": lambda library: library.odeint(field, start(), torch.tensor([0, 1])),
    "times are a matrix": lambda library: library.odeint(field, start(), times()[None]),
    "the state is a list": lambda library: library.odeint(lambda t, y: y, [start()], times()),
    "no such method": lambda library: library.odeint(field, start(), times(), method="rk5"),
    "rtol needs a gradient": lambda library: library.odeint(
        field, start(), times(), rtol=torch.tensor(1e-3, requires_grad=True)
    ),
    "one rtol of a pair": lambda library: library.odeint(lambda t, y: y, (start(), start()), times(), rtol=(1e-3,)),
    "step size and grid": lambda library: library.odeint(
        field, start(), times(), method="rk4", options={"step_size": 0.1, "grid_constructor": lambda f, y0, t: t}
    ),
    "a grid that ends early": lambda library: library.odeint(
        field, start(), times(), method="rk4", options={"grid_constructor": lambda f, y0, t: t[:-1]}
    ),
    "no such interpolation": lambda library: library.odeint(
        field, start(), times(), method="rk4", options={"interp": "spline"}
    ),
    "a time twice": lambda library: library.odeint(
        field, start(), times(), options={"step_t": torch.tensor([1.0]), "jump_t": torch.tensor([1.0])}
    ),
    "too few steps": lambda library: library.odeint(field, start(), times(2), options={"max_num_steps": 2}),
    "no steps": lambda library: library.odeint(field, start(), times(2), options={"max_num_steps": 0}),
    "no first step": lambda library: library.odeint(field, start(), times(2), options={"first_step": 0.0}),
    "no largest step": lambda library: library.odeint(field, start(), times(2), options={"max_step": 0.0}),
    "time of no dtype": lambda library: library.odeint(field, start(), times(2), options={"dtype": "double"}),
    "a pole": lambda library: library.odeint(
        lambda t, y: y**2, torch.ones(1, dtype=DTYPE), torch.tensor([0.0, 2.0], dtype=DTYPE)
    ),
    "a field of NaN": lambda library: library.odeint(lambda t, y: y * torch.nan, start(), times()),
    "an event between three times": lambda library: library.odeint(
        field, start(), times(), event_fn=lambda t, y: y.sum()
    ),
    "an event without step size": lambda library: library.odeint_event(
        field, start(), torch.tensor(0.0), event_fn=lambda t, y: y.sum() - 9, method="rk4"
    ),
    "a grid without event": lambda library: library.odeint_event(
        lambda t, y: -y,
        torch.ones(1),
        torch.tensor(0.0),
        event_fn=lambda t, y: y.sum() + 1,
        method="euler",
        options={"step_size": 0.1},
    ),
    "a function as module": lambda library: library.odeint_adjoint(field, start(), times()),
    "options of another method": lambda library: library.odeint_adjoint(
        field, start(), times(), adjoint_params=(), method="rk4", options={"step_size": 0.1}, adjoint_method="euler"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torchdiffeq_refuses_is_refused_alike(name: str):
    ours, theirs = (outcome(REFUSED[name], library) for library in LIBRARIES)
    assert theirs is not type(None)
    assert issubclass(ours, theirs), (ours, theirs)


def test_a_failure_is_both_an_assertion_and_a_solve_error():
    with pytest.raises(interop.OdeintError, match="step size fell below") as caught:
        interop.odeint(lambda t, y: y**2, torch.ones(1, dtype=DTYPE), torch.tensor([0.0, 2.0], dtype=DTYPE))
    assert isinstance(caught.value, SolveError)
    assert isinstance(caught.value, AssertionError)
    assert abs(caught.value.times[0] - 1) < 1e-5  # where the pole is
    with pytest.raises(interop.OdeintError):  # torchdiffeq returns NaN
        interop.odeint(lambda t, y: y**9, 9 * torch.ones(1), torch.linspace(0, 9, 9), method="euler")


@pytest.mark.parametrize(("method", "name"), [("rk4", "first_step"), ("dopri5", "step_size"), ("dopri5", "eps")])
def test_unused_options_are_warned_of(method: str, name: str):
    for each in LIBRARIES:
        with pytest.warns(UserWarning, match=f"Unexpected arguments .*{name}"):
            each.odeint(field, start(), times(), method=method, options={name: 0.1})


class Watched(nn.Module):
    """y' = w y that notes what is called; the time of a callback, and the size of the step."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.w, self.calls = nn.Parameter(torch.tensor(-0.5, dtype=DTYPE)), []
        for name in names:
            setattr(self, name, partial(self.note, name))

    def note(self, name: str, t0: Tensor, y0: object, dt: Tensor) -> None:
        assert isinstance(y0, Tensor | tuple)
        self.calls.append((name, t0.item(), dt.item()))

    def forward(self, t: Tensor, y):
        return tuple(self.w * part for part in y) if isinstance(y, tuple) else self.w * y + torch.sin(9 * t)


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_callbacks_of_fixed_grids_are_called_at_the_same_places(back: bool, differentiated: bool):
    found = []
    for each in LIBRARIES:
        func = Watched(["callback_step"])
        ts = times(5, back=back).requires_grad_(differentiated)
        each.odeint(func, start(), ts, method="midpoint", options={"step_size": 0.2})
        found.append([call[1:] for call in func.calls])
    assert len(found[0]) == len(found[1]) > 5
    assert (torch.tensor(found[0]) - torch.tensor(found[1])).abs().max() < 1e-12


def test_callbacks_of_adaptive_methods_count_the_trials():
    names = ["callback_step", "callback_accept_step", "callback_reject_step"]
    for each, y0 in product(LIBRARIES, [start(), (start(), start()[0])]):
        func = Watched(names)
        each.odeint(func, y0, times(), method="dopri5", options={"first_step": 1.5})
        called = [call[0] for call in func.calls]
        assert called[:2] == ["callback_step", "callback_reject_step"]
        assert called[::2] == ["callback_step"] * (len(called) // 2)
        accepted = [call for call in func.calls if call[0] == "callback_accept_step"]
        ends = [t + dt for _, t, dt in accepted]
        assert all(abs(a - t) < 1e-12 for a, (_, t, _) in zip(ends, accepted[1:], strict=False))


def test_callbacks_of_the_backward_pass_are_called_there():
    func = Watched(["callback_step_adjoint", "callback_accept_step_adjoint"])
    ys = interop.odeint_adjoint(func, start(), times(5), method="rk4")
    assert not func.calls
    ys.sum().backward()
    assert [name for name, *_ in func.calls] == ["callback_step_adjoint", "callback_accept_step_adjoint"] * 4
    assert [t for _, t, _ in func.calls[::2]] == pytest.approx(times(5)[:-1].flip(0).tolist())


def test_callbacks_that_are_never_called_are_warned_of():
    for each in LIBRARIES:
        with pytest.warns(UserWarning, match="does not support callbacks .*callback_reject_step"):
            each.odeint(Watched(["callback_reject_step"]), start(), times(), method="rk4")


def pair(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    a, b = y
    return b.mean() * torch.ones_like(a), -a.mean() * b


@pytest.mark.parametrize("options", [{}, {"norm": lambda y: y[0].abs().max()}], ids=["mixed", "own"])
@pytest.mark.parametrize(
    "rtol", [1e-6, (1e-6, 1e-3), torch.tensor([1e-6, 1e-6], dtype=DTYPE)], ids=["number", "tuple", "tensor"]
)
def test_tuple_states_have_a_tolerance_and_a_norm_of_their_own(rtol, options: dict):
    y0 = (torch.tensor(0.2, dtype=DTYPE), start())
    for method in ("dopri5", "bosh3"):
        ours, theirs = (
            each.odeint(pair, y0, times(back=True), rtol=rtol, method=method, options=dict(options))
            for each in LIBRARIES
        )
        assert isinstance(ours, tuple)
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() < 3e-3
    mixed = (start(torch.float32)[0], start())
    assert interop.odeint(pair, mixed, times())[0].dtype == torchdiffeq.odeint(pair, mixed, times())[0].dtype == DTYPE


def test_tolerances_per_element():
    rtol = torch.tensor([1e-3, 1e-9, 1e-3], dtype=DTYPE)
    ours, right = interop.odeint(field, start(), times(), rtol=rtol, atol=rtol), exact(times())
    assert (ours - right)[..., 1].abs().max() < 1e-6


def test_dense_output_and_single_times():
    y0 = start()
    dense = interop.odeint_dense(field, y0, torch.tensor(0.3), torch.tensor(2.0))
    at = torch.linspace(0.3, 2.0, 5, dtype=DTYPE).float().double()
    assert (dense(at[2]) - exact(at)[2]).abs().max() < 1e-5
    for each in LIBRARIES:
        assert torch.equal(each.odeint(field, y0, times()[:1]), y0[None])
        assert each.odeint(field, y0[:0], times(4), method="rk4").shape == (4, 0, 3)
        early = {"step_t": torch.tensor([0.0, 0.0, 1.0])}  # times before the start do not count
        assert (each.odeint(field, y0, times(), options=early) - exact(times())).abs().max() < 1e-5
