"""Fields that are another function at every evaluation: what is refused, what is not."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciml import solve
from sciml.solvers import PID, AdamsBashforth4, AdamsBashforthMoulton6, Euler, Grid, Solver, Stepper, Term, Tsit5
from sciml.solvers.interop import odeint


class Field(nn.Module):
    """A module over a part; y is (b, 3)."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.layers = nn.ModuleDict({"first": nn.Linear(3, 3), "part": part})

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = self.layers["part"](self.layers["first"](y))
        return y[0] if isinstance(y, tuple) else y


class Bare(nn.Dropout):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # pyrefly: ignore[bad-override]
        return super().forward(y)


class Holding(Term):
    """A term that holds a module as an attribute."""

    def __init__(self, net: nn.Module):
        self.net = net

    def drift(self, t: Tensor, y: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        return self.net(t, y)

    def method(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(t, y)


def over(field: Any, y0: Any = None) -> Any:
    return solve(field, torch.ones(4, 3) if y0 is None else y0, 0.0, 1.0, Solver(Euler(), Grid(n=2))).ys


NORMS = [nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(3, track_running_stats=True)]
DRAWING = [nn.Dropout(0.1), nn.AlphaDropout(0.1), nn.RReLU(), nn.GRU(3, 3, 2, dropout=0.1)]
DRAWING += [nn.MultiheadAttention(3, 1, dropout=0.1), nn.TransformerEncoderLayer(3, 1)]
CALM = [nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.Dropout(0.0), nn.BatchNorm1d(3, track_running_stats=False)]
CALM += [nn.GRU(3, 3, 2)]
KIND = lambda part: type(part).__name__  # noqa: E731


def test_torchs_norm_and_dropout_change_from_call_to_call():
    y, norm, dropout = torch.ones(4, 3) * torch.arange(4)[:, None], nn.BatchNorm1d(3), nn.Dropout(0.5)
    norm(y)
    once = norm.running_mean.clone()
    norm(y)
    assert not torch.equal(norm.running_mean, once)
    torch.manual_seed(0)
    assert not torch.equal(dropout(torch.ones(99)), dropout(torch.ones(99)))


@pytest.mark.parametrize("part", NORMS, ids=KIND)
def test_norm_in_train_mode_is_refused(part: nn.Module):
    with pytest.raises(ValueError, match=rf"{KIND(part)} 'layers.part' is in train mode and would change its stat.*Gr"):
        over(Field(part))


@pytest.mark.parametrize("part", DRAWING, ids=KIND)
def test_dropout_in_train_mode_is_refused(part: nn.Module):
    with pytest.raises(ValueError, match=r"'layers.part.*' is in train mode and would draw anew.* mask .* args"):
        over(Field(part))


@pytest.mark.parametrize("part", CALM, ids=KIND)
def test_what_does_not_change_runs_in_train_mode(part: nn.Module):
    assert bool(over(Field(part)).isfinite().all())


@pytest.mark.parametrize("part", [nn.BatchNorm1d(3), nn.Dropout(0.5)], ids=KIND)
def test_what_changes_runs_in_eval_mode_and_the_mode_is_read_at_every_solve(part: nn.Module):
    field = Field(part).eval()
    assert torch.equal(over(field), over(field))
    part.train()
    with pytest.raises(ValueError, match=KIND(part)):
        over(field)
    field.layers["part"] = nn.Identity()
    assert bool(over(field).isfinite().all())


net = Field(nn.Dropout(0.5))  # a global name


def test_module_is_found_wherever_a_field_holds_it():
    local = net
    fields = {
        "closure": lambda t, y: local(t, y),
        "global": lambda t, y: net(t, y),
        "partial": partial(lambda module, t, y: module(t, y), local),
        "term": Holding(local),
        "method": Holding(local).method,
        "forward": local.forward,
        "itself": Bare(0.5),
    }
    for field in fields.values():
        with pytest.raises(ValueError, match=r"Dropout|Bare is"):
            over(field)
    with pytest.raises(ValueError, match="Dropout"):
        over(lambda t, y: (local(t, y[0]),), (torch.ones(4, 3),))


def test_attribute_named_like_a_global_module_is_another_thing():
    class Other:
        net = 2.0

    other = Other()
    assert bool(over(lambda t, y: y * other.net).isfinite().all())


def test_mask_in_args_is_the_same_at_every_evaluation():
    mask = torch.tensor([2.0, 0.0, 2.0])
    y = solve(lambda t, y, args: -args[0] * y, torch.ones(4, 3), 0.0, 1.0, args=(mask,)).ys
    assert torch.allclose(y, (-mask).exp().expand(4, 3), rtol=1e-3)  # ten times rtol


BUFFER = torch.zeros(4, 3)


def written(t: Tensor, y: Tensor) -> Tensor:
    BUFFER.copy_(-y)
    return BUFFER


def viewed(t: Tensor, y: Tensor) -> Tensor:
    return written(t, y)[:]


@pytest.mark.parametrize("kind", ["joint", "each"])
@pytest.mark.parametrize("controller", [PID(), Grid(n=3)], ids=["pid", "grid"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "none"])
def test_field_that_writes_to_its_last_slope_or_its_state_is_refused(kind: str, controller: Any, gradients: bool):
    solver = Solver(Tsit5(), controller, lanes=kind)
    with torch.set_grad_enabled(gradients):
        for field in (written, viewed):
            with pytest.raises(
                ValueError, match="term: it writes to the tensor that it returned before; expected a new"
            ):
                solve(field, torch.ones(4, 3), 0.0, 1.0, solver)
        said = "term: it changes its state in place"
        if gradients and kind == "each":  # where the field is looked at before, with a state that needs a gradient
            said = f"{said}|a leaf Variable .* in-place"
        with pytest.raises((ValueError, RuntimeError), match=said):
            solve(lambda t, y: y.neg_(), torch.ones(4, 3), 0.0, 1.0, solver)


@pytest.mark.parametrize("stepper", [AdamsBashforth4(), AdamsBashforthMoulton6()])
def test_multistep_methods_refuse_slopes_that_change_too(stepper: Stepper):
    with pytest.raises(ValueError, match="term: it writes to the tensor that it returned before"):
        solve(written, torch.ones(4, 3), 0.0, 1.0, Solver(stepper, Grid(n=12)))


def test_memory_beside_a_view_may_change():
    """The count of changes is that of the whole, so that values tell."""
    log, calls = torch.zeros(200, 3), []
    log[0] = 1

    def logging(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        log[len(calls)] = -y
        return log[len(calls)]

    found = solve(logging, log[0], 0.0, 1.0)
    assert len(calls) == int(found.stats.nfe)
    assert torch.equal(found.ys, solve(lambda t, y: -y, torch.ones(3), 0.0, 1.0).ys)


@pytest.mark.parametrize("kind", ["joint", "each"])
def test_field_may_return_one_tensor_again_as_long_as_it_does_not_change(kind: str):
    zero, weight, y0 = torch.zeros(4, 3), nn.Parameter(torch.ones(3)), torch.ones(4, 3)
    solver = Solver(lanes=kind)
    assert torch.equal(solve(lambda t, y: zero, y0, 0.0, 1.0, solver).ys, y0)
    grown = solve(lambda t, y: weight.expand(4, 3), y0, 0.0, 1.0, solver).ys
    assert torch.allclose(grown, torch.full((4, 3), 2.0))
    kept = solve(lambda t, y: y, y0, 0.0, 1.0, solver).ys
    assert torch.allclose(kept, y0 * torch.e, rtol=1e-3)  # ten times rtol
    with torch.inference_mode():  # which counts no changes
        assert torch.equal(solve(lambda t, y: -y, torch.ones(4, 3), 0.0, 1.0, solver).ys < 1, y0 == 1)


def test_drop_in_runs_them_as_torchdiffeq_does():
    norm, t = nn.BatchNorm1d(3), torch.linspace(0, 1, 3)
    odeint(lambda t, y: norm(y), torch.rand(4, 3), t, method="euler")
    assert norm.num_batches_tracked == 2
