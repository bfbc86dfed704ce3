"""What is kept of a solve for the next one of the same times, tolerances and kind of state."""

import torch

from sciml import solve
from sciml.solvers import PID, Grid, Solver, Tsit5
from sciml.solvers.frame import KEPT, Frame, _kept
from tests.solvers.systems import DTYPE

Y0 = torch.ones(2, dtype=DTYPE)


def frame(solver: Solver, y0: torch.Tensor, t1: float = 1.0, at: torch.Tensor | None = None) -> Frame:
    return Frame.of(solver, Tsit5(), solver.controller or PID(), 0.0, t1, y0, at)


def test_frame_is_kept_for_equal_solvers_times_and_kinds_of_state():
    first = frame(Solver(controller=PID(1e-5)), Y0)
    assert frame(Solver(controller=PID(1e-5)), 2 * Y0) is first
    others = [
        frame(Solver(controller=PID(1e-6)), Y0),
        frame(Solver(controller=PID(1e-5)), Y0.float()),
        frame(Solver(controller=PID(1e-5)), Y0[:1]),
        frame(Solver(controller=PID(1e-5)), Y0, 2.0),
        frame(Solver(controller=PID(1e-5), lanes="each"), Y0),
        frame(Solver(controller=Grid(n=3)), Y0),
    ]
    assert all(other is not first for other in others)


def test_steppers_that_cannot_be_hashed_are_solved_with_and_not_kept():
    class Own(Tsit5):
        __hash__ = None  # as a dataclass that is not frozen

    count = len(_kept)
    ys = solve(lambda t, y: -y, Y0, 0.0, 0.75, Solver(Own())).ys
    assert (ys - torch.tensor(-0.75).exp()).abs().max() < 1e-3
    assert len(_kept) == count


def test_save_times_that_were_changed_in_place_are_read_anew():
    ts = torch.tensor([0.5, 1.0], dtype=DTYPE)
    before = solve(lambda t, y: y, Y0, 0.0, 1.0, save_at=ts).ys
    ts[0] = 0.25
    after = solve(lambda t, y: y, Y0, 0.0, 1.0, save_at=ts).ys
    assert (before[0] - torch.tensor(0.5).exp()).abs().max() < 1e-3  # rtol 1e-4
    assert (after[0] - torch.tensor(0.25).exp()).abs().max() < 1e-3


def test_tensors_made_in_inference_mode_do_not_reach_later_solves():
    y0 = torch.ones(3, dtype=DTYPE)
    with torch.inference_mode():
        solve(lambda t, y: -y, y0, 0.0, 1.25)
    y0.requires_grad_()
    solve(lambda t, y: -y, y0, 0.0, 1.25).ys.sum().backward()
    assert (y0.grad - torch.tensor(-1.25).exp()).abs().max() < 1e-3


def test_few_frames_are_kept_and_none_of_tensors_that_may_change():
    for i in range(2 * KEPT):
        frame(Solver(), Y0, 1.0 + i)
    assert len(_kept) <= KEPT
    count = len(_kept)
    tolerance = torch.tensor([1e-3, 1e-6], dtype=DTYPE)
    solver = Solver(controller=PID(tolerance))
    assert frame(solver, Y0) is not frame(solver, Y0)
    assert len(_kept) == count
