"""Latent ordinary equations: trajectories as observations of an ODE's solution in a latent space."""

from typing import Literal, get_args

from torch import Tensor, nn

from sciml.models.encoders import ODERNN, ObservedGRU
from sciml.models.latent import StartedModel
from sciml.models.mlp import MLP
from sciml.models.neural_ode import Autonomous, NeuralODE
from sciml.models.regularizers import STEER, Regularizer
from sciml.solvers.solve import Solver
from sciml.typing import Seed

Encoder = Literal["ode_rnn", "gru"]


class LatentODE(StartedModel):
    r"""Trajectories as observations, with normal noise, of an ODE's solution in a latent space.

    dz/dt = field(t, z) from z(t0) ~ N(m, s^2), y_i ~ N(A z(t_i) + b, noise^2). The start's posterior is a normal
    distribution that an encoder makes of the observations, which it reads from the last to the first; what is missing
    or hidden from it may lie anywhere. All but field and encoder is linear.

    Args:
        channels: number of components of an observation.
        latent: number of latent coordinates.
        width: of the hidden layers, and of what the encoder knows.
        noise: deviation of the observations' noise at the start; it is learnt, for each component.
        encoder: ``"ode_rnn"``, an ODE between observations and a GRU's update at them; or ``"gru"``, a GRU over the
            times that are observed, which is quicker where these are few and sees what time it is.
        field: maps (t, z) to dz/dt; None takes a perceptron of two hidden layers that does not see the time.
        solver: how to integrate; None takes Tsit5 with rtol 1e-4 and atol 1e-6.
        regularizer: what makes it easy to solve in training, as of `NeuralODE`; not `STEER`, since solves end at the
            last observation.

    Attributes:
        ode: the flow in the latent space, with the regulariser's penalty.
        stats: evaluations and steps of the last solve; None before the first.

    Raises:
        ValueError: if there is no such encoder, the noise is not positive, or the regulariser does not go with it.

    Reference:
        Y. Rubanova, R. T. Q. Chen, D. Duvenaud, Latent ODEs for irregularly-sampled time series, NeurIPS 2019,
        arXiv:1907.03907.

    Example:
        >>> import torch
        >>> from sciml.models import LatentODE
        >>> model = LatentODE(channels=2)
        >>> ts, ys = torch.linspace(0, 1, 5), torch.zeros(3, 5, 2)
        >>> model.posterior(ts, ys, torch.ones_like(ys, dtype=torch.bool)).elbo.shape
        torch.Size([3])
        >>> model.sample(7, ts).shape
        torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        channels: int,
        latent: int = 8,
        width: int = 64,
        noise: float = 0.1,
        encoder: Encoder = "ode_rnn",
        field: nn.Module | None = None,
        solver: Solver | None = None,
        regularizer: Regularizer | None = None,
    ):
        super().__init__(channels, latent, noise)
        if encoder not in get_args(Encoder):
            raise ValueError(f"encoder: expected one of {', '.join(get_args(Encoder))}, got {encoder!r}")
        if isinstance(regularizer, STEER):
            raise ValueError("regularizer: STEER moves the end of a solve, that of a latent ODE is at the last time")
        self.encoder = (ODERNN if encoder == "ode_rnn" else ObservedGRU)(channels, width)
        self.start = nn.Linear(width, 2 * latent)
        self.ode = NeuralODE(field or Autonomous(MLP(latent, latent, width)), solver, regularizer=regularizer)
        self.decoder = nn.Linear(latent, channels)

    def path(self, z0: Tensor, ts: Tensor, contexts: Tensor, seed: Seed) -> tuple[Tensor, Tensor]:
        """The solution, which does not diverge from the prior's."""
        return self.prior_path(z0, ts, seed), z0.new_zeros(len(z0))

    def prior_path(self, z0: Tensor, ts: Tensor, seed: Seed) -> Tensor:
        """The solution."""
        states = self.ode(z0, ts)
        self.stats, self.stiffness = self.ode.stats, self.ode.stiffness
        return states

    def smooth(self, ts: Tensor, ys: Tensor, mask: Tensor, seed: Seed = 0) -> Tensor:
        """Means of the observations (b, t, c) from the mean of the posterior start."""
        return self.decoder(self.prior_path(self.mean(ts, ys, mask), ts, seed))

    def mean(self, ts: Tensor, ys: Tensor, mask: Tensor) -> Tensor:
        """That of the posterior start (b, k)."""
        return self.start(self.contexts(ts, ys, mask)[:, 0]).chunk(2, -1)[0]
