"""The exact solution of the periodic viscous Burgers equation."""

import math

import torch
from torch import Tensor

REFINED = 4  # the integrals' grid is so much finer than that of u0
SPREAD = 40.0  # exp(-40) is below float64's round-off


def cole_hopf(u0: Tensor, nu: float, t: float, length: float = 1.0) -> Tensor:
    """u(x, t) of u_t + u u_x = nu u_xx for periodic u0, by the transformation u = -2 nu (log phi)_x.

    With the antiderivative U of u0 and G = U(y) + (x - y)^2 / (2 t),

        u(x, t) = integral (x - y) / t exp(-G / (2 nu)) dy / integral exp(-G / (2 nu)) dy

    over the real line. All weights are positive, so that nothing cancels however strong the shock; the trapezoidal rule
    converges exponentially, as the integrands are analytic and decay. A mean of u0 is a change of frame.

    Args:
        u0: values (.., x) at x_j = j length / n; resolved by their Fourier series.
        nu: viscosity.
        t: time, large enough that sqrt(2 nu t) spans two points of the refined grid (otherwise t = 0 is meant).
        length: period.

    Returns:
        u (.., x) in float64.

    Raises:
        ValueError: t is positive, but too small for the grid.

    Reference:
        E. Hopf, The partial differential equation u_t + u u_x = mu u_xx, Comm. Pure Appl. Math. 3 (1950),
        doi:10.1002/cpa.3160030302.
    """
    u0 = u0.to(torch.float64)
    if t == 0:
        return u0.clone()
    n, fine = u0.shape[-1], REFINED * u0.shape[-1]
    if math.sqrt(2 * nu * t) < 2 * length / fine:
        raise ValueError(f"t: expected 0 or at least {2 * (length / fine) ** 2 / nu:.3g} on {n} points, got {t}")
    modes = torch.fft.rfft(u0.reshape(-1, n), norm="forward")
    k = 2 * math.pi / length * torch.arange(modes.shape[-1], dtype=torch.float64, device=u0.device)
    mean = modes[:, :1].real
    integral = torch.where(k > 0, modes / (1j * k.clamp_min(1.0)), 0) * torch.exp(-1j * k * mean * t)
    potential = torch.fft.irfft(integral, n=fine, norm="forward")
    moved = torch.stack([_zero_mean(row, nu, t, length) for row in potential])
    return (moved + mean).reshape(u0.shape)


def _zero_mean(potential: Tensor, nu: float, t: float, length: float) -> Tensor:
    """The solution at every REFINED-th point of the grid of the antiderivative U of u0."""
    fine = len(potential)
    depth = SPREAD + float(potential.max() - potential.min()) / (2 * nu)
    reach = math.ceil(math.sqrt(4 * nu * t * depth) * fine / length)  # x - y where the weight is below round-off
    offset = torch.arange(reach, -reach - 1, -1, dtype=torch.float64, device=potential.device) * (length / fine)
    index = torch.arange(-reach, fine + reach, device=potential.device) % fine
    windows = potential[index].unfold(0, 2 * reach + 1, REFINED)  # (x, y)
    weight = torch.softmax(-(windows + offset**2 / (2 * t)) / (2 * nu), -1)
    return weight @ offset / t
