"""DETEST: the classes A to E of non-stiff problems, from t = 0 to 20.

T. Hull, W. Enright, B. Fellen, A. Sedgwick, Comparing numerical methods for ordinary differential equations, SIAM J.
Numer. Anal. 9 (1972), doi:10.1137/0709052; W. Enright, J. Pryce, Two FORTRAN packages for assessing initial value
methods, ACM TOMS 13 (1987), doi:10.1145/27645.27648.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sciml import Solution, Solver, solve
from sciml.solvers import PID, Bosh3, Dopri5, Dopri8, Stepper, Tsit5
from tests.solvers.stiff import scaled_error
from tests.solvers.systems import DTYPE

END = 20.0
STEPPERS = {"dopri5": Dopri5(), "tsit5": Tsit5(), "dopri8": Dopri8(), "bosh3": Bosh3()}
SAME_CLASS = {"dopri5": "RK45", "tsit5": "RK45", "dopri8": "DOP853", "bosh3": "RK23"}  # scipy's
RTOLS = {"dopri5": (1e-4, 1e-6, 1e-8), "tsit5": (1e-4, 1e-6, 1e-8), "dopri8": (1e-4, 1e-6, 1e-8), "bosh3": (1e-3, 1e-5)}


class Problem(NamedTuple):
    field: Callable[[Tensor, Tensor], Tensor]  # maps y (n) to (n)
    y0: Tensor
    exact: Callable[[], Sequence[float] | Tensor] | None = None  # at the end, where it has a formula


PROBLEMS: dict[str, Problem] = {}


def _problem(name: str, *y0: float, exact: Callable[[], Any] | None = None) -> Callable[[Any], Any]:
    """Register a field that maps t and the components to those of the slope."""

    def add(slopes: Callable[..., Sequence[Tensor]]) -> Any:
        field = lambda t, y: torch.stack(slopes(t, *y.unbind()))  # noqa: E731
        PROBLEMS[name] = Problem(field, torch.tensor(y0, dtype=DTYPE), exact)
        return slopes

    return add


def _number(x: float) -> Tensor:
    return torch.tensor(x, dtype=DTYPE)


@_problem("A1", 1.0, exact=lambda: [_number(-END).exp()])
def _decay(t, y):
    return [-y]


@_problem("A2", 1.0, exact=lambda: [(1 + END) ** -0.5])
def _riccati(t, y):
    return [-(y**3) / 2]


@_problem("A3", 1.0, exact=lambda: [_number(END).sin().exp()])
def _oscillation(t, y):
    return [y * t.cos()]


@_problem("A4", 1.0, exact=lambda: [20 / (1 + 19 * _number(-END / 4).exp())])
def _logistic(t, y):
    return [y / 4 * (1 - y / 20)]


@_problem("A5", 4.0)
def _spiral(t, y):
    return [(y - t) / (y + t)]


@_problem("B1", 1.0, 3.0)
def _populations(t, a, b):
    return [2 * (a - a * b), a * b - b]


@_problem("B2", 2.0, 0.0, 1.0)
def _reaction(t, a, b, c):
    return [b - a, a - 2 * b + c, b - c]


@_problem("B3", 1.0, 0.0, 0.0)
def _nonlinear_reaction(t, a, b, c):
    return [-a, a - b**2, b**2]


@_problem("B4", 3.0, 0.0, 0.0)
def _torus(t, a, b, c):
    radius = (a**2 + b**2).sqrt()
    return [-b - a * c / radius, a - b * c / radius, a / radius]


@_problem("B5", 0.0, 1.0, 1.0)
def _rigid_body(t, a, b, c):
    return [b * c, -a * c, -0.51 * a * b]


def _linear(name: str, matrix: Tensor) -> None:
    start = torch.eye(len(matrix), dtype=DTYPE)[0]
    exact = lambda: torch.linalg.matrix_exp(END * matrix)[:, 0]  # noqa: E731
    PROBLEMS[name] = Problem(lambda t, y: matrix @ y, start, exact)


def _chain(rates: Tensor) -> Tensor:
    """Radioactive decay: each member turns into the next one."""
    return torch.diag(rates[:-1], -1) - torch.diag(torch.cat([rates[:-1], rates.new_zeros(1)]))


def _diffusion(n: int) -> Tensor:
    ones = torch.ones(n - 1, dtype=DTYPE)
    return torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=DTYPE)


_linear("C1", _chain(torch.ones(10, dtype=DTYPE)))
_linear("C2", _chain(torch.arange(1, 11, dtype=DTYPE)))
_linear("C3", _diffusion(10))
_linear("C4", _diffusion(51))

GRAVITY, SUN = 2.95912208286, 1.00000597682  # per (100 days)^2
MASSES = torch.tensor([954.786104043, 285.583733151, 43.7273164546, 51.7759138449, 2.77777777778], dtype=DTYPE) / 1e6
PLANETS = [
    *(3.42947415189, 3.35386959711, 1.35494901715, 6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
    *(-0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
]


def _five_bodies(t: Tensor, y: Tensor) -> Tensor:
    """The outer planets as the sun sees them, with the pull of each on the sun."""
    place, speed = y.reshape(2, 5, 3).unbind()
    pull = place / place.norm(dim=1, keepdim=True) ** 3
    between = place - place[:, None]  # (j, k): from planet j to k
    distance = between.norm(dim=2, keepdim=True) + torch.eye(5, dtype=DTYPE)[..., None]
    drag = (MASSES[:, None] * (between / distance**3)).sum(1)
    others = (MASSES[:, None] * pull).sum(0) - MASSES[:, None] * pull
    return torch.cat([speed, GRAVITY * (drag - (SUN + MASSES[:, None]) * pull - others)]).reshape(-1)


PROBLEMS["C5"] = Problem(_five_bodies, torch.tensor(PLANETS, dtype=DTYPE))


def _kepler(eccentricity: float) -> list[Tensor]:
    """By Kepler's equation u - e sin u = t."""
    u, e = _number(END), eccentricity
    for _ in range(50):
        u = u - (u - e * u.sin() - END) / (1 - e * u.cos())
    root, rate = (1 - e**2) ** 0.5, 1 / (1 - e * u.cos())
    return [u.cos() - e, root * u.sin(), -rate * u.sin(), rate * root * u.cos()]


