"""The incompressible Navier-Stokes equations on a periodic square, for the vorticity."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from scipy.interpolate import CubicSpline
from torch import Generator, Tensor

from sciml.problems.constant import constant
from sciml.problems.periodic import PeriodicPDE, wavenumbers
from sciml.problems.problem import Curves
from sciml.problems.random_field import banded_coefficients
from sciml.solvers.term import real_dtype
from sciml.typing import Args

CACHED = 16 * 64**2  # points of all samples solved together; twice as many took 7 % longer


class Budget(NamedTuple):
    """Rates of change (..) of energy or enstrophy; their sum is the whole."""

    dissipation: Tensor
    drag: Tensor
    injection: Tensor


@constant
def multipliers(modes: int, length: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What makes velocities (2, ..) of a vorticity, and the vorticity's tendency of the two products of them."""
    kx, ky = k = wavenumbers(modes, length, 2, device)
    velocity = 1j * torch.stack([ky, -kx]) / _square(k)
    return velocity.to(dtype), torch.stack([kx**2 - ky**2, kx * ky]).to(dtype)


def _square(k: Tensor) -> Tensor:
    """|k|^2, with infinity for the mean, which no streamfunction has."""
    square = k.square().sum(0)
    return torch.where(square > 0, square, torch.inf)


