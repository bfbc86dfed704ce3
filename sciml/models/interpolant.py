"""Stochastic interpolants: flows from noise to data whose velocity is learned by regression, without solving."""

from collections.abc import Callable
from math import pi
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sciml.calculus.probes import Law
from sciml.models.cnf import CNF, Divergence
from sciml.models.draws import brownian, normals_like
from sciml.solvers.control import Grid
from sciml.solvers.hashed import GAMMA
from sciml.solvers.solve import Solver, solve
from sciml.solvers.stochastic_runge_kutta import SRA1
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Draws

Coupling = Literal["independent", "optimal"]
ScheduleName = Literal["linear", "trigonometric"]


class Schedule(NamedTuple):
    """alpha and beta of I(t) = alpha(t) x0 + beta(t) x1, from 1 to 0 and from 0 to 1, and their derivatives."""

    alpha: Callable[[Tensor], Tensor]
    beta: Callable[[Tensor], Tensor]
    alpha_rate: Callable[[Tensor], Tensor]
    beta_rate: Callable[[Tensor], Tensor]


SCHEDULES = {
    "linear": Schedule(lambda t: 1 - t, lambda t: t, lambda t: -torch.ones_like(t), torch.ones_like),
    "trigonometric": Schedule(
        lambda t: (pi / 2 * t).cos(),
        lambda t: (pi / 2 * t).sin(),
        lambda t: -pi / 2 * (pi / 2 * t).sin(),
        lambda t: pi / 2 * (pi / 2 * t).cos(),
    ),
}


