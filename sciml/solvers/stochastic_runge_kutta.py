"""Stochastic Runge-Kutta methods of strong order 3/2, which estimate their errors by methods of order 1 within them.

They read the space-time Levy area H of the path: int_0^h W ds = h (w / 2 + H).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from sciml.solvers import tableau as tab
from sciml.solvers.path import Levy
from sciml.solvers.stepper import Field, Interval, Step, combine, displace
from sciml.solvers.stochastic import Stochastic, with_root
from sciml.typing import Calculus, NoiseType, Number

if TYPE_CHECKING:
    from sciml.solvers.march import Segment


class Rows(NamedTuple):
    """The coefficients of a method of Roessler's class; the first stage of either kind is the state itself."""

    a0: tuple[tab.Row, ...]  # of the drift in the drift's stages
    b0: tuple[tab.Row, ...]  # of the diffusion in these
    a1: tuple[tab.Row, ...]  # of the drift in the diffusion's stages
    b1: tuple[tab.Row, ...]
    alpha: tab.Row
    beta1: tab.Row
    beta2: tab.Row
    beta3: tab.Row
    beta4: tab.Row


SOSRI2_ROWS = Rows(
    a0=(
        (0.13804532298278663,),
        (0.5818361298250374, 0.4181638701749618),
        (0.4670018408674211, 0.8046204792187386, -0.27162232008616016),
    ),
    b0=(
        (0.08852381537667678,),
        (1.0317752458971061, 0.4563552922077882),
        (1.73078280444124, -0.46089678470929774, -0.9637509618944188),
    ),
    a1=(
        (0.45605532163856893,),
        (0.7555807846451692, 0.24441921535482677),
        (0.6981181143266059, 0.3453277086024727, -0.04344582292908241),
    ),
    b1=(
        (0.6753186815412179,),
        (-0.07452812525785148, -0.49783736486149366),
        (-0.5591906709928903, 0.022696571806569924, -0.8984927888368557),
    ),
    alpha=(-0.15036858140642623, 0.7545275856696072, 0.686995463807979, -0.2911544680711602),
    beta1=(-0.45315689727309133, 0.8330937231303951, 0.3792843195533544, 0.24077885458934192),
    beta2=(-0.4994383733810986, 0.9181786186154077, -0.25613778661003145, -0.16260245862427797),
    beta3=(1.4531568972730915, -0.8330937231303933, -0.3792843195533583, -0.24077885458934023),
    beta4=(-0.4976090683622265, 0.9148155835648892, -1.4102107084476505, 0.9930041932449877),
)


class Embedded(Stochastic):
    """A method of strong order 3/2, whose error estimate is the difference to a method of order 1."""

    adaptive: ClassVar[bool] = True
    levy: ClassVar[bool] = True
    order: ClassVar[int] = 2
    strong: ClassVar[float] = 1.5
    nodes: ClassVar[tuple[float, ...]] = (0.0, 0.25, 0.75, 1.0)  # where a step evaluates drift or diffusion

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes (s)."""
        return (torch.tensor(self.nodes, dtype=torch.float64, device=t0.device),)

    @property
    def error_order(self) -> float:
        """That of a step of the method of strong order 1."""
        return 1.5


@dataclass(frozen=True)
class SRIW1(Embedded):
    """Roessler's method for Ito equations of diagonal or scalar noise: strong order 3/2, weak order 2.

    Two evaluations of the drift and four of the diffusion; those of the drift are counted. Additive noise goes with it
    where it is one of these too, and is declared as such.

    References:
        A. Roessler, Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations,
        SIAM J. Numer. Anal. 48 (2010), table 6.3, doi:10.1137/09076636X. C. Rackauckas, Q. Nie, Adaptive methods for
        stochastic differential equations via natural embeddings and rejection sampling with memory, DCDS-B 22 (2017),
        doi:10.3934/dcdsb.2017133.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "scalar")

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        w, h = dx.w, interval.scale
        start, quarter, most, end = field.clocks(interval, field.constants[0], y)
        root, mean, double, triple = _integrals(dx, h)
        ones = torch.ones_like(w)
        f0 = field.fitting(field(start, y), y)
        g0 = field.diffused(start, y, ones)
        drift, noise = h * f0, root * g0
        f1 = field(most, torch.add(y, drift, alpha=0.75).addcmul(g0, mean, value=1.5))
        early = torch.add(y, drift, alpha=0.25)
        d1 = field.diffused(quarter, torch.add(early, noise, alpha=0.5), ones) - g0
        d2 = field.diffused(end, y + drift - noise, ones) - g0
        rise = 3 * root * torch.add(d1, d2, alpha=1 / 6)
        d3 = field.diffused(quarter, torch.add(early, noise, alpha=-1.5) + rise, ones) - g0
        error = (2 / 3 * h) * (f1 - f0)
        error = error.addcmul(d1, torch.add(triple, mean, alpha=-0.8), value=5 / 3)
        error = error.addcmul(d2, triple + mean, value=-2 / 3).addcmul(d3, triple)
        first = drift.addcmul(g0, w).addcmul(d1, w + double, value=4 / 3)
        first = first.addcmul(d2, torch.add(w, double, alpha=-0.5), value=2 / 3)
        return Step(y + (first + error), error, (), ())


