"""Penalties on what a solver itself estimates: errors, stiffness, numbers of steps."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sciml.models.regularizers import Reading, Regularizer
from sciml.solvers.backsolve import Backsolve
from sciml.solvers.brownian import Brownian
from sciml.solvers.control import PID
from sciml.solvers.explicit import Tsit5
from sciml.solvers.fold import SaveAt, Starts
from sciml.solvers.heuristics import ErrorEstimate, Heuristic
from sciml.solvers.local import local_heuristic, state_within, step_again
from sciml.solvers.mesh import Mesh
from sciml.solvers.solve import Solution, Solver
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Time

Form = Literal["global", "unbiased", "biased", "reuse"]


class SolverRegularizer(Regularizer):
    """A penalty on the solver's own heuristics: where these are small, it takes few steps.

    - ``"global"``: of all steps of the solve (Pal et al. 2021), under discrete adjoints. It takes no evaluation.
    - The others (Pal et al. 2023) take one step more from a detached state, and go with every adjoint: their gradient
      flows through that step alone. ``"unbiased"``: at a time t ~ U(t0, t1); ``"biased"``: where one of the solver's
      steps starts, each as likely as the others; both with the first size that the solver would choose. ``"reuse"``:
      that of the solver's steps over t ~ U(t0, t1), with its value over its probability, which makes the expectation
      that of the global form (`MaxStiffness` is taken as it is).

    Of stochastic equations ``"unbiased"`` and ``"biased"`` take the size of the solver's step there, at most up to t1,
    since their first size knows no tolerance, on noise of the step's own; ``"reuse"`` is on the path of the solve.

    Lanes "each" draw a step for every sample; the penalty is the mean over the lanes.

    Args:
        heuristic: `ErrorEstimate` (None takes it), `Stiffness`, `MaxStiffness` or `StepCount`.
        form: of which steps.
        weight: of the penalty.
        final_weight: that at the end of training; None keeps it. On MNIST the papers go from 100 to 10 with the mean
            of E h over the steps, from 5 to 2.5 with its local forms, and take .1 for the largest stiffness.

    Raises:
        ValueError: if the form is none of these, or a weight no number >= 0.

    Reference:
        A. Pal, Y. Ma, V. Shah, C. Rackauckas, Opening the blackbox: accelerating neural differential equations by
        regularizing internal solver heuristics, ICML 2021, arXiv:2105.03918.

        A. Pal, A. Edelman, C. Rackauckas, Locally regularized neural differential equations: some black boxes were
        meant to remain closed!, ICML 2023, arXiv:2303.02262.

    Example:
        >>> import torch
        >>> from sciml.models import MLP, Autonomous, NeuralODE, SolverRegularizer
        >>> ode = NeuralODE(Autonomous(MLP(2, 2)), regularizer=SolverRegularizer(weight=10.0))
        >>> loss = ode(torch.ones(5, 2)).square().mean() + ode.take_penalty()
    """

    def __init__(
        self,
        heuristic: Heuristic | None = None,
        form: Form = "global",
        weight: float = 1.0,
        final_weight: float | None = None,
    ):
        super().__init__(weight, final_weight)
        if form not in get_args(Form):
            raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
        self.heuristic, self.form = heuristic or ErrorEstimate(), form

    def fits(self, solver: Solver) -> None:
        """Refuse a solver whose steps it cannot read."""
        stepper, controller = solver.stepper or Tsit5(), solver.controller or PID()
        reason = self.heuristic.refusal(stepper, controller)
        if self.form == "global" and isinstance(solver.adjoint, Backsolve):
            reason = "form='global' reads all steps, which Backsolve does not differentiate; expected form='unbiased'"
        elif self.form == "unbiased" and not (stepper.dense or stepper.noise_types):
            reason = f"form='unbiased' reads states within steps, {type(stepper).__name__} has none; expected 'biased'"
        elif self.form in ("unbiased", "biased") and not controller.adaptive:
            reason = f"{type(controller).__name__} has no first step size of its own; expected form='reuse'"
        if reason:
            raise ValueError(f"regularizer: {reason}")

    def reading(self, field: nn.Module, solver: Solver, y0: Tensor, t0: Time, t1: Time, args: Args = ()) -> Reading:
        """The heuristic of all steps, or of the one that is drawn."""
        if self.form == "global":
            return Reading({"penalty": self.heuristic}, lambda solution: mean(solution.folds["penalty"]))
        start, end = (torch.as_tensor(t, dtype=torch.float64).detach() for t in (t0, t1))
        lanes = y0.shape[:1] if solver.lanes == "each" else ()
        draw = torch.rand(lanes, dtype=torch.float64).to(start.device)
        value = partial(local_heuristic, self.heuristic, field, solver=solver, args=args)
        noisy = isinstance(field, Diffusive)
        if self.form == "unbiased" and not noisy:
            t = start + draw * (end - start)
            fold = SaveAt(t[..., None])
            return Reading({"state": fold}, lambda s: mean(value(t, s.folds["state"].squeeze(t.ndim), t1=end)))
        if self.form == "reuse":
            local = self._taken_again if noisy or args else partial(self._given_again, value)
        elif noisy:
            local = partial(self._on_own_noise, partial(value, path=Brownian(seed=int(torch.randint(2**62, ())))))
        else:
            local = lambda step: value(step.t, step.y, t1=end)  # noqa: E731

        def penalty(solution: Solution) -> Tensor:
            if len(solution.mesh.theta) == 1:  # over no time
                return y0.new_zeros(())
            return local(drawn(solution, draw, end - start, alike=self.form == "biased")).mean()

        return Reading({"starts": Starts()}, penalty)

    def _given_again(self, value: Callable[..., Tensor], step: "Drawn") -> Tensor:
        return self._weighed(value(step.t, step.y, h=step.share * step.span), step)

    def _taken_again(self, step: "Drawn") -> Tensor:
        found = step_again(self.heuristic, step.solution, step.theta0, step.theta1, step.y)
        return self._weighed(found, step)

    def _weighed(self, value: Tensor, step: "Drawn") -> Tensor:
        """Over the probability of the step."""
        return value / step.share.to(value) if self.heuristic.reduce == "sum" else value

    def _on_own_noise(self, value: Callable[..., Tensor], step: "Drawn") -> Tensor:
        t, y, share = step.t, step.y, step.share
        if self.form == "unbiased":
            y = state_within(step.solution, step.theta0, step.place, y)
            t, share = t + (step.place - step.theta0) * step.span, share.minimum(1 - step.place)
        return value(t, y, h=share * step.span)


class Drawn(NamedTuple):
    """A step of a solution, drawn by chance; (l) but for the solution and the state."""

    solution: Solution
    place: Tensor  # of time, where this was drawn, as a fraction of the span
    t: Tensor  # start of the step
    y: Tensor
    theta0: Tensor  # start as a fraction of the span
    theta1: Tensor  # end
    span: Tensor

    @property
    def share(self) -> Tensor:
        """Of the span."""
        return self.theta1 - self.theta0


def drawn(solution: Solution, u: Tensor, span: Tensor, alike: bool) -> Drawn:
    """The step in which a fraction u (l) of the span lies; or of their number, so that all are alike."""
    mesh = solution.mesh
    u, span = u.to(mesh.theta.device), span.to(mesh.theta.device)
    step = (u * mesh.count).long().clamp_max(mesh.count - 1) if alike else over(mesh, u)
    t, y = (picked(x, step) for x in solution.folds["starts"])
    theta0, theta1 = (picked(nodes.movedim(0, -1), step) for nodes in (mesh.theta[:-1], mesh.theta[1:]))
    return Drawn(solution, u, t, y, theta0, theta1, span)


def mean(values: Tensor) -> Tensor:
    """The mean over the lanes; 0 of none."""
    return values.mean() if values.numel() else values.sum()


def over(mesh: Mesh, theta: Tensor) -> Tensor:
    """The number of the step (l) in which a fraction of the span (l) lies."""
    return (mesh.theta[1:] <= theta).sum(0).clamp_max(mesh.count - 1)


def picked(x: Any, step: Tensor) -> Tensor:
    """What belongs to one step (l) of x: (n, ...), or (b, n, ...) with a step for every lane."""
    if step.ndim == 0:
        return x[int(step)]
    step = step.to(x.device)
    return x[torch.arange(len(step), device=x.device), step]