@dataclass(frozen=True)
class NavierStokes(PeriodicPDE):
    """w_t + u . grad w = nu Laplace w - drag w + curl f on a periodic square, with fields w (b, 1, x, y).

    w = v_x - u_y is the vorticity, of zero mean, u = (u, v) the velocity without divergence, and f = (amplitude
    sin(kappa y), 0) with kappa = 2 pi wavenumber / length (Kolmogorov's flow) plus whatever `forcing` adds. With the
    momentum fluxes the advection is

        u . grad w = (d_xx - d_yy) (u v) + d_xy (v^2 - u^2)

    so that an evaluation takes four transforms: two velocities and two products. Products are not aliased; without
    viscosity, drag and forcing the equation in space keeps energy and enstrophy.

    ETDRK4, which `evolve` takes, is made for viscosity. Without it nothing is stiff, and Tsit5 is of higher order with
    less damping: over T = 1 from a random field with |k| <= 4 and rms velocity 1, 64 points and dt = .01, energy drifts
    by 3e-12 with ``solve(problem, problem.encode(w), 0.0, 1.0, Solver(Tsit5(), Grid(dt=0.01)))``, by 1e-9 with ETDRK4.

    Energy and enstrophy are means over the square, without the mean flow: E = <|u - mean|^2> / 2, Z = <w^2> / 2.

    Args:
        points: points of the grid along each axis.
        length: period along each axis.
        t1: final time.
        dt: step size in time; divides ``t1`` and all save times.
        nu: viscosity.
        drag: rate of linear (Rayleigh) drag on the vorticity.
        amplitude: of Kolmogorov's force; none by default.
        wavenumber: of Kolmogorov's force, in periods per length.
        mean: mean velocity, constant in time; it carries everything along.
        speed: root mean square of the velocity of the `initial` conditions.
        largest: their largest wavenumber, in periods per length.

    Raises:
        ValueError: a wavenumber is not resolved by the grid.

    References:
        S. A. Orszag, On the elimination of aliasing in finite-difference schemes by filtering high-wavenumber
        components, J. Atmos. Sci. 28 (1971), for the 2/3 rule; C. Basdevant, Technical improvements for direct
        numerical simulation of homogeneous three-dimensional turbulence, J. Comput. Phys. 50 (1983),
        doi:10.1016/0021-9991(83)90037-X, for fluxes that save transforms.
    """

    channels = ("vorticity",)
    space: ClassVar[int] = 2

    points: int = 64
    length: float = 2 * math.pi
    dt: float = 1e-2
    nu: float = 1e-3
    drag: float = 0.0
    amplitude: float = 0.0
    wavenumber: int = 4
    mean: tuple[float, float] = (0.0, 0.0)
    speed: float = 1.0
    largest: int = 4

    def __post_init__(self):
        for name in ("wavenumber", "largest"):
            if not 0 < getattr(self, name) < self.modes:
                raise ValueError(
                    f"{name}: expected one from 1 to the {self.modes - 1} that {self.points} points resolve, "
                    f"got {getattr(self, name)}"
                )

    @property
    def chunk(self) -> int:
        """So many samples solved together that an evaluation's fields stay in a core's cache."""
        return max(1, CACHED // self.points**2)

    def forcing(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
        """Override to add the curl of a force, of zero mean: values that broadcast to (b, 1, x, y).

        Args:
            t: time, 0-d.
            x: coordinates (x, 1).
            y: coordinates (1, y).
        """
        return None

    def symbol(self, k: Tensor) -> Tensor:
        """-nu |k|^2 - drag."""
        return -self.nu * k.square().sum(0) - self.drag

    def nonlinear(self, y: Tensor) -> Tensor:
        """The advection -u . grad w, without aliasing."""
        velocity, flux = multipliers(self.modes, self.length, y.dtype, y.device)
        u, v = self._velocity(y, velocity).unbind(-3)
        products = self.encode(torch.stack([u * v, (v - u) * (v + u)], -3))  # (.., 2, 2 m + 1, m + 1)
        return (products * flux).sum(-3, keepdim=True)

    def remainder(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """Advection and forcing."""
        rate = self.nonlinear(y)
        force = self.force(t, y)
        return rate if force is None else rate + force

    def force(self, t: Tensor, like: Tensor) -> Tensor | None:
        """The coefficients of the curl of all forces, in the dtype and on the device of other coefficients."""
        force = None
        if self.amplitude:
            force = _kolmogorov(self.modes, self.length, self.amplitude, self.wavenumber, like.dtype, like.device)
        if type(self).forcing is NavierStokes.forcing:
            return force
        x, y = (axis.to(like.device, real_dtype(like)) for axis in self.coordinates())
        more = self.forcing(t, x[:, None], y[None])
        if more is None:
            return force
        added = self.encode(more.expand(*more.shape[:-2], self.points, self.points))
        return added if force is None else force + added

    def velocity(self, w: Tensor) -> Tensor:
        """The velocity (.., 2, x, y) of a vorticity (.., 1, x, y), with the mean."""
        y = self.encode(w)
        return self._velocity(y, multipliers(self.modes, self.length, y.dtype, y.device)[0])

    def energy(self, w: Tensor) -> Tensor:
        """E (..) of a vorticity (.., 1, x, y)."""
        y = self.encode(w)
        return self._mean_product(y, y, 1 / _square(self.wave(y))) / 2

    def enstrophy(self, w: Tensor) -> Tensor:
        """Z (..) of a vorticity (.., 1, x, y)."""
        y = self.encode(w)
        return self._mean_product(y, y, 1.0) / 2

    def spectrum(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The energy by wavenumber.

        Args:
            w: vorticity (.., 1, x, y).

        Returns:
            The wavenumbers k_s = 2 pi s / length (s) from s = 1 on, and the energy (.., s) of the shells |k| = k_s to
            half a step; the sum over s is `energy`.
        """
        y = self.encode(w)
        k = self.wave(y)
        shell = (k.square().sum(0).sqrt() * (self.length / (2 * math.pi))).round().long().flatten()
        density = (self._weights(y) * y.abs().square() / (2 * _square(k))).flatten(-2)[..., 0, :]
        sums = density.new_zeros(*density.shape[:-1], int(shell.max()) + 1).index_add_(-1, shell, density)
        return 2 * math.pi / self.length * torch.arange(1, sums.shape[-1], device=w.device), sums[..., 1:]

    def energy_budget(self, t: Tensor, w: Tensor) -> Budget:
        """dE/dt = -2 nu Z - 2 drag E + <(u - mean) . f> at one time t, of a vorticity (.., 1, x, y)."""
        y = self.encode(w)
        return self._budget(t, y, 1 / _square(self.wave(y)))

    def enstrophy_budget(self, t: Tensor, w: Tensor) -> Budget:
        """dZ/dt = -nu <|grad w|^2> - 2 drag Z + <w curl f> at one time t, of a vorticity (.., 1, x, y)."""
        y = self.encode(w)
        return self._budget(t, y, torch.ones_like(self.wave(y)[0]))

    def curves(self, ts: Tensor, u: Tensor) -> dict[str, Curves]:
        """Spectra at five times, and both budgets over time."""
        chosen = torch.linspace(0, len(ts) - 1, 5).long()[1:].tolist()
        k, spectra = self.spectrum(u)
        resolved = slice(0, self.modes - 1)  # further shells are cut by the corners of the square
        pictures = {
            "spectrum": Curves(
                k[resolved], {f"E(k) at t = {ts[i]:.3g}": spectra[i, resolved] for i in chosen}, "k", log=True
            )
        }
        for name, (amount, rates) in self._histories(ts, u[None]).items():
            slope = CubicSpline(ts.numpy(), amount[0].numpy()).derivative()(ts.numpy())
            terms = {key: rate[0] for key, rate in rates._asdict().items()}
            pictures[f"{name}_budget"] = Curves(ts, {f"d/dt {name}": torch.from_numpy(slope), **terms})
        return pictures

    def residuals(self, ts: Tensor, u: Tensor) -> dict[str, float]:
        """How far energy and enstrophy are from their budgets' integrals over the saved times (splines of order 4)."""
        found = {}
        for name, (amount, rates) in self._histories(ts, u).items():
            total = CubicSpline(ts.numpy(), torch.stack(rates).sum(0).numpy(), axis=1).antiderivative()(ts.numpy())
            missed = (amount - amount[:, :1] - torch.from_numpy(total)).abs() / amount.amax(1, keepdim=True)
            found[f"{name}_budget_residual"] = missed.max().item()
        return found

    def initial(self, count: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gaussian vorticity with |k| <= ``largest``, equally strong at each, scaled to the rms velocity ``speed``."""
        y = banded_coefficients(count, self.modes, self.largest, generator)
        energy = self._mean_product(y, y, 1 / _square(self.wave(y))) / 2
        return self.decode(y * (self.speed / (2 * energy).sqrt())[:, None, None, None]).to(dtype)

    def _velocity(self, y: Tensor, multiplier: Tensor) -> Tensor:
        """The velocity (.., 2, x, y) of coefficients (.., 1, 2 m + 1, m + 1)."""
        velocity = self.decode(y * multiplier)
        if any(self.mean):
            velocity = velocity + torch.tensor(self.mean, dtype=velocity.dtype, device=y.device)[:, None, None]
        return velocity

    def _histories(self, ts: Tensor, u: Tensor) -> dict[str, tuple[Tensor, Budget]]:
        """Energy and enstrophy (b, t) of u (b, t, 1, x, y), with their budgets."""
        found = {}
        for name in ("energy", "enstrophy"):
            each = [getattr(self, f"{name}_budget")(t, w) for t, w in zip(ts, u.unbind(1), strict=True)]
            found[name] = getattr(self, name)(u), Budget(*(torch.stack(rates, 1) for rates in zip(*each, strict=True)))
        return found

    def _budget(self, t: Tensor, y: Tensor, weight: Tensor) -> Budget:
        viscous = -self.nu * self.wave(y).square().sum(0) * weight
        force = self.force(t, y)
        return Budget(
            self._mean_product(y, y, viscous),
            self._mean_product(y, y, -self.drag * weight),
            torch.zeros_like(y[..., 0, 0, 0].real) if force is None else self._mean_product(y, force, weight),
        )

    def _mean_product(self, a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
        """<a (weight b)> (..) of coefficients (.., 1, 2 m + 1, m + 1), by Parseval's identity."""
        return ((a.conj() * b).real * (self._weights(a) * weight)).sum((-3, -2, -1)).to(real_dtype(a))

    def _weights(self, like: Tensor) -> Tensor:
        """How many coefficients one stands for (m + 1): those of -ky are not stored."""
        return torch.where(torch.arange(self.modes, device=like.device) > 0, 2.0, 1.0).to(torch.float64)


@constant
def _kolmogorov(
    modes: int, length: float, amplitude: float, wavenumber: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The coefficients (1, 2 m + 1, m + 1) of the curl of (amplitude sin(kappa y), 0), which is -d/dy of the first."""
    kappa = 2 * math.pi * wavenumber / length
    force = torch.zeros(1, 2 * modes - 1, modes, dtype=dtype, device=device)
    force[0, 0, wavenumber] = -amplitude * kappa / 2
    return force
