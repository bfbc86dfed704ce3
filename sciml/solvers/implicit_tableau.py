"""Coefficients of implicit Runge-Kutta methods."""

from math import sqrt
from typing import NamedTuple

import numpy as np

Row = tuple[float, ...]


class Diagonal(NamedTuple):
    """A method of s implicit stages one after the other, with one number on its diagonal ((E)SDIRK).

    Slope 0 is that at the start of the step, whether the method uses it or not; slopes 1 .. s belong to the stages.

    Attributes:
        gamma: the diagonal.
        a: s rows; stage i is y0 + h (sum_(j < i) a[i][j] k_j + gamma k_i).
        c: s nodes.
        b: weights of the slopes (s + 1) in the solution; None where it is the last stage (stiffly accurate).
        error: weights of the error estimate (s + 1), b - b_hat; None where there is none.
    """

    gamma: float
    a: tuple[Row, ...]
    c: Row
    b: Row | None = None
    error: Row | None = None


class Collocation(NamedTuple):
    """A fully implicit method.

    Attributes:
        a: the matrix (s, s).
        c: s nodes.
        last: whether the last stage is the solution (stiffly accurate).
    """

    a: tuple[Row, ...]
    c: Row
    last: bool


def predictors(tableau: Diagonal) -> tuple[Row, ...]:
    """Weights of the slopes known before a stage in a first guess of its increment.

    A stage with the node of an earlier one starts from that. Another one starts from the integral of the polynomial
    through the slopes at the start and at up to two of the latest other nodes.
    """
    nodes, rows = [0.0, *tableau.c], []
    full = [np.zeros(1), *(np.array([*row, tableau.gamma]) for row in tableau.a)]
    for i in range(1, len(nodes)):
        weights = np.zeros(i)
        equal = [j for j in range(1, i) if abs(nodes[j] - nodes[i]) < 1e-12]
        if equal:
            weights[: equal[-1] + 1] = full[equal[-1]]
        else:
            used = [0, *range(max(1, i - 2), i)]
            powers = np.arange(len(used))
            vandermonde = np.array([nodes[j] for j in used])[None] ** powers[:, None]
            weights[used] = np.linalg.solve(vandermonde, nodes[i] ** (powers + 1) / (powers + 1))
        rows.append(tuple(weights.tolist()))
    return tuple(rows)


def matrix(tableau: Diagonal) -> np.ndarray:
    """The weights (s + 1, s + 1) of all slopes in all stages, the start among them."""
    rows = [np.array([*row, tableau.gamma]) for row in tableau.a]
    return np.stack([np.zeros(len(rows) + 1), *(np.pad(row, (0, len(rows) + 1 - len(row))) for row in rows)])


def damps(tableau: Diagonal) -> bool:
    """Whether an infinitely stiff component is gone after one step."""
    a = matrix(tableau)
    return tableau.b is None and abs(np.linalg.solve(a[1:, 1:], a[1:, 0])[-1]) < 1e-12


def extension(tableau: Diagonal, order: int) -> np.ndarray:
    """Dense output of an order up to 4: the least coefficients (p, s + 1) of theta, theta^2, .. that give it.

    They weight the slope at the start and the increments of the stages. Of a method that damps, the former has no
    weight: that slope is off by the stiffness times the error of the state. With stage order 2 the conditions are
    those below (Hairer, Norsett & Wanner, Solving ODEs I, II.6).
    """
    a, c = matrix(tableau), np.array([0.0, *tableau.c])
    powers = np.arange(1, order + 1)
    conditions = [(c ** (p - 1), (powers == p) / p) for p in powers]
    if order == 4:
        conditions.append((a @ c**2, (powers == 4) / 12))
    backward = np.linalg.inv(a[1:, 1:])
    if damps(tableau):
        conditions.append((np.array([1.0, *-(backward @ a[1:, 0])]), 0.0 * powers))
    size, eye = len(c), np.eye(len(powers))
    left = np.concatenate([*(np.kron(v, eye) for v, _ in conditions), np.kron(np.eye(size), np.ones(len(powers)))])
    right = np.concatenate([*(row for _, row in conditions), a[-1] if tableau.b is None else np.array(tableau.b)])
    slopes = np.linalg.lstsq(left, right, rcond=1e-12)[0].reshape(size, -1).T
    first = slopes[:, :1] - slopes[:, 1:] @ backward @ a[1:, :1]
    return np.concatenate([0 * first if damps(tableau) else first, slopes[:, 1:] @ backward], 1)


def bridge(tableau: Diagonal, order: int) -> np.ndarray | None:
    """The same for unknowns without a slope, whose stages are functions of the others; None where there is none.

    The weights (p, s + 1) interpolate powers of theta up to the order, the last stage at 1, and have no part in the
    error of the stages' other unknowns of order 3.
    """
    a, c = matrix(tableau), np.array([0.0, *tableau.c])
    powers = np.arange(1, order + 1)
    missed = (a @ c**2 - c**3 / 3)[1:]
    conditions = [(missed, 0.0 * powers), *((c[1:] ** p, (powers == p) * 1.0) for p in powers)]
    size, eye = len(tableau.c), np.eye(order)
    left = np.concatenate([*(np.kron(v, eye) for v, _ in conditions), np.kron(np.eye(size), np.ones(order))])
    right = np.concatenate([*(row for _, row in conditions), np.eye(size)[-1]])
    found = np.linalg.lstsq(left, right, rcond=1e-12)[0]
    if np.abs(left @ found - right).max() > 1e-9:
        return None
    return np.pad(found.reshape(size, order).T, ((0, 0), (1, 0)))


