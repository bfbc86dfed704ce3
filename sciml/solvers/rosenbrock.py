"""Rosenbrock methods: linearly implicit, one matrix and no iteration per step.

Stages u_i solve (M - h gamma J) u_i = gamma (h f(t + alpha_i h, y + sum_j a_ij u_j) + M sum_j c_ij u_j
+ h^2 gamma_i df/dt) with the Jacobian J and df/dt at the start of the step (Hairer & Wanner, Solving ODEs II, IV.7).
"""

from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.solvers.dense import polynomial, polynomial_curve, rows
from sciml.solvers.linear.operator import ShiftedOperator
from sciml.solvers.newton import ImplicitStepper
from sciml.solvers.stepper import Field, Interval, Step, combine

if TYPE_CHECKING:
    from sciml.solvers.march import Segment

Row = tuple[float, ...]


class Tableau(NamedTuple):
    """A Rosenbrock method of s stages.

    Attributes:
        gamma: the diagonal.
        a: s rows; stage i is taken at y + sum_(j < i) a[i][j] u_j.
        c: s rows; weights of earlier stages on its right-hand side.
        alpha: s nodes.
        gammas: s weights of df/dt.
        b: weights of the stages in the solution.
        error: weights in the error estimate.
        dense: rows H_1, H_2, .. of the dense output y0 (1 - s) + s (y1 + (1 - s) (k_1 + s (k_2 + ..))), k_i = H_i u.
    """

    gamma: float
    a: tuple[Row, ...]
    c: tuple[Row, ...]
    alpha: Row
    gammas: Row
    b: Row
    error: Row
    dense: tuple[Row, ...]


def ladder(tableau: Tableau) -> np.ndarray:
    """Coefficients (p, s) of theta, theta^2, .. in the stages' weights of the dense output."""
    h = np.array(tableau.dense)
    rungs = np.pad(h, ((0, 1), (0, 0))) - np.pad(h, ((1, 0), (0, 0)))  # those of (1 - s) (k_1 + s k_2 + ..)
    rungs[0] += tableau.b
    return rungs


_a = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)
RODAS5P = Tableau(
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _a,
        (*_a, 1.0),
        (*_a, 1.0, 1.0),
    ),
    c=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (
            30.91273214028599,
            -3.1208243349937974,
            77.79954646070892,
            34.28646028294783,
            -19.097331116725623,
            -28.087943162872662,
        ),
        (
            37.80277123390563,
            -3.2571969029072276,
            112.26918849496327,
            66.9347231244047,
            -40.06618937091002,
            -54.66780262877968,
            -9.48861652309627,
        ),
    ),
    alpha=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    gammas=(
        0.21193756319429014,
        -0.42387512638858027,
        -0.3384627126235924,
        1.8046452872882734,
        2.325825639765069,
        0.0,
        0.0,
        0.0,
    ),
    b=(*_a, 1.0, 1.0, 1.0),
    error=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    dense=(
        (
            25.948786856663858,
            -2.5579724845846235,
            10.433815404888879,
            -2.3679251022685204,
            0.524948541321073,
            1.1241088310450404,
            0.4272876194431874,
            -0.17202221070155493,
        ),
        (
            -9.91568850695171,
            -0.9689944594115154,
            3.0438037242978453,
            -24.495224566215796,
            20.176138334709044,
            15.98066361424651,
            -6.789040303419874,
            -6.710236069923372,
        ),
        (
            11.419903575922262,
            2.8879645146136994,
            72.92137995996029,
            80.12511834622643,
            -52.072871366152654,
            -59.78993625266729,
            -0.15582684282751913,
            4.883087185713722,
        ),
    ),
)


class Rosenbrock(ImplicitStepper):
    """A Rosenbrock method given by its tableau.

    The field at the end of a step is the carry. The gradient goes through the Jacobian. ``evaluations`` do not count
    the products with the Jacobian, of which a step takes as many as a system has unknowns.
    """

    tableau: ClassVar[Tableau]
    rungs: ClassVar[tuple[tuple[float, ...], ...]]
    adaptive: ClassVar[bool] = True
    dense: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read from the tableau what the solver wants to know."""
        super().__init_subclass__(**kwargs)
        cls.evaluations = len(cls.tableau.a)
        cls.rungs = rows(ladder(cls.tableau))

    def constants(self, t0: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The nodes of the stages and the end (s + 1), the dense output's coefficients."""
        nodes = torch.tensor([*self.tableau.alpha, 1.0], dtype=torch.float64, device=t0.device)
        return nodes, torch.tensor(self.rungs, dtype=torch.float64, device=y.device)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        """One step; without ``full`` the field at its end is left out."""
        gamma, rows, couplings, _, gammas, b, weights, _ = self.tableau
        *times, end = field.clocks(interval, field.constants[0], y)
        m, h = self.count(field, y), interval.scale
        mass, operator = self.mass(field, y), self.jacobian(field, times[0], y)
        inverse = self.solver(y.numel() // m).inverse(ShiftedOperator(mass, operator, h * gamma))
        rate = h * h * torch.func.jvp(lambda t: field(t, y), (times[0],), (torch.ones_like(times[0]),))[1].to(y.dtype)
        us: list[Tensor] = []
        found: list[Tensor] = []
        for i, t in enumerate(times):
            k = field(t, y + combine(rows[i], us, 1.0)) if i else carry[0]
            force = h * k + gammas[i] * rate if gammas[i] else h * k
            if i:
                coupling = combine(couplings[i], us, 1.0)
                force = force + (coupling if mass is None else mass.matvec(coupling.reshape(m, -1)).reshape(y.shape))
            u, known = inverse((gamma * force).reshape(m, -1))
            found.append(known)
            us.append(u.reshape(y.shape))
        y1 = y + combine(b, us, 1.0)
        status = self.status(field, ~reduce(and_, found))
        if not full:
            return Step(y1, None, tuple(us), (), status)
        return Step(y1, combine(weights, us, 1.0), tuple(us), (field(end, y1),), status)

    def interpolate(self, segment: "Segment", s: Tensor) -> Tensor:
        """The tableau's dense output at fractions s (l, k)."""
        return polynomial(segment, s, segment.stages, segment.const.stepper[-1])

    def curve(self, segment: "Segment") -> tuple[Tensor, ...]:
        """That of the same polynomial."""
        return polynomial_curve(segment.stages, self.rungs)


@dataclass(frozen=True)
class Rodas5P(Rosenbrock):
    """Steinebach's 5(4) pair (BIT 63, 2023, doi:10.1007/s10543-023-00967-x), L-stable, dense output of order 4.

    For a term with a mass, singular too, and for parabolic problems it keeps its order.
    """

    order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = RODAS5P