for _i in range(5):
    _e = 0.1 + 0.2 * _i

    @_problem(f"D{_i + 1}", 1 - _e, 0.0, 0.0, ((1 + _e) / (1 - _e)) ** 0.5, exact=lambda e=_e: _kepler(e))
    def _orbit(t, a, b, c, d):
        cube = (a**2 + b**2) ** 1.5
        return [c, d, -a / cube, -b / cube]


def _bessel(x: Tensor) -> list[Tensor]:
    """J of order 1/2, sqrt(2 / (pi x)) sin x, and its derivative."""
    scale = (2 / (torch.pi * x)).sqrt()
    return [scale * x.sin(), scale * (x.cos() - x.sin() / (2 * x))]


@_problem("E1", *(float(y) for y in _bessel(_number(1.0))), exact=lambda: _bessel(_number(END + 1)))
def _bessels(t, a, b):
    return [b, -(b / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * a)]


@_problem("E2", 2.0, 0.0)
def _van_der_pol(t, a, b):
    return [b, (1 - a**2) * b - a]


@_problem("E3", 0.0, 0.0)
def _duffing(t, a, b):
    return [b, a**3 / 6 - a + 2 * (2.78535 * t).sin()]


@_problem("E4", 30.0, 0.0)
def _falling_body(t, a, b):
    return [b, 0.032 - 0.4 * b**2]


@_problem("E5", 0.0, 0.0)
def _pursuit(t, a, b):
    return [b, (1 + b**2).sqrt() / (25 - t)]


class Outcome(NamedTuple):
    error: float  # max |y - exact| / (.01 + |exact|) at the end
    nfe: int


def with_scipy(name: str, method: str, rtol: float, atol: float) -> tuple[Tensor, int]:
    field = lambda t, y: PROBLEMS[name].field(_number(t), torch.from_numpy(y)).numpy()  # noqa: E731
    s = solve_ivp(field, (0, END), PROBLEMS[name].y0.numpy(), method=method, rtol=rtol, atol=atol)
    return torch.from_numpy(s.y[:, -1].copy()), s.nfev


def numeric(name: str) -> Tensor:
    """The solution at the end, by scipy."""
    return with_scipy(name, "DOP853", 2.3e-14, 1e-15)[0]  # no smaller rtol is taken


@cache
def exact(name: str) -> Tensor:
    """The solution at the end, by its formula or else numerically."""
    formula = PROBLEMS[name].exact
    if formula is None:
        return numeric(name)
    value = formula()
    return value if isinstance(value, Tensor) else torch.stack([torch.as_tensor(x, dtype=DTYPE) for x in value])


@cache
def peer(name: str, method: str, rtol: float) -> Outcome:
    """What scipy's method of the same class attains at the same tolerances."""
    y, nfe = with_scipy(name, SAME_CLASS[method], rtol, rtol / 100)
    return Outcome(scaled_error(y, exact(name)), nfe)


@torch.no_grad()
def solution(name: str, stepper: Stepper, rtol: float) -> Solution:
    """Ours, whatever its status."""
    problem = PROBLEMS[name]
    return solve(problem.field, problem.y0, 0.0, END, Solver(stepper, PID(rtol, rtol / 100)), throw=False)


def ours(name: str, method: str, rtol: float) -> Outcome:
    s = solution(name, STEPPERS[method], rtol)
    return Outcome(scaled_error(s.ys, exact(name)), int(s.stats.nfe))
