"""What a solve took."""

from typing import NamedTuple

import torch
from torch import Tensor

from sciml.solvers import event, jump
from sciml.solvers.control import PID
from sciml.solvers.march import March
from sciml.solvers.mesh import Mesh
from sciml.solvers.state import Const, State


class SolveStats(NamedTuple):
    """What a solve took, per lane (l)."""

    nfe: Tensor  # evaluations of the field
    accepted: Tensor
    rejected: Tensor


def stats_of(march: March, c: Const, end: State, mesh: Mesh, frozen: bool) -> SolveStats:
    """What it took to get to the last state, on a mesh that was given (``frozen``) or chosen."""
    trials, controller, stepper = end.trials, march.controller, march.stepper
    probes = isinstance(controller, PID) and controller.dt0 is None and not stepper.noise_types
    first = int(probes and not frozen)
    nfe = stepper.starts + first + trials * stepper.evaluations + event.evaluations(march, mesh, not frozen)
    nfe = nfe + jump.evaluations(march, c, mesh.theta, trials, not frozen)
    reads = any(fold.stages for fold in march.folds)
    if not reads and (frozen or (march.lanes == "joint" and not controller.adaptive)):
        nfe = nfe - stepper.spared * (end.theta == 1)  # the last step is not `full`
    return SolveStats(torch.where(trials > 0, nfe, 0), end.accepted, trials - end.accepted)