def _integrals(dx: Levy, h: Number) -> tuple[Number, Tensor, Tensor, Tensor]:
    """The root of h, and I_10 / h, I_11 / sqrt h and I_111 / h over a step, 0 over one of no length."""
    w, square = dx.w, dx.w * dx.w
    h, root = with_root(h, w)
    mean = torch.add(dx.h, w, alpha=0.5)
    if isinstance(h, float):
        triple = torch.add(square, -3 * h) * w * (1 / (6 * h) if h else 0.0)
        return root, mean, (square - h) * (0.5 / root), triple
    return root, mean, (square - h) / (2 * root), torch.add(square, h, alpha=-3) * (w / (6 * root * root))


@dataclass(frozen=True)
class SOSRI2(Embedded):
    """The stability-optimised method of Rackauckas and Nie, for what `SRIW1` is for: strong order 3/2.

    Four evaluations of the drift and four of the diffusion. Of all methods with stages of drift and diffusion like
    these it bears large drifts and noises best, and two stages at the end of a step tell how stiff the drift is.

    Reference:
        C. Rackauckas, Q. Nie, Stability-optimized high order methods and stiffness detection for pathwise stiff
        stochastic differential equations (2018), arXiv:1804.04344; order conditions: A. Roessler (2010), theorem 6.1.
    """

    evaluations: ClassVar[int] = 4
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "scalar")
    stability: ClassVar[float] = tab.stability_interval(tab.Tableau((*SOSRI2_ROWS.a0, SOSRI2_ROWS.alpha), ()))
    nodes: ClassVar[tuple[float, ...]] = (0.0, sum(SOSRI2_ROWS.a0[0]), sum(SOSRI2_ROWS.a1[0]), 1.0)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        rows, w, h = SOSRI2_ROWS, dx.w, interval.scale
        start, early, late, end = field.clocks(interval, field.constants[0], y)
        root, mean, double, triple = _integrals(dx, h)
        ones = torch.ones_like(w)
        fs, gs = [field.fitting(field(start, y), y)], [field.diffused(start, y, ones)]
        places = [y]
        for i, (t, s) in enumerate(((early, late), (end, end), (end, end))):
            at = displace(y, rows.a1[i], fs, h) + root * combine(rows.b1[i], gs, 1.0)
            places.append(displace(y, rows.a0[i], fs, h).addcmul(mean, combine(rows.b0[i], gs, 1.0)))
            fs.append(field(t, places[-1]))
            gs.append(field.diffused(s, at, ones))
        weighted = lambda weights: combine(weights, gs, 1.0)  # noqa: E731
        error = combine((rows.alpha[0] - 1, *rows.alpha[1:]), fs, h)
        error = error.addcmul(mean, weighted(rows.beta3)).addcmul(triple, weighted(rows.beta4))
        first = (h * fs[0]).addcmul(w, weighted(rows.beta1)).addcmul(double, weighted(rows.beta2))
        return Step(y + (first + error), error, (places[3] - places[2], fs[3] - fs[2]), ())

    def probe(self, segment: "Segment") -> tuple[Tensor, Tensor]:
        """The last two stages of the drift."""
        gap, rise = segment.stages
        return gap, rise


@dataclass(frozen=True)
class SRA1(Embedded):
    """Roessler's method for additive noise: strong order 3/2, weak order 2; the diffusion may depend on time.

    Reference:
        A. Roessler, SIAM J. Numer. Anal. 48 (2010), table 6.2, doi:10.1137/09076636X.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "ito"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("additive",)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        mean, h = 0.5 * dx.w + dx.h, interval.scale
        start, _, most, end = field.clocks(interval, field.constants[0], y)
        f0 = field.fitting(field(start, y), y)
        rise = field.diffused(end, y, mean)
        f1 = field(most, y + (0.75 * h) * f0 + 1.5 * rise)
        last = field.diffused(end, y, dx.w)
        error = (2 / 3 * h) * (f1 - f0) + (field.diffused(start, y, mean) - rise)
        return Step(y + (h * f0 + last + error), error, (), ())


@dataclass(frozen=True)
class ShARK(Embedded):
    """The shifted additive-noise Runge-Kutta method: strong order 3/2 with the smallest leading error of its kind.

    Where the diffusion depends on time, what it changes over a step is taken to be linear.

    Reference:
        J. Foster, G. dos Reis, C. Strange, High order splitting methods for SDEs satisfying a commutativity condition,
        SIAM J. Numer. Anal. 62 (2024), eq. 6.1, doi:10.1137/23M155147X.
    """

    evaluations: ClassVar[int] = 2
    calculus: ClassVar[Calculus] = "stratonovich"
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("additive",)
    nodes: ClassVar[tuple[float, ...]] = (0.0, 5 / 6, 1.0)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Levy, full: bool = True
    ) -> Step:
        """One step over the increment and the area of the path."""
        h = interval.scale
        start, late, end = field.clocks(interval, field.constants[0], y)
        shifted = y + field.diffused(start, y, dx.h)
        rise = field.diffused(start, y, dx.w)
        f0 = field.fitting(field(start, shifted), y)
        f1 = field(late, shifted + (5 / 6) * (h * f0 + rise))
        rest = 0.5 * dx.w - dx.h  # of g(t) the part that its change over the step is weighted with
        change = field.diffused(end, y, rest) - field.diffused(start, y, rest)
        error = (0.6 * h) * (f1 - f0)
        return Step(y + (h * f0 + rise + change + error), error, (), ())
