"""Latent stochastic equations: trajectories as observations of a diffusion in a latent space."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sciml.models.draws import brownian
from sciml.models.encoders import BackwardGRU
from sciml.models.latent import StartedModel
from sciml.models.mlp import MLP
from sciml.models.neural_ode import check_times
from sciml.solvers.control import PID
from sciml.solvers.solve import Solver, solve
from sciml.solvers.stochastic_runge_kutta import SRIW1
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Seed

LEAST = 1e-3  # diffusion, so that the two drifts can be compared


class CoordinateDiffusion(nn.Module):
    """A net for each coordinate by itself, as diagonal noise has it: g_i(z_i) in (LEAST, scale).

    Args:
        size: number of coordinates.
        width: size of the hidden layer of each.
        scale: the largest value; the nets start at about half of it.
    """

    def __init__(self, size: int, width: int = 16, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.inner, self.bias = nn.Parameter(torch.randn(size, width)), nn.Parameter(torch.randn(size, width))
        self.outer = nn.Parameter(torch.randn(size, width) / width)

    def forward(self, z: Tensor) -> Tensor:
        """Of states (.., size), of their shape."""
        hidden = torch.tanh(torch.addcmul(self.bias, z[..., None], self.inner))
        return LEAST + (self.scale - LEAST) * torch.sigmoid((hidden * self.outer).sum(-1))


class LatentSDE(StartedModel):
    r"""Trajectories as observations, with normal noise, of a diffusion in a latent space.

    The prior is dz = f(z) dt + g(z) dW, the posterior of a trajectory dz = h(z, context(t)) dt + g(z) dW, where a GRU
    that reads the observations from the last to the first gives the context of each of their intervals. The posterior's
    divergence from the prior is :math:`\frac12 E \int |(h - f) / g|^2 dt`, and is integrated along with the path.

    Args:
        channels: number of components of an observation.
        latent: number of latent coordinates.
        context: size of the context.
        width: of the hidden layers.
        noise: deviation of the observations' noise at the start; it is learnt.
        diffusion: the largest value of g.
        solver: how to integrate both; None takes SRIW1 with rtol and atol 1e-2.

    Attributes:
        stats: evaluations and steps of the last solve; None before the first.

    Reference:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, Scalable gradients for stochastic differential equations,
        AISTATS 2020, arXiv:2001.01328, section 5.

    Example:
        >>> import torch
        >>> from sciml.models import LatentSDE
        >>> model = LatentSDE(channels=2)
        >>> ts, ys = torch.linspace(0, 1, 5), torch.zeros(3, 5, 2)
        >>> model.posterior(ts, ys, torch.ones_like(ys, dtype=torch.bool)).elbo.shape
        torch.Size([3])
        >>> model.sample(7, ts).shape
        torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        channels: int,
        latent: int = 4,
        context: int = 32,
        width: int = 64,
        noise: float = 0.1,
        diffusion: float = 1.0,
        solver: Solver | None = None,
    ):
        super().__init__(channels, latent, noise)
        if not diffusion > LEAST:
            raise ValueError(f"diffusion: expected a number above {LEAST}, got {diffusion}")
        self.solver = solver or Solver(SRIW1(), PID(rtol=1e-2, atol=1e-2))
        self.encoder = BackwardGRU(channels, width)
        self.context, self.start = nn.Linear(width, context), nn.Linear(context, 2 * latent)
        self.prior = MLP(latent, latent, width, activation="softplus")
        self.drift = MLP(latent + context, latent, width, activation="softplus")
        self.diffusion = CoordinateDiffusion(latent, scale=diffusion)
        self.decoder = nn.Linear(latent, channels)

    def contexts(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """What the GRU knows at each observation of that and all later ones: (b, t, context)."""
        return self.context(super().contexts(ts, ys, mask))

    def path(self, z0: Tensor, ts: Tensor, contexts: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """A path of the posterior, and its divergence from the prior."""
        check_times(ts, self.solver)
        states = self._solved(Posterior(self), torch.cat([z0, torch.zeros_like(z0[:, :1])], -1), ts, seed, contexts)
        return states[..., :-1], states[:, -1, -1]

    def prior_path(self, z0: Tensor, ts: Tensor, seed: Seed) -> Tensor:
        """A path of the prior."""
        return self._solved(Prior(self), z0, ts, seed)

    def _solved(self, term: Diffusive, y0: Tensor, ts: Tensor, seed: Seed, *args: Tensor) -> Tensor:
        """The states (b, t, ..) at times, of which the first is that of y0."""
        early = 1e-6 * (ts[..., -1:] - ts[..., :1])  # the time at which a step starts is rounded
        args = ((ts - early).detach().to(y0), *args) if args else ()
        folds, path = self.readings(self.solver), brownian(seed)
        solution = solve(term, y0, ts[..., 0], ts[..., -1], self.solver, args=args, path=path, save_at=ts, folds=folds)
        self.note(solution)
        self.stats = solution.stats
        return solution.ys if self.solver.lanes == "each" else solution.ys.transpose(0, 1)


class Prior(nn.Module, Diffusive):
    """dz = f(z) dt + g(z) dW."""

    noise_type = "diagonal"

    def __init__(self, model: LatentSDE):
        super().__init__()
        self.rate, self.diffusion = model.prior, model.diffusion

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The rate f."""
        return self.rate(y)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise g dW."""
        return self.diffusion(y) * dw


class Posterior(nn.Module, Diffusive):
    """dz = h(z, context) dt + g(z) dW, and the rate of divergence from the prior as the last entry of the state.

    ``args`` are the times (t) or (b, t) of the contexts and these, (b, t, k); each holds until the next.
    """

    noise_type = "diagonal"

    def __init__(self, model: LatentSDE):
        super().__init__()
        self.rate, self.prior, self.diffusion = model.drift, model.prior, model.diffusion

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The rate h, and |(h - f) / g|^2 / 2."""
        ts, contexts = args
        z = y[..., :-1]
        rate, prior = self.rate(torch.cat([z, self.context(t, ts, contexts)], -1)), self.prior(z)
        excess = (rate - prior) / self.diffusion(z)
        return torch.cat([rate, 0.5 * excess.square().sum(-1, keepdim=True)], -1)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The noise g dW; the divergence has none."""
        return functional.pad(self.diffusion(y[..., :-1]) * dw[..., :-1], (0, 1))

    @staticmethod
    def context(t: Tensor, ts: Tensor, contexts: Tensor) -> Tensor:
        """The context (b, k) at a time, 0-d or (b, 1)."""
        last = ts.shape[-1] - 1
        if ts.ndim == 1 and t.ndim == 0:
            place = torch.searchsorted(ts, t.reshape(1), right=True).sub(1).clamp(0, last)
            return contexts.index_select(1, place).squeeze(1)
        t = t.reshape(-1, 1).expand(len(contexts), 1).contiguous()
        place = torch.searchsorted(ts.expand(len(contexts), -1).contiguous(), t, right=True).sub(1).clamp(0, last)
        return contexts.gather(1, place[..., None].expand(-1, 1, contexts.shape[-1])).squeeze(1)
