"""Whether the initial state of a differential-algebraic system meets its constraints."""

from typing import Any

import torch
from torch import Tensor

from sciml.solvers.control import PID
from sciml.solvers.linear.derivatives import transformed
from sciml.solvers.march import March
from sciml.solvers.newton import LARGEST
from sciml.solvers.state import Const
from sciml.solvers.transforms import holds

FAR = 100.0  # in units of the tolerance, which Newton's iteration in the first step hardly meets itself


@torch.no_grad()
def check_consistent(march: March, c: Const, y0: Tensor) -> None:
    """Refuse one that a correction by Newton's method would change by much more than the tolerances.

    The first step would bring it to the constraints, and what is saved within that step would be on the way. Systems of
    many unknowns, and masses whose empty rows are not their empty columns, are not looked at.

    Raises:
        ValueError: naming a component, and what it should be about.
    """
    stepper: Any = march.stepper
    field, y0 = march.field(c), y0.detach()
    m = stepper.count(field, y0)
    n = y0.numel() // m
    if n > LARGEST:
        return
    mass = stepper.mass(field, y0).dense().detach()
    empty = ~(mass != 0).any(-1)
    if holds(~empty) or not holds(empty == ~(mass != 0).any(-2)):
        return
    t, empty = field.clock(c.t0, y0), empty.expand(m, n)
    force = torch.where(empty, field.checked(c.t0, y0).reshape(m, n), 0)
    jacobian = stepper.jacobian(field, t, y0).dense().detach()
    eye = torch.eye(n, dtype=jacobian.dtype, device=jacobian.device)
    matrix = torch.where(empty[:, :, None] & empty[:, None, :], jacobian, eye)
    change, info = torch.linalg.solve_ex(matrix, -force)
    change = torch.where(empty & (info == 0)[:, None], change, 0)
    controller = march.controller if isinstance(march.controller, PID) else PID()
    if holds(controller.scaled(change.reshape(y0.shape), y0, y0, march.lanes) <= FAR):
        return
    if transformed():
        raise ValueError("y0: it does not meet the constraints, where the mass has empty rows")
    sample, component = divmod(int(change.abs().argmax()), n)
    where = f"component {component}" + (f" of sample {sample}" if m > 1 else "")
    value, shift, rest = (x.reshape(m, n)[sample, component].item() for x in (y0, change, force))
    raise ValueError(
        f"y0: {value:g} in {where} does not meet the constraint there, where the mass has an empty row: the term gives "
        f"{rest:g}, expected 0; about {value + shift:g} meets it"
    )