class StochasticInterpolant(CNF):
    r"""The density of x(1) where dx/dt = b(t, x), x(0) is normal and b is learned from points of x(1).

    Between noise :math:`x_0 \sim N(0, I)` and a point :math:`x_1` of the data stands the interpolant
    :math:`I(t) = \alpha(t) x_0 + \beta(t) x_1`. Its law at every time is that of x(t) for the velocity
    :math:`b(t, x) = E[\dot\alpha x_0 + \dot\beta x_1 | I(t) = x]`, a conditional mean, which least squares find
    (`objective`): training solves no equation. With ``schedule="linear"``, where interpolants are straight lines, this
    is flow matching. Densities, samples and export are those of a `CNF`.

    The velocity tells the mean of the noise in a point too,
    :math:`E[x_0 | I(t) = x] = (\dot\beta x - \beta b) / (\alpha \dot\beta - \dot\alpha \beta)`, and thereby the score
    :math:`\nabla \log p(t, x) = -E[x_0 | x] / \alpha`. So for any :math:`\epsilon \ge 0` the stochastic equation

    .. math:: dx = (b(t, x) - \epsilon E[x_0 | x]) dt + \sqrt{2 \epsilon \alpha(t)} dW

    has the same law at every time; its noise forgives errors of b in places that are seldom visited.

    Args:
        field: b, maps (t, x) to dx/dt, each point (b, d) for itself, e.g. `TimeDependent`; smooth, as tanh, gelu, silu.
            It is given times (b, 1) in training, and such ones or a single time by solvers.
        dim: d.
        schedule: ``"linear"``, alpha = 1 - t and beta = t, or ``"trigonometric"``, cosine and sine of pi t / 2, which
            keep the variance of data whose own is 1.
        coupling: ``"independent"``; or ``"optimal"``: noise and data of a batch are paired so that the sum of squared
            distances is least, which straightens paths, at a cost of some milliseconds for 250 points and of a tenth of
            a second for 1000; the score is not known then.
        diffusion: epsilon of `sample`; 0 follows b alone.
        solver: how to integrate b; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        noisy_solver: how to integrate the stochastic equation; None takes 64 steps of SRA1.
        divergence: as of `CNF`, but for densities only.
        law: likewise.
        samples: likewise.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first, and after `objective`.

    Reference:
        M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, Stochastic interpolants (2023), arXiv:2303.08797: theorems on
        transport and Fokker-Planck equations, and one-sided interpolants.

        Y. Lipman, R. T. Q. Chen, H. Ben-Hamu, M. Nickel, M. Le, Flow matching for generative modeling, ICLR 2023,
        arXiv:2210.02747.

        A. Tong et al., Improving and generalizing flow-based generative models with minibatch optimal transport, TMLR
        2024, arXiv:2302.00482 (the optimal coupling).

    Example:
        >>> import torch
        >>> from sciml.models import MLP, StochasticInterpolant, TimeDependent
        >>> flow = StochasticInterpolant(TimeDependent(MLP(3, 2, activation="tanh")), dim=2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> flow.objective(torch.ones(5, 2), generator).shape, flow.sample(5, generator).shape
        (torch.Size([]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        field: nn.Module,
        dim: int,
        schedule: ScheduleName = "linear",
        coupling: Coupling = "independent",
        diffusion: float = 0.0,
        solver: Solver | None = None,
        noisy_solver: Solver | None = None,
        divergence: Divergence = "exact",
        law: Law = "rademacher",
        samples: int = 1,
    ):
        super().__init__(field, dim, solver, divergence, law, samples)
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected {' or '.join(map(repr, SCHEDULES))}, got {schedule!r}")
        if coupling not in ("independent", "optimal"):
            raise ValueError(f"coupling: expected 'independent' or 'optimal', got {coupling!r}")
        self.schedule, self.coupling, self.diffusion = schedule, coupling, diffusion
        self._check_diffusion(diffusion)
        self.noisy_solver = noisy_solver or Solver(SRA1(), Grid(n=64))

    def objective(self, x: Tensor, draws: Draws = None) -> Tensor:
        """The mean square over points and coordinates of what the velocity lacks, at one random time per point.

        Its least value is not 0 but the variance of the velocities that meet in a point.

        Args:
            x: points (b, d) of the data.
            draws: times, which are spread evenly over a batch, and noise; by numbers of samples, over consecutive ones.
        """
        self._check(x)
        self.stats = None  # it solves nothing
        a, b, a_rate, b_rate = SCHEDULES[self.schedule]
        t, noise = times(x, draws), normals_like(x, draws)
        if self.coupling == "optimal":
            noise = noise[_nearest(noise, x)]
        velocity = a_rate(t) * noise + b_rate(t) * x
        lacking = self.field(t, a(t) * noise + b(t) * x) - velocity
        return lacking.square().sum() / max(1, x.numel())

    def denoiser(self, t: Tensor, x: Tensor) -> Tensor:
        """The mean E[x0 | I(t) = x] of the noise (b, d) in points (b, d) at a time, () or (b, 1).

        Raises:
            ValueError: with the optimal coupling; noise and data depend on one another, so that it tells no score.
        """
        self._check_independent()
        return self._noise_of(t, x, self.field(t, x))

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """The gradient of log p(t, x) in x, (b, d), at points (b, d) and a time below 1, () or (b, 1).

        Raises:
            ValueError: with the optimal coupling.
        """
        return -self.denoiser(t, x) / SCHEDULES[self.schedule].alpha(t)

    def sample(self, count: int, draws: Draws = None, diffusion: float | None = None) -> Tensor:
        """Draws points.

        Args:
            count: how many.
            draws: of the random numbers.
            diffusion: epsilon; None takes the model's.

        Returns:
            Points (count, d) in the dtype of the weights.

        Raises:
            ValueError: an epsilon that is negative, or not 0 with the optimal coupling.
        """
        epsilon = self.diffusion if diffusion is None else diffusion
        self._check_diffusion(epsilon)
        if not epsilon:
            return super().sample(count, draws)
        z = self._normals(count, draws)
        seed = draws if isinstance(draws, Tensor) else int(torch.randint(2**62, (), generator=draws, device=z.device))
        solution = solve(_Noisy(self, epsilon), z, 0.0, 1.0, self.noisy_solver, path=brownian(seed))
        self.stats = solution.stats
        return solution.ys

    def _noise_of(self, t: Tensor, x: Tensor, velocity: Tensor) -> Tensor:
        a, b, a_rate, b_rate = (curve(t) for curve in SCHEDULES[self.schedule])
        return (b_rate * x - b * velocity) / (a * b_rate - a_rate * b)

    def _check_diffusion(self, epsilon: float) -> None:
        if not epsilon >= 0:
            raise ValueError(f"diffusion: expected a number from 0 on, got {epsilon}")
        if epsilon:
            self._check_independent()

    def _check_independent(self) -> None:
        if self.coupling != "independent":
            raise ValueError("coupling: scores and diffusion expect 'independent', got 'optimal'")


class _Noisy(nn.Module, Diffusive):
    """The stochastic equation of an interpolant."""

    noise_type = "additive"

    def __init__(self, flow: StochasticInterpolant, epsilon: float):
        super().__init__()
        self.flow, self.epsilon = flow, epsilon

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        velocity = self.flow.field(t, y)
        return velocity - self.epsilon * self.flow._noise_of(t, y, velocity)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        alpha = SCHEDULES[self.flow.schedule].alpha(t).clamp(min=0)  # of the cosine round-off is left at 1
        return (2 * self.epsilon * alpha).sqrt() * dw


def times(x: Tensor, draws: Draws) -> Tensor:
    """A random time (b, 1, ..) for each sample of x (b, ..), spread evenly over the batch, in no order.

    By numbers n of the samples it is the fraction of 1/2 + n times the golden ratio, which spreads consecutive ones.
    """
    count = len(x)
    if isinstance(draws, Tensor):
        turns = draws.long() * GAMMA  # modulo 2^64, of which GAMMA is the ratio's fraction
        t = (turns.double() / 2.0**64 + 0.5).to(x)
    else:
        options = {"generator": draws, "device": x.device}
        places = torch.randperm(count, **options)  # or times would tell the order of samples
        t = (places + torch.rand(count, dtype=x.dtype, **options)) / max(1, count)
    return t.reshape(-1, *[1] * (x.ndim - 1))


def _nearest(noise: Tensor, x: Tensor) -> Tensor:
    """The order (b) in which noise (b, d) is paired with points (b, d) at the least sum of squared distances."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x.detach(), noise).square().nan_to_num(0, 0, 0)  # what is not finite is so in the loss too
    return torch.from_numpy(linear_sum_assignment(cost.double().cpu().numpy())[1]).to(x.device)
