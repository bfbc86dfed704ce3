"""Stiff problems with their solutions at the end time.

Those of Van der Pol, OREGO and HIRES are published (F. Mazzia, C. Magherini, Test set for IVP solvers, release 2.4,
2008), Robertson's is by scipy's Radau; a slow test computes all of them anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.solvers.systems import DTYPE


class Stiff(NamedTuple):
    field: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    end: float
    exact: Tensor
    ratio: float  # atol / rtol

    @staticmethod
    def decay(t: Tensor, y: Tensor) -> Tensor:
        return -1e4 * (y - t.cos())


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    position, speed = y.unbind(-1)
    return torch.stack([speed, 1e3 * (1 - position**2) * speed - position], -1)


def robertson(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    slow, back, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack([back - slow, slow - back - fast, fast], -1)


def orego(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    first = 77.27 * (b + a * (1 - 8.375e-6 * a - b))
    return torch.stack([first, (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], -1)


def hires(t: Tensor, y: Tensor) -> Tensor:
    a, b, c, d, e, f, g, h = y.unbind(-1)
    rates = [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * f + 0.43 * g,
        -280 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
        280 * f * h - 1.81 * g,
        -280 * f * h + 1.81 * g,
    ]
    return torch.stack(rates, -1)


def _of(field: Callable[[Tensor, Tensor], Tensor], y0: list[float], end: float, exact: list[float], ratio: float):
    return Stiff(field, torch.tensor(y0, dtype=DTYPE), end, torch.tensor(exact, dtype=DTYPE), ratio)


ROBERTSON = _of(
    robertson,
    [1.0, 0.0, 0.0],
    1e5,
    [0.017865921142, 7.2747514685e-08, 0.982134006110],
    1e-6,
)
PROBLEMS = {
    "van_der_pol": _of(van_der_pol, [2.0, 0.0], 2000.0, [1.706167732170483, -0.8928097010247975e-3], 1e-2),
    "robertson": ROBERTSON,
    "orego": _of(orego, [1.0, 2.0, 3.0], 360.0, [1.000814870318523, 1228.178521549917, 132.0554942846706], 1e-2),
    "hires": _of(
        hires,
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057],
        321.8122,
        [
            0.7371312573325668e-3,
            0.1442485726316185e-3,
            0.5888729740967575e-4,
            0.1175651343283149e-2,
            0.2386356198831331e-2,
            0.6238968252742796e-2,
            0.2849998395185769e-2,
            0.2850001604814231e-2,
        ],
        1e-2,
    ),
}


def scaled_error(y: Tensor, exact: Tensor) -> float:
    """The measure of the acceptance tests."""
    return float(((y - exact).abs() / (0.01 + exact.abs())).max())
