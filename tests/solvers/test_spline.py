"""Curves through data: what they are between the knots, what they do with gaps, and their derivatives."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, interp1d
from torch import Tensor

from sciml.solvers import Spline
from sciml.solvers.spline import filled

KINDS = ["linear", "hermite"]
NAN = torch.nan
# The same polynomials in another order of operations, float64.
SAME = 1e-12


def irregular(samples: int = 3, count: int = 9, channels: int = 2, own: bool = True) -> tuple[Tensor, Tensor]:
    """Times, one for all or of each sample's own, and values, float64."""
    draw = torch.Generator().manual_seed(3)
    gaps = 0.1 + torch.rand(*([samples] if own else []), count, generator=draw, dtype=torch.float64)
    return gaps.cumsum(-1), torch.randn(samples, count, channels, generator=draw, dtype=torch.float64)


def reference(kind: str, ts: np.ndarray, values: np.ndarray):
    """scipy's curve through one sample, and its derivative."""
    if kind == "linear":
        slopes = np.diff(values, axis=0) / np.diff(ts)[:, None]
        return interp1d(ts, values, axis=0), lambda t: slopes[np.searchsorted(ts, t, side="right") - 1]
    slopes = np.diff(values, axis=0) / np.diff(ts)[:, None]
    curve = CubicHermiteSpline(ts, values, np.concatenate([slopes[:1], slopes]))
    return curve, curve.derivative()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_curves_and_derivatives_are_scipys(kind: str, own: bool):
    """At times of each sample's own, as fields see them with lanes "each", at one time and at many."""
    ts, values = irregular(own=own)
    x = getattr(Spline, kind)(ts, values)
    draw = torch.Generator().manual_seed(1)
    start, end = (ts[..., i].reshape(-1, 1).expand(3, 1) for i in (0, -1))
    for share in torch.rand(20, 3, 1, generator=draw, dtype=torch.float64):
        t = start + share * (end - start)
        for row in range(3):
            curve, slope = reference(kind, ts.expand(3, 9)[row].numpy(), values[row].numpy())
            at = t[row].item()
            np.testing.assert_allclose(x(t)[row], curve(at), rtol=0, atol=SAME)
            np.testing.assert_allclose(x.derivative(t)[row], slope(at), rtol=0, atol=100 * SAME)
    t = torch.linspace(start.max().item(), end.min().item(), 11, dtype=torch.float64)[:-1]
    for found in (x, x.derivative):
        one_by_one = torch.stack([found(at) for at in t], 1)
        assert torch.equal(found(t), one_by_one)
        assert torch.equal(found(t[3].expand(3, 1, 1)), one_by_one[:, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_curves_go_through_their_data_and_hermite_is_smooth(kind: str):
    ts, values = irregular(own=False)
    x = getattr(Spline, kind)(ts, values)
    assert torch.allclose(x(ts), values, rtol=0, atol=SAME)
    inner = ts[1:-1]
    jumps = (x.derivative(inner) - x.derivative(inner - 1e-9)).abs().amax((0, 2))
    assert (jumps < 1e-6).all() if kind == "hermite" else (jumps > 1e-2).all()  # 1e-9 times second derivatives


def test_missing_values_lie_on_the_line_between_their_neighbours():
    """Constant beyond them; a channel that is never seen is 0; known values are as they are."""
    ts = torch.tensor([0.0, 1.0, 3.0, 4.0, 6.0])
    columns = {
        (1.0, NAN, NAN, 9.0, 3.0): (1.0, 3.0, 7.0, 9.0, 3.0),
        (NAN, NAN, 2.0, NAN, NAN): (2.0, 2.0, 2.0, 2.0, 2.0),
        (NAN, 5.0, NAN, NAN, 0.0): (5.0, 5.0, 3.0, 2.0, 0.0),
        (NAN, NAN, NAN, NAN, NAN): (0.0, 0.0, 0.0, 0.0, 0.0),
    }
    data, whole = (torch.tensor(list(rows)).T[None] for rows in (columns, columns.values()))
    assert torch.allclose(filled(ts, data), whole)
    assert torch.allclose(filled(ts[None], data), whole)
    seen = ~data.isnan()
    assert torch.equal(filled(ts, data)[seen], data[seen])


def test_missing_values_are_those_of_numpy():
    ts, values = irregular(5, 12)
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(2)) < 0.6] = NAN
    found = filled(ts, values)
    for t, rows, whole in zip(ts.numpy(), values.numpy(), found.numpy(), strict=True):
        for k in range(2):
            seen = ~np.isnan(rows[:, k])
            assert seen.any()
            np.testing.assert_allclose(whole[:, k], np.interp(t, t[seen], rows[seen, k]), rtol=0, atol=SAME)