def interpolating(tableau: Collocation) -> np.ndarray:
    """Coefficients (s, s) of theta, theta^2, .. in the stages' weights: the collocation polynomial."""
    powers = np.arange(1, len(tableau.c) + 1)
    return np.linalg.inv(np.array(tableau.c)[:, None] ** powers)


IMPLICIT_EULER = Diagonal(gamma=1.0, a=((0.0,),), c=(1.0,))

IMPLICIT_MIDPOINT = Diagonal(gamma=1 / 2, a=((0.0,),), c=(1 / 2,), b=(0.0, 1.0))

TRAPEZOID = Diagonal(gamma=1 / 2, a=((1 / 2,),), c=(1.0,))

_g = 1 - 1 / sqrt(2)
SDIRK2 = Diagonal(gamma=_g, a=((0.0,), (0.0, 1 - _g)), c=(_g, 1.0))
"""R. Alexander, Diagonally implicit Runge-Kutta methods for stiff ODEs, SIAM J. Numer. Anal. 14 (1977), Theorem 5."""

_w = sqrt(2) / 4
TRBDF2 = Diagonal(gamma=_g, a=((_g,), (_w, _w)), c=(2 * _g, 1.0))
"""M. E. Hosea, L. F. Shampine, Analysis and implementation of TR-BDF2, Appl. Numer. Math. 20 (1996), section 4."""

_g = float(min(np.roots([1, -3, 3 / 2, -1 / 6]), key=lambda x: abs(x - 0.4358665)).real)  # L-stable, order 3
_a = ((-4 * _g**2 + 6 * _g - 1) / (4 * _g), (1 - 2 * _g) / (4 * _g))
_b = ((6 * _g - 1) / (12 * _g), -1 / ((24 * _g - 12) * _g), (-6 * _g**2 + 6 * _g - 1) / (6 * _g - 3))
KVAERNO3 = Diagonal(
    gamma=_g,
    a=((_g,), _a, _b),
    c=(2 * _g, 1.0, 1.0),
    error=(_b[0] - _a[0], _b[1] - _a[1], _b[2] - _g, _g),
)

_a = (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676)
_b = (
    0.13659751177640291,
    0.0,
    -0.05496908796538376,
    -0.04118626728321046,
    0.62993304899016403,
    0.06962479448202728,
)
KVAERNO5 = Diagonal(
    gamma=0.26,
    a=(
        (0.26,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        _a,
        _b,
    ),
    c=(0.52, 1.23033320996790809, 0.89576598435007588, 0.43639360985864756, 1.0, 1.0),
    error=(*(b - a for a, b in zip(_a, _b, strict=False)), _b[5] - 0.26, 0.26),
)

_b = (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211)
_b_hat = (
    4586570599 / 29645900160,
    0.0,
    178811875 / 945068544,
    814220225 / 1159782912,
    -3700637 / 11593932,
    61727 / 225920,
)
KENCARP4 = Diagonal(
    gamma=1 / 4,
    a=(
        (1 / 4,),
        (8611 / 62500, -1743 / 31250),
        (5012029 / 34652500, -654441 / 2922500, 174375 / 388108),
        (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912),
        _b,
    ),
    c=(1 / 2, 83 / 250, 31 / 50, 17 / 20, 1.0),
    error=tuple(b - b_hat for b, b_hat in zip((*_b, 1 / 4), _b_hat, strict=True)),
)

_r = sqrt(3) / 6
GAUSS4 = Collocation(a=((1 / 4, 1 / 4 - _r), (1 / 4 + _r, 1 / 4)), c=(1 / 2 - _r, 1 / 2 + _r), last=False)

_r = sqrt(15)
GAUSS6 = Collocation(
    a=(
        (5 / 36, 2 / 9 - _r / 15, 5 / 36 - _r / 30),
        (5 / 36 + _r / 24, 2 / 9, 5 / 36 - _r / 24),
        (5 / 36 + _r / 30, 2 / 9 + _r / 15, 5 / 36),
    ),
    c=(1 / 2 - _r / 10, 1 / 2, 1 / 2 + _r / 10),
    last=False,
)

RADAU3 = Collocation(a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)), c=(1 / 3, 1.0), last=True)

_r = sqrt(6)
RADAU5 = Collocation(
    a=(
        ((88 - 7 * _r) / 360, (296 - 169 * _r) / 1800, (-2 + 3 * _r) / 225),
        ((296 + 169 * _r) / 1800, (88 + 7 * _r) / 360, (-2 - 3 * _r) / 225),
        ((16 - _r) / 36, (16 + _r) / 36, 1 / 9),
    ),
    c=((4 - _r) / 10, (4 + _r) / 10, 1.0),
    last=True,
)