@pytest.mark.parametrize("kind", [*KINDS, "rectilinear"])
def test_gradients_to_data_and_times(kind: str):
    """Missing values have a gradient of 0, never NaN."""
    ts, values = irregular()
    values[0, 3] = values[1, 0, 1] = values[2, -2:, 0] = NAN
    seen = ~values.isnan()
    middle = ts[:, :-1] + 0.3 * ts.diff()

    def curve(times: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        data = torch.full_like(values, NAN).masked_scatter(seen, known)
        x = getattr(Spline, kind)(times, data)
        t = torch.tensor(2.3, dtype=torch.float64) if kind == "rectilinear" else middle[:, 4:5]
        return x(t), x.derivative(t)

    inputs = ts.requires_grad_(), values[seen].requires_grad_()
    assert torch.autograd.gradcheck(curve, inputs)
    data = values.clone().requires_grad_()
    getattr(Spline, kind)(ts, data).coefficients.square().sum().backward()
    assert data.grad is not None
    assert (data.grad[~seen] == 0).all()
    assert data.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_does_not_depend_on_values_to_come(kind: str):
    """Where nothing is missing; with gaps that of "rectilinear" does not either."""
    ts, values = irregular(own=False)
    later = values.clone()
    later[:, 6:] += 1
    t = torch.linspace(ts[0].item(), ts[5].item(), 50, dtype=torch.float64)
    make = getattr(Spline, kind)
    assert torch.equal(make(ts, values)(t), make(ts, later)(t))
    after = ts[5:7].mean()
    assert not torch.equal(make(ts, values)(after), make(ts, later)(after))


def test_rectilinear_takes_time_and_values_in_turns():
    ts = torch.tensor([0.0, 1.0, 3.0])
    data = torch.tensor([[[NAN, 4.0], [2.0, NAN], [NAN, 6.0]]])
    x = Spline.rectilinear(ts, data)
    corners = [[0.0, 0.0, 4.0], [1.0, 0.0, 4.0], [1.0, 2.0, 4.0], [3.0, 2.0, 4.0], [3.0, 2.0, 6.0]]
    assert torch.equal(x(torch.arange(5.0)), torch.tensor([corners]))
    assert torch.equal(x(torch.tensor(0.5)), torch.tensor([[0.5, 0.0, 4.0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_by_index_is_the_same_curve(kind: str):
    ts, values = irregular()
    x = getattr(Spline, kind)(ts, values)
    t = ts[:, 4:5] + 0.3 * (ts[:, 5:6] - ts[:, 4:5])
    assert torch.allclose(x.by_index()(torch.tensor(4.3, dtype=torch.float64)), x(t), rtol=0, atol=SAME)


@pytest.mark.parametrize("kind", [*KINDS, "rectilinear"])
def test_values_keep_their_dtype_beside_exact_times(kind: str):
    ts, values = irregular(own=False)
    x = getattr(Spline, kind)(ts, values.float())
    assert x.coefficients.dtype == x(ts[2]).dtype == x.derivative(ts[2].float()).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_equal_times_at_the_end_are_rest(kind: str):
    """Short series are filled up with their last time and value."""
    ts, values = irregular(1, 5)
    ts = torch.cat([ts, ts[:, -1:], ts[:, -1:]], 1).requires_grad_()
    values = torch.cat([values, torch.full((1, 2, 2), NAN)], 1).requires_grad_()
    x = getattr(Spline, kind)(ts, values)
    whole = getattr(Spline, kind)(ts[:, :5], values[:, :5])
    rest = torch.tensor([4.4, 5.5, 6.0], dtype=torch.float64)
    assert (x.by_index().derivative(rest[1:]) == 0).all()
    assert torch.allclose(x(ts[:, 3:4] + 0.01), whole(ts[:, 3:4] + 0.01))
    (x(ts[:, -1:]).sum() + x.derivative(ts[:, -1:]).sum()).backward()
    assert ts.grad.isfinite().all()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize(
    ("ts", "values"),
    [((), (2, 5, 3)), ((4,), (2, 5, 3)), ((2, 4), (2, 5, 3)), ((3, 5), (2, 5, 3)), ((5,), (5, 3)), ((1,), (2, 1, 3))],
)
def test_data_that_make_no_curve_are_refused(ts: tuple[int, ...], values: tuple[int, ...]):
    for make in (Spline.linear, Spline.hermite, Spline.rectilinear):
        with pytest.raises(ValueError, match="values"):
            make(torch.zeros(ts), torch.zeros(values))
